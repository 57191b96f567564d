"""Hybrid noise: marginals against e^{σQ}, draws against marginals, losses against loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from minattn.autograd import Tensor, grad
from minattn.autograd.engine import raw
from minattn.testing import check_grads
from minattn.transformer import hybrid_noise as hn
from minattn.transformer.hybrid_noise import Noised

pytestmark = pytest.mark.paper(196)


def batch(rng, B=2, N=5, V=4, epsilon=0.4):
    """Noised tokens of all three kinds, with their levels."""
    x0, t = rng.integers(0, V, (B, N)), rng.uniform(0.2, 0.8, (B, N))
    noised = hn.epsilon_hybrid_noise(rng, x0, t, epsilon, V)
    return x0, t, noised


def complex_step(f, z):
    """df/dz of a real function by a step of 10⁻³⁰ into the complex plane, exact to rounding."""
    g = np.zeros(z.shape)
    for i in np.ndindex(*z.shape):
        moved = z.astype(complex)
        moved[i] += 1e-30j
        g[i] = f(moved).imag / 1e-30
    return g


# ---- marginals


def test_rates_of_two_tokens_by_hand():
    absorb, uniform = hn.rate_matrices(2)
    np.testing.assert_array_equal(absorb, [[-1, 0, 1], [0, -1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(uniform, [[-0.5, 0.5, 0], [0.5, -0.5, 0], [0, 0, 0]])
    np.testing.assert_allclose(
        hn.naive_marginal(absorb, math.log(2)), [[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]]
    )


@pytest.mark.parametrize("V", [1, 2, 5, 30])
@pytest.mark.parametrize("sigma", [0.0, 1e-6, 0.7, 3.0, 40.0])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0])
def test_gamma_marginal_is_the_exponential_of_the_rates(V, sigma, gamma):
    absorb, uniform = hn.rate_matrices(V)
    rates = (1 - gamma) * absorb + gamma * uniform
    got = hn.gamma_hybrid_marginal(V, sigma, gamma)
    np.testing.assert_allclose(got, hn.naive_marginal(rates, sigma), rtol=0, atol=1e-10)
    np.testing.assert_allclose(got, expm(sigma * rates), rtol=0, atol=1e-10)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-14)


@pytest.mark.parametrize("V", [1, 3, 10])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.6])
def test_epsilon_marginal_is_shuffling_then_masking(V, t, epsilon):
    absorb, uniform = hn.rate_matrices(V)
    shuffle = hn.naive_marginal(uniform, -math.log1p(-epsilon))
    mask = hn.naive_marginal(absorb, -math.log1p(-t))
    got = hn.epsilon_hybrid_marginal(V, t, epsilon)
    np.testing.assert_allclose(got, shuffle @ mask, rtol=0, atol=1e-10)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-14)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.9])
def test_without_uniform_noise_both_are_mdlm_and_with_nothing_else_gamma_is_uniform(t):
    V, sigma = 4, -math.log1p(-t)
    mdlm = np.zeros((5, 5))
    mdlm[range(4), range(4)], mdlm[:4, 4], mdlm[4, 4] = 1 - t, t, 1
    np.testing.assert_allclose(hn.epsilon_hybrid_marginal(V, t, 0.0), mdlm, rtol=0, atol=1e-15)
    np.testing.assert_allclose(hn.gamma_hybrid_marginal(V, sigma, 0.0), mdlm, rtol=0, atol=1e-15)
    uniform = hn.gamma_hybrid_marginal(V, sigma, 1.0)[:4, :4]
    np.testing.assert_allclose(uniform, (1 - t) * np.eye(4) + t / 4, rtol=0, atol=1e-15)
    assert not hn.gamma_hybrid_marginal(V, sigma, 1.0)[:4, 4].any()


# ---- draws


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.integers(1, 6))
def test_what_is_noised_says_how(seed, t, share, V):
    rng = np.random.default_rng(seed)
    x0 = rng.integers(0, V, (3, 7))
    noises = (hn.epsilon_hybrid_noise(rng, x0, t, share, V), hn.gamma_hybrid_noise(rng, x0, 3 * t, share, V))
    for noised in noises:
        assert noised.ids.shape == noised.masked.shape == noised.shuffled.shape == x0.shape
        np.testing.assert_array_equal(noised.ids == V, noised.masked)
        assert not (noised.masked & noised.shuffled).any() and (noised.ids >= 0).all()
        alone = ~noised.masked & ~noised.shuffled
        np.testing.assert_array_equal(noised.ids[alone], x0[alone])


@pytest.mark.parametrize("kind", ["epsilon", "gamma"])
def test_draws_have_the_marginals(kind):
    """Frequencies of 60,000 draws of each token, within five standard deviations."""
    rng, V, n = np.random.default_rng(0), 4, 60_000
    x0 = np.tile(np.arange(V), (n, 1))
    level = np.array([0.3, 0.5, 0.7, 0.1])  # one for each position: levels broadcast
    if kind == "epsilon":
        noised = hn.epsilon_hybrid_noise(rng, x0, level, 0.4, V)
        want = np.stack([hn.epsilon_hybrid_marginal(V, u, 0.4)[v] for v, u in enumerate(level)])
        kept = 0.4 * (1 - level)
    else:
        noised = hn.gamma_hybrid_noise(rng, x0, 3 * level, 0.3, V)
        want = np.stack([hn.gamma_hybrid_marginal(V, 3 * u, 0.3)[v] for v, u in enumerate(level)])
        kept = np.exp(-0.7 * 3 * level) * (1 - np.exp(-0.3 * 3 * level))
    got = np.stack([(noised.ids == v).mean(0) for v in range(V + 1)], 1)
    np.testing.assert_allclose(got, want, rtol=0, atol=5 * 0.5 / math.sqrt(n))
    np.testing.assert_allclose(noised.shuffled.mean(0), kept, rtol=0, atol=5 * 0.5 / math.sqrt(n))


def test_at_epsilon_zero_the_draws_are_mdlm_masking():
    x0 = np.random.default_rng(1).integers(0, 6, (4, 50))
    want = np.where(np.random.default_rng(2).random((4, 50)) < 0.35, 6, x0)
    np.testing.assert_array_equal(
        hn.epsilon_hybrid_noise(np.random.default_rng(2), x0, 0.35, 0.0, 6).ids, want
    )
    sigma = -math.log1p(-0.35)
    np.testing.assert_array_equal(
        hn.gamma_hybrid_noise(np.random.default_rng(2), x0, sigma, 0.0, 6).ids, want
    )
    assert (hn.epsilon_hybrid_noise(np.random.default_rng(2), x0, 1.0, 0.5, 6).ids == 6).all()
    assert (hn.epsilon_hybrid_noise(np.random.default_rng(2), x0, 0.0, 0.0, 6).ids == x0).all()


# ---- the ε-hybrid loss


@pytest.mark.parametrize(("B", "N", "V"), [(1, 1, 2), (2, 5, 4), (3, 7, 3), (1, 9, 1)])
@pytest.mark.parametrize(("epsilon", "lam"), [(0.4, 1.0), (0.2, 0.3), (0.0, 1.0)])
def test_epsilon_loss_is_the_sum_over_tokens(B, N, V, epsilon, lam):
    rng = np.random.default_rng(B + N)
    x0, t, noised = batch(rng, B, N, V, epsilon)
    z = rng.standard_normal((B, N, V))
    loss = hn.epsilon_hybrid_loss(Tensor(z, requires_grad=True), x0, noised, t, epsilon, lam)
    np.testing.assert_allclose(
        raw(loss), hn.naive_epsilon_loss(z, x0, noised, t, epsilon, lam), rtol=1e-12, atol=1e-14
    )
    point = Tensor(z, requires_grad=True)
    (got,) = grad(hn.epsilon_hybrid_loss(point, x0, noised, t, epsilon, lam), point)
    want = complex_step(lambda z: hn.naive_epsilon_loss(z, x0, noised, t, epsilon, lam), z)
    np.testing.assert_allclose(raw(got), want, rtol=1e-10, atol=1e-14)


def test_epsilon_loss_by_hand_and_its_derivatives():
    x0, t = np.array([[0, 0, 0]]), np.array([[0.25, 0.5, 0.75]])
    noised = Noised(np.array([[2, 1, 0]]), np.array([[True, False, False]]), np.array([[False, True, False]]))
    loss = hn.epsilon_hybrid_loss(np.zeros((1, 3, 2)), x0, noised, t, 0.1, 2.0)
    np.testing.assert_allclose(loss, math.log(2) * (1 / 0.25 + 2 * 0.9 / 0.5 + 2 * 0.1 / 0.25) / 3)
    one = hn.epsilon_hybrid_loss(np.zeros((1, 3, 2)), x0, noised, t, 0.1)
    np.testing.assert_allclose(one, math.log(2) * (1 / 0.25 + 0.9 / 0.5 + 0.1 / 0.25) / 3)
    rng = np.random.default_rng(0)
    check_grads(lambda z: hn.epsilon_hybrid_loss(z, x0, noised, t, 0.1), rng.standard_normal((1, 3, 2)))


def test_only_active_tokens_count():
    rng = np.random.default_rng(3)
    x0, t, noised = batch(rng)
    z, active = rng.standard_normal((2, 5, 4)), np.array([False, True, True, False, True])
    part = Noised(*(field[:, active] for field in noised))
    got = hn.epsilon_hybrid_loss(z, x0, noised, t, 0.4, where_active=active)
    np.testing.assert_allclose(
        got, hn.epsilon_hybrid_loss(z[:, active], x0[:, active], part, t[:, active], 0.4)
    )
    everywhere = hn.epsilon_hybrid_loss(z, x0, noised, t, 0.4, where_active=True)
    np.testing.assert_allclose(everywhere, hn.epsilon_hybrid_loss(z, x0, noised, t, 0.4))


def test_at_epsilon_zero_the_loss_is_mdlm():
    """Cross-entropy of the masked tokens, 1/t each: unmasked ones carry no weight."""
    rng = np.random.default_rng(4)
    x0, t, noised = batch(rng, epsilon=0.0)
    z = rng.standard_normal((2, 5, 4))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, x0[..., None], -1)[..., 0]
    want = (-np.log(chosen) * noised.masked / t).sum() / x0.size
    assert want > 0.1
    np.testing.assert_allclose(hn.epsilon_hybrid_loss(z, x0, noised, t, 0.0), want)
    whole = Noised(np.full((2, 5), 4), np.ones((2, 5), bool), np.zeros((2, 5), bool))
    np.testing.assert_allclose(hn.epsilon_hybrid_loss(z, x0, whole, 1.0, 0.3), -np.log(chosen).mean())
    clean = Noised(x0, np.zeros((2, 5), bool), np.zeros((2, 5), bool))
    np.testing.assert_allclose(hn.epsilon_hybrid_loss(z, x0, clean, 0.0, 0.3), -0.3 * np.log(chosen).mean())


def test_expectation_of_the_epsilon_loss():
    """Masked tokens weigh one in the mean, whatever t; unmasked ones λ times 2 ε (1 − ε)."""
    rng, V, n, epsilon = np.random.default_rng(5), 3, 200_000, 0.3
    x0 = rng.integers(0, V, (1, n))
    t = rng.uniform(0.2, 0.8, (1, n))
    noised = hn.epsilon_hybrid_noise(rng, x0, t, epsilon, V)
    got = hn.epsilon_hybrid_loss(np.zeros((1, n, V)), x0, noised, t, epsilon) / math.log(V)
    assert abs(got - (1 + 2 * epsilon * (1 - epsilon))) < 0.02


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_losses_keep_the_dtype(dtype):
    rng = np.random.default_rng(6)
    x0, t, noised = batch(rng)
    z = Tensor(rng.standard_normal((2, 5, 4)).astype(dtype), requires_grad=True)
    assert hn.epsilon_hybrid_loss(z, x0, noised, t, 0.4).dtype == dtype
    s = Tensor(rng.standard_normal((2, 5, 5)).astype(dtype), requires_grad=True)
    assert hn.score_entropy(s, noised.ids, x0, t, 0.4).dtype == dtype
    assert hn.gamma_hybrid_loss(s, x0, noised, t, 2.0, 0.4).dtype == dtype


# ---- score entropy


def states(rng, V=4, B=2, N=6, gamma=0.3):
    """Noised tokens with at least one masked, one changed and one kept (where γ allows)."""
    x0 = rng.integers(0, V, (B, N))
    x = x0.copy()
    x[:, 0], x[:, 1] = V, (x0[:, 1] + 1) % V
    if gamma == 0:
        x[:, 1] = V
    if gamma == 1:
        x[:, 0] = (x0[:, 0] + 2) % V
    return x0, x, rng.uniform(0.3, 2.0, (B, N))


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize(("B", "N", "V"), [(1, 2, 3), (2, 6, 4), (3, 3, 5)])
def test_score_entropy_is_the_sum_over_states(gamma, B, N, V):
    rng = np.random.default_rng(V)
    x0, x, sigma = states(rng, V, B, N, gamma)
    s = rng.standard_normal((B, N, V + 1))

    def naive(s):
        return np.array(
            [
                [hn.naive_score_entropy(s[b, p], x[b, p], x0[b, p], sigma[b, p], gamma) for p in range(N)]
                for b in range(B)
            ]
        )

    point, u = Tensor(s, requires_grad=True), rng.standard_normal((B, N))
    got = hn.score_entropy(point, x, x0, sigma, gamma)
    np.testing.assert_allclose(raw(got), naive(s), rtol=1e-10, atol=1e-12)
    want = complex_step(lambda s: (naive(s) * u).sum(), s)
    np.testing.assert_allclose(raw(grad(got, point, u)[0]), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_score_entropy_vanishes_at_the_ratios_and_nowhere_else(gamma):
    rng, V = np.random.default_rng(1), 4
    x0, x, sigma = states(rng, V, gamma=gamma)
    p = np.stack(
        [
            [hn.gamma_hybrid_marginal(V, s, gamma)[v] for s, v in zip(*row, strict=True)]
            for row in zip(sigma, x0, strict=True)
        ]
    )
    with np.errstate(divide="ignore"):
        right = np.log(p / np.take_along_axis(p, x[..., None], -1))
    if gamma == 0:  # a score that ought to be 0: its logarithm as low as one likes
        right = np.maximum(right, -40)
    at = hn.score_entropy(right, x, x0, sigma, gamma)
    np.testing.assert_allclose(at, 0, atol=1e-12)
    off = hn.score_entropy(right + 0.3 * rng.standard_normal(right.shape), x, x0, sigma, gamma)
    flows = (x == V) * (1 - gamma) + (x < V) * gamma
    assert (off[flows > 0] > 1e-7).all() and not off[flows == 0].any() and (flows > 0).any()


def test_pure_processes_are_those_of_sedd():
    """Closed forms as SEDD states them: masking with 1/(e^σ − 1), uniform noise with 1/V and e^σ − 1 + V."""
    rng, V = np.random.default_rng(2), 5
    x0, x, sigma = states(rng, V, gamma=0)
    s, e = rng.standard_normal((2, 6, V + 1)), np.expm1(sigma)
    of = np.take_along_axis(s, x0[..., None], -1)[..., 0]
    want = np.where(x == V, np.exp(s[..., :V]).sum(-1) - of / e + (np.log(1 / e) - 1) / e, 0)
    np.testing.assert_allclose(hn.score_entropy(s, x, x0, sigma, 0.0), want, rtol=1e-12, atol=1e-14)

    x0, x, sigma = states(rng, V, gamma=1)
    e, total = np.expm1(sigma), np.zeros((2, 6))
    for b, p in np.ndindex(2, 6):
        for y in set(range(V)) - {x[b, p]}:
            r = {True: e[b, p] / (e[b, p] + V), False: 1.0}[x[b, p] == x0[b, p]]
            r = (e[b, p] + V) / e[b, p] if y == x0[b, p] else r
            total[b, p] += (np.exp(s[b, p, y]) - r * s[b, p, y] + r * (math.log(r) - 1)) / V
    np.testing.assert_allclose(hn.score_entropy(s, x, x0, sigma, 1.0), total, rtol=1e-12, atol=1e-14)


def test_score_entropy_to_second_order_and_without_inflow():
    rng, V = np.random.default_rng(3), 3
    x0, x, sigma = states(rng, V)
    s = rng.standard_normal((2, 6, V + 1))
    check_grads(lambda s: hn.score_entropy(s, x, x0, sigma, 0.3), s)
    s[0, 1, x[0, 1]] = -np.inf  # the score of staying plays no part
    assert np.isfinite(hn.score_entropy(s, x, x0, sigma, 0.3)).all()
    (g,) = grad(hn.score_entropy(p := Tensor(s, requires_grad=True), x, x0, sigma, 0.3).sum(), p)
    assert np.isfinite(raw(g)).all() and not raw(g)[..., V].any()
    single = hn.score_entropy(s[1, 2], np.asarray(x[1, 2]), np.asarray(x0[1, 2]), sigma[1, 2], 0.3)
    np.testing.assert_allclose(single, hn.score_entropy(s, x, x0, sigma, 0.3)[1, 2])


def test_gamma_loss_is_the_weighted_mean():
    rng, V = np.random.default_rng(4), 4
    x0, _, sigma = states(rng, V)
    noised, rate = hn.gamma_hybrid_noise(rng, x0, sigma, 0.3, V), rng.uniform(1, 2, 6)
    s = rng.standard_normal((2, 6, V + 1))
    want = np.mean(
        [
            [
                rate[p] * hn.naive_score_entropy(s[b, p], noised.ids[b, p], x0[b, p], sigma[b, p], 0.3)
                for p in range(6)
            ]
            for b in range(2)
        ]
    )
    np.testing.assert_allclose(hn.gamma_hybrid_loss(s, x0, noised, sigma, rate, 0.3), want, rtol=1e-10)


# ---- bad input

RNG, X = np.random.default_rng(0), np.array([[0, 1, 2]])
NOISED = Noised(X, np.array([[False, False, True]]), np.array([[False, True, False]]))
LOGITS, SCORES = np.zeros((1, 3, 3)), np.zeros((1, 3, 4))
BAD = [
    (lambda: hn.epsilon_hybrid_marginal(3, 1.5, 0.1), "t: expected numbers in [0, 1], got [1.5]"),
    (lambda: hn.epsilon_hybrid_marginal(3, 0.5, -0.1), "epsilon: expected numbers in [0, 1], got [-0.1]"),
    (lambda: hn.epsilon_hybrid_marginal(0, 0.5, 0.1), "V: expected at least 1 token, got 0"),
    (lambda: hn.gamma_hybrid_marginal(3, -1.0, 0.1), "sigma: expected numbers in [0, inf], got [-1.0]"),
    (lambda: hn.gamma_hybrid_marginal(3, np.inf, 0.1), "sigma: expected numbers in [0, inf], got [inf]"),
    (lambda: hn.gamma_hybrid_marginal(3, np.nan, 0.1), "sigma: expected numbers in [0, inf], got [nan]"),
    (lambda: hn.gamma_hybrid_marginal(3, 1.0, 2), "gamma: expected numbers in [0, 1], got [2.0]"),
    (
        lambda: hn.epsilon_hybrid_noise(RNG, X, 0.5, 0.1, 2),
        "x0: expected integers in [0, 2), got int64 [0, 1, 2]",
    ),
    (
        lambda: hn.epsilon_hybrid_noise(RNG, -X, 0.5, 0.1, 3),
        "x0: expected integers in [0, 3), got int64 [0, -1, -2]",
    ),
    (
        lambda: hn.epsilon_hybrid_noise(RNG, X / 1, 0.5, 0.1, 3),
        "x0: expected integers in [0, 3), got float64 [0.0, 1.0, 2.0]",
    ),
    (
        lambda: hn.epsilon_hybrid_noise(RNG, X, np.array([1, 2, 3, 4, 5.5]), 0.1, 3),
        "t: expected numbers in [0, 1], got [1.0, 2.0, 3.0, 4.0]",
    ),
    (lambda: hn.epsilon_hybrid_noise(RNG, X, 0.5, 1.1, 3), "epsilon: expected numbers in [0, 1], got [1.1]"),
    (
        lambda: hn.epsilon_hybrid_noise(RNG, X, [[0.5, 0.5]], 0.1, 3),
        "t: expected a shape that broadcasts to (1, 3), got (1, 2)",
    ),
    (
        lambda: hn.gamma_hybrid_noise(RNG, X, 0.5, 0.1, 2),
        "x0: expected integers in [0, 2), got int64 [0, 1, 2]",
    ),
    (lambda: hn.gamma_hybrid_noise(RNG, X, -0.5, 0.1, 3), "sigma: expected numbers in [0, inf], got [-0.5]"),
    (lambda: hn.gamma_hybrid_noise(RNG, X, 0.5, -0.1, 3), "gamma: expected numbers in [0, 1], got [-0.1]"),
    (
        lambda: hn.epsilon_hybrid_loss(LOGITS[0], X[0], NOISED, 0.5, 0.1),
        "logits: expected shape (B, N, V) for x0 (3,), got (3, 3)",
    ),
    (
        lambda: hn.epsilon_hybrid_loss(LOGITS, X[:, :2], NOISED, 0.5, 0.1),
        "logits: expected shape (B, N, V) for x0 (1, 2), got (1, 3, 3)",
    ),
    (
        lambda: hn.epsilon_hybrid_loss(LOGITS[..., :2], X, NOISED, 0.5, 0.1),
        "x0: expected integers in [0, 2), got int64 [0, 1, 2]",
    ),
    (lambda: hn.epsilon_hybrid_loss(LOGITS, X, NOISED, 1.5, 0.1), "t: expected numbers in [0, 1], got [1.5]"),
    (
        lambda: hn.epsilon_hybrid_loss(LOGITS, X, NOISED, 0.5, 1.1),
        "epsilon: expected numbers in [0, 1], got [1.1]",
    ),
    (
        lambda: hn.epsilon_hybrid_loss(LOGITS, X, NOISED, [0.5, 0.5, 0.0], 0.1),
        "t: expected a level at which the tokens can be as they are, "
        "got one masked at t = 0 or unmasked at t = 1",
    ),
    (
        lambda: hn.epsilon_hybrid_loss(LOGITS, X, NOISED, [0.5, 1.0, 0.5], 0.1),
        "t: expected a level at which the tokens can be as they are, "
        "got one masked at t = 0 or unmasked at t = 1",
    ),
    (
        lambda: hn.score_entropy(SCORES, X[:, :2], X, 0.5, 0.1),
        "x, x0: expected shape (1, 3) as log_scores, got (1, 2) and (1, 3)",
    ),
    (
        lambda: hn.score_entropy(SCORES, X, X[:, :2], 0.5, 0.1),
        "x, x0: expected shape (1, 3) as log_scores, got (1, 3) and (1, 2)",
    ),
    (
        lambda: hn.score_entropy(SCORES, X + 2, X, 0.5, 0.1),
        "x: expected integers in [0, 4), got int64 [2, 3, 4]",
    ),
    (
        lambda: hn.score_entropy(SCORES, X, X + 1, 0.5, 0.1),
        "x0: expected integers in [0, 3), got int64 [1, 2, 3]",
    ),
    (lambda: hn.score_entropy(SCORES, X, X, -0.5, 0.1), "sigma: expected numbers in [0, inf], got [-0.5]"),
    (lambda: hn.score_entropy(SCORES, X, X, 0.5, 1.1), "gamma: expected numbers in [0, 1], got [1.1]"),
    (
        lambda: hn.score_entropy(SCORES, X, X, [0.5, 0.0, 1.0], 0.1),
        "sigma, gamma: expected noise that can have made x, got sigma = 0, or [MASK] at gamma = 1",
    ),
    (
        lambda: hn.score_entropy(SCORES, X + 1, X, 0.5, 1.0),
        "sigma, gamma: expected noise that can have made x, got sigma = 0, or [MASK] at gamma = 1",
    ),
    (
        lambda: hn.gamma_hybrid_loss(SCORES, X, NOISED, 0.5, -1.0, 0.1),
        "rate: expected numbers in [0, inf], got [-1.0]",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message
