"""What a normaliser can and cannot do: how far the chosen tokens stand from the rest, and how steep it is.

    α_i = F(l_i / T) / Σ_j F(l_j / T)        I_N: the N largest α        s = Σ_{i ∈ I_N} α_i x_i

    distance   d̃(N, L) = ‖Σ_{i ∉ I_N} α_i x_i − s‖              between what is chosen and what is left
    geometry   share of the chosen with ‖α_i x_i − s‖ < min_{j ∉ I_N} ‖α_j x_j − s‖
    slope      J = ∂α/∂l = (diag α − α αᵀ) / T  of a softmax

Weights are at most e^{(b−a)/T} / L for logits in [a, b], so each of them vanishes as L grows; and
no entry of J exceeds 1/(4T), nor its spectral norm 1/(2T), which two equal weights attain.

Mudarisov et al., Limitations of Normalization in Attention Mechanism, arXiv 2508.17821 (paper 139). The norms
of J and the bound on the weights are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np

from minattn.attention.normalizers import entmax15, sparsemax
from minattn.autograd.engine import Array

PAPERS = (139,)

__all__ = ["naive_jacobian", "naive_random_distance", "naive_selection", "normalizer_jacobian", "normalizers",
           "random_distance", "selection_distance", "separable_fraction", "triangle_bound", "weight_bounds"]


# ---- normalisers


def _softmax(z: Array) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _share(f: Callable[[Array], Array]) -> Callable[[Array], np.ndarray]:
    """F(z) over its sum; a row in which every F is 0 stays 0."""

    def normalize(z: Array) -> np.ndarray:
        y = f(z)
        total = y.sum(-1, keepdims=True)
        return y / np.where(total > 0, total, 1)

    return normalize


normalizers: dict[str, Callable[[Array], np.ndarray]] = {
    "softmax": _softmax,
    "sparsemax": lambda z: sparsemax(z, -1),
    "entmax15": lambda z: entmax15(z, -1),
    "ssmax": lambda z: _softmax(z * math.log(z.shape[-1])),
    "sigmoid": _share(lambda z: 0.5 + 0.5 * np.tanh(z / 2)),
    "relu2": _share(lambda z: np.maximum(z, 0) ** 2),
}
"""Functions of logits (…, L) that give weights (…, L) of sum 1; ssmax multiplies the logits by ln L."""


def weight_bounds(low: float, high: float, L: int, T: float = 1.0) -> tuple[float, float]:
    """What each softmax weight of L logits in [low, high] lies between: e^{∓(high − low)/T} / L."""
    _positive(T=T, L=L)
    return math.exp(-(high - low) / T) / L, math.exp((high - low) / T) / L


# ---- the naive forms


def naive_selection(weights: Array, x: Array, n: int) -> tuple[float, float, float]:
    """d̃, Σ_{i ∉ I_N} ‖s − α_i x_i‖ and the separable fraction of one row, in loops over tokens."""
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    chosen, rest = order[:n], order[n:]
    s = [math.fsum(weights[i] * x[i][d] for i in chosen) for d in range(x.shape[1])]
    left = [math.fsum(weights[i] * x[i][d] for i in rest) for d in range(x.shape[1])]

    def far(i: int) -> float:
        return math.sqrt(math.fsum((weights[i] * x[i][d] - s[d]) ** 2 for d in range(x.shape[1])))

    radius = min((far(i) for i in rest), default=math.inf)
    inside = sum(far(i) < radius for i in chosen)
    return math.dist(left, s), math.fsum(far(i) for i in rest), inside / n


def naive_random_distance(weights: Array, x: Array, n: int) -> float:
    """Mean of d̃² over all choices of n tokens, by enumeration."""
    total, count = 0.0, 0
    for chosen in combinations(range(len(weights)), n):
        sign = np.where(np.isin(np.arange(len(weights)), chosen), -1.0, 1.0)
        total += float((((sign * weights) @ x) ** 2).sum())
        count += 1
    return total / count


def naive_jacobian(f: Callable[[Array], Array], logits: Array, T: float = 1.0, step: float = 1e-6
                   ) -> np.ndarray:
    """∂α_i / ∂l_j of f(l / T) by central differences."""
    columns = []
    for j in range(len(logits)):
        e = np.zeros(len(logits))
        e[j] = step
        columns.append((f((logits + e) / T) - f((logits - e) / T)) / (2 * step))
    return np.stack(columns, 1)


# ---- selection


def _parts(weights: Array, x: Array, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted tokens (…, L, D), heaviest first; s (…, D), of the first n; and each one's distance to s."""
    weights, x = np.asarray(weights), np.asarray(x)
    L = weights.shape[-1]
    if x.ndim < 2 or x.shape[-2] != L:
        raise ValueError(f"x: expected {L} tokens, shape (…, {L}, D), got {x.shape}")
    if not 1 <= n <= L:
        raise ValueError(f"n: expected from 1 to {L} chosen tokens, got {n}")
    order = np.argsort(-weights, axis=-1, kind="stable")
    y = weights[..., None] * x
    y = np.take_along_axis(y, order[..., None], -2)
    s = y[..., :n, :].sum(-2)
    return y, s, np.linalg.norm(y - s[..., None, :], axis=-1)


def selection_distance(weights: Array, x: Array, n: int, *, form: str = "cumulative") -> np.ndarray:
    """How far the n heaviest tokens stand from the rest.

    Parameters
    ----------
    weights : (…, L)
    x : (…, L, D)
        Tokens, values or embeddings.
    n : int
        N, from 1 to L.
    form : {"cumulative", "sum", "mean"}
        ‖Σ_{i ∉ I_N} α_i x_i − s‖, the paper's; Σ_{i ∉ I_N} ‖s − α_i x_i‖; or that over L − N (0 for N = L).

    Returns
    -------
    (…)
        With N = L the sum over the rest is empty: the cumulative form is ‖s‖.

    Raises
    ------
    ValueError
        If n, the form or shapes do not fit.

    References
    ----------
    Mudarisov et al., arXiv 2508.17821 (paper 139).
    """
    if form not in ("cumulative", "sum", "mean"):
        raise ValueError(f"form: expected 'cumulative', 'sum' or 'mean', got {form!r}")
    y, s, far = _parts(weights, x, n)
    if form == "cumulative":
        return np.linalg.norm(y[..., n:, :].sum(-2) - s, axis=-1)
    total = far[..., n:].sum(-1)
    return total if form == "sum" else total / max(y.shape[-2] - n, 1)


def triangle_bound(weights: Array, x: Array) -> np.ndarray:
    """Σ_i α_i ‖x_i‖, which no cumulative distance exceeds, whatever is chosen."""
    return (np.asarray(weights) * np.linalg.norm(x, axis=-1)).sum(-1)


def random_distance(weights: Array, x: Array, n: int) -> np.ndarray:
    """Mean of d̃² if the n chosen tokens are drawn at random, without enumerating the draws.

    With signs ε_i = −1 for the chosen and 1 for the rest, d̃² = ‖Σ ε_i y_i‖², and for i ≠ j the mean of
    ε_i ε_j is c = ((L − 2n)² − L) / (L (L − 1)). So the mean is (1 − c) Σ ‖y_i‖² + c ‖Σ y_i‖².
    """
    y, _, _ = _parts(weights, x, n)
    L = y.shape[-2]
    c = ((L - 2 * n) ** 2 - L) / (L * (L - 1)) if L > 1 else 1.0
    return (1 - c) * (y * y).sum((-1, -2)) + c * (y.sum(-2) ** 2).sum(-1)


def separable_fraction(weights: Array, x: Array, n: int) -> np.ndarray:
    """Share of the n heaviest tokens inside the largest ball around s that holds none of the others.

    Parameters and errors as in `selection_distance`. With N = L there are no others, and the share is 1.
    """
    _, _, far = _parts(weights, x, n)
    if n == far.shape[-1]:
        return np.ones(far.shape[:-1])
    radius = far[..., n:].min(-1, keepdims=True)
    return (far[..., :n] < radius).mean(-1)


# ---- slopes


def normalizer_jacobian(name: str, logits: Array, T: float = 1.0) -> np.ndarray:
    """∂α_i / ∂l_j of the weights α = normaliser(l / T).

        softmax    (diag α − α αᵀ) / T
        ssmax      the same, times ln L
        sparsemax  (diag u − u uᵀ / |S|) / T, u the indicator of the support S
        entmax15   (diag r − r rᵀ / Σ r) / T with r = √α
        F / Σ F    (diag f − α fᵀ) / (T Σ F), f the slopes of F: sigmoid and relu2

    Parameters
    ----------
    name : one of `normalizers`.
    logits : (L,)
    T : float
        Temperature, above 0.

    Raises
    ------
    ValueError
        If there is no such normaliser, the temperature is not positive or logits are no row.
    """
    if name not in normalizers:
        raise ValueError(f"name: expected one of {', '.join(normalizers)}, got {name!r}")
    _positive(T=T)
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 1 or not len(logits):
        raise ValueError(f"logits: expected one row (L,), got shape {logits.shape}")
    z = logits / T
    a = normalizers[name](z)
    if name in ("softmax", "ssmax"):
        return (np.diag(a) - np.outer(a, a)) / T * (math.log(len(z)) if name == "ssmax" else 1)
    if name in ("sparsemax", "entmax15"):
        r = (a > 0).astype(float) if name == "sparsemax" else np.sqrt(a)
        return (np.diag(r) - np.outer(r, r) / r.sum()) / T
    p = 0.5 + 0.5 * np.tanh(z / 2)
    f, slopes = (p, p * (1 - p)) if name == "sigmoid" else (np.maximum(z, 0) ** 2, 2 * np.maximum(z, 0))
    return (np.diag(slopes) - np.outer(a, slopes)) / (T * (f.sum() if f.sum() > 0 else 1))


def _positive(**arguments: Any) -> None:
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a number above 0, got {value!r}")
