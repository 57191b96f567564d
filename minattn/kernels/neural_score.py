"""Attention whose score is a small network of query and key, in tiles: no N × M scores, let alone N × M × F
hidden units, forward or backward.

    s_ij = Σ_f w_f relu(a_if + c_jf)        o_i = Σ_j softmax_j(s_ij) v_j

a and c are what the first layer makes of query and key apart (F hidden units, the bias in a), so only the sum
and the relu are of pairs. No matrix product computes them: each pair costs F additions, comparisons and
multiplications.

    for each tile of queries:                    m = −∞, l = 0, o = 0
        for each tile of keys that one may see:
            S = 0
            for f: S += w_f relu(A_f + C_fᵀ)     a row of C at a time, in vector registers
            m, l, o as in `flash.py`

Backward computes each tile of S again, and with P = exp(S − lse), dS = P ∘ (dO Vᵀ − δ), δ_i = Σ_d dO_id O_id,

    U_if = Σ_j dS_ij [a_if + c_jf > 0]           da_if = w_f U_if
    W_jf = Σ_i dS_ij [a_if + c_jf > 0]           dc_jf = w_f W_jf
    dw_f = Σ_ij dS_ij relu(a_if + c_jf) = Σ_i a_if U_if + Σ_j c_jf W_jf

so dw comes for nothing. DiGiugno and Mahmood 2025 (arXiv 2502.17206), paper 3, have the score; the tiles are
ours. `dense_neural_attention` holds all at once: it serves where no compiler does, and gives derivatives of
derivatives.
"""

from __future__ import annotations

import numpy as np

from minattn.autograd import namespace, primitive, relu, reshape, softmax, where
from minattn.autograd import sum as total
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, have_blas, launch, recorded

__all__ = ["dense_neural_attention", "dense_neural_scores", "naive_neural_attention", "neural_attention"]

ROWS, COLUMNS = 32, 256
"""Queries and keys of a tile."""


def naive_neural_attention(a: Array, c: Array, w: Array, v: Array, causal: bool = False) -> np.ndarray:
    """`neural_attention`, one pair and one hidden unit at a time; real or complex."""
    (B, H, N, F), (M, Dv) = a.shape, v.shape[2:]
    out = np.zeros((B, H, N, Dv), np.result_type(a, c, w, v))
    for b, h, i in np.ndindex(B, H, N):
        seen = range(min(i + 1 + M - N, M) if causal else M)
        scores = []
        for j in seen:
            hidden = [a[b, h, i, f] + c[b, h, j, f] for f in range(F)]
            scores.append(sum((w[h, f] * x for f, x in enumerate(hidden) if x.real > 0), 0.0))
        top = max((s.real for s in scores), default=0.0)
        powers = [np.exp(s - top) for s in scores]
        for d in range(Dv):
            out[b, h, i, d] = sum((p * v[b, h, j, d] for j, p in zip(seen, powers, strict=True)), 0.0)
            out[b, h, i, d] /= sum(powers) if powers else 1
    return out


# --- all pairs at once ------------------------------------------------------------------------------------

def dense_neural_scores(a: Operand, c: Operand, w: Operand) -> Operand:
    """Scores (B, H, N, M) of a (B, H, N, F), c (B, H, M, F) and w (H, F): all pairs and units at once."""
    (B, H, N, F), M = a.shape, c.shape[2]
    hidden = relu(reshape(a, (B, H, N, 1, F)) + reshape(c, (B, H, 1, M, F)))
    return total(hidden * reshape(w, (H, 1, 1, F)), -1)


def dense_neural_attention(a: Operand, c: Operand, w: Operand, v: Operand, causal: bool = False) -> Operand:
    """`neural_attention` by array operations, in O(N M F) memory."""
    scores, (N, M) = dense_neural_scores(a, c, w), (a.shape[2], c.shape[2])
    if causal:
        i, j = namespace(a).ogrid[:N, :M]
        scores = where(j <= i + M - N, scores, -np.inf)
    return softmax(scores, -1) @ v if M else scores @ v


# --- in tiles ---------------------------------------------------------------------------------------------

def neural_attention(a: Operand, c: Operand, w: Operand, v: Operand, *, causal: bool = False) -> Operand:
    """softmax over j of Σ_f w_f relu(a_if + c_jf), times v, in O(N (F + D)) memory where it is compiled.

    Parameters
    ----------
    a : (B, H, N, F)
        What the hidden layer makes of each query, its bias included.
    c : (B, H, M, F)
        What it makes of each key.
    w : (H, F)
        Output weights of each head's network.
    v : (B, H, M, Dv)
        Values.
    causal : bool
        Query i sees key j if j ≤ i + M − N: the queries are the last N positions.

    Returns
    -------
    out : (B, H, N, Dv)
        Zeros for a query that sees no key.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    _check(a, c, w, v)
    arrays = [raw(x) for x in (a, c, w, v)]
    if a.shape[3] and v.shape[3] and c.shape[2] and compiled(*arrays) and have_blas():
        return tiled_neural_attention(a, c, w, v, causal=causal)
    return dense_neural_attention(a, c, w, v, causal)


def _tiled_neural_attention(a: Array, c: Array, w: Array, v: Array, /, causal: bool) -> tuple[Array, Array]:
    from .cpu import neural_score

    (B, H, N, _), Dv = a.shape, v.shape[3]
    out, lse = np.empty((B, H, N, Dv), a.dtype), np.empty((B, H, N), a.dtype)
    launch(neural_score.run, neural_score.forward, *_laid_out(a, c, w, v), causal, ROWS, COLUMNS, out, lse)
    return out, lse

def _d_tiled_neural_attention(g, out, a, c, w, v, causal, saved):
    if saved is None:
        return recorded(lambda *x: dense_neural_attention(*x, causal), g, a, c, w, v)
    from .cpu import neural_score

    a, turned, w, v = _laid_out(a, c, w, v)
    u, dc, dv = (np.zeros(x.shape, x.dtype) for x in (a, turned, v))
    delta = (g * out).sum(-1)
    launch(neural_score.run, neural_score.backward, a, turned, w, v, *map(_whole, (g, saved, delta)), causal,
           ROWS, COLUMNS, u, dc, dv)
    dw = (a * u).sum((0, 2)) + (turned * dc).sum((0, 3))
    return u * w[:, None], dc.swapaxes(-1, -2) * w[:, None], dw, dv


tiled_neural_attention = primitive(_tiled_neural_attention, _d_tiled_neural_attention, saves=True)


def _laid_out(a: Array, c: Array, w: Array, v: Array) -> tuple:
    """What the compiled loops take: c turned, so that a hidden unit's keys follow one another."""
    return _whole(a), _whole(np.swapaxes(c, -1, -2)), _whole(w), _whole(v)


def _whole(x: Array) -> np.ndarray:
    """x or a copy of it, without gaps and open to writing, which Numba compiles once for."""
    return np.require(x, requirements=["C", "W"])


def _check(a: Operand, c: Operand, w: Operand, v: Operand) -> None:
    """Shapes and dtypes must fit."""
    for name, x, axes in (("a", a, 4), ("c", c, 4), ("w", w, 2), ("v", v, 4)):
        shape = np.shape(raw(x))
        if len(shape) != axes or x.dtype.kind != "f":
            raise ValueError(f"{name}: expected floats with {axes} axes, got {x.dtype} of shape {shape}")
        if x.dtype != a.dtype:
            raise TypeError(f"{name}: expected the dtype of a, {a.dtype}, got {x.dtype}")
    B, H, _, F = a.shape
    M = c.shape[2]
    wanted = {"c": (c, (B, H, M, F)), "w": (w, (H, F)), "v": (v, (B, H, M, v.shape[3]))}
    for name, (x, shape) in wanted.items():
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
