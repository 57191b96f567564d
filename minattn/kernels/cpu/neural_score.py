"""Neural scores in tiles, compiled; see `minattn/kernels/neural_score.py` for the picture.

A tile of keys lies on its side, hidden units by keys, so that a unit meets many keys at once: the inner loops
go along a row of it, in vector registers, four units a turn. What lies between, running maxima and sums, is
little beside the F operations of a pair; the products with values are BLAS's.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange

from .exp import exp
from .gemm import one_blas_thread, product

LOOSE = {"contract", "reassoc", "nsz", "nnan"}
"""No entry is NaN here, unless an input is: then the output may be anything."""


@njit(error_model="numpy", fastmath=LOOSE)
def score(a, c, w, s):
    """S ← Σ_f w_f relu(A_f + C_f) for queries A (m, F) and keys C (F, n) on their side."""
    zero, four = s.dtype.type(0), len(c) // 4 * 4
    for r in range(len(a)):
        s[r, :] = zero
        for f in range(0, four, 4):
            a0, a1, a2, a3 = a[r, f], a[r, f + 1], a[r, f + 2], a[r, f + 3]
            w0, w1, w2, w3 = w[f], w[f + 1], w[f + 2], w[f + 3]
            for j in range(c.shape[1]):
                s[r, j] += (w0 * max(a0 + c[f, j], zero) + w1 * max(a1 + c[f + 1, j], zero)
                            + w2 * max(a2 + c[f + 2, j], zero) + w3 * max(a3 + c[f + 3, j], zero))
        for f in range(four, len(c)):
            for j in range(c.shape[1]):
                s[r, j] += w[f] * max(a[r, f] + c[f, j], zero)


@njit(error_model="numpy")
def hide(s, last):
    """−∞ where key j of the tile comes after `last` + r, the last key that query r sees."""
    for r in range(len(s)):
        for j in range(max(last + r + 1, 0), s.shape[1]):
            s[r, j] = -np.inf


@njit(error_model="numpy", fastmath=LOOSE)
def soften(s, top, total, o):
    """S ← exp(S − m), with m, l (here `top`, `total`) and o brought up to date."""
    zero = s.dtype.type(0)
    for r in range(len(s)):
        best = top[r]
        for j in range(s.shape[1]):
            best = max(best, s[r, j])
        shift = best if best > -np.inf else zero
        part = zero
        for j in range(s.shape[1]):
            s[r, j] = exp(s[r, j] - shift)
            part += s[r, j]
        keep = exp(top[r] - shift)
        total[r] = keep * total[r] + part
        top[r] = best
        for d in range(o.shape[1]):
            o[r, d] *= keep


@njit(error_model="numpy", fastmath=LOOSE)
def spread(a, c, ds, u, dc):
    """U_if += Σ_j dS_ij [a_if + c_fj > 0] and W_fj += Σ_i of the same, here `u` and `dc`."""
    zero = ds.dtype.type(0)
    for r in range(len(a)):
        for f in range(len(c)):
            x, part = a[r, f], zero
            for j in range(c.shape[1]):
                slope = ds[r, j] if x + c[f, j] > zero else zero
                part += slope
                dc[f, j] += slope
            u[r, f] += part


@njit(error_model="numpy")
def pay_back(s, ds, lse, delta):
    """From scores and dO Vᵀ to weights P, in the place of s, and dS, in the place of ds."""
    for r in range(len(s)):
        shift = lse[r] if lse[r] != -np.inf else s.dtype.type(0)
        for j in range(s.shape[1]):
            s[r, j] = exp(s[r, j] - shift)
            ds[r, j] = s[r, j] * (ds[r, j] - delta[r])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def forward(a, c, w, v, causal, rows, columns, out, lse):
    """Tiles of `rows` queries by `columns` keys; a thread takes a tile of queries."""
    (B, H, N, F), (M, Dv) = a.shape, v.shape[2:]
    tiles, zero, one = (N + rows - 1) // rows, a.dtype.type(0), a.dtype.type(1)
    add = np.array([one, one])
    for t in prange(B * H * tiles):
        b, h, i0 = t // (H * tiles), t // tiles % H, t % tiles * rows
        i1 = min(i0 + rows, N)
        o, m = out[b, h, i0:i1], i1 - i0
        o[:] = zero
        space, side = np.empty(rows * columns, a.dtype), np.empty(F * columns, a.dtype)
        top, total = np.full(m, -np.inf, a.dtype), np.zeros(m, a.dtype)
        end = max(min(M, i1 + M - N), 0) if causal else M
        for j0 in range(0, end, columns):
            n = min(columns, end - j0)
            s, keys = space[: m * n].reshape(m, n), side[: F * n].reshape(F, n)
            keys[:] = c[b, h, :, j0 : j0 + n]
            score(a[b, h, i0:i1], keys, w[h], s)
            if causal and j0 + n - 1 > i0 + M - N:
                hide(s, i0 + M - N - j0)
            soften(s, top, total, o)
            product(s, False, v[b, h, j0 : j0 + n], False, o, add)
        for r in range(m):
            alive = total[r] if total[r] != zero else one
            lse[b, h, i0 + r] = top[r] + math.log(alive)
            for d in range(Dv):
                o[r, d] /= alive


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def backward(a, c, w, v, do, lse, delta, causal, rows, columns, u, dc, dv):
    """U, W (here `u`, `dc`) and dV; a thread takes a head, so that nothing is shared."""
    (B, H, N, F), M = a.shape, v.shape[2]
    one, zero = a.dtype.type(1), a.dtype.type(0)
    add, fresh = np.array([one, one]), np.array([one, zero])
    for t in prange(B * H):
        b, h = t // H, t % H
        space, side = np.empty((2, rows * columns), a.dtype), np.empty((2, F * columns), a.dtype)
        for j0 in range(0, M, columns):
            j1 = min(j0 + columns, M)
            start = max(j0 - M + N, 0) // rows * rows if causal else 0
            n = j1 - j0
            keys, slopes = side[0, : F * n].reshape(F, n), side[1, : F * n].reshape(F, n)
            keys[:] = c[b, h, :, j0:j1]
            slopes[:] = zero
            for i0 in range(start, N, rows):
                i1 = min(i0 + rows, N)
                m = i1 - i0
                s, ds = space[0, : m * n].reshape(m, n), space[1, : m * n].reshape(m, n)
                score(a[b, h, i0:i1], keys, w[h], s)
                if causal and j1 - 1 > i0 + M - N:
                    hide(s, i0 + M - N - j0)
                product(do[b, h, i0:i1], False, v[b, h, j0:j1], True, ds, fresh)
                pay_back(s, ds, lse[b, h, i0:i1], delta[b, h, i0:i1])
                product(s, True, do[b, h, i0:i1], False, dv[b, h, j0:j1], add)
                spread(a[b, h, i0:i1], keys, ds, u[b, h, i0:i1], slopes)
            dc[b, h, :, j0:j1] = slopes


def run(kernel: Any, *args: Any) -> None:
    """Call `forward` or `backward` while BLAS stays on the thread that asks it."""
    with one_blas_thread():
        kernel(*args)
