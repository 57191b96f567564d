"""From text to training batches: a vocabulary of characters, a split, and random windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._check import at_least, generator

__all__ = ["CharVocabulary", "batches", "split"]


class CharVocabulary:
    """The characters of a text, numbered in order of their code points.

    `encode` and `decode` are inverse to each other: `decode(encode(s)) == s` for every string of known
    characters.

    Parameters
    ----------
    text : str
        The vocabulary is `sorted(set(text))`.

    Examples
    --------
    >>> vocabulary = CharVocabulary("hello")
    >>> vocabulary.characters
    'ehlo'
    >>> vocabulary.encode("hole")
    array([1, 3, 2, 0])
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not text:
            raise ValueError(f"text must be a non-empty string, got {text!r}")
        self.characters = "".join(sorted(set(text)))
        self._points = _code_points(self.characters)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> NDArray[np.int64]:
        """The number of each character; ValueError names the first unknown one."""
        points = _code_points(text)
        ids = np.searchsorted(self._points, points).clip(max=len(self) - 1)
        unknown = np.flatnonzero(self._points[ids] != points)
        if unknown.size:
            raise ValueError(
                f"text has a character outside the vocabulary at {unknown[0]}: {text[unknown[0]]!r}"
            )
        return ids.astype(np.int64)

    def decode(self, ids: NDArray[np.integer] | list[int]) -> str:
        """The string of a one-dimensional array of numbers."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(
                f"ids must be a one-dimensional array of integers, got shape {ids.shape}, {ids.dtype}"
            )
        if ids.size and not (0 <= ids.min() and ids.max() < len(self)):
            raise ValueError(f"ids must lie in 0..{len(self) - 1}, got {ids.min()}..{ids.max()}")
        return self._points[ids.astype(np.int64)].astype("<u4").tobytes().decode("utf-32-le")


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def split(ids: NDArray[np.integer], fraction: float = 0.9) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """The first `fraction` of a sequence for training and the rest for validation: (train, validation).

    Cut at one place and not at random, so that validation text is not the neighbour of training text.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie strictly between 0 and 1, got {fraction}")
    n = int(fraction * len(ids))
    if not 0 < n < len(ids):
        raise ValueError(f"ids must be long enough for two non-empty parts, got length {len(ids)}")
    return ids[:n], ids[n:]


def batches(
    rng: np.random.Generator, ids: NDArray[np.integer], batch: int, length: int
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """One batch for next-token prediction: random windows x and the same windows one place on, y.

    x[b, t] = ids[s_b + t],  y[b, t] = ids[s_b + t + 1],  s_b uniform: as nanoGPT's `get_batch`.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of s_b.
    ids : array (n,)
        A sequence of n > `length` tokens.
    batch, length : int
        Number and length of the windows.

    Returns
    -------
    x, y : array (batch, length)
        With the dtype of `ids`.
    """
    generator(rng)
    at_least(1, batch=batch, length=length)
    ids = np.asarray(ids)
    if ids.ndim != 1:
        raise ValueError(f"ids must have one dimension, got shape {ids.shape}")
    if length >= len(ids):
        raise ValueError(f"length must be less than the {len(ids)} ids, got {length}")
    start = rng.integers(len(ids) - length, size=(batch, 1))
    window = ids[start + np.arange(length + 1)]
    return window[:, :-1], window[:, 1:]
