"""Rectified linear attention: weights are max(score, 0), and a norm behind the heads does what a softmax did.

    A = max(Q Kᵀ / √d, 0)        x = the heads' A V side by side, D numbers        y = norm(x)

    ReLA-i   norm(x) = s ⊙ x / √(mean x² + ε),               s small at first
    ReLA-g   norm(x) = s ⊙ x / √(mean x² + ε) ⊙ σ(w ⊙ x),    s = 1 at first

A weight is exactly 0 for every negative score, so about half of them are before training; a row in which all
are 0 attends to nothing, and its head gives exactly 0. The weights have no sum to keep to.

Zhang, Titov and Sennrich, Sparse Attention with Linear Units, arXiv 2104.07012 (paper 57).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import MultiHeadAttention
from minattn.attention.masks import MaskMod
from minattn.autograd import sigmoid
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import rms_norm

PAPERS = (57,)

__all__ = ["NormedLinear", "ReLAAttention", "alignment_error_rate", "entmax_bisection", "head_diversity",
           "naive_rela", "null_rate", "rms_norm_gated", "zero_rate"]

EPS = 1e-8
SMALL = 0.1
"""What the gain of ReLA-i starts at. The paper has a special small initialisation; the number is ours."""


# ---- the naive form


def naive_rela(q: Array, k: Array, v: Array, gain: Array, gate: Array | None = None, *,
               mask_mod: MaskMod | None = None, eps: float = EPS) -> np.ndarray:
    """Normed heads (B, N, H · Dv) of rectified linear attention, before W_o, in loops.

    Parameters
    ----------
    q, k, v : (B, H, N, D), (B, H, M, D), (B, H, M, Dv)
        Real or complex, so that derivatives can be taken by complex steps.
    gain, gate : (H · Dv,)
        s, and w of ReLA-g.
    """
    (B, H, N, D), (M, Dv) = q.shape, v.shape[2:]
    out = np.zeros((B, N, H * Dv), np.result_type(q, k, v, gain, *(() if gate is None else (gate,))))
    for b, i in np.ndindex(B, N):
        x = [0.0] * (H * Dv)
        for h in range(H):
            for j in range(M):
                score = sum(q[b, h, i, d] * k[b, h, j, d] for d in range(D)) / math.sqrt(D)
                if (mask_mod is None or mask_mod(b, h, i, j)) and score.real > 0:
                    for d in range(Dv):
                        x[h * Dv + d] += score * v[b, h, j, d]
        size = np.sqrt(sum(t * t for t in x) / (H * Dv) + eps)
        for d, t in enumerate(x):
            out[b, i, d] = gain[d] * t / size * (1 if gate is None else 1 / (1 + np.exp(-gate[d] * t)))
    return out


# ---- the norm


def rms_norm_gated(x: Operand, gain: Operand, gate: Operand | None = None, eps: float = EPS) -> Operand:
    """s ⊙ x / √(mean x² + ε) ⊙ σ(w ⊙ x) over the last axis of x (…, D); without a gate the last factor is 1.

    Parameters
    ----------
    x : (…, D)
    gain, gate : (D,)
        s and w. The gate sees how large x was; the norm does not.
    eps : float
        ε > 0, which makes zeros of a row of zeros.

    Raises
    ------
    ValueError
        If ε is not positive or sizes do not fit.
    """
    if not eps > 0:
        raise ValueError(f"eps: expected a number above 0, got {eps!r}")
    D = np.shape(raw(x))[-1]
    for name, p in (("gain", gain), ("gate", gate)):
        if p is not None and np.shape(raw(p)) != (D,):
            raise ValueError(f"{name}: expected shape ({D},), got {np.shape(raw(p))}")
    y = rms_norm(x, gain, eps)
    return y if gate is None else y * sigmoid(x * gate)


class NormedLinear(nn.Linear):
    """W `rms_norm_gated`(x) + b: the output projection of rectified linear attention, with its norm.

    Parameters
    ----------
    d_in, d_out, bias, rng
        As in `Linear`.
    variant : {"i", "g"}
        Whether the gain starts small, or at 1 with a gate.
    small : float
        Start of the gain of "i".
    eps : float

    Attributes
    ----------
    gain, gate : Parameter (d_in); the gate of "i" is None
    """

    def __init__(self, d_in: int, d_out: int, bias: bool = True, *, variant: str, small: float = SMALL,
                 eps: float = EPS, rng: np.random.Generator) -> None:
        super().__init__(d_in, d_out, bias, rng=rng)
        self.eps = eps
        self.gain = nn.Parameter(np.full(d_in, small if variant == "i" else 1, np.float32))
        self.gate = None if variant == "i" else nn.Parameter(nn.init.uniform((d_in,), d_in**-0.5, rng=rng))

    def forward(self, x: Operand) -> Operand:
        return super().forward(rms_norm_gated(x, self.gain, self.gate, self.eps))


# ---- the layer


class ReLAAttention(MultiHeadAttention):
    """`MultiHeadAttention` with rectified linear weights and a norm over all heads before W_o.

    It serves as self-, causal and cross-attention and takes caches, masks and positions as its base does.

    Parameters
    ----------
    d_model, n_heads, **how
        As in `MultiHeadAttention`, without a normaliser.
    variant : {"g", "i", "none"}
        Gated norm; norm with a small gain; or no norm at all, which trains badly.
    small, eps : float
        Start of the gain of "i", and ε.

    Raises
    ------
    ValueError
        If there is no such variant.

    References
    ----------
    Zhang, Titov and Sennrich, arXiv 2104.07012 (paper 57).
    """

    def __init__(self, d_model: int, n_heads: int, *, variant: str = "g", small: float = SMALL,
                 eps: float = EPS, rng: np.random.Generator, **how: Any) -> None:
        if variant not in ("g", "i", "none"):
            raise ValueError(f"variant: expected 'g', 'i' or 'none', got {variant!r}")
        super().__init__(d_model, n_heads, normalizer="relu", rng=rng, **how)
        if variant != "none":
            plain = self.out_proj
            self.out_proj = NormedLinear(plain.d_in, plain.d_out, plain.bias is not None, variant=variant,
                                         small=small, eps=eps, rng=rng)
            self.out_proj.weight, self.out_proj.bias = plain.weight, plain.bias


# ---- measures


def zero_rate(weights: Array, visible: Array | None = None) -> float:
    """Share of the weights (…, N, M) that are exactly 0, among the visible ones."""
    zero = np.asarray(weights) == 0
    return float(zero.mean() if visible is None else zero[np.broadcast_to(visible, zero.shape)].mean())


def null_rate(weights: Array, queries: Array | None = None) -> float:
    """Share of the rows of weights (…, N, M) that are 0 throughout: queries that attend to nothing.

    `queries`, booleans that broadcast to (…, N), says which of them count.
    """
    null = (np.asarray(weights) == 0).all(-1)
    return float(null.mean() if queries is None else null[np.broadcast_to(queries, null.shape)].mean())


def head_diversity(weights: Array) -> float:
    """Generalised Jensen–Shannon divergence of heads: H(mean of p_h) − mean of H(p_h), in nats.

    Parameters
    ----------
    weights : (B, H, N, M)
        Not negative; p_h is a row of head h over its sum. Heads whose row is null do not count, nor do
        queries with fewer than two heads left.

    Returns
    -------
    float
        Mean over queries: 0 if heads agree, ln H if no two of them see a common key. NaN never: 0 if no query
        counts.
    """
    p = np.moveaxis(np.asarray(weights, np.float64), 1, -2)  # (B, N, H, M)
    total = p.sum(-1, keepdims=True)
    alive = total[..., 0] > 0
    count = alive.sum(-1)
    p = p / np.where(total > 0, total, 1)
    mean = p.sum(-2) / np.maximum(count, 1)[..., None]
    gain = _entropy(mean) - (_entropy(p) * alive).sum(-1) / np.maximum(count, 1)
    return float(gain[count > 1].mean()) if (count > 1).any() else 0.0


def _entropy(p: Array) -> np.ndarray:
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def alignment_error_rate(found: Array, sure: Array, possible: Array | None = None) -> float:
    """AER = 1 − (|A ∩ S| + |A ∩ P|) / (|A| + |S|) for links A found, S sure and P ⊇ S possible.

    Parameters
    ----------
    found, sure, possible : booleans of one shape
        Whether a target word and a source word are linked; P is S by default.

    Raises
    ------
    ValueError
        If shapes differ or there is not a single link.
    """
    found, sure = np.asarray(found, bool), np.asarray(sure, bool)
    possible = sure if possible is None else np.asarray(possible, bool) | sure
    if not found.shape == sure.shape == possible.shape:
        raise ValueError(f"found, sure, possible: expected equal shapes, got {found.shape}, {sure.shape}, "
                         f"{possible.shape}")
    links = found.sum() + sure.sum()
    if not links:
        raise ValueError("found, sure: expected at least one link, got none")
    return float(1 - ((found & sure).sum() + (found & possible).sum()) / links)


def entmax_bisection(z: Array, alpha: float = 1.5, steps: int = 60) -> np.ndarray:
    """α-entmax of rows z (…, M): max((α − 1) z − τ, 0) to the power 1/(α − 1), τ found by bisection.

    The sparse baselines by another way than sorting: α = 2 is sparsemax, α → 1 softmax.

    Raises
    ------
    ValueError
        If α is not above 1.
    """
    if not alpha > 1:
        raise ValueError(f"alpha: expected a number above 1, got {alpha!r}")
    z = (alpha - 1) * np.asarray(z, np.float64)
    low = z.max(-1, keepdims=True) - 1  # there the largest weight alone is 1
    high = low + 1
    for _ in range(steps):
        middle = (low + high) / 2
        enough = (np.maximum(z - middle, 0) ** (1 / (alpha - 1))).sum(-1, keepdims=True) >= 1
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    p = np.maximum(z - low, 0) ** (1 / (alpha - 1))
    return p / p.sum(-1, keepdims=True)
