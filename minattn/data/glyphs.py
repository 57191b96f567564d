"""Strips of drawn characters: images of short words as if by hand, with the place of every character known.

Each character is a few strokes through points of a small grid, rounded off, then slanted, stretched, bent and
set beside the one before; ink is a sum of Gaussian dots along the strokes.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._check import at_least, generator, probability

__all__ = ["GLYPHS", "Strips", "glyph_strips"]

Array = NDArray[np.float64]

# Points are two digits, x 0..4 from left to right and y 0..8 downwards: capitals' height 0, baseline 6,
# descenders 8.
GLYPHS = {
    "0": "20 02 04 26 44 42 20", "1": "02 20 26", "2": "01 20 41 42 06 46", "3": "01 20 41 23 44 45 26 05",
    "4": "20 04 44;31 36", "5": "40 00 03 23 44 45 26 05", "6": "40 20 03 05 26 45 44 23 04", "7": "00 40 16",
    "8": "23 01 20 41 23 05 26 45 23", "9": "43 23 02 01 20 41 43 26", "+": "03 43;21 25", "-": "03 43",
    "=": "02 42;04 44", "a": "42 22 04 26 44 42 46", "b": "00 06;03 22 44 26 05", "c": "43 22 04 26 45",
    "d": "40 46;43 22 04 26 45", "e": "04 44 42 22 04 26 45", "f": "40 20 11 16;02 32",
    "g": "43 22 04 26 44 42 47 28 07", "h": "00 06;04 13 33 44 46", "i": "22 26;20 20", "j": "22 27 08;20 20",
    "k": "00 06;42 04 46", "l": "10 15 26 36", "m": "02 06;03 12 23 26;23 32 43 46", "n": "02 06;03 22 43 46",
    "o": "22 03 05 26 45 43 22", "p": "02 08;03 22 44 26 05", "q": "42 48;43 22 04 26 45",
    "r": "02 06;04 22 42", "s": "42 12 03 34 45 36 05", "t": "10 15 26 36;02 32", "u": "02 05 26 45;42 46",
    "v": "02 26 42", "w": "02 16 23 36 42", "x": "02 46;42 06", "y": "02 25;42 08", "z": "02 42 06 46",
}  # fmt: skip
"""Every character that can be drawn, with its strokes."""

_DOTS = 48


class Strips(NamedTuple):
    """Images with ink near 1 on ground near 0, and what they show; L is the largest number of characters.

    Attributes
    ----------
    images : float array (batch, height, width)
    labels : int64 array (batch, L)
        Numbers into the alphabet; -1 after the end.
    lengths : int64 array (batch,)
    extents : float array (batch, L, 2)
        Left and right edge of each character in pixels; 0 after the end.
    """

    images: NDArray[np.floating]
    labels: NDArray[np.int64]
    lengths: NDArray[np.int64]
    extents: Array


def glyph_strips(
    rng: np.random.Generator,
    batch: int,
    length: tuple[int, int],
    alphabet: str = "0123456789",
    height: int = 16,
    repeat: float = 0.0,
    warp: float = 0.0,
    noise: float = 0.05,
    dtype: DTypeLike = np.float32,
) -> Strips:
    """Random words in random handwriting.

    For the word `llee` over the alphabet `el` the labels are `1 1 0 0`.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of words, hands and noise.
    batch : int
        Number of strips.
    length : (int, int)
        Fewest and most characters, both included.
    alphabet : str
        Different characters out of `GLYPHS`.
    height : int
        Of the image in pixels, at least 8. The width is 0.8·height for each of the most characters, and a
        margin.
    repeat : float
        Probability that a character is the one before it once more (beyond chance).
    warp : float
        How far the line bends up and down, as a share of the height: 0 to 0.25.
    noise : float
        Standard deviation of the pixel noise; values are clipped to [0, 1].
    dtype
        Of the images.

    Returns
    -------
    Strips
    """
    generator(rng)
    at_least(1, batch=batch)
    at_least(8, height=height)
    probability(repeat=repeat)
    if not 1 <= length[0] <= length[1]:
        raise ValueError(f"length must be 1 <= fewest <= most, got {length}")
    if not alphabet or len(set(alphabet)) != len(alphabet) or not set(alphabet) <= set(GLYPHS):
        raise ValueError(
            f"alphabet must be different characters out of {''.join(GLYPHS)!r}, got {alphabet!r}"
        )
    if not 0 <= warp <= 0.25 or not noise >= 0:
        raise ValueError(f"warp must lie in [0, 0.25] and noise not be negative, got {warp} and {noise}")
    lengths = rng.integers(length[0], length[1] + 1, size=batch)
    labels = _words(rng, batch, length[1], len(alphabet), repeat)
    labels[np.arange(length[1]) >= lengths[:, None]] = -1
    x, y, extents = _handwriting(rng, labels, alphabet, height)
    width = int(np.ceil(0.8 * height * length[1] + 0.4 * height))
    phase, waves = rng.uniform(0, 2 * np.pi, (batch, 1, 1)), rng.uniform(1, 2, (batch, 1, 1))
    y = y + warp * height / 2 * np.sin(phase + 2 * np.pi * waves * x / width)
    images = _ink(x.reshape(batch, -1), y.reshape(batch, -1), _weights(labels, alphabet), height, width)
    images += noise * rng.standard_normal(images.shape, dtype=np.float32)
    return Strips(np.clip(images, 0, 1, out=images).astype(dtype), labels, lengths, extents)


def _words(rng: np.random.Generator, batch: int, length: int, vocab: int, repeat: float) -> NDArray[np.int64]:
    """Uniform symbols, each replaced by its predecessor with probability `repeat`."""
    fresh = rng.random((batch, length)) >= repeat
    source = np.maximum.accumulate(np.where(fresh, np.arange(length), 0), axis=1)
    return np.take_along_axis(rng.integers(vocab, size=(batch, length)), source, axis=1)


def _handwriting(
    rng: np.random.Generator, labels: NDArray[np.int64], alphabet: str, height: int
) -> tuple[Array, Array, Array]:
    """Dots x, y (batch, L, dots) in pixels and extents (batch, L, 2); what lies after the end is 0 wide."""
    size = labels.shape
    there = labels >= 0
    dots = np.stack([_dots(c)[0] for c in alphabet])[np.maximum(labels, 0)]  # (batch, L, dots, 2) in [0, 1]
    hand = (size[0], 1, 1)
    slant = rng.uniform(-0.2, 0.2, hand) + rng.uniform(-0.05, 0.05, (*size, 1))
    tall = 0.72 * height * rng.uniform(0.9, 1.1, hand)
    wide = height * rng.uniform(0.35, 0.55, size) * there
    gap = height * rng.uniform(0.12, 0.22, size) * there
    right = 0.2 * height + np.cumsum(wide + gap, axis=1)
    left = (right - wide) * there
    u, v = dots[..., 0], dots[..., 1]
    # A slow wave of random phase through each character keeps two of the same kind from being copies.
    phase = rng.uniform(0, 2 * np.pi, (2, *size, 1))
    u = u + 0.05 * np.sin(phase[0] + 4 * v) + slant * (0.5 - v)
    v = v + 0.04 * np.sin(phase[1] + 4 * u)
    x = left[..., None] + wide[..., None] * u
    y = 0.5 * height + tall * (v - 0.5) + 0.04 * height * rng.uniform(-1, 1, (*size, 1))
    return x, y, np.stack([left, right * there], axis=-1)


def _weights(labels: NDArray[np.int64], alphabet: str) -> Array:
    """(batch, L·dots) ink of each dot: the length of stroke that it stands for; none after the end."""
    ink = np.array([_dots(c)[1] for c in alphabet])[np.maximum(labels, 0)] * (labels >= 0)
    return np.repeat(ink, _DOTS, axis=1)


def _ink(x: Array, y: Array, weight: Array, height: int, width: int) -> Array:
    """(batch, height, width): 1 - exp(-sum of Gaussian dots), each a product over x and y: a matmul."""
    spread = 0.045 * height
    gx = np.exp(-(((np.arange(width) + 0.5 - x[..., None]) / spread).astype(np.float32) ** 2) / 2)
    gy = np.exp(-(((np.arange(height) + 0.5 - y[..., None]) / spread).astype(np.float32) ** 2) / 2)
    dots = np.swapaxes(gy * (8 * weight[..., None]).astype(np.float32), 1, 2) @ gx
    return -np.expm1(-dots)


@cache
def _dots(character: str) -> tuple[Array, float]:
    """Dots (dots, 2) evenly spaced along a character's rounded strokes in [0, 1]², and their spacing."""
    strokes = [
        _rounded(np.array([[int(p[0]) / 4, int(p[1]) / 8] for p in s.split()]))
        for s in GLYPHS[character].split(";")
    ]
    steps = [np.linalg.norm(np.diff(s, axis=0), axis=1) for s in strokes]
    total = sum(float(step.sum()) for step in steps)
    # Dots in proportion to length, but enough for a stroke that is only a point to be seen.
    share = [max(6, round(_DOTS * float(step.sum()) / max(total, 1e-9))) for step in steps]
    share[0] += _DOTS - sum(share)
    dots = []
    for stroke, step, n in zip(strokes, steps, share, strict=True):
        along = np.concatenate([[0.0], np.cumsum(step)])
        wanted = (np.arange(n) + 0.5) / n * along[-1]
        dots.append(np.stack([np.interp(wanted, along, stroke[:, k]) for k in (0, 1)], axis=1))
    return np.concatenate(dots), total / _DOTS


def _rounded(points: Array) -> Array:
    """Cut the corners twice (Chaikin): each inner corner becomes two points at a quarter of its sides."""
    for _ in range(2):
        if len(points) > 2:
            a, b = points[:-1], points[1:]
            cut = np.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], axis=1).reshape(-1, 2)
            points = np.concatenate([points[:1], cut[1:-1], points[-1:]])
    return points
