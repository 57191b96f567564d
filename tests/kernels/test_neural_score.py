"""Neural scores in tiles: loops, derivatives, edges of tiles, masks, and what is refused."""

import numpy as np
import pytest

from minattn.autograd import Tensor, grad
from minattn.kernels import neural_score as kernel
from minattn.kernels.dispatch import have_blas
from minattn.kernels.neural_score import (
    dense_neural_attention,
    dense_neural_scores,
    naive_neural_attention,
    neural_attention,
)
from minattn.testing import check_causal, check_grads

# B, H, N, M, F, Dv
SMALL = [(1, 1, 1, 1, 1, 1), (2, 2, 5, 5, 6, 3), (1, 2, 3, 7, 5, 2), (2, 1, 7, 3, 4, 5), (1, 3, 1, 6, 3, 1)]
LARGE = [(1, 2, 33, 257, 9, 8), (2, 1, 70, 70, 4, 3), (1, 1, 300, 40, 7, 2)]


def inputs(B=2, H=2, N=5, M=5, F=6, Dv=3, seed=0, dtype=np.float64):
    rng = np.random.default_rng([seed, B, H, N, M, F])
    shapes = ((B, H, N, F), (B, H, M, F), (H, F), (B, H, M, Dv))
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", [neural_attention, dense_neural_attention])
@pytest.mark.parametrize("shape", SMALL)
def test_values_and_gradients_equal_the_loops(shape, form, causal):
    arrays = inputs(*shape)
    g = np.random.default_rng(1).standard_normal((*shape[:3], shape[5]))
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    out = form(*leaves, causal=causal)
    want = naive_neural_attention(*arrays, causal)
    np.testing.assert_allclose(out.data, want, rtol=1e-10, atol=1e-12)
    for n, got in enumerate(grad(out, leaves, g)):
        slope = np.zeros(arrays[n].shape)
        for at in np.ndindex(slope.shape):
            moved = [x.astype(complex) if m == n else x for m, x in enumerate(arrays)]
            moved[n][at] += 1e-30j
            slope[at] = (g * naive_neural_attention(*moved, causal).imag).sum() / 1e-30
        np.testing.assert_allclose(got.data, slope, rtol=1e-9, atol=1e-11)
    if shape == SMALL[1]:
        assert np.ptp(want, axis=2).min() > 1e-3
        assert np.abs(want - naive_neural_attention(*arrays, not causal)).max() > 0.1


def test_by_hand():
    """Hidden units 1 + 0 and 1 − 2, of which one is cut off: scores 2 ln 3 · ½ and 0, weights 3/4 and 1/4."""
    a, c = np.array([[[[1.0]]]]), np.array([[[[0.0], [-2.0]]]])
    w, v = np.array([[np.log(3)]]), np.array([[[[4.0], [8.0]]]])
    for form in (neural_attention, naive_neural_attention):
        assert form(a, c, w, v).item() == pytest.approx(3 + 2, abs=1e-14)
    assert dense_neural_scores(a, c, w).ravel().tolist() == [np.log(3), 0]


@pytest.mark.skipif(not have_blas(), reason="the compiled loops multiply with SciPy's BLAS")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", LARGE)
def test_tiles_equal_all_pairs_at_once(shape, causal, monkeypatch):
    arrays = inputs(*shape)
    g = np.random.default_rng(2).standard_normal((*shape[:3], shape[5]))
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    want = dense_neural_attention(*leaves, causal)
    slopes = grad(want, leaves, g)
    monkeypatch.setattr(kernel, "dense_neural_attention", None)  # nobody else computes it
    for rows, columns in ((32, 256), (5, 16), (64, 3)):
        monkeypatch.setattr(kernel, "ROWS", rows)
        monkeypatch.setattr(kernel, "COLUMNS", columns)
        out = neural_attention(*leaves, causal=causal)
        np.testing.assert_allclose(out.data, want.data, rtol=1e-10, atol=1e-11)
        for got, slope in zip(grad(out, leaves, g), slopes, strict=True):
            np.testing.assert_allclose(got.data, slope.data, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_single_precision(causal):
    """At most twice the error of all pairs at once in the same precision, and the rounding of the result."""
    exact = inputs(1, 2, 70, 70, 16, 8)
    single = [x.astype(np.float32) for x in exact]
    want = naive_neural_attention(*(x[..., :] for x in (x.astype(np.float64) for x in single)), causal)
    got, dense = neural_attention(*single, causal=causal), dense_neural_attention(*single, causal)
    assert got.dtype == dense.dtype == np.float32
    assert np.abs(got - want).max() <= 2 * np.abs(dense - want).max() + 2e-7 * np.abs(want).max()


def test_second_derivatives():
    """Away from the kinks of the relu, which the differences must not cross."""
    arrays = inputs(1, 2, 3, 4, 3, 2, seed=5)
    hidden = arrays[0][:, :, :, None] + arrays[1][:, :, None]
    assert np.abs(hidden).min() > 1e-4
    for causal in (False, True):
        check_grads(lambda *x, c=causal: neural_attention(*x, causal=c), *arrays)


def test_causal():
    a, c, w, v = inputs(1, 2, 6, 6, 3, 2)
    check_causal(lambda x: neural_attention(a, x, w, v, causal=True), c, dim=2, change=lambda t: t - 1.5)
    check_causal(lambda x: neural_attention(a, c, w, x, causal=True), v, dim=2)
    whole = neural_attention(a, c, w, v, causal=True)
    for n in (1, 4):  # the queries are the last of the positions
        np.testing.assert_allclose(neural_attention(a[:, :, n:], c, w, v, causal=True), whole[:, :, n:],
                                   atol=1e-13)


def test_queries_that_see_nothing():
    a, c, w, v = inputs(1, 2, 5, 2)  # more queries than keys: the first three see none
    leaves = [Tensor(x, requires_grad=True) for x in (a, c, w, v)]
    out = neural_attention(*leaves, causal=True)
    np.testing.assert_array_equal(out.data[:, :, :3], 0)
    assert np.abs(out.data[:, :, 3:]).min() > 0
    slopes = grad(out, leaves, np.ones(out.shape))
    np.testing.assert_array_equal(slopes[0].data[:, :, :3], 0)
    assert all(np.isfinite(s.data).all() for s in slopes)
    none = neural_attention(a, c[:, :, :0], w, v[:, :, :0])
    np.testing.assert_array_equal(none, np.zeros((1, 2, 5, 3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores(dtype):
    a, c, w, v = inputs(1, 2, 9, 9, 4, 3, dtype=dtype)
    for size in (50, -50):
        out = neural_attention(a, c, size * w, v)
        assert np.isfinite(out).all() and out.min() >= v.min() - 1e-5 and out.max() <= v.max() + 1e-5
        np.testing.assert_allclose(out, naive_neural_attention(a, c, size * w, v), atol=1e-4)


def test_views_and_arrays_that_may_not_be_written():
    arrays = inputs()
    turned = [np.ascontiguousarray(np.swapaxes(x, -1, -2)).swapaxes(-1, -2) for x in arrays]
    for x in turned:
        x.flags.writeable = False
    np.testing.assert_allclose(neural_attention(*turned), neural_attention(*arrays), atol=1e-14)


def test_without_hidden_units_or_features():
    a, c, w, v = inputs()
    want = np.broadcast_to(v.mean(2, keepdims=True), v.shape)
    np.testing.assert_allclose(neural_attention(a[..., :0], c[..., :0], w[:, :0], v), want, atol=1e-14)
    assert neural_attention(a, c, w, v[..., :0]).shape == (2, 2, 5, 0)


def test_without_a_compiler(monkeypatch):
    arrays = inputs()
    want = neural_attention(*arrays)
    monkeypatch.setattr(kernel, "compiled", lambda *x: False)
    monkeypatch.setattr(kernel, "tiled_neural_attention", None)
    np.testing.assert_allclose(neural_attention(*arrays), want, atol=1e-14)
    np.testing.assert_allclose(neural_attention(*(x.astype(np.float16) for x in arrays)), want, atol=3e-2)


def test_memory_does_not_grow_with_the_square():
    """Twice the positions, about twice the memory, forward and back; the scores alone would be four times."""
    import tracemalloc

    def peak(N):
        leaves = [Tensor(x, requires_grad=True) for x in inputs(1, 1, N, N, 8, 8, dtype=np.float32)]
        tracemalloc.start()
        neural_attention(*leaves).sum().backward()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(64)
    assert peak(2048) < 2.2 * peak(1024) and peak(2048) < 2048 * 2048


@pytest.mark.parametrize("change, error, message", [
    (dict(a=np.zeros((2, 5, 6))), ValueError, r"^a: expected floats with 4 axes, got float64 of shape \(2"),
    (dict(w=np.zeros((2, 6), int)), ValueError, r"^w: expected floats with 2 axes, got int64"),
    (dict(c=np.zeros((2, 2, 5, 5))), ValueError, r"^c: expected shape \(2, 2, 5, 6\), got \(2, 2, 5, 5\)$"),
    (dict(w=np.zeros((1, 6))), ValueError, r"^w: expected shape \(2, 6\), got \(1, 6\)$"),
    (dict(v=np.zeros((2, 2, 4, 3))), ValueError, r"^v: expected shape \(2, 2, 5, 3\), got \(2, 2, 4, 3\)$"),
    (dict(v=np.zeros((2, 2, 5, 3), np.float32)), TypeError, r"^v: expected the dtype of a, float64, got f"),
])
def test_mistakes(change, error, message):
    good = dict(zip("acwv", inputs(), strict=True))
    with pytest.raises(error, match=message):
        neural_attention(**{**good, **change})
