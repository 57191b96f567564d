"""Looking into a language model: one head changed, the last token's attention, guesses layer by layer.

Every value that passes has a hook point already (see `Block` and `MultiHeadAttention`): ``run_with_cache``
reads them, ``run_with_hooks`` replaces them. What is here are the uses of them that take more than a line.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minattn.attention.masks import whole
from minattn.autograd import log_softmax, no_grad, where
from minattn.autograd.engine import Array, Operand, raw

from .generate import Caches, Step
from .gpt import GPT

__all__ = ["at_head", "last_row_attention", "logit_lens"]

CHUNK = 128
"""So many tokens at a time enter the model where only the last one is looked at."""


def at_head(head: int, change: Callable[[Operand], Operand]) -> Callable[[Operand], Operand]:
    """A hook that changes one head and leaves the others.

    Parameters
    ----------
    head : int
        Index along axis 1 of what passes, as in every hook point of `MultiHeadAttention`. Keys and values
        have fewer heads than queries where several share one.
    change : callable
        Gets the value of all heads, gives one that broadcasts to its shape; only that of `head` is taken.

    Raises
    ------
    ValueError
        When the hook is called, if there is no such head.

    Examples
    --------
    >>> silent = at_head(3, lambda out: 0 * out)
    >>> logits = model.run_with_hooks(ids, hooks={"blocks.5.attn.hook_heads": silent})
    """

    def hook(x: Operand) -> Operand:
        if not 0 <= head < x.shape[1]:
            raise ValueError(f"head: expected a number from 0 to {x.shape[1] - 1}, got {head}")
        return where((np.arange(x.shape[1]) == head)[:, None, None], change(x), x)

    return hook


def last_row_attention(model: GPT, ids: Array, *, cache: Caches = True, chunk: int = CHUNK) -> np.ndarray:
    """How the last position attends to each position: weights (L, B, H, N) for each layer and head.

    The tokens before it go through the model `chunk` at a time into caches, and no weights of theirs are
    kept; the last one then gives one row of weights for each head. No map is larger than (B, H, chunk, N).

    Parameters
    ----------
    model : GPT
    ids : array of int (B, N)
    cache : bool, callable or sequence of KVCache
        As for `Step`; caches that hold the first N − 1 tokens save computing them. With a cache that forgets,
        the rows are as long as what it holds, in its order.
    chunk : int
        At least 1.

    Raises
    ------
    ValueError
        If `cache` is False, or holds all of the tokens already.
    """
    whole("chunk", chunk)
    ids = np.asarray(ids)
    step = Step(model, cache, chunk=chunk)
    assert step.caches is not None
    with no_grad():
        while (held := step.caches[0].length) < ids.shape[1] - 1:
            model.hidden(ids[:, held : min(held + chunk, ids.shape[1] - 1)], caches=step.caches)
        names = tuple(f"blocks.{n}.attn.hook_weights" for n in range(len(model.blocks)))
        rows: dict[str, Array] = {}
        hooks = {name: _keep(rows, name) for name in names}
        with model.hooked(hooks):
            step(ids)
    return np.stack([rows[name][:, :, -1] for name in names])


def _keep(rows: dict[str, Array], name: str) -> Callable[[Operand], None]:
    def hook(weights: Operand) -> None:
        rows[name] = raw(weights)

    return hook


def logit_lens(model: GPT, ids: Array) -> np.ndarray:
    """ln-probabilities (L + 1, B, V) of the next token, had each layer been the last.

    Entry n is the output layer applied to the residual stream of the last position before block n, entry L to
    what leaves the last block: the model's own answer.

    References
    ----------
    nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{n}.hook_resid_post" for n in range(len(model.blocks)))]
    streams: dict[str, Array] = {}
    with no_grad(), model.hooked({name: _keep(streams, name) for name in names}):
        model.hidden(ids)
    with no_grad():
        x = np.stack([streams[name][:, -1] for name in names])
        return raw(log_softmax(model.head(model.norm(x) if model.config.pre_norm else x), -1))
