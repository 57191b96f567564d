"""`minattn.autograd.reduce` against PyTorch, finite differences and its own rules."""

import re
import warnings

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, grad
from minattn.autograd.reduce import axes, fitted, sum_to
from tests.autograd import case as checks
from tests.autograd.cases import REDUCE


@checks.each(REDUCE)
def test_samples(case):
    checks.check_samples(case)


@checks.each(REDUCE)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each([c for c in REDUCE if c.order and c.exact])
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(REDUCE)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(REDUCE)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(REDUCE)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def test_axes():
    assert (
        axes(None, 3) == (0, 1, 2)
        and axes(-1, 3) == (2,)
        and axes((0, -1), 3) == (0, 2)
        and axes((), 2) == ()
    )
    assert axes(np.int64(1), 2) == (1,) and axes([0, 1], 2) == (0, 1) and axes(-3, 3) == (0,)
    for dim in (3, -4, (0, 3)):
        with pytest.raises(ValueError, match=r"dim: expected an axis in \[-3, 2\], got (3|-4)"):
            axes(dim, 3)
    with pytest.raises(ValueError, match=r"dim: names an axis twice: \(0, -3\)"):
        axes((0, -3), 3)


def test_sum_to_undoes_broadcasting():
    g = np.arange(24.0).reshape(2, 3, 4)
    for shape in [(2, 3, 4), (3, 4), (1, 4), (2, 1, 1), (4,), (1,), (), (1, 1, 1)]:
        x = Tensor(np.zeros(shape), requires_grad=True)
        np.testing.assert_array_equal(sum_to(g, shape), grad(ag.expand(x, 2, 3, 4), x, g)[0].data)
        np.testing.assert_allclose(sum_to(g, shape).sum(), g.sum())
        assert sum_to(g, shape).shape == shape
    np.testing.assert_array_equal(sum_to(g, (3, 1)), g.sum((0, 2))[:, None])
    np.testing.assert_array_equal(sum_to(g, (2, 1, 4)), g.sum(1, keepdims=True))


@pytest.mark.parametrize("shape", [(2, 1), (4,), (3, 3), (2, 3, 4), (3, 2), (1, 2, 3, 1)])
def test_sum_to_refuses_what_is_no_broadcast(shape):
    message = rf"derivative: a gradient of shape \(2, 3\) does not fit an argument of {re.escape(str(shape))}"
    if shape == (2, 1):
        assert sum_to(np.ones((2, 3)), shape).tolist() == [[3], [3]]
        return
    with pytest.raises(ValueError, match=message):
        sum_to(np.ones((2, 3)), shape)


def test_fitted():
    g = np.ones((2, 3))
    assert fitted(g, g) is g
    assert fitted(g, np.zeros(3)).tolist() == [2, 2, 2]
    assert fitted(g, np.zeros((2, 3), np.float32)).dtype == np.float32
    assert fitted(g, np.zeros((2, 3), complex)).dtype == np.complex128
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        narrow = fitted(g * (2 + 1j), np.zeros(3, np.float32))
    assert narrow.dtype == np.float32 and narrow.tolist() == [4, 4, 4]
    assert fitted(g * 1j, np.zeros((2, 3), np.complex64)).dtype == np.complex64
    assert isinstance(fitted(Tensor(g), np.zeros(3, np.float32)), Tensor)


@pytest.mark.parametrize("f", [ag.softmax, ag.log_softmax, ag.logsumexp])
def test_rows_that_are_all_minus_infinity(f):
    """PyTorch answers NaN for the first two."""
    x = Tensor(np.array([[-np.inf, -np.inf], [0.0, -np.inf]]), requires_grad=True)
    with np.errstate(all="raise"):
        out = f(x, -1)
        (g,) = grad(out, x, np.ones(out.shape), create_graph=True)
    want = {
        ag.softmax: [[0, 0], [1, 0]],
        ag.log_softmax: [[-np.inf, -np.inf], [0, -np.inf]],
        ag.logsumexp: [-np.inf, 0],
    }[f]
    np.testing.assert_array_equal(out.data, want)
    assert np.isfinite(g.data).all()
    if f is not ag.log_softmax:
        assert not g.data[0].any()


@pytest.mark.parametrize("f", [ag.softmax, ag.log_softmax, ag.logsumexp])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_entries_do_not_overflow(f, dtype):
    x = Tensor(np.array([[1e30, 1e30], [-1e30, 1e30], [-1e30, -1e30]], dtype), requires_grad=True)
    with np.errstate(over="raise", invalid="raise"):
        out = f(x, -1)
        (g,) = grad(out, x, np.ones(out.shape))
    assert not np.isnan(out.data).any() and np.isfinite(g.data).all()
    assert out.dtype == dtype
    want = {
        ag.softmax: [[0.5, 0.5], [0, 1], [0.5, 0.5]],
        ag.logsumexp: [1e30, 1e30, -1e30],
        ag.log_softmax: [[0, 0], [-2e30, 0], [0, 0]],
    }
    np.testing.assert_allclose(out.data, np.array(want[f], dtype), atol=1)


def test_softmax_of_nothing():
    assert ag.softmax(np.ones((2, 0))).shape == (2, 0) and ag.log_softmax(np.ones((2, 0))).shape == (2, 0)
    np.testing.assert_array_equal(ag.logsumexp(np.ones((2, 0)), -1), [-np.inf, -np.inf])
    assert ag.logsumexp(np.ones((0, 2)), -1, keepdim=True).shape == (0, 1)
    np.testing.assert_array_equal(ag.logsumexp(np.zeros((3, 2)), (0, 1)), np.log(6))
    np.testing.assert_array_equal(ag.logsumexp(np.zeros((3, 2))), np.log(6))


def test_defaults():
    x = np.arange(6.0).reshape(2, 3)
    assert ag.sum(x) == 15 and ag.mean(x) == 2.5 and ag.amax(x) == 5 and ag.amin(x) == 0
    np.testing.assert_allclose([ag.var(x), ag.std(x)], [x.var(ddof=1), x.std(ddof=1)])
    np.testing.assert_allclose(ag.norm(x), np.linalg.norm(x))
    assert ag.norm(x, dim=1, keepdim=True).shape == (2, 1) and ag.norm(x, 1, 1).shape == (2,)
    np.testing.assert_allclose(ag.softmax(x).sum(-1), 1)
    np.testing.assert_allclose(np.exp(ag.log_softmax(x)).sum(-1), 1)
    assert ag.max(x) == 5 and ag.min(x) == 0 and ag.argmax(x) == 5 and ag.argmin(x) == 0
    assert (
        ag.sum(x, 0).shape == (3,)
        and ag.mean(x, 0, True).shape == (1, 3)
        and ag.var(x, 0, 0, True).shape == (1, 3)
    )
    assert (
        ag.std(x, 0, 0, True).shape == (1, 3) and ag.mean(x, 1).shape == (2,) and ag.var(x, 1).shape == (2,)
    )


def test_ties():
    x = Tensor(np.array([[3.0, 1, 3, 3]]), requires_grad=True)
    np.testing.assert_allclose(grad(ag.amax(x, 1), x, np.ones(1))[0].data, [[1 / 3, 0, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(grad(ag.amin(-x, 1), x, np.ones(1))[0].data, [[-1 / 3, 0, -1 / 3, -1 / 3]])
    for f in (lambda x: ag.max(x, 1), lambda x: ag.min(-x, 1)):
        values, indices = f(x)
        assert indices.tolist() == [0]
        np.testing.assert_array_equal(np.abs(grad(values, x, np.ones(1))[0].data), [[1, 0, 0, 0]])
    assert ag.max(x, 1).values.shape == (1,) and ag.max(x, 1, keepdim=True).indices.shape == (1, 1)


def test_gradients_at_zero_are_zero():
    for p in (2, 1, 3, 0.5, np.inf):
        x = Tensor(np.zeros((2, 3)), requires_grad=True)
        with np.errstate(all="raise"):
            out = ag.norm(x, p, 1)
            (g,) = grad(out, x, np.ones(2), create_graph=True) if p >= 1 else (x * 0,)
        assert not out.data.any() and not g.data.any()
    z = Tensor(np.zeros(2, complex), requires_grad=True)
    assert not grad(ag.norm(z), z)[0].data.any()


def test_norms_by_hand():
    x = np.array([3.0, -4.0])
    assert [ag.norm(x, p) for p in (1, 2, np.inf)] == [7, 5, 4]
    assert ag.norm(x, 3) == pytest.approx(91 ** (1 / 3)) and ag.norm(x, 0.5) == pytest.approx(
        (3**0.5 + 2) ** 2
    )


def test_integers_and_booleans():
    assert ag.sum(np.array([True, True])) == 2 and ag.cumsum(np.array([True, True]), 0).tolist() == [1, 2]
    assert ag.mean(np.arange(4)) == 1.5
    assert ag.sum(Tensor(np.arange(4))).item() == 6
    assert ag.softmax(np.array([-1000, -1000])).tolist() == [0.5, 0.5]
    assert ag.logsumexp(np.array([-1000, -1000])) == -1000 + np.log(2)
    assert ag.softmax(np.array([-np.inf, -np.inf, 0.0], np.float16)).tolist() == [0, 0, 1]
    assert ag.softmax(np.full(2, -np.inf, np.float16)).tolist() == [0, 0]


def test_scan_with_decays_of_zero_and_one():
    b = np.arange(1.0, 5)
    np.testing.assert_array_equal(ag.scan(np.zeros(4), b, 0), b)
    np.testing.assert_array_equal(ag.scan(np.ones(4), b, 0), np.cumsum(b))
    np.testing.assert_array_equal(ag.scan(np.array([9.0, 0, 1, 2]), b, 0), [1, 2, 5, 14])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: ag.mean(x[:, :0]), r"mean: nothing to average over dim None of shape \(2, 0\)"),
        (lambda x: ag.mean(x[:0], 0), r"mean: nothing to average over dim 0 of shape \(0, 3\)"),
        (lambda x: ag.var(x[:1], 0), "var: needs more than correction=1 entries, got 1 over dim 0"),
        (lambda x: ag.var(x, 0, correction=2), "var: needs more than correction=2 entries, got 2 over dim 0"),
        (lambda x: ag.std(x[:0]), "var: needs more than correction=1 entries, got 0 over dim None"),
        (lambda x: ag.norm(x, 0), "p: expected a positive number or infinity, got 0"),
        (lambda x: ag.norm(x, -1), "p: expected a positive number or infinity, got -1"),
        (lambda x: ag.mean(x, 2), r"dim: expected an axis in \[-2, 1\], got 2"),
        (lambda x: ag.amax(x[:0]), "zero-size array"),
        (lambda x: ag.max(x[:0], 0), "empty sequence"),
        (lambda x: ag.softmax(x, 5), "axis 5 is out of bounds"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((2, 3)))


@pytest.mark.parametrize("name", ["amax", "amin", "logsumexp", "softmax", "log_softmax"])
def test_functions_of_real_numbers_refuse_complex_ones(name):
    with pytest.raises(TypeError, match=f"{name}: expected real numbers, got complex64"):
        getattr(ag, name)(np.ones(2, np.complex64))
