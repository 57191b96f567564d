"""The block: attention mixes positions, a feed-forward layer works on each; both add to the residual stream.

    pre-norm   x ← x + attention(norm(x));   x ← x + cross(norm(x), memory);   x ← x + mlp(norm(x))
    post-norm  x ← norm(x + attention(x));   x ← norm(x + cross(x, memory));   x ← norm(x + mlp(x))

The middle step exists in the decoder of an encoder–decoder alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import KVCache, MultiHeadAttention
from minattn.attention.masks import MaskMod
from minattn.attention.position import ALiBi, PositionEncoding, RoPE
from minattn.autograd.engine import Operand

from .config import Config
from .one_step import one_step


def naive_block(x: np.ndarray, state: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """A pre-norm block with layer norms, GELU and a causal mask on a sequence x (N, D), number by number.

    `state` holds the weights under the names of ``Block.state_dict()``.
    """
    N, D = x.shape
    E = D // heads

    def norm(row, name):
        centred = [r - math.fsum(row) / D for r in row]
        deviation = math.sqrt(math.fsum(c * c for c in centred) / D + 1e-5)
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return [c / deviation * w + b for c, w, b in zip(centred, weight, bias, strict=True)]

    def linear(row, name):
        return [math.fsum(w * r for w, r in zip(ws, row, strict=True)) + b
                for ws, b in zip(state[f"{name}.weight"], state[f"{name}.bias"], strict=True)]

    def gelu(t):
        return t * 0.5 * (1 + math.erf(t / math.sqrt(2)))

    rows = [norm(row, "norm1") for row in x.tolist()]
    q, k, v = ([linear(row, f"attn.{c}_proj") for row in rows] for c in "qkv")
    out = np.zeros((N, D))
    for i in range(N):
        mixed = []
        for h in range(heads):
            part = slice(h * E, (h + 1) * E)
            scores = [math.fsum(a * b for a, b in zip(q[i][part], k[j][part], strict=True)) / math.sqrt(E)
                      for j in range(i + 1)]
            weights = [math.exp(s - max(scores)) for s in scores]
            mixed += [math.fsum(w * v[j][part][e] for j, w in enumerate(weights)) / math.fsum(weights)
                      for e in range(E)]
        middle = [a + b for a, b in zip(x[i], linear(mixed, "attn.out_proj"), strict=True)]
        hidden = [gelu(t) for t in linear(norm(middle, "norm2"), "mlp.up")]
        out[i] = [a + b for a, b in zip(middle, linear(hidden, "mlp.down"), strict=True)]
    return out


def make_norm(config: Config) -> nn.Module:
    """The normalisation that `config` names."""
    if config.norm == "rms":
        return nn.RMSNorm(config.d_model, eps=config.norm_eps)
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)


def make_mlp(config: Config, rng: np.random.Generator) -> nn.Module:
    """The feed-forward layer that `config` names."""
    if config.gated:
        gate = {"swiglu": nn.SwiGLU, "geglu": nn.GEGLU, "reglu": nn.ReGLU}[config.activation]
        return gate(config.d_model, config.d_hidden, bias=config.bias, rng=rng)
    return nn.MLP(config.d_model, config.d_hidden, activation=config.activation, bias=config.bias, rng=rng)


def make_position(config: Config) -> PositionEncoding | None:
    """What the attention layers themselves know of positions: a rotation, a bias, or nothing."""
    if config.position == "rope":
        return RoPE(config.d_head, config.rope_base, pairing="half", scaling=config.rope_scaling)
    return ALiBi(config.heads) if config.position == "alibi" else None


class Block(nn.Module):
    """One layer of a transformer.

    Parameters
    ----------
    config : Config
    cross : bool
        Whether it also attends to a memory (the encoder's output).
    rng : numpy.random.Generator
        Source of the initial weights and of dropout.

    Attributes
    ----------
    hook_resid_pre, hook_resid_mid, hook_resid_post : HookPoint
        The residual stream before the block, after attention, and after the feed-forward layer.
    """

    def __init__(self, config: Config, *, cross: bool = False, rng: np.random.Generator) -> None:
        def attend() -> MultiHeadAttention:
            return MultiHeadAttention(config.d_model, config.heads, n_kv_heads=config.n_kv_heads,
                                      d_head=config.d_head, bias=config.bias, position=make_position(config),
                                      dropout=config.dropout, rng=rng)

        self.pre_norm = config.pre_norm
        self.norm1 = make_norm(config)
        self.attn = attend()
        if cross:
            self.norm_cross = make_norm(config)
            self.cross = attend()
        self.norm2 = make_norm(config)
        self.mlp = make_mlp(config, rng)
        self.drop = nn.Dropout(config.dropout, rng=rng)
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = (nn.HookPoint() for _ in range(3))

    def _add(self, x: Operand, norm: nn.Module, f: Any) -> Operand:
        """One residual step, in the order that the configuration asks for."""
        if self.pre_norm:
            return x + self.drop(f(norm(x)))
        return norm(x + self.drop(f(x)))

    def forward(self, x: Operand, *, mask_mod: MaskMod | None = None, cache: KVCache | None = None,
                memory: Operand | None = None, memory_mask: MaskMod | None = None) -> Operand:
        """x (B, N, D) → (B, N, D).

        `mask_mod` says which positions are visible, `cache` holds keys and values of earlier positions,
        `memory` (B, M, D) is what a block with cross-attention attends to, through `memory_mask`.
        """
        if memory is None and type(self) is Block and (out := one_step(self, x, mask_mod, cache)) is not None:
            return out
        x = self.hook_resid_pre(x)
        x = self._add(x, self.norm1, lambda h: self.attn(h, mask_mod=mask_mod, cache=cache))
        if memory is not None:
            x = self._add(x, self.norm_cross, lambda h: self.cross(h, memory, mask_mod=memory_mask))
        x = self.hook_resid_mid(x)
        return self.hook_resid_post(self._add(x, self.norm2, self.mlp))
