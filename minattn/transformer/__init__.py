"""Transformers: blocks of attention and feed-forward layers, and the models made of them."""

from .block import Block
from .config import Config
from .count import Cost, count
from .decoder_only import RegularizedEncoderDecoder
from .encoder import Encoder, MaskedLM, mask_tokens
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
from .vit import ViT, patches

__all__ = ["GPT", "Block", "Config", "Cost", "DepthReport", "Encoder", "EncoderDecoder",
           "LayerwiseShortcutGPT", "MaskedLM", "PartialAttentionLM", "RegularizedEncoderDecoder", "Step",
           "TranslationStep", "ViT", "count", "depth_attention", "generate", "load", "mask_tokens", "patches",
           "source_attention_mass", "source_mass_bounds", "source_sensitivity"]
