"""Exercises of the chapter attention: fill in the functions, then ``python -m minattn.grade check
attention``.

Only NumPy is at hand where they are graded.  Shapes: B batch, H heads, N queries, M keys, D and E features.
"""

import numpy as np


def masked_softmax(scores, visible):
    """Task 1, warm-up.  Softmax over the last axis, of what is visible.

    scores: (B, H, N, M) floats; visible: (B, H, N, M) bools.  Returns (B, H, N, M).

        for each b, h, i:
            total = sum of exp(scores[b, h, i, j]) over the j that are visible
            weight j is exp(scores[b, h, i, j]) / total where visible, 0 elsewhere

    A row in which nothing is visible is all zeros, and scores of 1000 are no trouble.

    >>> scores = np.log(np.array([[[[1.0, 3.0, 5.0]]]]))
    >>> masked_softmax(scores, np.array([[[[True, True, False]]]])).round(6).tolist()
    [[[[0.25, 0.75, 0.0]]]]
    """
    raise NotImplementedError("attention, task 1")


def attention(q, k, v):
    """Task 2, core.  Every query's mean of the values, weighted by how well the keys fit.

    q: (B, H, N, D); k: (B, H, M, D); v: (B, H, M, E).  Returns (B, H, N, E).

        for each b, h, i:
            score j is (sum over d of q[b, h, i, d] * k[b, h, j, d]) / sqrt(D)
            weights are the softmax of the scores over j
            the output is the sum over j of weight j times v[b, h, j]

    >>> q, k = np.zeros((1, 1, 1, 4)), np.ones((1, 1, 2, 4))
    >>> attention(q, k, np.array([[[[1.0], [4.0]]]])).tolist()
    [[[[2.5]]]]
    """
    raise NotImplementedError("attention, task 2")


def attention_backward(q, k, v, g):
    """Task 3, core.  The gradients of sum(g * attention(q, k, v)) with respect to q, k and v.

    q: (B, H, N, D); k: (B, H, M, D); v: (B, H, M, E); g: (B, H, N, E).  Returns a tuple (dq, dk, dv).

        p[i, j]   are the weights of task 2
        dv[j]     is the sum over i of p[i, j] * g[i]
        dp[i, j]  is g[i] · v[j]
        ds[i, j]  is p[i, j] * (dp[i, j] - sum over l of p[i, l] * dp[i, l])
        dq[i]     is the sum over j of ds[i, j] * k[j], and dk[j] that over i of ds[i, j] * q[i], by sqrt(D)

    >>> q, k, v = np.zeros((1, 1, 1, 1)), np.array([[[[1.0], [3.0]]]]), np.array([[[[0.0], [4.0]]]])
    >>> dq, dk, dv = attention_backward(q, k, v, np.ones((1, 1, 1, 1)))
    >>> dq.tolist(), dv.tolist()
    ([[[[2.0]]]], [[[[0.5], [0.5]]]])
    """
    raise NotImplementedError("attention, task 3")


def tiled_attention(q, k, v, tile):
    """Task 4, stretch.  Task 2 without ever holding the N × M matrix of scores: ``tile`` keys at a time.

    q: (B, H, N, D); k: (B, H, M, D); v: (B, H, M, E); tile: int, which need not divide M.  Returns (B, H, N,
    E).

        for each query keep the largest score so far m, the total so far z and the sum so far u; for each
        tile:
            new  is the larger of m and the tile's largest score
            z    becomes z * exp(m - new) + sum over the tile of exp(score - new)
            u    becomes u * exp(m - new) + sum over the tile of exp(score - new) * v
            m    becomes new
        the output is u / z

    >>> q, k = np.zeros((1, 1, 1, 4)), np.ones((1, 1, 3, 4))
    >>> tiled_attention(q, k, np.array([[[[1.0], [4.0], [10.0]]]]), 2).tolist()
    [[[[5.0]]]]
    """
    raise NotImplementedError("attention, task 4")
