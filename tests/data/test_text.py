"""Vocabulary, split and windows."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minattn.data.text
from minattn.data import CharVocabulary, batches, split


@given(text=st.text(min_size=1, max_size=30), data=st.data())
def test_decode_undoes_encode(text, data):
    vocabulary = CharVocabulary(text)
    assert len(vocabulary) == len(set(text)) and list(vocabulary.characters) == sorted(set(text))
    other = data.draw(st.text(alphabet=sorted(set(text)), max_size=30))
    ids = vocabulary.encode(other)
    assert ids.dtype == np.int64 and ids.tolist() == [vocabulary.characters.index(c) for c in other]
    assert vocabulary.decode(ids) == other == vocabulary.decode(ids.tolist())


def test_unknown_characters_are_refused():
    vocabulary = CharVocabulary("bdf")
    for text, at, c in (("bad", 1, "a"), ("dc", 1, "c"), ("fz", 1, "z"), ("b😀", 1, "😀")):
        with pytest.raises(ValueError, match=rf"outside the vocabulary at {at}: '{c}'"):
            vocabulary.encode(text)
    for ids in ([3], [-1], [[0]], [0.0]):
        with pytest.raises(ValueError, match="ids"):
            vocabulary.decode(ids)
    for bad in ("", None, 5):
        with pytest.raises(ValueError, match="text"):
            CharVocabulary(bad)


def test_docstring():
    assert doctest.testmod(minattn.data.text).failed == 0


@given(n=st.integers(2, 50), fraction=st.floats(0.01, 0.99))
def test_split_cuts_once(n, fraction):
    ids = np.arange(n)
    if not 0 < int(fraction * n) < n:
        with pytest.raises(ValueError, match="ids"):
            split(ids, fraction)
        return
    train, validation = split(ids, fraction)
    assert np.concatenate([train, validation]).tolist() == ids.tolist()
    assert len(train) <= fraction * n < len(train) + 1 and len(validation)


@given(seed=st.integers(0, 99), length=st.integers(1, 9), more=st.integers(1, 9))
def test_windows_are_consecutive_and_shifted_by_one(seed, length, more):
    ids = np.arange(100, 100 + length + more, dtype=np.uint16)
    x, y = batches(np.random.default_rng(seed), ids, 6, length)
    assert x.shape == y.shape == (6, length) and x.dtype == y.dtype == np.uint16
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        assert a == list(range(a[0], a[0] + length)) and b == [k + 1 for k in a]
        assert 100 <= a[0] and b[-1] < 100 + length + more


def test_every_window_is_equally_likely():
    x, y = batches(np.random.default_rng(0), np.arange(10), 7000, 3)
    counts = np.bincount(x[:, 0], minlength=7)
    assert len(counts) == 7 and (np.abs(counts - 1000) < 5 * np.sqrt(1000)).all() and y.max() == 9


@pytest.mark.parametrize(
    ("ids", "batch", "length", "words"),
    [
        (np.zeros((2, 5)), 1, 2, "one dimension"),
        (np.arange(5), 0, 2, "batch"),
        (np.arange(5), 1, 0, "length"),
        (np.arange(5), 1, 5, "length"),
    ],
)
def test_bad_input(ids, batch, length, words):
    with pytest.raises(ValueError, match=words):
        batches(np.random.default_rng(0), ids, batch, length)
    with pytest.raises(TypeError, match="rng"):
        batches(0, np.arange(5), 1, 2)
    for fraction in (0, 1, -0.5, np.nan):
        with pytest.raises(ValueError, match="fraction"):
            split(np.arange(5), fraction)
