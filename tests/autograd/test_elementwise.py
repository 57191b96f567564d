"""`minattn.autograd.elementwise` against PyTorch, finite differences and its own rules."""

import math
import sys

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, grad
from minattn.testing import check_grads
from tests.autograd import case as checks
from tests.autograd.cases import ELEMENTWISE


@checks.each(ELEMENTWISE)
def test_samples(case):
    checks.check_samples(case)


@checks.each(ELEMENTWISE)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each([c for c in ELEMENTWISE if c.order and c.exact])
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(ELEMENTWISE)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(ELEMENTWISE)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(ELEMENTWISE)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def slope(f, *points):
    """Value and derivatives at numbers, in float64."""
    xs = [Tensor(np.array(float(p)), requires_grad=True) for p in points]
    out = f(*xs)
    found = [g.item() for g in grad(out, xs)]
    return out.item(), *found


@pytest.mark.parametrize(
    "f, point, want",
    [
        (ag.abs, 0, (0, 0)),
        (ag.relu, 0, (0, 0)),
        (ag.sign, 3, (1, 0)),
        (ag.sign, 0, (0, 0)),
        (lambda x: ag.clip(x, 1, 2), 1, (1, 1)),
        (lambda x: ag.clip(x, 1, 2), 2, (2, 1)),
        (lambda x: ag.clip(x, 1, 2), 3, (2, 0)),
        (lambda x: ag.clip(x, max=2), -9, (-9, 1)),
        (lambda x: ag.clip(x, min=1), 0, (1, 0)),
        (lambda x: x**0, 0, (1, 0)),
        (lambda x: x**1, 0, (0, 1)),
        (lambda x: x**2, 0, (0, 0)),
        (lambda x: x**0.0, 5, (1, 0)),
        (lambda x: x**-1, 2, (0.5, -0.25)),
        (lambda x: 0**x, 2, (0, 0)),
        (lambda x: 2**x, 3, (8, 8 * math.log(2))),
        (lambda x: x**3, -2, (-8, 12)),
    ],
)
def test_derivatives_at_special_points(f, point, want):
    assert slope(f, point) == pytest.approx(want, abs=1e-15)


@pytest.mark.parametrize("f, want", [(ag.maximum, (2, 0.5, 0.5)), (ag.minimum, (2, 0.5, 0.5))])
def test_equal_operands_share_the_gradient(f, want):
    assert slope(f, 2, 2) == want
    assert slope(f, 1, 2) == ((2, 0, 1) if f is ag.maximum else (1, 1, 0))
    x = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    (g,) = grad(f(x, 2.0), x, np.ones(2, np.float32))
    assert g.dtype == np.float32 and g.data.tolist() == ([0, 0.5] if f is ag.maximum else [1, 0.5])


def test_power_of_zero_and_exponents_that_are_arrays():
    x, y = (
        Tensor(np.array([0.0, 0, 2]), requires_grad=True),
        Tensor(np.array([0.0, 2, 0]), requires_grad=True),
    )
    gx, gy = grad(x**y, [x, y], np.ones(3))
    np.testing.assert_array_equal(gx.data, [0, 0, 0])
    np.testing.assert_allclose(gy.data, [0, 0, np.log(2)])
    x, y = Tensor(np.array([0.0]), requires_grad=True), Tensor(np.array([-1.0]), requires_grad=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = x**y
        assert out.item() == np.inf and grad(out, y)[0].item() == 0


def test_complex_numbers():
    z = Tensor(np.array([1 + 2j, 0j]), requires_grad=True)
    (g,) = grad(ag.abs(z), z, np.ones(2), create_graph=True)
    np.testing.assert_allclose(g.data, [(1 + 2j) / np.sqrt(5), 0])
    assert grad(z * 2j, z, np.ones(2))[0].data.tolist() == [-2j, -2j]
    assert grad(2j * z, z, np.array([1j, 2]))[0].data.tolist() == [2, -4j]


def test_where_follows_the_library_of_its_branches(other_library):
    mask, x = np.array([True, False]), np.array([1.0, 2.0])
    there = other_library(x)
    for cond in (mask, other_library(mask), [True, False]):
        assert ag.where(cond, there, 0).get().tolist() == [1, 0]
        assert ag.where(cond, 0, there).get().tolist() == [0, 2]
        assert ag.where(cond, there, there).get().tolist() == [1, 2]
    assert ag.where(other_library(mask), 1, 0).get().tolist() == [1, 0]
    assert ag.pow(2.0, there).get().tolist() == [2, 4]
    t = Tensor(there, requires_grad=True)
    assert grad(2.0**t, t, other_library(np.ones(2)))[0].data.get() == pytest.approx(
        np.log(2) * np.array([2, 4])
    )


@pytest.mark.parametrize(
    "f, left, right",
    [
        (ag.sigmoid, 0, 1),
        (ag.softplus, 0, 1e4),
        (ag.silu, 0, 1e4),
        (ag.gelu, 0, 1e4),
        (lambda x: ag.gelu(x, "tanh"), 0, 1e4),
        (ag.tanh, -1, 1),
        (ag.erf, -1, 1),
        (ag.relu, 0, 1e4),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_arguments(f, left, right, dtype):
    x = Tensor(np.array([-1e4, 1e4], dtype), requires_grad=True)
    out = f(x)
    np.testing.assert_array_equal(out.data, np.array([left, right], dtype))
    assert np.isfinite(grad(out, x, np.ones(2))[0].data).all()


def test_infinities():
    x = Tensor(np.array([-np.inf, np.inf]), requires_grad=True)
    assert ag.sigmoid(x).data.tolist() == [0, 1] and ag.exp(x).data.tolist() == [0, np.inf]
    assert grad(ag.sigmoid(x), x, np.ones(2))[0].data.tolist() == [0, 0]


def test_log1p_is_accurate_near_zero():
    assert ag.log1p(np.array(1e-18)) == 1e-18


def test_where_does_not_look_at_the_branch_not_taken():
    x = Tensor(np.array([0.0, 4.0]), requires_grad=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = ag.where(x.data > 0, ag.log(x), x)
        grad(out, x, np.ones(2), create_graph=True)
    assert out.data.tolist() == [0, np.log(4)]
    y = Tensor(np.array([np.inf, 1.0]), requires_grad=True)
    assert grad(ag.where([False, True], y * 2, 0.0), y, np.ones(2))[0].data.tolist() == [0, 2]


def test_where_of_lists_tensors_and_numbers():
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    for cond in ([True, False], np.array([True, False]), Tensor(np.array([True, False])), np.array([2, 0])):
        out = ag.where(cond, x, 3)
        assert out.dtype == np.float32 and out.data.tolist() == [1, 3]
        assert grad(out, x, np.ones(2))[0].data.tolist() == [1, 0]
        assert grad(ag.where(cond, 3, x), x, np.ones(2))[0].data.tolist() == [0, 1]
    assert ag.where(True, x, 0).data.tolist() == [1, 1]
    np.testing.assert_array_equal(ag.where([True, False], 0.5, np.array([1, 2])), [0.5, 2])
    assert type(ag.where([True], np.ones(1), np.zeros(1))) is np.ndarray
    with pytest.raises(TypeError, match="where: operands must share one floating dtype"):
        ag.where([True, False], x, np.ones(2))


def test_straight_through_takes_its_value_from_hard():
    x = Tensor(np.array([0.2, 0.9], np.float32), requires_grad=True)
    out = ag.straight_through(ag.one_hot(x.data.argmax(), 2), ag.softmax(x))
    assert out.data.tolist() == [0, 1] and out.dtype == np.float32
    want = grad(ag.softmax(x), x, np.array([3.0, 1]))[0].data
    np.testing.assert_array_equal(grad(out, x, np.array([3.0, 1]))[0].data, want)
    hard = Tensor(np.array([1.0, 0], np.float32), requires_grad=True)
    assert grad(ag.straight_through(hard, x), [x, hard], np.ones(2), allow_unused=True)[1] is None
    with pytest.raises(ValueError, match=r"hard: expected the shape of soft, \(2,\), got \(3,\)"):
        ag.straight_through(np.ones(3), x)
    with pytest.raises(TypeError, match="straight_through: operands must share one floating dtype"):
        ag.straight_through(np.ones(2), x)


def test_astype_between_kinds():
    x = Tensor(np.array([1.5, 2.5], np.float32), requires_grad=True)
    wide = ag.astype(x, dtype=np.float64)
    assert wide.dtype == np.float64
    (g,) = grad(wide, x, np.array([1.0, 2.0]))
    assert g.dtype == np.float32 and g.data.tolist() == [1, 2]
    (g,) = grad(ag.astype(x, dtype=np.complex64), x, np.array([1 + 2j, 3j], np.complex64))
    assert g.dtype == np.float32 and g.data.tolist() == [1, 0]
    check_grads(lambda x: ag.real(ag.astype(x, dtype=np.complex128) * (2 + 1j)), np.ones(2))


def test_erf_without_scipy(monkeypatch):
    x = np.linspace(-3, 3, 7)
    want = ag.erf(x)
    np.testing.assert_allclose(want, [math.erf(t) for t in x], rtol=1e-14)
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    np.testing.assert_allclose(ag.erf(x), want, rtol=1e-14)
    assert (
        ag.erf(x.astype(np.float32)).dtype == np.float32 and ag.erf(x.astype(np.float16)).dtype == np.float16
    )
    assert ag.erf(np.arange(3)).dtype == np.float64 and ag.erf(np.zeros((0, 2))).shape == (0, 2)


def test_erf_on_cupy_asks_its_own_library(monkeypatch):
    """A stand-in for CuPy: an array class that says it lives there, and its erf."""
    import types

    Array = type("ndarray", (), {"__module__": "cupy", "dtype": np.dtype(np.float32)})
    special = types.SimpleNamespace(erf=lambda x: ("erf", x))
    for name, module in {
        "cupy": types.ModuleType("cupy"),
        "cupyx": types.ModuleType("cupyx"),
        "cupyx.scipy": types.ModuleType("cupyx.scipy"),
        "cupyx.scipy.special": special,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    x = Array()
    assert ag.erf(x) == ("erf", x)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: ag.clip(x), "^clip: expected min, max or both, got neither"),
        (lambda x: ag.gelu(x, "fast"), 'approximate: expected "none" or "tanh", got \'fast\''),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones(2))


@pytest.mark.parametrize(
    "name", ["sigmoid", "softplus", "relu", "gelu", "silu", "maximum", "minimum", "clip", "erf"]
)
def test_functions_of_real_numbers_refuse_complex_ones(name):
    args = {"maximum": (1.0,), "minimum": (1.0,), "clip": (0.0, 1.0)}.get(name, ())
    with pytest.raises(TypeError, match=f"{name}.*: expected real numbers, got complex128"):
        getattr(ag, name)(Tensor(np.ones(2, np.complex128)), *args)
