"""Normalised attention: loops, derivatives, invariances, what it becomes in known cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import causal, padding
from minattn.autograd import Tensor, grad
from minattn.scores.normalized import (
    naive_normalized_attention,
    normalize_rows,
    normalized_attention,
    normalized_attention_linear,
)
from minattn.testing import check_causal, check_grads

from .complex_step import slopes

pytestmark = pytest.mark.paper(37)

# B, H, N, M, D, Dv
SHAPES = [(1, 1, 1, 1, 1, 1), (1, 1, 1, 4, 3, 2), (2, 3, 5, 5, 4, 4), (1, 2, 3, 7, 5, 3), (3, 1, 4, 2, 2, 5)]


def inputs(B=2, H=3, N=5, M=5, D=4, Dv=4, seed=0):
    rng = np.random.default_rng([seed, B, H, N, M])
    return (rng.standard_normal((B, H, N, D)), rng.standard_normal((B, H, M, D)),
            rng.standard_normal((B, H, M, Dv)), 1 + rng.random(H), rng.standard_normal(H))


def some(b, h, i, j):
    """Irregular, with a query that sees one key and one that sees none."""
    return ((3 * i + j + b + h) % 3 > 0) & (i != 2) & ((i != 1) | (j == 0))


@pytest.mark.parametrize("mask", [None, causal, some])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_loops(shape, mask):
    arrays = inputs(*shape)
    g = np.random.default_rng(1).standard_normal((*shape[:3], shape[5]))
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    out = normalized_attention(*leaves, mask_mod=mask)

    def loops(*x):
        return naive_normalized_attention(*x, mask_mod=mask)

    want = loops(*arrays)
    np.testing.assert_allclose(out.data, want, rtol=1e-10, atol=1e-10)
    for got, slope in zip(grad(out, leaves, g), slopes(loops, *arrays, g=g), strict=True):
        np.testing.assert_allclose(got.data, slope, rtol=1e-9, atol=1e-10)
    if shape == SHAPES[2]:  # not degenerate
        assert np.ptp(want, axis=2).min() > 1e-2


def test_by_hand():
    """Scores 1, 3, 5: mean 3, deviation √(8/3); weights −√1.5, 0, √1.5."""
    q, k, v = np.ones((1, 1, 1, 1)), np.array([[[[1.0], [3.0], [5.0]]]]), np.array([[[[2.0], [7.0], [4.0]]]])
    for form in (normalized_attention, normalized_attention_linear):
        assert form(q, k, v, eps=0).item() == pytest.approx(2 * np.sqrt(1.5), rel=1e-14)
        assert form(q, k, v, np.array([3.0]), np.array([0.5]), eps=0).item() == pytest.approx(
            6 * np.sqrt(1.5) + 6.5, rel=1e-14)
        assert form(q, k, v).item() == pytest.approx(4 / (np.sqrt(8 / 3) + 1e-3), rel=1e-14)
    assert naive_normalized_attention(q, k, v, np.ones(1), np.zeros(1), eps=0).item() == pytest.approx(
        2 * np.sqrt(1.5), rel=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_the_linear_form_is_the_same(shape, eps):
    arrays = inputs(*shape)
    g = np.random.default_rng(2).standard_normal((*shape[:3], shape[5]))
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    out, want = (f(*leaves, eps=eps) for f in (normalized_attention_linear, normalized_attention))
    np.testing.assert_allclose(out.data, want.data, rtol=1e-10, atol=1e-10)
    for got, slope in zip(grad(out, leaves, g), grad(want, leaves, g), strict=True):
        np.testing.assert_allclose(got.data, slope.data, rtol=1e-8, atol=1e-9)
    fewer = inputs(*shape)[:3]
    np.testing.assert_allclose(normalized_attention_linear(*fewer), normalized_attention(*fewer), atol=1e-10)


@pytest.mark.parametrize("form", [normalized_attention, normalized_attention_linear])
def test_second_derivatives(form):
    check_grads(form, *inputs(1, 2, 3, 4, 3, 2))


def test_masked_second_derivatives():
    check_grads(lambda *x: normalized_attention(*x, mask_mod=some), *inputs(1, 2, 4, 4, 3, 2))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 99))
def test_rows_may_be_shifted_and_scaled(c, shift, seed):
    z = np.random.default_rng(seed).standard_normal((2, 3, 4, 9))
    gain, bias = 1.7, -0.3
    plain = normalize_rows(z, gain, bias, 0.0)
    np.testing.assert_allclose(normalize_rows(c * z + shift, gain, bias, 0.0), plain, atol=1e-9)
    np.testing.assert_allclose(normalize_rows(z + shift, gain, bias), normalize_rows(z, gain, bias),
                               atol=1e-10)
    assert np.abs(normalize_rows(-z, gain, bias, 0.0) - plain).max() > 0.1


def test_epsilon_breaks_the_invariance_by_little():
    z = np.random.default_rng(3).standard_normal((200, 9))
    moved = np.abs(normalize_rows(3 * z, 1, 0) - normalize_rows(z, 1, 0)).max()
    assert 1e-5 < moved <= 3e-3


def test_weights_have_the_mean_and_deviation_that_were_asked_for():
    z = np.random.default_rng(4).standard_normal((5, 11))
    a = normalize_rows(z, 2.5, 0.7, 0.0)
    np.testing.assert_allclose(a.mean(-1), 0.7, atol=1e-14)
    np.testing.assert_allclose(a.std(-1), 2.5, rtol=1e-13)
    assert (a < 0).any() and (a.sum(-1) > 1).all()
    np.testing.assert_allclose(normalize_rows(z.T, 2.5, 0.7, 0.0, 0), a.T, atol=1e-14)


def test_without_gain_it_is_mean_or_sum_pooling():
    q, k, v, _, _ = inputs(M=6)
    nothing = np.zeros(3)
    for form in (normalized_attention, normalized_attention_linear):
        mean, summed = (form(q, k, v, nothing, np.full(3, b)) for b in (1 / 6, 1.0))
        np.testing.assert_allclose(mean, np.broadcast_to(v.mean(2, keepdims=True), mean.shape), atol=1e-14)
        np.testing.assert_allclose(summed, np.broadcast_to(v.sum(2, keepdims=True), mean.shape), atol=1e-13)


def test_heads_have_their_own_gain_and_bias():
    q, k, v, gain, bias = inputs()
    whole = normalized_attention(q, k, v, gain, bias)
    for h in range(3):
        part = (x[:, h : h + 1] for x in (q, k, v))
        np.testing.assert_allclose(normalized_attention(*part, gain[h : h + 1], bias[h : h + 1]),
                                   whole[:, h : h + 1], atol=1e-13)


def test_rows_that_see_nothing_or_one_key():
    q, k, v, gain, bias = inputs()
    leaves = [Tensor(x, requires_grad=True) for x in (q, k, v, gain, bias)]
    out, weights = normalized_attention(*leaves, mask_mod=some, return_weights=True)
    np.testing.assert_array_equal(out.data[:, :, 2], 0)
    alone = np.array([[some(b, h, 1, 0) for h in range(3)] for b in range(2)])
    want = alone[..., None] * bias[:, None] * v[:, :, 0]
    np.testing.assert_allclose(out.data[:, :, 1], want, atol=1e-14)
    b, h, i, j = np.ogrid[:2, :3, :5, :5]
    np.testing.assert_array_equal(weights.data[~some(b, h, i, j)], 0)
    for g in grad(out, leaves, np.ones(out.shape)):
        assert np.isfinite(g.data).all()
    blind = normalized_attention(q, k, v, gain, bias, mask_mod=lambda b, h, i, j: (j < 0) & (i < 0))
    np.testing.assert_array_equal(blind, 0)


def test_equal_scores_give_the_bias():
    """No deviation: nothing is divided by zero, not even with ε = 0. (The mean of four is exact.)"""
    q, k, v, gain, bias = inputs(M=4)
    same = np.repeat(k[:, :, :1], 4, axis=2)
    for form in (normalized_attention, normalized_attention_linear):
        leaf = Tensor(q, requires_grad=True)
        out = form(leaf, same, v, gain, bias, eps=0.0)
        want = bias[:, None] * v.sum(2)
        np.testing.assert_allclose(out.data, np.broadcast_to(want[:, :, None], out.shape), atol=1e-11)
        assert np.isfinite(grad(out, [leaf], np.ones(out.shape))[0].data).all()


def test_masks_of_padding_count_the_keys_that_are_there():
    q, k, v, gain, bias = inputs(B=2, N=4, M=6)
    out = normalized_attention(q, k, v, gain, bias, mask_mod=padding(np.array([3, 6])))
    short = normalized_attention(q[:1], k[:1, :, :3], v[:1, :, :3], gain, bias)
    np.testing.assert_allclose(out[:1], short, atol=1e-13)
    np.testing.assert_allclose(out[1:], normalized_attention(q[1:], k[1:], v[1:], gain, bias), atol=1e-13)


def test_causal():
    q, k, v, gain, bias = inputs(1, 2, 6, 6, 3, 3)
    check_causal(lambda x: normalized_attention(q, x, v, gain, bias, mask_mod=causal), k, dim=2,
                 change=lambda t: 2 * t + 1)
    check_causal(lambda x: normalized_attention(q, k, x, gain, bias, mask_mod=causal), v, dim=2)


def test_grouped_heads():
    q, k, v, gain, bias = inputs(H=4)
    few = k[:, :2], v[:, :2]
    many = (np.repeat(x, 2, axis=1) for x in few)
    np.testing.assert_allclose(normalized_attention(q, *few, gain, bias),
                               normalized_attention(q, *many, gain, bias), atol=1e-13)


@pytest.mark.parametrize("form", [normalized_attention, normalized_attention_linear])
def test_single_precision_and_large_scores(form):
    arrays = [x.astype(np.float32) for x in inputs(N=33, M=33)]
    want = form(*(x.astype(np.float64) for x in arrays))
    found = form(*arrays)
    assert found.dtype == form(*arrays[:3]).dtype == np.float32
    np.testing.assert_allclose(found, want, atol=1e-4)
    large = form(50 * arrays[0], 50 * arrays[1], *arrays[2:])
    assert np.isfinite(large).all() and np.abs(large).max() < 1e3


def test_mistakes():
    q, k, v, gain, bias = inputs()
    with pytest.raises(ValueError, match=r"^gain: expected one number a head, shape \(3,\), got \(2,\)"):
        normalized_attention(q, k, v, gain[:2], bias)
    with pytest.raises(ValueError, match=r"^bias: expected one number a head, shape \(3,\), got \(1, 3\)"):
        normalized_attention(q, k, v, gain, bias[None])
    with pytest.raises(ValueError, match=r"^eps: expected a number ≥ 0, got -1$"):
        normalized_attention(q, k, v, eps=-1)
    with pytest.raises(ValueError, match=r"^q: expected 4 axes \(batch, heads, positions, fe.*, got \(3,"):
        normalized_attention(q[0], k, v)
    with pytest.raises(ValueError, match=r"^k: expected batch 2 and 4 features"):
        normalized_attention(q, k[..., :3], v)
    for wrong in ((k[:, :1], v[:, :1]), (k, v[:, :, :3]), (k[0], v)):
        with pytest.raises(ValueError, match=r"^k, v: expected batch and heads \(2, 3\) and equally man"):
            normalized_attention_linear(q, *wrong)
