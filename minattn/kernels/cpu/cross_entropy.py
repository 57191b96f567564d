"""Softmax cross-entropy, a row of logits at a time: the loss needs one pass and its gradient another."""

import math

import numpy as np
from numba import njit, prange

from .exp import exp
from .flash import raise_tops

SUMS = {"contract", "reassoc", "nsz"}


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
