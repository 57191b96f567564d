"""Primitives: what is differentiable, what derivatives may answer, dtypes, and tensors made from data."""

import sys
import types

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, engine, grad, override_derivative, primitive, tensor
from minattn.testing import check_grads

rng = np.random.default_rng(0)


def leaf(*shape, dtype=np.float64):
    return Tensor(np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype), requires_grad=True)


def times_forward(x, y, /):
    """Product."""
    return x * y


def times_derivative(g, out, x, y):
    return lambda: g * y, lambda: g * x


def times():
    """A primitive made afresh."""
    return primitive(times_forward, times_derivative)


# ---- primitive ----
def test_primitive_array_in_array_out():
    x, y = np.ones((2, 3)), np.full(3, 2.0)
    out = times()(x, y)
    assert type(out) is np.ndarray
    np.testing.assert_array_equal(out, x * y)


@pytest.mark.parametrize("wrapped", [(True, False), (False, True), (True, True)])
def test_primitive_tensor_in_tensor_out(wrapped):
    args = [Tensor(a) if w else a for a, w in zip((np.ones(3), np.full(3, 2.0)), wrapped, strict=True)]
    out = times()(*args)
    assert type(out) is Tensor and not out.requires_grad and out.is_leaf
    np.testing.assert_array_equal(out.data, [2, 2, 2])


def test_primitive_is_differentiated_to_second_order():
    check_grads(times(), rng.standard_normal((2, 3)), rng.standard_normal(3))


def test_primitive_keeps_name_signature_and_docstring():
    op = times()
    assert (op.__name__, op.__qualname__, op.__doc__) == ("times_forward", "times_forward", "Product.")
    assert str(op.__signature__) == "(x, y, /)"
    assert op.derivative is times_derivative and op.saves is False
    assert primitive(times_forward, times_derivative, "times").__name__ == "times"

    def _hidden(x, /):
        return x

    assert primitive(_hidden, lambda g, out, x: g).__name__ == "hidden"


def test_primitive_needs_a_slash():
    with pytest.raises(ValueError, match=r"forward: expected a slash .* got \(x, y\)"):
        primitive(lambda x, y: x, lambda g, out, x, y: (g, None))


def powers(x, /, power=1, scale=1):
    return scale * x**power


def d_powers(g, out, x, power=1, scale=1):
    return g * scale * power * x ** (power - 1)


def test_arguments_after_the_slash_are_options():
    op = primitive(powers, d_powers)
    x = leaf(3)
    for out in (op(x, 3, 2), op(x, 3, scale=2), op(x, power=3, scale=2), op(x, scale=2, power=3)):
        np.testing.assert_allclose(out.data, 2 * x.data**3)
        np.testing.assert_allclose(grad(out, x, np.ones(3))[0].data, 6 * x.data**2)
    np.testing.assert_array_equal(op(x).data, x.data)


def test_too_many_arguments_and_arguments_given_twice():
    op = primitive(powers, d_powers)
    with pytest.raises(TypeError, match=r"powers\(x, /, power=1, scale=1\): got 4 arguments"):
        op(1.0, 2, 3, 4)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'power'"):
        op(np.ones(2), 2, power=3)
    with pytest.raises(TypeError, match="got 3 arguments"):
        times()(1.0, 2.0, 3.0)


def test_any_number_of_differentiable_arguments():
    op = primitive(
        lambda *xs, weight: sum(xs) * weight,
        lambda g, out, *xs, weight: tuple(g * weight for _ in xs),
        "total",
    )
    xs = [leaf(2) for _ in range(4)]
    for got in grad(op(*xs, weight=3), xs, np.ones(2)):
        np.testing.assert_array_equal(got.data, [3, 3])


def test_derivative_may_answer_none_a_value_or_a_function():
    called = []

    def derivative(g, out, x, y, z):
        return None, g * 2, lambda: called.append("z") or g * 3

    op = primitive(lambda x, y, z, /: x + 2 * y + 3 * z, derivative, "mixed")
    x, y, z = leaf(2), leaf(2), leaf(2)
    got = grad(op(x, y, z), [x, y], np.ones(2), allow_unused=True)
    assert got[0] is None and not called
    np.testing.assert_array_equal(got[1].data, [2, 2])
    np.testing.assert_array_equal(grad(op(x, y, z), z, np.ones(2))[0].data, [3, 3])
    assert called == ["z"]


def test_a_derivative_with_the_wrong_number_of_gradients_is_named():
    op = primitive(times_forward, lambda g, out, x, y: g, "half")
    with pytest.raises(ValueError, match="derivative of half: expected 2 values, got 1"):
        op(leaf(2), leaf(2)).backward(np.ones(2))


def test_a_derivative_of_the_wrong_shape_is_named():
    for wrong in (lambda g: ag.sum(g), lambda g: ag.reshape(g, 3, 2), lambda g: g[:, :1], lambda g: g[0]):
        op = primitive(lambda x, /: x * 2, lambda g, out, x, wrong=wrong: wrong(g), "double")
        with pytest.raises(
            ValueError, match=r"derivative: a gradient of shape .* does not fit an argument of \(2, 3\)"
        ):
            op(leaf(2, 3)).backward(np.ones((2, 3)))


def test_a_gradient_takes_the_dtype_of_its_tensor():
    op = primitive(lambda x, /: x * 2, lambda g, out, x: g * np.float64(2), "double")
    x = leaf(3, dtype=np.float32)
    assert grad(op(x), x, np.ones(3))[0].dtype == np.float32
    z = Tensor(np.ones(2, np.complex128), requires_grad=True)
    (g,) = grad(ag.real(z), z, np.ones(2))
    assert g.dtype == np.complex128 and np.array_equal(g.data, [1, 1])
    x = leaf(2)
    (g,) = grad(x * np.array([1j, 2 + 1j]), x, np.array([1j, 1]))
    assert g.dtype == np.float64 and np.array_equal(g.data, [1, 2])


def squares(x, /):
    return x * x, "what the forward pass computed"


@pytest.mark.parametrize("create_graph", [False, True])
def test_saved_values_reach_only_an_unrecorded_derivative(create_graph):
    seen = []

    def derivative(g, out, x, saved):
        seen.append(saved)
        return g * 2 * x

    op = primitive(squares, derivative, saves=True)
    assert op.saves is True
    np.testing.assert_array_equal(op(np.full(2, 3.0)), [9, 9])
    x = leaf(3)
    y = op(x)
    (g,) = grad(y, x, np.ones(3), create_graph=create_graph)
    np.testing.assert_allclose(g.data, 2 * x.data)
    assert seen == [None if create_graph else "what the forward pass computed"]
    if create_graph:
        np.testing.assert_array_equal(grad(g, x, np.ones(3))[0].data, [2, 2, 2])


def test_saving_primitive_to_second_order():
    op = primitive(
        lambda x, /: (np.exp(x), np.exp(x)),
        lambda g, out, x, saved: g * (out if saved is None else saved),
        saves=True,
    )
    check_grads(op, rng.standard_normal(4))


def test_real_functions_refuse_complex_numbers():
    op = primitive(times_forward, times_derivative, "product", real=True)
    assert op(1.0, 2.0) == 2 and op(np.ones(2), np.ones(2, int)).tolist() == [1, 1]
    for args in (
        (1, np.ones(2, np.complex64)),
        (np.ones(2, np.complex64), 1),
        (np.ones(2), Tensor(np.ones(2, complex))),
    ):
        with pytest.raises(TypeError, match=r"product: expected real numbers, got complex(64|128)"):
            op(*args)


def test_override_derivative():
    op = times()
    x, y = leaf(3), leaf(3)
    out = op(x, y)
    with override_derivative(op, lambda g, out, x, y: (g, -g)):
        gx, gy = grad(out, [x, y], np.ones(3), retain_graph=True)
        np.testing.assert_array_equal(gx.data, [1, 1, 1])
        np.testing.assert_array_equal(gy.data, [-1, -1, -1])
    np.testing.assert_array_equal(grad(out, x, np.ones(3))[0].data, y.data)
    with pytest.raises(RuntimeError, match="inside"), override_derivative(op, lambda *a: (None, None)):
        raise RuntimeError("inside")
    assert op.derivative is times_derivative
    with (
        pytest.raises(TypeError, match="op: expected a primitive, got 'mean'"),
        override_derivative(ag.mean, None),
    ):
        pass
    with pytest.raises(TypeError, match="op: expected a primitive, got 3"), override_derivative(3, None):
        pass


def test_override_derivative_of_a_public_function():
    x = leaf(4)
    with override_derivative(ag.relu, lambda g, out, x: g * (g > 0) * (x > 0)):  # guided backpropagation
        (g,) = grad(ag.relu(x), x, np.array([1.0, -1, 1, -1]))
    np.testing.assert_array_equal(g.data, np.array([1, 0, 1, 0]) * (x.data > 0))


# ---- dtypes ----
@pytest.mark.parametrize("op", [times(), ag.mul])
@pytest.mark.parametrize("narrow", [np.float16, np.float32, np.float64, np.complex64])
def test_integers_booleans_and_numbers_adopt_the_dtype(op, narrow):
    op = op if op is ag.mul else times()
    x = Tensor(np.ones(3, narrow), requires_grad=True)
    for other in (
        np.arange(3),
        np.array([True, False, True]),
        Tensor(np.arange(3)),
        np.int64(2),
        np.array(2, np.uint8),
        2,
        2.5,
        True,
        [1, 2, 3],
    ):
        for out in (op(x, other), op(other, x)):
            assert out.dtype == narrow, other
            (g,) = grad(out, x, np.ones(3))
            assert g.dtype == narrow
            np.testing.assert_array_equal(
                g.data, np.broadcast_to(np.asarray(getattr(other, "data", other), float), 3)
            )


def test_constants_reach_the_derivative_in_the_operands_dtype():
    seen = []

    def derivative(g, out, x, y):
        seen.append((type(y), y.dtype))
        return g * y, None

    op = primitive(times_forward, derivative, "watched")
    for y in (np.arange(3), Tensor(np.arange(3)), [1, 2, 3], [1.0, 2.0, 3.0]):
        for create_graph in (False, True):
            grad(op(leaf(3, dtype=np.float32), y).sum(), [], create_graph=create_graph)
            op(leaf(3, dtype=np.float32), y).sum().backward(create_graph=create_graph)
    assert seen and set(seen) == {(np.ndarray, np.dtype(np.float32))}


@pytest.mark.parametrize(
    "pair",
    [
        (np.float32, np.float64),
        (np.float64, np.float32),
        (np.float16, np.float32),
        (np.complex64, np.float64),
        (np.complex128, np.float32),
        (np.complex64, np.complex128),
    ],
)
def test_mixed_precision_is_refused(pair):
    x, y = Tensor(np.ones(3, pair[0])), Tensor(np.ones(3, pair[1]))
    names = ", ".join(sorted(np.dtype(p).name for p in pair))
    for args in ((x, y), (x, y.data), (x.data, y), (x.data, y.data), (x, y.data[0])):
        with pytest.raises(
            TypeError,
            match=rf"times_forward: operands must share one floating dtype, got {names}; see \.to\(dtype\)",
        ):
            times()(*args)
    with pytest.raises(TypeError, match="three: operands"):
        primitive(lambda x, y, z, /: x, None, "three")(x, np.arange(3), y)


def test_one_precision_of_real_and_complex_mixes():
    assert times()(np.ones(2, np.float32), np.ones(2, np.complex64)).dtype == np.complex64
    assert times()(np.ones(2), np.ones(2, np.complex128)).dtype == np.complex128
    assert times()(np.arange(2), np.ones(2, np.complex64)).dtype == np.complex64
    assert times()(np.arange(2), np.ones(2, bool)).dtype == np.int64
    assert times()(np.float64(2), np.arange(2)).dtype == np.float64


# ---- tensor and namespace ----
def test_tensor_copies_and_chooses_dtypes():
    a = np.ones(3)
    assert tensor(a).data is not a and tensor(a).dtype == np.float64
    assert Tensor(a).data is a and Tensor(Tensor(a)).data is a
    assert tensor(Tensor(a)).data is not a
    assert (
        tensor([1.0, 2.0]).dtype == np.float32 and tensor(1.5).dtype == np.float32 and tensor(1.5).shape == ()
    )
    assert tensor([1 + 1j]).dtype == np.complex64
    assert tensor([1, 2]).dtype == np.int64 and tensor([True]).dtype == bool
    assert tensor(np.float64(1)).dtype == np.float64
    wide, narrow = tensor([1, 2], dtype=np.float64), tensor(a, dtype=np.float32)
    assert wide.dtype == np.float64 and wide.data.tolist() == [1, 2] and narrow.dtype == np.float32
    x = tensor(a, requires_grad=True)
    assert x.requires_grad and not tensor(a).requires_grad and x.grad is None and x.is_leaf
    assert tensor(a, np.float32, True).requires_grad


def test_only_floats_require_gradients():
    for data in (np.arange(3), np.ones(3, bool), [1, 2]):
        with pytest.raises(TypeError, match="requires_grad: only floats and complex numbers have them, got"):
            Tensor(data, requires_grad=True)
    assert Tensor(np.ones(2, np.complex64), requires_grad=True).requires_grad


@pytest.mark.parametrize("data", ["text", None, [None], {1: 2}, [object()]])
def test_data_must_be_numbers(data):
    with pytest.raises(TypeError, match=f"data: expected numbers, got {type(data).__name__} of dtype"):
        Tensor(data)
    with pytest.raises(TypeError, match="data: expected numbers"):
        times()(Tensor(np.ones(1)), data)


def test_namespace_is_numpy_for_arrays_numbers_and_tensors():
    for x in (np.ones(2), 1.0, np.float32(1), Tensor(np.ones(2)), True, 1j, [1, 2]):
        assert ag.namespace(x) is np


def test_namespace_is_cupy_for_its_arrays(monkeypatch):
    """A stand-in: an array class that says it lives in CuPy."""
    fake = types.ModuleType("cupy")
    Array = type("ndarray", (), {"__module__": "cupy._core.core", "dtype": np.dtype(np.float32)})
    monkeypatch.setitem(sys.modules, "cupy", fake)
    x = Array()
    assert ag.namespace(x) is fake and ag.namespace(Tensor(x)) is fake
    assert Tensor(x).data is x and engine.as_array(x) is x
