"""State tasks, each against a machine that executes the sequence step by step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.data import counting, flip_flop, modular_arithmetic

seeds = st.integers(0, 999)


@given(seed=seeds, pairs=st.integers(2, 12), ignore=st.floats(0, 1))
def test_flip_flop_reads_the_last_written_bit(seed, pairs, ignore):
    tokens, targets, mask = flip_flop(np.random.default_rng(seed), 4, 2 * pairs, ignore)
    for x, y, m in zip(tokens.tolist(), targets.tolist(), mask.tolist(), strict=True):
        assert y == [*x[1:], 0] and x[0] == 2 and x[-2] == 4
        bit = None
        for t in range(0, 2 * pairs, 2):
            assert x[t] in (2, 3, 4) and x[t + 1] in (0, 1)
            assert m[t] == (x[t] == 4) and not m[t + 1]
            if x[t] == 2:
                bit = x[t + 1]
            if x[t] == 4:
                assert x[t + 1] == bit


def test_flip_flop_proportions():
    tokens, _, _ = flip_flop(np.random.default_rng(0), 500, 82, ignore=0.8)
    inner = tokens[:, 2:-2:2]
    share = [(inner == k).mean() for k in (2, 3, 4)]
    assert np.allclose(share, [0.1, 0.8, 0.1], atol=5 * 0.4 / np.sqrt(inner.size))
    assert abs(tokens[:, 1::2].mean() - 0.5) < 0.02


@given(seed=seeds, length=st.integers(1, 20), variables=st.integers(1, 3), limit=st.integers(1, 4))
def test_counting_against_counters(seed, length, variables, limit):
    tokens, targets, mask = counting(np.random.default_rng(seed), 4, length, variables, limit, idle=0.2)
    for x, y, m in zip(tokens.tolist(), targets.tolist(), mask.tolist(), strict=True):
        count = [0] * variables
        assert m[-1]
        for command, answer, scored in zip(x, y, m, strict=True):
            v, what = divmod(command - 1, 3)
            assert scored == (command > 0 and what == 2)
            if command == 0:
                assert answer == 0
            elif what == 0:
                count[v] = 0
            elif what == 1:
                count[v] = min(count[v] + 1, limit)
            assert answer == (count[v] if scored else 0)


def test_counting_uses_every_command():
    tokens, targets, _ = counting(np.random.default_rng(0), 300, 40, variables=2, limit=3, idle=0.5)
    counts = np.bincount(tokens[:, :-1].ravel(), minlength=7)
    n = counts.sum()
    assert (
        abs(counts[0] - n / 2) < 5 * np.sqrt(n) and (np.abs(counts[1:] - n / 12) < 5 * np.sqrt(n / 12)).all()
    )
    assert set(targets.ravel()) == {0, 1, 2, 3}


@given(
    seed=seeds,
    terms=st.integers(1, 9),
    modulus=st.integers(2, 7),
    operations=st.sampled_from(["+", "-*", "+-*"]),
)
def test_modular_arithmetic_against_python(seed, terms, modulus, operations):
    rng = np.random.default_rng(seed)
    tokens, result = modular_arithmetic(rng, 5, 2 * terms - 1, modulus, operations)
    for x, r in zip(tokens.tolist(), result.tolist(), strict=True):
        text = " ".join(str(n) if n < modulus else "+-*"[n - modulus] for n in x)
        assert eval(text) % modulus == r  # Python multiplies first, too
        assert all((n >= modulus) == (t % 2 == 1) for t, n in enumerate(x))
        assert {"+-*"[n - modulus] for n in x[1::2]} <= set(operations)


def test_modular_arithmetic_uses_every_number_and_operation():
    tokens, result = modular_arithmetic(np.random.default_rng(0), 200, 9)
    assert set(tokens.ravel()) == set(range(8)) and set(result) == set(range(5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: flip_flop(r, 1, 5), "even"),
        (lambda r: flip_flop(r, 1, 2), "length"),
        (lambda r: flip_flop(r, 1, 4, ignore=1.5), "ignore"),
        (lambda r: counting(r, 1, 5, idle=-0.1), "idle"),
        (lambda r: counting(r, 1, 5, variables=0), "variables"),
        (lambda r: counting(r, 1, 5, limit=0), "limit"),
        (lambda r: modular_arithmetic(r, 1, 4), "odd"),
        (lambda r: modular_arithmetic(r, 1, 5, modulus=1), "modulus"),
        (lambda r: modular_arithmetic(r, 1, 5, operations="/"), "operations"),
        (lambda r: modular_arithmetic(r, 1, 5, operations=""), "operations"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.random.default_rng(0))
    with pytest.raises(TypeError, match="rng"):
        call(1)


def test_types_defaults_and_last_prints():
    rng = np.random.default_rng(0)
    for tokens, targets, mask in (flip_flop(rng, 2, 8), counting(rng, 2, 8)):
        assert tokens.dtype == targets.dtype == np.int64 and mask.dtype == bool
    tokens, result = modular_arithmetic(rng, 2, 9)
    assert tokens.dtype == result.dtype == np.int64
    assert counting(rng, 200, 80, idle=0.0)[0].max() == 3  # one counter by default
    assert abs((flip_flop(rng, 200, 402)[0][:, 2:-2:2] == 3).mean() - 0.8) < 0.01
    tokens, targets, _ = counting(rng, 400, 200, idle=0.1)
    assert targets.max() == 10 and abs((counting(rng, 400, 200)[0] == 0).mean() - 0.5) < 0.02
    last = counting(rng, 2000, 3, variables=3)[0][:, -1]
    counts = np.bincount(last, minlength=10)[[3, 6, 9]]
    assert counts.sum() == 2000 and (np.abs(counts - 2000 / 3) < 5 * np.sqrt(2000 / 3)).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda r, n: flip_flop(r, n, 4),
        lambda r, n: counting(r, n, 4),
        lambda r, n: counting(r, 4, n),
        lambda r, n: modular_arithmetic(r, n, 3),
        lambda r, n: modular_arithmetic(r, 1, n),
    ],
)
def test_nothing_is_refused(call):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        call(np.random.default_rng(0), 0)
