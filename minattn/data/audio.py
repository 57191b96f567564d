"""Tone sequences: words whose letters are short tones and chirps, as sound, with labels for every frame."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._check import at_least, generator

__all__ = ["Tones", "log_mel", "mel_filters", "tone_frequencies", "tones"]

Array = NDArray[np.float64]

RATE = 8000
HOP = 80


class Tones(NamedTuple):
    """Sound at 8,000 samples a second, 80 samples (10 ms) to a frame; U symbols at most, T frames.

    Attributes
    ----------
    wave : float array (batch, 80·T)
    labels : int64 array (batch, U)
        The symbols; -1 after the end.
    lengths : int64 array (batch,)
        Number of symbols.
    frames : int64 array (batch, T)
        Which of the batch's symbols (0..U-1) sounds in each frame; -1 in the silence after the last.
    """

    wave: NDArray[np.floating]
    labels: NDArray[np.int64]
    lengths: NDArray[np.int64]
    frames: NDArray[np.int64]


def tone_frequencies(vocab: int) -> Array:
    """(vocab, 2) frequency in Hz at the start and at the end of each symbol.

    The bases rise from 400 to 2,400 Hz in equal ratios. Symbols 0, 3, 6, ... keep theirs (tones), 1, 4, ...
    rise by a third and 2, 5, ... fall by a third (chirps).
    """
    at_least(1, vocab=vocab)
    base = np.geomspace(400, 2400, vocab)
    change = np.array([1, 4 / 3, 2 / 3])[np.arange(vocab) % 3]
    return np.stack([base, base * change], axis=1)


def tones(
    rng: np.random.Generator,
    batch: int,
    symbols: tuple[int, int] = (2, 4),
    duration: tuple[int, int] = (4, 8),
    vocab: int = 6,
    noise: float = 0.1,
    dtype: DTypeLike = np.float32,
) -> Tones:
    """Random words, each letter sounding for a random number of frames.

    The word `2 0`, with 4 and 5 frames, has the frames `0 0 0 0 1 1 1 1 1 -1 -1 ...`: a falling chirp, then a
    tone.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of words, durations, loudness, pitch and noise.
    batch : int
        Number of sounds.
    symbols, duration : (int, int)
        Fewest and most letters in a word, and frames in a letter, both included. T is the most of both,
        multiplied.
    vocab : int
        Number of different letters, as in `tone_frequencies`.
    noise : float
        Standard deviation of the noise; letters have amplitudes between 0.5 and 1.
    dtype
        Of the sound.

    Returns
    -------
    Tones
        Letters swell and fade with the root of a sine, so that a repeated letter is heard as two; the pitch
        of each sound is off by up to 3 per cent.
    """
    generator(rng)
    at_least(1, batch=batch)
    for name, (low, high) in (("symbols", symbols), ("duration", duration)):
        if not 1 <= low <= high:
            raise ValueError(f"{name} must be 1 <= fewest <= most, got {(low, high)}")
    if not noise >= 0:
        raise ValueError(f"noise must not be negative, got {noise}")
    table = tone_frequencies(vocab)
    most = symbols[1]
    lengths = rng.integers(symbols[0], most + 1, size=batch)
    there = np.arange(most) < lengths[:, None]
    labels = rng.integers(vocab, size=(batch, most))
    time = rng.integers(duration[0], duration[1] + 1, size=(batch, most)) * there
    ends = np.cumsum(time, axis=1)
    t = np.arange(most * duration[1])
    which = (t[:, None] >= ends[:, None, :]).sum(axis=2)  # symbols that are over
    frames = np.where(t < ends[:, -1:], which, -1)
    wave = _sing(rng, table[labels], frames, time, ends - time)
    wave += noise * rng.standard_normal(wave.shape, dtype=np.float32)
    return Tones(wave.astype(dtype), np.where(there, labels, -1), lengths, frames)


def _sing(
    rng: np.random.Generator,
    pitch: Array,
    frames: NDArray[np.int64],
    time: NDArray[np.int64],
    start: NDArray[np.int64],
) -> Array:
    """(batch, samples): each frame's symbol, its pitch (batch, U, 2) gliding over its time."""
    batch, most = time.shape
    loud = rng.uniform(0.5, 1, size=(batch, most))
    pitch = pitch * rng.uniform(0.97, 1.03, size=(batch, 1, 1))
    which = np.maximum(frames, 0)
    first, last, begin, span, volume = (
        np.repeat(np.take_along_axis(a, which, axis=1), HOP, axis=1)
        for a in (pitch[..., 0], pitch[..., 1], start * HOP, np.maximum(time, 1) * HOP, loud)
    )
    s = (np.arange(first.shape[1]) - begin) / span  # 0..1 within the symbol
    phase = 2 * np.pi / RATE * np.cumsum(first + (last - first) * s, axis=1)
    sounding = np.repeat(frames >= 0, HOP, axis=1)
    swell = np.sqrt(np.sin(np.pi * np.clip(s, 0, 1)))
    return np.where(sounding, volume * swell * np.sin(phase), 0)


def log_mel(
    wave: ArrayLike, bands: int = 16, rate: int = RATE, hop: int = HOP, window: int = 200, floor: float = 1e-3
) -> NDArray[np.floating]:
    """Log-mel features: log(floor + mel filters · |FFT of each windowed frame|² / window).

    Frame t is the Hann window of `window` samples centred on the middle of samples t·hop .. (t+1)·hop-1,
    zeros beyond the ends, so there are as many frames as whole hops.

    Parameters
    ----------
    wave : float array (..., samples)
    bands : int
        Number of mel bands.
    rate, hop, window : int
        Samples a second, between frames, and in a frame (window >= hop).
    floor : float
        Added before the logarithm, > 0.

    Returns
    -------
    array (..., samples // hop, bands)
        With the dtype of `wave`.
    """
    wave = np.asarray(wave)
    if wave.dtype.kind != "f" or wave.ndim < 1 or wave.shape[-1] < hop:
        raise ValueError(
            f"wave must be floats with at least {hop} samples, got {wave.dtype}, shape {wave.shape}"
        )
    at_least(1, bands=bands, rate=rate, hop=hop)
    at_least(hop, window=window)
    if not floor > 0:
        raise ValueError(f"floor must be positive, got {floor}")
    count = wave.shape[-1] // hop
    before = (window - hop) // 2
    padding = [(0, 0)] * (wave.ndim - 1) + [(before, window)]
    padded = np.pad(wave, padding)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=-1)[..., : count * hop : hop, :]
    size = 1 << (window - 1).bit_length()
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(window) + 0.5) / window)).astype(wave.dtype)
    spectrum = np.fft.rfft(frames * hann, size)
    power = (spectrum.real**2 + spectrum.imag**2).astype(wave.dtype) / window
    return np.log(power @ mel_filters(bands, size, rate).astype(wave.dtype).T + wave.dtype.type(floor))


def mel_filters(bands: int, size: int, rate: int) -> Array:
    """(bands, size//2 + 1) triangular filters, evenly spaced and half overlapping on the mel scale.

    mel(f) = 2595 log10(1 + f/700); the corners are bands + 2 even steps from 0 to rate/2. ValueError if a
    filter is so narrow that no frequency of an FFT of `size` falls into it.
    """
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    f = np.arange(size // 2 + 1) * rate / size
    low, middle, high = (corners[k : k + bands, None] for k in range(3))
    filters = np.maximum(0, np.minimum((f - low) / (middle - low), (high - f) / (high - middle)))
    if not (filters.sum(axis=1) > 0).all():
        raise ValueError(
            f"bands must be fewer, or the window longer, for every mel band to have a frequency; got {bands}"
        )
    return filters
