"""GPT: a decoder-only language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import AppendCache, KVCache, both, causal, left_padding
from minattn.attention.masks import MaskMod
from minattn.autograd.engine import Array, Operand
from minattn.kernels import cross_entropy

from .block import Block, make_norm
from .config import Config
from .embed import Embed, init_gpt2


def naive_llama(ids: Sequence[int], state: Mapping[str, Array], config: Config) -> np.ndarray:
    """Logits (N, V) of a Llama on one sequence, head by head, in the dtype of its weights.

    `state` holds the weights under the names of ``GPT.state_dict()``. RMS norms, rotary positions in pairs
    (m, m + D/2), SwiGLU, no biases: what `Config` calls "rms", "rope" and "swiglu".
    """
    N, D, group = len(ids), config.d_head, config.heads // config.n_kv_heads
    angles = np.arange(N)[:, None] * config.rope_base ** (-np.arange(0, D, 2) / D)
    turn = np.exp(1j * angles)  # (N, D/2)
    seen = np.tril(np.ones((N, N), bool))

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * state[f"{name}.weight"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T

    def rotated(x):
        z = (x[:, : D // 2] + 1j * x[:, D // 2 :]) * turn
        return np.concatenate([z.real, z.imag], 1).astype(x.dtype)

    x = np.asarray(state["embed.token.weight"][np.asarray(ids)])
    for n in range(config.layers):
        at = f"blocks.{n}"
        h = norm(x, f"{at}.norm1")
        q, k, v = (linear(h, f"{at}.attn.{c}_proj").reshape(N, -1, D) for c in "qkv")
        heads = []
        for head in range(config.heads):
            scores = rotated(q[:, head]) @ rotated(k[:, head // group]).T / np.sqrt(D).astype(x.dtype)
            scores = np.where(seen, scores, -np.inf)
            a = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(a / a.sum(-1, keepdims=True) @ v[:, head // group])
        x = x + linear(np.concatenate(heads, 1), f"{at}.attn.out_proj")
        h = norm(x, f"{at}.norm2")
        gate = linear(h, f"{at}.mlp.gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, f"{at}.mlp.up"), f"{at}.mlp.down")
    return linear(norm(x, "norm"), "head")


class GPT(nn.Module):
    """Decoder-only transformer: every position predicts the next token from itself and those before it.

    Parameters
    ----------
    config : Config
    rng : numpy.random.Generator
        Source of the initial weights (GPT-2's scheme) and of dropout.

    Examples
    --------
    >>> config = Config(vocab=65, context=64, layers=4, heads=4, d_model=128)
    >>> model = GPT(config, rng=np.random.default_rng(0))
    >>> model(np.zeros((2, 10), int)).shape
    (2, 10, 65)
    """

    def __init__(self, config: Config, *, rng: np.random.Generator) -> None:
        self.config = config
        self.embed = Embed(config, rng=rng)
        self.blocks = nn.ModuleList(Block(config, rng=rng) for _ in range(config.layers))
        if config.pre_norm:
            self.norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab, bias=False, rng=rng)
        if config.tied:
            self.head.weight = self.embed.token.weight
        init_gpt2(self, config.layers, rng)

    def hidden(self, ids: Array, *, mask_mod: MaskMod | None = None, caches: Sequence[KVCache] | None = None,
               pad: Array | None = None) -> Operand:
        """Residual stream (B, N, D) after the last block and norm."""
        start = caches[0].length if caches else 0
        x = self.embed(ids, start if pad is None else start - np.asarray(pad))
        mask = causal if mask_mod is None else both(causal, mask_mod)
        mask = mask if pad is None else both(mask, left_padding(pad))
        for n, block in enumerate(self.blocks):
            x = block(x, mask_mod=mask, cache=caches[n] if caches else None)
        return self.norm(x) if self.config.pre_norm else x

    def forward(self, ids: Array, *, mask_mod: MaskMod | None = None, caches: Sequence[KVCache] | None = None,
                pad: Array | None = None) -> Operand:
        """ids (B, N) → logits (B, N, V).

        Parameters
        ----------
        ids : array of int (B, N)
        mask_mod : callable, optional
            Which positions are visible, on top of the causal mask.
        caches : sequence of KVCache, optional
            One for each block (see `new_caches`): `ids` then continue the sequence that the caches hold.
        pad : array of int (B,), optional
            Row b begins with pad[b] tokens of padding, which nobody sees; positions count from there.
        """
        return self.head(self.hidden(ids, mask_mod=mask_mod, caches=caches, pad=pad))

    def next_logits(self, ids: Array, **how: Any) -> Operand:
        """`forward` for the last position alone: logits (B, V) of the token after the last."""
        return self.head(self.hidden(ids, **how)[:, -1])

    def loss(self, ids: Array, targets: Array, label_smoothing: float = 0.0) -> Operand:
        """Mean cross-entropy, in nats, of the targets (B, N) that are not −100."""
        return cross_entropy(self(ids), targets, label_smoothing=label_smoothing)

    def new_caches(self) -> list[KVCache]:
        """An empty cache for each block."""
        return [AppendCache() for _ in range(self.config.layers)]
