"""Tensor's operators and methods, its protocol with NumPy, and what a subclass may expect."""

import copy
import importlib
import pickle
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


# ---- NumPy beside Tensors ----
@pytest.mark.parametrize(
    "call", [np.exp, np.sin, np.abs, lambda x: np.add(x, 1), lambda x: np.multiply(np.ones((2, 2)), x)]
)
def test_numpys_ufuncs_raise(call, matrix):
    for x in (matrix, matrix.detach()):
        with pytest.raises(TypeError, match="does not support ufuncs"):
            call(x)


@pytest.mark.parametrize(
    "call, name",
    [
        (np.sum, "sum"),
        (np.mean, "mean"),
        (np.ravel, "ravel"),
        (np.concatenate, "concatenate"),
        (np.where, "where"),
        (lambda x: np.matmul(np.ones((2, 2)), x), "matmul|ufunc"),
        (lambda x: np.stack([x, x]), "stack"),
        (np.transpose, "transpose"),
    ],
)
def test_numpys_functions_raise_and_name_ours(call, name, matrix):
    for x in (matrix, matrix.detach()):
        with pytest.raises(
            TypeError, match=rf"numpy\.({name}) would lose the gradient: use minattn\.({name}) or |ufunc"
        ):
            call(x)


def test_arrays_from_tensors(matrix):
    constant = matrix.detach()
    assert np.asarray(constant) is matrix.data and np.asarray(constant, dtype=np.float32).dtype == np.float32
    copied = np.array(constant)
    copied[0, 0] = 9
    assert matrix.data[0, 0] == 1
    for call in (np.asarray, np.array, lambda x: x.numpy(), lambda x: np.asarray([x, x])):
        with pytest.raises(
            RuntimeError, match=r"numpy: this tensor requires a gradient; call \.detach\(\)\.numpy\(\)"
        ):
            call(matrix)
    assert constant.numpy() is matrix.data


def test_no_assignment_in_place(matrix):
    for key in (0, (0, 1), slice(None), matrix.data > 2):
        with pytest.raises(TypeError, match=r"not changed in place: use where.*index_put.*scatter_add"):
            matrix[key] = 1.0
    with pytest.raises(TypeError, match="not changed in place"):
        matrix[0] += 1


# ---- Python's protocols ----
def test_numbers():
    for shape in ((), (1,), (1, 1)):
        x = Tensor(np.full(shape, 2.5), requires_grad=True)
        assert float(x) == 2.5 and int(x) == 2 and bool(x) and x.item() == 2.5 and type(x.item()) is float
    assert not Tensor(0.0) and range(5)[Tensor(3)] == 3 and [1, 2, 3][Tensor(np.array(1))] == 2
    assert f"{Tensor(2.0):.3f}" == "2.000" and f"{Tensor(2)}" == "tensor(2)"
    for call in (float, int, bool, lambda x: x.item(), lambda x: f"{x:.2f}"):
        with pytest.raises((ValueError, TypeError)):
            call(Tensor(np.ones(2)))
    with pytest.raises(TypeError):
        [1, 2][Tensor(1.0)]


def test_sequences(matrix):
    rows = list(matrix)
    assert len(matrix) == 2 and [r.data.tolist() for r in rows] == [[1, 2], [3, 4]]
    assert all(isinstance(r, Tensor) and r.requires_grad for r in rows)
    _, b = matrix
    assert b.data.tolist() == [3, 4]
    with pytest.raises(TypeError):
        len(Tensor(1.0))


def test_properties(matrix):
    x = Tensor(np.zeros((2, 3, 4), np.float32))
    assert (x.shape, x.ndim, x.size, x.dtype, x.is_leaf) == ((2, 3, 4), 3, 24, np.float32, True)
    assert matrix.grad is None and not (matrix * 2).is_leaf


def test_repr(matrix):
    assert repr(Tensor(np.array([1.0, 2.0]))) == "tensor([1., 2.])"
    assert repr(matrix) == "tensor([[1., 2.],\n        [3., 4.]], requires_grad=True)"
    assert repr(matrix.sum()) == "tensor(10., made by sum)"
    assert repr(Tensor(np.array([1 / 3]))) == "tensor([0.3333])" and repr(Tensor(3)) == "tensor(3)"


def test_copies_and_pickles(matrix):
    for again in (copy.copy(matrix), copy.deepcopy(matrix), pickle.loads(pickle.dumps(matrix))):
        assert again.requires_grad and again is not matrix
        (again * matrix).sum().backward()
        np.testing.assert_array_equal(again.grad, matrix.data)
    assert copy.deepcopy(matrix).data is not matrix.data


def test_no_other_attributes(matrix):
    with pytest.raises(AttributeError):
        matrix.label = "x"


class Parameter(Tensor):
    """As in nn: a Tensor with a gradient and room for attributes."""

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


def test_subclasses(matrix):
    p = Parameter(np.array([1.0, 2.0]))
    p.label = "weight"
    out = matrix @ p + p * 2
    assert type(out) is Tensor and type(p[0]) is Tensor and type(p.detach()) is Tensor
    out.backward(np.ones(2))
    np.testing.assert_array_equal(p.grad, matrix.data.sum(0) + 2)
    np.testing.assert_array_equal((np.ones(2) + p).data, [2, 3])
    np.testing.assert_array_equal((p + p).data, [2, 4])
    assert type(Tensor(p)) is Tensor and Tensor(p).data is p.data
    assert grad(p * p, p, np.ones(2))[0].data.tolist() == [2, 4]
    assert pickle.loads(pickle.dumps(p)).label == "weight"
