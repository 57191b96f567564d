"""Tensor's operators and methods, and its moves between dtypes and devices."""

import importlib
import sys
import types

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, grad

module = importlib.import_module("minattn.autograd.tensor")  # the name also stands for a function

OPERATORS = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "**": lambda x, y: x**y,
    "@": lambda x, y: x @ y,
}
COMPARISONS = {
    "<": lambda x, y: x < y,
    "<=": lambda x, y: x <= y,
    ">": lambda x, y: x > y,
    ">=": lambda x, y: x >= y,
    "==": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
}


def variable(values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


@pytest.fixture
def matrix():
    return variable([[1.0, 2], [3, 4]])


# ---- operators ----
@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
def test_operators_take_tensors_arrays_and_lists(op, matrix):
    other = np.array([[2.0, 1], [1, 3]])
    for left, right in [(matrix, Tensor(other)), (matrix, other), (Tensor(other), matrix), (other, matrix)]:
        out = op(left, right)
        assert type(out) is Tensor and out.requires_grad, "an array beside a Tensor must not detach it"
        want = op(
            getattr(left, "data", left) if isinstance(left, Tensor) else left,
            right.data if isinstance(right, Tensor) else right,
        )
        np.testing.assert_array_equal(out.data, want)
        assert grad(out, matrix, np.ones((2, 2)))[0].data.any()
    narrow = variable([[1.0, 2], [3, 4]], np.float32)
    for out in (op(narrow, other.tolist()), op(other.tolist(), narrow)):
        assert out.dtype == np.float32 and out.requires_grad


@pytest.mark.parametrize("name", ["+", "-", "*", "/", "**"])
def test_operators_take_numbers(name, matrix):
    op = OPERATORS[name]
    for number in (2, 2.0, np.float64(2), np.int32(2), np.array(2.0)):
        np.testing.assert_array_equal(op(matrix, number).data, op(matrix.data, 2))
        np.testing.assert_array_equal(op(number, matrix).data, op(2, matrix.data))
        assert op(number, matrix).requires_grad and op(number, matrix).dtype == np.float64


def test_order_of_the_operands_of_a_reflected_operator():
    reflected = module._reflected(lambda x, y: (x, y))
    assert reflected("tensor", "other") == ("other", "tensor")


def test_unary_operators(matrix):
    np.testing.assert_array_equal((-matrix).data, -matrix.data)
    np.testing.assert_array_equal(abs(-matrix).data, matrix.data)
    assert (-matrix).requires_grad


@pytest.mark.parametrize("number", [2, 2.5, np.float64(2)])
def test_matmul_refuses_numbers(number, matrix):
    for call in (lambda: matrix @ number, lambda: number @ matrix):
        with pytest.raises(ValueError, match="matmul: expected vectors or matrices, got shapes"):
            call()


def test_augmented_assignment_makes_a_new_tensor(matrix):
    x, before = matrix, matrix.data.copy()
    x += 1
    x *= np.ones((2, 2))
    assert x is not matrix and x.requires_grad
    np.testing.assert_array_equal(matrix.data, before)
    a = np.ones((2, 2))
    with pytest.raises(TypeError, match="does not support ufuncs"):
        a += matrix
    assert (a == 1).all()


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_give_plain_arrays(name, matrix):
    op = COMPARISONS[name]
    other = np.array([[1.0, 3], [2, 4]])
    for left, right in [
        (matrix, other),
        (matrix, Tensor(other)),
        (matrix, 2),
        (other, matrix),
        (3.0, matrix),
    ]:
        out = op(left, right)
        assert type(out) is np.ndarray and out.dtype == bool
        np.testing.assert_array_equal(
            out, op(*(t.data if isinstance(t, Tensor) else t for t in (left, right)))
        )


def test_comparison_reads_the_named_method():
    less = module._comparison("__lt__")
    assert less(Tensor(np.array([1, 2])), Tensor(np.array([2, 2]))).tolist() == [True, False]
    assert less(Tensor(np.array([1, 2])), 2).tolist() == [True, False]


def test_hash_is_identity(matrix):
    assert len({matrix, Tensor(matrix.data), matrix}) == 2 and hash(matrix) == hash(matrix)


# ---- methods ----
METHODS = {
    "sum": ((0, True), {}),
    "mean": ((), {"dim": 1, "keepdim": True}),
    "var": ((1, 0), {}),
    "std": ((1,), {"correction": 0}),
    "amax": ((0,), {}),
    "amin": ((0,), {}),
    "max": ((1,), {}),
    "min": ((), {"dim": 0}),
    "argmax": ((1,), {}),
    "argmin": ((), {}),
    "logsumexp": ((1,), {}),
    "norm": ((1, 0), {}),
    "softmax": ((), {"dim": 0}),
    "log_softmax": ((0,), {}),
    "cumsum": ((0,), {}),
    "reshape": ((4,), {}),
    "permute": ((1, 0), {}),
    "transpose": ((0, 1), {}),
    "swapaxes": ((0, 1), {}),
    "expand": ((3, 2, 2), {}),
    "unsqueeze": ((0,), {}),
    "squeeze": ((), {}),
    "split": ((1,), {"dim": 1}),
    "chunk": ((2,), {}),
    "pad": ((((1, 0), (0, 1)),), {}),
    "roll": ((1, 0), {}),
    "flip": ((0,), {}),
    "tril": ((), {}),
    "triu": ((1,), {}),
    "repeat_interleave": ((2, 0), {}),
    "gather": ((0, [[1, 0]]), {}),
    "scatter_add": ((0, [[1, 0]], np.ones((1, 2))), {}),
    "sort": ((), {"descending": True}),
    "topk": ((1,), {}),
    "matmul": ((np.eye(2),), {}),
    "inverse": ((), {}),
    "clip": ((1.5, 3), {}),
    "gelu": (("tanh",), {}),
    "maximum": ((2.0,), {}),
    "minimum": ((2.0,), {}),
    **{
        name: ((), {})
        for name in "abs erf exp log log1p sqrt sign sin cos tanh sigmoid softplus relu silu".split()
    },
}


def as_list(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [p.data if isinstance(p, Tensor) else np.asarray(p) for p in parts]


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_the_functions(name, matrix):
    args, options = METHODS[name]
    function = getattr(ag, {"swapaxes": "transpose"}.get(name, name))
    for got, want in zip(
        as_list(getattr(matrix, name)(*args, **options)),
        as_list(function(matrix.data, *args, **options)),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


def test_every_method_is_listed():
    listed = {name for names in module._METHODS.values() for name in names.split()} | {"swapaxes"}
    assert listed == set(METHODS)


def test_transposes():
    x = Tensor(np.zeros((2, 3, 4)))
    assert x.T.shape == (4, 3, 2) and x.mT.shape == (2, 4, 3) and Tensor(1.0).T.shape == ()


def test_to_another_dtype(matrix):
    assert matrix.to(np.float64) is matrix and matrix.double() is matrix
    for narrow in (matrix.float(), matrix.to("float32"), matrix.to(np.float32), matrix.to(np.dtype("f4"))):
        assert narrow.dtype == np.float32 and narrow.requires_grad
        assert grad(narrow, matrix, np.ones((2, 2)))[0].dtype == np.float64
    assert matrix.float().double().dtype == np.float64
    whole = matrix.to(int)
    assert whole.dtype == np.int64 and not whole.requires_grad
    assert Tensor(np.arange(3)).float().dtype == np.float32
    assert matrix.to(np.complex128).requires_grad


class OnGpu:
    """A stand-in for a CuPy array."""

    __module__ = "cupy"

    def __init__(self, values):
        self.values, self.dtype = values, values.dtype

    def get(self):
        return self.values


def test_to_another_device(matrix, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(asarray=OnGpu))
    assert matrix.to("cpu") is matrix
    there = matrix.to("gpu")
    assert isinstance(there.data, OnGpu) and there.requires_grad and there.to("gpu") is there
    np.testing.assert_array_equal(there.detach().numpy(), matrix.data)
    back = there.to("cpu")
    assert back.data is matrix.data and back.requires_grad and back.is_leaf
    assert not Tensor(matrix.data).to("gpu").to("cpu").requires_grad
    with pytest.raises(
        RuntimeError, match="to: move leaf tensors to the gpu, then compute; got a primitive's result"
    ):
        (matrix * 2).to("gpu")


def test_to_a_gpu_that_is_not_there(matrix, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r"to: no GPU can be used here \(ModuleNotFoundError: "):
        matrix.to("gpu")
