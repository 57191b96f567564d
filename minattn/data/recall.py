"""Recall: tasks whose answer was stated earlier in the sequence and has to be looked up.

Symbols are numbered 0..vocab-1; special tokens, where a task has any, come after them: vocab, vocab+1. Each
function returns `tokens`, `targets` and a boolean `mask` of one shape; where the mask is False the target is
not scored (and is 0 unless stated otherwise).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._check import at_least, generator
from ._draw import draw_distinct

__all__ = ["induction", "mqar", "needle", "passkey", "selective_copy"]

Tokens = NDArray[np.int64]
Mask = NDArray[np.bool_]


def induction(
    rng: np.random.Generator, batch: int, length: int, vocab: int, period: tuple[int, int]
) -> tuple[Tokens, Tokens, Mask]:
    """A random block, repeated to the end: from its second round on, what follows is what followed before.

    Each sequence has its own block of p distinct symbols, p uniform in `period`, so what comes next is found
    by looking up the current token, and by nothing else. With a block of p = 3::

        tokens   7 2 5 7 2 5 7
        targets  2 5 7 2 5 7 2
        mask     . . . x x x x

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of blocks and periods.
    batch, length, vocab : int
        Number of sequences, their length, number of symbols.
    period : (int, int)
        Least and greatest p, both included; p <= vocab, p < length.

    Returns
    -------
    tokens, targets : int64 array (batch, length)
        targets[:, t] is the next token, also where it can't be known.
    mask : bool array (batch, length)
    """
    generator(rng)
    at_least(1, batch=batch, length=length, vocab=vocab)
    low, high = period
    if not 1 <= low <= high <= min(vocab, length - 1):
        raise ValueError(f"period must be 1 <= low <= high <= {min(vocab, length - 1)}, got {period}")
    block = draw_distinct(rng, batch, vocab, high)
    p = rng.integers(low, high + 1, size=(batch, 1))
    t = np.arange(length + 1)
    stream = np.take_along_axis(block, t % p, axis=1)
    return stream[:, :-1], stream[:, 1:], t[:-1] >= p


def mqar(
    rng: np.random.Generator,
    batch: int,
    length: int,
    pairs: int,
    vocab: int,
    power: float = 0.01,
    noise: bool = True,
) -> tuple[Tokens, Tokens, Mask]:
    """Multi-query associative recall: key-value pairs first, later each key again, to answer with its value.

    Keys are distinct symbols of the lower half of the vocabulary, values any of the upper half. Key i is
    asked again at position 2·pairs + 2·g_i, the g_i distinct with P(g) ∝ (g+1)^(power-1): most questions
    soon, some late. The other places are noise. With `vocab=8` and two pairs, 1→6 and 3→4, noise shown as
    dots::

        tokens   1 6 3 4 3 . 1 . . .
        targets  . . . . 4 . 6 . . .
        mask     . . . . x . x . . .

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of keys, values, places and noise.
    batch, length, pairs, vocab : int
        length >= 4·pairs; vocab even, with at least `pairs` keys.
    power : float
        Exponent of the power law, > 0; 1 makes the places uniform.
    noise : bool
        Fill the other places with random symbols (which may be keys or values) or with the blank, token
        `vocab`.

    Returns
    -------
    tokens, targets : int64 array (batch, length)
    mask : bool array (batch, length)
        True at the `pairs` questions of each sequence.

    Notes
    -----
    The task of Arora et al., Zoology (2023), with their placement.
    """
    generator(rng)
    at_least(1, batch=batch, pairs=pairs)
    if length < 4 * pairs:
        raise ValueError(f"length must be at least 4 pairs = {4 * pairs}, got {length}")
    if vocab % 2 or vocab < 2 * pairs:
        raise ValueError(f"vocab must be even and at least 2 pairs = {2 * pairs}, got {vocab}")
    if not power > 0:
        raise ValueError(f"power must be positive, got {power}")
    half, space = vocab // 2, (length - 2 * pairs) // 2
    keys = draw_distinct(rng, batch, half, pairs)
    values = rng.integers(half, vocab, size=(batch, pairs))
    log_p = (power - 1) * np.log(np.arange(1, space + 1))
    place = 2 * pairs + 2 * draw_distinct(rng, batch, space, pairs, log_p)
    shape = (batch, length)
    tokens = rng.integers(vocab, size=shape) if noise else np.full(shape, vocab)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    targets, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    row = np.arange(batch)[:, None]
    tokens[row, place], targets[row, place], mask[row, place] = keys, values, True
    return tokens, targets, mask


def needle(
    rng: np.random.Generator,
    batch: int,
    length: int,
    vocab: int,
    width: int = 1,
    depth: float | None = None,
    filler: ArrayLike | None = None,
) -> tuple[Tokens, Tokens, Mask, NDArray[np.int64]]:
    """A marked word of `width` symbols somewhere in filler, asked for at the end.

    `vocab` marks the needle, `vocab+1` the question. With `vocab=10, length=12, width=2` and the needle 7 4::

        tokens   3 1 10 7 4 0 2 8 8 5 11 7
        targets  . . .  . . . . . . . 7  4
        mask     . . .  . . . . . . . x  x

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of needle, place and filler.
    batch, length, vocab : int
        Number of sequences, their whole length (at least 2·width + 1), number of symbols.
    width : int
        Symbols in the needle.
    depth : float, optional
        Where it stands: 0 at the start, 1 just before the question.  Uniform for each sequence if not given.
    filler : int array (batch, at least length - 2·width - 1), optional
        The text around it, for instance real characters or a Markov chain; uniform random symbols if not
        given.

    Returns
    -------
    tokens, targets : int64 array (batch, length)
    mask : bool array (batch, length)
        True at the last `width` places.
    start : int64 array (batch,)
        Position of the needle's first symbol.
    """
    generator(rng)
    at_least(1, batch=batch, vocab=vocab, width=width)
    room = length - 2 * width - 1
    if room < 0:
        raise ValueError(f"length must be at least 2 width + 1 = {2 * width + 1}, got {length}")
    word = rng.integers(vocab, size=(batch, width))
    place = _depths(rng, batch, room, depth)[:, None]
    hay = rng.integers(vocab, size=(batch, room)) if filler is None else _filler(filler, batch, room)
    tokens = np.empty((batch, length), dtype=np.int64)
    row, t = np.arange(batch)[:, None], np.arange(room)
    tokens[row, t + (width + 1) * (t >= place)] = hay
    tokens[row, place] = vocab
    tokens[row, place + 1 + np.arange(width)] = word
    tokens[:, length - width] = vocab + 1
    tokens[:, length - width + 1 :] = word[:, :-1]
    targets, mask = np.zeros_like(tokens), np.zeros(tokens.shape, dtype=bool)
    targets[:, length - width :], mask[:, length - width :] = word, True
    return tokens, targets, mask, place[:, 0] + 1


_HAY = (
    "The river runs slowly past the mill. Nobody has opened the gate this morning. "
    "A cart stands by the wall. The rain of last night has gone. Two birds sit on the fence and wait. "
)


def passkey(
    rng: np.random.Generator,
    length: int,
    digits: int = 5,
    depth: float | None = None,
    filler: str | None = None,
) -> tuple[str, str, int]:
    """The needle task in English, for models of words: a prompt, its answer, and where the answer stands.

    With `digits=3` (dots stand for filler)::

        '... Remember this: the pass key is 472. ... What is the pass key? The pass key is', ' 472'

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of key and place.
    length : int
        Greatest number of characters in the prompt; whole words of filler make up as much of it as fit.
    digits : int
        Digits of the key.
    depth : float, optional
        0 at the start, 1 at the end of the filler; uniform if not given.
    filler : str, optional
        Text to hide it in, repeated when too short: `shakespeare()`, for instance.

    Returns
    -------
    prompt : str
    answer : str
        A space and the key, as the prompt goes on.
    start : int
        prompt[start : start + digits] is the key.
    """
    generator(rng)
    at_least(1, digits=digits)
    key = "".join(str(d) for d in rng.integers(10, size=digits))
    fact = f"Remember this: the pass key is {key}. "
    question = "What is the pass key? The pass key is"
    room = length - len(fact) - len(question)
    if room < 0:
        raise ValueError(f"length must be at least {length - room} for {digits} digits, got {length}")
    words = _words_within(_HAY if filler is None else filler, room)
    k = int(_depths(rng, 1, len(words), depth)[0])
    before = "".join(words[:k])
    prompt = before + fact + "".join(words[k:]) + question
    return prompt, " " + key, len(before) + fact.index(key)


def selective_copy(
    rng: np.random.Generator, batch: int, length: int, symbols: int, vocab: int
) -> tuple[Tokens, Tokens, Mask]:
    """Symbols strewn among blanks, to be given back in order, without the blanks.

    The blank is token `vocab`; at the end `vocab+1`, once for each symbol, asks for it.
    With `vocab=5, length=6, symbols=3`::

        tokens   5 2 5 5 0 4 6 6 6
        targets  . . . . . . 2 0 4
        mask     . . . . . . x x x

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of symbols and places.
    batch, length, symbols, vocab : int
        `symbols` of the first `length` places are no blanks.

    Returns
    -------
    tokens, targets : int64 array (batch, length + symbols)
    mask : bool array (batch, length + symbols)
    """
    generator(rng)
    at_least(1, batch=batch, symbols=symbols, vocab=vocab)
    at_least(symbols, length=length)
    word = rng.integers(vocab, size=(batch, symbols))
    place = np.sort(draw_distinct(rng, batch, length, symbols), axis=1)
    tokens = np.full((batch, length + symbols), vocab)
    tokens[np.arange(batch)[:, None], place] = word
    tokens[:, length:] = vocab + 1
    targets, mask = np.zeros_like(tokens), np.zeros(tokens.shape, dtype=bool)
    targets[:, length:], mask[:, length:] = word, True
    return tokens, targets, mask


def _depths(rng: np.random.Generator, batch: int, room: int, depth: float | None) -> Tokens:
    """How much of `room` comes before the needle."""
    if depth is None:
        return rng.integers(room + 1, size=batch)
    if not 0 <= depth <= 1:
        raise ValueError(f"depth must lie in [0, 1], got {depth}")
    return np.full(batch, round(depth * room))


def _filler(filler: ArrayLike, batch: int, room: int) -> Tokens:
    hay = np.asarray(filler)
    if hay.ndim != 2 or len(hay) != batch or hay.shape[1] < room or hay.dtype.kind not in "iu":
        raise ValueError(
            f"filler must be integers of shape ({batch}, at least {room}), got {hay.shape}, {hay.dtype}"
        )
    return hay[:, :room].astype(np.int64)


def _words_within(text: str, room: int) -> list[str]:
    """The text's words, each with a space after it, again and again, as many as fit in `room` characters."""
    source = [word + " " for word in text.split()]
    if not source:
        raise ValueError("filler must contain a word")
    words: list[str] = []
    while room >= len(source[len(words) % len(source)]):
        words.append(source[len(words) % len(source)])
        room -= len(words[-1])
    return words
