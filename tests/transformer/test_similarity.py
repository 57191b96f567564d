"""CKA and the overlap of neighbourhoods: loops = matrices, what leaves them unchanged, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor
from minattn.transformer import similarity
from minattn.transformer.similarity import (
    linear_cka,
    local_neighborhood_similarity,
    naive_linear_cka,
    naive_local_neighborhood_similarity,
)

pytestmark = pytest.mark.paper(79)


def pair(N: int, D: int, E: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two representations that have something in common, with means far from zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, D)) * (1 + np.arange(D)) + 3
    return x, x @ rng.standard_normal((D, E)) + 2 * rng.standard_normal((N, E)) - 1


def rotation(D: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))[0]


SHAPES = [(2, 1, 1), (3, 5, 2), (12, 4, 4), (9, 1, 7), (31, 6, 3)]


@pytest.mark.parametrize("N, D, E", SHAPES)
def test_cka_equals_the_gram_matrices(N, D, E):
    x, y = pair(N, D, E)
    got = linear_cka(x, y)
    np.testing.assert_allclose(got, naive_linear_cka(x, y), rtol=1e-11)
    assert type(got) is float and 0 < got <= 1 + 1e-12
    if N > 2:
        assert got < 0.999


@pytest.mark.parametrize("N, D, E", SHAPES)
def test_neighbourhoods_equal_sorting(N, D, E):
    x, y = pair(N, D, E)
    for k in {1, 2, N // 2, N - 1} & set(range(1, N)):
        got = local_neighborhood_similarity(x, y, k)
        assert got == pytest.approx(naive_local_neighborhood_similarity(x, y, k), rel=1e-14)
        assert type(got) is float
    assert local_neighborhood_similarity(x, y, N - 1) == 1  # everybody is a neighbour


def test_neighbourhoods_of_tokens_that_coincide_equal_sorting():
    """Ties go to the earlier token, whatever rounding does to the products."""
    rng = np.random.default_rng(1)
    kinds = rng.standard_normal((4, 6))
    x = kinds[rng.integers(0, 4, 40)] * rng.uniform(0.1, 10, (40, 1))
    y = x + 0.5 * rng.standard_normal(x.shape)
    for k in (1, 5, 17):
        got = local_neighborhood_similarity(x, y, k)
        assert 0 < got < 1
        assert got == pytest.approx(naive_local_neighborhood_similarity(x, y, k), rel=1e-14)
        assert local_neighborhood_similarity(x, x @ rotation(6), k) == 1
    # four tokens in one direction: the neighbours are the earliest others
    near = similarity._neighbours("x", np.ones((4, 2)), 2)
    np.testing.assert_array_equal(near, [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]])


def test_ties_are_cosines_equal_to_ten_decimals():
    """Token 2 is nearer to token 0 than 1 is: by 1e-12, which does not count, or by 1e-8, which does."""
    for gap, first in ((1e-12, 1), (1e-8, 2)):
        cosines = np.array([1, 0.5, 0.5 + gap, -1])
        rows = np.stack([cosines, np.sqrt(1 - cosines**2)], 1)
        assert similarity._neighbours("x", rows, 1)[0].argmax() == first


def test_by_hand():
    x = np.array([[1.0], [-1.0], [0.0]])
    y = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    # centred y: (2, −1)/3, (−1, 2)/3, (−1, −1)/3; ‖yᵀx‖² = 2, ‖xᵀx‖ = 2, ‖yᵀy‖ = √(2·(2/3)² + 2·(1/3)²)
    assert linear_cka(x, y) == pytest.approx(2 / (2 * np.sqrt(10 / 9)), rel=1e-14)
    # x: directions 0°, 10°, 90°, 100°; y: 0°, 80°, 90°, 170°. Nearest in x: 1, 0, 3, 2; in y: 1, 2, 1, 2
    a, b = (np.stack([np.cos(t), np.sin(t)], 1) for t in np.radians([[0, 10, 90, 100], [0, 80, 90, 170]]))
    assert local_neighborhood_similarity(a, b, 1) == 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 20), st.integers(1, 6), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_rotations_and_scales_change_nothing(N, D, seed, scale):
    x, y = pair(N, D, 4, seed)
    q = rotation(D, seed)
    assert linear_cka(x, x @ q) == pytest.approx(1, abs=1e-11)
    assert linear_cka(scale * x @ q + 5, y) == pytest.approx(linear_cka(x, y), rel=1e-9)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), rel=1e-12)
    assert local_neighborhood_similarity(x, x, 1 + seed % (N - 1)) == 1
    if D > 1:  # with one feature every cosine is 1 or −1
        assert local_neighborhood_similarity(x, scale * x @ q, 1 + seed % (N - 1)) == 1


def test_unrelated_representations_have_little_in_common():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 400, 8))
    assert linear_cka(x, y) < 0.05
    assert abs(local_neighborhood_similarity(x, y, 10) - 10 / 800) < 0.005
    assert local_neighborhood_similarity(x, y) == local_neighborhood_similarity(x, y, 10)


def test_a_shift_matters_to_cosines_and_not_to_cka():
    x, y = pair(20, 5, 5)
    assert linear_cka(x + 100, y) == pytest.approx(linear_cka(x, y), rel=1e-9)
    assert local_neighborhood_similarity(x + 100, x, 3) < 1


@pytest.mark.parametrize("unit", [1e-300, 1e-170, 1e170, 1e300])
def test_units_neither_overflow_nor_vanish(unit):
    x, y = pair(9, 4, 3)
    assert linear_cka(unit * x, y) == pytest.approx(linear_cka(x, y), rel=1e-12)
    assert local_neighborhood_similarity(x, unit * y, 3) == local_neighborhood_similarity(x, y, 3)


def test_tensors_lists_and_single_precision_are_taken():
    x, y = pair(9, 4, 3)
    assert linear_cka(Tensor(x), y.tolist()) == linear_cka(x, y)
    singles = x.astype(np.float32), y.astype(np.float32)
    assert linear_cka(*singles) == linear_cka(*(a.astype(np.float64) for a in singles))
    assert local_neighborhood_similarity(Tensor(x), y.tolist(), 2) == local_neighborhood_similarity(x, y, 2)


def test_inputs_are_left_alone():
    x, y = pair(9, 4, 3)
    before = x.copy(), y.copy()
    linear_cka(x, y)
    local_neighborhood_similarity(x, y, 2)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


@pytest.mark.parametrize("measure", [linear_cka, lambda x, y: local_neighborhood_similarity(x, y, 1)])
@pytest.mark.parametrize("x, y, message", [
    (np.ones(3), np.eye(3), "x: expected shape (N, D), got (3,)"),
    (np.eye(3), np.ones((3, 1, 1)), "y: expected shape (N, D), got (3, 1, 1)"),
    (np.ones((3, 0)), np.eye(3), "x: expected shape (N, D), got (3, 0)"),
    (np.eye(3), np.eye(4), "y: expected as many tokens as in x, at least 2, got 4 and 3"),
    (np.eye(1), np.eye(1), "y: expected as many tokens as in x, at least 2, got 1 and 1"),
    (np.array([[1, np.nan], [0, 1]]), np.eye(2), "x: expected finite numbers, got NaN or infinity"),
    (np.eye(2), np.array([[1, np.inf], [0, 1]]), "y: expected finite numbers, got NaN or infinity"),
])
def test_bad_input_is_refused_by_both(measure, x, y, message):
    with pytest.raises(ValueError) as caught:
        measure(x, y)
    assert str(caught.value) == message


def test_what_has_no_meaning_is_refused():
    x, same = np.eye(3), np.full((3, 2), 0.1)
    for a, b, name in ((same, x, "x"), (x, same, "y")):
        with pytest.raises(ValueError) as caught:
            linear_cka(a, b)
        assert str(caught.value) == f"{name}: expected tokens that differ, got the same features for all 3"
    zero = np.eye(3) - np.diag([0, 1, 0])
    for a, b, name in ((zero, x, "x"), (x, zero, "y")):
        with pytest.raises(ValueError) as caught:
            local_neighborhood_similarity(a, b, 1)
        assert str(caught.value) == f"{name}: expected no token of zeros, got zeros for token 1"
    for k in (0, 3, -1):
        with pytest.raises(ValueError) as caught:
            local_neighborhood_similarity(x, x, k)
        assert str(caught.value) == f"k: expected between 1 and 2 for 3 tokens, got {k}"
