"""`minattn.autograd.shape` against PyTorch, finite differences and its own rules."""

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, grad
from tests.autograd import case as checks
from tests.autograd.cases import SHAPE


@checks.each(SHAPE)
def test_samples(case):
    checks.check_samples(case)


@checks.each(SHAPE)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each([c for c in SHAPE if c.order and c.exact])
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(SHAPE)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(SHAPE)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(SHAPE)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def test_shapes_as_arguments_or_in_one_tuple():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    assert (
        ag.reshape(x, 3, 2).shape
        == ag.reshape(x, (3, 2)).shape
        == ag.reshape(x, [3, 2]).shape
        == x.reshape(3, 2).shape
        == (3, 2)
    )
    assert ag.reshape(x, -1).shape == x.reshape((6,)).shape == (6,)
    assert ag.permute(x, 1, 0).shape == ag.permute(x, (1, 0)).shape == (3, 2)
    assert ag.expand(x, 4, 2, 3).shape == ag.expand(x, (4, -1, -1)).shape == (4, 2, 3)
    np.testing.assert_array_equal(ag.flip(x, 0, 1).data, ag.flip(x, (0, 1)).data)
    np.testing.assert_array_equal(ag.flip(x, 0, 1).data, x.data[::-1, ::-1])


def test_expand_copies_nothing():
    x = np.ones((1, 3))
    assert ag.expand(x, 1000, 3).strides[0] == 0
    t = Tensor(x)
    assert ag.expand(t, 1, 3) is t
    for scalar in (x.sum(), np.array(3, np.float32)):
        out = ag.expand(scalar, 2, 3)
        assert out.tolist() == [[3, 3, 3], [3, 3, 3]] and out.dtype == scalar.dtype


def test_split_and_chunk_by_hand():
    x = np.arange(7)
    assert [p.tolist() for p in ag.split(x, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [p.tolist() for p in ag.split(x, [1, 0, 6])] == [[0], [], [1, 2, 3, 4, 5, 6]]
    assert [p.tolist() for p in ag.chunk(x, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(ag.split(x[:0], 2)) == 1 and len(ag.chunk(x, 20)) == 7 and ag.split(x[:0], []) == ()
    assert [p.shape for p in ag.split(np.ones((2, 4)), 3, 1)] == [(2, 3), (2, 1)]
    assert [p.shape for p in ag.chunk(np.ones((2, 4)), 2, 1)] == [(2, 2), (2, 2)]


def test_pad_defaults_to_zero():
    np.testing.assert_array_equal(ag.pad(np.ones(2), ((1, 2),)), [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(ag.pad(np.ones(2), [[1, 0]], -np.inf), [-np.inf, 1, 1])


def test_defaults():
    x = np.arange(4.0).reshape(2, 2)
    assert ag.cat([x, x]).shape == (4, 2) and ag.stack([x, x, x]).shape == (3, 2, 2)
    np.testing.assert_array_equal(ag.tril(x), [[0, 0], [2, 3]])
    np.testing.assert_array_equal(ag.triu(x), [[0, 1], [0, 3]])
    np.testing.assert_array_equal(ag.roll(x, 1), [[3, 0], [1, 2]])
    assert ag.squeeze(np.ones((1, 2, 1))).shape == (2,) and ag.squeeze(np.ones((1, 2, 1)), 1).shape == (
        1,
        2,
        1,
    )
    np.testing.assert_array_equal(ag.repeat_interleave(x, 2, 0), [[0, 1], [0, 1], [2, 3], [2, 3]])
    t = Tensor(x, requires_grad=True)
    np.testing.assert_array_equal(
        grad(ag.roll(t, 1), t, np.arange(4.0).reshape(2, 2))[0].data, [[1, 2], [3, 0]]
    )


def test_roll_takes_lists():
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    u = np.random.default_rng(0).standard_normal((2, 3))
    out = ag.roll(x, [1, 1], [0, 1])
    np.testing.assert_array_equal(out.data, np.roll(x.data, (1, 1), (0, 1)))
    np.testing.assert_array_equal(grad(out, x, u)[0].data, np.roll(u, (-1, -1), (0, 1)))


def test_joining_mixes_integers_with_floats_but_not_two_precisions():
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    out = ag.cat([x, np.arange(2), [5, 6]])
    assert out.dtype == np.float32 and out.data.tolist() == [1, 1, 0, 1, 5, 6]
    assert grad(out, x, np.arange(6.0))[0].data.tolist() == [0, 1]
    with pytest.raises(TypeError, match="cat: operands must share one floating dtype"):
        ag.cat([x, np.ones(2)])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: ag.transpose(x, 0, 2), r"dim: expected an axis in \[-2, 1\], got 2"),
        (lambda x: ag.transpose(x, -3, 0), r"dim: expected an axis in \[-2, 1\], got -3"),
        (lambda x: ag.unsqueeze(x, 3), r"dim: expected an axis in \[-3, 2\], got 3"),
        (lambda x: ag.unsqueeze(x, -4), r"dim: expected an axis in \[-3, 2\], got -4"),
        (lambda x: ag.squeeze(x, 2), r"dim: expected an axis in \[-2, 1\], got 2"),
        (lambda x: ag.squeeze(x[0, 0], 0), r"dim: expected an axis"),
        (lambda x: ag.split(x, 1, 2), r"dim: expected an axis in \[-2, 1\], got 2"),
        (lambda x: ag.chunk(x, 1, 2), r"dim: expected an axis in \[-2, 1\], got 2"),
        (lambda x: ag.repeat_interleave(x, 2, 2), r"dim: expected an axis in \[-2, 1\], got 2"),
        (
            lambda x: ag.expand(x, -1, 2, 3),
            r"shape: -1 in \(-1, 2, 3\) stands for no axis of a tensor of shape \(2, 3\)",
        ),
        (lambda x: ag.expand(x, -1), r"shape: -1 in \(-1,\) stands for no axis"),
        (lambda x: ag.cat([]), "^tensors: expected at least one tensor to join, got none"),
        (lambda x: ag.stack([]), r"tensors: expected one shape, got \[\]"),
        (lambda x: ag.stack([x, x[0]]), r"tensors: expected one shape, got \[\(2, 3\), \(3,\)\]"),
        (
            lambda x: ag.split(x, [1, 2]),
            r"sizes: expected sizes that sum to 2, the size of axis 0, got \[1, 2\]",
        ),
        (lambda x: ag.split(x, [3, -1]), r"sizes: expected sizes that sum to 2"),
        (lambda x: ag.split(x, 0), r"sizes: expected sizes that sum to 2, the size of axis 0, got \[0\]"),
        (lambda x: ag.split(x, -2), r"sizes: expected sizes that sum to 2, the size of axis 0, got \[-2\]"),
        (lambda x: ag.chunk(x, 0), "chunks: expected at least 1, got 0"),
        (lambda x: ag.pad(x, ((1, 1),)), r"widths: expected 2 pairs \(before, after\), one per axis, got 1"),
        (lambda x: ag.tril(x[0]), r"x: expected matrices in the last two axes, got shape \(3,\)"),
        (lambda x: ag.triu(x[0]), r"x: expected matrices in the last two axes, got shape \(3,\)"),
        (lambda x: ag.reshape(x, 4), "cannot reshape array of size 6"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((2, 3)))
