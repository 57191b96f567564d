"""State graph: the recursion against every path, transitions against loops, PyTorch as judge."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor, grad, log_softmax, where
from minattn.kernels import cross_entropy
from minattn.testing import check_grads
from minattn.transformer.state_graph import (
    dag_alignment_loss,
    naive_dag_alignment,
    naive_transition_matrix,
    transition_matrix,
    viterbi,
)

pytestmark = pytest.mark.paper(180)

SIZES = [  # B, C, S, D/C, V, m
    (1, 1, 1, 1, 2, 1),
    (1, 1, 2, 1, 3, 2),
    (2, 2, 5, 3, 4, 3),
    (3, 3, 7, 2, 3, 5),
    (1, 4, 10, 1, 6, 4),
    (2, 1, 6, 5, 2, 6),
]


def graph(B, C, S, E, V, m, seed=0):
    """q, k, gate, label scores of the states, and targets."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((B, C, S, E)), rng.standard_normal((B, C, S, E)),
            rng.standard_normal((B, S, C)), rng.standard_normal((B, S, V)), rng.integers(0, V, (B, m)))


def graph_of(*size, seed=0):
    """ln p (B, S, V), targets (B, m), ln E (B, S, S)."""
    q, k, gate, scores, y = graph(*size, seed=seed)
    return np.asarray(log_softmax(scores, -1)), y, np.asarray(transition_matrix(q, k, gate))


def spoken(log_p, y):
    """ln p(y_i | u) (B, m, S), by loops."""
    return np.array([[[row[u, label] for u in range(len(row))] for label in labels]
                     for row, labels in zip(log_p, y, strict=True)])


# ---- transitions


@pytest.mark.parametrize("size", SIZES)
def test_transitions_equal_loops(size):
    q, k, gate, *_ = graph(*size)
    got = np.exp(transition_matrix(q, k, gate))
    want = np.stack([naive_transition_matrix(*x) for x in zip(q, k, gate, strict=True)])
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    S = size[2]
    np.testing.assert_allclose(got.sum(2)[:, :-1], np.ones((size[0], S - 1)), rtol=1e-12)
    assert not np.tril(got).any() and not got[:, -1].any()
    if S > 2:
        assert 0.01 < got[0, 0, 1] < 0.99  # neither one-hot nor the same for all
        assert np.ptp(got[0, 0, 1:]) > 1e-3


def test_transitions_of_shorter_graphs_in_a_batch():
    q, k, gate, *_ = graph(3, 2, 6, 3, 2, 2)
    whole = np.asarray(transition_matrix(q, k, gate, [6, 4, 1]))
    for b, n in enumerate([6, 4, 1]):
        alone = np.asarray(transition_matrix(q[b:b + 1, :, :n], k[b:b + 1, :, :n], gate[b:b + 1, :n]))[0]
        np.testing.assert_allclose(whole[b, :n, :n], alone, rtol=1e-13)
        assert (whole[b, n:] == -np.inf).all() and (whole[b, :, n:] == -np.inf).all()


def test_transitions_have_derivatives_to_second_order():
    q, k, gate, *_ = graph(2, 2, 4, 3, 2, 2)

    def reached(q, k, gate):
        E = transition_matrix(q, k, gate, [4, 3])
        return where(E.data > -np.inf, E, 0)

    check_grads(reached, q, k, gate)


def test_transitions_with_scores_far_apart_stay_finite():
    q, k, gate, *_ = graph(1, 2, 5, 4, 2, 2)
    E = np.asarray(transition_matrix(50 * q, 50 * k, 50 * gate))
    assert np.isfinite(E[0][np.triu_indices(5, 1)]).all() and E[0][np.triu_indices(5, 1)].min() < -100
    np.testing.assert_allclose(np.exp(E).sum(2)[0, :-1], 1, rtol=1e-12)


def test_one_chunk_is_attention_to_later_states():
    """With C = 1 the gate is 1 and E the weights of a head that sees what comes after it."""
    from minattn.attention import attention

    q, k, gate, *_ = graph(2, 1, 6, 3, 2, 2)
    _, weights = attention(q, k, k, mask_mod=lambda b, h, i, j: j > i, return_weights=True)
    np.testing.assert_allclose(np.exp(transition_matrix(q, k, gate)), weights[:, 0], atol=1e-14)


# ---- the loss


@pytest.mark.parametrize("size", SIZES)
def test_loss_equals_enumeration(size):
    log_p, y, E = graph_of(*size)
    want = [naive_dag_alignment(*x)[0] for x in zip(np.exp(log_p), y, np.exp(E), strict=True)]
    m = size[-1]
    np.testing.assert_allclose(dag_alignment_loss(log_p, y, E, reduction="none") / m, want, rtol=1e-10)
    np.testing.assert_allclose(dag_alignment_loss(log_p, y, E), np.mean(want), rtol=1e-10)
    np.testing.assert_allclose(dag_alignment_loss(log_p, y, E, reduction="sum"), m * np.sum(want), rtol=1e-10)


@pytest.mark.parametrize("size", SIZES[1:])
def test_gradients_equal_those_of_enumeration(size):
    """Differences of the enumeration along random directions of ln p and ln E."""
    log_p, y, E = graph_of(*size, seed=3)
    rng = np.random.default_rng(1)
    u, upper = rng.standard_normal(size[0]), np.triu(np.ones(E.shape[1:], bool), 1)
    a, b = Tensor(log_p, requires_grad=True), Tensor(E, requires_grad=True)
    got = grad(dag_alignment_loss(a, y, b, reduction="none"), [a, b], u)
    assert not got[1].data[:, ~upper].any()
    for i, x in enumerate((log_p, E)):
        v = rng.standard_normal(x.shape) * (1 if i == 0 else upper)
        ends = []
        for h in (1e-6, -1e-6):
            moved = [log_p, E]
            moved[i] = np.where(x > -np.inf, x + h * v, x)
            naive = [naive_dag_alignment(np.exp(p), t, np.exp(e))[0] for p, t, e in zip(
                moved[0], y, moved[1], strict=True)]
            ends.append(size[-1] * np.dot(u, naive))
        np.testing.assert_allclose((got[i].data * v).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)


def test_gradients_equal_pytorchs_through_the_enumeration():
    """To 1e-10: PyTorch differentiates the sum over paths, written out, back to the scores."""
    torch = pytest.importorskip("torch")
    B, C, S, E, V, m = 2, 2, 6, 3, 4, 4
    q, k, gate, scores, y = graph(B, C, S, E, V, m)
    ours = [Tensor(x, requires_grad=True) for x in (q, k, gate, scores)]
    u = np.random.default_rng(2).standard_normal(B)
    loss = dag_alignment_loss(log_softmax(ours[3], -1), y, transition_matrix(*ours[:3]), reduction="none")
    loss.backward(u)
    theirs = [torch.tensor(x, requires_grad=True) for x in (q, k, gate, scores)]
    tq, tk, tg, ts = theirs
    hidden = torch.tril(torch.ones(S, S, dtype=bool))
    weights = (tq @ tk.mT / E**0.5).masked_fill(hidden, -1e9).softmax(-1)
    edges, p = torch.einsum("bcuv,buc->buv", weights, tg.softmax(-1)), ts.softmax(-1)
    total = []
    for b in range(B):
        terms = []
        for i, j in combinations(range(1, S - 1), 2):
            path = (0, i, j, S - 1)
            ways = [edges[b, v, w] for v, w in pairwise(path)]
            terms.append(torch.stack([p[b, s, t] for s, t in zip(path, y[b], strict=True)] + ways).prod())
        total.append(-torch.stack(terms).sum().log())
    total = torch.stack(total)
    total.backward(torch.tensor(u))
    np.testing.assert_allclose(loss.data, total.detach().numpy(), rtol=1e-10)
    for mine, its in zip(ours, theirs, strict=True):
        assert np.abs(mine.grad).max() > 1e-3
        np.testing.assert_allclose(mine.grad, its.grad.numpy(), rtol=1e-10, atol=1e-10)


def test_loss_to_second_order():
    q, k, gate, scores, y = graph(2, 2, 5, 2, 3, 3)

    def loss(q, k, gate, scores):
        return dag_alignment_loss(log_softmax(scores, -1), y, transition_matrix(q, k, gate, [5, 4]), [3, 2],
                                  [5, 4])

    check_grads(loss, q, k, gate, scores)


def test_a_batch_of_different_lengths_equals_its_rows():
    q, k, gate, scores, y = graph(3, 2, 8, 3, 4, 5)
    log_p, m, s = np.asarray(log_softmax(scores, -1)), [5, 2, 3], [8, 6, 3]
    E = np.asarray(transition_matrix(q, k, gate, s))
    got = dag_alignment_loss(log_p, y, E, m, s, reduction="none")
    alone = [dag_alignment_loss(log_p[b:b + 1, :s[b]], y[b:b + 1, :m[b]], E[b:b + 1, :s[b], :s[b]]).item()
             for b in range(3)]
    np.testing.assert_allclose(got / m, alone, rtol=1e-12)
    np.testing.assert_allclose(dag_alignment_loss(log_p, y, E, m, s), np.mean(alone), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(S=st.integers(2, 5), V=st.integers(1, 3), C=st.integers(1, 2), seed=st.integers(0, 10**6))
def test_probabilities_of_all_strings_sum_to_one(S, V, C, seed):
    """Over all lengths 2 … S; for one length alone the sum is at most one."""
    q, k, gate, scores, _ = graph(1, C, S, 2, V, 1, seed=seed)
    E, log_p, total = transition_matrix(2 * q, k, gate), log_softmax(2 * scores, -1), 0.0
    for m in range(2, S + 1):
        strings = np.array(list(product(range(V), repeat=m)))
        n = len(strings)
        of_length = np.exp(-dag_alignment_loss(np.repeat(log_p, n, 0), strings, np.repeat(E, n, 0),
                                               reduction="none")).sum()
        assert 0 < of_length <= 1 + 1e-12
        total += of_length
    np.testing.assert_allclose(total, 1, rtol=1e-10)


@pytest.mark.parametrize("m", [2, 3, 6])
def test_one_state_a_gap_is_cross_entropy_minus_transitions(m):
    """k = 1: as many states as labels leave one path, and PyTorch's cross-entropy judges it."""
    torch = pytest.importorskip("torch")
    log_p, y, E = graph_of(3, 2, m, 3, 5, m)
    steps = sum(E[:, i, i + 1] for i in range(m - 1))
    entropy = torch.nn.functional.cross_entropy(torch.tensor(log_p).reshape(3 * m, 5),
                                                torch.tensor(y).reshape(-1), reduction="none")
    want = entropy.reshape(3, m).sum(1).numpy() - steps
    np.testing.assert_allclose(m * dag_alignment_loss(log_p, y, E), want.mean(), rtol=1e-10)
    ours = cross_entropy(log_p, y, reduction="sum") - steps.sum()
    np.testing.assert_allclose(dag_alignment_loss(log_p, y, E, reduction="sum"), ours, rtol=1e-10)


def test_no_path_costs_infinitely_much_and_moves_nothing():
    log_p, y, E = graph_of(2, 1, 3, 2, 2, 4)
    a = Tensor(log_p, requires_grad=True)
    loss = dag_alignment_loss(a, y, E)  # four labels, three states
    assert loss.item() == np.inf
    np.testing.assert_array_equal(grad(loss, a)[0].data, 0)
    assert dag_alignment_loss(log_p, y[:, :1], E).item() == np.inf  # a path must begin and end


def test_the_library_and_the_precision_are_those_of_the_input():
    log_p, y, E = graph_of(2, 2, 5, 3, 4, 3)
    narrow = dag_alignment_loss(log_p.astype(np.float32), y, E.astype(np.float32))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, dag_alignment_loss(log_p, y, E), rtol=1e-5)
    q, k, gate, *_ = (x.astype(np.float32) for x in graph(1, 1, 3, 2, 2, 2))
    assert transition_matrix(q, k, gate).dtype == np.float32


# ---- the best path


@pytest.mark.parametrize("size", SIZES)
def test_viterbi_equals_enumeration(size):
    log_p, y, E = graph_of(*size, seed=5)
    paths, scores = viterbi(spoken(log_p, y), E)
    assert paths.dtype.kind == "i"
    for b in range(size[0]):
        _, path, p = naive_dag_alignment(np.exp(log_p[b]), y[b], np.exp(E[b]))
        assert tuple(paths[b]) == path
        np.testing.assert_allclose(np.exp(scores[b]), p, rtol=1e-12)


def test_viterbi_of_different_lengths():
    log_p, y, E = graph_of(4, 2, 7, 3, 4, 5, seed=6)
    m, s = [5, 2, 3, 1], [7, 5, 3, 1]
    paths, scores = viterbi(spoken(log_p, y), E, m, s)
    for b in range(4):
        alone = viterbi(spoken(log_p, y)[b:b + 1, :m[b], :s[b]], E[b:b + 1, :s[b], :s[b]])
        np.testing.assert_array_equal(paths[b], [*alone[0][0], *[-1] * (5 - m[b])])
        np.testing.assert_allclose(scores[b], alone[1][0])
    assert paths[1, 1] == 4 and paths[2, 2] == 2


def test_viterbi_without_a_path():
    log_p, y, E = graph_of(2, 1, 3, 2, 2, 4)
    paths, scores = viterbi(spoken(log_p, y), E, [4, 1], [3, 2])
    np.testing.assert_array_equal(paths, -1)
    np.testing.assert_array_equal(scores, -np.inf)


def test_viterbi_reads_no_edge_backwards():
    log_p, y, E = graph_of(1, 1, 4, 2, 2, 3)
    open_ended = np.where(np.tril(np.ones((4, 4), bool)), 5.0, E)
    np.testing.assert_array_equal(viterbi(spoken(log_p, y), open_ended)[0], viterbi(spoken(log_p, y), E)[0])


# ---- bad input


def test_bad_input():
    q, k, gate, scores, y = graph(2, 2, 5, 3, 4, 3)
    E, log_p = transition_matrix(q, k, gate), log_softmax(scores, -1)
    for call, message in [
        (lambda: transition_matrix(q, k, gate[:, :, :1]), "gate: expected shape (2, 5, 2), got (2, 5, 1)"),
        (lambda: transition_matrix(q, k, gate, [6, 5]), "lengths: expected values in [1, 5], got [6 5]"),
        (lambda: dag_alignment_loss(log_p, y, E, reduction="max"),
         'reduction: expected "mean", "sum" or "none", got \'max\''),
        (lambda: dag_alignment_loss(log_p[0], y, E), "log_probs: expected (B, S, V), got shape (5, 4)"),
        (lambda: dag_alignment_loss(log_p, y[:1], E),
         "targets: expected integers of shape (2, M), got int64 (1, 3)"),
        (lambda: dag_alignment_loss(log_p, y * 1.0, E),
         "targets: expected integers of shape (2, M), got float64 (2, 3)"),
        (lambda: dag_alignment_loss(log_p, y[0], E),
         "targets: expected integers of shape (2, M), got int64 (3,)"),
        (lambda: dag_alignment_loss(log_p, np.array([[0, 1], [2, 4]]), E),
         "targets: expected labels in [0, 4), got [0, 4]"),
        (lambda: dag_alignment_loss(log_p, np.array([[0, 1], [2, -1]]), E),
         "targets: expected labels in [0, 4), got [-1, 2]"),
        (lambda: dag_alignment_loss(log_p, y, E, [3, 4]),
         "target_lengths: expected values in [1, 3], got [3 4]"),
        (lambda: dag_alignment_loss(log_p, y, E, None, [3, 6]),
         "state_lengths: expected values in [1, 5], got [3 6]"),
        (lambda: viterbi(E, E[:, :4]),
         "transitions: expected (B, S, S) for emissions (B, M, S), got (2, 4, 5) for (2, 5, 5)"),
        (lambda: viterbi(E, E, [0, 1]), "label_lengths: expected values in [1, 5], got [0 1]"),
        (lambda: viterbi(E, E, None, [0, 1]), "state_lengths: expected values in [1, 5], got [0 1]"),
    ]:
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message
