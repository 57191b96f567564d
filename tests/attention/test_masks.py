"""Masks against their definitions, one pair (i, j) at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minattn.attention import (
    at_positions,
    block,
    both,
    causal,
    document,
    either,
    mask_array,
    negate,
    padding,
    prefix,
    shifted,
    sliding_window,
)
from minattn.attention.masks import fitting, indices, whole

SIZES = (2, 3, 7, 9)  # B, H, N, M
LENGTHS = [5, 0]
IDS = [[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 3, 3, 0]]

# name: (a maker of the mask, the sentence that defines it)
DEFINED = {
    "causal": (lambda: causal, lambda b, h, i, j: not j > i),
    "padding": (lambda: padding(np.array(LENGTHS)), lambda b, h, i, j: j in range(LENGTHS[b])),
    "prefix": (lambda: prefix(4), lambda b, h, i, j: j in (0, 1, 2, 3) or j in range(i + 1)),
    "prefix 0": (lambda: prefix(0), lambda b, h, i, j: j in range(i + 1)),
    "window": (lambda: sliding_window(3), lambda b, h, i, j: j in (i, i - 1, i - 2)),
    "window 1": (lambda: sliding_window(1), lambda b, h, i, j: j == i),
    "block": (
        lambda: block(4),
        lambda b, h, i, j: any(i in r and j in r for r in (range(4), range(4, 8), range(8, 12))),
    ),
    "document": (lambda: document(np.array(IDS)), lambda b, h, i, j: IDS[b][i] == IDS[b][j]),
    "documents alike": (lambda: document(np.array(IDS[1])), lambda b, h, i, j: IDS[1][i] == IDS[1][j]),
    "both": (
        lambda: both(causal, block(4), padding(np.array(LENGTHS))),
        lambda b, h, i, j: j <= i and i // 4 == j // 4 and j < LENGTHS[b],
    ),
    "either": (
        lambda: either(sliding_window(2), prefix(1), block(2)),
        lambda b, h, i, j: j in (i, i - 1) or j == 0 or j <= i or i // 2 == j // 2,
    ),
    "one": (lambda: both(block(2)), lambda b, h, i, j: i // 2 == j // 2),
    "negate": (lambda: negate(block(4)), lambda b, h, i, j: i // 4 != j // 4),
    "later queries": (lambda: shifted(causal, queries=2), lambda b, h, i, j: j <= i + 2),
    "later keys": (lambda: shifted(sliding_window(3), keys=2), lambda b, h, i, j: j + 2 in (i, i - 1, i - 2)),
    "as it stands": (lambda: shifted(block(4)), lambda b, h, i, j: i // 4 == j // 4),
    "heads": (
        lambda: both(causal, lambda b, h, i, j: (j + h) % 2 == b),
        lambda b, h, i, j: j <= i and (j + h) % 2 == b,
    ),
}


@pytest.mark.parametrize("name", DEFINED)
def test_array_and_numbers_follow_the_definition(name):
    make, definition = DEFINED[name]
    mask = make()
    array = np.broadcast_to(mask_array(mask, *SIZES), SIZES)
    assert array.dtype == bool and array.any() and not array.all()
    for at in itertools.product(*map(range, SIZES)):
        assert array[at] == definition(*at) == bool(mask(*at)), at


def test_axes_that_do_not_matter_have_size_one():
    assert mask_array(causal, *SIZES).shape == (1, 1, 7, 9)
    assert mask_array(padding(np.array(LENGTHS)), *SIZES).shape == (2, 1, 1, 9)
    assert mask_array(document(np.array(IDS)), *SIZES).shape == (2, 1, 7, 9)
    assert mask_array(lambda b, h, i, j: j[0, 0, 0] > 3, *SIZES).shape == (1, 1, 1, 9)


def test_indices():
    b, h, i, j = indices(*SIZES)
    assert [x.shape for x in (b, h, i, j)] == [(2, 1, 1, 1), (1, 3, 1, 1), (1, 1, 7, 1), (1, 1, 1, 9)]
    assert i[0, 0, :, 0].tolist() == list(range(7)) and type(indices(*SIZES)) is tuple


def test_arrays_of_the_masks_here_are_kept():
    for mask in (
        causal,
        padding(np.array(LENGTHS)),
        prefix(2),
        sliding_window(2),
        block(3),
        document(np.array(IDS)),
        document(np.array(IDS[0])),
        both(causal, block(2)),
        either(causal, block(2)),
        negate(causal),
        shifted(causal, 2),
    ):
        first = mask_array(mask, *SIZES)
        assert mask_array(mask, *SIZES) is first
        other = mask_array(mask, 2, 3, 6, 9)
        assert other is not first and mask_array(mask, *SIZES) is first


def test_only_a_few_shapes_are_kept():
    mask = sliding_window(2)
    first = mask_array(mask, 1, 1, 1, 1)
    last = None
    for n in range(2, 9):  # seven more
        last = mask_array(mask, 1, 1, n, n)
    assert mask_array(mask, 1, 1, 1, 1) is first
    mask_array(mask, 1, 1, 9, 9)
    assert mask_array(mask, 1, 1, 8, 8) is last
    assert mask_array(mask, 1, 1, 1, 1) is not first
    assert len(mask.kept) == 8


def test_arrays_of_other_functions_are_not_kept():
    n = 2

    def mask(b, h, i, j):
        return j < n

    for combined in (mask, both(causal, mask), either(mask, causal), negate(mask), shifted(mask, 1)):
        n = 2
        before = mask_array(combined, 1, 1, 4, 4).copy()
        n = 3
        assert not np.array_equal(mask_array(combined, 1, 1, 4, 4), before)


def test_masks_do_not_change_with_the_arrays_they_were_made_of():
    lengths, ids = np.array([2]), np.array([0, 0, 1])
    by_length, by_id = padding(lengths), document(ids)
    moved = at_positions(causal, ids, ids)
    before = [mask_array(m, 1, 1, 3, 3).copy() for m in (by_length, by_id, moved)]
    lengths[0] = ids[1] = 1
    after = [mask_array(m, 1, 1, 3, 3) for m in (by_length, by_id, moved)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_at_positions():
    queries, keys = np.array([6, 7, 3]), np.array([4, 8, 0, 5, 6, 3])
    mask = mask_array(at_positions(sliding_window(3), queries, keys), 1, 1, 3, 6)
    assert mask.shape == (1, 1, 3, 6)
    for i, j in itertools.product(range(3), range(6)):
        assert mask[0, 0, i, j] == (queries[i] - 3 < keys[j] <= queries[i])

    def score(s, b, h, i, j):
        return s + 100 * b + 10 * h + i - j

    got = at_positions(score, queries, keys)(np.zeros((2, 2, 3, 6)), *indices(2, 2, 3, 6))
    for b, h, i, j in itertools.product(range(2), range(2), range(3), range(6)):
        assert got[b, h, i, j] == 100 * b + 10 * h + queries[i] - keys[j]
        assert at_positions(score, queries, keys)(0, b, h, i, j) == got[b, h, i, j]


def test_at_positions_that_differ_by_head():
    rng = np.random.default_rng(0)
    queries, keys = rng.integers(0, 9, (2, 3, 4)), rng.integers(0, 9, (2, 3, 5))
    mask = mask_array(at_positions(causal, queries, keys), 2, 3, 4, 5)
    for b, h, i, j in itertools.product(range(2), range(3), range(4), range(5)):
        assert mask[b, h, i, j] == (keys[b, h, j] <= queries[b, h, i])
    assert mask.any() and not mask.all()


def test_fitting():
    assert fitting("x", (3,), (2, 4, 3)) == (1, 1, 3)
    assert fitting("x", (), (2, 4, 3)) == (1, 1, 1)
    assert fitting("x", (2, 1, 3), (2, 4, 3)) == (2, 1, 3)
    assert fitting("x", (0,), (2, 0)) == (1, 0)
    for shape in ((2,), (1, 2, 4, 3), (2, 3, 3), (1, 1, 1, 1)):
        with pytest.raises(ValueError) as e:
            fitting("x", shape, (2, 4, 3))
        assert str(e.value) == f"x: expected a shape that broadcasts to (2, 4, 3), got {shape}"


def test_whole():
    assert whole("n", 1) == 1 and whole("n", 0, 0) == 0 and type(whole("n", np.int64(5))) is int
    for n, least in ((0, 1), (-1, 0), (1.0, 1), (True, 1), ("2", 1), (3, 4)):
        with pytest.raises(ValueError) as e:
            whole("n", n, least)
        assert str(e.value) == f"n: expected a whole number ≥ {least}, got {n!r}"


def refused(error, message, f, *args):
    with pytest.raises(error) as e:
        f(*args)
    assert str(e.value) == message


def test_mistakes():
    refused(ValueError, "n: expected a whole number ≥ 0, got -1", prefix, -1)
    refused(ValueError, "w: expected a whole number ≥ 1, got 0", sliding_window, 0)
    refused(ValueError, "size: expected a whole number ≥ 1, got 0", block, 0)
    refused(
        ValueError,
        "lengths: expected integers with 1 axes, got float64 of shape (2,)",
        padding,
        np.array([1.0, 2.0]),
    )
    refused(
        ValueError,
        "lengths: expected integers with 1 axes, got int64 of shape (1, 2)",
        padding,
        np.array([[1, 2]]),
    )
    refused(
        ValueError, "ids: expected integers with 1 or 2 axes, got int64 of shape ()", document, np.array(3)
    )
    refused(
        ValueError,
        "ids: expected integers with 1 or 2 axes, got bool of shape (1,)",
        document,
        np.array([True]),
    )
    refused(
        ValueError,
        "queries: expected integers with 1 or 3 axes, got int64 of shape (1, 1)",
        at_positions,
        causal,
        np.array([[0]]),
        np.array([0]),
    )
    refused(
        ValueError,
        "keys: expected integers with 1 or 3 axes, got int64 of shape (1, 1)",
        at_positions,
        causal,
        np.array([0]),
        np.array([[0]]),
    )
    refused(ValueError, "masks: expected at least one mask, got none", both)
    refused(ValueError, "masks: expected at least one mask, got none", either)
    refused(
        TypeError,
        "mask_mod: expected booleans, True where visible, got dtype int64",
        mask_array,
        lambda b, h, i, j: j,
        *SIZES,
    )
    refused(
        TypeError,
        "mask_mod: expected a function (b, h, i, j) -> bool, got ndarray; "
        "an array m becomes one as lambda b, h, i, j: m[b, h, i, j]",
        mask_array,
        np.ones(3),
        *SIZES,
    )
    refused(
        ValueError,
        "mask_mod: expected a shape that broadcasts to (2, 3, 7, 9), got (4,)",
        mask_array,
        lambda b, h, i, j: np.ones(4, dtype=bool),
        *SIZES,
    )
