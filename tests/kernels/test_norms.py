"""`minattn.kernels.norms` against PyTorch and finite differences."""

import numpy as np
import pytest

from minattn import kernels
from minattn.autograd import Tensor, grad
from minattn.kernels import dispatch, norms
from tests.autograd import case as checks
from tests.kernels.cases import NORMS


@checks.each(NORMS)
def test_samples(case):
    checks.check_samples(case)


@checks.each(NORMS)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each(NORMS)
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(NORMS)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(NORMS)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(NORMS)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


@checks.each(NORMS)
def test_reference_equals_torch(case, monkeypatch):
    monkeypatch.setattr(dispatch, "have_numba", lambda: False)
    checks.check_against_torch(case)
    checks.check_single_precision(case, monkeypatch)


def rows_of(rng, N, D, dtype):
    return rng.standard_normal((N, D)).astype(dtype) * 3 + 1


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 3e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("N, D", [(1, 1), (1, 7), (65, 3), (130, 64)])
def test_compiled_equals_reference(dtype, tolerance, N, D, monkeypatch):
    """More rows than stripes, fewer, and neither a multiple of the other."""
    rng = np.random.default_rng(N)
    x, w, b, g = (
        rows_of(rng, N, D, dtype),
        rows_of(rng, 1, D, dtype)[0],
        rows_of(rng, 1, D, dtype)[0],
        rows_of(rng, N, D, dtype),
    )
    for f, args in ((kernels.layer_norm, (x, w, b)), (kernels.rms_norm, (x, w))):
        found = []
        for numba in (True, False):
            monkeypatch.setattr(dispatch, "have_numba", lambda numba=numba: numba)
            ts = [Tensor(a, requires_grad=True) for a in args]
            out = f(*ts, eps=1e-3)
            found.append([out, *grad(out, ts, g)])
        for compiled, reference in zip(*found, strict=True):
            assert compiled.dtype == reference.dtype == dtype
            scale = 1 + np.abs(reference.data).max()
            np.testing.assert_allclose(compiled.data / scale, reference.data / scale, atol=tolerance)


def test_rows_have_mean_zero_and_variance_one():
    x = rows_of(np.random.default_rng(0), 5, 40, np.float64)
    out = kernels.layer_norm(x, eps=0.0)
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(out.var(-1), 1)
    np.testing.assert_allclose((kernels.rms_norm(x, eps=0.0) ** 2).mean(-1), 1)


def test_default_eps():
    x = np.array([[1e-3, -1e-3]])
    np.testing.assert_allclose(kernels.layer_norm(x)[0, 0], 1e-3 / np.sqrt(1e-6 + 1e-5))
    np.testing.assert_allclose(kernels.rms_norm(x)[0, 0], 1e-3 / np.sqrt(1e-6 + 1e-6))


@pytest.mark.parametrize("f", [kernels.layer_norm, kernels.rms_norm])
def test_a_row_of_zeros_gives_no_nan(f):
    x = Tensor(np.zeros((2, 3)), requires_grad=True)
    out = f(x)
    assert not out.data.any()
    assert np.isfinite(grad(out, x, np.ones((2, 3)))[0].data).all()


def test_the_compiled_form_runs_where_it_can(monkeypatch):
    launched = []
    monkeypatch.setattr(norms, "launch", lambda kernel, *args: launched.append(kernel.__name__))
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    grad(kernels.layer_norm(x), x, np.ones((2, 3)))
    grad(kernels.rms_norm(x), x, np.ones((2, 3)))
    assert launched == ["layer_norm", "layer_norm_backward", "rms_norm", "rms_norm_backward"]
    kernels.layer_norm(np.ones((2, 3), np.float16))
    kernels.rms_norm(np.ones((2, 3), np.float16))
    kernels.layer_norm(np.ones((0, 3)))
    kernels.rms_norm(np.ones((0, 3)))
    assert len(launched) == 4


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: kernels.layer_norm(x, np.ones(2)),
            r"weight: expected shape \(3,\), the last axis of x, got \(2,\)",
        ),
        (
            lambda x: kernels.layer_norm(x, np.ones(3), np.ones((1, 3))),
            r"bias: expected shape \(3,\), the last axis of x, got \(1, 3\)",
        ),
        (
            lambda x: kernels.rms_norm(x, np.ones(4)),
            r"weight: expected shape \(3,\), the last axis of x, got \(4,\)",
        ),
        (lambda x: kernels.layer_norm(x[:, :0]), "mean: nothing to average"),
        (lambda x: kernels.rms_norm(x[:, :0]), "mean: nothing to average"),
        (lambda x: kernels.layer_norm(x[0, 0]), r"^x: expected at least one axis, got shape \(\)"),
        (lambda x: kernels.rms_norm(x[0, 0]), r"x: expected at least one axis, got shape \(\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((2, 3)))
