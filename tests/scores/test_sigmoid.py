"""Sigmoid attention: loops, tiles of any size, derivatives, what it becomes in known cases."""

import math

import numpy as np
import pytest

from minattn.attention import attention, causal, padding
from minattn.attention.masks import shifted
from minattn.autograd import Tensor, grad
from minattn.kernels import flash
from minattn.scores.sigmoid import (
    flash_sigmoid,
    jacobian_norm,
    naive_jacobian_norm,
    naive_sigmoid_attention,
    sigmoid_attention,
    tiled_sigmoid,
    tiled_sigmoid_gradients,
    visible_bias,
)
from minattn.testing import check_causal, check_grads

from .complex_step import slopes

pytestmark = pytest.mark.paper(117)

# B, H, N, M, D, Dv
SHAPES = [(1, 1, 1, 1, 1, 1), (1, 1, 1, 4, 3, 2), (2, 3, 5, 5, 4, 4), (1, 2, 3, 7, 5, 3), (3, 1, 4, 2, 2, 5)]


def inputs(B=2, H=3, N=5, M=5, D=4, Dv=4, seed=0):
    rng = np.random.default_rng([seed, B, H, N, M])
    return (rng.standard_normal((B, H, N, D)), rng.standard_normal((B, H, M, D)),
            rng.standard_normal((B, H, M, Dv)))


def some(b, h, i, j):
    """Irregular, with a query that sees nothing."""
    return ((3 * i + j + b + h) % 3 > 0) & (i != 2)


def dense(q, k, v, b, visible=None):
    """All weights at once, with no help of the library."""
    s = np.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1]) + b
    p = 1 / (1 + np.exp(-s))
    return np.einsum("bhij,bhjd->bhid", p if visible is None else p * visible, v)


@pytest.mark.parametrize("form", [sigmoid_attention, flash_sigmoid])
@pytest.mark.parametrize("mask", [None, causal, some])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_loops(shape, mask, form):
    arrays = inputs(*shape)
    g = np.random.default_rng(1).standard_normal((*shape[:3], shape[5]))
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    out = form(*leaves, mask_mod=mask)

    def loops(*x):
        return naive_sigmoid_attention(*x, mask_mod=mask)

    want = loops(*arrays)
    np.testing.assert_allclose(out.data, want, rtol=1e-11, atol=1e-11)
    for got, slope in zip(grad(out, leaves, g), slopes(loops, *arrays, g=g), strict=True):
        np.testing.assert_allclose(got.data, slope, rtol=1e-10, atol=1e-11)
    if shape == SHAPES[2]:  # not degenerate
        assert np.ptp(want, axis=2).min() > 1e-2


def test_by_hand():
    """Scores ln 3 and −ln 3 with b = 0: weights 3/4 and 1/4. With b = −ln 2: 3/5 and 1/7."""
    q, k = np.ones((1, 1, 1, 1)), np.log(3) * np.array([1.0, -1.0]).reshape(1, 1, 2, 1)
    v = np.array([8.0, 4.0]).reshape(1, 1, 2, 1)
    for form in (sigmoid_attention, flash_sigmoid, naive_sigmoid_attention):
        assert form(q, k, v, 0.0).item() == pytest.approx(7, rel=1e-14)
        assert form(q, k, v).item() == pytest.approx(8 * 3 / 5 + 4 / 7, rel=1e-14)
    assert sigmoid_attention(q, k, v, 0.0, scale=2.0).item() == pytest.approx(8 * 0.9 + 4 * 0.1, rel=1e-14)
    assert flash_sigmoid(q, k, v, 0.0, scale=2.0).item() == pytest.approx(8 * 0.9 + 4 * 0.1, rel=1e-14)


@pytest.mark.parametrize(("dtype", "tol"), [(np.float64, 1e-11), (np.float32, 1e-5)])
@pytest.mark.parametrize("tile", [(16, 16), (32, 48), (64, 256)])
@pytest.mark.parametrize("mask", [None, causal, padding(np.array([37, 70])), some])
def test_compiled_tiles_of_any_size_equal_the_dense_form(monkeypatch, dtype, tol, tile, mask):
    monkeypatch.setattr(flash, "ROWS", tile[0])
    monkeypatch.setattr(flash, "COLUMNS", tile[1])
    arrays = [x.astype(dtype) for x in inputs(2, 2, 70, 70, 5, 3)]
    g = np.random.default_rng(2).standard_normal((2, 2, 70, 3)).astype(dtype)
    b, h, i, j = np.ogrid[:2, :2, :70, :70]
    seen = np.broadcast_to(True if mask is None else mask(b, h, i, j), (2, 2, 70, 70))
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    out = flash_sigmoid(*leaves, mask_mod=mask)
    assert out.dtype == dtype
    exact = [x.astype(np.float64) for x in arrays]
    np.testing.assert_allclose(out.data, dense(*exact, -math.log(70), seen), atol=tol)
    q, k, v = exact
    p = seen / (1 + 70 * np.exp(-np.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(5)))
    ds = p * (1 - p) * np.einsum("bhid,bhjd->bhij", g, v) / math.sqrt(5)
    want = ds @ k, ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ g
    for got, slope in zip(grad(out, leaves, g), want, strict=True):
        np.testing.assert_allclose(got.data, slope, atol=tol)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 5), (7, 3), (64, 64)])
def test_numpy_tiles(rows, columns):
    q, k, v = (x[0, 0] for x in inputs(1, 1, 7, 11, 3, 2))
    g = np.random.default_rng(3).standard_normal((7, 2))
    arrays = [x[None, None] for x in (q, k, v)]
    out = tiled_sigmoid(q, k, v, -0.7, rows=rows, columns=columns)
    np.testing.assert_allclose(out, dense(*arrays, -0.7)[0, 0], atol=1e-13)
    order = np.random.default_rng(4).permutation(-(-11 // columns))
    np.testing.assert_allclose(tiled_sigmoid(q, k, v, -0.7, rows=rows, columns=columns, order=order), out,
                               atol=1e-14)
    found = tiled_sigmoid_gradients(q, k, v, -0.7, g, rows=rows, columns=columns)
    want = slopes(lambda *x: naive_sigmoid_attention(*x, -0.7), *arrays, g=g)
    for got, slope in zip(found, want, strict=True):
        np.testing.assert_allclose(got, slope[0, 0], atol=1e-13)
    np.testing.assert_array_equal(tiled_sigmoid(q, k, v, -0.7), tiled_sigmoid(q, k, v, -0.7, rows=64,
                                                                              columns=64))


def test_the_order_of_keys_is_irrelevant():
    q, k, v = inputs(1, 2, 9, 300, 4, 3)
    order = np.random.default_rng(5).permutation(300)
    np.testing.assert_allclose(flash_sigmoid(q, k[:, :, order], v[:, :, order]), flash_sigmoid(q, k, v),
                               atol=1e-13)


@pytest.mark.parametrize("form", [sigmoid_attention, flash_sigmoid])
def test_zero_scores_give_n_parts_of_n_plus_one_of_the_mean(form):
    _, k, v = inputs(M=9)
    out = form(np.zeros((2, 3, 5, 4)), k, v)
    want = np.broadcast_to(9 / 10 * v.mean(2, keepdims=True), out.shape)
    np.testing.assert_allclose(out, want, atol=1e-15)
    weights = sigmoid_attention(np.zeros((2, 3, 5, 4)), k, v, return_weights=True)[1]
    np.testing.assert_allclose(weights, 1 / 10, rtol=1e-14)


def test_a_very_negative_bias_gives_the_directions_of_softmax():
    q, k, v = inputs(M=7)
    out, weights = sigmoid_attention(q, k, v, -30.0, return_weights=True)
    total = weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(out / total, attention(q, k, v), atol=1e-6)
    near = sigmoid_attention(q, k, v, -1.0, return_weights=True)[1]
    assert np.abs(near / near.sum(-1, keepdims=True) - weights / total).max() > 1e-2


def test_bias_of_visible_keys():
    b = visible_bias(causal, 1, 1, 300, 300)
    np.testing.assert_allclose(b.ravel(), -np.log(np.arange(1, 301)), atol=1e-15)
    np.testing.assert_array_equal(visible_bias(None, 2, 3, 4, 5), np.full((2, 3, 4, 1), -math.log(5)))
    np.testing.assert_array_equal(visible_bias(None, 1, 1, 2, 0), np.zeros((1, 1, 2, 1)))
    uneven = visible_bias(some, 2, 2, 4, 5)
    assert (uneven[:, :, 2] == 0).all() and uneven.shape == (2, 2, 4, 1)
    _, k, v = inputs(N=6, M=6)
    for form in (sigmoid_attention, flash_sigmoid):
        out = form(np.zeros((2, 3, 6, 4)), k, v, "visible", mask_mod=causal)
        seen = np.arange(1, 7)[:, None]
        np.testing.assert_allclose(out, np.cumsum(v, 2) / (seen + 1), atol=1e-14)


def test_a_bias_can_be_learned_for_each_head():
    q, k, v = inputs()
    b = np.random.default_rng(6).standard_normal((3, 1, 1))
    np.testing.assert_allclose(sigmoid_attention(q, k, v, b), dense(q, k, v, b), atol=1e-13)
    for form in (sigmoid_attention, flash_sigmoid):
        check_grads(lambda *x, form=form: form(*x), q, k, v, b, order=1)


def test_second_derivatives():
    check_grads(sigmoid_attention, *inputs(1, 2, 3, 4, 3, 2))
    check_grads(lambda *x: sigmoid_attention(*x, mask_mod=some), *inputs(1, 2, 4, 4, 3, 2))


def test_score_mods_see_the_score_with_its_bias():
    q, k, v = inputs()
    i, j = np.ogrid[:5, :5]

    def distance(s, b, h, i, j):
        return s - 0.5 * abs(i - j)

    want = dense(q, k, v, -math.log(5) - 0.5 * np.abs(i - j))
    for form in (sigmoid_attention, flash_sigmoid):
        np.testing.assert_allclose(form(q, k, v, score_mod=distance), want, atol=1e-13)
        np.testing.assert_allclose(form(q, k, v, -9.0, score_mod=lambda s, *_: 0 * s),
                                   np.broadcast_to(v.sum(2, keepdims=True) / 2, want.shape), atol=1e-13)


def test_causal_also_for_later_queries():
    q, k, v = inputs(1, 2, 6, 6, 3, 3)
    for form in (sigmoid_attention, flash_sigmoid):
        check_causal(lambda x, form=form: form(q, x, v, mask_mod=causal), k, dim=2)
        check_causal(lambda x, form=form: form(q, k, x, mask_mod=causal), v, dim=2)
        late = form(q[:, :, 4:], k, v, mask_mod=shifted(causal, 4))
        np.testing.assert_allclose(late, form(q, k, v, mask_mod=causal)[:, :, 4:], atol=1e-14)


def test_grouped_heads_large_scores_nothing_to_see():
    q, k, v = inputs(H=4)
    many = [np.repeat(x[:, :2], 2, axis=1) for x in (k, v)]
    for form in (sigmoid_attention, flash_sigmoid):
        np.testing.assert_allclose(form(q, k[:, :2], v[:, :2]), form(q, *many), atol=1e-13)
        want = (0.5 + 0.5 * np.tanh(2500 / 4 * q @ k.swapaxes(2, 3))) @ v
        np.testing.assert_allclose(form(50 * q, 50 * k, v, 0.0), want, atol=1e-10)
        np.testing.assert_array_equal(form(q, k, v, mask_mod=some)[:, :, 2], 0)
        np.testing.assert_array_equal(form(q, k[:, :, :0], v[:, :, :0]), 0)
        assert form(*(x.astype(np.float32) for x in (q, k, v))).dtype == np.float32


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_jacobian_norm(kind):
    def f(x):
        return attention(x, x, x) if kind == "softmax" else sigmoid_attention(x, x, x)

    rng = np.random.default_rng(7)
    x = rng.standard_normal((1, 1, 4, 3))
    want = naive_jacobian_norm(f, x)
    assert jacobian_norm(f, x, rng=rng) == pytest.approx(want, rel=1e-6)
    size, u, v = jacobian_norm(f, x, rng=rng, return_vectors=True)
    assert size == pytest.approx(want, rel=1e-6)
    assert np.linalg.norm(u) == pytest.approx(1) and np.linalg.norm(v) == pytest.approx(1)
    moved = (f(x + 1e-6 * v) - f(x - 1e-6 * v)) / 2e-6
    assert (u * moved).sum() == pytest.approx(want, rel=1e-5)
    assert jacobian_norm(f, x, steps=1, rng=rng) < want * (1 + 1e-9)


def test_jacobian_norm_of_linear_maps():
    rng = np.random.default_rng(8)
    W = np.diag([3.0, -5.0, 1.0])
    assert jacobian_norm(lambda x: x @ W, np.ones(3), rng=rng) == pytest.approx(5, rel=1e-12)
    assert naive_jacobian_norm(lambda x: x @ W, np.ones(3)) == pytest.approx(5, rel=1e-8)
    assert jacobian_norm(lambda x: 0 * x, np.ones(3), rng=rng) == 0
    with pytest.raises(ValueError, match=r"^steps: expected at least 1, got 0$"):
        jacobian_norm(lambda x: x, np.ones(3), steps=0, rng=rng)


def test_mistakes():
    q, k, v = inputs()
    for form in (sigmoid_attention, flash_sigmoid):
        with pytest.raises(ValueError, match=r"^b: expected a number, an array or 'visible', got 'seen'$"):
            form(q, k, v, "seen")
        with pytest.raises(ValueError, match=r"^b: "):
            form(q, k, v, np.zeros((5, 5)))
        with pytest.raises(ValueError, match=r"^scale: expected a number other than 0, got 0$"):
            form(q, k, v, scale=0)
        with pytest.raises(ValueError, match=r"^q: expected 4 axes \(batch, heads, positions, features\)"):
            form(q[0], k, v)
        with pytest.raises(ValueError, match=r"^k: expected 4 axes \(batch, heads, positions, features\)"):
            form(q, k[0], v)
        with pytest.raises(ValueError, match=r"^k: expected batch 2"):
            form(q, k[..., :3], v)
        with pytest.raises(ValueError, match=r"^v: expected shape"):
            form(q, k, v[:, :, :3])
