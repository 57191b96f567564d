"""One function that loads any model: by name, or from a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minattn import nn

from ..encoder import MaskedLM
from .bert import bert, masked_bert
from .checkpoint import Checkpoint, CheckpointError, open_checkpoint
from .gpt2 import gpt2
from .llama import llama
from .minilm import minilm, sentence_encoder
from .packing import pack_model
from .smollm2 import smollm2
from .tokenizer_files import read_tokenizer
from .vit import vit

STORED = ("float32", "float16", "q4")
"""How a loaded model's matrices may be kept: in full, in half precision, or in packed groups of 4 bits."""

PACKAGED: dict[str, Callable[[str], Any]] = {
    "smollm2": smollm2, "minilm": lambda weights: packed(minilm(), weights)}
"""The models that `load` knows by name."""

FAMILIES: dict[str, Callable[[Checkpoint], nn.Module]] = {
    "LlamaForCausalLM": llama, "GPT2LMHeadModel": gpt2, "BertModel": bert, "BertForMaskedLM": masked_bert,
    "BertForPreTraining": masked_bert, "ViTModel": vit, "ViTForImageClassification": vit}
"""The architectures that `load` knows in folders, by the name that ``config.json`` has for them."""


def load(source: str | os.PathLike, weights: str = "float32") -> Any:
    """A pretrained model, ready for inference.

    Parameters
    ----------
    source : str or path
        A name in `PACKAGED`: "smollm2", SmolLM2-135M-Instruct, a Llama that gives logits (B, N, V) for ids
        (B, N); or "minilm", all-MiniLM-L6-v2, a `SentenceEncoder`. Or a folder: a Llama, GPT-2, BERT or ViT
        (see `FAMILIES`) with ``config.json`` and safetensors, or with ``modules.json`` a sentence encoder.
    weights : {"float32", "float16", "q4"}
        How the matrices are kept; the others are computed with in float32 all the same. Of float32 in
        safetensors nothing is copied: the file is mapped into memory, and must not change while it is used.

    Returns
    -------
    Module
        In evaluation mode, with its tokenizer, if there is a ``tokenizer.json``, as ``model.tokenizer``.

    Raises
    ------
    ValueError
        If there is no such model, or `weights` is not one of the three.
    CheckpointError
        If a file is missing, damaged, or of another architecture.
    minattn.data.FetchError
        If a packaged model is neither cached nor to be had through pip.

    Examples
    --------
    >>> model = load("smollm2")
    >>> ids = model.tokenizer.encode("To be, or not to be")
    >>> model([ids]).shape
    (1, 8, 49152)
    """
    if weights not in STORED:
        raise ValueError(f"weights: expected one of {', '.join(STORED)}, got {weights!r}")
    if str(source) in PACKAGED:
        return PACKAGED[str(source)](weights)
    if not Path(source).is_dir():
        raise ValueError(f"source: expected one of {', '.join(PACKAGED)}, or a folder with a checkpoint, "
                         f"got {str(source)!r}")
    return packed(from_folder(Path(source)), weights)


def from_folder(folder: Path) -> nn.Module:
    """The model in a folder, in float32."""
    if (folder / "modules.json").is_file():
        return sentence_encoder(folder)
    checkpoint = open_checkpoint(folder)
    named = checkpoint.settings.get("architectures", list, [])
    known = [name for name in named if name in FAMILIES]
    if not known:
        raise CheckpointError(f"{checkpoint.settings.path}: architectures: expected one of "
                              f"{', '.join(FAMILIES)}, got {named}")
    try:
        model: Any = FAMILIES[known[0]](checkpoint)
    except CheckpointError:
        raise
    except ValueError as error:  # of a Config that no model can have
        raise CheckpointError(f"{checkpoint.settings.path}: {error}") from error
    if (folder / "tokenizer.json").is_file():
        model.tokenizer = read_tokenizer(folder, checkpoint.settings)
    return model


def packed(model: nn.Module, weights: str) -> nn.Module:
    """The model with its matrices kept as `weights` says."""
    if isinstance(model, MaskedLM):  # whose embedding is a matrix of its last layer, too
        pack_model(model.encoder.blocks, weights)
        return model
    return pack_model(model, weights)
