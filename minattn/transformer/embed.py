"""Token ids to vectors, with their positions."""

from __future__ import annotations

import numpy as np

from minattn import nn
from minattn.attention.position import Learned, Sinusoidal
from minattn.autograd.engine import Array, Operand, raw

from .config import Config


class Embed(nn.Module):
    """Token embedding plus position embedding (learned or sinusoidal; others live in the attention).

    With ``config.segments``, plus an embedding of the kind of text that a token belongs to.

    Raises
    ------
    ValueError
        If a sequence, with what came before it, is longer than the learned table.
    """

    def __init__(self, config: Config, *, rng: np.random.Generator) -> None:
        self.token = nn.Embedding(config.vocab, config.d_model, rng=rng)
        if config.position == "learned":
            self.position: nn.Module | None = Learned(config.context, config.d_model, rng=rng)
        elif config.position == "sinusoidal":
            self.position = Sinusoidal(config.d_model)
        else:
            self.position = None
        if config.segments:
            self.segment = nn.Embedding(config.segments, config.d_model, rng=rng)
        self.segments = config.segments
        self.drop = nn.Dropout(config.dropout, rng=rng)
        self.hook_embed = nn.HookPoint()

    def forward(self, ids: Array, offset: int | Array = 0, segments: Array | None = None) -> Operand:
        """ids (B, N) → (B, N, D); the first id stands at position `offset`, one for all or (B,).

        `segments` (B, N) says of each token which kind of text it belongs to, 0 by default.
        """
        ids = check_ids(ids)
        x = self.token(ids)
        if self.position is not None:
            x = self.position(x, offset)
        if self.segments:
            x = x + self.segment(np.zeros_like(ids) if segments is None else check_ids(segments))
        elif segments is not None:
            raise ValueError("segments: expected None, this model has no embedding of them")
        return self.hook_embed(self.drop(x))


def check_ids(ids: Array) -> Array:
    """`ids` as an array of integers (B, N)."""
    ids = np.asarray(ids) if not hasattr(raw(ids), "dtype") else raw(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.shape[1] < 1:
        raise ValueError(f"ids: expected integers of shape (B, N) with N ≥ 1, got {ids.dtype} {ids.shape}")
    return ids


def init_gpt2(model: nn.Module, layers: int, rng: np.random.Generator, std: float = 0.02) -> None:
    """GPT-2's initial weights: N(0, σ²), biases 0, and σ/√(2L) for the two layers of a block that write to
    the residual stream, so that its variance does not grow with depth."""
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data = np.zeros_like(p.data)
        elif p.ndim >= 2:
            writes = name.endswith(("out_proj.weight", "down.weight"))
            scale = std / np.sqrt(2 * layers) if writes else std
            p.data = rng.normal(0, scale, p.shape).astype(p.dtype, copy=False)
