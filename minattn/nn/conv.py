"""Convolutions with weights of their own."""

from __future__ import annotations

import math

import numpy as np

from minattn.autograd.engine import Operand
from minattn.kernels import conv1d, conv2d

from . import init
from .module import Module, Parameter

Size = int | tuple[int, int]


class Conv1d(Module):
    """Cross-correlation of x (B, d_in, N) with a window of `kernel` positions; the result is (B, d_out, M).

    Parameters
    ----------
    d_in, d_out : int
        Numbers of channels.
    kernel : int
        K, the size of the window.
    stride, dilation : int
        Steps between windows and between the positions of one window.
    padding : int or "causal"
        Zeros on both sides; "causal" puts (K − 1) · dilation of them before the start, so that output t sees
        inputs up to t alone and M = N.
    groups : int
        Channels are cut into so many groups that do not see each other; ``groups=d_in`` is depthwise.
    bias : bool
        Whether each output channel has a bias.
    rng : numpy.random.Generator
        Source of the initial weights, uniform on ±1/√fan-in as in PyTorch.

    Attributes
    ----------
    weight : Parameter (d_out, d_in / groups, K)
    bias : Parameter (d_out) or None
    """

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int = 1, padding: int | str = 0,
                 dilation: int = 1, groups: int = 1, bias: bool = True, *, rng: np.random.Generator) -> None:
        init.check_sizes(kernel=kernel, stride=stride, dilation=dilation)
        if padding != "causal" and not (isinstance(padding, int) and padding >= 0):
            raise ValueError(f'padding: expected an integer of at least 0 or "causal", got {padding!r}')
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.dilation, self.groups = dilation, groups
        self.weight, self.bias = _weights(d_in, d_out, (kernel,), groups, bias, rng)

    def forward(self, x: Operand) -> Operand:
        return conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return _described(self)


class Conv2d(Module):
    """Cross-correlation of images x (B, d_in, H, W) with a window; the result is (B, d_out, H', W').

    Parameters
    ----------
    d_in, d_out : int
        Numbers of channels.
    kernel, stride, padding, dilation : int or pair of int
        Size of the window, steps between windows, zeros around the image, steps within a window.
    groups : int
        Channels are cut into so many groups that do not see each other; ``groups=d_in`` is depthwise.
    bias : bool
        Whether each output channel has a bias.
    rng : numpy.random.Generator
        Source of the initial weights, uniform on ±1/√fan-in as in PyTorch.

    Attributes
    ----------
    weight : Parameter (d_out, d_in / groups, K_h, K_w)
    bias : Parameter (d_out) or None
    """

    def __init__(self, d_in: int, d_out: int, kernel: Size, stride: Size = 1, padding: Size = 0,
                 dilation: Size = 1, groups: int = 1, bias: bool = True, *, rng: np.random.Generator) -> None:
        self.kernel, self.stride = _pair("kernel", kernel, 1), _pair("stride", stride, 1)
        self.padding, self.dilation = _pair("padding", padding, 0), _pair("dilation", dilation, 1)
        self.groups = groups
        self.weight, self.bias = _weights(d_in, d_out, self.kernel, groups, bias, rng)

    def forward(self, x: Operand) -> Operand:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return _described(self)


def _pair(name: str, value: Size, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise ValueError(f"{name}: expected one or two integers of at least {least}, got {value!r}")
    return pair


def _weights(d_in: int, d_out: int, kernel: tuple[int, ...], groups: int, bias: bool, rng: np.random.Generator
             ) -> tuple[Parameter, Parameter | None]:
    init.check_sizes(d_in=d_in, d_out=d_out, groups=groups)
    if d_in % groups or d_out % groups:
        raise ValueError(f"groups: expected a divisor of d_in={d_in} and d_out={d_out}, got {groups}")
    shape = (d_out, d_in // groups, *kernel)
    bound = 1 / math.sqrt(init.fans(shape)[0])
    weight = Parameter(init.uniform(shape, bound, rng=rng))
    return weight, Parameter(init.uniform((d_out,), bound, rng=rng)) if bias else None


def _described(conv: Conv1d | Conv2d) -> str:
    d_out, per_group = conv.weight.shape[:2]
    parts = [f"{per_group * conv.groups}, {d_out}, kernel={conv.kernel}, stride={conv.stride}"]
    usual = {"padding": (0, (0, 0)), "dilation": (1, (1, 1)), "groups": (1,)}
    for name, values in usual.items():
        if getattr(conv, name) not in values:
            parts.append(f"{name}={getattr(conv, name)!r}")
    return ", ".join(parts + ["bias=False"] * (conv.bias is None))
