"""Multi-head attention: several attentions side by side, each on its own projection of the input.

    head_h = attention(x W_h^Q, y W_h^K, z W_h^V)        output = [head_1 … head_H] W^O

Vaswani et al. 2017, section 3.2.2; grouped heads: Ainslie et al. 2023, arXiv 2305.13245.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minattn.autograd import permute, reshape
from minattn.autograd.engine import Array, Operand, Tensor, raw
from minattn.kernels import dropout
from minattn.nn import HookPoint, Linear, Module

from .cache import Cached, KVCache
from .dot_product import attention, attention_scores, attention_weights, naive_attention, weighted_sum
from .masks import MaskMod, at_positions, both, whole
from .normalizers import Normalizer, normalizer_named
from .position import PositionEncoding


def naive_multihead(x: Array, y: Array, z: Array, state: Mapping[str, Array], n_heads: int, n_kv_heads: int,
                    mask_mod: MaskMod | None = None) -> Array:
    """Each head with its own rows of the weights, attending by loops; the results side by side; W^O.

    Queries come from x (B, N, d_query), keys from y (B, M, d_key), values from z (B, M, d_value); `state` is
    the ``state_dict()`` of a `MultiHeadAttention`.
    """

    def project(t: Array, name: str, first: int, count: int) -> Array:
        rows = slice(first * count, (first + 1) * count)
        out = t @ state[f"{name}.weight"][rows].T
        return out + state[f"{name}.bias"][rows] if f"{name}.bias" in state else out

    D, Dv = len(state["q_proj.weight"]) // n_heads, len(state["v_proj.weight"]) // n_kv_heads
    q = np.stack([project(x, "q_proj", h, D) for h in range(n_heads)], axis=1)
    k = np.stack([project(y, "k_proj", g, D) for g in range(n_kv_heads)], axis=1)
    v = np.stack([project(z, "v_proj", g, Dv) for g in range(n_kv_heads)], axis=1)
    heads = naive_attention(q, k, v, mask_mod=mask_mod)
    side_by_side = np.concatenate([heads[:, h] for h in range(n_heads)], axis=-1)
    return project(side_by_side, "out_proj", 0, len(state["out_proj.weight"]))


class MultiHeadAttention(Module):
    """Self- and cross-attention with H heads.

    Parameters
    ----------
    d_model : int
        Features of the output and, unless said otherwise, of the inputs.
    n_heads : int
        H, number of query heads.
    n_kv_heads : int, optional
        Hk, number of heads of keys and values, a divisor of H; H by default.
    d_head, d_v : int, optional
        Features of a head's queries and keys (d_model / H by default), and of its values (d_head by default).
    d_query, d_key, d_value : int, optional
        Features of the three inputs: d_model, then d_key as d_query, d_value as d_key by default.
    bias : bool
        Whether the four projections have one.
    position : PositionEncoding, optional
        `RoPE` or `ALiBi`; nothing by default.
    normalizer : str or callable
        See `attention`.
    dropout : float
        Probability with which a weight is dropped in training.
    rng : numpy.random.Generator
        Source of the initial weights and of dropout.

    Hook points
    -----------
    hook_q_pre, hook_k_pre : (B, H or Hk, N or M, D)
        Queries and new keys before the position encoding.
    hook_q, hook_k, hook_v : (B, H or Hk, N or M, D)
        Queries and new keys as they enter the scores (after the position encoding), and new values.
    hook_scores, hook_weights : (B, H, N, M)
        Before and after the normaliser; computed apart only while a hook listens.
    hook_heads : (B, H, N, d_v)
        Output of each head before W^O.
    """

    def __init__(self, d_model: int, n_heads: int, *, n_kv_heads: int | None = None,
                 d_head: int | None = None, d_v: int | None = None, d_query: int | None = None,
                 d_key: int | None = None, d_value: int | None = None, bias: bool = True,
                 position: PositionEncoding | None = None, normalizer: str | Normalizer = "softmax",
                 dropout: float = 0.0, rng: np.random.Generator) -> None:
        self.n_heads = whole("n_heads", n_heads)
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if self.n_kv_heads < 1 or n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads: expected a divisor of n_heads={n_heads}, got {self.n_kv_heads}")
        if d_head is None and d_model % n_heads:
            raise ValueError(f"d_model: expected a multiple of n_heads={n_heads} (or d_head), got {d_model}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        normalizer_named(normalizer)
        d_head = d_model // n_heads if d_head is None else d_head
        d_v = d_head if d_v is None else d_v
        d_query = d_model if d_query is None else d_query
        d_key = d_query if d_key is None else d_key
        d_value = d_key if d_value is None else d_value
        self.q_proj = Linear(d_query, n_heads * d_head, bias, rng=rng)
        self.k_proj = Linear(d_key, self.n_kv_heads * d_head, bias, rng=rng)
        self.v_proj = Linear(d_value, self.n_kv_heads * d_v, bias, rng=rng)
        self.out_proj = Linear(n_heads * d_v, d_model, bias, rng=rng)
        self.position = PositionEncoding() if position is None else position
        self.normalizer, self.dropout, self.rng = normalizer, dropout, rng
        self.hook_q_pre, self.hook_k_pre = HookPoint(), HookPoint()
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_scores, self.hook_weights, self.hook_heads = HookPoint(), HookPoint(), HookPoint()

    def forward(self, query: Operand, key: Operand | None = None, value: Operand | None = None, *,
                mask_mod: MaskMod | None = None, bias: Operand | None = None,
                cache: KVCache | None = None) -> Operand:
        """Output (B, N, d_model).

        Parameters
        ----------
        query : (B, N, d_query)
        key, value : (B, M, d_key) and (B, M, d_value), optional
            Key is the query by default (self-attention), value is the key.
        mask_mod : callable, optional
            ``mask_mod(b, h, i, j)`` with i and j absolute positions.
        bias : array, optional
            Added to the scores, broadcasting to (B, H, N, M).
        cache : KVCache, optional
            Self-attention: new keys and values are appended to it; query 0 stands at ``cache.length``.
            Cross-attention, with an `AppendCache`: the first call fills it, later ones read it, not `key`
            and `value`.
        """
        for name, x in (("query", query), ("key", key), ("value", value)):
            if x is not None and np.ndim(raw(x)) != 3:
                raise ValueError(f"{name}: expected 3 axes (batch, positions, features), "
                                 f"got shape {np.shape(raw(x))}")
        start = cache.length if cache is not None and key is None else 0
        here = np.arange(start, start + query.shape[1])
        q = self.hook_q_pre(self._heads(self.q_proj(query), self.n_heads))
        q = self.hook_q(self.position.rotate(q, here))
        if cache is not None and isinstance(q, Tensor) and q.requires_grad:
            raise RuntimeError("cache: keeps keys and values without gradients; call inside no_grad()")
        if cache is not None and key is not None and cache.length:
            k, v, there = cache.read()
        else:
            k, v, there = self._keys_and_values(query if key is None else key, value, start)
            if cache is not None:
                k, v, there = cache.append(k, v)
        score_mod = self.position.score_mod
        if cache is not None:
            mask_mod = _together(mask_mod, cache.mask_mod if key is None else None)
            mask_mod = mask_mod and at_positions(mask_mod, here, there)
            score_mod = score_mod and at_positions(score_mod, here, there)
        heads = self.hook_heads(self._attend(q, k, v, score_mod=score_mod, mask_mod=mask_mod, bias=bias))
        B, H, N, Dv = heads.shape
        return self.out_proj(reshape(permute(heads, 0, 2, 1, 3), (B, N, H * Dv)))

    def _keys_and_values(self, key: Operand, value: Operand | None, start: int) -> Cached:
        there = np.arange(start, start + key.shape[1])
        k = self.hook_k_pre(self._heads(self.k_proj(key), self.n_kv_heads))
        k = self.position.rotate(k, there)
        v = self._heads(self.v_proj(key if value is None else value), self.n_kv_heads)
        return Cached(self.hook_k(k), self.hook_v(v), there)

    def _attend(self, q: Operand, k: Operand, v: Operand, **how: Any) -> Operand:
        """Output of the heads; scores and weights are formed apart only when someone wants them."""
        drop = self.dropout if self.training else 0.0
        if not (drop or self.hook_scores._forward_hooks or self.hook_weights._forward_hooks):
            return attention(q, k, v, normalizer=self.normalizer, **how)
        scores = self.hook_scores(attention_scores(q, k, **how))
        weights = self.hook_weights(attention_weights(scores, self.normalizer))
        return weighted_sum(dropout(weights, drop, self.rng), v)

    @staticmethod
    def _heads(x: Operand, H: int) -> Operand:
        """(B, N, H·D) → (B, H, N, D)."""
        B, N, HD = x.shape
        return permute(reshape(x, (B, N, H, HD // H)), 0, 2, 1, 3)


def _together(*masks: MaskMod | None) -> MaskMod | None:
    given = [m for m in masks if m is not None]
    return both(*given) if given else None
