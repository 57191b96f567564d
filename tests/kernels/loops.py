"""Attention a row at a time, forward and backward, in float64: what the tiles must equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """What query (b, h, i) computes: visible keys, their scores, weights and d score_mod / d score."""

    keys: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    slopes: np.ndarray


def visible_array(shape: tuple, causal: bool = False, offset: int = 0, mask: Callable | None = None
                  ) -> np.ndarray:
    """Booleans (B, H, N, M), asked one by one."""
    seen = np.ones(shape, bool)
    for b, h, i, j in np.ndindex(shape):
        seen[b, h, i, j] = (not causal or j <= i + offset) and (mask is None or mask(b, h, i, j))
    return seen


def row(q, k, at, seen, scale, weight, mod, slope) -> Row:
    b, h, i = at
    keys = np.flatnonzero(seen[at])
    raw = scale * (k[b, h * k.shape[1] // q.shape[1], keys] @ q[at])
    s = np.array([raw[n] if mod is None else mod(raw[n], b, h, i, j) for n, j in enumerate(keys)], float)
    d = np.array([1.0 if slope is None else slope(raw[n], b, h, i, j) for n, j in enumerate(keys)], float)
    if weight == "softmax":
        w = np.exp(s - s.max()) if len(s) else s
        w = w / w.sum()
    elif weight == "sigmoid":
        w = np.where(s > 0, 1 / (1 + np.exp(-np.abs(s))), np.exp(-np.abs(s)) / (1 + np.exp(-np.abs(s))))
    else:
        w = np.maximum(s, 0)
    return Row(keys, s, w, d)


def forward(q, k, v, seen, *, scale=None, weight="softmax", mod=None, slope=None):
    """Output (B, H, N, Dv) and ln Σ exp of the scores (B, H, N)."""
    q, k, v = (np.asarray(x, float) for x in (q, k, v))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    out, lse = np.zeros((*q.shape[:3], v.shape[3])), np.full(q.shape[:3], -np.inf)
    for b, h, i in np.ndindex(q.shape[:3]):
        r = row(q, k, (b, h, i), seen, scale, weight, mod, slope)
        out[b, h, i] = r.weights @ v[b, h * k.shape[1] // q.shape[1], r.keys]
        if len(r.keys):
            lse[b, h, i] = r.scores.max() + np.log(np.exp(r.scores - r.scores.max()).sum())
    return out, lse


def backward(q, k, v, g, seen, *, g_lse=None, scale=None, weight="softmax", mod=None, slope=None):
    """Gradients of Σ g · out + Σ g_lse · lse by q, k and v."""
    q, k, v, g = (np.asarray(x, float) for x in (q, k, v, g))
    scale = q.shape[3] ** -0.5 if scale is None else scale
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for b, h, i in np.ndindex(q.shape[:3]):
        r, c = row(q, k, (b, h, i), seen, scale, weight, mod, slope), h * k.shape[1] // q.shape[1]
        dw = v[b, c, r.keys] @ g[b, h, i]
        if weight == "softmax":
            ds = (np.diag(r.weights) - np.outer(r.weights, r.weights)) @ dw
            ds = ds + (0 if g_lse is None else g_lse[b, h, i]) * r.weights
        elif weight == "sigmoid":
            ds = r.weights * (1 - r.weights) * dw
        else:
            ds = np.where(r.scores > 0, dw, 0.0)
        ds = ds * r.slopes * scale
        dv[b, c, r.keys] += np.outer(r.weights, g[b, h, i])
        dq[b, h, i] += ds @ k[b, c, r.keys]
        dk[b, c, r.keys] += np.outer(ds, q[b, h, i])
    return dq, dk, dv


def inputs(B, H, Hk, N, M, D, Dv, dtype=np.float64, seed=0):
    """q, k and v, and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    shapes = ((B, H, N, D), (B, Hk, M, D), (B, Hk, M, Dv), (B, H, N, Dv))
    return [rng.standard_normal(s).astype(dtype) for s in shapes]
