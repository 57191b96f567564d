"""Mass and sensitivity: against loops and finite differences, and between their bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import attention, causal, shifted
from minattn.autograd import Tensor, cat, grad, reshape, softmax, tensor
from minattn.transformer import source_attention_mass, source_mass_bounds, source_sensitivity
from minattn.transformer.partial_attention import naive_source_sensitivity

pytestmark = pytest.mark.paper(100)


# ---- mass


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 4, 7), (1, 2, 1, 6)])
def test_mass_is_the_sum_over_source_keys(shape):
    weights = softmax(np.random.default_rng(0).standard_normal(shape), -1)
    for m in range(shape[-1] + 1):
        for skip in range(m + 1):
            got = source_attention_mass(weights, m, skip=skip)
            assert got.shape == shape[:-1]
            for place in np.ndindex(*shape[:-1]):
                want = math.fsum(float(weights[place][j]) for j in range(m) if j >= skip)
                assert got[place] == pytest.approx(want, abs=1e-15)
    np.testing.assert_array_equal(source_attention_mass(weights, 0), np.zeros(shape[:-1]))
    np.testing.assert_allclose(source_attention_mass(weights, shape[-1]), 1, atol=1e-12)


def test_mass_has_a_gradient():
    scores = tensor(np.random.default_rng(0).standard_normal((2, 3, 5)), requires_grad=True)
    u = np.random.default_rng(1).standard_normal((2, 3))
    source_attention_mass(softmax(scores, -1), 2).backward(u)
    a = softmax(scores.data, -1)
    mass = a[..., :2].sum(-1, keepdims=True)
    want = u[..., None] * a * (np.array([1, 1, 0, 0, 0]) - mass)
    np.testing.assert_allclose(scores.grad, want, atol=1e-14)


def test_mass_refuses_what_does_not_fit():
    weights = np.ones((2, 3))
    for m in (4, -1, 1.5):
        with pytest.raises(ValueError, match=r"weights: expected shape|m: expected a whole number"):
            source_attention_mass(weights, m)
    with pytest.raises(ValueError, match=r"weights: expected .* with M ≥ m=4 keys, got \(2, 3\)"):
        source_attention_mass(weights, 4)
    with pytest.raises(ValueError, match="weights: expected shape"):
        source_attention_mass(weights[0], 1)
    with pytest.raises(ValueError, match="skip: expected at most m=2 keys, got 3"):
        source_attention_mass(weights, 2, skip=3)
    with pytest.raises(ValueError, match="skip: expected a whole number"):
        source_attention_mass(weights, 2, skip=-1)


# ---- bounds


@settings(deadline=None, max_examples=60)
@given(m=st.integers(0, 7), n=st.integers(1, 9), c=st.floats(0, 5), seed=st.integers(0, 10**6))
def test_bounds_hold_for_every_step_on_random_logits(m, n, c, seed):
    """Step t = 1 … n sees the source and t target keys; logits uniform in [−c, c]."""
    logits = np.random.default_rng(seed).uniform(-c, c, (n, m + n))
    hidden = np.arange(m + n) >= m + np.arange(1, n + 1)[:, None]
    mass = source_attention_mass(softmax(np.where(hidden, -np.inf, logits), -1), m)
    low, high = source_mass_bounds(m, np.arange(1, n + 1), c)
    assert low.shape == high.shape == (n,)
    assert (low <= mass + 1e-12).all() and (mass <= high + 1e-12).all()


@pytest.mark.parametrize("m, t, c", [(1, 1, 0.5), (5, 3, 2.0), (64, 48, 0.0), (3, 2.5, 1.0)])
def test_bounds_are_the_formula_and_are_reached(m, t, c):
    low, high = source_mass_bounds(m, np.array(t), c)
    assert low == pytest.approx(m * math.exp(-2 * c) / (m * math.exp(-2 * c) + t), rel=1e-14)
    assert high == pytest.approx(m * math.exp(2 * c) / (m * math.exp(2 * c) + t), rel=1e-14)
    if isinstance(t, int):
        for sign, want in ((1, high), (-1, low)):
            row = softmax(np.repeat([sign * c, -sign * c], [m, t]), -1)
            assert source_attention_mass(row[None], m)[0] == pytest.approx(want, rel=1e-12)


def test_bounds_at_their_ends():
    low, high = source_mass_bounds(0, np.array([0, 1, 9]), 1.0)
    np.testing.assert_array_equal([low, high], np.zeros((2, 3)))
    low, high = source_mass_bounds(4, np.array([0.0, 1e9]), 1.0)
    assert low[0] == high[0] == 1 and 0 < low[1] < high[1] < 1e-7
    low, high = source_mass_bounds(3, [1, 2], 0.0)
    np.testing.assert_allclose([low, high], [[3 / 4, 3 / 5]] * 2, rtol=1e-15)
    assert low.dtype == np.float64
    assert source_mass_bounds(3, np.ones(1, np.float32), 0.1)[0].dtype == np.float64
    assert source_mass_bounds(3, 2, 0.5)[0].shape == ()


def test_bounds_refuse_bad_input():
    with pytest.raises(ValueError, match="t: expected numbers of target keys of at least 0"):
        source_mass_bounds(2, [1, -1], 1.0)
    for c in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="c: expected a finite bound of at least 0"):
            source_mass_bounds(2, [1], c)
    with pytest.raises(ValueError, match="m: expected a whole number"):
        source_mass_bounds(-1, [1], 1.0)
    assert source_mass_bounds(2, [0], 0.0)[0] == 1


# ---- sensitivity


def attend(target, m):
    """o_t for source embeddings (R, m, D), keys and values being the embeddings themselves."""

    def f(source):
        x = cat([source, Tensor(np.repeat(target[None], len(source), 0))], 1)[:, None]
        return attention(x[:, :, m:], x, x, mask_mod=shifted(causal, queries=m))[:, 0]

    return f


@pytest.mark.parametrize("m, n, D", [(1, 1, 1), (4, 3, 2), (3, 5, 4)])
def test_sensitivity_equals_finite_differences(m, n, D):
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((m, D)), rng.standard_normal((n, D))
    f = attend(target, m)
    got = source_sensitivity(f, x, range(n))
    assert got.shape == (n,) and (got > 1e-3).all()
    want = [naive_source_sensitivity(lambda s: f(Tensor(s)).data, x, t) for t in range(n)]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(source_sensitivity(f, x, [n - 1]), got[-1:])


def test_sensitivity_of_a_linear_map_is_its_norm():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((3, 4, 2, 5))  # o_t = Σ_j x_j A_jt: from 3 embeddings of 4 to 2 outputs of 5

    def f(x):
        return reshape(reshape(x, (-1, 12)) @ Tensor(A.reshape(12, 10)), (-1, 2, 5))

    got = source_sensitivity(f, rng.standard_normal((3, 4)), [0, 1])
    np.testing.assert_allclose(got, np.sqrt((A**2).sum((0, 1, 3))), rtol=1e-12)


def test_sensitivity_of_uniform_attention_is_the_mass_over_the_root_of_m():
    """Zero queries: o_t = mean of all keys, so ∂o_t/∂X holds m blocks 1/(m + t) · identity."""
    m, n, D = 6, 9, 3
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n, D))

    def f(source):
        v = cat([source, Tensor(np.repeat(values[None], len(source), 0))], 1)[:, None]
        q = np.zeros((len(source), 1, n, D))
        return attention(Tensor(q), v, v, mask_mod=shifted(causal, queries=m))[:, 0]

    got = source_sensitivity(f, rng.standard_normal((m, D)), range(n))
    t = np.arange(1, n + 1)
    np.testing.assert_allclose(got, np.sqrt(m * D) / (m + t), rtol=1e-12)


def test_sensitivity_keeps_the_graph_and_the_precision():
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    w = tensor(np.ones(3, np.float32), requires_grad=True)
    f = lambda s: s * s * w  # noqa: E731
    got = source_sensitivity(f, tensor(x, requires_grad=True), [0, 1, 0])
    np.testing.assert_allclose(got, 2 * np.sqrt((x[[0, 1, 0]] ** 2).sum(-1)), rtol=1e-6)
    assert w.grad is None and grad(f(Tensor(x)), w, np.ones((2, 3), np.float32))[0].shape == (3,)


def test_sensitivity_refuses_bad_input():
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"x: expected shape \(m, D\), got \(3,\)"):
        source_sensitivity(lambda s: s, x[0], [0])
    for steps in ([2], [0, -1]):
        with pytest.raises(ValueError, match="steps: expected outputs from 0 to 1, got"):
            source_sensitivity(lambda s: s, x, steps)
    with pytest.raises(ValueError, match="f: its output does not depend on the source"):
        source_sensitivity(lambda s: Tensor(np.ones((len(s), 2, 3))), x, [0])
