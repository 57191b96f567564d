"""`minattn.kernels.silu` against PyTorch and finite differences."""

import importlib

import numpy as np
import pytest

from minattn import kernels
from minattn.autograd import Tensor, grad, no_grad
from minattn.kernels import dispatch
from tests.autograd import case as checks
from tests.kernels.cases import SILU


@checks.each(SILU)
def test_samples(case):
    checks.check_samples(case)


@checks.each(SILU)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each(SILU)
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(SILU)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(SILU)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(SILU)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


@checks.each(SILU)
def test_reference_equals_torch(case, monkeypatch):
    monkeypatch.setattr(dispatch, "have_numba", lambda: False)
    checks.check_against_torch(case)


def test_single_precision_of_the_compiled_form():
    x = np.linspace(-30, 30, 60_001, dtype=np.float32)
    wide = x.astype(float)
    s = 1 / (1 + np.exp(-wide))
    np.testing.assert_allclose(kernels.silu(x), wide * s, rtol=5e-7, atol=1e-12)
    t = Tensor(x, requires_grad=True)
    slope = grad(kernels.silu(t), t, np.ones(len(x), np.float32))[0].data
    np.testing.assert_allclose(slope, s * (1 + wide * (1 - s)), rtol=0, atol=1.2e-6)
    with no_grad():
        np.testing.assert_allclose(kernels.silu(t).data, wide * s, rtol=5e-7, atol=1e-12)


def test_far_from_zero():
    x = np.array([-1e4, -200, 200, 1e4])
    for dtype in (np.float32, np.float64):
        np.testing.assert_allclose(kernels.silu(x.astype(dtype)), [0, 0, 200, 1e4], rtol=0, atol=1e-30)


def test_the_slope_is_computed_only_where_it_may_be_asked_for(monkeypatch):
    pytest.importorskip("numba")
    launched = []
    module = importlib.import_module("minattn.kernels.silu")

    def launch(kernel, x, *outs):
        launched.append(kernel.__name__)
        for value, out in zip((7, 9), outs, strict=False):
            out.fill(value)

    monkeypatch.setattr(module, "launch", launch)
    x = Tensor(np.ones((2, 1)), requires_grad=True)
    y = kernels.silu(x)
    assert y.data.tolist() == [[7], [7]] and launched == ["value_and_slope"]
    assert grad(y, x, np.array([[1.0], [2]]))[0].data.tolist() == [[9], [18]]
    with no_grad():
        assert kernels.silu(x).data.tolist() == [[7], [7]]
    assert launched[1:] == ["value"]
    assert kernels.silu(np.ones(2, np.float16)).dtype == np.float16 and len(launched) == 2
