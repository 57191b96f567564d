"""States of stretches of keys, compiled: workers side by side, each key and value read once.

The queries that read the same keys are rows of one state, filled up with zeros to a number that R divides.
"""

import numpy as np
from numba import njit, prange

from .exp import exp
from .few_rows import AHEAD, SUMS, gather, score


@njit(error_model="numpy", fastmath=SUMS)
def lift(s, r, n, m, l, o):
    """Bring m, l and o of row r to the largest of n scores."""
    top = m[r]
    for j in range(n):
        top = s[r, j] if s[r, j] > top else top
    keep = exp(m[r] - top)
    m[r], l[r] = top, keep * l[r]
    for d in range(o.shape[1]):
        o[r, d] *= keep


@njit(error_model="numpy", fastmath=SUMS)
def soften(s, n, m, l, o):
    """S ← exp(S − m) of the first n keys, with m, l and o brought up to date.

    A new maximum is rare, and whether there is one is found many scores at a time; the maximum is not, since
    with NaN it depends on the order.
    """
    zero = s.dtype.type(0)
    for r in range(len(m)):
        before, grown, part = m[r], False, zero
        for j in range(n):
            grown |= s[r, j] > before
        if grown:
            lift(s, r, n, m, l, o)
        shift = m[r] if m[r] != -np.inf else zero
        for j in range(n):
            s[r, j] = exp(s[r, j] - shift)
            part += s[r, j]
        l[r] += part


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def states(q, k, v, counts, tile, pieces, starts, m, l, o):
    """The state of every piece: rows `starts[w]` … `starts[w + 1]` of `pieces` are a worker's.

    q (B, Hk, rows, D) and o (pieces, rows, Dv) have rows that R divides; m, l (pieces, G) those that count.
    """
    Hk, rows = q.shape[1], q.shape[2]
    for w in prange(len(starts) - 1):
        space = np.empty(rows * tile, q.dtype)
        for p in range(starts[w], starts[w + 1]):
            b, h = pieces[p, 1] // Hk, pieces[p, 1] % Hk
            m[p], l[p], o[p] = -np.inf, 0, 0
            for t in range(pieces[p, 2], pieces[p, 3]):
                first, last = t * tile, min((t + 1) * tile, counts[b])
                s = space[: rows * (last - first)].reshape(rows, last - first)
                score(q[b, h], k[b, h, first:last], s, AHEAD)
                soften(s, last - first, m[p], l[p], o[p])
                gather(s, v[b, h, first:last], o[p], AHEAD)
