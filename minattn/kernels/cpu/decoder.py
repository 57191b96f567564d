"""One new position through a block of a Llama: two calls, and between them the cache, in Python.

    x ── norm ── W_q W_k W_v ── rotate ──► q, k, v                                      `enter`
    │                                      │  └──► cache.append(k, v) ──► keys, values
    └──────────(+)◄── W_o ◄── softmax(q Kᵀ / √D) V                                      `leave`
                ├── norm ── W_gate W_up ── silu(g) u ── W_down ──(+)──► x
                └──────────────────────────────────────────────────┘

This is `Block.forward` for sequences of length 1: there a few hundred calls for a few microseconds of work
each, here two, in which memory decides, since every weight is read once. Matrices are float32 or packed
(`packed.py`). All of it runs on one thread: there are five places in a block where threads would have to
meet, at 20 to 100 µs a time.
"""

import math

import numpy as np
from numba import njit

from .exp import ONE, exp32
from .packed import SUMS, multiply


@njit(cache=True, fastmath=SUMS, error_model="numpy")
def rms_normed(x, gain, eps):
    """x / √(mean x² + ε) · gain for the rows of x (B, D)."""
    out = np.empty_like(x)
    for b in range(len(x)):
        square = np.float32(0)
        for d in range(x.shape[1]):
            square += x[b, d] * x[b, d]
        r = ONE / np.sqrt(square / np.float32(x.shape[1]) + eps)
        for d in range(x.shape[1]):
            out[b, d] = x[b, d] * r * gain[d]
    return out


@njit(cache=True, error_model="numpy")
def rotate(x, theta, position):
    """Turn the pairs (m, m + D/2) of each head in x (B, H, D) by position · θ_m, in place."""
    half = theta.size
    for m in range(half):
        cos, sin = np.float32(math.cos(position * theta[m])), np.float32(math.sin(position * theta[m]))
        for b in range(x.shape[0]):
            for h in range(x.shape[1]):
                first, second = x[b, h, m], x[b, h, m + half]
                x[b, h, m] = first * cos - second * sin
                x[b, h, m + half] = first * sin + second * cos


@njit(cache=True, error_model="numpy")
def enter(x, gain, eps, w_q, w_k, w_v, theta, position, q, k, v):
    """Fill q (B, H, D), k and v (B, Hk, D) from the residual stream x (B, d_model)."""
    B, h = len(x), rms_normed(x, gain, eps)
    multiply(w_q, h, q.reshape(B, -1))
    multiply(w_k, h, k.reshape(B, -1))
    multiply(w_v, h, v.reshape(B, -1))
    rotate(q, theta, position)
    rotate(k, theta, position)


@njit(cache=True, fastmath=SUMS, error_model="numpy")
def attend(q, keys, values, n):
    """softmax(q Kᵀ / √D) V for q (B, H, D) and the first n of keys and values (B, Hk, size, D): (B, H·D)."""
    B, H, D = q.shape
    scale, group = np.float32(1 / math.sqrt(D)), H // keys.shape[1]
    out, weights = np.zeros((B, H * D), np.float32), np.empty(n, np.float32)
    for b in range(B):
        for h in range(H):
            k, v, o = keys[b, h // group], values[b, h // group], out[b, h * D : (h + 1) * D]
            top = np.float32(-np.inf)
            for j in range(n):
                score = np.float32(0)
                for d in range(D):
                    score += q[b, h, d] * k[j, d]
                weights[j] = score * scale
                top = max(top, weights[j])
            total = np.float32(0)
            for j in range(n):
                weights[j] = exp32(weights[j] - top)
                total += weights[j]
            for j in range(n):
                for d in range(D):
                    o[d] += weights[j] / total * v[j, d]
    return out


@njit(cache=True, error_model="numpy")
def leave(x, q, keys, values, n, w_o, gain, eps, w_gate, w_up, w_down):
    """The residual stream (B, d_model) after the block."""
    B, hidden = len(x), len(w_gate)
    out, down = np.empty_like(x), np.empty_like(x)
    multiply(w_o, attend(q, keys, values, n), out)
    out += x
    h = rms_normed(out, gain, eps)
    gate, up = np.empty((B, hidden), np.float32), np.empty((B, hidden), np.float32)
    multiply(w_gate, h, gate)
    multiply(w_up, h, up)
    for b in range(B):
        for d in range(hidden):
            gate[b, d] = gate[b, d] / (ONE + exp32(-gate[b, d])) * up[b, d]
    multiply(w_down, gate, down)
    out += down
    return out
