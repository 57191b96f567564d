"""SiLU, alone or with its slope, in one pass."""

from numba import njit, prange

from .exp import exp


@njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def value_and_slope(x, out, slope):
    """out = x σ(x) and slope = σ(x) (1 + x (1 − σ(x)))."""
    for i in prange(x.size):
        one = x.dtype.type(1)
        s = one / (one + exp(-x[i]))
        out[i] = x[i] * s
        slope[i] = s * (one + x[i] * (one - s))


@njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def value(x, out):
    """out = x σ(x)."""
    for i in prange(x.size):
        out[i] = x[i] / (x.dtype.type(1) + exp(-x[i]))
