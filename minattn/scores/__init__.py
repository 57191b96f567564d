"""Scores and normalisers: what a score may be, and whether the weights must be a distribution."""

from .comateformer import Comateformer, CompositionalAttention, CrossComposition, dual_affinity
from .deconstructed import DeconstructedAttention, HybridStack, attention_report, hybrid
from .limits import normalizer_jacobian, normalizers, selection_distance, separable_fraction
from .neural import NeuralAttention, neural_layers, neural_score
from .normalized import normalized_attention, normalized_attention_linear
from .normalized_blocks import NormalizedAttention, PoolingBlock, isolation_ratio, pooling_baselines
from .normalized_hull import in_convex_hull
from .pay_better import (
    EfficientAttention,
    OptimisedAttention,
    SuperAttention,
    attention_flop_count,
    attention_parameter_count,
)
from .rela import ReLAAttention, alignment_error_rate, null_rate, rms_norm_gated
from .relational import (
    DualAttention,
    RelationalAttention,
    SymbolicAttention,
    positional_symbols,
    relations,
    relative_symbols,
)
from .sigmoid import flash_sigmoid, jacobian_norm, sigmoid_attention
from .sigmoid_block import SigmoidMultiHeadAttention, SigmoidTransformerBlock

__all__ = [
    "Comateformer",
    "CompositionalAttention",
    "CrossComposition",
    "DeconstructedAttention",
    "DualAttention",
    "EfficientAttention",
    "HybridStack",
    "NeuralAttention",
    "NormalizedAttention",
    "OptimisedAttention",
    "PoolingBlock",
    "ReLAAttention",
    "RelationalAttention",
    "SigmoidMultiHeadAttention",
    "SigmoidTransformerBlock",
    "SuperAttention",
    "SymbolicAttention",
    "alignment_error_rate",
    "attention_flop_count",
    "attention_parameter_count",
    "attention_report",
    "dual_affinity",
    "flash_sigmoid",
    "hybrid",
    "in_convex_hull",
    "isolation_ratio",
    "jacobian_norm",
    "neural_layers",
    "neural_score",
    "normalized_attention",
    "normalized_attention_linear",
    "normalizer_jacobian",
    "normalizers",
    "null_rate",
    "pooling_baselines",
    "positional_symbols",
    "relations",
    "relative_symbols",
    "rms_norm_gated",
    "selection_distance",
    "separable_fraction",
    "sigmoid_attention",
]
