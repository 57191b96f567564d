"""Strips: ink is where the characters are said to be, words have the stated statistics, hands differ."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.data import GLYPHS, glyph_strips


@given(seed=st.integers(0, 999), low=st.integers(1, 4), more=st.integers(0, 3), height=st.integers(8, 24))
def test_ink_lies_within_the_extents_and_every_character_has_some(seed, low, more, height):
    s = glyph_strips(np.random.default_rng(seed), 4, (low, low + more), height=height, noise=0.0)
    assert s.images.shape == (4, height, int(np.ceil(0.8 * height * (low + more) + 0.4 * height)))
    assert s.labels.shape == (4, low + more) and s.extents.shape == (4, low + more, 2)
    centres = np.arange(s.images.shape[2]) + 0.5
    for image, labels, n, extents in zip(*s, strict=True):
        assert low <= n <= low + more
        assert (labels[:n] >= 0).all() and (labels[:n] < 10).all() and (labels[n:] == -1).all()
        assert (extents[n:] == 0).all() and (extents[:n, 0] < extents[:n, 1]).all()
        assert (extents[1:n, 0] > extents[: n - 1, 1]).all() and extents[:n].max() < len(centres)
        # A character leans over its edges by no more than its slant and bend, about 0.1 of the height each.
        near = np.zeros(len(centres), dtype=bool)
        for left, right in extents[:n]:
            at = (centres > left - 0.25 * height) & (centres < right + 0.25 * height)
            near |= at
            assert image[:, (centres > left) & (centres < right)].max() > 0.5
        assert image[:, ~near].max(initial=0) < 0.02


def test_words_are_uniform_without_repeat():
    s = glyph_strips(np.random.default_rng(0), 2000, (2, 4), "abc")
    assert (np.abs(np.bincount(s.lengths)[2:] - 2000 / 3) < 5 * np.sqrt(2000 / 3)).all()
    n = (s.labels >= 0).sum()
    assert (np.abs(np.bincount(s.labels[s.labels >= 0]) - n / 3) < 5 * np.sqrt(n / 3)).all()


@pytest.mark.parametrize("repeat", [0.0, 0.4, 1.0])
def test_repeat(repeat):
    s = glyph_strips(np.random.default_rng(0), 1500, (5, 5), repeat=repeat)
    same = (s.labels[:, 1:] == s.labels[:, :-1]).mean()
    p = repeat + (1 - repeat) / 10
    assert abs(same - p) <= 5 * np.sqrt(p * (1 - p) / 6000)


def test_two_of_a_kind_are_no_copies():
    s = glyph_strips(np.random.default_rng(0), 30, (2, 2), "a", noise=0.0)
    crops = [im[:, int(a) : int(a) + 6] for im, e in zip(s.images, s.extents, strict=True) for a in e[:, 0]]
    assert len({c.tobytes() for c in crops}) == 60


def test_every_character_can_be_told_apart():
    """Nearest neighbour on noiseless pictures finds the character nearly always: no two glyphs look alike."""
    alphabet = "".join(GLYPHS)
    s = glyph_strips(np.random.default_rng(0), 1600, (1, 1), alphabet, height=24, noise=0.0)
    x, y = s.images.reshape(1600, -1).astype(np.float64), s.labels[:, 0]
    distance = (x**2).sum(axis=1) + (x**2).sum(axis=1)[:, None] - 2 * x @ x.T
    np.fill_diagonal(distance, np.inf)
    assert (y[distance.argmin(axis=1)] == y).mean() > 0.95
    assert set(y) == set(range(len(alphabet)))


def test_warp_bends_the_line():
    """The height of the ink's middle varies along the strip, and does not without warp."""
    spread = []
    for warp in (0.0, 0.25):
        s = glyph_strips(np.random.default_rng(0), 100, (8, 8), "-", warp=warp, noise=0.0)
        column = s.images.sum(axis=1)
        middle = (s.images * np.arange(16)[:, None]).sum(axis=1) / np.maximum(column, 1e-9)
        spread.append(np.mean([m[c > 0.5].std() for m, c in zip(middle, column, strict=True)]))
    assert spread[1] > 2 * spread[0]


def test_noise_and_dtype():
    s = glyph_strips(np.random.default_rng(0), 20, (1, 1), noise=0.05, dtype=np.float64)
    assert s.images.dtype == np.float64 and s.images.min() >= 0 and s.images.max() <= 1
    quiet = glyph_strips(np.random.default_rng(0), 20, (1, 1), noise=0.0)
    assert quiet.images.dtype == np.float32
    middle = (quiet.images > 0.3) & (quiet.images < 0.7)
    assert abs((s.images - quiet.images)[middle].std() - 0.05) < 0.005


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": (0, 2)}, "length"),
        ({"length": (3, 2)}, "length"),
        ({"alphabet": ""}, "alphabet"),
        ({"alphabet": "aa"}, "alphabet"),
        ({"alphabet": "é"}, "alphabet"),
        ({"height": 7}, "height"),
        ({"repeat": 1.1}, "repeat"),
        ({"warp": 0.3}, "warp"),
        ({"noise": -1}, "noise"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_input(change, words):
    with pytest.raises(ValueError, match=words):
        glyph_strips(np.random.default_rng(0), **{"batch": 1, "length": (1, 2)} | change)
    with pytest.raises(TypeError, match="rng"):
        glyph_strips(0, 1, (1, 1))
