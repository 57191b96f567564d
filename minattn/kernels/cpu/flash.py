"""What tiled attention does between its products: a tile of scores becomes a tile of weights.

The largest of many floats has no fast loop, because NaN gives comparisons an order. The bits of a float,
read as an integer, grow with it if it is positive and fall if it is negative; with all but the sign flipped
in the second case they grow throughout, and the largest of many integers has one.

One thread does it all: a tile is done before others have started.
"""

import numpy as np
from numba import njit

from .exp import exp

SUMS = {"contract", "reassoc", "nsz"}


@njit(cache=True, fastmath=SUMS, error_model="numpy")
def absorb(s, bits, top, top_bits, total, o):
    """`absorb_reference` of `flash.py`, row by row; `bits` and `top_bits` are s and `top` as integers."""
    integer = bits.dtype.type
    sign, rest = integer(8 * bits.itemsize - 1), integer(np.iinfo(bits.dtype).max)
    for r in range(len(s)):
        before, new = top[r], top_bits[r] ^ ((top_bits[r] >> sign) & rest)
        for j in range(s.shape[1]):
            new = max(new, integer(bits[r, j] ^ ((bits[r, j] >> sign) & rest)))
        top_bits[r] = new ^ ((new >> sign) & rest)
        shift = top[r] if top[r] > -np.inf else s.dtype.type(0)
        keep, part = exp(before - shift), s.dtype.type(0)
        for j in range(s.shape[1]):
            s[r, j] = exp(s[r, j] - shift)
            part += s[r, j]
        total[r] = total[r] * keep + part
        if keep != 1:
            for d in range(o.shape[1]):
                o[r, d] *= keep
