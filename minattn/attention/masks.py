"""Masks: who may look at whom, as predicates.

A mask is a function ``mask(b, h, i, j) -> bool``: may query i of head h in batch b see key j?  True means visible.
It is written with plain arithmetic, so the same function answers for four numbers and, given index arrays of
shapes (B,1,1,1), (1,H,1,1), (1,1,N,1) and (1,1,1,M), for all of them at once.

``causal``            j ≤ i: no key after the query
``padding(lengths)``  j < lengths[b]: no key beyond the end of its sequence
``prefix(n)``         j ≤ i or j < n: causal, but the first n keys are open to all
``sliding_window(w)`` i − w < j ≤ i: the last w keys
``block(size)``       i and j in the same block of `size` positions
``document(ids)``     i and j in the same document

and `both`, `either`, `negate` combine them; `shifted` and `at_positions` say which positions i and j are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minattn.autograd import namespace
from minattn.autograd.engine import Array, raw

MaskMod = Callable[[Any, Any, Any, Any], Any]

# Masks of this file depend on nothing but (b, h, i, j), so their arrays can be kept: mask -> {shape: array}.
_kept: WeakKeyDictionary[MaskMod, dict] = WeakKeyDictionary()
_KEPT_SHAPES = 8


def _pure(mask: MaskMod) -> MaskMod:
    """Note that the values of `mask` never change."""
    _kept[mask] = {}
    return mask


def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    """True where key j does not come after query i."""
    return j <= i


_pure(causal)


def padding(lengths: Array) -> MaskMod:
    """Keys within their sequence: ``j < lengths[b]``, with `lengths` (B,) of integers."""
    lengths = _integers("lengths", lengths, ndim=1)
    return _pure(lambda b, h, i, j: j < lengths[b])


def prefix(n: int) -> MaskMod:
    """Causal, except that the first `n` keys are visible to every query: ``j <= i or j < n``."""
    n = _count("n", n, least=0)
    return _pure(lambda b, h, i, j: (j <= i) | (j < n))


def sliding_window(w: int) -> MaskMod:
    """The last `w` keys, the query's own position included: ``i - w < j <= i``."""
    w = _count("w", w)
    return _pure(lambda b, h, i, j: (i - w < j) & (j <= i))


def block(size: int) -> MaskMod:
    """Block diagonal: query and key in the same block of `size` consecutive positions."""
    size = _count("size", size)
    return _pure(lambda b, h, i, j: i // size == j // size)


def document(ids: Array) -> MaskMod:
    """Query and key in the same document: ``ids[b, i] == ids[b, j]``, with `ids` (B, N) or (N,) of integers."""
    ids = _integers("ids", ids, ndim=(1, 2))
    if ids.ndim == 1:
        return _pure(lambda b, h, i, j: ids[i] == ids[j])
    return _pure(lambda b, h, i, j: ids[b, i] == ids[b, j])


def both(*masks: MaskMod) -> MaskMod:
    """Visible where every one of the masks says so."""
    return _joined(masks, lambda p, q: lambda b, h, i, j: p(b, h, i, j) & q(b, h, i, j))


def either(*masks: MaskMod) -> MaskMod:
    """Visible where at least one of the masks says so."""
    return _joined(masks, lambda p, q: lambda b, h, i, j: p(b, h, i, j) | q(b, h, i, j))


def negate(mask: MaskMod) -> MaskMod:
    """Visible where `mask` says hidden."""
    return _inherit(lambda b, h, i, j: mask(b, h, i, j) ^ True, mask)


def shifted(mask: MaskMod, queries: int = 0, keys: int = 0) -> MaskMod:
    """The same mask when query 0 stands at position `queries` and key 0 at position `keys`."""
    return _inherit(lambda b, h, i, j: mask(b, h, i + queries, j + keys), mask)


def at_positions(mod: Callable, queries: Array, keys: Array) -> Callable:
    """A mask or score function for queries and keys that stand at given positions, in any order.

    Parameters
    ----------
    mod : callable
        ``mask_mod(b, h, i, j)`` or ``score_mod(score, b, h, i, j)``.
    queries, keys : array of int
        Position of each query, (N,), and of each key, (M,); (B, H, N) and (B, H, M) where they differ by head.
    """
    queries, keys = (_integers(name, p, ndim=(1, 3)) for name, p in (("queries", queries), ("keys", keys)))
    return lambda *a: mod(*a[:-2], _look_up(queries, *a[-4:-1]), _look_up(keys, *a[-4:-2], a[-1]))


def _look_up(positions: Array, b: Any, h: Any, t: Any) -> Any:
    return positions[t] if positions.ndim == 1 else positions[b, h, t]


def mask_array(mask_mod: MaskMod, B: int, H: int, N: int, M: int, xp: Any = np) -> Array:
    """`mask_mod` as a boolean array that broadcasts to (B, H, N, M): axes it does not depend on have size 1.

    Raises
    ------
    TypeError
        If the mask returns something other than booleans.
    """
    kept = _kept.get(mask_mod)
    key = (B, H, N, M, xp.__name__)
    if kept is not None and key in kept:
        return kept[key]
    visible = xp.asarray(mask_mod(*indices(B, H, N, M, xp)))
    if visible.dtype != bool:
        raise TypeError(f"mask_mod: expected booleans, True where visible, got dtype {visible.dtype}")
    visible = visible.reshape((1,) * (4 - visible.ndim) + visible.shape)
    if kept is not None:
        visible.flags.writeable = False
        if len(kept) == _KEPT_SHAPES:
            kept.pop(next(iter(kept)))
        kept[key] = visible
    return visible


def indices(B: int, H: int, N: int, M: int, xp: Any = np) -> tuple:
    """(b, h, i, j) as arrays that broadcast against one another: (B,1,1,1), (1,H,1,1), (1,1,N,1), (1,1,1,M)."""
    return xp.ogrid[:B, :H, :N, :M]


def _joined(masks: tuple, join: Callable) -> MaskMod:
    if not masks:
        raise ValueError("masks: expected at least one mask, got none")
    out = masks[0]
    for mask in masks[1:]:
        out = _inherit(join(out, mask), out, mask)
    return out


def _inherit(mask: MaskMod, *parts: MaskMod) -> MaskMod:
    """A mask made of pure masks is pure."""
    return _pure(mask) if all(p in _kept for p in parts) else mask


def _integers(name: str, values: Array, ndim: int | tuple[int, ...]) -> Array:
    """A copy of `values`, so that later changes by the caller change no mask."""
    values = raw(values)
    values = namespace(values).array(values)
    allowed = ndim if isinstance(ndim, tuple) else (ndim,)
    if values.dtype.kind not in "iu" or values.ndim not in allowed:
        axes = " or ".join(map(str, allowed))
        raise ValueError(f"{name}: expected integers with {axes} axes, got {values.dtype} of shape {values.shape}")
    return values


def _count(name: str, n: int, least: int = 1) -> int:
    if not isinstance(n, (int, np.integer)) or n < least:
        raise ValueError(f"{name}: expected an integer ≥ {least}, got {n!r}")
    return int(n)
