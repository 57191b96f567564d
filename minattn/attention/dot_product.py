"""Attention: softmax(Q Kᵀ / √D + b) V, as loops and as matrix products.

Shapes are (B, H, N, D) throughout: batch, heads, positions, features; i counts the N queries, j the M keys.

    s_ij = scale · q_i · k_j        scale = 1/√D unless given
    s_ij ← score_mod(s_ij, b, h, i, j) + bias_ij, and −∞ where mask_mod(b, h, i, j) is False
    a_i  = normalizer(s_i)          softmax unless given
    o_i  = Σ_j a_ij v_j

A row with no visible key gives zeros and has no gradient. With H query heads and Hk < H heads of keys and
values, query head h reads key head h // (H / Hk).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minattn.autograd import logsumexp, namespace, primitive, reshape, where
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels.dispatch import compiled
from minattn.kernels.flash import Plan, attend, tiles_serve

from .masks import MaskMod, block_mask, fitting, indices, mask_array
from .normalizers import Normalizer, normalizer_named

ScoreMod = Callable[[Any, Any, Any, Any, Any], Any]

TILED = 128 * 128
COMPILED = 2**20
"""From so many pairs of query and key on `attention` computes in tiles; with a score_mod, of all heads."""


def naive_attention(q: Array, k: Array, v: Array, *, score_mod: ScoreMod | None = None,
                    mask_mod: MaskMod | None = None, bias: Array | None = None,
                    scale: float | None = None) -> Array:
    """Softmax attention, one number at a time, in float64: what all else must equal."""
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    (B, H, N, D), (_, Hk, M, Dv) = q.shape, v.shape
    scale = 1 / math.sqrt(D) if scale is None else scale
    bias = np.broadcast_to(0.0 if bias is None else bias, (B, H, N, M))
    out = np.zeros((B, H, N, Dv))
    for b, h, i in np.ndindex(B, H, N):
        g = h * Hk // H  # the key head of query head h
        scores = {}
        for j in range(M):
            if mask_mod is None or mask_mod(b, h, i, j):
                s = scale * math.fsum(q[b, h, i, d] * k[b, g, j, d] for d in range(D))
                s = s if score_mod is None else score_mod(s, b, h, i, j)
                scores[j] = s + bias[b, h, i, j]
        largest = max(scores.values(), default=0.0)
        total = math.fsum(math.exp(s - largest) for s in scores.values())
        for j, s in scores.items():
            for d in range(Dv):
                out[b, h, i, d] += math.exp(s - largest) / total * v[b, g, j, d]
    return out


def attention(q: Operand, k: Operand, v: Operand, *, score_mod: ScoreMod | None = None,
              mask_mod: MaskMod | None = None, bias: Operand | None = None,
              normalizer: str | Normalizer = "softmax", scale: float | None = None,
              return_weights: bool = False, return_lse: bool = False) -> Any:
    """normalizer(scale · Q Kᵀ, modified, biased and masked) V.

    Parameters
    ----------
    q : (B, H, N, D)
        Queries.
    k, v : (B, Hk, M, D) and (B, Hk, M, Dv)
        Keys and values; Hk divides H, and query head h reads key head h // (H / Hk).
    score_mod : callable, optional
        ``score_mod(score, b, h, i, j) -> score``, in plain arithmetic; here it gets all scores (B, H, N, M)
        at once, with index arrays that broadcast against them.
    mask_mod : callable, optional
        ``mask_mod(b, h, i, j) -> bool``, True where query i sees key j (see `minattn.attention.masks`).
    bias : array or Tensor, optional
        Added to the scores after `score_mod`; broadcasts to (B, H, N, M).
    normalizer : str or callable
        "softmax", "sparsemax", "entmax15", "sigmoid", "relu", or ``normalizer(scores, dim)``, which receives
        −∞ where a key is masked and must give 0 there.
    scale : float, optional
        Factor of q · k; 1/√D by default.
    return_weights, return_lse : bool
        Also return the weights (B, H, N, M), and ln Σ_j exp s_ij as (B, H, N), which is −∞ for rows with no
        visible key (softmax only); both can be differentiated.

    Returns
    -------
    out : (B, H, N, Dv)
        Or a tuple (out, weights, lse) of those asked for.

    Raises
    ------
    ValueError, TypeError
        If shapes do not fit, a mask is not boolean, or `return_lse` is asked of another normaliser.
    """
    if return_lse and normalizer != "softmax":
        raise ValueError(f"return_lse: the softmax alone has a log-sum-exp, got normalizer={normalizer!r}")
    shape, scale = _checked(q, k, v, scale)
    plain = normalizer == "softmax" and score_mod is None and not return_weights
    if bias is None and not return_weights and _large(shape, score_mod) and normalizer in _TILED and compiled(
            *map(raw, (q, k, v))):
        plan = _plan(shape, score_mod, mask_mod, normalizer, scale)
        if tiles_serve(q, k, v, plan):
            return attend(q, k, v, plan, return_lse)
    if plain and not return_lse and shape[3]:
        hidden = None if mask_mod is None else _hidden(mask_array(mask_mod, *shape, xp=namespace(q)), q.dtype)
        extra = () if bias is None else (_fitted(bias, shape),)
        return softmax_attention(q, k, v, *extra, scale=scale, hidden=hidden)
    scores = attention_scores(q, k, score_mod=score_mod, mask_mod=mask_mod, bias=bias, scale=scale)
    weights = attention_weights(scores, normalizer)
    found = [weighted_sum(weights, v)]
    if return_weights:
        found.append(weights)
    if return_lse:
        found.append(_lse(scores))
    return found[0] if len(found) == 1 else tuple(found)


_TILED = ("softmax", "sigmoid", "relu")


def _large(shape: tuple[int, int, int, int], score_mod: ScoreMod | None) -> bool:
    """Whether tiles pay: few pairs are done sooner by array operations; a score_mod must be compiled."""
    B, H, N, M = shape
    return N * M >= TILED if score_mod is None else B * H * N * M >= COMPILED


def _plan(shape: tuple[int, int, int, int], score_mod: ScoreMod | None, mask_mod: MaskMod | None,
          weight: str | Normalizer, scale: float) -> Plan:
    """What the tiled kernel is to do; a causal mask needs no table."""
    blocks, offset = None, getattr(mask_mod, "diagonal", None)
    if mask_mod is not None and offset is None:
        blocks = block_mask(mask_mod, *shape)
    return Plan(scale, str(weight), offset is not None, offset or 0, blocks, score_mod)


def attention_scores(q: Operand, k: Operand, *, score_mod: ScoreMod | None = None,
                     mask_mod: MaskMod | None = None, bias: Operand | None = None,
                     scale: float | None = None) -> Operand:
    """Scores (B, H, N, M) of queries and keys: modified, biased, and −∞ where masked."""
    shape, scale = _checked(q, k, k, scale)
    scores = reshape(_by_key_head(q * scale, k.shape[1]) @ k.mT, shape)
    if score_mod is not None:
        scores = score_mod(scores, *indices(*shape, xp=namespace(q)))
        if scores.shape != shape:
            raise ValueError(f"score_mod: expected to return scores of shape {shape}, got {scores.shape}")
    if bias is not None:
        scores = scores + _fitted(bias, shape)
    if mask_mod is not None:
        scores = where(mask_array(mask_mod, *shape, xp=namespace(q)), scores, -np.inf)
    return scores


def attention_weights(scores: Operand, normalizer: str | Normalizer = "softmax") -> Operand:
    """Weights (B, H, N, M) from scores: the normaliser along the keys."""
    return normalizer_named(normalizer)(scores, -1) if scores.shape[-1] else scores


def weighted_sum(weights: Operand, v: Operand) -> Operand:
    """o_i = Σ_j a_ij v_j for weights (B, H, N, M) and values (B, Hk, M, Dv)."""
    return reshape(_by_key_head(weights, v.shape[1]) @ v, (*weights.shape[:3], v.shape[-1]))


def _lse(scores: Operand) -> Operand:
    if scores.shape[-1]:
        return logsumexp(scores, -1)
    return namespace(scores).full(scores.shape[:3], -np.inf, dtype=scores.dtype)


def _by_key_head(x: Operand, Hk: int) -> Operand:
    """(B, H, N, D) → (B, Hk, G·N, D): the G query heads that share a key head, one after another.

    Grouped heads then need no copy of the keys: their queries are more rows of one product.
    """
    B, H, N, D = x.shape
    return x if H == Hk else reshape(x, (B, Hk, H // Hk * N, D))


def _hidden(visible: Array, dtype: Any) -> Array:
    """What to add to scores: 0 where visible, −∞ elsewhere."""
    xp = namespace(visible)
    return xp.where(visible, dtype.type(0), dtype.type(-np.inf))


def _plain_scores(q: Operand, k: Operand, bias: tuple, scale: float, hidden: Array | None) -> Operand:
    """scale · Q Kᵀ + bias + hidden."""
    scores = reshape(_by_key_head(q * scale, k.shape[1]) @ k.mT, (*q.shape[:3], k.shape[2]))
    for extra in bias if hidden is None else (*bias, hidden):
        scores = scores + extra
    return scores


def _softmax_attention(q: Array, k: Array, v: Array, *bias: Array, scale: float,
                       hidden: Array | None) -> tuple[Array, Array]:
    """softmax(scale · Q Kᵀ + bias + hidden) V, keeping the weights for the way back."""
    a = _plain_scores(q, k, bias, scale, hidden)
    xp = namespace(a)
    largest = a.max(-1, keepdims=True)
    a -= xp.where(largest == -np.inf, 0, largest)
    xp.exp(a, out=a)
    total = a @ xp.ones((a.shape[-1], 1), dtype=a.dtype)  # faster than sum
    a /= xp.where(total == 0, 1, total)
    return weighted_sum(a, v), a

def _d_softmax_attention(g, out, q, k, v, *bias, scale, hidden, saved):
    a, Hk = saved, k.shape[1]
    if a is None:
        a = attention_weights(_plain_scores(q, k, bias, scale, hidden))
    rows = _by_key_head(g, Hk)
    # ds = a ∘ (da − Σ_j a da) with da = g Vᵀ; the sum is o · g. Arrays change in place.
    ds = reshape(rows @ v.mT, a.shape)
    ds -= (g * out) @ namespace(g).ones((g.shape[-1], 1), dtype=g.dtype)
    ds *= a
    grouped = _by_key_head(ds, Hk)
    return (
        lambda: reshape(grouped @ k, q.shape) * scale,
        lambda: grouped.mT @ _by_key_head(q * scale, Hk),
        lambda: _by_key_head(a, Hk).mT @ rows,
        *(ds for _ in bias),
    )


softmax_attention = primitive(_softmax_attention, _d_softmax_attention, saves=True)


def _fitted(bias: Operand, shape: tuple[int, ...]) -> Operand:
    """`bias` if it broadcasts to `shape`."""
    fitting("bias", np.shape(raw(bias)), shape)
    return bias if hasattr(bias, "dtype") else np.asarray(bias)


def _checked(q: Operand, k: Operand, v: Operand, scale: float | None
             ) -> tuple[tuple[int, int, int, int], float]:
    """Shape (B, H, N, M) of the scores and their scale, once the inputs are known to fit."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if np.ndim(raw(x)) != 4:
            raise ValueError(f"{name}: expected 4 axes (batch, heads, positions, features), "
                             f"got shape {np.shape(raw(x))}")
        if x.dtype.kind != "f":
            raise TypeError(f"{name}: expected floating numbers, got dtype {x.dtype}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k: expected batch {q.shape[0]} and {q.shape[3]} features as in q, "
                         f"got shape {k.shape}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"k: expected a number of heads that divides the {q.shape[1]} of q, "
                         f"got shape {k.shape}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v: expected shape {k.shape[:3]} before the features, as in k, got {v.shape}")
    shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return shape, 1 / math.sqrt(q.shape[3]) if scale is None else scale
