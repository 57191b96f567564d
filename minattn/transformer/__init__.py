"""Transformers: blocks of attention and feed-forward layers, and the models made of them."""

from .block import Block
from .config import Config
from .correction import adaptive_correction_sampler, linear_moves, mdlm_sampler
from .count import Cost, count
from .decoder_only import RegularizedEncoderDecoder
from .encoder import Encoder, MaskedLM, mask_tokens
from .exlm import ExLM, repeated_mlm_batch, rope_2d
from .generate import Piece, Step, TranslationStep, generate, stream
from .gpt import GPT
from .hybrid_noise import (
    epsilon_hybrid_loss,
    epsilon_hybrid_noise,
    gamma_hybrid_loss,
    gamma_hybrid_noise,
    score_entropy,
)
from .hyperschedule import Hyperschedule, hyperschedule_mask, training_mask
from .hyperschedule_lm import HyperscheduleLM, block_loss, block_times, scheduled_generate
from .inspect import at_head, last_row_attention, logit_lens
from .layerwise import LayerwiseShortcutGPT, depth_attention
from .layerwise_report import DepthReport
from .partial_attention import (
    PartialAttentionLM,
    source_attention_mass,
    source_mass_bounds,
    source_sensitivity,
)
from .pretrained import load
from .seq2seq import EncoderDecoder
from .shared_ffn import FFNSharing, OneWideTransformer, ffn_flops, ffn_parameter_count
from .similarity import linear_cka, local_neighborhood_similarity
from .state_graph import dag_alignment_loss, transition_matrix
from .vit import ViT, patches

__all__ = [
    "GPT",
    "Block",
    "Config",
    "Cost",
    "DepthReport",
    "Encoder",
    "EncoderDecoder",
    "ExLM",
    "FFNSharing",
    "Hyperschedule",
    "HyperscheduleLM",
    "LayerwiseShortcutGPT",
    "MaskedLM",
    "OneWideTransformer",
    "PartialAttentionLM",
    "Piece",
    "RegularizedEncoderDecoder",
    "Step",
    "TranslationStep",
    "ViT",
    "adaptive_correction_sampler",
    "at_head",
    "block_loss",
    "block_times",
    "count",
    "dag_alignment_loss",
    "depth_attention",
    "epsilon_hybrid_loss",
    "epsilon_hybrid_noise",
    "ffn_flops",
    "ffn_parameter_count",
    "gamma_hybrid_loss",
    "gamma_hybrid_noise",
    "generate",
    "hyperschedule_mask",
    "last_row_attention",
    "linear_cka",
    "linear_moves",
    "load",
    "local_neighborhood_similarity",
    "logit_lens",
    "mask_tokens",
    "mdlm_sampler",
    "patches",
    "repeated_mlm_batch",
    "rope_2d",
    "scheduled_generate",
    "score_entropy",
    "source_attention_mass",
    "source_mass_bounds",
    "source_sensitivity",
    "stream",
    "training_mask",
    "transition_matrix",
]
