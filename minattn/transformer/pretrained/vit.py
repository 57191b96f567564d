"""Vision transformer as transformers' `ViTModel` and `ViTForImageClassification` save it.

Dosovitskiy et al. 2021, arXiv 2010.11929. Its first layer is a convolution whose windows do not overlap: a
linear layer on patches. The pooler of a `ViTModel` is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.nn.init import Blank

from ..config import Config
from ..vit import ViT
from .checkpoint import Checkpoint, CheckpointError, Settings, Source, fill, their_name
from .gpt2 import ACTIVATIONS

MODULES = {"project": "embeddings.patch_embeddings.projection", "class_token": "embeddings.cls_token",
           "position.weight": "embeddings.position_embeddings", "norm": "layernorm", "head": "classifier",
           "norm1": "layernorm_before", "norm2": "layernorm_after",
           "attn.q_proj": "attention.attention.query", "attn.k_proj": "attention.attention.key",
           "attn.v_proj": "attention.attention.value", "attn.out_proj": "attention.output.dense",
           "mlp.up": "intermediate.dense", "mlp.down": "output.dense"}
"""Our names of a ViT's modules, and transformers'."""


def vit(checkpoint: Checkpoint) -> ViT:
    """A `ViT` with the weights of one, with a head if the checkpoint has one."""
    settings = checkpoint.settings
    stored = checkpoint.arrays.get("classifier.weight")
    config = vit_config(settings, classes=stored.shape[0] if stored and stored.shape else None)
    model = ViT(config, settings.get("patch_size", int, 16), settings.get("num_channels", int, 3),
                head=stored is not None, rng=Blank())
    biased = settings.get("qkv_bias", bool, True)

    def find(ours: str) -> Source | None:
        theirs = their_name(ours, MODULES, "encoder.layer.{}.")
        if ours.endswith(".bias") and "attention.attention" in theirs and not biased:
            return None
        if ours == "project.weight":  # (D, C, p, p): a row of the linear layer for each feature
            return Source(theirs, lambda values: values.reshape(len(values), -1))
        if ours == "class_token":  # (1, 1, D)
            return Source(theirs, np.ravel)
        if ours == "position.weight":  # (1, N, D)
            return Source(theirs, lambda values: values.reshape(-1, values.shape[-1]))
        return Source(theirs)

    return fill(model, checkpoint.below("vit."), find, lambda name: name.startswith("pooler."))


def vit_config(settings: Settings, classes: int | None) -> Config:
    """The shape of a ViT, from its ``config.json``; without a head, ``vocab`` is the number of features."""
    width = settings.get("hidden_size", int)
    rows, columns = (_side(settings, axis) for axis in range(2))
    return Config(
        vocab=width if classes is None else classes, context=rows * columns + 1,
        layers=settings.get("num_hidden_layers", int), heads=settings.get("num_attention_heads", int),
        d_model=width, d_mlp=settings.get("intermediate_size", int),
        norm_eps=settings.get("layer_norm_eps", float, 1e-12),
        activation=settings.choose("hidden_act", ACTIVATIONS, "gelu"))


def _side(settings: Settings, axis: int) -> int:
    """Patches along one side of the image, whose size is a number or (height, width)."""
    size: Any = settings.values.get("image_size", 224)
    patch = settings.get("patch_size", int, 16)
    side = size[axis] if isinstance(size, list) and len(size) == 2 else size
    if type(side) is not int or patch < 1 or side < patch:
        raise CheckpointError(f"{settings.path}: image_size: expected pixels of at least a patch of {patch}, "
                              f"or a height and a width, got {size!r}")
    return side // patch
