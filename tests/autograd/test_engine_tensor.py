"""Tensor beside NumPy, in Python's protocols, and as a base class."""

import copy
import pickle

import numpy as np
import pytest

from minattn.autograd import Tensor, grad


@pytest.fixture
def matrix():
    return Tensor(np.array([[1.0, 2], [3, 4]]), requires_grad=True)


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
            RuntimeError, match=r"^numpy: this tensor requires a gradient; call \.detach\(\)\.numpy\(\)"
        ):
            call(matrix)
    assert constant.numpy() is matrix.data


def test_no_assignment_in_place(matrix):
    for key in (0, (0, 1), slice(None), matrix.data > 2):
        with pytest.raises(
            TypeError, match=r"^a Tensor is not changed in place: use where.* or scatter_add.* a new Tensor$"
        ):
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
