"""`check_grads` accepts what is right and catches what is wrong, at the order where it is wrong."""

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, no_grad, primitive
from minattn.testing import _direction, check_causal, check_grads

rng = np.random.default_rng(0)
X, Y = rng.uniform(0.5, 2, (2, 3)), rng.uniform(0.5, 2, 3)


def power(x, y, /):
    return x**2 * y


def right(g, out, x, y):
    return 2 * g * x * y, g * x**2


def planted(derivative):
    return primitive(power, derivative, "planted")


def halves(x, /):
    """½ x² with the first derivative x."""
    return 0.5 * x * x


def test_right_derivatives_pass():
    check_grads(planted(right), X, Y)
    check_grads(planted(right), X, Y, order=3)
    check_grads(planted(lambda g, out, x, y: (lambda: 2 * g * x * y, lambda: g * x**2)), X, Y)
    check_grads(ag.softmax, X)
    check_grads(lambda x: x, X)
    check_grads(lambda x, y: x * x, X, Y)  # the second argument is not used
    check_grads(lambda z: z * z.exp() if hasattr(z, "exp") else None, X + 1j * X[::-1])


WRONG = {
    "scale": lambda g, out, x, y: (1.001 * right(g, out, x, y)[0], right(g, out, x, y)[1]),
    "sign": lambda g, out, x, y: (right(g, out, x, y)[0], -right(g, out, x, y)[1]),
    "zero": lambda g, out, x, y: (g * 0, right(g, out, x, y)[1]),
    "none": lambda g, out, x, y: (right(g, out, x, y)[0], None),
    "swapped": lambda g, out, x, y: (right(g, out, x, y)[0], g * ag.flip(x, 0) ** 2),
    "constant": lambda g, out, x, y: (right(g, out, x, y)[0], ag.mean(g, 0) * x.mean(0) ** 2 * 2),
    "dropped sum": lambda g, out, x, y: (right(g, out, x, y)[0], (g * x**2)[0]),
    "mean for sum": lambda g, out, x, y: (right(g, out, x, y)[0], ag.mean(g * x**2, 0)),
    "nan": lambda g, out, x, y: (right(g, out, x, y)[0] * np.nan, right(g, out, x, y)[1]),
    "one entry": lambda g, out, x, y: (
        right(g, out, x, y)[0] * (1 + 1e-3 * np.eye(2, 3)),
        right(g, out, x, y)[1],
    ),
}


@pytest.mark.parametrize("rule", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("order", [1, 2])
def test_wrong_first_derivatives_are_caught(rule, order):
    with pytest.raises(
        AssertionError, match=r"^order 1: the backward pass gives \S+, finite differences \S+$"
    ):
        check_grads(planted(rule), X, Y, order=order)


def test_a_gradient_of_the_wrong_shape_is_caught():
    with pytest.raises(ValueError, match="does not fit an argument"):
        check_grads(planted(lambda g, out, x, y: (ag.sum(g, 1), g * x**2)), X, Y)


def detached(x):
    return x.data if isinstance(x, Tensor) else x


@pytest.mark.parametrize(
    "slope, argument",
    [
        (lambda g, out, x: g * detached(x), 0),  # right at first order, a constant at the second
        (lambda g, out, x: detached(g) * x, 1),  # right at first order, not linear in g at the second
        (lambda g, out, x: g * ag.straight_through(x, 2 * x), 0),
    ],
)
def test_wrong_second_derivatives_are_caught(slope, argument):
    f = primitive(halves, slope)
    check_grads(f, X, order=1)
    with pytest.raises(
        AssertionError, match=r"^derivative with respect to argument 0: order 1: the backward pass gives"
    ):
        check_grads(f, X)


def test_the_argument_whose_derivative_is_wrong_is_named():
    f = planted(lambda g, out, x, y: (2 * g * x * y, g * detached(x) ** 2))
    with pytest.raises(AssertionError, match=r"^derivative with respect to argument 1: order 1: "):
        check_grads(f, X, Y)


def test_a_wrong_third_derivative_is_caught_at_order_three():
    square = primitive(lambda x, /: x**2, lambda g, out, x: g * 2 * detached(x))
    cube = primitive(lambda x, /: x**3 / 3, lambda g, out, x: g * square(x))
    check_grads(cube, X)  # which goes to order 2
    message = "^derivative with respect to argument 0: derivative with respect to argument 0: order 1: "
    with pytest.raises(AssertionError, match=message):
        check_grads(cube, X, order=3)


def test_all_cotangents_and_directions_are_random():
    """A wrong rule that is right for a cotangent of ones, or along ones, is caught."""
    rule = primitive(lambda x, /: x * 3, lambda g, out, x: 3 * ag.expand(ag.mean(g), x.shape))
    with pytest.raises(AssertionError):
        check_grads(rule, X, order=1)


def test_seeds():
    seen = []

    def f(x):
        seen.append(x.data.copy())
        return x * x

    check_grads(f, X, order=1)
    check_grads(f, X, order=1)
    assert all((a == b).all() for a, b in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :], strict=True))
    count = len(seen)
    check_grads(f, X, order=1, rng=np.random.default_rng(7))
    assert any((a != b).any() for a, b in zip(seen[count // 2 : count], seen[count:], strict=True))


def test_tolerances_and_step():
    slightly = primitive(lambda x, /: x * 1000.0, lambda g, out, x: g * 1001.0)
    with pytest.raises(AssertionError):
        check_grads(slightly, X, order=1)
    check_grads(slightly, X, order=1, rtol=0.01)
    check_grads(slightly, X, order=1, atol=100.0)
    with pytest.raises(AssertionError):
        check_grads(lambda x: ag.sin(x * 50.0), X, order=1, step=0.1)
    kink = Tensor(np.array([1e-3]))
    check_grads(ag.relu, kink, order=1)
    with pytest.raises(AssertionError):
        check_grads(ag.relu, kink, order=1, step=0.1)
    slightly_at_second = primitive(halves, lambda g, out, x: g * ag.straight_through(x, 1.01 * x))
    with pytest.raises(AssertionError):
        check_grads(slightly_at_second, X)
    check_grads(slightly_at_second, X, rtol=0.05)
    check_grads(slightly_at_second, X, atol=0.5)


def test_the_step_is_that_of_every_order():
    """x|x| has a second derivative that jumps: a long step sees both sides of the jump."""
    near = np.full(20, 1e-3)
    check_grads(lambda x: x * ag.abs(x), near, atol=1.5)
    check_grads(lambda x: x * ag.abs(x), near, atol=1.5, order=1, step=0.1)
    with pytest.raises(AssertionError, match=r"^derivative with respect to argument 0"):
        check_grads(lambda x: x * ag.abs(x), near, atol=1.5, step=0.1)


def test_every_order_draws_from_the_generator():
    first, second = np.random.default_rng(1), np.random.default_rng(1)
    check_grads(ag.sin, X, order=1, rng=first)
    check_grads(ag.sin, X, order=2, rng=second)
    assert first.bit_generator.state != second.bit_generator.state


def test_directions_are_normal_in_both_parts():
    for dtype in (float, complex):
        v = _direction(np.random.default_rng(0), np.zeros((50, 60), dtype))
        assert v.shape == (50, 60) and v.dtype == dtype
        for part in (v.real, v.imag) if dtype is complex else (v,):
            assert np.unique(part).size == 3000 and abs(part.std() - 1) < 0.05


def test_arguments_are_left_alone_and_may_be_tensors():
    x = Tensor(X.copy(), requires_grad=True)
    check_grads(lambda x: x * 2, x)
    assert x.grad is None and (x.data == X).all()
    check_grads(lambda x: x * 2, [1.0, 2.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.complex64])
def test_only_double_precision_is_taken(dtype):
    with pytest.raises(TypeError, match=rf"args\[1\]: expected float64 or complex128, got {np.dtype(dtype)}"):
        check_grads(lambda x, y: x, X, np.ones(3, dtype))


def test_functions_that_cannot_be_checked():
    with pytest.raises(ValueError, match=r"^f: its output does not depend on the arguments"):
        check_grads(lambda x: Tensor(np.ones(3)), X)
    with pytest.raises(ValueError, match="f: its output does not depend"):
        check_grads(no_grad()(lambda x: x * 2), X)
    with pytest.raises(TypeError, match="f: expected a function that returns a Tensor, got ndarray"):
        check_grads(lambda x: x.data, X)


def test_complex_functions():
    z = rng.standard_normal(3) + 1j * rng.standard_normal(3)
    check_grads(lambda z: z * ag.conj(z), z)
    check_grads(lambda z: ag.abs(z), z)
    without_conjugate = primitive(lambda z, /: z * z, lambda g, out, z: 2 * g * z)
    with pytest.raises(AssertionError):
        check_grads(without_conjugate, z, order=1)
    real_part_only = primitive(lambda z, /: 1j * z, lambda g, out, z: ag.real(-1j * g))
    with pytest.raises(AssertionError):
        check_grads(real_part_only, z, order=1)


def test_size_zero():
    check_grads(lambda x: x * 2, np.zeros((0, 3)))


def test_causal_functions_pass_and_others_are_caught():
    x = np.random.default_rng(1).standard_normal((2, 5, 3))
    check_causal(lambda t: t.cumsum(1), x)
    check_causal(lambda t: np.roll(t, 1, 1) * (np.arange(5)[:, None] > 0) + t, x)
    with pytest.raises(AssertionError, match="position 1 changes the output at 0 by"):
        check_causal(lambda t: t + np.roll(t, -1, 1), x)
    with pytest.raises(AssertionError, match="position 4 changes nothing"):
        check_causal(lambda t: np.roll(t, 1, 1) * (np.arange(5)[:, None] > 0), x)
    ids = np.array([[0, 3, 2]])
    check_causal(lambda t: np.eye(4)[t].cumsum(1), ids, change=lambda t: (t + 1) % 4)
    check_causal(lambda t: t.cumsum(-1), x.swapaxes(1, 2), dim=-1)


def test_causal_tolerance_and_nan():
    x = np.ones((1, 3))
    leak = lambda t: t.cumsum(1) + 1e-9 * t.sum()  # noqa: E731
    check_causal(leak, x, tol=1e-8)
    with pytest.raises(AssertionError, match="changes the output"):
        check_causal(leak, x)
    with pytest.raises(AssertionError):
        check_causal(lambda t: t * np.nan, x)
