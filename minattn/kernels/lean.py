"""Attention of one query against a long cache, its keys divided among workers.

A set of keys leaves behind a state: the largest score, the sum of exponentials, the weighted sum of values,

    m = max s_j,    l = Σ exp(s_j − m),    o = Σ exp(s_j − m) v_j

and the states of two sets that share no key merge into that of their union:

    m = max(m_a, m_b),    l = exp(m_a − m) l_a + exp(m_b − m) l_b,    o likewise

This is associative and commutative, with (−∞, 0, 0) as identity, so the keys may be cut anywhere, and the
output is o / l. Lean attention cuts them so that all workers finish together. The keys of every head are a
row of tiles; all rows are laid end to end, and each of G workers takes an equal stretch of the line, across
the borders of heads (a "stream-K" division):

    head       0         1             2   3         4
    tiles   ├─┬─┬─┬─┤├─┬─┬─┬─┬─┬─┤├─┤├─┬─┬─┬─┬─┤├─┬─┤
    worker   0 0 0 0  0 1 1 1 1 1  2  2 2 2 2 3  3 3

The worker with the first tile of a head is its host: the others hand it their states, and it merges them.

Sanovar et al. 2024 (arXiv 2405.10480), paper 197. Query heads that share a key head are rows of one state:
their keys are read once. The compiled loop is in `cpu/lean.py`; merging is a pass after it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minattn.autograd import namespace
from minattn.autograd.engine import Array

from .dispatch import _interpreted, compiled, launch

PAPERS = (197,)

__all__ = ["Piece", "SoftmaxState", "fixed_split_schedule", "lean_attention_decode", "lean_tile", "makespan",
           "naive_decode", "occupancy", "one_worker_schedule", "softmax_merge", "split_kv_decode",
           "stream_k_schedule"]


def naive_decode(q: Array, k: Array, v: Array, lengths: Sequence[int] | None = None,
                 scale: float | None = None) -> np.ndarray:
    """`lean_attention_decode`, one number at a time: each head's keys in order, with no state in between."""
    (B, H, _, D), (_, Hk, M, Dv) = q.shape, v.shape
    scale = 1 / math.sqrt(D) if scale is None else scale
    out = np.zeros((B, H, 1, Dv))
    for b, h in np.ndindex(B, H):
        g, N = h * Hk // H, M if lengths is None else int(lengths[b])
        scores = [scale * math.fsum(float(q[b, h, 0, d]) * float(k[b, g, j, d]) for d in range(D))
                  for j in range(N)]
        top = max(scores, default=0.0)
        total = math.fsum(math.exp(s - top) for s in scores)
        for d in range(Dv):
            out[b, h, 0, d] = math.fsum(math.exp(s - top) / total * float(v[b, g, j, d])
                                        for j, s in enumerate(scores))
    return out


# --- states -----------------------------------------------------------------------------------------------

class SoftmaxState(NamedTuple):
    """What a set of keys leaves behind: m (…), l (…) and o (…, Dv); of no keys, (−∞, 0, 0)."""

    m: Array
    l: Array
    o: Array

    @classmethod
    def of(cls, scores: Array, values: Array) -> SoftmaxState:
        """The state of scores (…, M) with values (M, Dv)."""
        xp = namespace(scores)
        m = scores.max(-1, initial=-np.inf)
        p = xp.exp(scores - xp.where(m == -np.inf, 0, m)[..., None])
        return cls(m, p.sum(-1), p @ values)

    def output(self) -> Array:
        """o / l; zeros where there was no key."""
        return self.o / namespace(self.l).where(self.l == 0, 1, self.l)[..., None]


def softmax_merge(a: SoftmaxState, b: SoftmaxState) -> SoftmaxState:
    """The state of all keys of a and b, which share none: each is rescaled to the larger of the maxima.

    Parameters
    ----------
    a, b : SoftmaxState
        With m and l of one shape (…) and o (…, Dv).
    """
    if np.shape(a.o) != np.shape(b.o):
        raise ValueError(f"b: expected a state of shape {np.shape(a.o)}, as a, got {np.shape(b.o)}")
    xp = namespace(a.o)
    m = xp.maximum(a.m, b.m)
    shift = xp.where(m == -np.inf, 0, m)
    x, y = xp.exp(a.m - shift), xp.exp(b.m - shift)
    return SoftmaxState(m, x * a.l + y * b.l, x[..., None] * a.o + y[..., None] * b.o)


# --- who does what ----------------------------------------------------------------------------------------

class Piece(NamedTuple):
    """Tiles first … last − 1 of a head, given to a worker."""

    worker: int
    head: int
    first: int
    last: int


def stream_k_schedule(tiles: Sequence[int], workers: int) -> list[Piece]:
    """Equal stretches of all heads' tiles laid end to end: worker w takes ⌊wS/G⌋ … ⌊(w + 1)S/G⌋ − 1.

    Parameters
    ----------
    tiles : sequence of int
        Tiles of each head; S is their sum.
    workers : int
        G; a worker beyond the S-th gets nothing.

    Returns
    -------
    list of Piece
        In the order of the line. A head's first piece belongs to its host.

    Raises
    ------
    ValueError
        If there are no workers, or a head has a negative number of tiles.
    """
    tiles = _tiles(tiles, workers)
    total, ends = sum(tiles), np.cumsum([0, *tiles]).tolist()
    cuts = sorted({*ends, *(w * total // workers for w in range(workers + 1))})
    pieces, head, worker = [], 0, 0
    for start, stop in pairwise(cuts):
        while ends[head + 1] <= start:
            head += 1
        while (worker + 1) * total // workers <= start:
            worker += 1
        pieces.append(Piece(worker, head, start - ends[head], stop - ends[head]))
    return pieces


def fixed_split_schedule(tiles: Sequence[int], workers: int) -> list[Piece]:
    """FlashDecoding in one wave: every head is cut into the same s = max(1, ⌊G / heads⌋) parts.

    A head of t tiles gives parts of ⌈t / s⌉ tiles, the last ones shorter or missing. Each part goes to a
    worker of its own; where heads outnumber workers, to one after another in turn.
    """
    tiles = _tiles(tiles, workers)
    splits = max(1, workers // max(len(tiles), 1))
    pieces = []
    for head, t in enumerate(tiles):
        size = -(-t // splits)
        for part in range(splits):
            first, last = part * size, min((part + 1) * size, t)
            if first < last:
                pieces.append(Piece((head * splits + part) % workers, head, first, last))
    return pieces


def one_worker_schedule(tiles: Sequence[int], workers: int) -> list[Piece]:
    """FlashAttention-2 with a single query: a head is one worker's; heads beyond the workers in turn."""
    return [Piece(head % workers, head, 0, t) for head, t in enumerate(_tiles(tiles, workers)) if t]


def makespan(pieces: Sequence[Piece]) -> int:
    """Tiles of the busiest worker: how long all of them take together."""
    load: dict[int, int] = {}
    for p in pieces:
        load[p.worker] = load.get(p.worker, 0) + p.last - p.first
    return max(load.values(), default=0)


def occupancy(pieces: Sequence[Piece], workers: int) -> float:
    """The share of G · makespan in which a worker has a tile: S / (G · makespan); 1 of no tiles."""
    span = makespan(pieces)
    return sum(p.last - p.first for p in pieces) / (workers * span) if span else 1.0


def _tiles(tiles: Sequence[int], workers: int) -> list[int]:
    if isinstance(workers, bool) or not isinstance(workers, (int, np.integer)) or workers < 1:
        raise ValueError(f"workers: expected a whole number ≥ 1, got {workers!r}")
    tiles = [int(t) for t in tiles]
    if min(tiles, default=0) < 0:
        raise ValueError(f"tiles: expected numbers ≥ 0, got {min(tiles)}")
    return tiles


# --- the attention ----------------------------------------------------------------------------------------

def lean_tile(D: int) -> int:
    """Keys of a tile: 256 up to 64 features, 128 beyond."""
    return 256 if D <= 64 else 128


def lean_attention_decode(q: Array, k: Array, v: Array, lengths: Sequence[int] | None = None, *,
                          workers: int | None = None, tile: int | None = None,
                          scale: float | None = None) -> Array:
    """softmax(scale · q Kᵀ) V of one query a head, keys divided among workers by `stream_k_schedule`.

    Parameters
    ----------
    q : (B, H, 1, D)
    k, v : (B, Hk, M, D) and (B, Hk, M, Dv)
        Hk divides H, and query head h reads key head h // (H / Hk).
    lengths : sequence of B ints, optional
        How many keys of each sequence count; all by default.
    workers : int, optional
        G; by default four for every processor.
    tile : int, optional
        Keys of a tile; `lean_tile` by default.
    scale : float, optional
        1/√D by default.

    Returns
    -------
    out : (B, H, 1, Dv)
        Zeros where a sequence has no keys.

    Raises
    ------
    ValueError
        If shapes do not fit, or a length, `workers` or `tile` is out of range.
    """
    return _decode(q, k, v, lengths, stream_k_schedule, workers, tile, scale)


def split_kv_decode(q: Array, k: Array, v: Array, lengths: Sequence[int] | None = None, *,
                    workers: int | None = None, tile: int | None = None, scale: float | None = None) -> Array:
    """`lean_attention_decode` with the keys of every head cut into equally many parts (FlashDecoding)."""
    return _decode(q, k, v, lengths, fixed_split_schedule, workers, tile, scale)


def _decode(q: Array, k: Array, v: Array, lengths: Sequence[int] | None, schedule: Any, workers: int | None,
            tile: int | None, scale: float | None) -> Array:
    counts = _checked(q, k, v, lengths)
    tile = lean_tile(q.shape[3]) if tile is None else tile
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        raise ValueError(f"tile: expected a whole number ≥ 1, got {tile!r}")
    pieces = schedule([-(-n // tile) for n in counts for _ in range(k.shape[1])], most_workers(workers))
    rows = scaled_rows(q, k.shape[1], scale)
    if pieces and v.shape[3] and k.shape[3] and machine_code(rows, k, v):
        from .cpu import lean

        arrays = np.ascontiguousarray(k), np.ascontiguousarray(v), np.array(counts), tile
        states = compiled_states(lean.states, rows, v.shape[3], pieces, *arrays)
    else:
        states = [state_of_piece(rows, k, v, counts, p, tile) for p in pieces]
    return hosted(states, pieces, rows, v.shape[3])


def most_workers(workers: int | None) -> int:
    """Four for every processor, unless it is said how many."""
    return 4 * (os.cpu_count() or 1) if workers is None else workers


def scaled_rows(q: Array, Hk: int, scale: float | None) -> Array:
    """scale · q as (B, Hk, G, D): the queries of a key head are rows side by side."""
    B, H, _, D = q.shape
    return (q * q.dtype.type(1 / math.sqrt(D) if scale is None else scale)).reshape(B, Hk, H // Hk, D)


def machine_code(*arrays: Array) -> bool:
    """Whether loops with instructions of their own serve these arrays; an interpreter has none."""
    return compiled(*arrays) and not _interpreted()


def state_of_piece(rows: Array, k: Array, v: Array, counts: list[int], p: Piece, tile: int) -> SoftmaxState:
    """What a worker leaves behind of one head."""
    b, h = divmod(p.head, k.shape[1])
    keys = slice(p.first * tile, min(p.last * tile, counts[b]))
    return SoftmaxState.of(rows[b, h] @ k[b, h, keys].T, v[b, h, keys])


def compiled_states(kernel: Callable, rows: Array, Dv: int, pieces: list[Piece],
                    *args: Any) -> list[SoftmaxState]:
    """What kernel(rows, *args, table, starts, m, l, o) leaves behind of each piece.

    It gets queries filled up to a number that suits it, the pieces as rows of a table, and where each
    worker's begin in it; at last, where they end.
    """
    from .cpu.few_rows import R

    by_worker, (B, Hk, G, D) = sorted(pieces), rows.shape
    filled = np.zeros((B, Hk, G + -G % R, D), rows.dtype)
    filled[:, :, :G] = rows
    table = np.array(by_worker, np.int64)
    starts = np.append(np.flatnonzero(np.diff(table[:, 0], prepend=-1)), len(table))
    m, l, o = (np.empty((len(table), *shape), rows.dtype) for shape in ((G,), (G,), (filled.shape[2], Dv)))
    launch(kernel, filled, *args, table, starts, m, l, o)
    found = {p: SoftmaxState(*state) for p, *state in zip(by_worker, m, l, o[:, :G], strict=True)}
    return [found[p] for p in pieces]


def hosted(states: list[SoftmaxState], pieces: list[Piece], rows: Array, Dv: int) -> Array:
    """The output of every head, (B, H, 1, Dv): its host merges what the others hand over."""
    B, Hk, G, _ = rows.shape
    out = namespace(rows).zeros((B * Hk, G, Dv), dtype=rows.dtype)
    merged: dict[int, SoftmaxState] = {}
    for p, state in zip(pieces, states, strict=True):
        merged[p.head] = softmax_merge(merged[p.head], state) if p.head in merged else state
    if merged:
        together = SoftmaxState(*map(namespace(rows).stack, zip(*merged.values(), strict=True)))
        out[list(merged)] = together.output()
    return out.reshape(B, Hk * G, 1, Dv)


def _checked(q: Array, k: Array, v: Array, lengths: Sequence[int] | None) -> list[int]:
    """The number of keys of each sequence, once all is known to fit."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if np.ndim(x) != 4:
            raise ValueError(f"{name}: expected 4 axes (batch, heads, positions, features), "
                             f"got {np.shape(x)}")
    B, H, N, D = q.shape
    if N != 1:
        raise ValueError(f"q: expected one position, got {N}")
    if k.shape[0] != B or k.shape[3] != D or k.shape[1] == 0 or H % k.shape[1]:
        raise ValueError(f"k: expected batch {B}, heads that divide {H}, and {D} features, got {k.shape}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v: expected shape {k.shape[:3]} before the features, as in k, got {v.shape}")
    counts = [k.shape[2]] * B if lengths is None else [int(n) for n in lengths]
    if len(counts) != B or any(not 0 <= n <= k.shape[2] for n in counts):
        raise ValueError(f"lengths: expected {B} numbers from 0 to {k.shape[2]}, got {counts}")
    return counts
