"""Connectionist temporal classification against the sum over every path, PyTorch, differences; bad input."""

import itertools

import numpy as np
import pytest

from minattn.autograd import Tensor, log_softmax
from minattn.nn.ctc import ctc_loss
from minattn.testing import check_grads

REDUCTIONS = ["none", "sum", "mean"]


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def spelt(path, blank):
    """What a path spells: merge equal neighbours, then drop blanks."""
    return tuple(c for c, _ in itertools.groupby(path) if c != blank)


def ctc_by_enumeration(log_probs, target, blank):
    """−ln of the sum over every one of the Cᵀ paths that spell the target."""
    T, C = log_probs.shape
    total = 0.0
    for path in itertools.product(range(C), repeat=T):
        if spelt(path, blank) == tuple(target):
            total += np.exp(sum(log_probs[t, c] for t, c in enumerate(path)))
    return -np.log(total)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("target", [(), (1,), (1, 1), (1, 3), (3, 1, 3)])
def test_ctc_is_the_sum_over_all_paths(rng, target, blank):
    log_probs = np.asarray(log_softmax(2 * rng.standard_normal((5, 1, 4)), -1))
    padded = np.full((1, 3), 99)
    padded[0, : len(target)] = target
    got = ctc_loss(log_probs, padded, [5], [len(target)], blank=blank, reduction="none")
    np.testing.assert_allclose(got, [ctc_by_enumeration(log_probs[:, 0], target, blank)], rtol=1e-12)


CTC_CASES = [
    # T, C, targets' width, input lengths, target lengths
    (9, 5, 4, [9, 8, 7, 9], [4, 3, 1, 0]),
    (1, 3, 1, [1], [1]),
    (6, 2, 3, [6, 5], [3, 2]),  # one label only: every neighbour is equal
    (12, 7, 5, [12, 12, 12], [5, 5, 5]),
    (4, 4, 0, [4, 2], [0, 0]),
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("case", CTC_CASES)
def test_ctc_against_torch(rng, case, reduction):
    torch = pytest.importorskip("torch")
    T, C, L, frames, lengths = case
    x = 2 * rng.standard_normal((T, len(frames), C))
    targets = rng.integers(1, C, (len(frames), L))
    a, b = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out = ctc_loss(log_softmax(a, -1), targets, frames, lengths, reduction=reduction)
    want = torch.nn.functional.ctc_loss(b.log_softmax(-1), *map(torch.tensor, (targets, frames, lengths)),
                                        reduction=reduction)
    u = rng.standard_normal(out.shape)
    out.backward(u)
    want.backward(torch.tensor(u))
    np.testing.assert_allclose(out.data, want.detach().numpy(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=1e-10, atol=1e-10)


def test_ctc_to_second_order(rng):
    x = rng.standard_normal((5, 2, 4))

    def loss(x):
        return ctc_loss(log_softmax(x, -1), [[1, 1], [2, 3]], [5, 4], [2, 2], reduction="none")

    check_grads(loss, x, rng=rng)


def test_ctc_of_a_target_that_does_not_fit(rng):
    x = rng.standard_normal((3, 2, 4))
    rows, three = [[1, 1, 2], [1, 2, 3]], [3, 3]  # the first needs four frames
    for zero, want in ((False, np.inf), (True, 0.0)):
        t = Tensor(x, requires_grad=True)
        loss = ctc_loss(log_softmax(t, -1), rows, three, three, reduction="none", zero_infinity=zero)
        assert loss.data[0] == want and np.isfinite(loss.data[1])
        loss.backward(np.array([1.0, 1.0]))
        assert not t.grad[:, 0].any() and t.grad[:, 1].any(), "no gradient and no NaN where it does not fit"


def test_an_impossible_target_costs_infinity_by_default():
    assert ctc_loss(np.full((1, 1, 3), np.log(1 / 3)), [[1, 2]], [1], [2]) == np.inf


def test_float32_stays_float32(rng):
    x = rng.standard_normal((5, 2, 4)).astype(np.float32)
    t = Tensor(x, requires_grad=True)
    loss = ctc_loss(log_softmax(t, -1), [[1, 1], [2, 3]], [5, 4], [2, 2])
    loss.backward()
    wide = ctc_loss(log_softmax(x.astype(np.float64), -1), [[1, 1], [2, 3]], [5, 4], [2, 2])
    assert loss.dtype == t.grad.dtype == np.float32
    assert loss.item() == pytest.approx(float(wide), rel=1e-6)


def test_ctc_with_impossible_classes(rng):
    logits = rng.standard_normal((6, 1, 4))
    logits[2, 0, 1:] = -np.inf  # the third frame can only be blank
    t = Tensor(logits, requires_grad=True)
    loss = ctc_loss(log_softmax(t, -1), [[1, 2]], [6], [2])
    loss.backward()
    assert np.isfinite(loss.item()) and np.isfinite(t.grad).all()


def test_arrays_in_arrays_out():
    assert isinstance(ctc_loss(Z - np.log(4), [[1]], [3], [1]), (np.ndarray, np.generic))


Z = np.zeros((3, 1, 4))


@pytest.mark.parametrize("call, message", [
    (lambda: ctc_loss(Z[0], [[1]], [1], [1]), r"log_probs: expected \(T, B, C\)"),
    (lambda: ctc_loss(Z, [[4]], [3], [1]), r"targets: expected classes in \[0, 4\)"),
    (lambda: ctc_loss(Z, [[0]], [3], [1]), "other than the blank 0"),
    (lambda: ctc_loss(Z, [[-1]], [3], [1], blank=3), "targets: expected classes"),
    (lambda: ctc_loss(Z, [[1.0]], [3], [1]), "targets: expected integers"),
    (lambda: ctc_loss(Z, [[1]], [3.0], [1]), "input_lengths: expected 1 integers, got float64"),
    (lambda: ctc_loss(Z, [[1], [1]], [3], [1]), r"targets: expected integers of shape \(1, L\)"),
    (lambda: ctc_loss(Z, [[1]], [4], [1]), r"input_lengths: expected values in \[1, 3\]"),
    (lambda: ctc_loss(Z, [[1]], [0], [1]), "input_lengths: "),
    (lambda: ctc_loss(Z, [[1]], [3], [2]), r"target_lengths: expected values in \[0, 1\]"),
    (lambda: ctc_loss(Z, [[1]], [3, 3], [1]), "input_lengths: expected 1 integers"),
    (lambda: ctc_loss(Z, [[1]], [3], [1], blank=4), "blank: .*got 4"),
    (lambda: ctc_loss(Z, [[1]], [3], [1], reduction="avg"), "reduction: "),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
