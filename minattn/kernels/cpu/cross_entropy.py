"""Softmax cross-entropy, a row of logits at a time: the loss needs one pass and its gradient another.

The largest of many floats has no fast loop, because NaN gives comparisons an order. The bits of a float, read
as an integer, grow with it if it is positive and fall if it is negative; with all but the sign flipped in the
second case they grow throughout, and the largest of many integers has one.
"""

import math

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from .exp import exp

SUMS = {"contract", "reassoc", "nsz"}


def _bits(x):
    """Rows of floats, read as integers."""
    return x.view(np.int32 if x.itemsize == 4 else np.int64)


@overload(_bits)
def _bits_of(x):
    integer = types.int32 if x.dtype is types.float32 else types.int64
    return lambda x: x.view(integer)


@njit(error_model="numpy")
def raise_tops(x, top):
    """top_r ← max(top_r, max_c x_rc), in place."""
    bits, tops = _bits(x), _bits(top)
    integer = bits.dtype.type
    sign, rest = integer(8 * bits.itemsize - 1), integer(np.iinfo(bits.dtype).max)
    for r in range(len(x)):
        best = tops[r] ^ ((tops[r] >> sign) & rest)
        for c in range(x.shape[1]):
            best = max(best, integer(bits[r, c] ^ ((bits[r, c] >> sign) & rest)))
        tops[r] = best ^ ((best >> sign) & rest)


@njit(parallel=True, cache=True, fastmath=SUMS, error_model="numpy")
def forward(logits, target, smoothing, loss, lse):
    """loss = lse − (1 − ε) x_target − ε mean(x), with lse = ln Σ exp x; 0 where target < 0."""
    N, C = logits.shape
    zero, one = logits.dtype.type(0), logits.dtype.type(1)
    lse[:] = -np.inf
    for n in prange(N):
        x = logits[n : n + 1]
        raise_tops(x, lse[n : n + 1])
        top, total, plain = lse[n] if lse[n] != -np.inf else zero, zero, zero
        for c in range(C):
            total += exp(x[0, c] - top)
        lse[n] = top + math.log(total)
        loss[n] = zero
        if target[n] >= 0:
            loss[n] = (one - smoothing) * (lse[n] - x[0, target[n]])
            if smoothing > zero:
                for c in range(C):
                    plain += lse[n] - x[0, c]
                loss[n] += smoothing / C * plain


@njit(parallel=True, cache=True, fastmath=SUMS, error_model="numpy")
def backward(g, logits, target, smoothing, lse, out):
    """out = g (exp(x − lse) − ε / C − (1 − ε) [c = target]); zeros where target < 0."""
    N, C = logits.shape
    one = logits.dtype.type(1)
    for n in prange(N):
        if target[n] < 0:
            out[n] = 0
            continue
        for c in range(C):
            out[n, c] = g[n] * (exp(logits[n, c] - lse[n]) - smoothing / C)
        out[n, target[n]] -= g[n] * (one - smoothing)
