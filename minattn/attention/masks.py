"""Masks: who may look at whom, as predicates.

A mask is a function ``mask(b, h, i, j) -> bool``: may query i of head h in batch b see key j?  True means
visible. It is written with plain arithmetic, so the same function answers for four numbers and, given index
arrays of shapes (B,1,1,1), (1,H,1,1), (1,1,N,1) and (1,1,1,M), for all of them at once.

``causal``            j ≤ i: no key after the query
``padding(lengths)``  j < lengths[b]: no key beyond the end of its sequence
``left_padding(pad)``  j ≥ pad[b]: no key before the start of its sequence
``prefix(n)``         j ≤ i or j < n: causal, but the first n keys are open to all
``sliding_window(w)`` i − w < j ≤ i: the last w keys
``block(size)``       i and j in the same block of `size` positions
``document(ids)``     i and j in the same document

and `both`, `either`, `negate` combine them; `shifted` and `at_positions` say which positions i and j are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minattn.autograd import namespace
from minattn.autograd.engine import Array, raw
from minattn.kernels.blocks import BlockMask

MaskMod = Callable[[Any, Any, Any, Any], Any]

_KEPT_SHAPES = 8


def _pure(mask: MaskMod) -> MaskMod:
    """Note that `mask` depends on nothing but (b, h, i, j), so that its array for a shape can be kept."""
    mask.kept = {}  # type: ignore[attr-defined]
    return mask


def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    """True where key j does not come after query i."""
    return j <= i


_pure(causal)
causal.diagonal = 0  # type: ignore[attr-defined]


def padding(lengths: Array) -> MaskMod:
    """Keys within their sequence: ``j < lengths[b]``, with `lengths` (B,) of integers."""
    lengths = _integers("lengths", lengths, (1,))
    return _pure(lambda b, h, i, j: j < lengths[b])


def left_padding(pad: Array) -> MaskMod:
    """Keys from the start of their sequence on: ``j >= pad[b]``, with `pad` (B,) of integers."""
    pad = _integers("pad", pad, (1,))
    return _pure(lambda b, h, i, j: j >= pad[b])


def prefix(n: int) -> MaskMod:
    """Causal, except that the first `n` keys are visible to every query: ``j <= i or j < n``."""
    n = whole("n", n, 0)
    return _pure(lambda b, h, i, j: (j <= i) | (j < n))


def sliding_window(w: int) -> MaskMod:
    """The last `w` keys, the query's own position included: ``i - w < j <= i``."""
    w = whole("w", w)
    return _pure(lambda b, h, i, j: (i - w < j) & (j <= i))


def block(size: int) -> MaskMod:
    """Block diagonal: query and key in the same block of `size` consecutive positions."""
    size = whole("size", size)
    return _pure(lambda b, h, i, j: i // size == j // size)


def document(ids: Array) -> MaskMod:
    """Query and key in the same document: ``ids[b, i] == ids[b, j]``, with integers `ids` (B, N) or (N,)."""
    ids = _integers("ids", ids, (1, 2))
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
    moved = _inherit(lambda b, h, i, j: mask(b, h, i + queries, j + keys), mask)
    if hasattr(mask, "diagonal"):  # of a causal mask: what it is, however far it is moved
        moved.diagonal = mask.diagonal + queries - keys  # type: ignore[attr-defined]
    return moved


def at_positions(mod: Callable, queries: Array, keys: Array) -> Callable:
    """A mask or score function for queries and keys that stand at given positions, in any order.

    Parameters
    ----------
    mod : callable
        ``mask_mod(b, h, i, j)`` or ``score_mod(score, b, h, i, j)``.
    queries, keys : array of int
        Position of each query, (N,), and of each key, (M,); or (B, H, N) and (B, H, M) if heads differ.
    """
    queries, keys = _integers("queries", queries, (1, 3)), _integers("keys", keys, (1, 3))

    def moved(*args: Any) -> Any:
        *first, b, h, i, j = args  # `first` is the score, or nothing
        return mod(*first, b, h, _look_up(queries, b, h, i), _look_up(keys, b, h, j))

    return moved


def _look_up(positions: Array, b: Any, h: Any, t: Any) -> Any:
    return positions[t] if positions.ndim == 1 else positions[b, h, t]


def mask_array(mask_mod: MaskMod, B: int, H: int, N: int, M: int, xp: Any = np) -> Array:
    """`mask_mod` as a boolean array that broadcasts to (B, H, N, M): axes it does not depend on have size 1.

    Raises
    ------
    TypeError
        If `mask_mod` is not a function, or returns something other than booleans.
    ValueError
        If what it returns does not broadcast to (B, H, N, M).
    """
    if not callable(mask_mod):
        raise TypeError(f"mask_mod: expected a function (b, h, i, j) -> bool, got {type(mask_mod).__name__}; "
                        "an array m becomes one as lambda b, h, i, j: m[b, h, i, j]")
    kept, key = getattr(mask_mod, "kept", None), (B, H, N, M, xp)
    if kept is not None and key in kept:
        return kept[key]
    visible = xp.asarray(mask_mod(*indices(B, H, N, M, xp)))
    if visible.dtype != bool:
        raise TypeError(f"mask_mod: expected booleans, True where visible, got dtype {visible.dtype}")
    visible = visible.reshape(fitting("mask_mod", visible.shape, (B, H, N, M)))
    return _keep(kept, key, visible)


def block_mask(mask_mod: MaskMod, B: int, H: int, N: int, M: int) -> BlockMask:
    """`mask_mod` by tiles, asked strip by strip; kept with the mask if it is one of ours."""
    kept, key = getattr(mask_mod, "kept", None), (B, H, N, M, BlockMask)
    if kept is not None and key in kept:
        return kept[key]

    def visible(start: int, stop: int) -> Array:
        mask = mask_mod if (start, stop) == (0, N) else shifted(mask_mod, start)
        return mask_array(mask, B, H, stop - start, M)

    return _keep(kept, key, BlockMask(visible, N, M))


def _keep(kept: dict | None, key: tuple, value: Any) -> Any:
    if kept is not None:
        if len(kept) == _KEPT_SHAPES:
            kept.pop(next(iter(kept)))
        kept[key] = value
    return value


def indices(B: int, H: int, N: int, M: int, xp: Any = np) -> tuple:
    """(b, h, i, j) as arrays of shapes (B,1,1,1), (1,H,1,1), (1,1,N,1), (1,1,1,M), which broadcast."""
    return tuple(xp.ogrid[:B, :H, :N, :M])


def fitting(name: str, shape: tuple[int, ...], full: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with axes of size 1 put before it, once it is known to broadcast to `full`."""
    sizes = (1,) * (len(full) - len(shape)) + tuple(shape)
    if len(sizes) != len(full) or any(n not in (1, m) for n, m in zip(sizes, full, strict=True)):
        raise ValueError(f"{name}: expected a shape that broadcasts to {full}, got {tuple(shape)}")
    return sizes


def _joined(masks: tuple, join: Callable) -> MaskMod:
    if not masks:
        raise ValueError("masks: expected at least one mask, got none")
    out = masks[0]
    for mask in masks[1:]:
        out = _inherit(join(out, mask), out, mask)
    return out


def _inherit(mask: MaskMod, *parts: MaskMod) -> MaskMod:
    """A mask made of pure masks is pure."""
    return _pure(mask) if all(hasattr(p, "kept") for p in parts) else mask


def _integers(name: str, values: Array, axes: tuple[int, ...]) -> Array:
    """A copy of `values`, so that later changes by the caller change no mask."""
    values = namespace(raw(values)).array(raw(values))
    if values.dtype.kind not in "iu" or values.ndim not in axes:
        allowed = " or ".join(map(str, axes))
        raise ValueError(f"{name}: expected integers with {allowed} axes, "
                         f"got {values.dtype} of shape {values.shape}")
    return values


def whole(name: str, n: int, least: int = 1) -> int:
    """`n` as an int, once it is known to be a whole number ≥ `least`."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < least:
        raise ValueError(f"{name}: expected a whole number ≥ {least}, got {n!r}")
    return int(n)
