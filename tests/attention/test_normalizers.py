"""Normalisers against searches that share nothing with them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import NORMALIZERS, entmax15, sparsemax
from minattn.attention.normalizers import normalizer_named
from minattn.autograd import Tensor, grad
from minattn.testing import check_grads


def naive_sparsemax(row):
    """The nearest point of the simplex: of the best points with each possible support, the nearest."""
    best, nearest = None, math.inf
    visible = [i for i, x in enumerate(row) if x > -math.inf]
    for size in range(1, len(visible) + 1):
        for support in itertools.combinations(visible, size):
            tau = (sum(row[i] for i in support) - 1) / size
            p = [row[i] - tau if i in support else 0.0 for i in range(len(row))]
            distance = sum((p[i] - row[i]) ** 2 for i in visible)
            if min(p) >= 0 and distance < nearest:
                best, nearest = p, distance
    return [0.0] * len(row) if best is None else best


def naive_entmax15(row):
    """Bisection for the τ at which Σ max(x/2 − τ, 0)² = 1."""
    half = [x / 2 for x in row]
    if max(half) == -math.inf:
        return [0.0] * len(row)
    low, high = max(half) - 1, max(half)
    for _ in range(200):
        tau = (low + high) / 2
        low, high = (tau, high) if sum(max(z - tau, 0) ** 2 for z in half) > 1 else (low, tau)
    return [max(z - low, 0) ** 2 for z in half]


NAIVE = {
    "softmax": lambda row: [
        math.exp(x) / sum(map(math.exp, row)) if max(row) > -math.inf else 0.0 for x in row
    ],
    "sparsemax": naive_sparsemax,
    "entmax15": naive_entmax15,
    "sigmoid": lambda row: [1 / (1 + math.exp(-x)) if x > -math.inf else 0.0 for x in row],
    "relu": lambda row: [max(x, 0.0) for x in row],
}


def test_known_values():
    assert np.allclose(sparsemax(np.array([0.5, 0.1, -3.0])), [0.7, 0.3, 0])
    assert np.allclose(sparsemax(np.array([2.0, 0.5])), [1, 0])
    # x/2 = (1, 1 − a) with a² + (√(1 … solve (1 − τ)² + (0.6 − τ)² = 1: τ = 0.8 − √(0.5 − 0.04)
    tau = 0.8 - math.sqrt(0.46)
    assert np.allclose(entmax15(np.array([2.0, 1.2])), [(1 - tau) ** 2, (0.6 - tau) ** 2])


@pytest.mark.parametrize("name", NORMALIZERS)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=40, deadline=None)
def test_equals_naive(name, seed, n, size):
    rng = np.random.default_rng(seed)
    x = size * rng.standard_normal((3, n))
    x[rng.random(x.shape) < 0.2] = -np.inf
    x[0] = -np.inf
    got = NORMALIZERS[name](x, -1)
    want = np.array([NAIVE[name](row) for row in x.tolist()])
    assert np.abs(got - want).max() < 1e-12


@pytest.mark.parametrize("name", NORMALIZERS)
def test_along_any_axis(name):
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    for dim in (0, 1, 2, -1, -2, -3):
        got = NORMALIZERS[name](x, dim)
        want = np.moveaxis(NORMALIZERS[name](np.moveaxis(x, dim, -1), -1), -1, dim)
        assert got.shape == x.shape and np.abs(got - want).max() < 1e-15


@pytest.mark.parametrize("f", [sparsemax, entmax15])
def test_last_axis_is_the_default(f):
    x = np.random.default_rng(0).standard_normal((3, 4))
    t = Tensor(x, requires_grad=True)
    g = np.random.default_rng(1).standard_normal((3, 4))
    assert np.array_equal(f(x), f(x, dim=-1))
    assert np.array_equal(grad(f(t), t, g)[0].data, grad(f(t, dim=-1), t, g)[0].data)


@pytest.mark.parametrize("f", [sparsemax, entmax15])
def test_is_sparse_and_sums_to_one(f):
    x = 3 * np.random.default_rng(0).standard_normal((50, 20))
    p = f(x)
    assert np.abs(p.sum(-1) - 1).max() < 1e-12 and (p >= 0).all()
    assert 0.3 < (p == 0).mean() < 0.99
    order = np.argsort(x, axis=-1)
    assert (np.diff(np.take_along_axis(p, order, -1)) >= 0).all()  # larger scores, larger weights


def test_entmax15_is_between_softmax_and_sparsemax():
    x = 2 * np.random.default_rng(0).standard_normal((200, 12))
    support = [(NORMALIZERS[n](x, -1) > 0).sum() for n in ("softmax", "entmax15", "sparsemax")]
    assert support[0] > support[1] > support[2]


@pytest.mark.parametrize("name", NORMALIZERS)
def test_gradients_to_second_order(name):
    x = 1.5 * np.random.default_rng(3).standard_normal((4, 6))
    check_grads(lambda x: NORMALIZERS[name](x, -1), x)
    check_grads(lambda x: NORMALIZERS[name](x, 0), x)


@pytest.mark.parametrize("f, naive", [(sparsemax, naive_sparsemax), (entmax15, naive_entmax15)])
def test_gradient_is_that_of_the_naive_form(f, naive):
    x = 1.5 * np.random.default_rng(3).standard_normal((4, 6))
    rng = np.random.default_rng(4)
    g, step = rng.standard_normal(x.shape), 1e-6
    t = Tensor(x, requires_grad=True)
    got = grad(f(t), t, g)[0].data
    for at in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[at] = step
        up, down = (np.array([naive(r) for r in y.tolist()]) for y in (x + e, x - e))
        assert got[at] == pytest.approx(((up - down) * g).sum() / (2 * step), abs=2e-6)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minus_infinity_and_empty_rows(name, dtype):
    x = np.array([[1.0, -np.inf, 0.5], [-np.inf] * 3, [-np.inf, 2.0, -np.inf]], dtype=dtype)
    t = Tensor(x, requires_grad=True)
    with np.errstate(all="raise", under="ignore"):
        out = NORMALIZERS[name](t, -1)
        g = grad(out, t, np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9.5]], dtype=dtype))[0].data
    assert out.dtype == g.dtype == dtype
    assert not out.data[x == -np.inf].any() and out.data[x > -np.inf].all()
    assert np.isfinite(g).all() and not g[x == -np.inf].any()
    assert g[0, [0, 2]].all()


@pytest.mark.parametrize("f", [sparsemax, entmax15])
@pytest.mark.parametrize(
    "dtype, size, bound", [(np.float64, 1e4, 1e-9), (np.float32, 1e4, 2e-3), (np.float32, 50, 1e-5)]
)
def test_large_scores(f, dtype, size, bound):
    x = np.random.default_rng(0).standard_normal((20, 5))
    x[:, 1] = x[:, 0] + 0.3 / size  # a close race, or all would be one-hot
    x = (x * size).astype(dtype)
    naive = naive_sparsemax if f is sparsemax else naive_entmax15
    want = np.array([naive(row) for row in x.tolist()])
    got = f(x)
    assert got.dtype == dtype and np.abs(got - want).max() < bound
    assert ((want > 0.01) & (want < 0.99)).any()


@given(st.integers(0, 2**32 - 1), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_shift_invariance(seed, c):
    x = np.random.default_rng(seed).standard_normal((3, 5))
    for f in (sparsemax, entmax15):
        assert np.abs(f(x + c) - f(x)).max() < 1e-12


def test_inputs_are_left_alone():
    x = np.random.default_rng(0).standard_normal((3, 5))
    before = x.copy()
    for f in NORMALIZERS.values():
        f(x, -1)
    assert np.array_equal(x, before)


def test_by_name():
    assert list(NORMALIZERS) == ["softmax", "sparsemax", "entmax15", "sigmoid", "relu"]
    for name, f in NORMALIZERS.items():
        assert normalizer_named(name) is f
    assert normalizer_named(max) is max
    with pytest.raises(ValueError) as e:
        normalizer_named("none")
    assert str(e.value) == (
        "normalizer: expected a function or one of 'softmax', 'sparsemax', 'entmax15', "
        "'sigmoid', 'relu', got 'none'"
    )
