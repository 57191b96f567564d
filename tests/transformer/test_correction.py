"""Samplers: a move against a walk through its outcomes, MDLM as the limit, and what correction mends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor
from minattn.transformer import correction as co

pytestmark = pytest.mark.paper(196)


class Fixed:
    """A generator that hands out given numbers."""

    def __init__(self, u):
        self.u = u

    def random(self, shape):
        return np.broadcast_to(self.u, shape)


def state(rng, B=3, N=5, V=4):
    ids = rng.integers(0, V + 1, (B, N))
    ids[0, 0], ids[0, N - 1] = V, 0  # one masked, one visible
    t = rng.uniform(0.4, 1.0, (B, N))
    return ids, rng.standard_normal((B, N, V)) * 2, t, t * rng.uniform(0, 1, (B, N))


def naive_kernel(ids, logits, t, s, eta):
    """Lengths of the intervals of u that lead to each outcome, found by trying a fine grid of them."""
    grid = (np.arange(4000) + 0.5) / 4000
    out = np.zeros((*ids.shape, logits.shape[-1] + 1))
    for u in grid:
        got = co.naive_correction_move(ids, logits, t, s, eta, np.full(ids.shape, u))
        np.add.at(out, (*np.indices(ids.shape), got), 1 / len(grid))
    return out


def test_the_kernel_is_where_the_walk_ends():
    ids, logits, t, s = state(np.random.default_rng(0), 1, 4, 3)
    for eta in (0.0, 0.3, 1.0):
        got = co.correction_kernel(ids, logits, t, s, eta)
        np.testing.assert_allclose(got, naive_kernel(ids, logits, t, s, eta), rtol=0, atol=1e-3)


def test_a_kernel_by_hand():
    ids, logits = np.array([[2, 0]]), np.log([[[0.25, 0.75], [0.5, 0.5]]])
    got = co.correction_kernel(ids, logits, 0.8, 0.2, 0.4)
    np.testing.assert_allclose(got, [[[0.75 * 0.25, 0.75 * 0.75, 0.25], [0.95, 0.05, 0]]], rtol=1e-14)
    np.testing.assert_allclose(
        co.correction_kernel(ids, logits, 0.8, 0.2), co.correction_kernel(ids, logits, 0.8, 0.2, 0.015)
    )
    np.testing.assert_allclose(co.correction_kernel(ids, Tensor(logits), 0.8, 0.2, 0.4), got)


@pytest.mark.parametrize(("B", "N", "V"), [(1, 2, 2), (3, 5, 4), (2, 9, 3), (4, 3, 20)])
@pytest.mark.parametrize("eta", [0.0, 0.015, 0.5, 1.0])
def test_a_move_is_the_walk_with_the_same_numbers(B, N, V, eta):
    rng = np.random.default_rng(B + N)
    moved = np.zeros(4, int)
    for seed in range(10):
        ids, logits, t, s = state(rng, B, N, V)
        u = np.random.default_rng(seed).random((B, N))
        got = co.correction_move(np.random.default_rng(seed), ids, logits, t, s, eta)
        np.testing.assert_array_equal(got, co.naive_correction_move(ids, logits, t, s, eta, u))
        moved += [
            ((ids == V) & (got < V)).sum(),
            ((ids == V) & (got == V)).sum(),
            (ids < V).sum(),
            ((ids < V) & (got != ids)).sum(),
        ]
    assert (moved[:3] > 0).all() and (moved[3] > 0 if eta >= 0.5 else moved[3] == 0 or eta > 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_laws_of_the_kernel(seed, t, share, eta):
    ids, logits, *_ = state(np.random.default_rng(seed))
    kernel = co.correction_kernel(ids, logits, t, share * t, eta)
    np.testing.assert_allclose(kernel.sum(-1), 1, rtol=1e-12)
    visible = ids < 4
    assert (kernel >= 0).all() and not kernel[visible][:, 4].any()  # what is visible is never masked again
    assert not co.correction_kernel(ids, logits, t, 0.0, eta)[..., 4].any()  # at level 0 nothing is masked
    still = co.correction_kernel(ids, logits, t, t, eta)
    np.testing.assert_allclose(still[~visible][:, 4], 1)  # a move with s = t reveals nothing


def test_outcomes_without_probability_are_never_drawn():
    logits = np.array([[[-np.inf, 0.0, -np.inf, 1.0, -np.inf]]])
    for u in (0.0, 1e-300, 0.2, 1 - 2.0**-53):
        for s in (0.0, 0.5):
            got = co.correction_move(Fixed(u), np.array([[5]]), logits, 0.5, s, 1.0)
            assert got.item() in ((1, 3) if s == 0 else (5,))
            assert co.correction_move(Fixed(u), np.array([[0]]), logits, 0.5, 0.5, 1.0).item() in (1, 3)
    third = np.zeros((1, 1, 7))  # whose seven shares do not sum to one in floating point
    assert co.correction_move(Fixed(1 - 2.0**-53), np.array([[7]]), third, 0.5, 0.0).item() == 6
    assert co.correction_move(Fixed(0.0), np.array([[7]]), third, 0.5, 0.0).item() == 0


def test_the_kernel_computes_in_double_precision():
    ids, logits, t, s = state(np.random.default_rng(7))
    single = logits.astype(np.float32)
    got = co.correction_kernel(ids, single, t, s, 0.5)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, co.correction_kernel(ids, single.astype(np.float64), t, s, 0.5))
    np.testing.assert_allclose(
        co.correction_kernel(ids.astype(np.uint8), logits + 2000, t, s, 0.5),
        co.correction_kernel(ids, logits, t, s, 0.5),
        rtol=1e-10,
    )
    u = np.random.default_rng(0).random(ids.shape)
    np.testing.assert_array_equal(
        co.naive_correction_move(ids, logits + 2000, t, s, 0.5, u),
        co.naive_correction_move(ids, logits, t, s, 0.5, u),
    )


def test_a_token_that_is_impossible_everywhere_is_fine_and_a_place_without_any_is_not():
    never = np.where(np.arange(3) == 1, -np.inf, 0.0) * np.ones((4, 3, 3))
    nowhere = np.where(np.arange(3)[:, None] == 1, -np.inf, 0.0) * np.ones((4, 3, 3))
    ids = np.full((4, 3), 3)
    for sampler in (co.mdlm_sampler, co.adaptive_correction_sampler):
        out = sampler(np.random.default_rng(0), lambda ids: never, ids, [(1, 0)])
        assert set(out.ravel()) == {0, 2}
        with pytest.raises(ValueError, match="no token possible"):
            sampler(np.random.default_rng(0), lambda ids: nowhere, ids, [(1, 0)])
        assert (
            sampler(np.random.default_rng(0), lambda ids: never.astype(np.float16), ids, [(1, 0)]).max() == 2
        )


# ---- whole samplers


def chain_denoiser(V, sharp=2.0, calls=None):
    """Logits that prefer the successor of the left neighbour; masked and wrong tokens alike are seen."""

    def denoise(ids):
        if calls is not None:
            calls.append(ids.copy())
        left = np.concatenate([np.zeros((len(ids), 1), int), ids[:, :-1]], 1)
        return sharp * (np.arange(V) == ((left + 1) % (V + 1) % V)[..., None])

    return denoise


@pytest.mark.parametrize(("B", "N", "V", "steps"), [(1, 1, 2, 1), (4, 6, 3, 4), (2, 9, 5, 9)])
def test_without_correction_it_is_mdlm(B, N, V, steps):
    """The same draws in the same order, and so the same tokens; given ones included."""
    ids = np.where(np.random.default_rng(5).random((B, N)) < 0.7, V, 1)
    ids[0, 0] = V
    for seed in range(20):
        samplers = (co.mdlm_sampler, lambda *args: co.adaptive_correction_sampler(*args, eta=0.0))
        a, b = (
            sample(np.random.default_rng(seed), chain_denoiser(V), ids, co.linear_moves(steps))
            for sample in samplers
        )
        np.testing.assert_array_equal(a, b)
        assert (a < V).all()
        np.testing.assert_array_equal(a[ids < V], ids[ids < V])


def test_mdlm_is_its_own_definition():
    """Reveal with probability 1 − s/t, position by position, in plain Python."""
    V, N, B = 3, 6, 5
    ids, logits = np.full((B, N), V), np.random.default_rng(0).standard_normal((B, N, V))
    u = [np.random.default_rng(1).random((B, N))]
    got = co.mdlm_sampler(np.random.default_rng(1), lambda ids: logits, ids, [(0.8, 0.3)])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for b in range(B):
        for n in range(N):
            v = u[0][b, n] / (1 - 0.3 / 0.8)
            want = V if v >= 1 else next(k for k in range(V) if v < p[b, n, : k + 1].sum())
            assert got[b, n] == want
    assert 0 < (got == V).mean() < 1


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_calls_and_levels(eta):
    calls = []
    ids = np.full((200, 10), 4)
    moves = co.linear_moves(4, 2, 0.1)
    out = co.adaptive_correction_sampler(
        np.random.default_rng(0), chain_denoiser(4, calls=calls), ids, moves, eta
    )
    assert len(calls) == 6
    shares = [(c == 4).mean() for c in calls]
    np.testing.assert_allclose(shares, [1, 0.75, 0.5, 0.25, 0, 0], atol=0.05)
    changed = [((a < 4) & (a != b)).mean() for a, b in zip(calls, [*calls[1:], out], strict=True)]
    assert (changed[-1] > 0.05 and changed[-2] > 0.05 and changed[1] > 0.01) if eta else not any(changed)
    calls.clear()
    co.mdlm_sampler(np.random.default_rng(0), chain_denoiser(4, calls=calls), ids, co.linear_moves(3))
    assert len(calls) == 3 and (ids == 4).all()  # the start is left alone


def test_given_tokens_are_never_drawn_again():
    ids = np.where(np.arange(8) % 3 == 0, 2, 4) * np.ones((50, 1), int)
    out = co.adaptive_correction_sampler(
        np.random.default_rng(0), chain_denoiser(4), ids, co.linear_moves(3, 5, 0.1), 1.0
    )
    assert (out[:, ::3] == 2).all() and (out < 4).all() and len(np.unique(out[:, 1:3])) == 4
    assert (ids[:, 1] == 4).all()


def test_the_default_is_the_papers_eta():
    ids, moves = np.full((40, 10), 4), co.linear_moves(5, 10, 0.1)
    a, b, c = (
        co.adaptive_correction_sampler(np.random.default_rng(0), chain_denoiser(4), ids, moves, *eta)
        for eta in ((), (0.015,), (0.3,))
    )
    np.testing.assert_array_equal(a, b)
    assert (a != c).any() and co.ETA == 0.015
    d, e = (
        co.correction_move(np.random.default_rng(0), a, np.zeros((40, 10, 4)), 0.5, 0.5, *eta)
        for eta in ((), (0.015,))
    )
    np.testing.assert_array_equal(d, e)


def test_correction_mends_what_it_sees_is_wrong():
    """From a text with errors, corrections alone reach the chain that the model prefers."""
    V, rng = 4, np.random.default_rng(0)
    wrong = rng.integers(0, V, (300, 8))
    denoise = chain_denoiser(V, sharp=6.0)

    def right(ids):
        return (denoise(ids).argmax(-1) == ids).mean()

    ids = wrong
    for _ in range(40):
        ids = co.correction_move(rng, ids, denoise(ids), 0.1, 0.1, 0.5)
    assert right(wrong) < 0.4 < 0.9 < right(ids)
    frozen = wrong
    for _ in range(12):
        frozen = co.correction_move(rng, frozen, denoise(frozen), 0.1, 0.1, 0.0)
    np.testing.assert_array_equal(frozen, wrong)


def test_moves():
    assert co.linear_moves(1) == [(1.0, 0.0)]
    assert co.linear_moves(4) == [(1, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0)]
    assert co.linear_moves(2, 3, 0.125) == [(1, 0.5), (0.5, 0), *[(0.125, 0.125)] * 3]
    assert co.linear_moves(1, 1, 1.0)[-1] == (1, 1)


RNG, IDS, LOGITS = np.random.default_rng(0), np.array([[0, 3, 1]]), np.zeros((1, 3, 3))
BAD = [
    (
        lambda: co.correction_kernel(IDS[0], LOGITS, 1, 0),
        "logits: expected shape (B, N, V) for ids (3,), got (1, 3, 3)",
    ),
    (
        lambda: co.correction_kernel(IDS[0], LOGITS[0], 1, 0),
        "logits: expected shape (B, N, V) for ids (3,), got (3, 3)",
    ),
    (
        lambda: co.correction_kernel(IDS + 1, LOGITS, 1, 0),
        "ids: expected integers in [0, 3], got int64 [1, 4, 2]",
    ),
    (
        lambda: co.correction_kernel(IDS - 1, LOGITS, 1, 0),
        "ids: expected integers in [0, 3], got int64 [-1, 2, 0]",
    ),
    (
        lambda: co.correction_kernel(IDS / 1, LOGITS, 1, 0),
        "ids: expected integers in [0, 3], got float64 [0.0, 3.0, 1.0]",
    ),
    (
        lambda: co.correction_kernel(IDS, LOGITS, 0.5, 0.6),
        "t, s: expected 0 ≤ s ≤ t ≤ 1 and t > 0, got t = [0.5], s = [0.6]",
    ),
    (
        lambda: co.correction_kernel(IDS, LOGITS, 0, 0),
        "t, s: expected 0 ≤ s ≤ t ≤ 1 and t > 0, got t = [0.0], s = [0.0]",
    ),
    (
        lambda: co.correction_kernel(IDS, LOGITS, 1.5, 0),
        "t, s: expected 0 ≤ s ≤ t ≤ 1 and t > 0, got t = [1.5], s = [0.0]",
    ),
    (
        lambda: co.correction_kernel(IDS, LOGITS, 1, -1),
        "t, s: expected 0 ≤ s ≤ t ≤ 1 and t > 0, got t = [1.0], s = [-1.0]",
    ),
    (
        lambda: co.correction_kernel(IDS, LOGITS, 1, 0, -0.5),
        "eta: expected a probability in [0, 1], got -0.5",
    ),
    (lambda: co.correction_kernel(IDS, LOGITS, 1, 0, 1.5), "eta: expected a probability in [0, 1], got 1.5"),
    (lambda: co.linear_moves(0), "steps: expected a whole number ≥ 1, got 0"),
    (lambda: co.linear_moves(1, -1), "corrections: expected a whole number ≥ 0, got -1"),
    (lambda: co.linear_moves(1, 1), "level: expected a number in (0, 1], got 0.0"),
    (lambda: co.linear_moves(1, 1, 1.5), "level: expected a number in (0, 1], got 1.5"),
]
for sampler in (co.mdlm_sampler, co.adaptive_correction_sampler):
    BAD += [
        (
            lambda f=sampler: f(RNG, lambda ids: LOGITS[:, :2], IDS, [(1, 0)]),
            "denoiser: expected logits (B, N, V) for ids (1, 3), got (1, 2, 3)",
        ),
        (
            lambda f=sampler: f(RNG, lambda ids: LOGITS[0], IDS, [(1, 0)]),
            "denoiser: expected logits (B, N, V) for ids (1, 3), got (3, 3)",
        ),
        (
            lambda f=sampler: f(RNG, lambda ids: LOGITS * np.nan, IDS, [(1, 0)]),
            "denoiser: the logits contain NaN or +∞, or leave no token possible",
        ),
        (
            lambda f=sampler: f(RNG, lambda ids: LOGITS - np.inf, IDS, [(1, 0)]),
            "denoiser: the logits contain NaN or +∞, or leave no token possible",
        ),
    ]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message
