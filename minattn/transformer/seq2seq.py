"""Encoder–decoder: the transformer of 2017."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minattn import nn
from minattn.attention import AppendCache, KVCache, causal, padding
from minattn.autograd import Tensor
from minattn.autograd.engine import Array, Operand
from minattn.kernels import cross_entropy

from .block import Block, make_norm
from .config import Config
from .embed import Embed, init_gpt2
from .encoder import IGNORED, Encoder


class EncoderDecoder(nn.Module):
    """Translate a source sequence into a target sequence.

    Parameters
    ----------
    config : Config
        Of the decoder and, with `source_vocab` tokens, of the encoder.
    source_vocab : int, optional
        Size of the source vocabulary; by default the source shares `config.vocab` and its embedding.
    rng : numpy.random.Generator
    """

    def __init__(self, config: Config, source_vocab: int | None = None, *, rng: np.random.Generator) -> None:
        self.config = config
        of_source = config if source_vocab is None else Config(**{**config.__dict__, "vocab": source_vocab})
        self.encoder = Encoder(of_source, rng=rng)
        self.embed = Embed(config, rng=rng)
        self.blocks = nn.ModuleList(Block(config, cross=True, rng=rng) for _ in range(config.layers))
        if config.pre_norm:
            self.norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab, bias=False, rng=rng)
        if config.tied:
            self.head.weight = self.embed.token.weight
        init_gpt2(self, config.layers, rng)
        if source_vocab is None:
            self.encoder.embed.token.weight = self.embed.token.weight

    def encode(self, source: Array, lengths: Array | None = None) -> Operand:
        """Source ids (B, M) → memory (B, M, D)."""
        return self.encoder(source, lengths)

    def decode(self, ids: Array, memory: Operand, lengths: Array | None = None,
               caches: Sequence[KVCache] | None = None) -> Operand:
        """Target ids (B, N) and memory (B, M, D) → logits (B, N, V) of the token after each."""
        x = self.embed(ids, caches[0].length if caches else 0)
        visible = None if lengths is None else padding(lengths)
        for n, block in enumerate(self.blocks):
            cache = caches[n] if caches else None
            x = block(x, mask_mod=causal, cache=cache, memory=memory, memory_mask=visible)
        return self.head(self.norm(x) if self.config.pre_norm else x)

    def forward(self, source: Array, ids: Array, lengths: Array | None = None) -> Operand:
        """Source ids (B, M), target ids (B, N) → logits (B, N, V); `lengths` (B,) of the sources."""
        return self.decode(ids, self.encode(source, lengths), lengths)

    def loss(self, source: Array, ids: Array, targets: Array, lengths: Array | None = None,
             label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy over the targets that are not −100."""
        return cross_entropy(self(source, ids, lengths), targets, ignore_index=IGNORED,
                             label_smoothing=label_smoothing)

    def new_caches(self) -> list[KVCache]:
        """An empty cache for each block of the decoder."""
        return [AppendCache() for _ in range(self.config.layers)]
