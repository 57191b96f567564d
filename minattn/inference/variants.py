"""A decoder changed as a whole: other heads of keys and values, rounded, smoothed or fewer weights.

Each function returns a new model, and leaves the one that it was given as it is. Heads are shared by the mean
of their projections (Ainslie et al. 2023, arXiv 2305.13245); to repeat them instead changes no result. What
SmoothQuant divides the inputs of a matrix by goes into the gain of the norm before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minattn import nn
from minattn.attention.masks import whole
from minattn.autograd import no_grad
from minattn.autograd.engine import Array, raw
from minattn.nn.init import Blank
from minattn.transformer import GPT, Config

from .compression import (
    Int8Linear,
    magnitude_prune,
    quantize_weights_int8,
    smoothquant_scales,
    wanda_prune,
)

PAPERS = (162,)

__all__ = ["Inputs", "calibrate", "convert_kv_heads", "prune_model", "quantize_model", "smooth_model"]


class Inputs(NamedTuple):
    """What a matrix reads, over calibration texts: ‖X_k‖₂ and max |X_k| of each feature, (K,)."""

    norms: np.ndarray
    largest: np.ndarray


def calibrate(model: GPT, ids: Array) -> dict[str, Inputs]:
    """The inputs of every linear layer in the blocks, by name, while the model reads ids (B, N)."""
    found: dict[str, Inputs] = {}

    def note(name: str) -> Any:
        def see(module: nn.Module, args: tuple, output: Any) -> None:
            rows = np.asarray(raw(args[0])).reshape(-1, args[0].shape[-1])
            found[name] = Inputs(np.linalg.norm(rows, axis=0), np.abs(rows).max(0))

        return see

    handles = [m.register_forward_hook(note(name)) for name, m in _linears(model).items()]
    try:
        with no_grad():
            model.hidden(np.asarray(ids))
    finally:
        for handle in handles:
            handle.remove()
    return found


def convert_kv_heads(model: GPT, kv_heads: int) -> GPT:
    """The model with so many heads of keys and values: fewer are means of neighbours, more are repeated.

    Parameters
    ----------
    model : GPT
    kv_heads : int
        A divisor of the model's number (9 → 3 → 1: MHA, GQA, MQA), or a multiple that divides its queries'.

    Returns
    -------
    GPT
        With more heads it computes what `model` does, with a larger cache. With fewer, it has not yet
        learned to live with them.

    Raises
    ------
    ValueError
        If the number is neither.
    """
    config = model.config
    old, new = config.n_kv_heads, whole("kv_heads", kv_heads)
    if (old % new and new % old) or config.heads % new:
        raise ValueError(f"kv_heads: expected a divisor of {old}, or a multiple that divides {config.heads}, "
                         f"got {new}")

    def converted(w: Array) -> np.ndarray:
        heads = w.reshape(old, -1, *w.shape[1:])
        if new > old:
            heads = np.repeat(heads, new // old, axis=0)
        else:
            heads = heads.reshape(new, old // new, *heads.shape[1:]).mean(1)
        return heads.reshape(-1, *w.shape[1:])

    state = _state(model)
    changed = {name: converted(w) for name, w in state.items() if ".k_proj." in name or ".v_proj." in name}
    return _copy(model, {**state, **changed}, replace(config, kv_heads=new))


def quantize_model(model: GPT, *, round_inputs: bool = False) -> GPT:
    """The model with all matrices in int8, the output's too, and the table of embeddings as it was.

    Parameters
    ----------
    model : GPT
    round_inputs : bool
        Also round what the blocks' matrices read, each token by itself.
    """
    out = _copy(model, _state(model))
    for name in [*_linears(out), "head"]:
        path, _, part = name.rpartition(".")
        owner = out.get_submodule(path)
        layer = getattr(owner, part)
        small = Int8Linear(quantize_weights_int8(layer.weight), layer.bias,
                           round_inputs=round_inputs and name != "head")
        setattr(owner, part, small)
    return out.eval()


def smooth_model(model: GPT, inputs: Mapping[str, Inputs], alpha: float = 0.5) -> GPT:
    """The model with outliers moved from what follows a norm into the matrices that read it.

    The same function of its input, up to rounding; see `smoothquant_scales`.

    Parameters
    ----------
    model : GPT
        Pre-norm.
    inputs : what `calibrate` found
    alpha : float
    """
    if not model.config.pre_norm:
        raise ValueError("model: expected pre-norm blocks, in which a norm comes before each matrix")
    state = _state(model)
    for n in range(model.config.layers):
        readers = {"norm1": [f"attn.{c}_proj" for c in "qkv"],
                   "norm2": [f"mlp.{name}" for name in ("gate", "up")[not model.config.gated :]]}
        for norm, names in readers.items():
            at = [f"blocks.{n}.{name}" for name in names]
            together = np.concatenate([state[f"{name}.weight"] for name in at])
            s = smoothquant_scales(inputs[at[0]].largest, together, alpha).astype(together.dtype)
            for name in at:
                state[f"{name}.weight"] = state[f"{name}.weight"] * s
            for part in ("weight", "bias"):
                if f"blocks.{n}.{norm}.{part}" in state:
                    state[f"blocks.{n}.{norm}.{part}"] = state[f"blocks.{n}.{norm}.{part}"] / s
    return _copy(model, state)


def prune_model(model: GPT, sparsity: float, inputs: Mapping[str, Inputs] | None = None) -> GPT:
    """The model without the share `sparsity` of each matrix in its blocks: by Wanda, or else by magnitude.

    Parameters
    ----------
    model : GPT
    sparsity : float
    inputs : what `calibrate` found, optional
        Wanda needs them; without, the smallest entries of each matrix go.
    """
    state = _state(model)
    for name in _linears(model):
        w, at = state[f"{name}.weight"], f"{name}.weight"
        state[at] = (magnitude_prune(w, sparsity) if inputs is None
                     else wanda_prune(w, inputs[name].norms, sparsity))
    return _copy(model, state)


def _linears(model: GPT) -> dict[str, nn.Linear]:
    """The linear layers in the blocks."""
    return {name: m for name, m in model.named_modules() if type(m) is nn.Linear and name != "head"}


def _state(model: GPT) -> dict[str, np.ndarray]:
    """The model's arrays themselves, by name."""
    plain = isinstance(model, GPT) and {type(model.head), *(type(b.attn.q_proj) for b in model.blocks)}
    if plain != {nn.Linear}:
        raise ValueError("model: expected a GPT with its matrices as floating numbers, not packed")
    return {name: raw(p) for name, p in model.named_parameters(unique=False)}


def _copy(model: GPT, state: Mapping[str, Array], config: Config | None = None) -> GPT:
    """A model with these arrays, which it shares with `model` where they are the same."""
    out = GPT(model.config if config is None else config, rng=Blank()).to(raw(model.head.weight).dtype)
    out.load_state_dict(state, assign=True)
    if hasattr(model, "tokenizer"):
        out.tokenizer = model.tokenizer
    return out.eval()
