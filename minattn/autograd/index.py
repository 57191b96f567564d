"""Picking entries and adding them back: each of the two is the other's derivative."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .elementwise import where
from .engine import Array, Operand, namespace, primitive, raw
from .shape import axis, expand, flip, reshape


class Found(NamedTuple):
    """Values found along an axis, and where."""

    values: Operand
    indices: Array


def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, (int, slice, np.integer)) for p in parts)


def _plain(xp: Any, index: Any) -> Any:
    """An index without Tensors or lists in it, its arrays those of the library `xp`."""
    if isinstance(index, tuple):
        return tuple(_plain(xp, p) for p in index)
    index = raw(index)
    if isinstance(index, (list, np.ndarray)):
        return xp.asarray(index, dtype=int if isinstance(index, list) and not index else None)
    return index


def _getitem(x: Array, /, index: Any) -> Array:
    return x[index]

def _d_getitem(g, out, x, index):
    return put(g, index=index, shape=x.shape)


def _put(values: Array, /, index: Any, shape: tuple[int, ...]) -> Array:
    """Zeros of `shape` with `values` added at `index`; entries named twice add up."""
    xp = namespace(values)
    out = xp.zeros(shape, dtype=values.dtype)
    if _is_basic(index):
        out[index] = values
    else:
        xp.add.at(out, index, values)
    return out

def _d_put(g, out, values, index, shape):
    return picked(g, index=index)


def getitem(x: Operand, index: Any) -> Operand:
    """x[index], with NumPy's rules for slices, integers, arrays and masks."""
    return picked(x, index=_plain(namespace(x), index))


def index_put(x: Operand, index: Any, values: Operand) -> Operand:
    """A copy of x with ``x[index] = values`` (gradients go to `values` there, to x elsewhere)."""
    xp = namespace(x)
    index = _plain(xp, index)
    keep = xp.ones(x.shape, dtype=bool)
    keep[index] = False
    size = keep[index].shape
    values = values if hasattr(values, "shape") else xp.asarray(values, dtype=x.dtype)
    if int((~keep).sum()) != math.prod(size):
        raise ValueError("index: names an entry twice, so which value stays is undefined; use scatter_add")
    return where(keep, x, put(expand(values, size), index=index, shape=x.shape))


def _lattice(index: Array, dim: int) -> tuple:
    """The full index (i₀, …, index, …) that walks along every axis but `dim` in step with `index`."""
    xp = namespace(index)
    full = list(xp.ogrid[tuple(slice(0, n) for n in index.shape)])
    full[dim] = index
    return tuple(full)


def _check_gather(x: Operand, dim: int, index: Array) -> tuple[int, Array]:
    dim = axis(dim, x.ndim)
    index = _check_ids(namespace(x), index, x.shape[dim], "index")
    if index.ndim != x.ndim:
        raise ValueError(f"index: expected {x.ndim} axes as in x, got shape {index.shape}")
    return dim, index


def gather(x: Operand, dim: int, index: Array) -> Operand:
    """out[i, j, …] = x[…, index[i, j, …], …]: entries chosen along `dim`, torch.gather."""
    dim, index = _check_gather(x, dim, index)
    return picked(x, index=_lattice(index, dim))


def scatter_add(x: Operand, dim: int, index: Array, src: Operand) -> Operand:
    """x with src[i, j, …] added at position index[i, j, …] along `dim`, torch.scatter_add."""
    dim, index = _check_gather(x, dim, index)
    part = src[tuple(slice(0, n) for n in index.shape)]
    return x + put(part, index=_lattice(index, dim), shape=x.shape)


def _segment_sum(x: Array, /, ids: Array, count: int) -> Array:
    xp = namespace(x)
    out = xp.zeros((count, *x.shape[1:]), dtype=x.dtype)
    if xp is not np:
        xp.add.at(out, ids, x)
    elif len(ids):  # sorted runs and one reduceat: many times faster than add.at
        order = np.argsort(ids, kind="stable")
        runs, starts = np.unique(ids[order], return_index=True)
        out[runs] = np.add.reduceat(x[order], starts, axis=0)
    return out

def _d_segment_sum(g, out, x, ids, count):
    return rows(g, ids=ids)


def _rows(weight: Array, /, ids: Array) -> Array:
    return weight[ids]

def _d_rows(g, out, weight, ids):
    flat = reshape(g, (ids.size, *weight.shape[1:]))
    return summed_segments(flat, ids=ids.reshape(-1), count=weight.shape[0])


def _check_ids(xp: Any, ids: Operand, count: int, name: str = "ids") -> Array:
    ids = xp.asarray(raw(ids))
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {ids.dtype}")
    if ids.size and not (0 <= int(ids.min()) and int(ids.max()) < count):
        raise ValueError(f"{name}: expected values in [0, {count}), got [{ids.min()}, {ids.max()}]")
    return ids


def segment_sum(x: Operand, ids: Array, count: int) -> Operand:
    """Row s of the result is the sum of the rows of x whose id is s; shape (count, …)."""
    ids = _check_ids(namespace(x), ids, count)
    if ids.shape != x.shape[:1]:
        raise ValueError(f"ids: expected one id for each of the {x.shape[0]} rows, got shape {ids.shape}")
    return summed_segments(x, ids=ids, count=count)


def embedding(weight: Operand, ids: Array) -> Operand:
    """Rows of `weight` (V, D) chosen by integers `ids` of any shape (…); result (…, D)."""
    return rows(weight, ids=_check_ids(namespace(weight), ids, weight.shape[0]))


def one_hot(ids: Array, count: int, dtype: Any = np.float32) -> Array:
    """Plain array (…, count) with a single 1 at each id."""
    xp = namespace(ids)
    return (_check_ids(xp, ids, count)[..., None] == xp.arange(count)).astype(dtype)


def sort(x: Operand, dim: int = -1, descending: bool = False) -> Found:
    """Entries in order along `dim` (equal ones in their old order) and their indices."""
    data = raw(x)
    if descending:  # stable also downwards: sort the reversed axis upwards, then read both backwards
        order = flip(data, dim).argsort(axis=dim, kind="stable")
        order = data.shape[dim] - 1 - flip(order, dim)
    else:
        order = data.argsort(axis=dim, kind="stable")
    return Found(gather(x, dim, order), order)


def topk(x: Operand, k: int, dim: int = -1) -> Found:
    """The k largest entries along `dim`, largest first, and their indices."""
    dim = axis(dim, x.ndim)
    n = x.shape[dim]
    if not 0 <= k <= n:
        raise ValueError(f"k: expected 0 ≤ k ≤ {n}, the size of axis {dim}, got {k}")
    order = sort(raw(x), dim, descending=True).indices
    order = order[(slice(None),) * dim + (slice(0, k),)]
    return Found(gather(x, dim, order), order)


picked = primitive(_getitem, _d_getitem, "getitem")
put = primitive(_put, _d_put)
rows = primitive(_rows, _d_rows, "embedding")
summed_segments = primitive(_segment_sum, _d_segment_sum, "segment_sum")
