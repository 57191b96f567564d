"""Inference: what runs whole models fast, counted and proved equal to the plain run."""

from .batching import (
    ContinuousBatcher,
    Iteration,
    continuous_iterations,
    padded_batch,
    selective_step,
    simulate_batching,
    static_iterations,
)
from .compression import (
    Int8Linear,
    Int8Weight,
    distillation_loss,
    int8_matmul,
    magnitude_prune,
    naive_distillation_loss,
    naive_quantize_int8,
    naive_wanda,
    quantize_weights_int8,
    smooth,
    smoothquant_scales,
    wanda_prune,
)
from .harness import InferenceHarness, Report, Switches
from .paging import BlockPool, PagedKVCache, rewind
from .roofline import Meter, RooflineModel, Work, block_weights, counted_llama, naive_greedy
from .speculative import (
    Speculated,
    acceptance_rate,
    naive_speculative_law,
    residual_law,
    speculative_decode,
    speculative_law,
    tokens_per_pass,
    verify,
)
from .variants import calibrate, convert_kv_heads, prune_model, quantize_model, smooth_model

__all__ = ["BlockPool", "ContinuousBatcher", "InferenceHarness", "Int8Linear", "Int8Weight", "Iteration",
           "Meter", "PagedKVCache", "Report", "RooflineModel", "Speculated", "Switches", "Work",
           "acceptance_rate", "block_weights", "calibrate", "continuous_iterations", "convert_kv_heads",
           "counted_llama", "distillation_loss", "int8_matmul", "magnitude_prune", "naive_distillation_loss",
           "naive_greedy", "naive_quantize_int8", "naive_speculative_law", "naive_wanda", "padded_batch",
           "prune_model", "quantize_model", "quantize_weights_int8", "residual_law", "rewind",
           "selective_step", "simulate_batching", "smooth", "smooth_model", "smoothquant_scales",
           "speculative_decode", "speculative_law", "static_iterations", "tokens_per_pass", "verify",
           "wanda_prune"]
