"""One query against a cache that is not a plain array: in blocks of a pool, or in codes of 8 or 4 bits.

What a stretch of keys leaves behind, how stretches are shared out and how they merge is `lean.py`'s; here a
stretch is read from another place.

**Blocks.** Key j of sequence b is in block table[b, ⌊j / size⌋] at offset j mod size (`paged_decode`).

**Codes.** In each group of 32 tokens a feature of the keys, in each token the value, lies between its
least and its greatest entry, in 2ⁿ − 1 equal steps (n bits; asymmetric min–max):

    k_jd ≈ a_gd c_jd + z_gd       scale a and zero z for each feature d and group g = ⌊j / 32⌋
    v_jd ≈ a_j c_jd + z_j         for each token j

Keys have few features that are large in all tokens, and values do not, hence the two ways. Nothing is
unpacked to memory, since neither scale depends on what is summed over:

    q · k_j    = Σ_d (q_d a_gd) c_jd + q · z_g         q is scaled once a group
    Σ_j p_j v_j = Σ_j (p_j a_j) c_j + Σ_j p_j z_j      p is scaled once a token

Li 2024 (arXiv 2410.18441), paper 184, has caches of this form; Sanovar et al. 2024 (arXiv 2405.10480), paper
197, the division of work. The compiled loops are in `cpu/decode.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minattn.autograd.engine import Array

from .lean import (
    Piece,
    SoftmaxState,
    compiled_states,
    hosted,
    lean_tile,
    machine_code,
    most_workers,
    naive_decode,
    scaled_rows,
    state_of_piece,
    stream_k_schedule,
)

PAPERS = (197,)

__all__ = ["GROUP", "QuantizedCache", "naive_paged_decode", "naive_quantize", "paged_decode",
           "quantize_cache", "quantized_decode"]

GROUP = 32
"""Tokens of a group."""
FILL = 16
"""Features are filled up to a multiple of this, so that a row is whole vectors."""


# --- blocks -----------------------------------------------------------------------------------------------

def naive_paged_decode(q: Array, keys: Array, values: Array, table: Array, lengths: Sequence[int],
                       scale: float | None = None) -> np.ndarray:
    """`paged_decode`: each sequence's keys and values put in order one by one, then `naive_decode`."""
    (_, Hk, size, D), Dv = keys.shape, values.shape[3]
    out = np.zeros((*q.shape[:3], Dv))
    for b, n in enumerate(lengths):
        k, v = np.zeros((1, Hk, n, D)), np.zeros((1, Hk, n, Dv))
        for j in range(n):
            k[0, :, j] = keys[table[b][j // size], :, j % size]
            v[0, :, j] = values[table[b][j // size], :, j % size]
        out[b] = naive_decode(q[b : b + 1], k, v, scale=scale)[0]
    return out


def paged_decode(q: Array, keys: Array, values: Array, table: Array, lengths: Sequence[int], *,
                 workers: int | None = None, tile: int | None = None, scale: float | None = None) -> Array:
    """softmax(scale · q Kᵀ) V of one query a head, keys and values in blocks of a pool.

    Parameters
    ----------
    q : (B, H, 1, D)
    keys, values : (blocks, Hk, size, D) and (blocks, Hk, size, Dv)
        The pool. Hk divides H, and query head h reads key head h // (H / Hk).
    table : (B, n) of int
        Numbers of a sequence's blocks, in order; those behind its last key may be anything.
    lengths : sequence of B ints
        How many keys each sequence has.
    workers : int, optional
        By default four for every processor.
    tile : int, optional
        Keys of a tile, a multiple of size; by default the least that is not below `lean_tile`.
    scale : float, optional
        1/√D by default.

    Returns
    -------
    out : (B, H, 1, Dv)
        Zeros where a sequence has no keys.

    Raises
    ------
    ValueError
        If shapes do not fit, a block is not in the pool, or a length, `workers` or `tile` is out of range.

    Notes
    -----
    Kwon et al. 2023 (arXiv 2309.06180) have such a cache; paper 197 the division of work.
    """
    _query(q)
    fits = np.ndim(keys) == 4 and 0 not in keys.shape[1:3]
    if not fits or keys.shape[3] != q.shape[3] or q.shape[1] % keys.shape[1]:
        raise ValueError(f"keys: expected (blocks, heads that divide {q.shape[1]}, size ≥ 1, {q.shape[3]}), "
                         f"got {np.shape(keys)}")
    if np.ndim(values) != 4 or values.shape[:3] != keys.shape[:3]:
        raise ValueError(f"values: expected {keys.shape[:3]} before the features, as in keys, "
                         f"got {np.shape(values)}")
    size, Dv = keys.shape[2], values.shape[3]
    table, counts = _table(table, q.shape[0], len(keys), size, lengths)
    tile = _tile(tile, q.shape[3], size)
    pieces = _pieces(counts, keys.shape[1], tile, workers)
    rows = scaled_rows(q, keys.shape[1], scale)
    if pieces and Dv and q.shape[3] and machine_code(rows, keys, values):
        from .cpu import decode

        pool = np.ascontiguousarray(keys), np.ascontiguousarray(values)
        states = compiled_states(decode.paged_states, rows, Dv, pieces, *pool, table, np.array(counts), tile)
    else:
        places = (len(q), keys.shape[1], table.shape[1] * size)
        k, v = (x[table].swapaxes(1, 2).reshape(*places, x.shape[3]) for x in (keys, values))
        states = [state_of_piece(rows, k, v, counts, p, tile) for p in pieces]
    return hosted(states, pieces, rows, Dv)


def _table(table: Array, B: int, blocks: int, size: int,
           lengths: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """The table with 0 for blocks that do not count, and the lengths, once both are known to fit."""
    table = np.asarray(table)
    if table.ndim != 2 or len(table) != B or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"table: expected whole numbers of shape ({B}, blocks of a sequence), "
                         f"got {table.dtype} of shape {table.shape}")
    counts = _counts(lengths, B, table.shape[1] * size)
    used = np.arange(table.shape[1]) * size < np.array(counts, np.int64)[:, None]
    if (used & ((table < 0) | (table >= blocks))).any():
        raise ValueError(f"table: expected numbers of blocks from 0 to {blocks - 1}, "
                         f"got {table[used].tolist()}")
    return np.where(used, table, 0).astype(np.int64), counts


# --- codes ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class QuantizedCache:
    """Keys and values in codes; made by `quantize_cache`.

    A row of codes is a token (8 bits) or two neighbours, the first in the lower half of each byte (4 bits).
    Tokens are filled up to whole groups of 32, features to multiples of 16.

    Attributes
    ----------
    bits : int
        8 or 4.
    shape : tuple of int
        B, Hk, M, D, Dv of what is stored.
    keys, values : (B, Hk, rows, features) of uint8
        Codes.
    key_scale, key_zero : (B, Hk, groups, features)
        a and z of each feature in a group.
    value_scale, value_zero : (B, Hk, tokens)
        a and z of each token.
    """

    bits: int
    shape: tuple[int, int, int, int, int]
    keys: np.ndarray
    key_scale: np.ndarray
    key_zero: np.ndarray
    values: np.ndarray
    value_scale: np.ndarray
    value_zero: np.ndarray

    @property
    def stored(self) -> tuple[np.ndarray, ...]:
        """Codes, scales and zeros of the keys, and of the values."""
        return self.keys, self.key_scale, self.key_zero, self.values, self.value_scale, self.value_zero

    @property
    def memory(self) -> int:
        """Bytes, of codes, scales and zeros."""
        return sum(x.nbytes for x in self.stored)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The keys (B, Hk, M, D) and values (B, Hk, M, Dv) that the codes stand for."""
        *_, M, D, Dv = self.shape
        scale, zero = (np.repeat(x, GROUP, axis=2) for x in (self.key_scale, self.key_zero))
        k = self._unpacked(self.keys) * scale + zero
        v = self._unpacked(self.values) * self.value_scale[..., None] + self.value_zero[..., None]
        return k[:, :, :M, :D], v[:, :, :M, :Dv]

    def _unpacked(self, codes: np.ndarray) -> np.ndarray:
        if self.bits == 4:
            B, Hk, rows, features = codes.shape
            codes = np.stack([codes & 15, codes >> 4], axis=3).reshape(B, Hk, 2 * rows, features)
        return codes.astype(self.key_scale.dtype)


def naive_quantize(x: Array, bits: int) -> tuple[np.ndarray, float, float]:
    """Codes, scale and zero of numbers (n,): what `quantize_cache` does to one feature or one token."""
    zero, steps = float(min(x)), 2**bits - 1
    scale = (float(max(x)) - zero) / steps
    codes = [min(range(steps + 1), key=lambda c: abs(scale * c + zero - float(y))) for y in x]
    return np.array(codes, np.uint8), scale, zero


def quantize_cache(k: Array, v: Array, bits: int) -> QuantizedCache:
    """Codes of keys, by feature in groups of 32 tokens, and of values, by token; see the head of this module.

    Parameters
    ----------
    k, v : (B, Hk, M, D) and (B, Hk, M, Dv)
        Of one floating dtype, that of scales and zeros as well.
    bits : int
        8 or 4.

    Returns
    -------
    QuantizedCache
        Whose entries differ from those of k and v by half a step at most.

    Raises
    ------
    ValueError
        If `bits` is another number, shapes or dtypes do not fit, or an entry is not finite.

    Notes
    -----
    Paper 184. A last group of fewer tokens has the range of those alone.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits: expected 4 or 8, got {bits!r}")
    k, v = np.asarray(k), np.asarray(v)
    _storable("k", k, "floats of 4 axes (batch, heads, positions, features), none empty but the third",
              k.ndim == 4 and np.issubdtype(k.dtype, np.floating) and 0 not in (*k.shape[:2], k.shape[3]))
    _storable("v", v, f"{k.dtype} of shape {k.shape[:3]} before the features, as k",
              v.ndim == 4 and v.shape[:3] == k.shape[:3] and v.dtype == k.dtype and v.shape[3] > 0)
    shape = (*k.shape, v.shape[3])
    k, v = (np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % GROUP), (0, 0)), "edge") for x in (k, v))
    groups = k.reshape(*k.shape[:2], k.shape[2] // GROUP, GROUP, k.shape[3])
    keys, key_scale, key_zero = _codes(groups, 3, bits)
    values, value_scale, value_zero = _codes(v, 3, bits)
    wide = [(0, 0)] * 3 + [(0, -k.shape[3] % FILL)]
    return QuantizedCache(bits, shape, _packed(keys.reshape(k.shape), bits), np.pad(key_scale, wide),
                          np.pad(key_zero, wide), _packed(values, bits), value_scale, value_zero)


def _storable(name: str, x: np.ndarray, expected: str, fits: bool) -> None:
    if not fits:
        raise ValueError(f"{name}: expected {expected}, got {x.dtype} of shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: expected finite numbers, got {x[~np.isfinite(x)][0]}")


def _codes(x: np.ndarray, axis: int, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of x, scales and zeros, with the range along an axis."""
    zero = x.min(axis, keepdims=True)
    scale = (x.max(axis, keepdims=True) - zero) / x.dtype.type(2**bits - 1)
    codes = np.rint((x - zero) / np.where(scale == 0, 1, scale)).astype(np.uint8)
    return codes, scale.squeeze(axis), zero.squeeze(axis)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of one token, or of two neighbours, filled up to FILL features."""
    codes = np.pad(codes, ((0, 0), (0, 0), (0, 0), (0, -codes.shape[3] % FILL)))
    return np.ascontiguousarray(codes if bits == 8 else codes[:, :, ::2] | codes[:, :, 1::2] << 4)


def quantized_decode(q: Array, cache: QuantizedCache, lengths: Sequence[int] | None = None, *,
                     workers: int | None = None, tile: int | None = None,
                     scale: float | None = None) -> Array:
    """softmax(scale · q Kᵀ) V of one query a head, keys and values in codes.

    Parameters
    ----------
    q : (B, H, 1, D)
        Of the cache's dtype. Hk divides H, and query head h reads key head h // (H / Hk).
    cache : QuantizedCache
    lengths : sequence of B ints, optional
        How many keys of each sequence count; all by default.
    workers : int, optional
        By default four for every processor.
    tile : int, optional
        Keys of a tile, a multiple of 32; `lean_tile` by default.
    scale : float, optional
        1/√D by default.

    Returns
    -------
    out : (B, H, 1, Dv)
        That of `cache.arrays()`; zeros where a sequence has no keys.

    Raises
    ------
    ValueError
        If shapes do not fit, or a length, `workers` or `tile` is out of range.

    Notes
    -----
    Papers 184 and 197.
    """
    _query(q)
    B, Hk, M, D, Dv = cache.shape
    if q.shape[0] != B or q.shape[1] % Hk or q.shape[3] != D or q.dtype != cache.key_scale.dtype:
        raise ValueError(f"q: expected {cache.key_scale.dtype} of batch {B}, heads that {Hk} divides, and "
                         f"{D} features, as the cache, got {q.dtype} of shape {q.shape}")
    counts = [M] * B if lengths is None else _counts(lengths, B, M)
    tile = _tile(tile, D, GROUP)
    pieces, rows = _pieces(counts, Hk, tile, workers), scaled_rows(q, Hk, scale)
    if pieces and machine_code(rows, cache.key_scale):
        from .cpu import decode

        wide = np.pad(rows, ((0, 0), (0, 0), (0, 0), (0, -D % FILL)))
        states = compiled_states(decode.coded_states, wide, cache.values.shape[3], pieces, *cache.stored,
                                 8 // cache.bits, np.array(counts), tile)
        states = [SoftmaxState(s.m, s.l, s.o[:, :Dv]) for s in states]
    else:
        k, v = cache.arrays()
        states = [state_of_piece(rows, k, v, counts, p, tile) for p in pieces]
    return hosted(states, pieces, rows, Dv)


# --- what both have in common -----------------------------------------------------------------------------

def _query(q: Array) -> None:
    if np.ndim(q) != 4 or q.shape[2] != 1:
        raise ValueError(f"q: expected shape (batch, heads, 1, features), got {np.shape(q)}")


def _counts(lengths: Sequence[int], B: int, most: int) -> list[int]:
    counts = [int(n) for n in lengths]
    if len(counts) != B or any(not 0 <= n <= most for n in counts):
        raise ValueError(f"lengths: expected {B} numbers from 0 to {most}, got {counts}")
    return counts


def _tile(tile: int | None, D: int, size: int) -> int:
    if tile is None:
        return math.ceil(lean_tile(D) / size) * size
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1 or tile % size:
        raise ValueError(f"tile: expected a multiple of {size}, got {tile!r}")
    return tile


def _pieces(counts: list[int], Hk: int, tile: int, workers: int | None) -> list[Piece]:
    return stream_k_schedule([-(-n // tile) for n in counts for _ in range(Hk)], most_workers(workers))
