"""States of stretches of keys in blocks of a pool, or in codes; beside `lean.py`, whose states they are."""

import numpy as np
from numba import njit, prange

from .few_rows import SUMS, gather, gather_codes, score, score_codes
from .lean import soften

GROUP = 32


@njit(error_model="numpy")
def distance(x, table, n):
    """Bytes from the n-th block of a sequence to the next, which is fetched while this one is read."""
    return (table[n + 1] - table[n]) * x.strides[0] if n + 1 < len(table) else 0


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def paged_states(q, k, v, tables, counts, tile, pieces, starts, m, l, o):
    """`lean.states` for keys and values in blocks (blocks, Hk, size, D); a tile is a whole number of them."""
    Hk, rows, size = q.shape[1], q.shape[2], k.shape[2]
    for w in prange(len(starts) - 1):
        space = np.empty(rows * tile, q.dtype)
        for p in range(starts[w], starts[w + 1]):
            b, h = pieces[p, 1] // Hk, pieces[p, 1] % Hk
            m[p], l[p], o[p] = -np.inf, 0, 0
            for t in range(pieces[p, 2], pieces[p, 3]):
                first, last = t * tile, min((t + 1) * tile, counts[b])
                s = space[: rows * (last - first)].reshape(rows, last - first)
                for at in range(first, last, size):
                    n, c = at // size, min(size, last - at)
                    score(q[b, h], k[tables[b, n], h, :c], s[:, at - first : at - first + c],
                          distance(k, tables[b], n))
                soften(s, last - first, m[p], l[p], o[p])
                for at in range(first, last, size):
                    n, c = at // size, min(size, last - at)
                    gather(s[:, at - first : at - first + c], v[tables[b, n], h, :c], o[p],
                           distance(v, tables[b], n))


@njit(error_model="numpy", fastmath=SUMS)
def score_group(q, codes, each, scale, zero, scaled, s, first):
    """S ← Q Kᵀ of a group, from column `first`: (Q ∘ scale) Cᵀ + Q · zero; `scaled` is scratch."""
    for r in range(len(q)):
        for d in range(q.shape[1]):
            scaled[r, d] = q[r, d] * scale[d]
    score_codes(scaled, codes, each, s[:, first:])
    for r in range(len(q)):
        base = q.dtype.type(0)
        for d in range(q.shape[1]):
            base += q[r, d] * zero[d]
        for j in range(first, first + GROUP):
            s[r, j] += base


@njit(error_model="numpy", fastmath=SUMS)
def gather_tokens(p, n, codes, each, scale, zero, o):
    """O ← O + P V of the first n tokens: (P ∘ scale) C, and P · zero added to each row."""
    for r in range(len(o)):
        base = o.dtype.type(0)
        for j in range(n):
            base += p[r, j] * zero[j]
            p[r, j] *= scale[j]
        for j in range(n, p.shape[1]):
            p[r, j] = 0
        for d in range(o.shape[1]):
            o[r, d] += base
    gather_codes(p, codes, each, o)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def coded_states(q, k, k_scale, k_zero, v, v_scale, v_zero, each, counts, tile, pieces, starts, m, l, o):
    """`lean.states` for codes, `each` of them a byte, read by whole groups; a tile is several of these."""
    Hk, rows = q.shape[1], q.shape[2]
    for w in prange(len(starts) - 1):
        space, scaled = np.empty(rows * tile, q.dtype), np.empty(q.shape[2:], q.dtype)
        for p in range(starts[w], starts[w + 1]):
            b, h = pieces[p, 1] // Hk, pieces[p, 1] % Hk
            m[p], l[p], o[p] = -np.inf, 0, 0
            for t in range(pieces[p, 2], pieces[p, 3]):
                first, n = t * tile, min(tile, counts[b] - t * tile)
                full = (n + GROUP - 1) // GROUP * GROUP
                s, last = space[: rows * full].reshape(rows, full), first + full
                for g in range(first // GROUP, last // GROUP):
                    codes = k[b, h, g * GROUP // each : (g + 1) * GROUP // each]
                    score_group(q[b, h], codes, each, k_scale[b, h, g], k_zero[b, h, g], scaled, s,
                                g * GROUP - first)
                soften(s, n, m[p], l[p], o[p])
                gather_tokens(s, n, v[b, h, first // each : last // each], each, v_scale[b, h, first:],
                              v_zero[b, h, first:], o[p])
