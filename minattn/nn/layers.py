"""The simplest layers: a product with a matrix, a table, dropout, an activation, and layers in a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minattn.autograd import linear, relu, sigmoid, softplus, tanh
from minattn.autograd.engine import Array, Operand
from minattn.kernels import dropout, embedding, gelu, silu

from . import init
from .module import Module, ModuleList, Parameter


class Linear(Module):
    """x Wᵀ + b, for x (…, d_in); the result is (…, d_out).

    Parameters
    ----------
    d_in, d_out : int
        Sizes of the last axis before and after.
    bias : bool
        Whether b is added.
    rng : numpy.random.Generator
        Source of the initial weights, uniform on ±1/√d_in as in PyTorch.

    Attributes
    ----------
    weight : Parameter (d_out, d_in)
    bias : Parameter (d_out) or None
    """

    def __init__(self, d_in: int, d_out: int, bias: bool = True, *, rng: np.random.Generator) -> None:
        self.d_in, self.d_out = init.check_sizes(d_in=d_in, d_out=d_out)
        bound = 1 / math.sqrt(d_in)
        self.weight = Parameter(init.uniform((d_out, d_in), bound, rng=rng))
        self.bias = Parameter(init.uniform((d_out,), bound, rng=rng)) if bias else None

    def forward(self, x: Operand) -> Operand:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.d_in}, out_features={self.d_out}, bias={self.bias is not None}"


class Embedding(Module):
    """A table of V vectors: ids (…) of integers choose rows, giving (…, D).

    Parameters
    ----------
    V, D : int
        Number of rows and their size.
    rng : numpy.random.Generator
        Source of the initial table, standard normal as in PyTorch.

    Attributes
    ----------
    weight : Parameter (V, D)
    """

    def __init__(self, V: int, D: int, *, rng: np.random.Generator) -> None:
        self.V, self.D = init.check_sizes(V=V, D=D)
        self.weight = Parameter(init.normal((V, D), rng=rng))

    def forward(self, ids: Array) -> Operand:
        return embedding(self.weight, ids)

    def extra_repr(self) -> str:
        return f"{self.V}, {self.D}"


class Dropout(Module):
    """While training, zero each entry with probability p and divide the others by 1 − p; else the identity.

    Parameters
    ----------
    p : float
        0 ≤ p < 1.
    rng : numpy.random.Generator
        Source of the choice; not needed for p = 0.
    """

    def __init__(self, p: float, rng: np.random.Generator | None = None) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"p: expected a probability in [0, 1), got {p}")
        self.p = p
        self.rng = init.check_rng(rng) if p else rng

    def forward(self, x: Operand) -> Operand:
        if not self.training or self.rng is None or not self.p:
            return x
        return dropout(x, self.p, self.rng)

    def extra_repr(self) -> str:
        return f"p={self.p}"


ACTIVATIONS: dict[str, Callable[[Operand], Operand]] = {
    "relu": relu, "gelu": gelu, "gelu_tanh": lambda x: gelu(x, "tanh"), "silu": silu, "tanh": tanh,
    "sigmoid": sigmoid, "softplus": softplus, "identity": lambda x: x,
}


def activation(name: str) -> Callable[[Operand], Operand]:
    """The elementwise function of that name in `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


class Activation(Module):
    """An elementwise function by name, as a module; see `ACTIVATIONS`."""

    def __init__(self, name: str) -> None:
        activation(name)
        self.name = name

    def forward(self, x: Operand) -> Operand:
        return ACTIVATIONS[self.name](x)

    def extra_repr(self) -> str:
        return repr(self.name)


class Sequential(ModuleList):
    """Modules one after the other, each on the output of the one before; their names are "0", "1", …"""

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
