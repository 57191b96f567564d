"""GPT-2 as transformers' `GPT2LMHeadModel` saves it.

Its linear layers are `Conv1D`: their weights stand as (in, out), and one gives queries, keys and values.
Radford et al. 2019.
"""

from __future__ import annotations

import re

import numpy as np

from minattn.nn.init import Blank

from ..config import Config
from ..gpt import GPT
from .checkpoint import Checkpoint, Settings, Source, fill, their_name

MODULES = {"embed.token": "wte", "embed.position": "wpe", "norm": "ln_f", "head": "lm_head", "norm1": "ln_1",
           "norm2": "ln_2", "attn.q_proj": "attn.c_attn", "attn.k_proj": "attn.c_attn",
           "attn.v_proj": "attn.c_attn", "attn.out_proj": "attn.c_proj", "mlp.up": "mlp.c_fc",
           "mlp.down": "mlp.c_proj"}
"""Our names of a GPT-2's modules, and transformers'."""

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu",
               "silu": "silu"}
"""Transformers' names of activations, and ours."""


def gpt2(checkpoint: Checkpoint) -> GPT:
    """A `GPT` with the weights of a GPT-2."""
    config = gpt2_config(checkpoint.settings)

    def find(ours: str) -> Source:
        theirs = their_name(ours, MODULES, "h.{}.")
        if "c_attn" in theirs:
            third = ("q_proj", "k_proj", "v_proj").index(ours.split(".")[3])
            return Source(theirs, lambda values: np.array_split(values.T, 3)[third])
        if re.search(r"\.c_(fc|proj)\.", theirs):
            return Source(theirs, lambda values: values.T)
        return Source(theirs)

    def ignored(name: str) -> bool:  # masks, which old versions saved; and a tied output layer
        return bool(re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name)) or (
            config.tied and name == "lm_head.weight")

    return fill(GPT(config, rng=Blank()), checkpoint.below("transformer."), find, ignored)


def gpt2_config(settings: Settings) -> Config:
    """The shape of a GPT-2, from its ``config.json``."""
    settings.require("scale_attn_weights", True)
    settings.require("scale_attn_by_inverse_layer_idx", False)
    settings.require("add_cross_attention", False)
    return Config(
        vocab=settings.get("vocab_size", int), context=settings.get("n_positions", int),
        layers=settings.get("n_layer", int), heads=settings.get("n_head", int),
        d_model=settings.get("n_embd", int), d_mlp=settings.get("n_inner", int, None),
        norm_eps=settings.get("layer_norm_epsilon", float, 1e-5),
        activation=settings.choose("activation_function", ACTIVATIONS, "gelu_new"),
        tied=settings.get("tie_word_embeddings", bool, True))
