"""Limits of normalisation: distances, separable fractions, slopes, and the bounds that hold."""

import math

import numpy as np
import pytest

from minattn.scores.limits import (
    naive_jacobian,
    naive_random_distance,
    naive_selection,
    normalizer_jacobian,
    normalizers,
    random_distance,
    selection_distance,
    separable_fraction,
    triangle_bound,
    weight_bounds,
)

pytestmark = pytest.mark.paper(139)


def row(L, D=3, seed=0, scale=1.0):
    rng = np.random.default_rng([seed, L, D])
    z = scale * rng.standard_normal(L)
    return z, normalizers["softmax"](z), rng.standard_normal((L, D))


@pytest.mark.parametrize("name", list(normalizers))
def test_rows_sum_to_one(name):
    z = np.random.default_rng(1).standard_normal((40, 9))
    a = normalizers[name](z)
    assert (a >= 0).all() and np.ptp(a) > 0.1
    np.testing.assert_allclose(a.sum(-1), 1, atol=1e-12)
    order = np.argsort(z, -1)
    assert (np.diff(np.take_along_axis(a, order, -1), axis=-1) >= -1e-15).all()


def test_normalizers_by_hand():
    z = np.log([1.0, 2.0])
    np.testing.assert_allclose(normalizers["softmax"](z), [1 / 3, 2 / 3], rtol=1e-14)
    np.testing.assert_allclose(normalizers["sigmoid"](z), np.array([1 / 2, 2 / 3]) / (7 / 6), rtol=1e-14)
    np.testing.assert_allclose(normalizers["ssmax"](z / math.log(2)), [1 / 3, 2 / 3], rtol=1e-14)
    np.testing.assert_allclose(normalizers["relu2"](np.array([-1.0, 1, 2])), [0, 0.2, 0.8], rtol=1e-14)
    np.testing.assert_array_equal(normalizers["relu2"](np.array([-1.0, -2.0])), 0)
    np.testing.assert_allclose(normalizers["softmax"](np.array([1000.0, 0.0])), [1, 0], atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8])
@pytest.mark.parametrize("D", [1, 3])
def test_selection_equals_the_loops(n, D):
    rows = [row(8, D, seed) for seed in range(6)]
    weights, x = (np.stack([r[c] for r in rows]) for c in (1, 2))
    want = np.array([naive_selection(a, y, n) for a, y in zip(weights, x, strict=True)]).T
    np.testing.assert_allclose(selection_distance(weights, x, n), want[0], rtol=1e-12)
    np.testing.assert_allclose(selection_distance(weights, x, n, form="sum"), want[1], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(selection_distance(weights, x, n, form="mean"), want[1] / max(8 - n, 1),
                               rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(separable_fraction(weights, x, n), want[2], rtol=1e-14)
    assert np.ptp(want[0]) > 1e-3


def test_selection_by_hand():
    """Weights .5, .3, .2 of 1, −1, 2 are .5, −.3, .4; of the two heaviest s = .2."""
    a, x = np.array([0.3, 0.5, 0.2]), np.array([[-1.0], [1.0], [2.0]])
    assert selection_distance(a, x, 2) == pytest.approx(0.2)  # |.4 − .2|
    assert selection_distance(a, x, 1) == pytest.approx(0.4)  # |−.3 + .4 − .5|
    assert selection_distance(a, x, 1, form="sum") == pytest.approx(0.9)  # |−.3 − .5| + |.4 − .5|
    assert selection_distance(a, x, 1, form="mean") == pytest.approx(0.45)
    assert separable_fraction(a, x, 2) == 0  # .3 and .5 away, the other one .2
    assert separable_fraction(a, x, 1) == 1
    assert separable_fraction(a, x, 3) == 1
    assert triangle_bound(a, x) == pytest.approx(1.2)


def test_all_chosen_leaves_an_empty_sum():
    _, a, x = row(6)
    assert selection_distance(a, x, 6) == pytest.approx(np.linalg.norm(a @ x), rel=1e-14)
    assert selection_distance(a, x, 6, form="sum") == selection_distance(a, x, 6, form="mean") == 0


def test_ties_choose_the_first():
    a, x = np.full(4, 0.25), np.random.default_rng(2).standard_normal((4, 3))
    assert selection_distance(a, x, 2) == pytest.approx(np.linalg.norm(x[:2].sum(0) - x[2:].sum(0)) / 4)


@pytest.mark.parametrize("L", [1, 2, 5, 9, 12])
def test_random_selection_by_enumeration(L):
    _, a, x = row(L)
    for n in range(1, L + 1):
        assert random_distance(a, x, n) == pytest.approx(naive_random_distance(a, x, n), rel=1e-10)


def test_distances_stay_below_the_triangle_bound():
    rng = np.random.default_rng(3)
    a, x = normalizers["softmax"](2 * rng.standard_normal((500, 10))), rng.standard_normal((500, 10, 4))
    for n in (1, 3, 10):
        assert (selection_distance(a, x, n) <= triangle_bound(a, x) + 1e-12).all()
    aligned = np.ones((1, 10, 1))
    assert selection_distance(a[:1], aligned, 10) == pytest.approx(triangle_bound(a[:1], aligned))


@pytest.mark.parametrize("T", [0.5, 1.0, 3.0])
def test_weights_and_slopes_stay_in_their_bounds_on_ten_thousand_logits(T):
    rng = np.random.default_rng(4)
    z = rng.uniform(-2, 1, (10_000, 6))
    a = normalizers["softmax"](z / T)
    low, high = weight_bounds(-2, 1, 6, T)
    assert low <= a.min() and a.max() <= high
    entries = (np.eye(6) * a[:, None] - a[:, :, None] * a[:, None]) / T
    assert np.abs(entries).max() <= 1 / (4 * T)
    assert np.linalg.norm(entries, 2, axis=(1, 2)).max() <= 1 / (2 * T)
    np.testing.assert_allclose(entries[7], normalizer_jacobian("softmax", z[7], T), atol=1e-15)


@pytest.mark.parametrize("T", [0.25, 1.0, 4.0])
def test_two_equal_weights_attain_both_bounds(T):
    J = normalizer_jacobian("softmax", np.array([1.0, 1.0, -1000.0]), T)
    assert np.abs(J).max() == pytest.approx(1 / (4 * T), rel=1e-14)
    assert np.linalg.norm(J, 2) == pytest.approx(1 / (2 * T), rel=1e-14)


@pytest.mark.parametrize("name", list(normalizers))
@pytest.mark.parametrize("T", [0.7, 2.0])
def test_jacobians_by_differences(name, T):
    z = 0.4 * np.random.default_rng(5).standard_normal(7)
    got = normalizer_jacobian(name, z, T)
    np.testing.assert_allclose(got, naive_jacobian(normalizers[name], z, T), atol=1e-7)
    np.testing.assert_allclose(got.sum(0), 0, atol=1e-12)  # the weights always sum to 1
    assert np.abs(got).max() > 0.01


def test_sparsemax_projects():
    z = np.array([0.2, 0.1, -3.0])
    J = normalizer_jacobian("sparsemax", z, 2.0)
    np.testing.assert_allclose(J, np.array([[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]]) / 2, atol=1e-15)
    np.testing.assert_allclose(4 * J @ J, 2 * J, atol=1e-15)
    np.testing.assert_array_equal(normalizer_jacobian("relu2", np.array([-1.0, -2.0])), 0)


def test_mistakes():
    _, a, x = row(5)
    for n in (0, 6):
        with pytest.raises(ValueError, match=rf"^n: expected from 1 to 5 chosen tokens, got {n}$"):
            selection_distance(a, x, n)
    with pytest.raises(ValueError, match=r"^form: expected 'cumulative', 'sum' or 'mean', got 'max'$"):
        selection_distance(a, x, 2, form="max")
    for wrong in (x[:4], x[0]):
        with pytest.raises(ValueError, match=r"^x: expected 5 tokens, shape \(…, 5, D\), got \("):
            separable_fraction(a, wrong, 2)
    with pytest.raises(ValueError, match=r"^name: expected one of softmax, sparsemax, entmax15, ssmax, "):
        normalizer_jacobian("max", a)
    for T in (0, -1.0):
        with pytest.raises(ValueError, match=rf"^T: expected a number above 0, got {T}$"):
            normalizer_jacobian("softmax", a, T)
    with pytest.raises(ValueError, match=r"^L: expected a number above 0, got 0$"):
        weight_bounds(0, 1, 0)
    for wrong in (x, a[:0]):
        with pytest.raises(ValueError, match=r"^logits: expected one row \(L,\), got shape \("):
            normalizer_jacobian("softmax", wrong)
