"""The same GPT in PyTorch, from the same weights: the peer for tests and timings.

It covers what nanoGPT's configuration uses (pre-norm, learned positions, GELU) and reads our `state_dict`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from minattn.transformer import Config


class TorchGPT(torch.nn.Module):
    """Decoder-only transformer whose parameters are named as ours are."""

    def __init__(self, config: Config, state: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.config = config
        state = {name: value for name, value in state.items() if not (config.tied and name == "head.weight")}
        self.names = {name: name.replace(".", "_") for name in state}
        for name, value in state.items():
            self.register_parameter(self.names[name], torch.nn.Parameter(torch.tensor(value)))

    def _p(self, name: str) -> torch.Tensor | None:
        return getattr(self, self.names[name]) if name in self.names else None

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self._p(f"{name}.weight"), self._p(f"{name}.bias"))

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self._p(f"{name}.weight"), self._p(f"{name}.bias"))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], -1, self.config.d_head).transpose(1, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B, N) → logits (B, N, V)."""
        token = self._p("embed.token.weight")
        x = F.embedding(ids, token) + self._p("embed.position.weight")[: ids.shape[1]]
        for n in range(self.config.layers):
            at = f"blocks.{n}."
            h = self._norm(x, at + "norm1")
            q, k, v = (self._heads(self._linear(h, f"{at}attn.{c}_proj")) for c in "qkv")
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self._linear(h.transpose(1, 2).reshape(x.shape), at + "attn.out_proj")
            h = F.gelu(self._linear(self._norm(x, at + "norm2"), at + "mlp.up"))
            x = x + self._linear(h, at + "mlp.down")
        head = token if self.config.tied else self._p("head.weight")
        return F.linear(self._norm(x, "norm"), head)

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> torch.Tensor:
        """Mean cross-entropy of the targets."""
        logits = self(torch.from_numpy(ids))
        return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
