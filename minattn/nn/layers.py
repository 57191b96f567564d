"""The simplest layers."""

from __future__ import annotations

import numpy as np

from minattn.autograd import linear
from minattn.autograd.engine import Operand

from . import init
from .module import Module, Parameter


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
        bound = 1 / np.sqrt(d_in)
        self.weight = Parameter(init.uniform((d_out, d_in), bound, rng=rng))
        self.bias = Parameter(init.uniform((d_out,), bound, rng=rng)) if bias else None

    def forward(self, x: Operand) -> Operand:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.d_in}, out_features={self.d_out}, bias={self.bias is not None}"
