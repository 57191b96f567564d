"""A model as the ``step(ids) -> logits`` that greedy decoding, sampling and beam search ask for.

Each call gets the whole sequence so far; a step with caches gives the model only the tokens it has not seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.autograd import no_grad
from minattn.autograd.engine import Array, Operand
from minattn.nn.decode import greedy, sample

from .gpt import GPT
from .seq2seq import EncoderDecoder


class Step:
    """Next-token logits of a `GPT`.

    A sequence longer than a learned position table is cut to its last ``context`` tokens; the positions of
    all of them then change with every token, so from there on nothing can be cached.

    Parameters
    ----------
    model : GPT
    cache : bool
        Whether keys and values of earlier tokens are kept.
    """

    def __init__(self, model: GPT, cache: bool = True) -> None:
        self.model = model
        self.limit = model.config.context if model.config.position == "learned" else None
        self.caches = model.new_caches() if cache else None

    def __call__(self, ids: Array) -> Operand:
        """ids (B, N) → logits (B, V) of the token after the last."""
        if self.limit is not None and ids.shape[1] > self.limit:
            self.caches = None
            ids = ids[:, -self.limit :]
        if self.caches is not None:
            ids = ids[:, self.caches[0].length :]
        return self.model(ids, caches=self.caches)[:, -1]

    def reorder(self, rows: Array) -> None:
        """Row r of the caches becomes what row rows[r] was."""
        for cache in self.caches or ():
            cache.reorder(rows)


class TranslationStep:
    """Next-token logits of an `EncoderDecoder` for given sources, which are encoded once.

    Parameters
    ----------
    model : EncoderDecoder
    source : array of int (B, M)
    lengths : array of int (B,), optional
        Length of each source; the rest is padding.
    cache : bool
        Whether keys and values of earlier target tokens are kept.
    """

    def __init__(self, model: EncoderDecoder, source: Array, lengths: Array | None = None,
                 cache: bool = True) -> None:
        with no_grad():
            self.memory = model.encode(source, lengths)
        self.model, self.lengths = model, lengths
        self.caches = model.new_caches() if cache else None

    def __call__(self, ids: Array) -> Operand:
        """Target ids (B, N), or (B·K, N) for K beams a source, → logits of the token after the last."""
        rows = np.arange(len(ids)) * len(self.memory) // len(ids)  # K beams in a row share a source
        lengths = None if self.lengths is None else np.asarray(self.lengths)[rows]
        if self.caches is not None:
            ids = ids[:, self.caches[0].length :]
        return self.model.decode(ids, self.memory[rows], lengths, self.caches)[:, -1]

    def reorder(self, rows: Array) -> None:
        """Row r of the caches becomes what row rows[r] was (beams never leave their source)."""
        for cache in self.caches or ():
            cache.reorder(rows)


def generate(model: GPT, ids: Array, max_new: int, *, rng: np.random.Generator | None = None,
             cache: bool = True, **filters: Any) -> Array:
    """Continue the sequences ids (B, N) by `max_new` tokens; returns (B, N + max_new).

    Parameters
    ----------
    rng : numpy.random.Generator, optional
        Sample from the model with it; without one, take the most likely token each time.
    cache : bool
        Keep keys and values, so that each token is computed once.
    **filters
        ``temperature``, ``top_k``, ``top_p``, ``min_p`` and ``eos`` of `minattn.nn.sample`.
    """
    training = model.training
    model.eval()
    try:
        step = Step(model, cache)
        if rng is None:
            return greedy(step, ids, max_new, **filters)
        return sample(step, ids, max_new, rng=rng, **filters)
    finally:
        model.train(training)
