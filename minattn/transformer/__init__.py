"""Transformers: blocks of attention and feed-forward layers, and the models made of them."""

from .block import Block
from .config import Config
from .count import Cost, count
from .decoder_only import RegularizedEncoderDecoder
from .encoder import Encoder, MaskedLM, mask_tokens
from .exlm import ExLM, repeated_mlm_batch, rope_2d
from .generate import Step, TranslationStep, generate
from .gpt import GPT
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
    "LayerwiseShortcutGPT",
    "MaskedLM",
    "PartialAttentionLM",
    "RegularizedEncoderDecoder",
    "Step",
    "TranslationStep",
    "ViT",
    "count",
    "dag_alignment_loss",
    "depth_attention",
    "generate",
    "load",
    "mask_tokens",
    "patches",
    "repeated_mlm_batch",
    "rope_2d",
    "source_attention_mass",
    "source_mass_bounds",
    "source_sensitivity",
    "transition_matrix",
]
