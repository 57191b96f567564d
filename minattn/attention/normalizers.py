"""Normalisers: what turns a row of scores into weights.

A normaliser is a function ``normalizer(scores, dim)``. It receives −∞ where a key is masked and must give 0
there, with zero gradient; a row that is −∞ throughout gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minattn.autograd import namespace, primitive, relu, sigmoid, softmax, sqrt, sum, where
from minattn.autograd.engine import Array, Operand, raw

Normalizer = Callable[[Operand, int], Operand]


def _descending(z: Array, dim: int) -> tuple[Array, Array]:
    """z sorted downwards along `dim`, and ranks 1 … n that broadcast against it."""
    xp = namespace(z)
    n = z.shape[dim]
    ranks = xp.arange(1, n + 1, dtype=z.dtype).reshape((-1,) + (1,) * (z.ndim - 1 - dim % z.ndim))
    return xp.flip(xp.sort(z, axis=dim), dim), ranks


def _shifted(x: Array, dim: int) -> tuple[Array, Array]:
    """x with 0 as the largest entry of each row, and which rows have an entry above −∞."""
    xp = namespace(x)
    top = x.max(axis=dim, keepdims=True)
    alive = top > -np.inf
    return xp.where(alive, x - xp.where(alive, top, 0), 0).astype(x.dtype, copy=False), alive


def _sparsemax(x: Array, /, dim: int = -1) -> Array:
    """The point of the simplex nearest to x: max(x − τ, 0), with τ such that it sums to 1."""
    xp = namespace(x)
    z, alive = _shifted(x, dim)
    s, k = _descending(z, dim)
    sums = s.cumsum(axis=dim, dtype=x.dtype)
    support = (1 + k * s > sums).sum(axis=dim, keepdims=True)
    tau = (xp.take_along_axis(sums, support - 1, dim) - 1) / support.astype(x.dtype)
    return xp.maximum(z - tau, 0) * alive

def _d_sparsemax(g, out, x, dim=-1):
    support = (raw(out) > 0).astype(raw(out).dtype)  # on its support, the projection removes the mean of g
    size = namespace(support).maximum(support.sum(axis=dim, keepdims=True), 1)
    return support * (g - sum(support * g, dim, keepdim=True) / size)


def _entmax15(x: Array, /, dim: int = -1) -> Array:
    """max(x/2 − τ, 0)², with τ such that it sums to 1: between softmax and sparsemax."""
    xp = namespace(x)
    z, alive = _shifted(x, dim)
    z = z / 2
    s, k = _descending(z, dim)
    finite = xp.where(s == -np.inf, 0, s)  # beyond the last finite entry nothing is in the support
    mean = finite.cumsum(axis=dim, dtype=x.dtype) / k
    square = (finite * finite).cumsum(axis=dim, dtype=x.dtype) / k
    root = (1 - k * (square - mean * mean)) / k  # with k entries kept, (mean − τ)² is this
    taus = mean - xp.sqrt(xp.maximum(root, 0))
    support = (taus <= s).sum(axis=dim, keepdims=True)
    tau = xp.take_along_axis(taus, support - 1, dim)
    return xp.maximum(z - tau, 0) ** 2 * alive

def _d_entmax15(g, out, x, dim=-1):
    positive = raw(out) > 0
    s = where(positive, sqrt(where(positive, out, 1)), 0)
    total = sum(s, dim, keepdim=True)
    return s * (g - sum(s * g, dim, keepdim=True) / where(raw(total) > 0, total, 1))


sparsemax = primitive(_sparsemax, _d_sparsemax)
entmax15 = primitive(_entmax15, _d_entmax15)


def _sigmoid(scores: Operand, dim: int) -> Operand:
    """1 / (1 + e⁻ˢ) for each score on its own; rows need not sum to 1."""
    return sigmoid(scores)


def _relu(scores: Operand, dim: int) -> Operand:
    """max(s, 0) for each score on its own; rows need not sum to 1."""
    return relu(scores)


NORMALIZERS: dict[str, Normalizer] = {
    "softmax": softmax, "sparsemax": sparsemax, "entmax15": entmax15, "sigmoid": _sigmoid, "relu": _relu,
}


def normalizer_named(normalizer: str | Normalizer) -> Normalizer:
    """The function behind a name; a function is returned as it is.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if callable(normalizer):
        return normalizer
    if normalizer not in NORMALIZERS:
        names = ", ".join(map(repr, NORMALIZERS))
        raise ValueError(f"normalizer: expected a function or one of {names}, got {normalizer!r}")
    return NORMALIZERS[normalizer]
