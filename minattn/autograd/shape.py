"""Primitives that move entries about: shapes, joins, pads. Each one's derivative is its mirror image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .elementwise import where
from .engine import Array, Operand, namespace, primitive

Widths = tuple[tuple[int, int], ...]


def _shape_of(shape: tuple) -> tuple[int, ...]:
    """Accept ``f(x, 2, 3)`` as well as ``f(x, (2, 3))``."""
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape


def axis(dim: int, ndim: int) -> int:
    """The axis `dim`, which may be counted from the end, counted from the front."""
    if not -ndim <= dim < ndim:
        raise ValueError(f"dim: expected an axis in [{-ndim}, {ndim - 1}], got {dim}")
    return dim % ndim


def _reshape(x: Array, /, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)

def _d_reshape(g, out, x, shape):
    return reshape(g, x.shape)


def reshape(x: Operand, *shape: int | tuple[int, ...]) -> Operand:
    """The same entries in another shape; one size may be −1."""
    return reshaped(x, shape=_shape_of(shape))


def _permute(x: Array, /, dims: tuple[int, ...]) -> Array:
    return x.transpose(dims)

def _d_permute(g, out, x, dims):
    inverse = [0] * len(dims)
    for new, old in enumerate(dims):
        inverse[old] = new
    return permute(g, *inverse)


def permute(x: Operand, *dims: int | tuple[int, ...]) -> Operand:
    """Reorder the axes: axis i of the result is axis dims[i] of x."""
    return permuted(x, dims=_shape_of(dims))


def transpose(x: Operand, dim0: int, dim1: int) -> Operand:
    """Exchange two axes."""
    dims = list(range(x.ndim))
    dim0, dim1 = axis(dim0, x.ndim), axis(dim1, x.ndim)
    dims[dim0], dims[dim1] = dim1, dim0
    return permuted(x, dims=tuple(dims))


def _expand(x: Array, /, shape: tuple[int, ...]) -> Array:
    if x.ndim or namespace(x) is not np:
        return namespace(x).broadcast_to(x, shape)
    out = np.empty(shape, dtype=x.dtype)  # a scalar, such as the gradient of a loss: filling is quicker
    out.fill(x)
    return out

def _d_expand(g, out, x, shape):
    return g  # the sweep sums it back to the shape of x


def expand(x: Operand, *shape: int | tuple[int, ...]) -> Operand:
    """Broadcast to `shape` without copying; −1 keeps the size of that axis."""
    shape = _shape_of(shape)
    if -1 in shape:
        lead = len(shape) - x.ndim
        if lead < 0 or -1 in shape[:lead]:
            raise ValueError(f"shape: -1 in {shape} stands for no axis of a tensor of shape {x.shape}")
        shape = tuple(x.shape[i - lead] if n == -1 else n for i, n in enumerate(shape))
    return x if x.shape == shape else expanded(x, shape=shape)


def unsqueeze(x: Operand, dim: int) -> Operand:
    """Insert an axis of size 1 at `dim`."""
    dim = axis(dim, x.ndim + 1)
    return reshape(x, (*x.shape[:dim], 1, *x.shape[dim:]))


def squeeze(x: Operand, dim: int | None = None) -> Operand:
    """Drop the axis `dim` if its size is 1, or all axes of size 1."""
    drop = range(x.ndim) if dim is None else [axis(dim, x.ndim)]
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in drop))


def _cat(*xs: Array, dim: int) -> Array:
    return namespace(xs[0]).concatenate(xs, axis=dim)

def _d_cat(g, out, *xs, dim):
    stops = np.cumsum([x.shape[dim] for x in xs]).tolist()
    lead = (slice(None),) * (dim % g.ndim)
    return tuple(lambda a=a, b=b: g[(*lead, slice(a, b))] for a, b in pairwise([0, *stops]))


def cat(tensors: Sequence[Operand], dim: int = 0) -> Operand:
    """Join tensors along an axis they have."""
    if not tensors:
        raise ValueError("tensors: expected at least one tensor to join, got none")
    return joined(*tensors, dim=dim)


def stack(tensors: Sequence[Operand], dim: int = 0) -> Operand:
    """Join tensors of one shape along a new axis."""
    if len({tuple(t.shape) for t in tensors}) != 1:
        raise ValueError(f"tensors: expected one shape, got {[tuple(t.shape) for t in tensors]}")
    return cat([unsqueeze(t, dim) for t in tensors], dim)


def split(x: Operand, sizes: int | Sequence[int], dim: int = 0) -> tuple:
    """Cut along `dim` into pieces of the given sizes (a number: that size each, the last may be smaller)."""
    n = x.shape[axis(dim, x.ndim)]
    if isinstance(sizes, int):
        sizes = [min(sizes, n - start) for start in range(0, max(n, 1), sizes)] if sizes > 0 else [sizes]
    if sum(sizes) != n or min(sizes, default=0) < 0:
        raise ValueError(f"sizes: expected sizes that sum to {n}, the size of axis {dim}, got {list(sizes)}")
    lead = (slice(None),) * (dim % x.ndim)
    return tuple(x[(*lead, slice(a, b))] for a, b in pairwise([0, *np.cumsum(sizes).tolist()]))


def chunk(x: Operand, chunks: int, dim: int = 0) -> tuple:
    """Cut along `dim` into at most `chunks` pieces of equal size (the last may be smaller)."""
    if chunks < 1:
        raise ValueError(f"chunks: expected at least 1, got {chunks}")
    return split(x, max(1, math.ceil(x.shape[axis(dim, x.ndim)] / chunks)), dim)


def _pad(x: Array, /, widths: Widths, value: float) -> Array:
    return namespace(x).pad(x, widths, constant_values=value)

def _d_pad(g, out, x, widths, value):
    return g[tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))]


def pad(x: Operand, widths: Widths, value: float = 0.0) -> Operand:
    """Add `value` around x: one pair (before, after) for each axis, as in NumPy."""
    if len(widths) != x.ndim:
        raise ValueError(f"widths: expected {x.ndim} pairs (before, after), one per axis, got {len(widths)}")
    return padded(x, widths=tuple(tuple(w) for w in widths), value=value)


def _roll(x: Array, /, shifts: int | tuple[int, ...], dims: int | tuple[int, ...] | None = None) -> Array:
    """Shift entries along `dims`, those that fall off coming in at the other end."""
    return namespace(x).roll(x, shifts, axis=dims)

def _d_roll(g, out, x, shifts, dims=None):
    return roll(g, tuple(-s for s in shifts) if isinstance(shifts, (tuple, list)) else -shifts, dims)


def _flip(x: Array, /, dims: tuple[int, ...]) -> Array:
    return namespace(x).flip(x, dims)

def _d_flip(g, out, x, dims):
    return flip(g, *dims)


def flip(x: Operand, *dims: int | tuple[int, ...]) -> Operand:
    """Reverse the order of entries along `dims`."""
    return flipped(x, dims=_shape_of(dims))


def _lower(x: Operand, diagonal: int) -> Array:
    """Where column j ≤ row i + diagonal, in the last two axes of x."""
    if x.ndim < 2:
        raise ValueError(f"x: expected matrices in the last two axes, got shape {x.shape}")
    return namespace(x).tri(*x.shape[-2:], diagonal, dtype=bool)


def tril(x: Operand, diagonal: int = 0) -> Operand:
    """Lower triangle of the last two axes, zero above the given diagonal."""
    return where(_lower(x, diagonal), x, 0)


def triu(x: Operand, diagonal: int = 0) -> Operand:
    """Upper triangle of the last two axes, zero below the given diagonal."""
    return where(_lower(x, diagonal - 1), 0, x)


def repeat_interleave(x: Operand, repeats: int, dim: int) -> Operand:
    """Repeat each entry along `dim` so many times in a row (the heads of grouped attention)."""
    dim = axis(dim, x.ndim)
    before, n, after = x.shape[:dim], x.shape[dim], x.shape[dim + 1 :]
    repeated = expand(unsqueeze(x, dim + 1), (*before, n, repeats, *after))
    return reshape(repeated, (*before, n * repeats, *after))


reshaped = primitive(_reshape, _d_reshape, "reshape")
permuted = primitive(_permute, _d_permute, "permute")
expanded = primitive(_expand, _d_expand, "expand")
joined = primitive(_cat, _d_cat, "cat")
padded = primitive(_pad, _d_pad, "pad")
roll = primitive(_roll, _d_roll)
flipped = primitive(_flip, _d_flip, "flip")
