"""The scans of `kernels/scan.py`. A thread takes a sequence and a part of its features, along which the inner
loops run; it carries their state from position to position.
"""

import numpy as np
from numba import njit, prange

from .exp import exp

CONTRACT = {"contract", "reassoc", "nsz"}
BLOCK = 32


@njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def advance(a, x, last, h):
    """last ← a ∘ last + x, also put into h. The indices count from 0: none is seen that may be negative."""
    for d in range(len(h)):
        last[d] = a[d] * last[d] + x[d]
        h[d] = last[d]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def linear_scan(a, x, state, h, parts):
    B, N, D = x.shape
    for task in prange(B * parts):
        b, part = task // parts, slice(task % parts * D // parts, (task % parts + 1) * D // parts)
        last = state[b, part].copy()
        for t in range(N):
            advance(a[b, t, part], x[b, t, part], last, h[b, t, part])


@njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def retreat(g, a, before, carried, dx, da):
    """One position: `carried` goes from a_{t+1} dh_{t+1} to a_t dh_t."""
    for d in range(len(g)):
        dx[d] = g[d] + carried[d]
    for d in range(len(g)):
        da[d] = dx[d] * before[d]
    for d in range(len(g)):
        carried[d] = a[d] * dx[d]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def linear_scan_backward(g, h, a, state, da, dx, dstate, parts):
    """dh = g_t + a_{t+1} dh_{t+1}; `dstate` starts as zeros and holds a_t dh_t on the way."""
    B, N, D = h.shape
    for task in prange(B * parts):
        b, part = task // parts, slice(task % parts * D // parts, (task % parts + 1) * D // parts)
        for t in range(N - 1, -1, -1):
            before = h[b, t - 1] if t > 0 else state[b]
            retreat(g[b, t, part], a[b, t, part], before[part], dstate[b, part], dx[b, t, part],
                    da[b, t, part])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy", fastmath=CONTRACT)
def selective_scan(x, dt, A, B, C, h, y, saved, chunk, parts):
    """`h` goes from the first state to the last; `saved` gets the state before each chunk."""
    batch, N, D = x.shape
    S = A.shape[1]
    for task in prange(batch * parts):
        b, p = task // parts, task % parts
        for t in range(N):
            for d in range(p * D // parts, (p + 1) * D // parts):
                if t % chunk == 0:
                    for s in range(S):
                        saved[b, t // chunk, d, s] = h[b, d, s]
                step, u, out = dt[b, t, d], dt[b, t, d] * x[b, t, d], x.dtype.type(0)
                for s in range(S):
                    new = exp(step * A[d, s]) * h[b, d, s] + u * B[b, t, s]
                    out += new * C[b, t, s]
                    h[b, d, s] = new
                y[b, t, d] = out


@njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def replay(x, dt, A, B, state, t0, t1, d0, d1, decays, states):
    """Decays at t0 ≤ t < t1 and the states before and after them, for the features d0 ≤ d < d1."""
    S = A.shape[1]
    for d in range(d0, d1):
        for s in range(S):
            states[0, d - d0, s] = state[d, s]
    for t in range(t0, t1):
        for d in range(d0, d1):
            step, u = dt[t, d], dt[t, d] * x[t, d]
            for s in range(S):
                a = exp(step * A[d, s])
                decays[t - t0, d - d0, s] = a
                states[t - t0 + 1, d - d0, s] = a * states[t - t0, d - d0, s] + u * B[t, s]


@njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def pay_back(x, dt, A, B, C, g, a, h, new, dh, dx, ddt, dA, dB, dC):
    """One position of several features: cotangents of the step from the states h to `new` by decays a, in
    whose place a ∘ h ∘ dh is left.

    Several short loops: in one with all these arrays, the compiler would not see that it may use vectors.
    """
    D, S = A.shape
    for d in range(D):
        u, through_u, through_a = dt[d] * x[d], x.dtype.type(0), x.dtype.type(0)
        for s in range(S):
            dC[s] += g[d] * new[d, s]
        for s in range(S):
            dh[d, s] += g[d] * C[s]
        for s in range(S):
            dB[s] += dh[d, s] * u
        for s in range(S):
            through_u += dh[d, s] * B[s]
        for s in range(S):
            dh[d, s] *= a[d, s]
        for s in range(S):
            a[d, s] = dh[d, s] * h[d, s]
        for s in range(S):
            through_a += a[d, s] * A[d, s]
        for s in range(S):
            dA[d, s] += a[d, s] * dt[d]
        dx[d] = through_u * dt[d]
        ddt[d] = through_u * x[d] + through_a


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def selective_scan_backward(x, dt, A, B, C, g, saved, chunk, dh, dx, ddt, dA, dB, dC):
    """`dh` (B, D, S) goes from the cotangent of the last state to that of the first; dA is (B, D, S), dB and
    dC are (parts, B, N, S)."""
    batch, N, D = x.shape
    parts, S = len(dB), A.shape[1]
    for task in prange(batch * parts):
        b, p = task // parts, task % parts
        start, stop = p * D // parts, (p + 1) * D // parts
        decays = np.empty((chunk, BLOCK, S), x.dtype)
        states = np.empty((chunk + 1, BLOCK, S), x.dtype)
        for d0 in range(start, stop, BLOCK):
            d1 = min(d0 + BLOCK, stop)
            for c in range(saved.shape[1] - 1, -1, -1):
                t0, t1 = c * chunk, min(c * chunk + chunk, N)
                replay(x[b], dt[b], A, B[b], saved[b, c], t0, t1, d0, d1, decays, states)
                for t in range(t1 - 1, t0 - 1, -1):
                    n = d1 - d0
                    pay_back(x[b, t, d0:d1], dt[b, t, d0:d1], A[d0:d1], B[b, t], C[b, t], g[b, t, d0:d1],
                             decays[t - t0, :n], states[t - t0, :n], states[t - t0 + 1, :n], dh[b, d0:d1],
                             dx[b, t, d0:d1], ddt[b, t, d0:d1], dA[b, d0:d1], dB[p, b, t], dC[p, b, t])


def parts() -> int:
    """Into how many parts the features are divided: one for each thread."""
    from numba import get_num_threads

    return get_num_threads()
