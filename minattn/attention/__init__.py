"""Attention: one function, the masks, normalisers and positions that it takes, heads, and the cache."""

from .cache import AppendCache, Cached, KVCache, RingCache, WindowCache
from .dot_product import (
    attention,
    attention_scores,
    attention_weights,
    naive_attention,
    weighted_sum,
)
from .masks import (
    at_positions,
    block,
    both,
    causal,
    document,
    either,
    mask_array,
    negate,
    padding,
    prefix,
    shifted,
    sliding_window,
)
from .merge import merge, naive_merge
from .multihead import MultiHeadAttention, naive_multihead
from .normalizers import NORMALIZERS, entmax15, sparsemax
from .position import (
    ALiBi,
    Learned,
    PositionEncoding,
    RoPE,
    Sinusoidal,
    alibi_slopes,
    like,
    naive_rope,
    sinusoidal,
)

__all__ = [
    "NORMALIZERS",
    "ALiBi",
    "AppendCache",
    "Cached",
    "KVCache",
    "Learned",
    "MultiHeadAttention",
    "PositionEncoding",
    "RingCache",
    "RoPE",
    "Sinusoidal",
    "WindowCache",
    "alibi_slopes",
    "at_positions",
    "attention",
    "attention_scores",
    "attention_weights",
    "block",
    "both",
    "causal",
    "document",
    "either",
    "entmax15",
    "like",
    "mask_array",
    "merge",
    "naive_attention",
    "naive_merge",
    "naive_multihead",
    "naive_rope",
    "negate",
    "padding",
    "prefix",
    "shifted",
    "sinusoidal",
    "sliding_window",
    "sparsemax",
    "weighted_sum",
]
