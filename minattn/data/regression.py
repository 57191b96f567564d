"""In-context linear regression: every sequence has its own weights, to be guessed from its examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._check import at_least, generator

__all__ = ["Regression", "linear_regression"]


class Regression(NamedTuple):
    """Points x (batch, n, d), values y (batch, n) and hidden weights w (batch, d)."""

    x: NDArray[np.floating]
    y: NDArray[np.floating]
    w: NDArray[np.floating]


def linear_regression(
    rng: np.random.Generator,
    batch: int,
    points: int,
    dim: int,
    noise: float = 0.0,
    weight_scale: float = 1.0,
    covariance: ArrayLike | None = None,
    dtype: DTypeLike = np.float32,
) -> Regression:
    """x_i ~ N(0, Sigma), w ~ N(0, weight_scale² I), y_i = w·x_i + noise·e_i with e_i ~ N(0, 1).

    For d = 1 and w = 2, a sequence x, y, x, y, ... may be::

        0.5 1.0   -1.2 -2.4   0.3 ?        (answer 0.6)

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of everything drawn.
    batch, points, dim : int
        Number of sequences, examples in each (the query included), dimension d.
    noise : float
        Standard deviation of the error in y.
    weight_scale : float
        Standard deviation of each weight: 1 as in Garg et al. (2022); d^-1/2 makes Var(w·x) = 1 for Sigma =
        I.
    covariance : array (d, d), optional
        Sigma, positive definite; the identity if not given.
    dtype
        Of the three arrays.

    Returns
    -------
    Regression
    """
    generator(rng)
    at_least(1, batch=batch, points=points, dim=dim)
    if noise < 0 or weight_scale < 0:
        raise ValueError(f"noise and weight_scale must not be negative, got {noise} and {weight_scale}")
    x = rng.standard_normal((batch, points, dim))
    w = weight_scale * rng.standard_normal((batch, dim))
    if covariance is not None:
        x = x @ _root(covariance, dim).T
    y = np.einsum("bnd,bd->bn", x, w) + noise * rng.standard_normal((batch, points))
    return Regression(x.astype(dtype), y.astype(dtype), w.astype(dtype))


def _root(covariance: ArrayLike, dim: int) -> NDArray[np.float64]:
    """L with L Lᵀ = Sigma."""
    sigma = np.asarray(covariance, dtype=np.float64)
    if sigma.shape != (dim, dim) or not np.allclose(sigma, sigma.T):
        raise ValueError(f"covariance must be a symmetric ({dim}, {dim}) matrix, got shape {sigma.shape}")
    try:
        return np.linalg.cholesky(sigma).astype(np.float64)
    except np.linalg.LinAlgError:
        raise ValueError("covariance must be positive definite") from None
