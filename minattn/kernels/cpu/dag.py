"""The sum over increasing paths, one graph of the batch a thread.

A path with M labels through S states is at its i-th label (counted from 0) somewhere in i … S − M + i: it has
come by i states and still needs M − 1 − i. Only that band of each row is computed. Edges are read along rows
of E, so that the inner loop runs over neighbours in memory:

         v →  ┌ · E E E · ┐
    from one  │ · · E E E │   for each v: top[u] = max over v, then total[u] = Σ_v exp(… − top[u])
    label to  │ · · · E E │
    the next  └ · · · · E ┘

Backward sends shares back: of the share of P that passes state u at label i, each state v before it gets the
part exp(F[i−1, v] + ln E[v, u] − arrival[i, u]), which is at most 1.
"""

import math

import numpy as np
from numba import njit, prange


@njit(parallel=True, cache=True, error_model="numpy")
def forward(e, a, labels, states, arrivals, out):
    """Fill `arrivals` (B, M, S), which comes filled with −∞, and `out` (B,); see `dag.py`."""
    for b in prange(len(e)):
        M, S = labels[b], states[b]
        total = np.empty(S, e.dtype)
        arrivals[b, 0, 0] = 0
        for i in range(1, M):
            low, high = i, S - M + i + 1
            top = arrivals[b, i]
            for v in range(i - 1, high - 1):
                f = arrivals[b, i - 1, v] + e[b, i - 1, v]
                for u in range(max(low, v + 1), high):
                    top[u] = max(top[u], f + a[b, v, u])
            total[:] = 0
            for v in range(i - 1, high - 1):
                f = arrivals[b, i - 1, v] + e[b, i - 1, v]
                for u in range(max(low, v + 1), high):
                    if top[u] > -np.inf:
                        total[u] += math.exp(f + a[b, v, u] - top[u])
            for u in range(low, high):
                if top[u] > -np.inf:
                    top[u] += math.log(total[u])
        out[b] = arrivals[b, M - 1, S - 1] + e[b, M - 1, S - 1]


@njit(parallel=True, cache=True, error_model="numpy")
def backward(g, e, a, labels, states, arrivals, de, da):
    """Add to `de` (B, M, S) and `da` (B, S, S), which come filled with 0."""
    for b in prange(len(e)):
        M, S = labels[b], states[b]
        de[b, M - 1, S - 1] = g[b]
        for i in range(M - 1, 0, -1):
            for v in range(i - 1, S - M + i):
                f = arrivals[b, i - 1, v] + e[b, i - 1, v]
                share = e.dtype.type(0)
                for u in range(max(i, v + 1), S - M + i + 1):
                    if de[b, i, u] != 0:
                        part = de[b, i, u] * math.exp(f + a[b, v, u] - arrivals[b, i, u])
                        da[b, v, u] += part
                        share += part
                de[b, i - 1, v] = share
