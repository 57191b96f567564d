"""Encoder: every position sees every other; trained by filling in masked tokens (BERT)."""

from __future__ import annotations

import numpy as np

from minattn import nn
from minattn.attention import padding
from minattn.autograd import Tensor, linear
from minattn.autograd.engine import Array, Operand
from minattn.kernels import cross_entropy, gelu

from .block import Block, make_norm
from .config import Config
from .embed import Embed, init_gpt2

IGNORED = -100


class Encoder(nn.Module):
    """Bidirectional transformer, (B, N) ids → (B, N, D).

    Parameters
    ----------
    config : Config
        BERT's: ``pre_norm=False``, learned positions, GELU.
    rng : numpy.random.Generator
    """

    def __init__(self, config: Config, *, rng: np.random.Generator) -> None:
        self.config = config
        self.embed = Embed(config, rng=rng)
        self.norm = make_norm(config)  # after the last block; in post-norm order, as BERT, at the start
        self.blocks = nn.ModuleList(Block(config, rng=rng) for _ in range(config.layers))
        init_gpt2(self, config.layers, rng)

    def forward(self, ids: Array, lengths: Array | None = None, segments: Array | None = None) -> Operand:
        """ids (B, N) → (B, N, D); positions from lengths[b] on are padding that nobody attends to.

        `segments` (B, N) are the kinds of text that the tokens belong to, with ``config.segments``.
        """
        mask = None if lengths is None else padding(lengths)
        x = self.embed(ids, segments=segments)
        if not self.config.pre_norm:
            x = self.norm(x)
        for block in self.blocks:
            x = block(x, mask_mod=mask)
        return self.norm(x) if self.config.pre_norm else x


class MaskedLM(nn.Module):
    """Encoder with BERT's output layer: logits = E · norm(gelu(W h)) + b, E the token embedding."""

    def __init__(self, config: Config, *, rng: np.random.Generator) -> None:
        self.encoder = Encoder(config, rng=rng)
        self.dense = nn.Linear(config.d_model, config.d_model, rng=rng)
        self.norm = make_norm(config)
        self.bias = nn.Parameter(np.zeros(config.vocab, np.float32))

    def forward(self, ids: Array, lengths: Array | None = None, segments: Array | None = None) -> Operand:
        """ids (B, N) → logits (B, N, V)."""
        h = self.norm(gelu(self.dense(self.encoder(ids, lengths, segments))))
        return linear(h, self.encoder.embed.token.weight, self.bias)

    def loss(self, ids: Array, targets: Array, lengths: Array | None = None) -> Tensor:
        """Mean cross-entropy over the positions whose target is not −100."""
        return cross_entropy(self(ids, lengths), targets, ignore_index=IGNORED)


def mask_tokens(rng: np.random.Generator, ids: Array, mask_id: int, vocab: int, p: float = 0.15,
                special: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """BERT's corruption of a text: each token is chosen with probability p.

    Of the chosen ones 80 % become [MASK], 10 % a random token, and 10 % stay.

    Parameters
    ----------
    ids : array of int (B, N)
    mask_id, vocab : int
        Id of [MASK], and number of ids to draw random tokens from.
    special : tuple of int
        Ids that are never chosen (padding, separators).

    Returns
    -------
    (inputs, targets)
        `targets` hold the original id where a token was chosen, −100 elsewhere.
    """
    if not 0 < p < 1:
        raise ValueError(f"p: expected a probability in (0, 1), got {p}")
    ids = np.asarray(ids)
    chosen = (rng.random(ids.shape) < p) & ~np.isin(ids, special)
    fate = rng.random(ids.shape)
    inputs = np.where(chosen & (fate < 0.8), mask_id, ids)
    inputs = np.where(chosen & (fate >= 0.9), rng.integers(0, vocab, ids.shape), inputs)
    return inputs, np.where(chosen, ids, IGNORED)
