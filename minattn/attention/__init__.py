"""Attention: one function, the masks, normalisers and positions that it takes, heads, and the cache."""

from .dot_product import (
    attention, attention_scores, attention_weights, naive_attention, softmax_attention, weighted_sum,
)
from .masks import (
    at_positions, block, both, causal, document, either, mask_array, negate, padding, prefix, shifted, sliding_window,
)
from .merge import merge, naive_merge
from .normalizers import NORMALIZERS, entmax15, sparsemax

__all__ = [
    "NORMALIZERS", "at_positions", "attention", "attention_scores", "attention_weights", "block", "both", "causal",
    "document", "either", "entmax15", "mask_array", "merge", "naive_attention", "naive_merge", "negate", "padding",
    "prefix", "shifted", "sliding_window", "softmax_attention", "sparsemax", "weighted_sum",
]
