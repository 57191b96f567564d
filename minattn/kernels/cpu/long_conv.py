"""Short causal convolutions of `kernels/long_conv.py`: the innermost loops run along the features, and the K
rows of inputs that meet an output are still in the cache. `weight` is (K, D).
"""

from numba import njit, prange

from .scan import parts

__all__ = ["banded", "banded_backward", "parts"]

CONTRACT = {"contract", "reassoc", "nsz"}


@njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def multiply(out, a, b):
    """out = a ∘ b"""
    for d in range(len(out)):
        out[d] = a[d] * b[d]


@njit(nogil=True, error_model="numpy", fastmath=CONTRACT)
def multiply_add(out, a, b):
    """out += a ∘ b. The indices count from 0, so that the compiler sees none that is negative."""
    for d in range(len(out)):
        out[d] += a[d] * b[d]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def banded(x, weight, state, y, parts):
    B, N, D = y.shape
    K = len(weight)
    for task in prange(B * parts):
        b, part = task // parts, slice(task % parts * D // parts, (task % parts + 1) * D // parts)
        for t in range(N):
            multiply(y[b, t, part], weight[0, part], x[b, t, part])
            for j in range(1, K):
                source = x[b, t - j] if t >= j else state[b, K - 1 + t - j]
                multiply_add(y[b, t, part], weight[j, part], source[part])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def banded_backward(g, x, weight, state, dx, dweight, dstate, parts):
    """Adds to dx, dstate and dweight, which is (B, K, D)."""
    B, N, D = g.shape
    K = len(weight)
    for task in prange(B * parts):
        b, part = task // parts, slice(task % parts * D // parts, (task % parts + 1) * D // parts)
        for t in range(N):
            for j in range(K):
                source = x[b, t - j] if t >= j else state[b, K - 1 + t - j]
                target = dx[b, t - j] if t >= j else dstate[b, K - 1 + t - j]
                multiply_add(target[part], weight[j, part], g[b, t, part])
                multiply_add(dweight[b, j, part], g[b, t, part], source[part])
