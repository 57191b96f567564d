"""Melodies as symbols: tunes that repeat a phrase elsewhere in the scale, within bars of equal length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._check import at_least, generator

__all__ = ["melody"]

LEAPS = (-2, -1, 0, 1, 2)
"""Steps of the scale from one note to the next, and from a phrase to its repetition; all equally likely."""


def melody(
    rng: np.random.Generator, batch: int, form: str = "AABA", notes: int = 6, beats: int = 12,
    degrees: int = 15
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Tunes of phrases, a phrase being one bar of notes, a note two tokens: its pitch, then its duration.

    Tokens 0..degrees-1 are the degrees of a scale, and degrees + d - 1 is a duration of d beats; there are
    degrees + beats - notes + 1 tokens. Written as pitch:duration, with `form="AAB"`, 3 notes and 8 beats::

        A   5:3 6:1 4:4
        A   7:3 8:1 6:4    the same rhythm, the same line, two steps higher
        B   2:2 3:5 3:1    a new one

    A new phrase starts anywhere from the third degree to the third last; each next note lies up to two
    degrees away, and a step that would leave that range is turned round. Its rhythm is uniform among all
    ways to cut `beats` into `notes` durations. When a letter comes again, so does its phrase as first drawn,
    moved by up to two degrees.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of pitches, rhythms and moves.
    batch : int
        Number of tunes.
    form : str
        The phrases by letter; the same letter is the same phrase.
    notes, beats : int
        Notes in a phrase, and the sum of their durations; beats >= notes.
    degrees : int
        Number of pitches, at least 9.

    Returns
    -------
    tokens : int64 array (batch, 2 * notes * len(form))
    known : bool array, of the same shape
        True where the token follows from those before it (and the form): all durations of a repetition, all
        its pitches but the first, and of a new phrase the durations that the bar leaves no choice.

    Raises
    ------
    ValueError, TypeError
        If the form is empty or no text, or a number is out of range.
    """
    generator(rng)
    at_least(1, batch=batch, notes=notes)
    at_least(notes, beats=beats)
    at_least(9, degrees=degrees)
    if not isinstance(form, str) or not form:
        raise ValueError(f"form must be letters such as 'AABA', got {form!r}")
    phrases: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    tokens, known = [], []  # of each phrase, (batch, notes, 2): pitch and duration
    for letter in form:
        again = letter in phrases
        if not again:
            phrases[letter] = _line(rng, batch, notes, degrees), _rhythm(rng, batch, notes, beats)
        line, rhythm = phrases[letter]
        pitch_known = np.broadcast_to(again & (np.arange(notes) > 0), (batch, notes))
        move = rng.choice(LEAPS, size=(batch, 1)) if again else 0
        tokens.append(np.stack([line + move, rhythm + degrees - 1], axis=-1))
        known.append(np.stack([pitch_known, again | _forced(rhythm, beats)], axis=-1))
    return np.concatenate(tokens, 1).reshape(batch, -1), np.concatenate(known, 1).reshape(batch, -1)


def _line(rng: np.random.Generator, batch: int, notes: int, degrees: int) -> NDArray[np.int64]:
    """A walk on the degrees 2 .. degrees-3."""
    low, high = 2, degrees - 3
    line = rng.integers(low, high + 1, size=(batch, notes))
    leaps = rng.choice(LEAPS, size=(batch, notes))
    for t in range(1, notes):
        there = line[:, t - 1] + leaps[:, t]
        line[:, t] = np.where((there < low) | (there > high), line[:, t - 1] - leaps[:, t], there)
    return line


def _rhythm(rng: np.random.Generator, batch: int, notes: int, beats: int) -> NDArray[np.int64]:
    """Durations of at least 1 with the sum `beats`: a random choice of notes - 1 places to cut."""
    cuts = np.sort(rng.permuted(np.tile(np.arange(1, beats), (batch, 1)), axis=1)[:, : notes - 1], axis=1)
    ends = np.pad(cuts, ((0, 0), (0, 1)), constant_values=beats)
    return np.diff(ends, axis=1, prepend=0)


def _forced(rhythm: NDArray[np.int64], beats: int) -> NDArray[np.bool_]:
    """Where the bar leaves one duration only: at the last note, or if every note left must have one beat."""
    notes = rhythm.shape[1]
    left = beats - np.cumsum(rhythm, axis=1) + rhythm
    return (np.arange(notes) == notes - 1) | (left == notes - np.arange(notes))
