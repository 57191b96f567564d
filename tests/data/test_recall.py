"""Recall tasks: every answer is found again by reading the sequence from left to right, as a person would."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.data import induction, mqar, needle, passkey, selective_copy

seeds = st.integers(0, 999)


@given(
    seed=seeds,
    low=st.integers(1, 4),
    more=st.integers(0, 4),
    extra=st.integers(1, 9),
    spare=st.integers(0, 3),
)
def test_induction_is_answered_by_the_previous_occurrence(seed, low, more, extra, spare):
    high = low + more
    args = (4, high + extra, high + spare, (low, high))
    tokens, targets, mask = induction(np.random.default_rng(seed), *args)
    assert tokens.shape == targets.shape == mask.shape == (4, high + extra)
    for x, y, m in zip(tokens.tolist(), targets.tolist(), mask.tolist(), strict=True):
        assert y[:-1] == x[1:]
        seen = {}
        for t, token in enumerate(x):
            assert m[t] == (token in seen)  # scored exactly where the token has been here before
            if m[t]:
                assert y[t] == seen[token]
            if t + 1 < len(x):
                seen[token] = x[t + 1]
        assert low <= m.index(True) <= high and max(x) < high + spare


def test_induction_periods_cover_their_range():
    _, _, mask = induction(np.random.default_rng(0), 600, 20, 30, (3, 7))
    periods = mask.argmax(axis=1)
    assert set(periods) == set(range(3, 8))
    assert (np.abs(np.bincount(periods)[3:] - 120) < 50).all()


@given(
    seed=seeds, pairs=st.integers(1, 6), more=st.integers(0, 9), spare=st.integers(0, 4), noise=st.booleans()
)
def test_mqar_answers_are_the_values_bound_earlier(seed, pairs, more, spare, noise):
    length, vocab = 4 * pairs + more, 2 * (pairs + spare)
    tokens, targets, mask = mqar(np.random.default_rng(seed), 5, length, pairs, vocab, noise=noise)
    assert tokens.shape == targets.shape == mask.shape == (5, length)
    for x, y, m in zip(tokens.tolist(), targets.tolist(), mask.tolist(), strict=True):
        memory = dict(zip(x[0 : 2 * pairs : 2], x[1 : 2 * pairs : 2], strict=True))
        assert len(memory) == pairs  # keys are distinct
        assert all(k < vocab // 2 <= v < vocab for k, v in memory.items())
        asked = [t for t in range(length) if m[t]]
        assert sorted(x[t] for t in asked) == sorted(memory)  # each key once more
        assert all(y[t] == memory[x[t]] for t in asked)
        assert all(t >= 2 * pairs and t % 2 == 0 for t in asked)
        assert all(y[t] == 0 for t in range(length) if not m[t])
        if not noise:
            rest = [x[t] for t in range(2 * pairs, length) if not m[t]]
            assert set(rest) <= {vocab}


def test_mqar_places_follow_the_power_law():
    """With one pair the place is one draw from P(g) proportional to (g+1)^(a-1)."""
    n, length = 20_000, 22
    for power in (0.01, 1.0, 2.5):
        _, _, mask = mqar(np.random.default_rng(1), n, length, 1, 4, power=power)
        counts = np.bincount((mask.argmax(axis=1) - 2) // 2, minlength=10)
        p = np.arange(1, 11) ** (power - 1)
        p = n * p / p.sum()
        assert (np.abs(counts - p) < 5 * np.sqrt(p)).all()


def test_mqar_joint_draw_without_replacement():
    """Two pairs, three places: the pair of places follows sequential draws, enumerated here."""
    n = 30_000
    tokens, _, mask = mqar(np.random.default_rng(2), n, 10, 2, 8, power=0.3)
    p = np.arange(1, 4) ** (0.3 - 1)
    place = np.array([[4 + 2 * g for g in range(3)]])
    first = (tokens[:, place[0]] == tokens[:, :1]) & mask[:, place[0]]
    second = (tokens[:, place[0]] == tokens[:, 2:3]) & mask[:, place[0]]
    for i in range(3):
        for j in range(3):
            expected = 0 if i == j else n * p[i] / p.sum() * p[j] / (p.sum() - p[i])
            assert abs((first[:, i] & second[:, j]).sum() - expected) <= 5 * np.sqrt(expected)


@given(seed=seeds, width=st.integers(1, 4), room=st.integers(0, 9), vocab=st.integers(1, 9))
def test_needle_is_found_by_its_mark(seed, width, room, vocab):
    length = room + 2 * width + 1
    tokens, targets, mask, start = needle(np.random.default_rng(seed), 4, length, vocab, width)
    for x, y, m, s in zip(tokens.tolist(), targets.tolist(), mask.tolist(), start, strict=True):
        assert x.count(vocab) == 1 and x.count(vocab + 1) == 1
        at = x.index(vocab) + 1
        word = x[at : at + width]
        assert at == s and max(word) < vocab
        assert x[length - width] == vocab + 1 and x[length - width + 1 :] == word[:-1]
        assert y == [0] * (length - width) + word
        assert m == [False] * (length - width) + [True] * width


def test_needle_depth_and_filler():
    rng = np.random.default_rng(0)
    hay = np.arange(40).reshape(2, 20)
    for depth, at in ((0.0, 0), (0.5, 10), (1.0, 20)):
        tokens, _, _, start = needle(rng, 2, 25, 50, 2, depth=depth, filler=hay)
        assert (start == at + 1).all()
        assert (np.delete(tokens, [at, at + 1, at + 2, 23, 24], axis=1) == hay).all()
    _, _, _, start = needle(rng, 3000, 25, 50, 2)
    assert set(start) == set(range(1, 22))  # every place, first and last included


@given(seed=seeds, digits=st.integers(1, 6), room=st.integers(0, 300), depth=st.none() | st.floats(0, 1))
def test_passkey_text(seed, digits, room, depth):
    shortest = len("Remember this: the pass key is . What is the pass key? The pass key is") + digits
    prompt, answer, start = passkey(np.random.default_rng(seed), shortest + room, digits, depth)
    assert shortest <= len(prompt) <= shortest + room
    assert prompt[start : start + digits] == answer[1:] and answer[0] == " " and answer[1:].isdigit()
    assert prompt.count(answer[1:] + ".") == 1
    assert prompt.endswith("What is the pass key? The pass key is") and "  " not in prompt


def test_passkey_depth_and_filler():
    text = "one two three four five six seven eight nine ten "
    for depth, before in ((0, 0), (0.5, 5), (1, 10)):
        prompt, _, start = passkey(np.random.default_rng(0), 122, 3, depth, filler=text)
        assert len(prompt) == 122 and len(prompt[:start].split()) == before + 6
    long, _, _ = passkey(np.random.default_rng(0), 1000, 3, filler="word")
    assert long.count("word ") == (1000 - 73) // 5


@given(seed=seeds, symbols=st.integers(1, 5), blanks=st.integers(0, 6), vocab=st.integers(1, 5))
def test_selective_copy_gives_back_what_is_no_blank(seed, symbols, blanks, vocab):
    length = symbols + blanks
    tokens, targets, mask = selective_copy(np.random.default_rng(seed), 4, length, symbols, vocab)
    for x, y, m in zip(tokens.tolist(), targets.tolist(), mask.tolist(), strict=True):
        word = [s for s in x[:length] if s != vocab]
        assert len(word) == symbols and max(word) < vocab
        assert x[length:] == [vocab + 1] * symbols
        assert y == [0] * length + word and m == [False] * length + [True] * symbols


def test_selective_copy_places_are_uniform():
    tokens, _, _ = selective_copy(np.random.default_rng(0), 4000, 6, 2, 3)
    counts = (tokens[:, :6] != 3).sum(axis=0)
    assert (np.abs(counts - 4000 / 3) < 5 * np.sqrt(4000 / 3)).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: induction(r, 1, 5, 9, (0, 3)), "period"),
        (lambda r: induction(r, 1, 5, 9, (4, 3)), "period"),
        (lambda r: induction(r, 1, 5, 9, (1, 5)), "period"),
        (lambda r: induction(r, 1, 50, 9, (1, 10)), "period"),
        (lambda r: mqar(r, 1, 15, 4, 64), "length must be at least 4 pairs = 16, got 15"),
        (lambda r: mqar(r, 1, 16, 4, 7), "vocab"),
        (lambda r: mqar(r, 1, 16, 4, 6), "vocab"),
        (lambda r: mqar(r, 1, 16, 4, 9), "vocab"),
        (lambda r: mqar(r, 1, 16, 4, 8, power=0), "power"),
        (lambda r: needle(r, 1, 4, 5, 2), "length must be at least 2 width"),
        (lambda r: needle(r, 1, 9, 5, 2, depth=1.1), "depth"),
        (lambda r: needle(r, 1, 9, 5, 2, filler=np.zeros((1, 3), int)), "filler"),
        (lambda r: needle(r, 2, 9, 5, 2, filler=np.zeros((1, 9), int)), "filler"),
        (lambda r: needle(r, 1, 9, 5, 2, filler=np.zeros((1, 9))), "filler"),
        (lambda r: passkey(r, 70, 3), "length"),
        (lambda r: passkey(r, 100, 3, depth=-0.1), "depth"),
        (lambda r: passkey(r, 100, 3, filler=" "), "filler"),
        (lambda r: passkey(r, 100, 0), "digits"),
        (lambda r: selective_copy(r, 1, 3, 4, 5), "length"),
        (lambda r: selective_copy(r, 1, 3, 0, 5), "symbols"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.random.default_rng(0))
    with pytest.raises(TypeError, match="rng"):
        call(np.random)


def assert_uniform(drawn, kinds):
    """Every number equally often, in every column, and columns independent of each other."""
    drawn = np.asarray(drawn).reshape(len(drawn), -1)
    n = len(drawn)
    for column in drawn.T:
        assert (np.abs(np.bincount(column, minlength=kinds) - n / kinds) < 5 * np.sqrt(n / kinds)).all()
    for a, b in zip(drawn.T[:-1], drawn.T[1:], strict=True):
        p = 1 / kinds
        assert abs((a == b).mean() - p) < 5 * np.sqrt(p * (1 - p) / n)


def test_symbols_are_drawn_one_by_one():
    rng, n = np.random.default_rng(0), 4000
    tokens, _, _ = mqar(rng, n, 12, 2, 8)
    assert_uniform(tokens[:, 1:4:2] - 4, 4)
    assert_uniform(
        tokens[:, 5::2], 8
    )  # odd places are never asked: noise, by default, over the whole vocabulary
    tokens, *_ = needle(rng, n, 12, 5, 3, depth=0.0)
    assert_uniform(np.column_stack([tokens[:, 1:4], tokens[:, 4:9]]), 5)
    tokens, targets, _ = selective_copy(rng, n, 6, 3, 5)
    assert_uniform(targets[:, 6:], 5)
    tokens, *_ = induction(rng, n, 9, 6, (4, 4))
    counts = np.bincount(tokens[:, :4].ravel(), minlength=6)
    assert (np.abs(counts - n * 4 / 6) < 5 * np.sqrt(n * 4 / 6)).all()


def test_types_and_defaults():
    rng = np.random.default_rng(0)
    for tokens, targets, mask, *start in (
        induction(rng, 2, 8, 9, (2, 3)),
        mqar(rng, 2, 16, 2, 8),
        mqar(rng, 2, 16, 2, 8, noise=False),
        needle(rng, 2, 8, 5),
        needle(rng, 2, 8, 5, filler=np.zeros((2, 9), dtype=np.uint8)),
        selective_copy(rng, 2, 8, 2, 5),
    ):
        assert tokens.dtype == targets.dtype == np.int64 and mask.dtype == bool
        assert all(s.dtype == np.int64 for s in start)
    assert needle(rng, 2, 8, 5)[2].sum() == 2  # one symbol by default
    assert len(passkey(rng, 200)[1]) == 6  # five digits by default
    _, _, mask = mqar(rng, 4000, 42, 1, 4)  # power 0.01 by default: P(0) = 1 / sum of k^-0.99
    p = 1 / (np.arange(1, 21) ** -0.99).sum()
    assert abs((mask.argmax(axis=1) == 2).mean() - p) < 5 * np.sqrt(p / 4000)


@pytest.mark.parametrize(
    "call",
    [
        lambda r, n: induction(r, n, 5, 9, (1, 2)),
        lambda r, n: mqar(r, n, 16, 4, 8),
        lambda r, n: needle(r, n, 9, 5),
        lambda r, n: selective_copy(r, n, 5, 2, 3),
        lambda r, n: needle(r, 1, 9, n),
        lambda r, n: needle(r, 1, 9, 5, n),
        lambda r, n: selective_copy(r, 1, 5, 2, n),
        lambda r, n: mqar(r, 1, 16, n, 8),
    ],
)
def test_nothing_of_something_is_refused(call):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        call(np.random.default_rng(0), 0)
    with pytest.raises(TypeError, match="must be an integer"):
        call(np.random.default_rng(0), 1.5)


def test_errors_say_what_was_expected():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"period must be 1 <= low <= high <= 4, got \(1, 5\)"):
        induction(rng, 1, 5, 9, (1, 5))
    with pytest.raises(ValueError, match="at least 2 pairs = 8, got 6"):
        mqar(rng, 1, 16, 4, 6)
    with pytest.raises(ValueError, match=r"at least 2 width \+ 1 = 7, got 6"):
        needle(rng, 1, 6, 5, 3)
    with pytest.raises(ValueError, match="length must be at least 73 for 3 digits, got 70"):
        passkey(rng, 70, 3)
