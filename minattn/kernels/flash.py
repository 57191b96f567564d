"""Attention forward in tiles: the N × M scores never exist at once, and tiles that a mask hides are not
computed.

                 keys →                     for each tile of queries:
    queries  ┌────┬────┬────┬────┐              m = −∞, l = 0, o = 0
       ↓     │ ▞  │    │    │    │              for each tile of keys that one of them sees:
             ├────┼────┼────┼────┤                  S = scale · Q Kᵀ, −∞ where hidden
             │ ██ │ ▞  │    │    │                  m' = max(m, row maxima of S)
             ├────┼────┼────┼────┤                  P = exp(S − m')
             │ ██ │ ██ │ ▞  │    │                  l = l exp(m − m') + row sums of P
             └────┴────┴────┴────┘                  o = o exp(m − m') + P V,   m = m'
    causal: ██ all seen, ▞ in part              out = o / l,   log-sum-exp = m + ln l

Milakov and Gimelshein 2018 (arXiv 1805.02867) for the running maximum, Dao et al. 2022 (arXiv 2205.14135)
for the tiles. Query heads that share a key head are more rows of one product. The products are BLAS's; what
lies between them is `absorb`, in one pass over a tile when compiled (`cpu/flash.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minattn.autograd.engine import Array

from .dispatch import compiled

__all__ = ["flash_attention"]

Visible = Callable[[int, int], Array]

QUERIES, KEYS = 128, 512
"""Rows and columns of a tile."""


def absorb_reference(s: Array, top: Array, total: Array, o: Array) -> None:
    """Turn a tile of scores s (R, C) into weights exp(s − new maximum), in place.

    The running maxima `top` (R,) and sums `total` (R,) take the tile in, and o (R, Dv) is scaled to the new
    maxima. A row that has seen −∞ alone has a sum of 0 and weights 0.
    """
    new = np.maximum(top, s.max(1))
    shift = np.where(new == -np.inf, 0, new)
    keep = np.exp(top - shift)
    np.exp(s - shift[:, None], out=s)
    total *= keep
    total += s.sum(1)
    o *= keep[:, None]
    top[:] = new


def _absorb(s: Array, top: Array, total: Array, o: Array) -> None:
    """The compiled form of `absorb_reference`."""
    from .cpu.flash import absorb

    integer = np.int32 if s.itemsize == 4 else np.int64
    absorb(s, s.view(integer), top, top.view(integer), total, o)


def flash_attention(q: Array, k: Array, v: Array, *, scale: float, visible: Visible | None = None
                    ) -> tuple[np.ndarray, np.ndarray]:
    """softmax(scale · Q Kᵀ, masked) V and the log-sum-exp of its rows, for arrays of NumPy.

    Parameters
    ----------
    q : (B, H, N, D)
    k, v : (B, Hk, M, D) and (B, Hk, M, Dv)
        Hk divides H. Views with contiguous rows are used as they are.
    scale : float
    visible : callable, optional
        ``visible(start, stop)`` says which keys the queries from `start` to `stop` see: booleans that
        broadcast to (B, H, stop − start, M).

    Returns
    -------
    out : (B, H, N, Dv)
    lse : (B, H, N)
        ln Σ_j exp s_ij; −∞, and zeros in `out`, where no key is visible.
    """
    B, H, N, _ = q.shape
    out, lse = np.empty((B, H, N, v.shape[3]), q.dtype), np.empty((B, H, N), q.dtype)
    for start in range(0, N, QUERIES):
        rows = slice(start, min(start + QUERIES, N))
        seen = None if visible is None else visible(start, rows.stop)
        o, top, total = _tile_of_queries(q[:, :, rows] * q.dtype.type(scale), k, v, seen)
        alive = np.where(total == 0, 1, total)
        out[:, :, rows] = (o / alive[:, None]).reshape(out[:, :, rows].shape)
        lse[:, :, rows] = (top + np.log(alive)).reshape(lse[:, :, rows].shape)
    return out, lse


def _tile_of_queries(q: Array, k: Array, v: Array, seen: Array | None) -> tuple[Array, Array, Array]:
    """o, running maxima and sums of the rows of q (B, H, n, D), as one axis, once every key has passed."""
    (B, H, n, _), (Hk, M, Dv) = q.shape, v.shape[1:]
    R = B * H * n
    top, total, o = np.full(R, -np.inf, q.dtype), np.zeros(R, q.dtype), np.zeros((R, Dv), q.dtype)
    grouped, gathered = q.reshape(B, Hk, -1, q.shape[3]), o.reshape(B, Hk, -1, Dv)
    first, last = (0, M) if seen is None else _span(seen, M)
    step = _absorb if compiled(q) else absorb_reference
    for at in range(first, last, KEYS):
        columns = slice(at, min(at + KEYS, last))
        s = grouped @ k[:, :, columns].mT
        if seen is not None:
            _hide(s.reshape(B, H, n, -1), seen[..., columns] if seen.shape[-1] == M else seen)
        step(s.reshape(R, -1), top, total, o)
        gathered += s @ v[:, :, columns]
    return o, top, total


def _span(seen: Array, M: int) -> tuple[int, int]:
    """The columns from the first to the last that any row sees."""
    columns = np.flatnonzero(seen.any(tuple(range(seen.ndim - 1))))
    if len(columns) == 0:
        return 0, 0
    return (columns[0], columns[-1] + 1) if seen.shape[-1] == M else (0, M)


def _hide(s: Array, seen: Array) -> None:
    """Put −∞ where s (B, H, n, C) is not seen, looking only at the columns in which something is hidden."""
    hidden = np.flatnonzero(~seen.all(tuple(range(seen.ndim - 1))))
    if len(hidden):
        part = slice(hidden[0], hidden[-1] + 1) if seen.shape[-1] == s.shape[-1] else slice(None)
        np.copyto(s[..., part], -np.inf, where=~seen[..., part])
