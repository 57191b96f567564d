"""Quantisation, smoothing, pruning and distillation against loops, and their limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn import nn
from minattn.autograd import Tensor, grad
from minattn.inference import compression
from minattn.inference.compression import (
    Int8Linear,
    Int8Weight,
    distillation_loss,
    int8_matmul,
    magnitude_prune,
    naive_distillation_loss,
    naive_quantize_int8,
    naive_wanda,
    quantize_weights_int8,
    smooth,
    smoothquant_scales,
    wanda_prune,
)
from minattn.kernels import cross_entropy
from minattn.testing import check_grads

pytestmark = pytest.mark.paper(162)

SHAPES = [(1, 1), (3, 7), (5, 32), (2, 64)]


def matrix(R=3, K=7, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, R, K]).standard_normal((R, K)).astype(dtype)


# --- int8 -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_rounded_as_by_loops(shape):
    w = matrix(*shape)
    numbers, scales = naive_quantize_int8(w)
    got = quantize_weights_int8(w)
    assert got.values.dtype == np.int8 and got.values.tolist() == numbers and got.shape == shape
    np.testing.assert_allclose(got.scale, scales, rtol=1e-15)
    assert (np.abs(got.values).max(1) == 127).all()
    assert (np.abs(got.dense() - w) <= got.scale[:, None] / 2 * (1 + 1e-12)).all()
    assert got.nbytes == shape[0] * shape[1] + 8 * shape[0]


def test_scales_belong_to_rows():
    w = np.array([[1.0, -127.0, 0.4], [0.001, 0.002, -0.00127], [0, 0, 0]])
    got = quantize_weights_int8(w)
    assert got.values.tolist() == [[1, -127, 0], [64, 127, -81], [0, 0, 0]]
    np.testing.assert_allclose(got.scale, [1, 0.002 / 127, 0], rtol=1e-15)
    assert got.dense()[2].tolist() == [0, 0, 0]
    again = quantize_weights_int8(got.dense())  # what is on the grid stays
    assert (again.values == got.values).all()
    one = quantize_weights_int8(w[:2].reshape(1, -1))  # one scale for all loses the small row
    assert not one.values[0, 3:].any()


def test_float32_stays_float32():
    got = quantize_weights_int8(matrix(dtype=np.float32))
    assert got.scale.dtype == got.dense().dtype == np.float32


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_layer_in_bytes_is_the_layer_of_the_rounded_matrix(shape, dtype):
    w, x = matrix(*shape, dtype=dtype), matrix(6, shape[1], seed=1, dtype=dtype).reshape(2, 3, -1)
    bias = nn.Parameter(matrix(1, shape[0], seed=2, dtype=dtype)[0])
    layer = Int8Linear(quantize_weights_int8(w), bias)
    dense = quantize_weights_int8(w).dense()
    want = x @ dense.T + bias.data
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    out = layer(Tensor(x))
    assert out.dtype == dtype and out.shape == (2, 3, shape[0])
    np.testing.assert_allclose(out.data, want, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(Int8Linear(layer.weight)(Tensor(x)).data, want - bias.data, rtol=tolerance,
                               atol=tolerance)
    for n in (1, 2):  # few rows take the compiled kernel
        np.testing.assert_allclose(layer(Tensor(x[0, :n])).data, want[0, :n], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(3, 7), (5, 32)])
def test_gradients_reach_inputs_and_bias(shape):
    layer = Int8Linear(quantize_weights_int8(matrix(*shape)), nn.Parameter(np.zeros(shape[0])))
    check_grads(layer, matrix(2, shape[1], seed=3), order=1)
    x, g = Tensor(matrix(2, shape[1], seed=3), requires_grad=True), matrix(2, shape[0], seed=4)
    dx, db = grad(layer(x), [x, layer.bias], g)
    np.testing.assert_allclose(dx.data, g @ layer.weight.dense(), rtol=1e-12)
    np.testing.assert_allclose(db.data, g.sum(0), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_whole_numbers(shape):
    w, x = quantize_weights_int8(matrix(*shape)), matrix(4, shape[1], seed=5)
    want = [[sum(a * b for a, b in zip(xr, wr, strict=True)) * sx * sw
             for wr, sw in zip(w.values.tolist(), w.scale, strict=True)]
            for xr, sx in zip(*naive_quantize_int8(x), strict=True)]
    np.testing.assert_allclose(int8_matmul(x, w), want, rtol=1e-13)
    layer = Int8Linear(w, round_inputs=True)
    np.testing.assert_allclose(layer(x), want, rtol=1e-12, atol=1e-13)
    as_32 = Int8Linear(quantize_weights_int8(matrix(*shape, dtype=np.float32)), round_inputs=True)
    np.testing.assert_allclose(as_32(Tensor(x.astype(np.float32))).data, want, rtol=1e-4, atol=1e-4)
    assert int8_matmul(x.astype(np.float32), w).dtype == np.float32


def test_long_sums_do_not_overflow():
    ones = np.ones((1, 4096))
    assert int8_matmul(ones, quantize_weights_int8(ones)).item() == pytest.approx(4096, rel=1e-12)


def test_the_kernel_of_bytes_is_used(monkeypatch):
    used = []
    monkeypatch.setattr(compression, "packed_linear", lambda x, w: used.append(w.kind) or np.zeros((1, 5)))
    layer = Int8Linear(quantize_weights_int8(matrix(5, 32, dtype=np.float32)))
    layer(np.ones((1, 32), np.float32))
    layer(np.ones((1, 32)))
    assert used == ["q8_0"]


# --- SmoothQuant ----------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_smoothing_leaves_the_product(seed, R, K, alpha):
    rng = np.random.default_rng(seed)
    x, w = np.exp(3 * rng.standard_normal(K)) * rng.standard_normal((5, K)), rng.standard_normal((R, K))
    want = x @ w.T
    x2, w2 = smooth(x, w, alpha)
    np.testing.assert_allclose(x2 @ w2.T, want, rtol=0, atol=1e-12 * np.abs(want).max())
    s = smoothquant_scales(np.abs(x).max(0), w, alpha)
    for j in range(K):
        mine = max(abs(x[:, j])) ** alpha / max(abs(w[:, j])) ** (1 - alpha)
        assert s[j] == pytest.approx(mine, rel=1e-12)


def test_limits_of_alpha():
    x, w = matrix(5, 4, seed=1), matrix(3, 4)
    half, ours = smooth(x, w)
    np.testing.assert_allclose(np.abs(half).max(0), np.abs(ours).max(0), rtol=1e-12)  # shared evenly
    all_in_weights, _ = smooth(x, w, 1.0)
    np.testing.assert_allclose(np.abs(all_in_weights).max(0), 1, rtol=1e-12)
    _, level = smooth(x, w, 0.0)
    np.testing.assert_allclose(np.abs(level).max(0), 1, rtol=1e-12)


def test_features_that_are_silent_stay():
    x, w = matrix(5, 4, seed=1), matrix(3, 4)
    x[:, 1], w[:, 2] = 0, 0
    for alpha in (0.0, 0.5, 1.0):
        s = smoothquant_scales(np.abs(x).max(0), w, alpha)
        assert s[1] == s[2] == 1 and np.isfinite(s).all() and (s > 0).all()


def test_outliers_survive_rounding_once_they_are_smoothed():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((64, 32)), rng.standard_normal((16, 32)) / 6
    x[:, 5] *= 60
    want = x @ w.T

    def error(x, w):
        return np.abs(int8_matmul(x, quantize_weights_int8(w)) - want).mean()

    assert error(*smooth(x, w)) < error(x, w) / 2


# --- pruning --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_wanda_drops_what_the_loops_drop(shape, sparsity):
    w, norms = matrix(*shape), np.exp(matrix(1, shape[1], seed=2)[0])
    got = wanda_prune(w, norms, sparsity)
    np.testing.assert_array_equal(got, naive_wanda(w, norms, sparsity))
    assert ((got == 0).sum(1) == int(sparsity * shape[1])).all()
    assert ((got == w) | (got == 0)).all()


def test_wanda_of_equal_norms_is_magnitude_row_by_row():
    w = matrix(4, 9)
    got = wanda_prune(w, np.full(9, 3.0), 0.5)
    np.testing.assert_array_equal(got, np.concatenate([magnitude_prune(r[None], 0.5) for r in w]))
    assert (got != magnitude_prune(w, 0.5)).any()


def test_magnitude_drops_the_smallest_of_all():
    w = np.array([[3.0, -0.1, 0.2], [-5.0, 4.0, 1.0]])
    assert magnitude_prune(w, 0.5).tolist() == [[3, 0, 0], [-5, 4, 0]]
    assert magnitude_prune(w, 0.99).tolist() == [[0, 0, 0], [-5, 0, 0]]
    assert magnitude_prune(w, 0).tolist() == w.tolist() and not magnitude_prune(w, 1).any()
    assert w[0, 1] == -0.1  # what came in is as it was


def test_wanda_by_hand():
    w, norms = np.array([[4.0, -3.0, 2.0, 1.0]]), np.array([0.1, 1.0, 1.0, 9.0])
    assert wanda_prune(w, norms, 0.5).tolist() == [[0, -3, 0, 1]]
    assert magnitude_prune(w, 0.5).tolist() == [[4, -3, 0, 0]]
    assert wanda_prune(np.ones((1, 4)), np.ones(4), 0.5).tolist() == [[0, 0, 1, 1]]  # equal: the first go
    assert wanda_prune(np.array([[1.0, 2, 1, 1, 0]]), np.ones(5), 0.6).tolist() == [[0, 2, 0, 1, 0]]


def test_wanda_loses_less_where_inputs_differ_in_size():
    rng = np.random.default_rng(0)
    x, w = np.exp(rng.standard_normal(40)) * rng.standard_normal((200, 40)), rng.standard_normal((20, 40))
    errors = [np.abs(x @ (w - p).T).mean() for p in
              (wanda_prune(w, np.linalg.norm(x, axis=0), 0.5), magnitude_prune(w, 0.5))]
    assert errors[0] < 0.8 * errors[1]


# --- distillation ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("T", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (4, 5), (2, 3, 7)])
def test_distillation_and_its_gradient_equal_the_loops(shape, T):
    rng = np.random.default_rng(0)
    z, t = 2 * rng.standard_normal((2, *shape))
    want, slope = naive_distillation_loss(z.reshape(-1, shape[-1]), t.reshape(-1, shape[-1]), T)
    student, teacher = Tensor(z, requires_grad=True), Tensor(t, requires_grad=True)
    loss = distillation_loss(student, teacher, temperature=T)
    assert want > 0.01 and float(loss.data) == pytest.approx(want, rel=1e-12)
    (got,) = grad(loss, [student], np.array(1.7), retain_graph=True)
    np.testing.assert_allclose(got.data, 1.7 * slope.reshape(shape), rtol=1e-10, atol=1e-13)
    loss.backward()
    assert teacher.grad is None


def test_second_derivatives_of_distillation():
    t = matrix(3, 4, seed=1)
    check_grads(lambda z: distillation_loss(z, t, np.array([0, 3, 1]), alpha=0.3), matrix(3, 4))


def test_limits_of_distillation():
    z, t = matrix(3, 5), matrix(3, 5, seed=1)
    assert abs(float(distillation_loss(Tensor(t), Tensor(t)).data)) < 1e-14
    targets = np.array([0, 4, 2])
    hard = distillation_loss(Tensor(z), Tensor(t), targets, alpha=0.0)
    assert float(hard.data) == pytest.approx(float(cross_entropy(Tensor(z), targets).data), rel=1e-12)
    soft = float(distillation_loss(Tensor(z), Tensor(t)).data)
    assert float(distillation_loss(Tensor(z), Tensor(t), targets, alpha=1.0).data) == pytest.approx(soft)
    mixed = float(distillation_loss(Tensor(z), Tensor(t), targets, alpha=0.25).data)
    assert mixed == pytest.approx(0.25 * soft + 0.75 * float(hard.data), rel=1e-12)
    # hot: the squared distance of centred logits over 2 V
    centred = (z - z.mean(1, keepdims=True)) - (t - t.mean(1, keepdims=True))
    hot = float(distillation_loss(Tensor(z), Tensor(t), temperature=1e4).data)
    assert hot == pytest.approx((centred**2).sum(1).mean() / (2 * 5), rel=1e-3)
    # cold, with a sure teacher: cross-entropy of its choice
    sure = 60 * np.eye(5)[targets]
    assert float(distillation_loss(Tensor(z), Tensor(sure), temperature=1.0).data) == pytest.approx(
        float(hard.data), rel=1e-9)


def test_bad_input():
    for bad in (np.ones(3), np.ones((2, 3), int), np.full((1, 2), np.nan), np.full((1, 2), np.inf),
                np.ones((2, 0))):
        with pytest.raises(ValueError, match=r"^weight: expected a matrix of finite floating numbers, got "):
            quantize_weights_int8(bad)
        with pytest.raises(ValueError, match=r"^weight: "):
            magnitude_prune(bad, 0.5)
    w = matrix(2, 3)
    for sparsity in (-0.1, 1.1, np.nan):
        for prune in (lambda s: magnitude_prune(w, s), lambda s: wanda_prune(w, np.ones(3), s)):
            with pytest.raises(ValueError, match=r"^sparsity: expected a number in \[0, 1\], got"):
                prune(sparsity)
    for norms in (np.ones(2), -np.ones(3), np.array([1, np.nan, 1])):
        with pytest.raises(ValueError, match=r"^norms: expected 3 finite numbers ≥ 0"):
            wanda_prune(w, norms, 0.5)
    with pytest.raises(ValueError, match=r"^largest: expected shape \(3,\)"):
        smoothquant_scales(np.ones(2), w)
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"^alpha: expected a number in \[0, 1\]"):
            smoothquant_scales(np.ones(3), w, alpha)
        with pytest.raises(ValueError, match=r"^temperature, alpha: "):
            distillation_loss(w, w, alpha=alpha)
    with pytest.raises(ValueError, match=r"^temperature, alpha: .* got 0, 0.5$"):
        distillation_loss(w, w, temperature=0)
    with pytest.raises(ValueError, match=r"^teacher: expected the shape of student"):
        distillation_loss(w, w[:1])
    assert isinstance(quantize_weights_int8(w), Int8Weight)


def test_edges():
    """Rows of zeros, features that never occur, defaults, tensors, and names in messages."""
    with np.errstate(all="raise"):
        zeros = quantize_weights_int8(np.array([[0.0, 0.0], [1.0, -2.0]]))
        assert zeros.values.tolist() == [[0, 0], [64, -127]] and zeros.dense()[0].tolist() == [0, 0]
        assert naive_quantize_int8(np.array([[0.0, 0.0]])) == ([[0, 0]], [0.0])
    assert wanda_prune(np.array([[5.0, 1.0]]), np.array([0.0, 1.0]), 0.5).tolist() == [[0, 1]]
    z, t = matrix(2, 5), matrix(2, 5, seed=1)
    assert distillation_loss(z, t) == pytest.approx(naive_distillation_loss(z, t, 2.0)[0], rel=1e-12)
    with pytest.raises(ValueError, match=r"^temperature, alpha: "):
        distillation_loss(z, t, temperature=np.inf)
    layer = Int8Linear(quantize_weights_int8(matrix(3, 7)), round_inputs=True)
    x = matrix(2, 7, seed=2)
    assert isinstance(layer(Tensor(x)), Tensor) and isinstance(layer(x), np.ndarray)
    np.testing.assert_array_equal(layer(x.reshape(1, 2, 7))[0], layer(x))
    for call in (lambda w: wanda_prune(w, np.ones(3), 0.5), lambda w: smoothquant_scales(np.ones(3), w)):
        with pytest.raises(ValueError, match=r"^weight: expected a matrix of finite floating numbers"):
            call(np.full((2, 3), np.nan))
    deep = matrix(6, 4, seed=3).reshape(2, 3, 4)
    np.testing.assert_array_equal(smooth(deep, z[:, :4])[1], smooth(deep.reshape(6, 4), z[:, :4])[1])
