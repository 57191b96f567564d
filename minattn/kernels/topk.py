"""The k largest entries of each row, largest first, and where they are.

The reference, `minattn.autograd.topk`, sorts whole rows: O(n log n). NumPy's partial selection leaves open
which of several equal entries it takes, and torch does too; here equal entries come lowest index first, so
that a routing is the same everywhere.

For a small k the compiled form (`cpu/topk.py`) keeps the best so far in a heap and compares the rest of the
row, 32 entries at a time, with its worst: O(n + m log k), m being how often the heap changes, about
k ln(n/k) times in random order. For a large k, an entry of float32 and its index make one integer of 64 bits,
and NumPy's partition and sort of integers, which compare many at once, do the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minattn import autograd
from minattn.autograd import namespace, primitive
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, launch

SMALL = 20_000
"""Arrays with fewer entries are left to NumPy: a toy model should not wait for a compiler."""
FEW = 64
"""Up to one entry in so many is few, and the heap serves."""


class TopK(NamedTuple):
    """Values found along an axis, and where."""

    values: Operand
    indices: Array


def naive_topk(row: Array, k: int) -> tuple[Array, Array]:
    """`topk` of a row without NaN: the largest entry that is left, k times."""
    left, found = list(range(len(row))), []
    for _ in range(k):
        best = left[0]
        for i in left:
            if row[i] > row[best]:
                best = i
        left.remove(best)
        found.append(best)
    return np.array([row[i] for i in found], row.dtype), np.array(found, np.int64)


def _chosen(x: Array, /, indices: Array, dim: int) -> Array:
    return np.take_along_axis(x, indices, dim)

def _d_chosen(g, out, x, indices, dim):
    return placed(g, indices=indices, dim=dim, n=x.shape[dim])


def _placed(g: Array, /, indices: Array, dim: int, n: int) -> Array:
    """Zeros with n entries along `dim`, g put where it was chosen; no place is named twice."""
    x = np.zeros((*g.shape[:dim], n, *g.shape[dim + 1:]), g.dtype)
    np.put_along_axis(x, indices, g, dim)
    return x

def _d_placed(g, out, x, indices, dim, n):
    return chosen(g, indices=indices, dim=dim)


def _indices(x: Array, k: int, dim: int) -> Array:
    """Where the k largest entries are along `dim`."""
    n = x.shape[dim]
    if x.size >= SMALL and 0 < k * FEW <= n and compiled(x):
        from .cpu import topk as cpu

        rows = np.ascontiguousarray(np.moveaxis(x, dim, -1))
        found = np.empty((*rows.shape[:-1], k), np.int64)
        launch(cpu.topk, rows.reshape(-1, n), found.reshape(-1, k))
        return np.moveaxis(found, -1, dim)
    if x.dtype == np.float32 and 0 < n < 2**32:
        keys = ordered_keys(np.moveaxis(x, dim, -1))
        if k < n:
            keys = np.partition(keys, k, axis=-1)[..., :k]
        return np.moveaxis((np.sort(keys, axis=-1) & np.uint64(2**32 - 1)).astype(np.int64), -1, dim)
    return autograd.topk(x, k, dim).indices


def ordered_keys(x: Array) -> Array:
    """Integers of 64 bits in the order of `topk` along the last axis: the entry above, its index below.

    The bits of floats ≥ 0, read as integers, are in the order of the floats; those of floats < 0 in the
    opposite order.
    """
    bits = np.ascontiguousarray(x + np.float32(0)).view(np.uint32)  # −0 becomes 0
    negative = bits >> np.uint32(31)
    falling = bits ^ np.where(negative, np.uint32(0), np.uint32(2**31 - 1))
    falling[np.isnan(x)] = 0
    return falling.astype(np.uint64) << np.uint64(32) | np.arange(x.shape[-1], dtype=np.uint64)


def topk(x: Operand, k: int, dim: int = -1) -> TopK:
    """The k largest entries along `dim`, largest first, and their indices.

    Parameters
    ----------
    x : (…, n, …)
        Equal entries come lowest index first, ±0 and −∞ among them. NaN counts as larger than +∞, as in
        PyTorch: it comes first, where it is seen.
    k : int
        0 ≤ k ≤ n.

    Returns
    -------
    values, indices : (…, k, …)
        The gradient of the values goes to the places they came from. Differentiable any number of times.

    Raises
    ------
    ValueError
        If there is no such axis, or k is not an integer in [0, n].
    """
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim: expected an axis of an array with {x.ndim}, got {dim}")
    dim, data = dim % x.ndim, raw(x)
    n = x.shape[dim]
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 0 <= k <= n:
        raise ValueError(f"k: expected an integer, 0 ≤ k ≤ {n}, the size of axis {dim}, got {k!r}")
    if namespace(data) is not np:
        return TopK(*autograd.topk(x, k, dim))
    indices = _indices(data, int(k), dim)
    return TopK(chosen(x, indices=indices, dim=dim), indices)


chosen = primitive(_chosen, _d_chosen, "topk")
placed = primitive(_placed, _d_placed)
