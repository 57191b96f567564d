"""Scores and normalisers: what a score may be, and whether the weights must be a distribution."""

from .pay_better import (
    EfficientAttention,
    OptimisedAttention,
    SuperAttention,
    attention_flop_count,
    attention_parameter_count,
)

__all__ = ["EfficientAttention", "OptimisedAttention", "SuperAttention", "attention_flop_count",
           "attention_parameter_count"]
