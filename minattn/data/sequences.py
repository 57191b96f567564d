"""Sequence to sequence: copy, reverse and sort, as (source, target) pairs and as one stream for a decoder."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._check import at_least, generator

__all__ = ["copy", "decoder_only", "reverse", "sort"]

Tokens = NDArray[np.int64]


def copy(
    rng: np.random.Generator, batch: int, length: int, vocab: int, mapping: ArrayLike | None = None
) -> tuple[Tokens, Tokens]:
    """Random symbols and the same symbols again: target[t] = source[t], or mapping[source[t]].

    With `vocab=10, length=4`::

        source  3 1 4 1
        target  3 1 4 1

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of the symbols.
    batch, length, vocab : int
        Number of sequences, symbols in each, and number of different symbols (0..vocab-1).
    mapping : array (vocab,), optional
        What each symbol becomes in the target: a permutation makes a substitution cipher.

    Returns
    -------
    source, target : int64 array (batch, length)
    """
    source = _symbols(rng, batch, length, vocab)
    return source, _mapped(source, vocab, mapping)


def reverse(
    rng: np.random.Generator, batch: int, length: int, vocab: int, mapping: ArrayLike | None = None
) -> tuple[Tokens, Tokens]:
    """Random symbols and the same symbols backwards: target[t] = source[length-1-t], mapped as in `copy`.

    With `vocab=10, length=4`::

        source  3 1 4 7
        target  7 4 1 3
    """
    source = _symbols(rng, batch, length, vocab)
    return source, _mapped(source[:, ::-1], vocab, mapping)


def sort(rng: np.random.Generator, batch: int, length: int, vocab: int) -> tuple[Tokens, Tokens]:
    """Random symbols and the same symbols in ascending order.

    With `vocab=10, length=4`::

        source  3 1 4 1
        target  1 1 3 4
    """
    source = _symbols(rng, batch, length, vocab)
    return source, np.sort(source, axis=1)


def decoder_only(
    source: ArrayLike, target: ArrayLike, separator: int
) -> tuple[Tokens, Tokens, NDArray[np.bool_]]:
    """One stream 'source, separator, target' for a causal model, with the next token at each place.

    For source `3 1 4`, target `4 1 3` and separator 9::

        tokens   3 1 4 9 4 1
        targets  1 4 9 4 1 3
        mask     . . . x x x      (x: scored)

    Parameters
    ----------
    source : int array (batch, n)
    target : int array (batch, m)
    separator : int
        The token between them; it must not occur in either.

    Returns
    -------
    tokens, targets : int64 array (batch, n + m)
        targets[:, t] is the token that follows tokens[:, t].
    mask : bool array (batch, n + m)
        True where the target belongs to `target`, so where a loss should look.
    """
    source, target = np.asarray(source, dtype=np.int64), np.asarray(target, dtype=np.int64)
    if source.ndim != 2 or target.ndim != 2 or len(source) != len(target):
        raise ValueError(
            f"source and target must be (batch, n) and (batch, m), got {source.shape} and {target.shape}"
        )
    if not target.shape[1] or (source == separator).any() or (target == separator).any():
        raise ValueError(f"target must not be empty, nor separator {separator} occur in source or target")
    middle = np.full((len(source), 1), separator)
    stream = np.concatenate([source, middle, target], axis=1)
    mask = np.zeros((len(source), stream.shape[1] - 1), dtype=bool)
    mask[:, source.shape[1] :] = True
    return stream[:, :-1], stream[:, 1:], mask


def _symbols(rng: np.random.Generator, batch: int, length: int, vocab: int) -> Tokens:
    generator(rng)
    at_least(1, batch=batch, length=length, vocab=vocab)
    return rng.integers(vocab, size=(batch, length))


def _mapped(symbols: Tokens, vocab: int, mapping: ArrayLike | None) -> Tokens:
    if mapping is None:
        return symbols.copy()
    table = np.asarray(mapping)
    if table.shape != (vocab,) or table.dtype.kind not in "iu":
        raise ValueError(
            f"mapping must be {vocab} integers, one a symbol, got shape {table.shape}, {table.dtype}"
        )
    return table.astype(np.int64)[symbols]
