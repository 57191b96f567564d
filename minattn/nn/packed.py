"""Layers whose matrix is kept in fewer bits than it is computed with; not to be trained."""

from __future__ import annotations

import numpy as np

from minattn.autograd import Tensor
from minattn.autograd.engine import Array, Operand
from minattn.kernels.packed import Packed, packed_linear

from .module import Module, Parameter


class _OfPacked(Module):
    """A module with one packed matrix, saved as the buffer ``packed`` in the form that it is stored in."""

    packed: np.ndarray

    def __init__(self, weight: Packed) -> None:
        self.kind, self.shape = weight.kind, weight.shape
        self.register_buffer("packed", weight.data)

    @property
    def weight(self) -> Packed:
        """The matrix; ``weight.dense()`` is it in float32."""
        return Packed(self.kind, self.packed, self.shape)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, kind={self.kind!r}"


class PackedLinear(_OfPacked):
    """x Wᵀ + b for x (…, d_in), W packed; gradients reach x and b.

    Parameters
    ----------
    weight : Packed (d_out, d_in)
    bias : Parameter (d_out), optional
    """

    def __init__(self, weight: Packed, bias: Parameter | None = None) -> None:
        super().__init__(weight)
        self.bias = bias

    def forward(self, x: Operand) -> Operand:
        return packed_linear(x, self.weight, self.bias)


class PackedEmbedding(_OfPacked):
    """A packed table of vectors: ids (…) of integers choose rows, giving (…, D) in float32.

    Parameters
    ----------
    weight : Packed (V, D)
    """

    def forward(self, ids: Array) -> Operand:
        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"ids: expected integers, got dtype {ids.dtype}")
        if ids.size and not (0 <= ids.min() and ids.max() < self.shape[0]):
            raise ValueError(f"ids: expected values in [0, {self.shape[0]}), got [{ids.min()}, {ids.max()}]")
        return Tensor(self.weight.rows(ids))
