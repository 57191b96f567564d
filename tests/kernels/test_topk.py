"""`minattn.kernels.topk` against repeated search, a stable sort, PyTorch and finite differences."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn import autograd
from minattn.autograd import Tensor, grad
from minattn.kernels import dispatch, topk
from minattn.testing import check_grads

module = importlib.import_module("minattn.kernels.topk")


@pytest.fixture(params=["heap", "keys", "sorted"])
def form(request, monkeypatch):
    """The compiled heap for any size, NumPy's partition of keys, and the reference alone."""
    if request.param == "heap":
        pytest.importorskip("numba")
        monkeypatch.setattr(module, "SMALL", 0)
        monkeypatch.setattr(module, "FEW", 1)
    else:
        monkeypatch.setattr(dispatch, "have_numba", lambda: False)
        monkeypatch.setattr(module, "launch", None)
    if request.param == "sorted":
        monkeypatch.setattr(module, "_indices", lambda x, k, dim: autograd.topk(x, k, dim).indices)
    return request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n, k", [(1, 1), (5, 0), (5, 2), (33, 1), (70, 5), (64, 63), (64, 64), (200, 40)])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_repeated_search(form, n, k, dtype, ties):
    rng = np.random.default_rng(n + k)
    x = (rng.integers(-2, 3, (3, n)) if ties else rng.standard_normal((3, n))).astype(dtype)
    x[1, rng.random(n) < 0.3] = -np.inf
    x[2, rng.random(n) < 0.3] = -0.0
    x[2, ::4] = np.inf
    values, indices = topk(x, k)
    assert values.dtype == dtype and indices.dtype == np.int64 and values.shape == indices.shape == (3, k)
    for row, v, i in zip(x, values, indices, strict=True):
        want_values, want = module.naive_topk(row, k)
        np.testing.assert_array_equal(i, want)
        np.testing.assert_array_equal(v, want_values)


def test_nan_comes_first(form):
    x = np.array([[3, np.nan, np.inf, -np.inf, np.nan, 7, -np.nan]], np.float32)
    for dtype in (np.float32, np.float64):
        for k in range(8):
            assert topk(x.astype(dtype), k).indices[0].tolist() == [1, 4, 6, 2, 5, 0, 3][:k]
    assert np.isnan(topk(x, 2).values).all()


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 80), share=st.floats(0, 1), data=st.data(), single=st.booleans())
def test_any_row(n, share, data, single):
    """All forms agree, whatever is equal, infinite or NaN."""
    kinds = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38])
    x = np.array(data.draw(st.lists(kinds, min_size=n, max_size=n)), np.float32 if single else float)
    k = int(share * n)
    want = autograd.topk(x, k).indices
    np.testing.assert_array_equal(topk(x, k).indices, want)
    if k and dispatch.have_numba():
        from minattn.kernels.cpu.topk import topk as compiled

        found = np.empty((1, k), np.int64)
        compiled(x[None], found)
        np.testing.assert_array_equal(found[0], want)


@pytest.mark.parametrize("shape, dim", [((4, 3, 5), 0), ((4, 3, 5), 1), ((4, 3, 5), -1), ((4, 3, 5), 2),
                                        ((4, 3, 5), -3), ((6,), 0)])
def test_along_any_axis_like_torch(form, shape, dim):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        x = np.asfortranarray(rng.standard_normal(shape)).astype(dtype)
        k = shape[dim] - 1
        mine, theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        values, indices = topk(mine, k, dim)
        want = torch.topk(theirs, k, dim)
        np.testing.assert_array_equal(indices, want.indices.numpy())
        np.testing.assert_array_equal(values.data, want.values.detach().numpy())
        g = rng.standard_normal(values.shape).astype(dtype)
        got = grad(values, mine, g)[0].data
        np.testing.assert_array_equal(got, torch.autograd.grad(want.values, theirs, torch.tensor(g))[0])
        assert got.dtype == dtype


def test_derivatives_to_second_order(form):
    x = np.random.default_rng(0).permutation(24).reshape(2, 4, 3) / 5.0
    for dim in (0, 1, 2):
        check_grads(lambda x, dim=dim: topk(x, 2, dim).values ** 3, x)
    g = Tensor(np.ones((2, 2, 3)), requires_grad=True)
    leaf = Tensor(x, requires_grad=True)
    values, indices = topk(leaf, 2, 1)
    first = grad(values, leaf, g, create_graph=True)[0]
    u = np.random.default_rng(1).standard_normal(x.shape)
    np.testing.assert_array_equal(grad(first, g, u)[0].data, np.take_along_axis(u, indices, 1))


@pytest.mark.parametrize("shape, k", [((0, 5), 2), ((3, 0), 0), ((3, 4), 0), ((2, 0, 4), 3)])
def test_nothing(form, shape, k):
    x = Tensor(np.ones(shape, np.float32), requires_grad=True)
    values, indices = topk(x, k)
    assert values.shape == indices.shape == (*shape[:-1], k)
    np.testing.assert_array_equal(grad(values, x, np.ones(values.shape, np.float32))[0].data,
                                  np.zeros(shape) if k == 0 or 0 in shape else None)


def test_other_dtypes():
    for dtype in (np.int64, np.float16, np.uint8):
        values, indices = topk(np.array([3, 9, 9, 1], dtype), 3)
        assert values.tolist() == [9, 9, 3] and indices.tolist() == [1, 2, 0] and values.dtype == dtype


def test_each_form_runs_where_it_pays(monkeypatch):
    pytest.importorskip("numba")
    ran = []
    monkeypatch.setattr(module, "launch", lambda kernel, *a: (ran.append("heap"), kernel(*a)))
    real = module.ordered_keys
    monkeypatch.setattr(module, "ordered_keys", lambda x: (ran.append("keys"), real(x))[1])
    monkeypatch.setattr(module, "SMALL", 128)
    assert module.FEW == 64
    for shape, dtype, k, want in (((1, 128), "d", 2, ["heap"]), ((1, 127), "d", 1, []),
                                  ((1, 128), "d", 3, []), ((1, 127), "f", 1, ["keys"]),
                                  ((2, 64), "f", 1, ["heap"]), ((2, 64), "f", 2, ["keys"]),
                                  ((2, 64), "d", 0, [])):
        x = np.ones(shape, dtype)
        ran.clear()
        assert topk(x, k).indices[0].tolist() == list(range(k)) and ran == want


def test_other_library(other_library):
    x = np.array([[1.0, 5, 5, 2]])
    values, indices = topk(other_library(x), 2)
    assert values.get().tolist() == [[5, 5]] and indices.get().tolist() == [[1, 2]]


@pytest.mark.parametrize("k", [-1, 5, 1.0, True, "1", None])
def test_bad_k(k):
    told = rf"^k: expected an integer, 0 ≤ k ≤ 4, the size of axis 1, got {k!r}$"
    with pytest.raises(ValueError, match=told):
        topk(np.ones((3, 4)), k)


@pytest.mark.parametrize("dim", [2, -3])
def test_bad_axis(dim):
    assert topk(np.ones((3, 4)), np.int64(4)).values.shape == (3, 4)
    with pytest.raises(ValueError, match=rf"^dim: expected an axis of an array with 2, got {dim}$"):
        topk(np.ones((3, 4)), 1, dim)
    with pytest.raises(ValueError, match=r"^dim: expected an axis of an array with 0, got 0$"):
        topk(np.ones(()), 1, 0)
