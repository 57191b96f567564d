"""Paper 134: likeness times nearness in tiles, and pair by pair."""

import numpy as np
import pytest

from minattn.autograd import Tensor, grad
from minattn.kernels import dual_affinity as kernel
from minattn.kernels.dual_affinity import l1_distance, naive_quasi_attention, quasi_attention
from minattn.testing import check_grads

# B, H, N, M, D, Dv; tiles are of 64 keys and 32 queries
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 3, 5, 7, 3, 2), (1, 2, 33, 65, 9, 5), (2, 1, 6, 64, 4, 8),
          (1, 2, 3, 2, 5, 3)]


@pytest.fixture(params=["compiled", "reference"])
def form(request, monkeypatch):
    """Both forms."""
    if request.param == "reference":
        monkeypatch.setattr(kernel, "compiled", lambda *arrays, work=0: False)
    else:
        pytest.importorskip("numba")
    return request.param


def tensors(B, H, N, M, D, Dv, dtype=np.float64, seed=0):
    """Random, but feature 0 of key 0 is that of query 0, where |x| has no slope."""
    rng = np.random.default_rng([seed, B, H, N, M])
    q, k, v = (rng.standard_normal(s) for s in ((B, H, N, D), (B, H, M, D), (B, H, M, Dv)))
    k[:, :, 0, 0] = q[:, :, 0, 0]
    return [x.astype(dtype) for x in (q, k, v)]


def masks(B, H, N, M):
    rng = np.random.default_rng(5)
    full = rng.random((B, H, N, M)) > 0.3
    full[:, :, 0] = False
    return [None, full, rng.random((B, 1, 1, M)) > 0.4, np.tri(N, M, dtype=bool)[None, None],
            rng.random((1, H, N, 1)) > 0.4]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("which", range(5))
def test_values_and_gradients_equal_the_loops(form, shape, which):
    arrays, visible = tensors(*shape), masks(*shape[:4])[which]
    g = np.random.default_rng(1).standard_normal((*shape[:3], shape[5]))
    for how in ({}, {"alpha": 0.7, "beta": 1.6, "double": False, "scale": 0.9}):
        want = naive_quasi_attention(*arrays, g=g, visible=visible, **how)
        leaves = [Tensor(x, requires_grad=True) for x in arrays]
        out = quasi_attention(*leaves, visible=visible, **how)
        for got, exact in zip((out, *grad(out, leaves, g)), want, strict=True):
            np.testing.assert_allclose(got.data, exact, rtol=1e-11, atol=1e-11)
        assert shape != SHAPES[1] or which or np.ptp(want[0], axis=2).min() > 1e-2  # not degenerate


def test_a_query_that_sees_nothing(form):
    q, k, v = tensors(2, 3, 5, 7, 3, 2)
    full = masks(2, 3, 5, 7)[1]
    leaves = [Tensor(x, requires_grad=True) for x in (q, k, v)]
    out = quasi_attention(*leaves, visible=full)
    np.testing.assert_array_equal(out.data[:, :, 0], 0)
    np.testing.assert_array_equal(grad(out, leaves, np.ones(out.shape))[0].data[:, :, 0], 0)
    assert np.abs(out.data[:, :, 1:]).min() > 0


def test_second_derivatives(form):
    q, (_, k, v) = tensors(1, 2, 3, 4, 3, 2, seed=3)[0], tensors(1, 2, 3, 4, 3, 2, seed=4)
    check_grads(quasi_attention, q, k, v)
    rng = np.random.default_rng(8)
    check_grads(l1_distance, rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 4)))


def test_distance():
    q, k, _ = tensors(1, 1, 4, 6, 3, 1)
    want = [[sum(abs(a - b) for a, b in zip(x, y, strict=True)) for y in k[0, 0]] for x in q[0, 0]]
    np.testing.assert_allclose(l1_distance(q, k)[0, 0], want, rtol=1e-14)


@pytest.mark.parametrize("size", [1.0, 50.0])
def test_single_precision(form, size):
    arrays = tensors(1, 2, 40, 70, 8, 4, np.float32)
    arrays[:2] = (np.float32(size) * x for x in arrays[:2])
    g = np.random.default_rng(2).standard_normal((1, 2, 40, 4)).astype(np.float32)
    found, exact = [], []
    for dtype, into in ((np.float32, found), (np.float64, exact)):
        leaves = [Tensor(x.astype(dtype), requires_grad=True) for x in arrays]
        out = quasi_attention(*leaves)
        into += [out, *grad(out, leaves, g.astype(dtype))]
    for x, y in zip(found, exact, strict=True):
        assert x.dtype == np.float32
        assert np.isfinite(x.data).all()
        np.testing.assert_allclose(x.data, y.data, rtol=1e-4, atol=3e-5)


def test_tiles_do_not_matter_and_nothing_large_is_kept(form):
    """The first 64 keys and the rest, apart, add up to all of them."""
    q, k, v = tensors(1, 2, 5, 100, 4, 3)
    parts = quasi_attention(q, k[:, :, :64], v[:, :, :64]) + quasi_attention(q, k[:, :, 64:], v[:, :, 64:])
    np.testing.assert_allclose(quasi_attention(q, k, v), parts, atol=1e-12)


def test_empty(form):
    q, k, v = tensors(1, 2, 3, 4, 3, 2)
    np.testing.assert_array_equal(quasi_attention(q, k[:, :, :0], v[:, :, :0]), np.zeros((1, 2, 3, 2)))
    assert quasi_attention(q[:, :, :0], k, v).shape == (1, 2, 0, 2)


def test_mistakes():
    q, k, v = tensors(2, 3, 5, 7, 3, 2)
    with pytest.raises(ValueError, match=r"^q: expected 4 axes \(batch, heads, positions, features\), got"):
        quasi_attention(q[0], k, v)
    with pytest.raises(ValueError, match=r"^k: expected batch, heads and features \(2, 3, 3\) as in q, got"):
        quasi_attention(q, k[:, :1], v)
    with pytest.raises(ValueError, match=r"^v: expected shape \(2, 3, 7\) before the features, as in k"):
        quasi_attention(q, k, v[:, :, :6])
    with pytest.raises(TypeError, match=r"^visible: expected booleans, got int64"):
        quasi_attention(q, k, v, visible=np.ones((1, 1, 1, 7), int))
    with pytest.raises(ValueError, match=r"^visible: expected 4 axes that broadcast to \(2, 3, 5, 7\)"):
        quasi_attention(q, k, v, visible=np.ones((1, 1, 1, 6), bool))
