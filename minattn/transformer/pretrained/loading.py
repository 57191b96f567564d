"""One function that loads any model: by name, or from a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .smollm2 import smollm2

STORED = ("float32", "float16", "q4")
"""How a loaded model's matrices may be kept: in full, in half precision, or in packed groups of 4 bits."""

PACKAGED: dict[str, Callable[[str], Any]] = {"smollm2": smollm2}
"""The models that `load` knows by name."""


def load(source: str | os.PathLike, weights: str = "float32") -> Any:
    """A pretrained model, ready for inference.

    Parameters
    ----------
    source : str or path
        A name in `PACKAGED`: "smollm2", SmolLM2-135M-Instruct, a Llama that gives logits (B, N, V) for ids
        (B, N). Or a folder with ``config.json`` and safetensors of a Llama, GPT-2, BERT or ViT.
    weights : {"float32", "float16", "q4"}
        How the matrices are kept; the others are computed with in float32 all the same.

    Returns
    -------
    Module
        In evaluation mode, with its tokenizer, if it has one, as ``model.tokenizer``.

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
    raise NotImplementedError
