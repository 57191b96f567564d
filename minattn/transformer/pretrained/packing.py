"""A model's matrices in fewer bits: linear layers and embeddings replaced by their packed forms, in place."""

from __future__ import annotations

from typing import Any

from minattn import nn
from minattn.autograd.engine import raw
from minattn.kernels.packed import KINDS, Packed, pack
from minattn.nn.packed import PackedEmbedding, PackedLinear

STORED = {"float32": None, "float16": ("float16", "float16"), "q4": ("q4_1", "q8_0")}
"""For each form of `pack_model`: the kind of matrices, and that of tables and what is tied to them."""


def pack_model(model: nn.Module, weights: str) -> nn.Module:
    """Replace the `Linear` and `Embedding` modules of `model` by packed ones; returns the model.

    Parameters
    ----------
    model : Module
        Tied matrices stay tied. What is left in float32: norms, biases, position tables, convolutions.
    weights : {"float32", "float16", "q4"}
        "float32" leaves everything as it is. "q4" keeps matrices in 4 bits and a scale (q4_1), and
        embeddings with what is tied to them in 8 (q8_0), as GGUF files do; rows of other than a multiple of
        32 weights in float16.

    Raises
    ------
    ValueError
        If `weights` is none of the three, or a weight cannot be held in that form.
    """
    if weights not in STORED:
        raise ValueError(f"weights: expected one of {', '.join(STORED)}, got {weights!r}")
    if STORED[weights] is None:
        return model
    layers: list[tuple[str, Any]] = [(name, module) for name, module in model.named_modules(unique=False)
                                     if type(module) in (nn.Linear, nn.Embedding)]
    tables = {id(m.weight) for _, m in layers if isinstance(m, nn.Embedding)}
    done: dict[int, Packed] = {}
    for name, layer in layers:
        key = id(layer.weight)
        if key not in done:
            done[key] = pack(raw(layer.weight), _kind(weights, key in tables, layer.weight.shape[1]))
        replace_layer(model, name, done[key])
    return model


def _kind(weights: str, table: bool, columns: int) -> str:
    kind = STORED[weights][table]  # type: ignore[index]
    return "float16" if columns % KINDS[kind][1] else kind


def replace_layer(model: nn.Module, name: str, weight: Packed) -> None:
    """Put a packed layer in the place of the `Linear` or `Embedding` module called `name`.

    Raises
    ------
    ValueError
        If its matrix has another shape.
    """
    path, _, attribute = name.rpartition(".")
    parent = model.get_submodule(path)
    old: Any = getattr(parent, attribute) if hasattr(parent, attribute) else parent.get_submodule(attribute)
    if old.weight.shape != weight.shape:
        raise ValueError(f"{name}: expected a matrix of shape {old.weight.shape}, got {weight.shape}")
    new: nn.Module
    if isinstance(old, nn.Embedding):
        new = PackedEmbedding(weight)
    else:
        new = PackedLinear(weight, getattr(old, "bias", None))
    if isinstance(parent, nn.ModuleList):
        parent._items[int(attribute)] = new
    else:
        setattr(parent, attribute, new)
    new.training = old.training
