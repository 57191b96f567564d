"""Copy, reverse, sort: each against its statement in Python lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.data import copy, decoder_only, reverse, sort

sizes = {
    "batch": st.integers(1, 5),
    "length": st.integers(1, 9),
    "vocab": st.integers(1, 6),
    "seed": st.integers(0, 99),
}


@given(**sizes)
def test_copy_reverse_and_sort_do_what_they_say(batch, length, vocab, seed):
    for task, statement in ((copy, list), (reverse, lambda s: s[::-1]), (sort, sorted)):
        source, target = task(np.random.default_rng(seed), batch, length, vocab)
        assert source.shape == target.shape == (batch, length)
        assert source.dtype == target.dtype == np.int64
        assert source.min() >= 0 and source.max() < vocab
        assert target.tolist() == [statement(row) for row in source.tolist()]


@given(**sizes)
def test_mapping_is_applied_to_the_target_alone(batch, length, vocab, seed):
    table = [10 + 3 * k for k in range(vocab)]
    source, target = copy(np.random.default_rng(seed), batch, length, vocab, mapping=table)
    assert target.tolist() == [[table[s] for s in row] for row in source.tolist()]
    source, target = reverse(np.random.default_rng(seed), batch, length, vocab, mapping=table)
    assert target.tolist() == [[table[s] for s in row[::-1]] for row in source.tolist()]


def test_every_symbol_is_equally_likely():
    source, _ = copy(np.random.default_rng(0), 400, 50, 8)
    counts = np.bincount(source.ravel(), minlength=8)
    assert (np.abs(counts - 2500) < 5 * np.sqrt(2500)).all()


def test_target_is_not_a_view_of_the_source():
    for task in (copy, sort):
        source, target = task(np.random.default_rng(0), 2, 3, 5)
        target += 1
        assert source.max() < 5 and not np.shares_memory(source, target)


@given(n=st.integers(0, 5), m=st.integers(1, 5), seed=st.integers(0, 99))
def test_one_stream_gives_the_target_back(n, m, seed):
    rng = np.random.default_rng(seed)
    source, target = rng.integers(7, size=(3, n)), rng.integers(7, size=(3, m))
    tokens, targets, mask = decoder_only(source, target, separator=7)
    assert tokens.shape == targets.shape == mask.shape == (3, n + m)
    for b in range(3):
        stream = [*source[b], 7, *target[b]]
        assert tokens[b].tolist() == stream[:-1] and targets[b].tolist() == stream[1:]
        assert targets[b][mask[b]].tolist() == target[b].tolist()


def test_bad_input():
    rng = np.random.default_rng(0)
    with pytest.raises(TypeError, match="rng"):
        copy(0, 1, 1, 1)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        sort(rng, 1, 0, 1)
    with pytest.raises(ValueError, match="vocab"):
        reverse(rng, 1, 1, 0)
    with pytest.raises(TypeError, match="batch must be an integer"):
        copy(rng, 1.5, 1, 1)
    with pytest.raises(ValueError, match="mapping"):
        copy(rng, 1, 1, 3, mapping=[1, 2])
    with pytest.raises(ValueError, match="mapping"):
        copy(rng, 1, 1, 2, mapping=[0.5, 2])
    for bad in ([[1, 2]], [[7, 1], [2, 3]], [[0, 1], [7, 3]]):
        with pytest.raises(ValueError):
            decoder_only([[1, 2], [3, 4]], bad, separator=7)
    with pytest.raises(ValueError, match="separator 2"):
        decoder_only([[1, 2]], [[1]], separator=2)
    with pytest.raises(ValueError, match="empty"):
        decoder_only([[1, 2]], np.zeros((1, 0)), separator=7)
