"""Linear attention with a decay for each feature, position by position: a thread takes a head, whose state
stays in the cache. Backwards, the states of one chunk at a time are computed again from the one before it.
"""

import numpy as np
from numba import njit, prange

SUMS = {"contract", "reassoc", "nsz"}


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def write(k, a, v, before, after):
    """after = diag(a) before + k vᵀ; the two may be one."""
    for d in range(len(k)):
        for e in range(len(v)):
            after[d, e] = a[d] * before[d, e] + k[d] * v[e]


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def read(q, S, out):
    """out = Sᵀ q"""
    for e in range(len(out)):
        out[e] = 0
    for d in range(len(q)):
        for e in range(len(out)):
            out[e] += q[d] * S[d, e]


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def copy(x, out):
    for d in range(len(x)):
        for e in range(x.shape[1]):
            out[d, e] = x[d, e]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def forward(q, k, v, a, S, states, out, chunk):
    """`S` goes from the first state to the last; `states` gets the one before each chunk."""
    for h in prange(len(q)):
        for t in range(q.shape[1]):
            if t % chunk == 0:
                copy(S[h], states[h, t // chunk])
            write(k[h, t], a[h, t], v[h, t], S[h], S[h])
            read(q[h, t], S[h], out[h, t])


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def pay_back(q, k, v, a, do, before, after, dS, dq, dk, dv, da):
    """One position: `dS` goes from the cotangent of the state after it to that of the state before it.

    Several short loops: in one with all these arrays, the compiler would not see that it may use vectors.
    """
    for e in range(len(v)):
        dv[e] = 0
    for d in range(len(q)):
        through_q, through_k, through_a = v.dtype.type(0), v.dtype.type(0), v.dtype.type(0)
        for e in range(len(v)):
            through_q += after[d, e] * do[e]
        for e in range(len(v)):
            dS[d, e] += q[d] * do[e]
        for e in range(len(v)):
            through_k += dS[d, e] * v[e]
        for e in range(len(v)):
            through_a += dS[d, e] * before[d, e]
        for e in range(len(v)):
            dv[e] += k[d] * dS[d, e]
        for e in range(len(v)):
            dS[d, e] *= a[d]
        dq[d], dk[d], da[d] = through_q, through_k, through_a


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def backward(q, k, v, a, do, states, chunk, dS, dq, dk, dv, da):
    """`dS` goes from the cotangent of the last state to that of the first."""
    N = q.shape[1]
    for h in prange(len(q)):
        kept = np.empty((chunk + 1, dS.shape[1], dS.shape[2]), q.dtype)
        for c in range(states.shape[1] - 1, -1, -1):
            t0, t1 = c * chunk, min(c * chunk + chunk, N)
            copy(states[h, c], kept[0])
            for t in range(t0, t1):
                write(k[h, t], a[h, t], v[h, t], kept[t - t0], kept[t - t0 + 1])
            for t in range(t1 - 1, t0 - 1, -1):
                pay_back(q[h, t], k[h, t], v[h, t], a[h, t], do[h, t], kept[t - t0], kept[t - t0 + 1], dS[h],
                         dq[h, t], dk[h, t], dv[h, t], da[h, t])
