"""Words drawn from known distributions: topic documents (LDA) and Markov chains."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._check import at_least, generator

__all__ = ["Documents", "disjoint_topics", "lda", "markov", "random_transitions"]

Array = NDArray[np.float64]


class Documents(NamedTuple):
    """Words (batch, length), the topic of each (batch, length), and topic shares theta (batch, T)."""

    words: NDArray[np.int64]
    topics: NDArray[np.int64]
    shares: Array


def disjoint_topics(topics: int, words: int) -> Array:
    """Topics without common words: topic k is uniform over the `words` words k·words .. (k+1)·words-1.

    Returns the (topics, topics·words) matrix phi for `lda`.
    """
    at_least(1, topics=topics, words=words)
    return np.kron(np.eye(topics), np.full((1, words), 1 / words))


def lda(
    rng: np.random.Generator,
    batch: int,
    length: int,
    phi: ArrayLike,
    alpha: float | ArrayLike | None = None,
    active: int | None = None,
) -> Documents:
    """Documents of latent Dirichlet allocation: theta ~ shares, then for each word z ~ theta, w ~ phi[z].

    With two topics over the words 0 1 | 2 3 a document may be::

        words   0 1 1 3 0 1 0 2
        topics  0 0 0 1 0 0 0 1     (shares .75, .25)

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of everything drawn.
    batch, length : int
        Number of documents, words in each.
    phi : array (T, V)
        phi[k] is topic k's distribution over V words.
    alpha : float or array (T,), optional
        theta ~ Dirichlet(alpha); a number stands for T equal ones.
    active : int, optional
        Instead of alpha: each document has exactly this many topics, chosen at random, with equal shares.

    Returns
    -------
    Documents

    Notes
    -----
    Blei, Ng and Jordan (2003); the form with `active` is the one of Li, Li and Risteski (2023).
    """
    generator(rng)
    at_least(1, batch=batch, length=length)
    phi = _distributions("phi", phi)
    count = len(phi)
    if (alpha is None) == (active is None):
        raise ValueError("give exactly one of alpha and active")
    if active is not None:
        if not 1 <= active <= count:
            raise ValueError(f"active must lie in 1..{count}, got {active}")
        order = np.argsort(rng.random((batch, count)), axis=1)
        shares = (order < active) / active
    else:
        a = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (count,))
        if not (a > 0).all():
            raise ValueError(f"alpha must be positive, got {alpha!r}")
        shares = rng.dirichlet(a, size=batch)
    topics = _pick(rng, shares, np.repeat(np.arange(batch)[:, None], length, axis=1))
    return Documents(_pick(rng, phi, topics), topics, shares)


def random_transitions(rng: np.random.Generator, vocab: int, concentration: float = 0.1) -> Array:
    """A (vocab, vocab) matrix with rows from Dirichlet(concentration); small: nearly deterministic."""
    generator(rng)
    at_least(1, vocab=vocab)
    if not concentration > 0:
        raise ValueError(f"concentration must be positive, got {concentration}")
    return rng.dirichlet(np.full(vocab, concentration), size=vocab)


def markov(rng: np.random.Generator, batch: int, length: int, transitions: ArrayLike) -> NDArray[np.int64]:
    """Paths of a Markov chain: P(x[t+1] = j | x[t] = i) = transitions[i, j], the first symbol uniform.

    With transitions that step up by one or stay, modulo 4, a path is `2 2 3 0 0 1`.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of the steps.
    batch, length : int
        Number of paths, symbols in each.
    transitions : array (V, V)
        Rows are distributions.

    Returns
    -------
    int64 array (batch, length)
    """
    generator(rng)
    at_least(1, batch=batch, length=length)
    p = _distributions("transitions", transitions)
    if p.shape[0] != p.shape[1]:
        raise ValueError(f"transitions must be square, got {p.shape}")
    edges = _edges(p)
    path = np.empty((length, batch), dtype=np.int64)
    path[0] = rng.integers(len(p), size=batch)
    u = _uniform(rng, (length, batch))
    for t in range(1, length):
        path[t] = np.searchsorted(edges, path[t - 1] + u[t], side="right") % len(p)
    return np.ascontiguousarray(path.T)


def _distributions(name: str, rows: ArrayLike) -> Array:
    p = np.asarray(rows, dtype=np.float64)
    if p.ndim != 2 or not p.size or not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1):
        raise ValueError(
            f"{name} must be a matrix whose rows are probabilities that sum to 1, got shape {p.shape}"
        )
    return p


def _edges(p: Array) -> Array:
    """Row r's cumulative probabilities plus r, in one ascending list, so that one search serves all rows.

    A draw u in [0, 1) from row r is the place of r + u; the last edge of a row is exactly r + 1.
    """
    edges = np.cumsum(p, axis=1)
    edges /= edges[:, -1:]
    return (edges + np.arange(len(p))[:, None]).ravel()


def _pick(rng: np.random.Generator, p: Array, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """One draw from distribution p[r] for every r in `rows`."""
    return np.searchsorted(_edges(p), rows + _uniform(rng, rows.shape), side="right") % p.shape[1]


def _uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Uniform numbers that stay below 1 by so much that r + u does not round up to r + 1."""
    return rng.random(shape) * (1 - 2.0**-32)
