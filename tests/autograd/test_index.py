"""`minattn.autograd.index` against PyTorch, finite differences and its own rules."""

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, grad
from tests.autograd import case as checks
from tests.autograd.cases import INDEX


@checks.each(INDEX)
def test_samples(case):
    checks.check_samples(case)


@checks.each(INDEX)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each([c for c in INDEX if c.order and c.exact])
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(INDEX)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(INDEX)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(INDEX)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def test_an_entry_named_twice_gets_both_gradients():
    x = Tensor(np.arange(3.0), requires_grad=True)
    assert grad(x[[0, 0, 2]], x, np.array([1.0, 10, 100]))[0].data.tolist() == [11, 0, 100]


def test_index_by_tensors_lists_and_masks():
    x = Tensor(np.arange(12.0).reshape(3, 4))
    i = Tensor(np.array([2, 0]))
    np.testing.assert_array_equal(x[i].data, x.data[[2, 0]])
    np.testing.assert_array_equal(x[i, [1, 1]].data, x.data[[2, 0], [1, 1]])
    np.testing.assert_array_equal(x[(i, slice(1))].data, x.data[[2, 0], :1])
    np.testing.assert_array_equal(x[Tensor(x.data > 5)].data, x.data[x.data > 5])
    assert x[[]].shape == (0, 4) and x[True].shape == (1, 3, 4)
    np.testing.assert_array_equal(x[(0, 1),].data, x.data[[0, 1]])
    with pytest.raises(IndexError):
        x[3]


def test_index_put_leaves_its_argument_alone():
    x = np.zeros((2, 3))
    out = ag.index_put(x, (0, slice(1, None)), 5)
    assert out.tolist() == [[0, 5, 5], [0, 0, 0]] and not x.any()
    assert ag.index_put(x, 1, [1, 2, 3]).tolist() == [[0, 0, 0], [1, 2, 3]]
    assert ag.index_put(x[:0], slice(None), 1).shape == (0, 3)
    assert ag.index_put(np.arange(3), 0, 0.5).tolist() == [0, 1, 2]
    for twice in ([0, 0], (slice(None), [1, 1])):
        with pytest.raises(ValueError, match=r"^index: names an entry twice, .* use scatter_add$"):
            ag.index_put(x, twice, 1)
    y = Tensor(np.zeros(3), requires_grad=True)
    gx, gy = grad(
        ag.index_put(Tensor(np.ones(4), requires_grad=True), slice(0, 3), y), [y, y], np.arange(4.0)
    )
    assert gx.data.tolist() == gy.data.tolist() == [0, 1, 2]


def test_gather_and_scatter_by_hand():
    x = np.array([[1.0, 2, 3], [4, 5, 6]])
    assert ag.gather(x, 1, [[2, 0], [1, 1]]).tolist() == [[3, 1], [5, 5]]
    assert ag.gather(x, -2, np.array([[1, 0, 1]])).tolist() == [[4, 2, 6]]
    assert ag.gather(x, 1, Tensor(np.array([[2], [0]]))).tolist() == [[3], [4]]
    assert ag.scatter_add(x, 1, [[0, 0], [2, 2]], np.ones((2, 2))).tolist() == [[3, 2, 3], [4, 5, 8]]
    assert x[0, 0] == 1


def test_segment_sum_by_hand():
    x = np.array([[1.0, 2], [3, 4], [5, 6]])
    assert ag.segment_sum(x, [2, 0, 2], 4).tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
    assert ag.segment_sum(x[:0], np.zeros(0, int), 2).tolist() == [[0, 0], [0, 0]]
    assert ag.segment_sum(x[:, 0].astype(np.float32), Tensor(np.array([1, 1, 0], np.uint8)), 2).tolist() == [
        5,
        4,
    ]


def test_one_hot():
    assert ag.one_hot([1, 0], 3).tolist() == [[0, 1, 0], [1, 0, 0]] and ag.one_hot([1], 2).dtype == np.float32
    assert (
        ag.one_hot(2, 3, np.float64).tolist() == [0, 0, 1]
        and ag.one_hot(2, 3, np.float64).dtype == np.float64
    )
    assert type(ag.one_hot(Tensor(np.array([1])), 2)) is np.ndarray


@pytest.mark.parametrize("descending", [False, True])
def test_sort_is_stable(descending):
    x = np.array([[2.0, 1, 2, 1], [0, 0, 0, 0]])
    values, indices = ag.sort(x, descending=descending)
    assert indices.tolist() == [[0, 2, 1, 3] if descending else [1, 3, 0, 2], [0, 1, 2, 3]]
    assert values.tolist() == [[2, 2, 1, 1] if descending else [1, 1, 2, 2], [0, 0, 0, 0]]
    assert ag.sort(x, 0, descending).indices.tolist()[0] == ([0, 0, 0, 0] if descending else [1, 1, 1, 1])


@pytest.mark.parametrize("descending", [False, True])
def test_sort_is_stable_on_long_axes(descending):
    x = np.random.default_rng(0).integers(0, 3, 1000).astype(float)
    values, indices = ag.sort(x, descending=descending)
    assert (np.diff(indices)[np.diff(values) == 0] > 0).all()
    assert (values == np.sort(x)[:: -1 if descending else 1]).all()


def test_topk():
    values, indices = ag.topk(np.array([[3.0, 9, 5], [1, 2, 0]]), 2)
    assert values.tolist() == [[9, 5], [2, 1]] and indices.tolist() == [[1, 2], [1, 0]]
    assert ag.topk(np.array([[3.0, 9], [4, 2]]), 1, 0).values.tolist() == [[4, 9]]
    assert ag.topk(np.ones(3), 3).indices.tolist() == [0, 1, 2] and ag.topk(np.ones(3), 0).values.shape == (
        0,
    )


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: ag.gather(x, 1, [[0.5]]), TypeError, "index: expected integers, got dtype float64"),
        (lambda x: ag.gather(x, 1, [0]), ValueError, r"index: expected 2 axes as in x, got shape \(1,\)"),
        (lambda x: ag.gather(x, 2, [[0]]), ValueError, r"dim: expected an axis in \[-2, 1\], got 2"),
        (lambda x: ag.gather(x, 1, [[3]]), ValueError, r"index: expected values in \[0, 3\), got \[3, 3\]"),
        (
            lambda x: ag.gather(x, 1, [[0, -1]]),
            ValueError,
            r"index: expected values in \[0, 3\), got \[-1, 0\]",
        ),
        (
            lambda x: ag.scatter_add(x, 0, [[2]], x),
            ValueError,
            r"index: expected values in \[0, 2\), got \[2, 2\]",
        ),
        (lambda x: ag.scatter_add(x, 1, [[0.0]], x), TypeError, "index: expected integers"),
        (
            lambda x: ag.segment_sum(x, [0, 2], 2),
            ValueError,
            r"ids: expected values in \[0, 2\), got \[0, 2\]",
        ),
        (
            lambda x: ag.segment_sum(x, [0, -1], 2),
            ValueError,
            r"ids: expected values in \[0, 2\), got \[-1, 0\]",
        ),
        (
            lambda x: ag.segment_sum(x, [0], 2),
            ValueError,
            r"ids: expected one id for each of the 2 rows, got shape \(1,\)",
        ),
        (lambda x: ag.embedding(x, [0.0]), TypeError, "ids: expected integers, got dtype float64"),
        (lambda x: ag.embedding(x, [2]), ValueError, r"ids: expected values in \[0, 2\), got \[2, 2\]"),
        (lambda x: ag.one_hot([3], 3), ValueError, r"ids: expected values in \[0, 3\), got \[3, 3\]"),
        (lambda x: ag.topk(x, 4), ValueError, "k: expected 0 ≤ k ≤ 3, the size of axis 1, got 4"),
        (lambda x: ag.topk(x, -1), ValueError, "k: expected 0 ≤ k ≤ 3"),
        (lambda x: ag.topk(x, 1, 2), ValueError, r"dim: expected an axis in \[-2, 1\], got 2"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 3)))
