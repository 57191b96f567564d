"""e^x in float32, in arithmetic that vector units have: LLVM calls the C library for `math.exp`, once an
entry.

    x = n ln 2 + r, |r| ≤ ln 2 / 2        e^x = 2ⁿ (1 + r + r² P(r))

2ⁿ is the number whose exponent bits are n + 127. P, of degree 4, was fitted by us; its relative error in
e^r is 3·10⁻⁹, so rounding alone is left: less than 2·10⁻⁷.
"""

import math

import numpy as np
from numba import njit, types
from numba.extending import overload

LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
P0, P1, P2, P3, P4 = (np.float32(c) for c in (0.4999999345, 0.1666652063, 0.04166838805, 0.008368716898,
                                              0.001381459837))
LOW, HIGH, HALF, ONE, ZERO = (np.float32(c) for c in (-87, 88, 0.5, 1, 0))


@njit(inline="always")
def exp32(x):
    """e^x; 0 below −87, e^88 above 88, NaN of NaN."""
    y = min(max(x, LOW), HIGH)
    n = np.floor(y * LOG2E + HALF)
    r = y - n * LN2_HIGH - n * LN2_LOW
    e = ONE + r + r * r * ((((P4 * r + P3) * r + P2) * r + P1) * r + P0)
    e = e * np.uint32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return ZERO if x < LOW else e + (x - x)


def exp(x):
    """`exp32` of a float32; the C library's of a float64."""
    return exp32(x) if isinstance(x, np.float32) else np.exp(x)


@overload(exp, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _exp(x):
    if x is types.float32:
        return lambda x: exp32(x)
    return lambda x: math.exp(x)
