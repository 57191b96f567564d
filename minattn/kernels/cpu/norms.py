"""Layer norm and RMS norm, row by row: each row is read once, while it is in the cache.

Backward needs two sums over the rows (for weight and bias); each of `parts` stripes of rows keeps its own, so
that stripes can run side by side.
"""

import math

import numpy as np
from numba import njit, prange

CONTRACT = {"contract", "reassoc", "nsz"}


@njit(parallel=True, cache=True, fastmath=CONTRACT, error_model="numpy")
def layer_norm(x, weight, bias, eps, out, mean, rstd):
    N, D = x.shape
    for n in prange(N):
        total = x.dtype.type(0)
        for d in range(D):
            total += x[n, d]
        m = total / D
        square = x.dtype.type(0)
        for d in range(D):
            square += (x[n, d] - m) * (x[n, d] - m)
        r = x.dtype.type(1) / math.sqrt(square / D + eps)
        for d in range(D):
            out[n, d] = (x[n, d] - m) * r * weight[d] + bias[d]
        mean[n] = m
        rstd[n] = r


@njit(parallel=True, cache=True, fastmath=CONTRACT, error_model="numpy")
def layer_norm_backward(g, x, weight, mean, rstd, dx, dweight, dbias):
    """dx = r (gw − mean(gw) − x̂ mean(gw x̂)) with gw = g · weight; dweight and dbias are (parts, D)."""
    N, D = x.shape
    parts = len(dweight)
    for p in prange(parts):
        for n in range(p * N // parts, (p + 1) * N // parts):
            m, r = mean[n], rstd[n]
            a = b = x.dtype.type(0)
            for d in range(D):
                xhat = (x[n, d] - m) * r
                gw = g[n, d] * weight[d]
                a += gw
                b += gw * xhat
                dweight[p, d] += g[n, d] * xhat
                dbias[p, d] += g[n, d]
            a /= D
            b /= D
            for d in range(D):
                dx[n, d] = r * (g[n, d] * weight[d] - a - (x[n, d] - m) * r * b)


@njit(parallel=True, cache=True, fastmath=CONTRACT, error_model="numpy")
def rms_norm(x, weight, eps, out, rms):
    N, D = x.shape
    for n in prange(N):
        square = x.dtype.type(0)
        for d in range(D):
            square += x[n, d] * x[n, d]
        r = x.dtype.type(1) / math.sqrt(square / D + eps)
        for d in range(D):
            out[n, d] = x[n, d] * r * weight[d]
        rms[n] = r


@njit(parallel=True, cache=True, fastmath=CONTRACT, error_model="numpy")
def rms_norm_backward(g, x, weight, rms, dx, dweight):
    """dx = r (gw − x̂ mean(gw x̂)) with gw = g · weight; dweight is (parts, D)."""
    N, D = x.shape
    parts = len(dweight)
    for p in prange(parts):
        for n in range(p * N // parts, (p + 1) * N // parts):
            r = rms[n]
            b = x.dtype.type(0)
            for d in range(D):
                xhat = x[n, d] * r
                b += g[n, d] * weight[d] * xhat
                dweight[p, d] += g[n, d] * xhat
            b /= D
            for d in range(D):
                dx[n, d] = r * (g[n, d] * weight[d] - x[n, d] * r * b)


def stripes(dtype: np.dtype, D: int) -> np.ndarray:
    """Zeros (parts, D) for the sums over rows, a stripe for each thread."""
    from numba import get_num_threads

    return np.zeros((get_num_threads(), D), dtype=dtype)
