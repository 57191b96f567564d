"""Attention that adds, deletes or subtracts: the weight of a pair is its likeness times its nearness.

    e_ij = α s q_i · k_j            likeness
    n_ij = −β s ‖q_i − k_j‖₁        nearness, at most 0
    m_ij = tanh(e_ij) · 2σ(n_ij)    in (−1, 1): a value is added, left out or subtracted
    o_i  = Σ_j m_ij v_j             nothing sums to one

2σ(n) is 1 where query and key are the same and falls to 0 with their distance, so two words that differ can
be left out however large their product is. Other forms of the second factor are σ(n), which only reaches ½,
and σ(n − mean n), which is ½ at the mean distance.

Li, Liang and Zhang, Comateformer, arXiv 2412.07220 (paper 134); the weights are those of compositional
de-attention (Tay et al. 2019). The gate between a softmax and these weights is ours.
"""

# mypy: disable-error-code="union-attr, call-arg, misc"

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import MultiHeadAttention, attention
from minattn.attention.dot_product import attention_scores, attention_weights
from minattn.attention.masks import MaskMod, mask_array
from minattn.autograd import cat, namespace, sigmoid, tanh, where
from minattn.autograd import sum as total
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import cross_entropy
from minattn.kernels.dual_affinity import l1_distance, naive_quasi_attention, quasi_attention
from minattn.transformer.config import Config
from minattn.transformer.embed import init_gpt2
from minattn.transformer.encoder import Encoder

PAPERS = (134,)

__all__ = ["PAPER_SHARES", "Comateformer", "CompositionalAttention", "CrossComposition",
           "compositional_weights", "dual_affinity", "naive_dual_affinity", "naive_quasi_attention"]

FORMS = ("double", "plain", "centred")

PAPER_SHARES = (0.5, 0.4, 0.3)
"""Shares of the heads that the paper replaces in the first three layers of BERT."""


# ---- the naive form


def naive_dual_affinity(a: Array, b: Array, alpha: float = 1.0, beta: float = 1.0, form: str = "double",
                        visible: Array | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Likeness, nearness and weights of two sequences of vectors (N, D) and (M, D), pair by pair."""
    N, M = len(a), len(b)
    E, near, weights = np.zeros((N, M)), np.zeros((N, M)), np.zeros((N, M))
    for i in range(N):
        for j in range(M):
            E[i, j] = alpha * sum(x * y for x, y in zip(a[i], b[j], strict=True))
            near[i, j] = -beta * sum(abs(x - y) for x, y in zip(a[i], b[j], strict=True))
        seen = [j for j in range(M) if visible is None or visible[i, j]]
        middle = sum(near[i, j] for j in seen) / len(seen) if seen and form == "centred" else 0.0
        for j in seen:
            second = 1 / (1 + math.exp(middle - near[i, j]))
            weights[i, j] = math.tanh(E[i, j]) * second * (2 if form == "double" else 1)
    return E, near, weights


# ---- the fast form


def dual_affinity(q: Operand, k: Operand, q_near: Operand | None = None, k_near: Operand | None = None, *,
                  alpha: float = 1.0, beta: float = 1.0, scale: float = 1.0) -> tuple[Operand, Operand]:
    """Likeness α s q_i · k_j and nearness −β s ‖q_i − k_j‖₁ of all pairs.

    Parameters
    ----------
    q, k : (…, N, D) and (…, M, D)
        F_E of the two sequences.
    q_near, k_near : (…, N, D') and (…, M, D'), optional
        F_N of them, whose distance is taken; q and k by default, as in an attention head.
    alpha, beta, scale : float

    Returns
    -------
    (E, N), each (…, N, M)

    Raises
    ------
    ValueError
        If features differ, or only one of `q_near` and `k_near` is given.

    References
    ----------
    Li, Liang and Zhang, arXiv 2412.07220 (paper 134).
    """
    if (q_near is None) != (k_near is None):
        raise ValueError("q_near, k_near: expected both or none of them")
    if q_near is None:
        q_near, k_near = q, k
    for name, x, y in (("k", q, k), ("k_near", q_near, k_near)):
        if np.ndim(raw(y)) != np.ndim(raw(x)) or y.shape[-1] != x.shape[-1] or y.shape[:-2] != x.shape[:-2]:
            raise ValueError(f"{name}: expected shape {(*x.shape[:-2], 'M', x.shape[-1])}, got {y.shape}")
    return alpha * scale * (q @ k.mT), -beta * scale * l1_distance(q_near, k_near)


def compositional_weights(E: Operand, near: Operand, form: str = "double", visible: Array | None = None
                          ) -> Operand:
    """tanh(E) times 2σ(N), σ(N) or σ(N − mean N).

    Parameters
    ----------
    E, near : (…, N, M)
        As `dual_affinity` returns them.
    form : {"double", "plain", "centred"}
        The mean is over the keys that a query sees, so that what it does not see cannot matter.
    visible : array of bool, optional
        Broadcasts to (…, N, M); hidden pairs have weight 0.

    Raises
    ------
    ValueError
        If there is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    xp = namespace(E)
    seen = xp.broadcast_to(xp.asarray(True) if visible is None else visible, E.shape)
    if form == "centred":
        count = xp.maximum(seen.sum(-1, keepdims=True), 1).astype(E.dtype)
        near = near - total(where(seen, near, 0), -1, keepdim=True) / count
    m = tanh(E) * sigmoid(near)
    return where(seen, 2 * m if form == "double" else m, 0)


class CompositionalAttention(MultiHeadAttention):
    """`MultiHeadAttention` in which a share of the heads has weights tanh(E) · 2σ(N) in place of a softmax.

    Parameters
    ----------
    d_model, n_heads : int
    share : float
        Of the heads, rounded; the last ones are replaced.
    form : {"double", "plain", "centred"}
    alpha, beta : float
        Factors of likeness and nearness.
    gate : bool
        Let each replaced head mix both outputs, o = g ⊙ o_soft + (1 − g) ⊙ o_comp with
        g = σ(W [o_soft; o_comp] + b), one W for all heads. Ours.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If `share` is not in [0, 1], there is no such form, or a bias of scores is given.

    References
    ----------
    Li, Liang and Zhang, arXiv 2412.07220 (paper 134).
    """

    def __init__(self, d_model: int, n_heads: int, *, share: float = 1.0, form: str = "double",
                 alpha: float = 1.0, beta: float = 1.0, gate: bool = False, rng: np.random.Generator) -> None:
        super().__init__(d_model, n_heads, rng=rng)
        if not 0 <= share <= 1:
            raise ValueError(f"share: expected a number in [0, 1], got {share!r}")
        if form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
        self.replaced = int(share * n_heads + 0.5)
        self.form, self.alpha, self.beta = form, alpha, beta
        self.gate = nn.Linear(2 * (d_model // n_heads), d_model // n_heads, rng=rng) if gate else None

    def _attend(self, q: Operand, k: Operand, v: Operand, *, mask_mod: MaskMod | None = None,
                bias: Operand | None = None, **how: Any) -> Operand:
        if bias is not None:
            raise ValueError("bias: expected None, likeness and nearness have none")
        S = self.n_heads - self.replaced
        visible = None if mask_mod is None else mask_array(mask_mod, *q.shape[:3], k.shape[2])
        if visible is not None and visible.shape[1] > 1:
            visible = visible[:, S:]
        if self.hook_weights._forward_hooks:
            return self._watched(q, k, v, S, mask_mod, visible)
        soft = attention(q, k, v, mask_mod=mask_mod) if self.gate else None
        own = self._compose(q[:, S:], k[:, S:], v[:, S:], visible) if self.replaced else v[:, S:]
        if soft is None:
            kept = attention(q[:, :S], k[:, :S], v[:, :S], mask_mod=mask_mod) if S else None
        else:
            kept, own = soft[:, :S], self._mixed(soft[:, S:], own)
        parts = [x for x, n in ((kept, S), (own, self.replaced)) if n]
        return parts[0] if len(parts) == 1 else cat(parts, 1)

    def _compose(self, q: Operand, k: Operand, v: Operand, visible: Array | None) -> Operand:
        """Heads with signed weights; in tiles unless the mean of a row has to be known first."""
        if self.form == "centred":
            return self._weights(q, k, visible) @ v
        return quasi_attention(q, k, v, alpha=self.alpha, beta=self.beta, double=self.form == "double",
                               visible=visible)

    def _weights(self, q: Operand, k: Operand, visible: Array | None) -> Operand:
        E, near = dual_affinity(q, k, alpha=self.alpha, beta=self.beta, scale=1 / math.sqrt(q.shape[-1]))
        return compositional_weights(E, near, self.form, visible)

    def _mixed(self, soft: Operand, own: Operand) -> Operand:
        g = sigmoid(self.gate(cat([soft, own], -1)))
        return g * soft + (1 - g) * own

    def _watched(self, q: Operand, k: Operand, v: Operand, S: int, mask_mod: MaskMod | None,
                 visible: Array | None) -> Operand:
        """The same with all weights formed, because somebody looks at them."""
        soft = attention_weights(attention_scores(q, k, mask_mod=mask_mod))
        own = self._weights(q[:, S:], k[:, S:], visible)
        heads = self.hook_weights(cat([soft[:, :S], own], 1)) @ v
        if self.gate is None:
            return heads
        return cat([heads[:, :S], self._mixed(soft[:, S:] @ v[:, S:], heads[:, S:])], 1)


class CrossComposition(nn.Module):
    """Two sentences read each other with one matrix M: Â = M B and B̂ = Mᵀ A.

    M comes from likeness F_E(a) · F_E(b) and nearness −‖F_N(a) − F_N(b)‖₁, with F_E and F_N linear.

    Parameters
    ----------
    d_model : int
    form : {"double", "plain", "centred"}
    alpha, beta : float
    rng : numpy.random.Generator
    """

    def __init__(self, d_model: int, *, form: str = "double", alpha: float = 1.0, beta: float = 1.0,
                 rng: np.random.Generator) -> None:
        self.likeness = nn.Linear(d_model, d_model, bias=False, rng=rng)
        self.nearness = nn.Linear(d_model, d_model, bias=False, rng=rng)
        self.form, self.alpha, self.beta = form, alpha, beta

    def forward(self, a: Operand, b: Operand, visible: Array | None = None) -> tuple[Operand, Operand]:
        """a (B, N, D) and b (B, M, D) → Â (B, N, D) and B̂ (B, M, D); `visible` (B, N, M) hides padding."""
        E, near = dual_affinity(self.likeness(a), self.likeness(b), self.nearness(a), self.nearness(b),
                                alpha=self.alpha, beta=self.beta)
        m = compositional_weights(E, near, self.form, visible)
        return m @ b, m.mT @ a


class Comateformer(nn.Module):
    """Encoder over "[CLS] a [SEP] b [SEP]" with compositional heads, and a classifier on top.

    Parameters
    ----------
    config : Config
    classes : int
    shares : sequence of float, optional
        Share of replaced heads of each layer; all of all layers by default. Layers beyond the sequence
        keep their softmax; see `PAPER_SHARES`.
    form, gate
        As in `CompositionalAttention`.
    pool : {"mean", "cls"}
        What the classifier reads: the mean over tokens, or token 0. In one layer [CLS] compares itself with
        words but no word with another, so it needs two layers or more.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If there are more shares than layers, or `pool` is neither.

    References
    ----------
    Li, Liang and Zhang, arXiv 2412.07220 (paper 134).
    """

    def __init__(self, config: Config, classes: int = 2, *, shares: Sequence[float] | None = None,
                 form: str = "double", gate: bool = False, pool: str = "mean",
                 rng: np.random.Generator) -> None:
        shares = [1.0] * config.layers if shares is None else list(shares)
        if len(shares) > config.layers:
            raise ValueError(f"shares: expected at most {config.layers}, one a layer, got {len(shares)}")
        if pool not in ("mean", "cls"):
            raise ValueError(f'pool: expected "mean" or "cls", got {pool!r}')
        self.encoder, self.pool = Encoder(config, rng=rng), pool
        for block, share in zip(self.encoder.blocks, shares, strict=False):
            block.attn = CompositionalAttention(config.d_model, config.heads, share=share, form=form,
                                                gate=gate, rng=rng)
        self.classify = nn.Linear(config.d_model, classes, rng=rng)
        init_gpt2(self, config.layers, rng)

    def forward(self, ids: Array, lengths: Array | None = None) -> Operand:
        """ids (B, N) → logits (B, classes); tokens from lengths[b] on are padding."""
        h = self.encoder(ids, lengths)
        if self.pool == "cls":
            return self.classify(h[:, 0])
        count = np.full(len(ids), h.shape[1]) if lengths is None else np.asarray(lengths)
        there = (np.arange(h.shape[1]) < count[:, None])[..., None]
        return self.classify(total(h * there.astype(h.dtype), 1) / count[:, None].astype(h.dtype))

    def loss(self, ids: Array, labels: Array, lengths: Array | None = None) -> Operand:
        """Mean cross-entropy of the labels (B,)."""
        return cross_entropy(self(ids, lengths), labels)
