"""`minattn.autograd.linalg` against PyTorch, finite differences and its own rules."""

import numpy as np
import pytest

from minattn import autograd as ag
from tests.autograd import case as checks
from tests.autograd.cases import LINALG


@checks.each(LINALG)
def test_samples(case):
    checks.check_samples(case)


@checks.each(LINALG)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each([c for c in LINALG if c.order and c.exact])
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(LINALG)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(LINALG)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(LINALG)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def test_products_by_hand():
    assert ag.matmul(np.array([1.0, 2]), np.array([3.0, 4])) == 11
    assert ag.outer(np.array([1.0, 2]), np.array([3.0, 4])).tolist() == [[3, 4], [6, 8]]
    assert ag.linear(np.array([1.0, 2]), np.array([[1.0, 1], [0, 3]]), np.array([10.0, 20])).tolist() == [
        13,
        26,
    ]
    assert ag.einsum("ij, j", np.eye(2), np.array([5.0, 6])).tolist() == [5, 6]
    assert ag.einsum("ii->", np.arange(9.0).reshape(3, 3)) == 12
    assert ag.einsum("ba", np.arange(4.0).reshape(2, 2)).tolist() == [[0, 2], [1, 3]]


def test_size_of_one_broadcasts_in_einsum():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, 4)), rng.standard_normal((1, 4))
    np.testing.assert_allclose(ag.einsum("ij,ij->j", x, y), (x * y).sum(0))
    np.testing.assert_allclose(ag.einsum("...i,...i->...", x, y[0]), (x * y).sum(1))


def test_linear_does_not_write_into_its_arguments():
    x, w, b = np.ones((2, 3)), np.ones((4, 3)), np.ones(4)
    assert (ag.linear(x, w, b) == 4).all() and (ag.linear(x, w, b) == 4).all()
    assert (b == 1).all()


def test_stacked_systems_with_one_right_side():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 3, 3)) + 3 * np.eye(3), rng.standard_normal(3)
    np.testing.assert_allclose(np.einsum("bij,bj->bi", a, ag.solve(a, b)), np.broadcast_to(b, (5, 3)))
    np.testing.assert_allclose(ag.inverse(a) @ a, np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-12)


def test_pinv_satisfies_the_four_equations_of_penrose():
    rng = np.random.default_rng(0)
    low_rank = rng.standard_normal((5, 2)) @ rng.standard_normal((2, 4))
    for a in (low_rank, low_rank.T, rng.standard_normal((3, 3)), low_rank + 1j * low_rank, np.zeros((2, 3))):
        z = ag.pinv(a)
        for left, right in (
            (a @ z @ a, a),
            (z @ a @ z, z),
            ((a @ z).conj().T, a @ z),
            ((z @ a).conj().T, z @ a),
        ):
            np.testing.assert_allclose(left, right, atol=1e-8)
    assert ag.pinv(np.ones((0, 3))).shape == (3, 0)
    assert ag.pinv(np.ones((2, 3), np.float32)).dtype == np.float32


def test_pinv_judges_each_matrix_of_a_stack():
    good = np.eye(2)
    scales = np.array([1e-3, 1e3])[:, None, None]
    np.testing.assert_allclose(ag.pinv(scales * good), good / scales)
    np.testing.assert_allclose(ag.pinv(np.ones((1, 5))), np.full((5, 1), 0.2))
    np.testing.assert_allclose(ag.pinv(np.ones((5, 1))), np.full((1, 5), 0.2))
    nearly = ag.pinv(np.stack([1e6 * np.diag([1.0, 0.5]), good]), steps=5)  # off by 10⁻⁴, of 10⁶ and of 1
    assert 1e-5 < abs(nearly[0, 1, 1] * 5e5 - 1) < 1e-3
    with pytest.raises(ValueError, match=r"steps: 2 left an error of"):
        ag.pinv(1e-6 * np.diag([1.0, 0.05]), steps=2)
    with pytest.raises(ValueError, match=r"steps: 2 left an error of"):
        ag.pinv(np.stack([1e6 * good, np.diag([1.0, 0.05])]), steps=2)
    assert ag.pinv(good, steps=1).tolist() == good.tolist()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: ag.matmul(x, x), r"matmul: inner sizes differ in \(2, 3\) @ \(2, 3\)"),
        (
            lambda x: ag.matmul(x, x[0, 0]),
            r"matmul: expected vectors or matrices, got shapes \(2, 3\) and \(\)",
        ),
        (
            lambda x: ag.matmul(x[0, 0], x),
            r"matmul: expected vectors or matrices, got shapes \(\) and \(2, 3\)",
        ),
        (lambda x: ag.matmul(x, x[:, 0]), r"matmul: inner sizes differ in \(2, 3\) @ \(2, 1\)"),
        (lambda x: ag.matmul(x[0], x), r"matmul: inner sizes differ in \(1, 3\) @ \(2, 3\)"),
        (
            lambda x: ag.linear(x, x.T),
            r"weight: expected shape \(E, D\), D the last axis of x \(2, 3\), got \(3, 2\)",
        ),
        (lambda x: ag.linear(x, x[0]), r"weight: expected shape \(E, D\).* got \(3,\)"),
        (lambda x: ag.linear(x, x, x[0]), r"bias: expected shape \(2,\), the rows of weight, got \(3,\)"),
        (lambda x: ag.einsum("ij,jk", x), r"subscripts: 'ij,jk' names 2 operands, got 1"),
        (lambda x: ag.einsum("ijk->i", x), r"subscripts: 'ijk' does not fit an operand of shape \(2, 3\)"),
        (lambda x: ag.einsum("i->i", x), r"subscripts: 'i' does not fit an operand of shape \(2, 3\)"),
        (
            lambda x: ag.einsum("ij,jk->ik", x, x),
            "Size of label 'j' for operand 1 .3. does not match previous terms .2.",
        ),
        (lambda x: ag.einsum("ii->i", x), r"subscripts: 'ii' is a diagonal, but the shape is \(2, 3\)"),
        (lambda x: ag.einsum("ii->i", x[:1]), r"subscripts: 'ii' is a diagonal, but the shape is \(1, 3\)"),
        (lambda x: ag.einsum("ij->ik", x), "output subscript 'k' which never appeared in an input"),
        (lambda x: ag.outer(x, x[0]), r"outer: expected two vectors, got shapes \(2, 3\) and \(3,\)"),
        (lambda x: ag.outer(x[0], x), r"outer: expected two vectors, got shapes \(3,\) and \(2, 3\)"),
        (lambda x: ag.solve(x, x), r"a: expected square matrices, got shape \(2, 3\)"),
        (lambda x: ag.solve(x[0], x[0]), r"a: expected square matrices, got shape \(3,\)"),
        (lambda x: ag.inverse(np.zeros((2, 2))), "[Ss]ingular"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((2, 3)))
