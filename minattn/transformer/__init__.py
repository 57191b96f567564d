"""Transformers: blocks of attention and feed-forward layers, and the models made of them."""

from .block import Block
from .config import Config
from .count import Cost, count
from .encoder import Encoder, MaskedLM, mask_tokens
from .generate import Step, TranslationStep, generate
from .gpt import GPT
from .seq2seq import EncoderDecoder
from .vit import ViT, patches

__all__ = ["GPT", "Block", "Config", "Cost", "Encoder", "EncoderDecoder", "MaskedLM", "Step",
           "TranslationStep", "ViT", "count", "generate", "mask_tokens", "patches"]
