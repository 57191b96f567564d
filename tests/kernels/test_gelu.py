"""`minattn.kernels.gelu` against PyTorch and finite differences."""

import importlib
import math

import numpy as np
import pytest

from minattn import kernels
from minattn.autograd import Tensor, grad, no_grad
from minattn.kernels import dispatch
from tests.autograd import case as checks
from tests.kernels.cases import GELU


@checks.each(GELU)
def test_samples(case):
    checks.check_samples(case)


@checks.each(GELU)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each(GELU)
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(GELU)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(GELU)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(GELU)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setattr(dispatch, "have_numba", lambda: False)


@checks.each(GELU)
def test_reference_equals_torch(case, without_numba):
    checks.check_against_torch(case)


def exact(x):
    return np.array([0.5 * t * (1 + math.erf(t / math.sqrt(2))) for t in x.ravel()]).reshape(x.shape)


def test_single_precision_of_the_compiled_form():
    x = np.linspace(-6, 6, 100_001, dtype=np.float32)
    assert np.abs(kernels.gelu(x) - exact(x.astype(float))).max() < 1.2e-6
    t = Tensor(x, requires_grad=True)
    slope = grad(kernels.gelu(t), t, np.ones(len(x)))[0].data
    wide = x.astype(float)
    want = exact(wide) / np.where(wide == 0, 1, wide) + wide * np.exp(-wide * wide / 2) / math.sqrt(
        2 * math.pi
    )
    assert np.abs(slope - np.where(wide == 0, 0.5, want)).max() < 1e-6


def test_far_from_zero():
    x = np.array([-1e4, -50, 50, 1e4])
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(kernels.gelu(x.astype(dtype)), [0, 0, 50, 1e4])


def test_the_compiled_form_runs_where_it_can(monkeypatch):
    launched = []
    module = importlib.import_module("minattn.kernels.gelu")
    monkeypatch.setattr(
        module,
        "launch",
        lambda kernel, x, out, slope: launched.append(kernel.__name__) or out.fill(7) or slope.fill(9),
    )
    assert kernels.gelu(np.ones(2)).tolist() == [7, 7]
    assert kernels.gelu(np.ones(2, np.float32)).tolist() == [7, 7]
    assert launched == ["gelu64", "gelu32"]
    x = Tensor(np.ones(2), requires_grad=True)
    assert grad(kernels.gelu(x), x, np.array([1.0, 2]))[0].data.tolist() == [
        9,
        18,
    ]  # the slope that was saved
    assert kernels.gelu(np.ones(2, np.float16)).dtype == np.float16 and len(launched) == 3


def test_bad_input():
    with pytest.raises(ValueError, match='approximate: expected "none" or "tanh", got \'fast\''):
        kernels.gelu(np.ones(2), "fast")


def test_the_slope_is_computed_only_where_it_may_be_asked_for():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        x = (4 * rng.standard_normal((3, 7))).astype(dtype).T
        with no_grad():
            out, saved = importlib.import_module("minattn.kernels.gelu")._fused_gelu(x)
        assert saved is None and out.dtype == dtype
        np.testing.assert_array_equal(out, kernels.gelu(x))
