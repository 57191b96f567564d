"""Llama: rotary positions, RMS norms and SwiGLU, as transformers' `LlamaForCausalLM` saves it.

Touvron et al. 2023, arXiv 2302.13971; grouped heads from Llama 2 on, slowed-down angles from Llama 3.1 on.
"""

from __future__ import annotations

from minattn.attention.position import RoPEScaling
from minattn.nn.init import Blank

from ..config import Config
from ..gpt import GPT
from .checkpoint import Checkpoint, CheckpointError, Settings, Source, fill, their_name

MODULES = {"embed.token": "embed_tokens", "norm": "norm", "head": "lm_head", "norm1": "input_layernorm",
           "norm2": "post_attention_layernorm", "attn.q_proj": "self_attn.q_proj",
           "attn.k_proj": "self_attn.k_proj", "attn.v_proj": "self_attn.v_proj",
           "attn.out_proj": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
           "mlp.down": "mlp.down_proj"}
"""Our names of a Llama's modules, and transformers'."""

GATED = {"silu": "swiglu", "gelu": "geglu", "relu": "reglu"}


def llama(checkpoint: Checkpoint) -> GPT:
    """A `GPT` with the weights of a Llama; biases that only some of its layers have are 0 in the others."""
    settings = checkpoint.settings
    biased = {part: settings.get(f"{name}_bias", bool, False)
              for part, name in (("attn", "attention"), ("mlp", "mlp"))}
    config = llama_config(settings, any(biased.values()))

    def find(ours: str) -> Source | None:
        if ours.endswith(".bias") and not biased[ours.split(".")[2]]:
            return None
        return Source(their_name(ours, MODULES, "layers.{}."))

    def ignored(name: str) -> bool:  # angles, which old versions saved; and a tied output layer
        return name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")

    return fill(GPT(config, rng=Blank()), checkpoint.below("model."), find, ignored)


def llama_config(settings: Settings, bias: bool) -> Config:
    """The shape of a Llama, from its ``config.json``."""
    base, scaling = _rotary(settings)
    return Config(
        vocab=settings.get("vocab_size", int), context=settings.get("max_position_embeddings", int, 2048),
        layers=settings.get("num_hidden_layers", int), heads=settings.get("num_attention_heads", int),
        kv_heads=settings.get("num_key_value_heads", int, None), d_model=settings.get("hidden_size", int),
        head_size=settings.get("head_dim", int, None), d_mlp=settings.get("intermediate_size", int),
        norm="rms", norm_eps=settings.get("rms_norm_eps", float, 1e-6),
        activation=settings.choose("hidden_act", GATED, "silu"), position="rope", rope_base=base,
        rope_scaling=scaling, bias=bias, tied=settings.get("tie_word_embeddings", bool, False))


def _rotary(settings: Settings) -> tuple[float, RoPEScaling | None]:
    """Base and scaling of the rotary angles: in one object ``rope_parameters``, or as versions before 5 have
    them, ``rope_theta`` and perhaps an object ``rope_scaling``."""
    settings.require("partial_rotary_factor", 1.0)
    said = dict(settings.get("rope_parameters", dict, None) or settings.get("rope_scaling", dict, {}))
    base = said.get("rope_theta", settings.get("rope_theta", float, 10000.0))
    kind = said.get("rope_type", said.get("type", "default"))
    wanted = {"default": (), "linear": ("factor",),
              "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")}
    if kind not in wanted or said.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"{settings.path}: rotary positions: only {', '.join(wanted)} are known here, "
                              f"each of all features, got {said}")
    numbers = [base, *(said.get(name) for name in wanted[kind])]
    if any(type(number) not in (int, float) or number <= 0 for number in numbers):
        raise CheckpointError(f"{settings.path}: rotary positions: expected positive numbers as "
                              f"{', '.join(('rope_theta', *wanted[kind]))}, got {said}")
    return float(base), RoPEScaling(*numbers[1:]) if kind != "default" else None
