"""Tones: frames, labels and sound agree; log-mel features against a loop with an explicit Fourier sum."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.data import log_mel, mel_filters, tone_frequencies, tones


@given(
    seed=st.integers(0, 999),
    low=st.integers(1, 3),
    more=st.integers(0, 2),
    short=st.integers(1, 4),
    long=st.integers(0, 3),
)
def test_frames_spell_the_labels(seed, low, more, short, long):
    s = tones(np.random.default_rng(seed), 4, (low, low + more), (short, short + long), noise=0.0)
    assert s.wave.shape == (4, 80 * s.frames.shape[1])
    assert s.frames.shape[1] == (low + more) * (short + long) and s.labels.shape == (4, low + more)
    for wave, labels, n, frames in zip(*s, strict=True):
        assert low <= n <= low + more and (labels[:n] >= 0).all() and (labels[n:] == -1).all()
        runs = [(k, int((frames == k).sum())) for k in range(n)]
        assert all(short <= count <= short + long for _, count in runs)
        silence = [-1] * (len(frames) - sum(count for _, count in runs))
        assert frames.tolist() == [k for k, count in runs for _ in range(count)] + silence
        power = (wave.reshape(-1, 80).astype(float) ** 2).mean(axis=1)
        assert (power[frames < 0] == 0).all() and (power[frames >= 0] > 0).all()
        assert np.abs(wave).max() <= 1


def test_frequencies():
    f = tone_frequencies(7)
    assert np.isclose(f[0, 0], 400) and np.isclose(f[-1, 0], 2400)
    assert np.allclose(f[1:, 0] / f[:-1, 0], 6 ** (1 / 6))
    assert np.allclose(f[:, 1] / f[:, 0], [1, 4 / 3, 2 / 3, 1, 4 / 3, 2 / 3, 1])


def test_each_symbol_sounds_at_its_frequency():
    """The strongest frequency of the first and last third of a long symbol lies where its glide should be."""
    s = tones(np.random.default_rng(0), 80, (1, 1), (60, 60), noise=0.0)
    n = 1600
    for wave, (symbol,) in zip(s.wave, s.labels, strict=True):
        start, end = tone_frequencies(6)[symbol]
        for part, at in ((wave[:n], 1 / 6), (wave[-n:], 5 / 6)):
            heard = np.abs(np.fft.rfft(part * np.hanning(n))).argmax() * 8000 / n
            # off by a pitch of 3 per cent, and by the glide within a third
            assert abs(heard - (start + (end - start) * at)) < 0.04 * start + 0.2 * abs(end - start)
    assert set(s.labels[:, 0]) == set(range(6))


def test_pitch_varies_between_sounds_and_noise_is_noise():
    s = tones(np.random.default_rng(0), 60, (1, 1), (50, 50), vocab=1, noise=0.0)
    heard = np.abs(np.fft.rfft(s.wave * np.hanning(4000), 1 << 16)).argmax(axis=1) * 8000 / (1 << 16)
    assert 385 < heard.min() < 395 and 405 < heard.max() < 415
    loud = np.abs(s.wave).max(axis=1)
    assert 0.49 < loud.min() < 0.6 and 0.9 < loud.max() <= 1
    noisy = tones(np.random.default_rng(0), 60, (1, 1), (50, 50), vocab=1, noise=0.2)
    assert abs((noisy.wave - s.wave).std() - 0.2) < 0.002 and s.wave.dtype == np.float32


def naive_log_mel(wave, bands, rate, hop, window, floor):
    """One frame, one frequency, one band at a time."""
    size = 2 ** math.ceil(math.log2(window))

    def hertz(mel):
        return 700 * (10 ** (mel / 2595) - 1)

    top = 2595 * math.log10(1 + rate / 2 / 700)
    corner = [hertz(top * k / (bands + 1)) for k in range(bands + 2)]
    rows = []
    for t in range(len(wave) // hop):
        first = t * hop - (window - hop) // 2
        power = []
        for k in range(size // 2 + 1):
            total = 0
            for n in range(window):
                x = wave[first + n] if 0 <= first + n < len(wave) else 0.0
                hann = math.sin(math.pi * (n + 0.5) / window) ** 2
                total += x * hann * np.exp(-2j * np.pi * k * n / size)
            power.append(abs(total) ** 2 / window)
        row = []
        for m in range(bands):
            a, b, c = corner[m : m + 3]
            energy = 0.0
            for k, p in enumerate(power):
                f = k * rate / size
                if a < f <= b:
                    energy += p * (f - a) / (b - a)
                elif b < f < c:
                    energy += p * (c - f) / (c - b)
            row.append(math.log(floor + energy))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("hop", "window", "bands"), [(10, 20, 3), (8, 8, 2), (7, 16, 3), (6, 15, 2)])
def test_log_mel_equals_the_loop(hop, window, bands):
    wave = np.random.default_rng(0).standard_normal((2, 45))
    got = log_mel(wave, bands, rate=2000, hop=hop, window=window, floor=1e-2)
    assert got.shape == (2, 45 // hop, bands) and got.std() > 0.1
    for w, g in zip(wave, got, strict=True):
        np.testing.assert_allclose(
            g, naive_log_mel(w, bands, 2000, hop, window, 1e-2), rtol=1e-10, atol=1e-12
        )


def test_log_mel_dtype_silence_and_leading_axes():
    wave = np.random.default_rng(0).standard_normal((2, 3, 400)).astype(np.float32)
    got = log_mel(wave)
    assert got.dtype == np.float32 and got.shape == (2, 3, 5, 16)
    np.testing.assert_allclose(got, log_mel(wave.astype(np.float64)), rtol=1e-4, atol=1e-5)
    assert np.allclose(log_mel(np.zeros(160)), np.log(1e-3))


def test_features_tell_the_symbols():
    """The strongest band of the middle frame is the one that holds the tone."""
    s = tones(np.random.default_rng(0), 50, (1, 1), (9, 9), vocab=6, noise=0.05)
    features = log_mel(s.wave, 16)
    filters = mel_filters(16, 256, 8000)
    for f, (k,) in zip(features, s.labels, strict=True):
        pitch = tone_frequencies(6)[k].mean()
        heard = filters[f[4].argmax()] @ (np.arange(129) * 8000 / 256) / filters[f[4].argmax()].sum()
        assert abs(heard - pitch) < 0.2 * pitch


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: tones(r, 1, (0, 1)), "symbols"),
        (lambda r: tones(r, 1, (2, 1)), "symbols"),
        (lambda r: tones(r, 1, (1, 1), (0, 1)), "duration"),
        (lambda r: tones(r, 1, vocab=0), "vocab"),
        (lambda r: tones(r, 1, noise=-1), "noise"),
        (lambda r: tones(r, 0), "batch"),
        (lambda r: log_mel(np.zeros(79)), "wave"),
        (lambda r: log_mel(np.zeros(800, dtype=int)), "wave"),
        (lambda r: log_mel(np.zeros(800), bands=100), "bands"),
        (lambda r: log_mel(np.zeros(800), bands=0), "bands"),
        (lambda r: log_mel(np.zeros(800), window=79), "window"),
        (lambda r: log_mel(np.zeros(800), floor=0), "floor"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.random.default_rng(0))
    with pytest.raises(TypeError, match="rng"):
        tones(0, 1)
