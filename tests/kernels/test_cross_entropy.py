"""`minattn.kernels.cross_entropy` against PyTorch and finite differences."""

import importlib

import numpy as np
import pytest

from minattn import kernels
from minattn.autograd import Tensor, grad
from tests.autograd import case as checks
from tests.kernels.cases import CROSS_ENTROPY


@pytest.fixture(autouse=True, params=["compiled", "reference"])
def form(request, monkeypatch):
    """Both forms, whatever the size."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    module = importlib.import_module("minattn.kernels.cross_entropy")
    monkeypatch.setattr(module, "SMALL", 0 if request.param == "compiled" else 10**9)


@checks.each(CROSS_ENTROPY)
def test_samples(case):
    checks.check_samples(case)


@checks.each(CROSS_ENTROPY)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each(CROSS_ENTROPY)
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(CROSS_ENTROPY)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(CROSS_ENTROPY)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(CROSS_ENTROPY)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def test_by_hand():
    logits = np.log([[1.0, 2, 5], [4, 4, 2]])
    np.testing.assert_allclose(kernels.cross_entropy(logits, [2, 0], reduction="none"), -np.log([5 / 8, 0.4]))
    np.testing.assert_allclose(kernels.cross_entropy(logits, [2, 0]), -np.log([5 / 8, 0.4]).mean())
    np.testing.assert_allclose(
        kernels.cross_entropy(logits, [2, 0], reduction="sum"), -np.log([5 / 8, 0.4]).sum()
    )
    smooth = kernels.cross_entropy(logits[:1], [2], label_smoothing=0.3)
    np.testing.assert_allclose(smooth, -(0.8 * np.log(5 / 8) + 0.1 * np.log(2 / 8) + 0.1 * np.log(1 / 8)))


def test_large_logits_do_not_overflow():
    logits = Tensor(np.array([[1e4, -1e4], [-1e4, 1e4]]), requires_grad=True)
    loss = kernels.cross_entropy(logits, [0, 0], reduction="none")
    np.testing.assert_array_equal(loss.data, [0, 2e4])
    np.testing.assert_array_equal(grad(loss, logits, np.ones(2))[0].data, [[0, 0], [-1, 1]])


def test_classes_ruled_out_by_minus_infinity():
    logits = Tensor(np.array([[0.0, -np.inf, 0.0]]), requires_grad=True)
    loss = kernels.cross_entropy(logits, [2])
    np.testing.assert_allclose(loss.data, np.log(2))
    np.testing.assert_allclose(grad(loss, logits)[0].data, [[0.5, 0, -0.5]])
    assert kernels.cross_entropy(logits.data, [1]) == np.inf


def test_ignored_positions_count_for_nothing():
    rng = np.random.default_rng(0)
    logits = Tensor(rng.standard_normal((4, 3)), requires_grad=True)
    loss = kernels.cross_entropy(logits, np.array([0, -100, 2, -100]), label_smoothing=0.1)
    np.testing.assert_allclose(
        loss.data, kernels.cross_entropy(logits.data[[0, 2]], [0, 2], label_smoothing=0.1)
    )
    (g,) = grad(loss, logits)
    assert not g.data[[1, 3]].any() and g.data[[0, 2]].all()
    assert kernels.cross_entropy(logits, [7, 7, 7, 7], ignore_index=7, reduction="sum").data == 0
    with pytest.raises(ValueError, match=r"target: every position is ignored \(ignore_index=7\)"):
        kernels.cross_entropy(logits, [7, 7, 7, 7], ignore_index=7)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target": [0, 1]}, r"target: expected integers of shape \(3,\), got int64 \(2,\)"),
        ({"target": [0.0, 1, 1]}, r"target: expected integers of shape \(3,\), got float64 \(3,\)"),
        ({"target": [0, 1, 4]}, r"target: expected classes in \[0, 4\) or ignore_index=-100, got others"),
        ({"target": [0, 1, -1]}, r"target: expected classes in \[0, 4\)"),
        ({"reduction": "max"}, r"reduction: expected \"mean\", \"sum\" or \"none\", got 'max'"),
        ({"label_smoothing": 1.5}, r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing: expected a number in \[0, 1\], got -0.1"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        kernels.cross_entropy(np.zeros((3, 4)), **{"target": [0, 1, 3], **options})


def test_label_smoothing_takes_both_ends():
    assert np.isfinite(kernels.cross_entropy(np.zeros((3, 4)), [0, 1, 3], label_smoothing=1.0))
    assert (
        kernels.cross_entropy(np.zeros((3, 4)), Tensor(np.array([0, 1, 3])), label_smoothing=0.0).shape == ()
    )


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_large_vocabulary(dtype, tolerance, form, monkeypatch):
    """Rows that are no multiple of a vector, ignored positions, smoothing: one form is the other."""
    rng = np.random.default_rng(0)
    x = (5 * rng.standard_normal((2, 3, 1003))).astype(dtype)
    target, g = rng.integers(0, 1003, (2, 3)), rng.standard_normal((2, 3)).astype(dtype)
    target[1, 0] = -100
    module = importlib.import_module("minattn.kernels.cross_entropy")
    for smoothing in (0.0, 0.3, 1.0):
        found = []
        for small in (module.SMALL, 10**9):
            monkeypatch.setattr(module, "SMALL", small)
            logits = Tensor(x, requires_grad=True)
            loss = kernels.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
            loss.backward(g)
            found.append((loss.data, logits.grad))
        assert found[0][0].dtype == dtype and found[0][0][1, 0] == 0 and not found[0][1][1, 0].any()
        for got, want in zip(*found, strict=True):
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def test_views_and_integers_of_any_size(form):
    rng = np.random.default_rng(1)
    x, target = rng.standard_normal((7, 6)), np.array([0, 3, 6, 2, 1, 4], np.uint8)
    logits = Tensor(x.T, requires_grad=True)
    loss = kernels.cross_entropy(logits, target, reduction="sum")
    p = np.exp(x.T) / np.exp(x.T).sum(1, keepdims=True)
    np.testing.assert_allclose(loss.item(), -np.log(p[np.arange(6), target]).sum(), rtol=1e-13)
    loss.backward()
    np.testing.assert_allclose(logits.grad, p - np.eye(7)[target], rtol=0, atol=1e-13)


def test_a_number_that_is_none_is_not_hidden(form):
    x = np.zeros((2, 5))
    x[0, 3] = np.nan
    loss = kernels.cross_entropy(x, [0, 1], reduction="none")
    assert np.isnan(loss[0]) and loss[1] == pytest.approx(np.log(5))
