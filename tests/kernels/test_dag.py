"""`minattn.kernels.dag` against PyTorch's autograd through the recursion, every path, and differences."""

import importlib
from itertools import combinations, pairwise

import numpy as np
import pytest

from minattn.autograd import Tensor, grad
from minattn.kernels import dispatch
from minattn.kernels.dag import checked_lengths, dag_log_likelihood
from minattn.testing import check_grads
from tests.autograd import case as checks
from tests.autograd.case import Case, torch
from tests.autograd.inputs import laid_out, normal

module = importlib.import_module("minattn.kernels.dag")

SIZES = [(1, 1, 1), (1, 2, 2), (3, 4, 9), (2, 2, 7), (4, 5, 6), (1, 5, 5), (2, 3, 3), (5, 1, 1)]
"""B, M, S: one state, one path, a band one state wide, one label fewer than states."""


def samples(rng):
    for k in range(24):
        B, M, S = SIZES[k % len(SIZES)]
        m = rng.integers(2 if M > 1 else 1, M + 1, B)
        s = np.array([rng.integers(n, S + 1) if n > 1 else 1 for n in m])
        options = {"label_lengths": m, "state_lengths": s} if k % 3 else {}
        if k % 6 == 1:
            options = {"label_lengths": m}
            options["state_lengths"] = np.full(B, S) if M > 1 else None
        yield (laid_out(rng, normal(rng, (B, M, S))), laid_out(rng, normal(rng, (B, S, S)))), options


def theirs(e, a, label_lengths=None, state_lengths=None):
    """The recursion over labels and states, one number at a time, on PyTorch's tape."""
    B, M, S = e.shape
    m = [M] * B if label_lengths is None else label_lengths.tolist()
    s = [S] * B if state_lengths is None else state_lengths.tolist()
    out = []
    for b in range(B):
        F = {0: e[b, 0, 0]}
        for i in range(1, m[b]):
            F = {u: e[b, i, u] + torch.logsumexp(torch.stack([F[v] + a[b, v, u] for v in F if v < u]), 0)
                 for u in range(1, s[b]) if any(v < u for v in F)}
        out.append(F[s[b] - 1])
    return torch.stack(out) + 0 * (e.sum() + a.sum())


DAG = [Case("dag_log_likelihood", dag_log_likelihood, theirs, samples, empty=False)]


@checks.each(DAG)
def test_samples(case):
    checks.check_samples(case)


@checks.each(DAG)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each(DAG)
def test_reference_equals_torch(case, monkeypatch):
    monkeypatch.setattr(dispatch, "have_numba", lambda: False)
    checks.check_against_torch(case)


@checks.each(DAG)
def test_derivatives(case):
    checks.check_derivatives(case, size=90)


@checks.each(DAG)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(DAG)
@pytest.mark.parametrize("numba", [True, False])
def test_single_precision(case, numba, monkeypatch):
    monkeypatch.setattr(dispatch, "have_numba", lambda: numba)
    checks.check_single_precision(case, monkeypatch)


@checks.each(DAG)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def drawn(B, M, S, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return (2 * rng.standard_normal((B, M, S))).astype(dtype), rng.standard_normal((B, S, S)).astype(dtype)


def gradients(e, a, g, *lengths):
    es, ts = Tensor(e, requires_grad=True), Tensor(a, requires_grad=True)
    out = dag_log_likelihood(es, ts, *lengths)
    return [out.data, *(x.data for x in grad(out, [es, ts], g))]


def by_paths(e, a):
    """ln of the sum over every path of one graph."""
    M, S = e.shape
    total = 0.0
    for between in combinations(range(1, S - 1), M - 2):
        path = (0, *between, S - 1)
        total += np.exp(sum(e[i, u] for i, u in enumerate(path))
                        + sum(a[v, u] for v, u in pairwise(path)))
    return np.log(total)


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("M, S", [(2, 2), (2, 7), (3, 7), (5, 8), (8, 8)])
def test_sums_over_all_paths(M, S, numba, monkeypatch):
    monkeypatch.setattr(dispatch, "have_numba", lambda: numba)
    e, a = drawn(3, M, S)
    np.testing.assert_allclose(dag_log_likelihood(e, a), [by_paths(*x) for x in zip(e, a, strict=True)],
                               rtol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("B, M, S", [(1, 1, 1), (3, 2, 5), (5, 6, 24), (2, 13, 13)])
def test_compiled_equals_reference(B, M, S, dtype, tolerance, monkeypatch):
    rng = np.random.default_rng(M)
    e, a = drawn(B, M, S, dtype)
    g = rng.standard_normal(B).astype(dtype)
    m = rng.integers(1, M + 1, B)
    s = rng.integers(1, S + 1, B)  # some with no path
    found = []
    for numba in (True, False):
        monkeypatch.setattr(dispatch, "have_numba", lambda numba=numba: numba)
        found.append(gradients(e, a, g, m, s))
    for x, y in zip(*found, strict=True):
        assert x.dtype == y.dtype == dtype
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_the_compiled_form_runs_where_it_can(monkeypatch):
    pytest.importorskip("numba")
    from minattn.kernels.cpu import dag

    launched = []
    launch = dispatch.launch
    monkeypatch.setattr(module, "launch", lambda kernel, *args: launched.append(kernel)
                        or launch(kernel, *args))
    e, a = drawn(2, 3, 5)
    gradients(e, a, np.ones(2))
    assert launched == [dag.forward, dag.backward]
    check_grads(lambda e: dag_log_likelihood(e, a), e)  # recorded derivatives are the reference's
    launched.clear()
    dag_log_likelihood(e, a.astype(np.float16).astype(np.float64)[:, ::1])
    assert launched == [dag.forward]


@pytest.mark.parametrize("numba", [True, False])
def test_no_path_is_impossible_and_has_no_gradient(numba, monkeypatch):
    monkeypatch.setattr(dispatch, "have_numba", lambda: numba)
    e, a = drawn(4, 4, 5)
    e[2] = -np.inf  # no state ever says the labels
    a[3, :, 4] = -np.inf  # nothing leads to the last state
    # too few states; one label alone
    out, de, da = gradients(e, a, np.ones(4), [4, 1, 3, 3], [3, 2, 4, 5])
    np.testing.assert_array_equal(out, [-np.inf] * 4)
    np.testing.assert_array_equal(de, 0)
    np.testing.assert_array_equal(da, 0)


@pytest.mark.parametrize("numba", [True, False])
def test_states_and_edges_ruled_out(numba, monkeypatch):
    """With −∞ at one inner state and one edge, what is left is the sum without them."""
    monkeypatch.setattr(dispatch, "have_numba", lambda: numba)
    e, a = drawn(1, 3, 5)
    e[0, 1, 2] = -np.inf
    a[0, 1, 4] = -np.inf
    out, de, da = gradients(e, a, np.array([1.5]))
    want = e[0, 0, 0] + a[0, 0, 3] + e[0, 1, 3] + a[0, 3, 4] + e[0, 2, 4]
    np.testing.assert_allclose(out, [want], rtol=1e-14)
    one = np.zeros_like(de)
    one[0, [0, 1, 2], [0, 3, 4]] = 1.5
    np.testing.assert_allclose(de, one, atol=1e-14)
    assert np.isfinite(da).all() and da[0, 0, 3] == da[0, 3, 4] == 1.5 and da.sum() == 3


@pytest.mark.parametrize("numba", [True, False])
def test_what_does_not_count_is_not_read(numba, monkeypatch):
    """The lower triangle, and everything behind the lengths, may hold anything."""
    monkeypatch.setattr(dispatch, "have_numba", lambda: numba)
    e, a = drawn(1, 5, 8)
    want = gradients(e[:, :3, :6], a[:, :6, :6], np.array([2.0]))
    a[:, *np.tril_indices(8)] = 1e6
    a[:, :, 6:], a[:, 6:], e[:, :, 6:], e[:, 3:] = 7e5, 7e5, -3e5, 9.0
    out, de, da = gradients(e, a, np.array([2.0]), [3], [6])
    np.testing.assert_allclose(out, want[0], rtol=1e-14)
    np.testing.assert_allclose(de[:, :3, :6], want[1], atol=1e-14)
    np.testing.assert_allclose(da[:, :6, :6], np.triu(want[2], 1), atol=1e-14)
    assert not de[:, 3:].any() and not de[:, :, 6:].any() and not da[:, 6:].any() and not da[:, :, 6:].any()


@pytest.mark.parametrize("numba", [True, False])
def test_probabilities_far_below_the_smallest_number(numba, monkeypatch):
    """Emissions of −500 each, paths that differ by thousands: no underflow, shares that sum to one."""
    monkeypatch.setattr(dispatch, "have_numba", lambda: numba)
    e, a = drawn(2, 6, 15)
    e *= 200
    shifted = gradients(e - 500, a, np.ones(2))
    plain = gradients(e, a, np.ones(2))
    np.testing.assert_allclose(shifted[0], plain[0] - 6 * 500, rtol=1e-13)
    assert (plain[0] - e.max() * 6 < 0).all() and np.isfinite(shifted[0]).all()
    np.testing.assert_allclose(shifted[1], plain[1], atol=1e-9)
    np.testing.assert_allclose(shifted[1].sum(2), 1, rtol=1e-12)  # some state speaks for each label
    np.testing.assert_allclose(shifted[2].sum((1, 2)), 5, rtol=1e-12)


def test_lengths():
    np.testing.assert_array_equal(checked_lengths("n", None, 3, 4), [4, 4, 4])
    found = checked_lengths("n", np.array([1, 4], np.int32), 2, 4)
    assert found.tolist() == [1, 4] and found.dtype == np.int64
    assert checked_lengths("n", np.zeros(0, int), 0, 4).shape == (0,)
    np.testing.assert_array_equal(checked_lengths("n", Tensor(np.array([2])), 1, 4), [2])


THREE, SQUARE = np.zeros((2, 3, 4)), np.zeros((2, 4, 4))


@pytest.mark.parametrize("arguments, message", [
    ((np.zeros((2, 3)), SQUARE), "emissions: expected (B, M, S), got shape (2, 3)"),
    ((THREE, np.zeros((2, 4, 3))), "transitions: expected shape (2, 4, 4), got (2, 4, 3)"),
    ((THREE, np.zeros((4, 4))), "transitions: expected shape (2, 4, 4), got (4, 4)"),
    ((THREE, SQUARE, [3]), "label_lengths: expected 2 integers, got int64 of shape (1,)"),
    ((THREE, SQUARE, [3.0, 1]), "label_lengths: expected 2 integers, got float64 of shape (2,)"),
    ((THREE, SQUARE, [3, 4]), "label_lengths: expected values in [1, 3], got [3 4]"),
    ((THREE, SQUARE, None, [0, 4]), "state_lengths: expected values in [1, 4], got [0 4]"),
])
def test_bad_input(arguments, message):
    with pytest.raises(ValueError) as caught:
        dag_log_likelihood(*arguments)
    assert str(caught.value) == message
