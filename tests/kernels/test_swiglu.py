"""`minattn.kernels.swiglu` against PyTorch, finite differences, and the product of two functions."""

import importlib

import numpy as np
import pytest

from minattn import kernels, nn
from minattn.autograd import Tensor, grad
from minattn.kernels import dispatch
from tests.autograd import case as checks
from tests.kernels.cases import SWIGLU


@checks.each(SWIGLU)
def test_samples(case):
    checks.check_samples(case)


@pytest.fixture(params=["compiled", "numpy"])
def form(request, monkeypatch):
    """Both forms."""
    if request.param == "numpy":
        monkeypatch.setattr(dispatch, "have_numba", lambda: False)
        monkeypatch.setattr(importlib.import_module("minattn.kernels.swiglu"), "launch", None)
    else:
        pytest.importorskip("numba")
    return request.param


@checks.each(SWIGLU)
def test_equals_torch(case, form):
    checks.check_against_torch(case)


@checks.each(SWIGLU)
def test_derivatives(case, form):
    checks.check_derivatives(case)


@checks.each(SWIGLU)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(SWIGLU)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(SWIGLU)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def test_single_precision_of_both_passes(form):
    x = np.linspace(-30, 30, 6_001, dtype=np.float32)
    up, g = np.random.default_rng(0).standard_normal((2, len(x))).astype(np.float32)
    wide, s = x.astype(float), 1 / (1 + np.exp(-x.astype(float)))
    gate, value = Tensor(x, requires_grad=True), Tensor(up, requires_grad=True)
    out = kernels.swiglu(gate, value)
    dgate, dup = (d.data for d in grad(out, (gate, value), g))
    assert out.dtype == dgate.dtype == dup.dtype == np.float32
    np.testing.assert_allclose(out.data, wide * s * up, rtol=6e-7, atol=1e-11)
    np.testing.assert_allclose(dup, g * wide * s, rtol=6e-7, atol=1e-11)
    np.testing.assert_allclose(dgate, g * up * s * (1 + wide * (1 - s)), rtol=0, atol=8e-6)


def test_far_from_zero(form):
    gate, up = np.array([-1e4, -200, 0, 200, 1e4]), np.array([3.0, 3, 3, -3, 1])
    for dtype in (np.float32, np.float64):
        a, b = Tensor(gate.astype(dtype), requires_grad=True), Tensor(up.astype(dtype), requires_grad=True)
        out = kernels.swiglu(a, b)
        np.testing.assert_allclose(out.data, [0, 0, 0, -600, 1e4], atol=1e-30)
        da, db = grad(out, (a, b), np.ones(5, dtype))
        np.testing.assert_allclose(da.data, [0, 0, 1.5, -3, 1], atol=1e-30)
        np.testing.assert_allclose(db.data, [0, 0, 0, 200, 1e4], atol=1e-30)


def test_one_tensor_in_both_places(form):
    x = Tensor(np.array([0.5, -1.0]), requires_grad=True)
    s = 1 / (1 + np.exp(-x.data))
    np.testing.assert_allclose(grad(kernels.swiglu(x, x), x, np.ones(2))[0].data,
                               s * (1 + x.data * (1 - s)) * x.data + x.data * s)


def test_the_compiled_form_runs_where_it_can(monkeypatch):
    pytest.importorskip("numba")
    module, launched = importlib.import_module("minattn.kernels.swiglu"), []
    monkeypatch.setattr(module, "launch", lambda kernel, *a: (launched.append(kernel.__name__), kernel(*a)))
    x = Tensor(np.ones((2, 3)).T, requires_grad=True)
    out = kernels.swiglu(x, np.ones((3, 2)))
    assert launched == ["forward"] and grad(out, x, np.ones((3, 2)))[0].shape == (3, 2)
    assert launched == ["forward", "backward"]
    grad(kernels.swiglu(x, x), x, np.ones((3, 2)), create_graph=True)
    assert launched[2:] == ["forward"]
    assert kernels.swiglu(np.ones(2, np.float16), np.ones(2, np.float16)).dtype == np.float16
    assert launched[3:] == []


def test_bad_input():
    with pytest.raises(ValueError, match=r"^up: expected shape \(2, 3\), as gate, got \(3,\)$"):
        kernels.swiglu(np.ones((2, 3)), np.ones(3))
    with pytest.raises(TypeError, match="swiglu: operands must share one floating dtype"):
        kernels.swiglu(np.ones(3), np.ones(3, np.float32))
    with pytest.raises(TypeError, match="swiglu: expected real numbers"):
        kernels.swiglu(np.ones(3, complex), np.ones(3, complex))


def test_the_layer_computes_the_same_with_a_hook_on_its_gate():
    layer = nn.SwiGLU(5, 7, rng=np.random.default_rng(0))
    x, seen = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32), []
    plain = layer(x).data
    handle = layer.hook_gate.register_forward_hook(lambda module, args, out: seen.append(out))
    np.testing.assert_allclose(layer(x).data, plain, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(seen[0].data, kernels.silu(layer.gate(x)).data)
    handle.remove()
    np.testing.assert_array_equal(layer(x).data, plain)
    assert len(seen) == 1
