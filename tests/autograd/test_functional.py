"""Products with Jacobians and Hessians, and the matrices, against PyTorch and by hand."""

import numpy as np
import pytest

from minattn.autograd import Tensor, grad, hessian, hvp, jacobian, jvp, no_grad, vjp

from .case import torch

rng = np.random.default_rng(0)
X, V = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
Y, U = rng.standard_normal((3, 2)), rng.standard_normal((2, 2))
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")


def vector(x):
    return x.sin() @ x.T.exp()


def pair(x, y):
    return (x * 2).tanh() @ y + x.sum()


def scalar(x):
    return (x * x * x).sum() + (x[0] * x[1].sin()).sum()


def close(ours, theirs):
    assert isinstance(ours, Tensor)
    np.testing.assert_allclose(ours.data, theirs.numpy(), rtol=1e-10, atol=1e-10)


@needs_torch
def test_vjp_equals_torch():
    y, g = vjp(vector, X, U)
    want_y, want = torch.func.vjp(vector, torch.tensor(X))
    close(y, want_y)
    close(g[0], want(torch.tensor(U))[0])
    _, gs = vjp(pair, (X, Y), U)
    for g, w in zip(
        gs, torch.func.vjp(pair, torch.tensor(X), torch.tensor(Y))[1](torch.tensor(U)), strict=True
    ):
        close(g, w)


@needs_torch
def test_jvp_equals_torch():
    for got, want in zip(
        jvp(vector, X, V), torch.func.jvp(vector, (torch.tensor(X),), (torch.tensor(V),)), strict=True
    ):
        close(got, want)
    W = rng.standard_normal((3, 2))
    tensors = (torch.tensor(X), torch.tensor(Y)), (torch.tensor(V), torch.tensor(W))
    for got, want in zip(jvp(pair, (X, Y), (V, W)), torch.func.jvp(pair, *tensors), strict=True):
        close(got, want)


@needs_torch
def test_matrices_equal_torch():
    close(jacobian(vector, X), torch.func.jacrev(vector)(torch.tensor(X)))
    close(hessian(scalar, X), torch.func.hessian(scalar)(torch.tensor(X)))
    want = torch.autograd.functional.hvp(scalar, torch.tensor(X), torch.tensor(V))[1]
    close(hvp(scalar, X, V), want)


def test_they_agree_with_each_other():
    J = jacobian(vector, X).data.reshape(4, 6)
    np.testing.assert_allclose(jvp(vector, X, V)[1].data.ravel(), J @ V.ravel())
    np.testing.assert_allclose(vjp(vector, X, U)[1][0].data.ravel(), U.ravel() @ J)
    H = hessian(scalar, X).data.reshape(6, 6)
    np.testing.assert_allclose(H, H.T)
    np.testing.assert_allclose(hvp(scalar, X, V).data.ravel(), H @ V.ravel())


def test_a_constant_function_has_derivatives_of_zero():
    def constant(x):
        return Tensor(np.ones((2, 2)))

    assert vjp(constant, X, U)[1][0].data.tolist() == np.zeros((2, 3)).tolist()
    assert jvp(constant, X, V)[1].data.tolist() == [[0, 0], [0, 0]]
    assert not jacobian(constant, X).data.any() and jacobian(constant, X).shape == (2, 2, 2, 3)
    assert not hvp(lambda x: Tensor(1.0), X, V).data.any()
    assert not hessian(lambda x: Tensor(1.0), X).data.any()


def test_a_linear_function_has_a_hessian_of_zero():
    assert not hvp(lambda x: x.sum(), X, V).data.any() and hvp(lambda x: x.sum(), X, V).shape == (2, 3)
    assert not hessian(lambda x: x.sum(), X).data.any() and hessian(lambda x: x.sum(), X).shape == (
        2,
        3,
        2,
        3,
    )
    np.testing.assert_array_equal(jvp(lambda x: x * 3, X, V)[1].data, V * 3)


def test_a_function_of_one_of_two_arguments():
    gx, gy = vjp(lambda x, y: x * 2, (X, Y), V)[1]
    np.testing.assert_array_equal(gx.data, 2 * V)
    assert not gy.data.any() and gy.shape == Y.shape
    np.testing.assert_array_equal(jvp(lambda x, y: x * 2, (X, Y), (V, Y))[1].data, 2 * V)
    assert not jvp(lambda x, y: Tensor(X), (X, Y), (V, Y))[1].data.any()


def test_size_zero():
    empty = np.zeros((0, 3))
    assert jacobian(lambda x: x * 2, empty).shape == (0, 3, 0, 3)
    assert jacobian(lambda x: x.sum(), empty).shape == (0, 3)
    assert hessian(lambda x: (x * x).sum(), empty).shape == (0, 3, 0, 3)
    assert jvp(lambda x: x * 2, empty, empty)[1].shape == (0, 3)
    assert jacobian(lambda x: x[:0], X).shape == (0, 3, 2, 3)


def test_dtype_is_kept():
    x, v = X.astype(np.float32), V.astype(np.float32)
    assert jacobian(lambda x: x[:0], x).dtype == np.float32
    for got in (
        jacobian(vector, x),
        hessian(scalar, x),
        hvp(scalar, x, v),
        jvp(vector, x, v)[1],
        vjp(vector, x, U.astype(np.float32))[1][0],
    ):
        assert got.dtype == np.float32


@pytest.mark.parametrize(
    "call",
    [
        lambda x: jacobian(scalar, x, create_graph=True)[0, 0],
        lambda x: hvp(scalar, x, V, create_graph=True)[0, 0],
        lambda x: hessian(lambda x: (x**4).sum(), x, create_graph=True)[0, 0, 0, 0],
        lambda x: jvp(vector, x, V, create_graph=True)[1][0, 0],
        lambda x: vjp(vector, x, U, create_graph=True)[1][0][0, 0],
    ],
)
def test_they_can_be_differentiated_again(call):
    step, x = 1e-5, Tensor(X, requires_grad=True)
    (g,) = grad(call(x), x)
    assert np.abs(g.data).max() > 0.1
    for i, j in np.ndindex(2, 3):
        e = np.zeros((2, 3))
        e[i, j] = step
        slope = (call(X + e).item() - call(X - e).item()) / (2 * step)
        assert g.data[i, j] == pytest.approx(slope, rel=1e-6, abs=1e-6)


def test_without_create_graph_nothing_is_recorded():
    x = Tensor(X, requires_grad=True)
    assert not jacobian(vector, x).requires_grad and not hessian(scalar, x).requires_grad
    assert not hvp(scalar, x, V).requires_grad and not jvp(vector, x, V)[1].requires_grad
    assert not vjp(vector, x, U)[1][0].requires_grad and x.grad is None


def test_other_library(other_library):
    x, v = other_library(X), other_library(V)
    pairs = [
        (jacobian(vector, x), jacobian(vector, X)),
        (hessian(scalar, x), hessian(scalar, X)),
        (hvp(scalar, x, v), hvp(scalar, X, V)),
        (jvp(vector, x, v)[1], jvp(vector, X, V)[1]),
        (jvp(lambda x, y: x * 2, (x, x), (v, v))[1], Tensor(2 * V)),
        (jacobian(lambda x: x[:0], x), Tensor(np.zeros((0, 3, 2, 3)))),
        (hessian(lambda x: x.sum(), x), Tensor(np.zeros((2, 3, 2, 3)))),
    ]
    for there, here in pairs:
        assert type(there.data).__module__ == "cupy"
        np.testing.assert_allclose(there.data.get(), here.data, atol=1e-12)


def test_they_record_inside_no_grad():
    with no_grad():
        np.testing.assert_array_equal(jacobian(lambda x: x * 2, X[0]).data, 2 * np.eye(3))
        np.testing.assert_allclose(hvp(lambda x: (x**2).sum(), X, V).data, 2 * V)
        np.testing.assert_allclose(jvp(lambda x: x * x, X, V)[1].data, 2 * X * V)
        np.testing.assert_allclose(vjp(lambda x: x * x, X, V)[1][0].data, 2 * X * V)


def test_directions_may_be_tensors_that_are_differentiated():
    v = Tensor(V, requires_grad=True)
    (g,) = grad(hvp(lambda x: (x**2).sum(), X, v, create_graph=True).sum(), v)
    np.testing.assert_array_equal(g.data, np.full((2, 3), 2.0))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: jvp(pair, (X, Y), (V,)),
            ValueError,
            "vs: expected one direction for each of the 2 arguments, got 1",
        ),
        (
            lambda: jvp(vector, X, V[:, :1]),
            ValueError,
            r"v: expected a direction of shape \(2, 3\), got \(2, 1\)",
        ),
        (lambda: hvp(scalar, X, V[0]), ValueError, r"v: expected a direction of shape \(2, 3\), got \(3,\)"),
        (lambda: vjp(vector, X, V), ValueError, r"gradient: expected shape \(2, 2\), got \(2, 3\)"),
        (
            lambda: vjp(lambda x: X, X, U),
            TypeError,
            "f: expected a function that returns a Tensor, got ndarray",
        ),
        (
            lambda: jacobian(lambda x: 3, X),
            TypeError,
            "f: expected a function that returns a Tensor, got int",
        ),
        (
            lambda: hessian(vector, X),
            RuntimeError,
            r"gradient: must be given for an output of shape \(2, 2\)",
        ),
        (lambda: hvp(vector, X, V), RuntimeError, r"gradient: must be given for an output of shape \(2, 2\)"),
        (
            lambda: jacobian(vector, np.arange(6).reshape(2, 3)),
            TypeError,
            "requires_grad: only floats and complex numbers",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
