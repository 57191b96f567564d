"""Topic documents and Markov chains: counts against the distributions that they were drawn from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.data import disjoint_topics, lda, markov, random_transitions


def within(counts, p, sigmas=5):
    """Whether counts of independent draws lie within so many standard deviations of n·p (0 where p is 0)."""
    counts, p = np.asarray(counts), np.asarray(p)
    n = counts.sum()
    return (np.abs(counts - n * p) <= sigmas * np.sqrt(n * p * (1 - p)) + 1e-9).all()


def test_words_follow_their_topic():
    phi = np.array([[0.5, 0.2, 0.3, 0.0], [0.0, 0.0, 0.1, 0.9], [0.25, 0.25, 0.25, 0.25]])
    words, topics, _ = lda(np.random.default_rng(0), 400, 50, phi, alpha=1.0)
    for k in range(3):
        assert within(np.bincount(words[topics == k], minlength=4), phi[k])


def test_topics_follow_their_document():
    phi = disjoint_topics(3, 2)
    _, topics, shares = lda(np.random.default_rng(0), 12, 20_000, phi, alpha=0.5)
    for z, theta in zip(topics, shares, strict=True):
        assert within(np.bincount(z, minlength=3), theta)


def test_shares_follow_dirichlet():
    """Mean a_k/a and variance of the first share a_0 (a - a_0) / (a² (a + 1)), a the sum."""
    alpha = np.array([0.5, 1.0, 2.5])
    shares = lda(np.random.default_rng(0), 40_000, 1, disjoint_topics(3, 1), alpha=alpha).shares
    assert np.allclose(shares.sum(axis=1), 1)
    assert np.allclose(shares.mean(axis=0), alpha / 4, atol=0.01)
    assert np.isclose(shares[:, 0].var(), 0.5 * 3.5 / (16 * 5), rtol=0.05)


@given(seed=st.integers(0, 99), topics=st.integers(1, 5), words=st.integers(1, 4), data=st.data())
def test_active_topics_and_disjoint_words(seed, topics, words, data):
    active = data.draw(st.integers(1, topics))
    phi = disjoint_topics(topics, words)
    assert phi.shape == (topics, topics * words)
    got = lda(np.random.default_rng(seed), 6, 30, phi, active=active)
    assert (got.words // words == got.topics).all()
    assert (np.sort(got.shares, axis=1)[:, -active:] == 1 / active).all()
    assert np.allclose(got.shares.sum(axis=1), 1)
    assert (np.take_along_axis(got.shares, got.topics, axis=1) > 0).all()


def test_active_choice_is_uniform():
    shares = lda(np.random.default_rng(0), 5000, 1, disjoint_topics(4, 1), active=2).shares
    pairs = np.bincount((shares > 0) @ np.array([1, 2, 4, 8]), minlength=16)
    assert within(pairs, [bin(k).count("1") == 2 and 1 / 6 for k in range(16)])


@given(seed=st.integers(0, 99), vocab=st.integers(1, 6))
def test_transitions_are_distributions(seed, vocab):
    p = random_transitions(np.random.default_rng(seed), vocab, 0.3)
    assert p.shape == (vocab, vocab) and (p >= 0).all() and np.allclose(p.sum(axis=1), 1)


def test_concentration_makes_chains_predictable():
    entropy = []
    for c in (0.01, 0.1, 1.0, 10.0):
        p = random_transitions(np.random.default_rng(0), 30, c)
        entropy.append(-(p * np.log(np.maximum(p, 1e-300))).sum(axis=1).mean())
    assert entropy == sorted(entropy) and entropy[0] < 0.5 and entropy[-1] > 3


def test_markov_steps_follow_the_matrix():
    p = np.array([[0.0, 1.0, 0.0], [0.3, 0.0, 0.7], [0.2, 0.5, 0.3]])
    x = markov(np.random.default_rng(0), 500, 60, p)
    assert within(np.bincount(x[:, 0], minlength=3), np.full(3, 1 / 3))
    for i in range(3):
        assert within(np.bincount(x[:, 1:][x[:, :-1] == i], minlength=3), p[i])


def test_markov_of_a_permutation_is_that_permutation():
    order = np.array([2, 0, 3, 1])
    x = markov(np.random.default_rng(0), 20, 30, np.eye(4)[order])
    assert (x[:, 1:] == order[x[:, :-1]]).all() and x.flags.c_contiguous


def test_edge_draws_stay_in_their_row():
    """Generators that always give the largest or smallest number below 1 never pick an impossible symbol."""

    class Edge(np.random.Generator):
        def random(self, size=None, **_):
            return np.full(size, self.value)

    p = np.array([[0.0, 0.5, 0.5, 0.0], [0.0, 0.1, 0.9, 0.0]] * 2)
    for value, symbol in ((0.0, 1), (np.nextafter(1, 0), 2)):
        rng = Edge(np.random.PCG64(0))
        rng.value = value
        assert (markov(rng, 5, 6, p)[:, 1:] == symbol).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: lda(r, 1, 1, [[0.5, 0.4]], alpha=1), "phi"),
        (lambda r: lda(r, 1, 1, [[1.5, -0.5]], alpha=1), "phi"),
        (lambda r: lda(r, 1, 1, [[np.nan, 1]], alpha=1), "phi"),
        (lambda r: lda(r, 1, 1, [0.5, 0.5], alpha=1), "phi"),
        (lambda r: lda(r, 1, 1, [[0.5, 0.5]]), "exactly one"),
        (lambda r: lda(r, 1, 1, [[0.5, 0.5]], alpha=1, active=1), "exactly one"),
        (lambda r: lda(r, 1, 1, [[0.5, 0.5]], active=2), "active"),
        (lambda r: lda(r, 1, 1, [[0.5, 0.5]], alpha=0), "alpha"),
        (lambda r: lda(r, 1, 0, [[0.5, 0.5]], alpha=1), "length"),
        (lambda r: random_transitions(r, 3, 0), "concentration"),
        (lambda r: markov(r, 1, 3, [[0.5, 0.5]]), "square"),
        (lambda r: markov(r, 1, 3, [[0.5, 0.6], [1, 0]]), "transitions"),
        (lambda r: markov(r, 1, 0, [[1.0]]), "length"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.random.default_rng(0))
    with pytest.raises(TypeError, match="rng"):
        call(1)
    with pytest.raises(ValueError, match="words"):
        disjoint_topics(2, 0)
