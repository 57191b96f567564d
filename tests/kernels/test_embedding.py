"""`minattn.kernels.embedding` against loops, np.add.at, PyTorch and finite differences."""

import importlib

import numpy as np
import pytest

from minattn import autograd, nn
from minattn.autograd import Tensor, grad
from minattn.kernels import dispatch, embedding
from minattn.testing import check_grads

module = importlib.import_module("minattn.kernels.embedding")
SHAPES = [((1,), (1, 1)), ((5,), (3, 4)), ((2, 3), (7, 5)), ((4, 1, 2), (2, 1)), ((), (3, 2)), ((6,), (4,)),
          ((3,), (5, 2, 3))]


@pytest.fixture(params=["compiled", "numpy"])
def form(request, monkeypatch):
    """Both forms, whatever the size."""
    monkeypatch.setattr(module, "SMALL", 0)
    if request.param == "numpy":
        monkeypatch.setattr(dispatch, "have_numba", lambda: False)
        monkeypatch.setattr(module, "launch", None)
    else:
        pytest.importorskip("numba")
    return request.param


def inputs(ids_shape, weight_shape, dtype=np.float64):
    rng = np.random.default_rng(len(ids_shape) + weight_shape[0])
    ids = rng.integers(0, weight_shape[0], ids_shape)
    weight = rng.standard_normal(weight_shape).astype(dtype)
    g = rng.standard_normal((*ids_shape, *weight_shape[1:])).astype(dtype)
    return weight, ids, g


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_and_gradient_equal_loops(form, shapes, dtype):
    weight, ids, g = inputs(*shapes, dtype)
    w = Tensor(weight, requires_grad=True)
    out = embedding(w, ids)
    got = grad(out, w, g)[0].data
    want = np.zeros(weight.shape)
    for place in np.ndindex(ids.shape):
        np.testing.assert_array_equal(out.data[place], weight[ids[place]])
        want[ids[place]] += g[place]
    assert out.dtype == got.dtype == dtype and out.shape == (*ids.shape, *weight.shape[1:])
    np.testing.assert_allclose(got, want, rtol=1e-6 if dtype == np.float32 else 1e-14, atol=1e-6)


@pytest.mark.parametrize("V", [1, 3, 400])
def test_the_gradient_is_that_of_add_at_and_of_torch(form, V):
    torch = pytest.importorskip("torch")
    weight, ids, g = inputs((4, 300), (V, 7), np.float32)
    at = np.zeros(weight.shape, np.float32)
    np.add.at(at, ids, g)
    w = Tensor(weight, requires_grad=True)
    got = grad(embedding(w, ids), w, g)[0].data
    if form == "compiled":
        np.testing.assert_array_equal(got, at)  # the same sums in the same order
    np.testing.assert_allclose(got, at, rtol=1e-4, atol=1e-4)
    t = torch.tensor(weight, requires_grad=True)
    out = torch.nn.functional.embedding(torch.tensor(ids), t)
    np.testing.assert_allclose(got, torch.autograd.grad(out, t, torch.tensor(g))[0], rtol=1e-4, atol=1e-4)


def test_derivatives_to_second_order(form):
    weight, ids, g = inputs((4, 3), (5, 2))
    check_grads(lambda w: embedding(w, ids) ** 3, weight)
    twice = Tensor(g, requires_grad=True)
    w = Tensor(weight, requires_grad=True)
    first = grad(embedding(w, ids), w, twice, create_graph=True)[0]
    u = np.random.default_rng(0).standard_normal(weight.shape)
    np.testing.assert_allclose(grad(first, twice, u)[0].data, u[ids])


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_any_number_of_threads(parts):
    pytest.importorskip("numba")
    from minattn.kernels.cpu.embedding import add_rows

    _, ids, g = inputs((50,), (6, 5))
    table = np.ones((6, 5))
    add_rows(g, ids, table, parts)
    want = np.ones((6, 5))
    np.add.at(want, ids, g)
    np.testing.assert_array_equal(table, want)


def test_layouts_and_kinds_of_integers(form):
    weight, ids, g = inputs((4, 6), (9, 4))
    turned = np.asfortranarray(g)
    for kind in (np.int32, np.uint8, np.int64):
        w = Tensor(np.asfortranarray(weight), requires_grad=True)
        out = embedding(w, np.asfortranarray(ids.astype(kind)))
        np.testing.assert_array_equal(out.data, weight[ids])
        want = np.zeros((9, 4))
        np.add.at(want, ids, g)
        np.testing.assert_allclose(grad(out, w, turned)[0].data, want, atol=1e-14)
    assert embedding(weight, Tensor(ids)).shape == (4, 6, 4)
    assert type(embedding(weight, ids.tolist())) is np.ndarray


@pytest.mark.parametrize("ids_shape, weight_shape", [((0,), (3, 2)), ((2, 0), (3, 2)), ((2,), (3, 0))])
def test_nothing(form, ids_shape, weight_shape):
    w = Tensor(np.ones(weight_shape), requires_grad=True)
    out = embedding(w, np.zeros(ids_shape, int))
    assert out.shape == (*ids_shape, *weight_shape[1:])
    np.testing.assert_array_equal(grad(out, w, np.ones(out.shape))[0].data, np.zeros(weight_shape))


def test_the_compiled_form_runs_where_it_pays(monkeypatch):
    pytest.importorskip("numba")
    launched = []
    monkeypatch.setattr(module, "launch", lambda kernel, *a: (launched.append(a[-1]), kernel(*a)))
    monkeypatch.setattr(module, "SMALL", 11)
    for n, expected in ((5, 0), (6, 1)):
        w = Tensor(np.ones((3, 2)), requires_grad=True)
        grad(embedding(w, np.zeros(n, int)), w, np.ones((n, 2)))
        assert len(launched) == expected
    half = Tensor(np.ones((3, 2), np.float16), requires_grad=True)
    assert grad(embedding(half, np.zeros(9, int)), half, np.ones((9, 2)))[0].dtype == np.float16
    assert len(launched) == 1 and module.SMALL == 11


def test_other_library(other_library):
    weight, ids, _ = inputs((4, 3), (5, 2))
    there = embedding(other_library(weight), other_library(ids))
    np.testing.assert_array_equal(there.get(), weight[ids])


def test_the_layer_uses_it():
    layer = nn.Embedding(5, 3, rng=np.random.default_rng(0))
    ids = np.array([[1, 4], [1, 1]])
    layer(ids).backward(np.ones((2, 2, 3), np.float32))
    np.testing.assert_array_equal(layer.weight.grad[:, 0], [0, 3, 0, 0, 1])
    np.testing.assert_array_equal(layer(ids).data, autograd.embedding(layer.weight, ids).data)


@pytest.mark.parametrize("ids, found", [([3], r"\[3, 3\]"), ([0, -1], r"\[-1, 0\]")])
def test_ids_outside(ids, found):
    with pytest.raises(ValueError, match=rf"^ids: expected values in \[0, 3\), got {found}$"):
        embedding(np.ones((3, 2)), np.array(ids))


def test_bad_input():
    assert embedding(np.ones((3, 2)), np.array([0, 2])).shape == (2, 2)
    with pytest.raises(TypeError, match=r"^ids: expected integers, got dtype float64$"):
        embedding(np.ones((3, 2)), np.array([1.0]))
    with pytest.raises(ValueError, match=r"^weight: expected a table of at least one axis, got shape \(\)$"):
        embedding(np.ones(()), np.array([0]))
