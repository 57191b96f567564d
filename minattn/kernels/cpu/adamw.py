"""AdamW in one pass: every entry of the four arrays is read once, and of three of them written once."""

import math

from numba import njit, prange


@njit(parallel=True, cache=True, error_model="numpy")
def adamw_loop(p, g, m, v, rate, beta1, rest1, beta2, rest2, eps, keep, l2, root):
    """`adamw_reference`, entry by entry; rest1 = 1 − β₁ and rest2 = 1 − β₂, rounded once."""
    for i in prange(p.size):
        x = g[i] + l2 * p[i]
        m[i] = beta1 * m[i] + rest1 * x
        v[i] = beta2 * v[i] + rest2 * x * x
        p[i] = keep * p[i] - rate * m[i] / (math.sqrt(v[i]) / root + eps)
