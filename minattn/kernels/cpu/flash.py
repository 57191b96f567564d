"""What tiled attention does between its products: a tile of scores becomes a tile of weights."""

import numpy as np
from numba import njit, prange

from .exp import exp

SUMS = {"contract", "reassoc", "nsz"}


@njit(cache=True, fastmath={"nnan", "nsz", "reassoc"}, error_model="numpy")
def largest(s, r):
    """The largest entry of row r; without the order that NaN demands, eight or sixteen at a time."""
    top = s[r, 0]
    for j in range(s.shape[1]):
        top = s[r, j] if s[r, j] > top else top
    return top


@njit(parallel=True, cache=True, fastmath=SUMS, error_model="numpy")
def absorb(s, top, total, o):
    """`absorb_reference` of `flash.py`, row by row; see there."""
    for r in prange(len(s)):
        new = max(top[r], largest(s, r))
        shift = new if new > -np.inf else s.dtype.type(0)
        keep, part = exp(top[r] - shift), s.dtype.type(0)
        for j in range(s.shape[1]):
            s[r, j] = exp(s[r, j] - shift)
            part += s[r, j]
        total[r] = total[r] * keep + part
        top[r] = new
        if keep != 1:
            for d in range(o.shape[1]):
                o[r, d] *= keep
