"""Normalised attention pooling (NAP): rows of scores are standardised instead of being made probabilities.

    z_ij = q_i · k_j        a_ij = g (z_ij − μ_i) / (σ_i + ε) + b        o_i = Σ_j a_ij v_j

μ_i and σ_i are mean and standard deviation of z_i over the keys that query i sees; g and b are learned, one
of each for a head; a masked key has weight 0. Weights may be negative and need not sum to 1, so o_i may leave
the convex hull of the values, which a softmax cannot. With g = 0 and b = 1 this is sum pooling, with b = 1/N
mean pooling.

Weights are linear in the scores once μ and σ are known, and both are known without the scores, from the mean
and the covariance of the keys:

    μ_i = q_i · k̄        σ_i² = q_iᵀ C q_i        o_i = g q_iᵀ S / (σ_i + ε) + b Σ_j v_j
    k̄ = Σ_j k_j / N        C = Σ_j (k_j − k̄)(k_j − k̄)ᵀ / N        S = Σ_j (k_j − k̄) v_jᵀ

so where all queries see the same keys it costs O(N D²), with no N × N matrix.

Richter and Wattenhofer, Normalized Attention Without Probability Cage, arXiv 2005.09561 (paper 37). The
linear form is ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.attention import attention
from minattn.attention.masks import MaskMod
from minattn.autograd import namespace, primitive, reshape, sqrt, where
from minattn.autograd import sum as total
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels.dispatch import recorded

PAPERS = (37,)

__all__ = ["naive_normalized_attention", "normalize_rows", "normalized_attention",
           "normalized_attention_linear"]

EPS = 1e-3


# ---- the naive form


def naive_normalized_attention(q: Array, k: Array, v: Array, gain: Array, bias: Array, *,
                               mask_mod: MaskMod | None = None, eps: float = EPS) -> np.ndarray:
    """`normalized_attention` in loops: each query's scores in a list, their mean, their deviation.

    Parameters
    ----------
    q, k, v : (B, H, N, D), (B, H, M, D), (B, H, M, Dv)
        Real or complex, so that derivatives can be taken by complex steps.
    gain, bias : (H,)
    """
    (B, H, N, D), (M, Dv) = q.shape, v.shape[2:]
    out = np.zeros((B, H, N, Dv), np.result_type(q, k, v, gain, bias))
    for b, h, i in np.ndindex(B, H, N):
        seen = [j for j in range(M) if mask_mod is None or mask_mod(b, h, i, j)]
        if not seen:
            continue
        z = [sum(q[b, h, i, d] * k[b, h, j, d] for d in range(D)) for j in seen]
        mean = sum(z) / len(z)
        square = sum((s - mean) * (s - mean) for s in z) / len(z)
        deviation = np.sqrt(square) if square != 0 else 0.0
        for j, s in zip(seen, z, strict=True):
            weight = bias[h] if s == mean else gain[h] * (s - mean) / (deviation + eps) + bias[h]
            for d in range(Dv):
                out[b, h, i, d] += weight * v[b, h, j, d]
    return out


# ---- the fast form: a normaliser


def normalize_rows(scores: Operand, gain: Operand, bias: Operand, eps: float = EPS, dim: int = -1) -> Operand:
    """g (z − μ) / (σ + ε) + b along `dim`, over the entries above −∞; 0 where −∞.

    Parameters
    ----------
    scores : (B, H, N, M)
    gain, bias : broadcast against the scores
    eps : float
        ε; where σ + ε is 0, as all scores are equal, the weights are b. With ε = 0, scores that differ by
        rounding alone give weights of noise.
    """
    weights = gain * standardize(scores, dim=dim, eps=eps) + bias
    visible = raw(scores) > -np.inf
    return weights if visible.all() else where(visible, weights, 0)


def _standardize(scores: Array, /, dim: int, eps: float) -> tuple[Array, tuple]:
    """(z − μ) / (σ + ε) over the entries above −∞, 0 elsewhere."""
    xp = namespace(scores)
    visible = scores > -np.inf
    count = xp.maximum(visible.sum(dim, keepdims=True), 1).astype(scores.dtype)
    y = xp.where(visible, scores, 0)
    y = xp.where(visible, y - y.sum(dim, keepdims=True) / count, 0)
    sigma = xp.sqrt((y * y).sum(dim, keepdims=True) / count)
    y /= xp.where(sigma + eps > 0, sigma + eps, 1)
    return y, (visible, count, sigma)

def _d_standardize(g, out, scores, dim, eps, saved):
    """(g − ḡ − y · mean(g y) · (σ + ε)/σ) / (σ + ε), the means over visible entries; y is `out`."""
    if saved is None:
        return recorded(lambda z: recorded_standardize(z, dim, eps), g, scores)
    visible, count, sigma = saved
    xp = namespace(out)
    g = xp.where(visible, g, 0)
    s = xp.where(sigma + eps > 0, sigma + eps, 1)
    stretch = xp.where(sigma > 0, s / xp.where(sigma > 0, sigma, 1), 0)
    along = (g * out).sum(dim, keepdims=True) / count * stretch
    return xp.where(visible, (g - g.sum(dim, keepdims=True) / count - out * along) / s, 0)


standardize = primitive(_standardize, _d_standardize, saves=True)


def recorded_standardize(scores: Operand, dim: int, eps: float) -> Operand:
    """`standardize` step by step, each of them recorded: what derivatives of derivatives are taken of."""
    visible = raw(scores) > -np.inf
    count = np.maximum(visible.sum(dim, keepdims=True), 1).astype(scores.dtype)
    z = where(visible, scores, 0)
    centred = where(visible, z - total(z, dim, keepdim=True) / count, 0)
    square = total(centred * centred, dim, keepdim=True) / count
    spread = raw(square) > 0  # the root has no slope at 0, where all scores are equal
    deviation = where(spread, sqrt(where(spread, square, 1)), 0) + eps
    return centred / where(raw(deviation) > 0, deviation, 1)


def normalized_attention(q: Operand, k: Operand, v: Operand, gain: Operand | None = None,
                         bias: Operand | None = None, *, mask_mod: MaskMod | None = None, eps: float = EPS,
                         return_weights: bool = False) -> Any:
    """Σ_j a_ij v_j with a_ij = g_h (q_i · k_j − μ_i) / (σ_i + ε) + b_h.

    Parameters
    ----------
    q : (B, H, N, D)
    k, v : (B, Hk, M, D) and (B, Hk, M, Dv)
        Hk divides H, as in `minattn.attention.attention`.
    gain, bias : (H,), optional
        g = 1 and b = 0 by default.
    mask_mod : callable, optional
        ``mask_mod(b, h, i, j) -> bool``, True where visible; μ and σ are of the visible keys.
    eps : float
        ε ≥ 0.
    return_weights : bool
        Also return the weights (B, H, N, M).

    Returns
    -------
    out : (B, H, N, Dv), or (out, weights)
        Zeros for a query that sees nothing; b_h v_j for one that sees a single key.

    Raises
    ------
    ValueError, TypeError
        If shapes do not fit, or ε is negative.

    References
    ----------
    Richter and Wattenhofer, arXiv 2005.09561 (paper 37).
    """
    g, b = _per_head(q, gain, bias, eps)
    return attention(q, k, v, mask_mod=mask_mod, scale=1.0, return_weights=return_weights,
                     normalizer=lambda scores, dim: normalize_rows(scores, g, b, eps, dim))


def normalized_attention_linear(q: Operand, k: Operand, v: Operand, gain: Operand | None = None,
                                bias: Operand | None = None, *, eps: float = EPS) -> Operand:
    """`normalized_attention` without a mask in O(N D²), from mean and covariance of the keys.

    Parameters
    ----------
    q, k, v : (B, H, N, D), (B, H, M, D) and (B, H, M, Dv)
        With as many key heads as query heads.
    gain, bias, eps
        As in `normalized_attention`.
    """
    g, b = _per_head(q, gain, bias, eps)
    if np.ndim(raw(k)) != 4 or k.shape[:2] != q.shape[:2] or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"k, v: expected batch and heads {tuple(q.shape[:2])} and equally many positions, "
                         f"got shapes {k.shape} and {v.shape}")
    M = k.shape[2]
    centred = k - total(k, 2, keepdim=True) / M
    covariance = centred.mT @ centred / M
    square = total((q @ covariance) * q, -1, keepdim=True)
    spread = raw(square) > 0
    deviation = where(spread, sqrt(where(spread, square, 1)), 0) + eps
    standard = (q @ (centred.mT @ v)) / where(raw(deviation) > 0, deviation, 1)
    return g * standard + b * total(v, 2, keepdim=True)


def _per_head(q: Operand, gain: Operand | None, bias: Operand | None, eps: float) -> tuple[Operand, Operand]:
    """Gain and bias as (H, 1, 1), once they are known to fit."""
    if np.ndim(raw(q)) != 4:
        raise ValueError(f"q: expected 4 axes (batch, heads, positions, features), got {np.shape(raw(q))}")
    if not eps >= 0:
        raise ValueError(f"eps: expected a number ≥ 0, got {eps!r}")
    H = q.shape[1]
    found = []
    for name, x, default in (("gain", gain, 1), ("bias", bias, 0)):
        x = namespace(q).full(H, default, dtype=q.dtype) if x is None else x
        if np.shape(raw(x)) != (H,):
            raise ValueError(f"{name}: expected one number a head, shape ({H},), got {np.shape(raw(x))}")
        found.append(reshape(x, (H, 1, 1)))
    return found[0], found[1]
