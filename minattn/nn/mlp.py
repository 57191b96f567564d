"""Feed-forward layers of a transformer: two matrices with an activation between, and the gated forms."""

from __future__ import annotations

import numpy as np

from minattn.autograd.engine import Operand
from minattn.kernels import swiglu

from .layers import Linear
from .layers import activation as named
from .module import HookPoint, Module


class MLP(Module):
    """f(x W_upᵀ + b) W_downᵀ + b for x (…, D).

    Parameters
    ----------
    D : int
        Size of the input.
    d_hidden : int, optional
        Size between the matrices; by default 4 D.
    d_out : int, optional
        Size of the output; by default D.
    activation : str
        Name of f; see `minattn.nn.ACTIVATIONS`.
    bias : bool
        Whether the matrices have biases.
    rng : numpy.random.Generator
        Source of the initial weights.

    Attributes
    ----------
    up, down : Linear
    hook_hidden : HookPoint
        The hidden values after the activation.
    """

    def __init__(self, D: int, d_hidden: int | None = None, d_out: int | None = None, *,
                 activation: str = "gelu", bias: bool = True, rng: np.random.Generator) -> None:
        d_hidden = 4 * D if d_hidden is None else d_hidden
        named(activation)
        self.activation = activation
        self.up = Linear(D, d_hidden, bias, rng=rng)
        self.down = Linear(d_hidden, D if d_out is None else d_out, bias, rng=rng)
        self.hook_hidden = HookPoint()

    def forward(self, x: Operand) -> Operand:
        return self.down(self.hook_hidden(named(self.activation)(self.up(x))))

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"


class GLU(Module):
    """Gated feed-forward layer (f(x W_gateᵀ + b) ⊙ (x W_upᵀ + b)) W_downᵀ + b for x (…, D) [Shazeer 2020].

    One matrix computes what might pass, another how much of it does. Here f = σ, as in Dauphin et al. 2017;
    the subclasses differ in f alone.

    Parameters
    ----------
    D : int
        Size of the input and of the output.
    d_hidden : int, optional
        Size between the matrices; by default 8/3 D, rounded up, so that the three matrices have as many
        entries as the two of an `MLP` with 4 D.
    bias : bool
        Whether the matrices have biases.
    rng : numpy.random.Generator
        Source of the initial weights.

    Attributes
    ----------
    gate, up, down : Linear
    hook_gate, hook_hidden : HookPoint
        f(x W_gateᵀ + b), and the product of gate and value.
    """

    activation = "sigmoid"

    def __init__(self, D: int, d_hidden: int | None = None, *, bias: bool = True, rng: np.random.Generator
                 ) -> None:
        d_hidden = -(-8 * D // 3) if d_hidden is None else d_hidden
        self.gate = Linear(D, d_hidden, bias, rng=rng)
        self.up = Linear(D, d_hidden, bias, rng=rng)
        self.down = Linear(d_hidden, D, bias, rng=rng)
        self.hook_gate, self.hook_hidden = HookPoint(), HookPoint()

    def forward(self, x: Operand) -> Operand:
        gate = self.hook_gate(named(self.activation)(self.gate(x)))
        return self.down(self.hook_hidden(gate * self.up(x)))


class SwiGLU(GLU):
    """`GLU` with f(x) = SiLU(x) = x σ(x)."""

    activation = "silu"

    def forward(self, x: Operand) -> Operand:
        if self.hook_gate._forward_hooks:  # who looks at the gate gets it; else gate and value are one pass
            return super().forward(x)
        return self.down(self.hook_hidden(swiglu(self.gate(x), self.up(x))))


class GEGLU(GLU):
    """`GLU` with f = GELU."""

    activation = "gelu"


class ReGLU(GLU):
    """`GLU` with f = ReLU."""

    activation = "relu"


class Bilinear(GLU):
    """`GLU` with f the identity: a product of two linear maps."""

    activation = "identity"
