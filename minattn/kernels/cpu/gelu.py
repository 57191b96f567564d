"""GELU and its slope in one pass.

NumPy would make eight passes over memory, and SciPy's erf takes 10 ns an entry. In float32 the error function
is x P(x²) / Q(x²) for |x| < 4 (relative error 2.5·10⁻⁸, fitted by us) and ±1 beyond, where they are the same.
"""

import math

import numpy as np
from numba import njit, prange

from .exp import exp

P = tuple(np.float32(c) for c in (1.12837914e+00, 1.93545897e-01, 5.31018616e-02, 3.88338178e-03,
                                  2.84567095e-04, 1.98678019e-06))
Q = tuple(np.float32(c) for c in (1.0, 5.04858140e-01, 1.15350350e-01, 1.52073258e-02, 1.18558099e-03,
                                  3.74202155e-05))
FOUR, HALF, ONE = np.float32(4), np.float32(0.5), np.float32(1)
ROOT_HALF, PHI_0 = np.float32(math.sqrt(0.5)), np.float32(1 / math.sqrt(2 * math.pi))


@njit(inline="always")
def erf32(x):
    x = min(max(x, -FOUR), FOUR)
    z = x * x
    p = ((((P[5] * z + P[4]) * z + P[3]) * z + P[2]) * z + P[1]) * z + P[0]
    q = ((((Q[5] * z + Q[4]) * z + Q[3]) * z + Q[2]) * z + Q[1]) * z + Q[0]
    return x * p / q


@njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def gelu32(x, out, slope):
    """out = x Φ(x) and slope = Φ(x) + x φ(x)."""
    for i in prange(x.size):
        t = x[i]
        cdf = HALF * (ONE + erf32(t * ROOT_HALF))
        out[i] = t * cdf
        slope[i] = cdf + t * PHI_0 * exp(-HALF * t * t)


@njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def value32(x, out):
    """out = x Φ(x)"""
    for i in prange(x.size):
        out[i] = x[i] * (HALF * (ONE + erf32(x[i] * ROOT_HALF)))


@njit(parallel=True, cache=True)
def value64(x, out):
    """The same in float64."""
    for i in prange(x.size):
        out[i] = x[i] * (0.5 * (1 + math.erf(x[i] * math.sqrt(0.5))))


@njit(parallel=True, cache=True)
def gelu64(x, out, slope):
    """The same in float64, with the library's erf."""
    for i in prange(x.size):
        t = x[i]
        cdf = 0.5 * (1 + math.erf(t * math.sqrt(0.5)))
        out[i] = t * cdf
        slope[i] = cdf + t / math.sqrt(2 * math.pi) * math.exp(-0.5 * t * t)
