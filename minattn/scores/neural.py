"""Neural attention: the score of a pair is a small network of query and key, in the place of their product.

    s_ij = w_aᵀ relu(W_h [q_i ; k_j] + b_h) + b_a        a_i = softmax(s_i)        o_i = Σ_j a_ij v_j

for each head with W_h (d_h, 2 d'); q and k may first be projected down to d' features. There is no 1/√d,
and b_a, the same for all scores, cancels in the softmax. The first layer is linear, so it splits,

    W_h [q ; k] + b_h = (W_q q + b_h) + W_k k = a_i + c_j,

and only the sum and what follows are of pairs: O(N² d_h) operations, and in tiles O(N d_h) memory
(`minattn.kernels.neural_score`).

DiGiugno and Mahmood, Neural Attention: A Novel Mechanism for Enhanced Expressive Power in Transformer Models,
arXiv 2502.17206 (paper 3). The split and the tiles are ours.
"""

# `_attend` names the arguments that it treats apart; shapes come as tuples of any length.
# mypy: disable-error-code="attr-defined, override, misc"

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import MultiHeadAttention, attention_weights, weighted_sum
from minattn.attention.masks import MaskMod, indices, mask_array, whole
from minattn.autograd import namespace, relu, reshape, tanh, where
from minattn.autograd import sum as total
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import dropout
from minattn.kernels.neural_score import neural_attention

PAPERS = (3,)

__all__ = ["NeuralAttention", "naive_neural_score", "neural_layers", "neural_score", "split_layer"]

ACTIVATIONS = {"relu": relu, "tanh": tanh}


def naive_neural_score(q: Array, k: Array, W_h: Array, b_h: Array, w_a: Array, b_a: Array | None = None,
                       activation: str = "relu") -> np.ndarray:
    """`neural_score` as the paper writes it: query and key joined, one call of the network for each pair.

    Parameters
    ----------
    q, k : (B, H, N, D) and (B, H, M, D)
        Real or complex, so that derivatives can be taken by complex steps.
    """
    (B, H, N, _), M = q.shape, k.shape[2]
    b_a = np.zeros(H) if b_a is None else b_a
    scores = np.zeros((B, H, N, M), np.result_type(q, k, W_h, b_h, w_a, b_a))
    for b, h, i, j in np.ndindex(B, H, N, M):
        pair = [*q[b, h, i], *k[b, h, j]]
        for unit, bias, out in zip(W_h[h], b_h[h], w_a[h], strict=True):
            z = bias + sum(weight * x for weight, x in zip(unit, pair, strict=True))
            scores[b, h, i, j] += out * (np.tanh(z) if activation == "tanh" else z if z.real > 0 else 0)
        scores[b, h, i, j] += b_a[h]
    return scores


def split_layer(q: Operand, k: Operand, W_h: Operand, b_h: Operand) -> tuple[Operand, Operand]:
    """What the hidden layer makes of queries and keys apart: a = W_q q + b_h and c = W_k k, W_h = [W_q, W_k].

    Parameters
    ----------
    q, k : (B, H, N, D) and (B, H, M, D)
    W_h : (H, F, 2 D)
    b_h : (H, F)

    Returns
    -------
    a, c : (B, H, N, F) and (B, H, M, F)

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    for name, x in (("q", q), ("k", k)):
        if np.ndim(raw(x)) != 4:
            raise ValueError(f"{name}: expected 4 axes (batch, heads, positions, features), "
                             f"got shape {np.shape(raw(x))}")
    (B, H, _, D), F = q.shape, np.shape(raw(b_h))[-1]
    wanted = {"k": (k, (B, H, k.shape[2], D)), "W_h": (W_h, (H, F, 2 * D)), "b_h": (b_h, (H, F))}
    for name, (x, shape) in wanted.items():
        if np.shape(raw(x)) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {np.shape(raw(x))}")
    return q @ W_h[:, :, :D].mT + reshape(b_h, (H, 1, F)), k @ W_h[:, :, D:].mT


def neural_score(q: Operand, k: Operand, W_h: Operand, b_h: Operand, w_a: Operand, b_a: Operand | None = None,
                 activation: str = "relu") -> Operand:
    """Scores w_aᵀ φ(W_h [q_i ; k_j] + b_h) + b_a of all pairs, in split form; O(N M F) memory.

    Parameters
    ----------
    q, k : (B, H, N, D) and (B, H, M, D)
    W_h, b_h, w_a : (H, F, 2 D), (H, F) and (H, F)
        The network of each head.
    b_a : (H,), optional
        Cancels in a softmax.
    activation : {"relu", "tanh"}
        φ; with tanh this is additive attention (Bahdanau et al. 2015).

    Returns
    -------
    scores : (B, H, N, M)

    Raises
    ------
    ValueError
        If shapes do not fit or the activation is unknown.

    References
    ----------
    DiGiugno and Mahmood, arXiv 2502.17206 (paper 3).
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    a, c = split_layer(q, k, W_h, b_h)
    if np.shape(raw(w_a)) != np.shape(raw(b_h)):
        raise ValueError(f"w_a: expected shape {np.shape(raw(b_h))}, as b_h, got {np.shape(raw(w_a))}")
    (B, H, N, F), M = a.shape, c.shape[2]
    hidden = ACTIVATIONS[activation](reshape(a, (B, H, N, 1, F)) + reshape(c, (B, H, 1, M, F)))
    scores = total(hidden * reshape(w_a, (H, 1, 1, F)), -1)
    return scores if b_a is None else scores + reshape(b_a, (H, 1, 1))


class NeuralAttention(MultiHeadAttention):
    """`MultiHeadAttention` whose scores are a network of query and key, one for each head.

    Without a mask, or with the causal one, it runs in tiles and never holds the scores; with other masks,
    dropout or a hook on scores or weights, scores of all pairs are formed.

    Parameters
    ----------
    d_model, n_heads : int
    d_hidden : int
        F = d_h, hidden units.
    d_down : int, optional
        d', to which each head's queries and keys are projected down before they meet; by default they are
        not.
    rng : numpy.random.Generator
    **how
        Further arguments of `MultiHeadAttention`; keys have as many heads as queries.

    Attributes
    ----------
    down_q, down_k : Parameter (H, d', d_head)
        With `d_down` alone.
    W_h, b_h, w_a : Parameter (H, F, 2 d'), (H, F), (H, F)
        Uniform on ±1/√fan_in at first, as linear layers.

    Raises
    ------
    ValueError
        If a size is not a whole number ≥ 1.

    References
    ----------
    DiGiugno and Mahmood, arXiv 2502.17206 (paper 3).
    """

    def __init__(self, d_model: int, n_heads: int, *, d_hidden: int = 16, d_down: int | None = None,
                 rng: np.random.Generator, **how: Any) -> None:
        super().__init__(d_model, n_heads, rng=rng, **how)
        F, E = whole("d_hidden", d_hidden), self.q_proj.d_out // n_heads
        d = E if d_down is None else whole("d_down", d_down)

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter(nn.init.uniform(shape, 1 / math.sqrt(fan_in), rng=rng))

        if d_down is not None:
            self.down_q, self.down_k = (uniform(n_heads, d, E, fan_in=E) for _ in range(2))
        self.W_h, self.b_h = uniform(n_heads, F, 2 * d, fan_in=2 * d), uniform(n_heads, F, fan_in=2 * d)
        self.w_a, self.d_down = uniform(n_heads, F, fan_in=F), d_down

    def scores(self, q: Operand, k: Operand) -> Operand:
        """Scores (B, H, N, M) of a head's queries and keys, neither masked nor changed."""
        return neural_score(*self._down(q, k), self.W_h, self.b_h, self.w_a)

    def _down(self, q: Operand, k: Operand) -> tuple[Operand, Operand]:
        return (q, k) if self.d_down is None else (q @ self.down_q.mT, k @ self.down_k.mT)

    def _attend(self, q: Operand, k: Operand, v: Operand, *, score_mod: Any = None,
                mask_mod: MaskMod | None = None, bias: Operand | None = None) -> Operand:
        drop = self.dropout if self.training else 0.0
        watched = self.hook_scores._forward_hooks or self.hook_weights._forward_hooks
        causal = mask_mod is not None and getattr(mask_mod, "diagonal", None) == k.shape[2] - q.shape[2]
        if (score_mod is None and bias is None and (causal or mask_mod is None) and not (drop or watched)
                and self.normalizer == "softmax"):
            a, c = split_layer(*self._down(q, k), self.W_h, self.b_h)
            return neural_attention(a, c, self.w_a, v, causal=causal)
        scores, shape = self.scores(q, k), (*q.shape[:3], k.shape[2])
        if score_mod is not None:
            scores = score_mod(scores, *indices(*shape, xp=namespace(q)))
        if bias is not None:
            scores = scores + bias
        if mask_mod is not None:
            scores = where(mask_array(mask_mod, *shape, xp=namespace(q)), scores, -np.inf)
        weights = self.hook_weights(attention_weights(self.hook_scores(scores), self.normalizer))
        return weighted_sum(dropout(weights, drop, self.rng), v)


def neural_layers(model: nn.Module, layers: str = "first", *, rng: np.random.Generator, **sizes: Any
                  ) -> nn.Module:
    """The model, with `NeuralAttention` in its first block, or in all, and dot products in the others.

    Parameters
    ----------
    model : Module
        With `blocks` that have an attention `attn`: `GPT`, `Encoder`, `ViT`. It is changed in place; the
        projections of queries, keys and values keep their weights.
    layers : {"first", "all"}
        The first alone in the paper, for it costs more.
    rng : numpy.random.Generator
        Source of the networks' initial weights.
    **sizes
        `d_hidden`, `d_down`.

    Raises
    ------
    ValueError
        If `layers` is neither.

    References
    ----------
    DiGiugno and Mahmood, arXiv 2502.17206 (paper 3).
    """
    if layers not in ("first", "all"):
        raise ValueError(f"layers: expected 'first' or 'all', got {layers!r}")
    for block in list(model.blocks)[: 1 if layers == "first" else None]:
        own = block.attn
        block.attn = NeuralAttention(own.out_proj.d_out, own.n_heads, bias=own.q_proj.bias is not None,
                                     position=own.position, dropout=own.dropout, rng=rng, **sizes)
        block.attn.load_state_dict(own.state_dict(), strict=False)
    return model
