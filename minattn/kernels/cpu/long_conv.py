"""Short causal convolutions of `kernels/long_conv.py`: the innermost loops run along the features, and the K
rows of inputs that meet an output are still in the cache. `weight` is (K, D); inputs are (B, K − 1 + N, D).
"""

from numba import njit, prange

from .scan import parts

__all__ = ["banded", "banded_backward", "parts"]

CONTRACT = {"contract", "reassoc", "nsz"}


@njit(parallel=True, nogil=True, cache=True, error_model="numpy", fastmath=CONTRACT)
def banded(x, weight, y, parts):
    """Adds the outputs to y."""
    B, N, D = y.shape
    K = len(weight)
    for task in prange(B * parts):
        b, p = task // parts, task % parts
        for t in range(N):
            for j in range(K):
                for d in range(p * D // parts, (p + 1) * D // parts):
                    y[b, t, d] += weight[j, d] * x[b, t + K - 1 - j, d]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy", fastmath=CONTRACT)
def banded_backward(g, x, weight, dx, dweight, parts):
    """Adds to dx and to dweight, which is (B, K, D)."""
    B, N, D = g.shape
    K = len(weight)
    for task in prange(B * parts):
        b, p = task // parts, task % parts
        for t in range(N):
            for j in range(K):
                i = t + K - 1 - j
                for d in range(p * D // parts, (p + 1) * D // parts):
                    dx[b, i, d] += weight[j, d] * g[b, t, d]
                    dweight[b, j, d] += g[b, t, d] * x[b, i, d]
