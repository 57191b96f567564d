"""Melodies: every rule of the description is checked by a reader who goes from left to right."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.data import melody


def parts(tokens, notes, degrees=15):
    """Pitches and durations, (batch, phrases, notes) each."""
    pairs = tokens.reshape(len(tokens), -1, notes, 2)
    return pairs[..., 0], pairs[..., 1] - (degrees - 1)


@settings(max_examples=30, deadline=None)
@given(st.text("ABC", min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 5), st.integers(9, 16),
       st.integers(1, 9), st.integers(0, 99))
def test_every_tune_obeys_the_rules(form, notes, more, degrees, batch, seed):
    beats = notes + more
    tokens, known = melody(np.random.default_rng(seed), batch, form, notes, beats, degrees)
    assert tokens.shape == known.shape == (batch, 2 * notes * len(form))
    assert (tokens.dtype, known.dtype) == (np.int64, np.bool_)
    pitch, duration = parts(tokens, notes, degrees)
    assert pitch.min() >= 0 and pitch.max() < degrees <= tokens[:, 1::2].min()
    assert tokens.max() < degrees + more + 1
    assert duration.min() >= 1 and (duration.sum(-1) == beats).all()
    assert (np.abs(np.diff(pitch, axis=-1)) <= 2).all()
    for p, letter in enumerate(form):
        first = form.index(letter)
        if p == first:
            assert pitch[:, p].min() >= 2 and pitch[:, p].max() <= degrees - 3
            continue
        np.testing.assert_array_equal(duration[:, p], duration[:, first])
        moves = pitch[:, p] - pitch[:, first]
        assert (moves == moves[:, :1]).all() and np.abs(moves).max() <= 2


def test_known_is_what_a_reader_can_tell():
    """The marks against a count of continuations: those of all short tunes with the same beginning."""
    tokens, known = melody(np.random.default_rng(0), 60_000, "AA", notes=2, beats=4, degrees=9)
    follows = {}
    for row in tokens.tolist():
        for t in range(len(row)):
            follows.setdefault(tuple(row[:t]), set()).add(row[t])
    for row, marks in zip(tokens[:500].tolist(), known[:500], strict=True):
        assert [len(follows[tuple(row[:t])]) == 1 for t in range(len(row))] == marks.tolist()
    assert 0.3 < known.mean() < 0.9


def test_known_of_a_new_phrase_is_the_rest_of_a_full_bar():
    tokens, known = melody(np.random.default_rng(1), 200, "A", notes=4, beats=6)
    _, duration = parts(tokens, 4)
    for d, marks in zip(duration[:, 0], known.reshape(200, 4, 2), strict=True):
        assert not marks[:, 0].any()
        assert marks[:, 1].tolist() == [t == 3 or 6 - d[:t].sum() == 4 - t for t in range(4)]


def test_rhythms_and_moves_are_uniform():
    tokens, _ = melody(np.random.default_rng(2), 20_000, "AA", notes=3, beats=5)
    pitch, duration = parts(tokens, 3)
    ways = [d for d in itertools.product(range(1, 4), repeat=3) if sum(d) == 5]
    counts = np.array([(duration[:, 0] == w).all(-1).sum() for w in ways])
    assert len(ways) == 6 and np.abs(counts / 20_000 - 1 / 6).max() < 0.015
    for values in (pitch[:, 1, 0] - pitch[:, 0, 0],  # the move
                   (pitch[:, 0, 1] - pitch[:, 0, 0])[np.abs(pitch[:, 0, 0] - 7) < 3]):  # a step inside
        share = np.array([(values == step).mean() for step in (-2, -1, 0, 1, 2)])
        assert np.abs(share - 0.2).max() < 0.02
    start = np.bincount(pitch[:, 0, 0], minlength=15) / 20_000
    assert not start[[0, 1, 13, 14]].any() and np.abs(start[2:13] - 1 / 11).max() < 0.01


def test_a_step_out_of_range_is_turned_round():
    tokens, _ = melody(np.random.default_rng(3), 5000, "A", notes=2, beats=2)
    pitch, _ = parts(tokens, 2)
    ends = {start: np.unique(pitch[:, 0, 1][pitch[:, 0, 0] == start]) for start in (2, 3, 11, 12)}
    assert {s: e.tolist() for s, e in ends.items()} == {
        2: [2, 3, 4], 3: [2, 3, 4, 5], 11: [9, 10, 11, 12], 12: [10, 11, 12]}
    up = (pitch[:, 0, 1] == 4)[pitch[:, 0, 0] == 2].mean()  # two up, or two down turned round
    assert abs(up - 0.4) < 0.08


def test_the_defaults_and_a_seed():
    tokens, known = melody(np.random.default_rng(4), 3)
    assert tokens.shape == (3, 48) and tokens.max() < 22
    again, marks = melody(np.random.default_rng(4), 3, "AABA", 6, 12, 15)
    np.testing.assert_array_equal(tokens, again)
    np.testing.assert_array_equal(known, marks)
    assert (tokens != melody(np.random.default_rng(5), 3)[0]).any()
    assert len({tuple(row) for row in tokens.tolist()}) == 3


@pytest.mark.parametrize("change, message", [
    ({"form": ""}, "form must be letters such as 'AABA', got ''"),
    ({"form": ["A"]}, r"form must be letters such as 'AABA', got \['A'\]"),
    ({"batch": 0}, "batch must be at least 1, got 0"),
    ({"notes": 0}, "notes must be at least 1, got 0"),
    ({"beats": 5}, "beats must be at least 6, got 5"),
    ({"degrees": 8}, "degrees must be at least 9, got 8"),
])
def test_bad_numbers_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        melody(np.random.default_rng(0), **({"batch": 2} | change))


def test_the_example_is_a_tune():
    """The tune of the docstring obeys the rules."""
    rows = re.findall(r"^ +([AB])   ((?:\d+:\d+ ?)+)", melody.__doc__, re.M)
    tune = {n: [tuple(map(int, note.split(":"))) for note in notes.split()]
            for n, (_, notes) in enumerate(rows)}
    assert [letter for letter, _ in rows] == ["A", "A", "B"]
    assert all(sum(d for _, d in phrase) == 8 for phrase in tune.values())
    assert [(b - a, d == e) for (a, d), (b, e) in zip(tune[0], tune[1], strict=True)] == [(2, True)] * 3
    assert all(abs(a - b) <= 2 for p in tune.values() for (a, _), (b, _) in itertools.pairwise(p))
    with pytest.raises(TypeError, match="rng"):
        melody(0, 2)
