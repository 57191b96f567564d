"""Layers that give their inputs mean zero and variance one, over features or over the batch."""

from __future__ import annotations

import numpy as np

from minattn.autograd import mean, reshape
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import layer_norm, rms_norm

from . import init
from .module import Module, Parameter


class LayerNorm(Module):
    """(x − x̄) / √(var x + ε) · w + b over the last axis of x (…, D), var with divisor D [Ba et al. 2016].

    Parameters
    ----------
    D : int
        Size of the last axis.
    eps : float
        ε, which keeps a constant row finite.
    affine : bool
        Whether w (ones at first) and b (zeros) are there.
    bias : bool
        Whether b is there.

    Attributes
    ----------
    weight, bias : Parameter (D) or None
    """

    def __init__(self, D: int, eps: float = 1e-5, affine: bool = True, bias: bool = True) -> None:
        (self.D,) = init.check_sizes(D=D)
        self.eps = eps
        self.weight = Parameter(np.ones(D, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(D, np.float32)) if affine and bias else None

    def forward(self, x: Operand) -> Operand:
        _check_last(x, self.D)
        return layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (f"({self.D},), eps={self.eps}, elementwise_affine={self.weight is not None}, "
                f"bias={self.bias is not None}")


class RMSNorm(Module):
    """x / √(mean x² + ε) · w over the last axis of x (…, D) [Zhang and Sennrich 2019].

    Parameters
    ----------
    D : int
        Size of the last axis.
    eps : float
        ε, which keeps a row of zeros finite.
    affine : bool
        Whether w (ones at first) is there.

    Attributes
    ----------
    weight : Parameter (D) or None
    """

    def __init__(self, D: int, eps: float = 1e-6, affine: bool = True) -> None:
        (self.D,) = init.check_sizes(D=D)
        self.eps = eps
        self.weight = Parameter(np.ones(D, np.float32)) if affine else None

    def forward(self, x: Operand) -> Operand:
        _check_last(x, self.D)
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"({self.D},), eps={self.eps}, elementwise_affine={self.weight is not None}"


def _check_last(x: Operand, D: int) -> None:
    if x.shape[-1:] != (D,):
        raise ValueError(f"x: expected {D} features in the last axis, got shape {x.shape}")


class BatchNorm(Module):
    """(x − μ) / √(σ² + ε) · w + b for each channel of x (B, C, …) [Ioffe and Szegedy 2015].

    While training, μ and σ² (divisor n) are those of the batch, and running averages follow them; after
    `eval` they are the running averages. Use `BatchNorm1d` or `BatchNorm2d`, which check the number of axes.

    Parameters
    ----------
    C : int
        Number of channels.
    eps : float
        ε.
    momentum : float or None
        m in running ← (1 − m) running + m batch; None averages over all batches alike.
    affine : bool
        Whether w (ones at first) and b (zeros) are there.

    Attributes
    ----------
    weight, bias : Parameter (C) or None
    running_mean, running_var : buffers (C)
        Averages of μ and of the unbiased variance (divisor n − 1).
    num_batches_tracked : buffer ()
    """

    ndims: tuple[int, ...] = (2, 3, 4)

    running_mean: Array
    running_var: Array
    num_batches_tracked: Array

    def __init__(self, C: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        (self.C,) = init.check_sizes(C=C)
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(C, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(C, np.float32)) if affine else None
        self.register_buffer("running_mean", np.zeros(C, np.float32))
        self.register_buffer("running_var", np.ones(C, np.float32))
        self.register_buffer("num_batches_tracked", np.array(0))

    def forward(self, x: Operand) -> Operand:
        if x.ndim not in self.ndims or x.shape[1] != self.C:
            axes = " or ".join(map(str, self.ndims))
            raise ValueError(f"x: expected (B, {self.C}, …) with {axes} axes, got shape {x.shape}")
        shape = (1, self.C) + (1,) * (x.ndim - 2)  # so that values of channels broadcast
        if self.training:
            dims = (0, *range(2, x.ndim))
            mu = mean(x, dims, keepdim=True)
            centred = x - mu
            var = mean(centred * centred, dims, keepdim=True)
            self._follow(raw(mu).reshape(-1), raw(var).reshape(-1), x.size // self.C)
        else:
            mu, var = self.running_mean.reshape(shape), self.running_var.reshape(shape)
            centred = x - mu
        out = centred * (var + self.eps) ** -0.5
        if self.weight is None:
            return out
        return out * reshape(self.weight, shape) + reshape(self.bias, shape)

    def _follow(self, mu: Array, var: Array, n: int) -> None:
        """Let the running averages follow the batch."""
        if n < 2:
            raise ValueError("x: a variance needs more than one value of each channel while training")
        self.num_batches_tracked = self.num_batches_tracked + 1
        m = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean = (1 - m) * self.running_mean + m * mu
        self.running_var = (1 - m) * self.running_var + m * (var * (n / (n - 1)))

    def extra_repr(self) -> str:
        return f"{self.C}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}"


class BatchNorm1d(BatchNorm):
    """`BatchNorm` of x (B, C) or (B, C, N)."""

    ndims = (2, 3)


class BatchNorm2d(BatchNorm):
    """`BatchNorm` of images x (B, C, H, W)."""

    ndims = (4,)
