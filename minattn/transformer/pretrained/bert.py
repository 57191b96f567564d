"""BERT as transformers' `BertModel` and `BertForMaskedLM` save it.

Devlin et al. 2019, arXiv 1810.04805. What turns the first token into a guess at the next sentence (the pooler
and its layer) is left out.
"""

from __future__ import annotations

import re

from minattn.nn.init import Blank

from ..config import Config
from ..encoder import Encoder, MaskedLM
from .checkpoint import Checkpoint, Settings, Source, fill, their_name
from .gpt2 import ACTIVATIONS

MODULES = {"embed.token": "embeddings.word_embeddings", "embed.position": "embeddings.position_embeddings",
           "embed.segment": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
           "attn.q_proj": "attention.self.query", "attn.k_proj": "attention.self.key",
           "attn.v_proj": "attention.self.value", "attn.out_proj": "attention.output.dense",
           "norm1": "attention.output.LayerNorm", "mlp.up": "intermediate.dense", "mlp.down": "output.dense",
           "norm2": "output.LayerNorm"}
"""Our names of a BERT's modules, and transformers'."""

HEAD = {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias"}
"""The same for the layers that guess a masked token."""

LEFT_OUT = re.compile(r"pooler\..*|cls\.seq_relationship\..*|cls\.predictions\.decoder\..*"
                      r"|embeddings\.(position_ids|token_type_ids)")


def bert(checkpoint: Checkpoint) -> Encoder:
    """An `Encoder` with the weights of a BERT."""
    encoder = Encoder(bert_config(checkpoint.settings), rng=Blank())
    return fill(encoder, _renamed(checkpoint), _of_encoder,
                lambda name: bool(LEFT_OUT.fullmatch(name)) or name.startswith("cls."))


def masked_bert(checkpoint: Checkpoint) -> MaskedLM:
    """A `MaskedLM` with the weights of a BERT that guesses masked tokens."""
    checkpoint.settings.require("hidden_act", "gelu")
    checkpoint.settings.require("tie_word_embeddings", True)

    def find(ours: str) -> Source:
        if ours.startswith("encoder."):
            return _of_encoder(ours.removeprefix("encoder."))
        return Source(their_name(ours, HEAD, ""))

    model = MaskedLM(bert_config(checkpoint.settings), rng=Blank())
    return fill(model, _renamed(checkpoint), find, lambda name: bool(LEFT_OUT.fullmatch(name)))


def _of_encoder(ours: str) -> Source:
    return Source(their_name(ours, MODULES, "encoder.layer.{}."))


def _renamed(checkpoint: Checkpoint) -> Checkpoint:
    """The trunk's names without "bert.", and those of norms as newer versions have them."""
    trunk = checkpoint.below("bert.")
    arrays = {name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): stored
              for name, stored in trunk.arrays.items()}
    return Checkpoint(trunk.folder, trunk.settings, arrays)


def bert_config(settings: Settings) -> Config:
    """The shape of a BERT, from its ``config.json``."""
    settings.require("position_embedding_type", "absolute")
    settings.require("is_decoder", False)
    settings.require("add_cross_attention", False)
    return Config(
        vocab=settings.get("vocab_size", int), context=settings.get("max_position_embeddings", int),
        layers=settings.get("num_hidden_layers", int), heads=settings.get("num_attention_heads", int),
        d_model=settings.get("hidden_size", int), d_mlp=settings.get("intermediate_size", int),
        norm_eps=settings.get("layer_norm_eps", float, 1e-12), pre_norm=False,
        activation=settings.choose("hidden_act", ACTIVATIONS, "gelu"),
        segments=settings.get("type_vocab_size", int, 2))
