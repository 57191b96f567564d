"""How alike two representations of the same tokens are: linear CKA, and overlap of neighbourhoods.

    CKA(X, Y) = ‖Yᵀ X‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F)          for centred features X (N, D) and Y (N, E)
    LNS(X, Y) = mean over tokens of |A ∩ B| / |A ∪ B|     A, B: the k nearest neighbours of a token in X, in Y

CKA compares global geometry, LNS (local neighbourhood similarity) who is whose neighbour. Neither asks that
X and Y have the same number of features, and both are 1 when Y is a rotation of X.

Sources: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019 (CKA); Boggust
et al., "Embedding Comparator", IUI 2022 (LNS); both as used by paper 79 (Pires et al., arXiv 2309.01826).
"""

from __future__ import annotations

import math

import numpy as np

from minattn.autograd.engine import Operand, raw

PAPERS = (79,)

__all__ = ["linear_cka", "local_neighborhood_similarity", "naive_linear_cka",
           "naive_local_neighborhood_similarity"]

DECIMALS = 10  # cosines that agree to so many decimals are equal: rounding must not decide who is nearer


# ---- naive


def naive_linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """CKA as HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)), HSIC(K, L) = tr(K H L H), from whole Gram matrices.

    K = X Xᵀ and L = Y Yᵀ hold the products of all pairs of tokens; H = I − 1/N centres them.
    """
    N = len(x)
    K = np.array([[math.fsum(a * b) for b in x] for a in x])
    L = np.array([[math.fsum(a * b) for b in y] for a in y])
    H = np.eye(N) - np.ones((N, N)) / N

    def hsic(a, b):
        return np.trace(a @ H @ b @ H)

    return float(hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L)))


def naive_local_neighborhood_similarity(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """LNS by sorting the cosine distances of every token to all others; of two as near, the earlier wins."""
    def neighbours(rows, i):
        def distance(j):
            a, b = rows[i], rows[j]
            cosine = math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b))
            return round(1 - cosine, DECIMALS), j
        return set(sorted((j for j in range(len(rows)) if j != i), key=distance)[:k])

    overlaps = []
    for i in range(len(x)):
        a, b = neighbours(x, i), neighbours(y, i)
        overlaps.append(len(a & b) / len(a | b))
    return math.fsum(overlaps) / len(overlaps)


# ---- fast


def linear_cka(x: Operand, y: Operand) -> float:
    """Linear centred kernel alignment, ‖Yᵀ X‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F) on centred features.

    Parameters
    ----------
    x, y : array_like (N, D), (N, E)
        Representations of the same N ≥ 2 tokens, row by row; computed in float64.

    Returns
    -------
    float
        Between 0 and 1; 1 if one is the other rotated, mirrored, scaled or shifted.

    Raises
    ------
    ValueError
        For other shapes, numbers that are not finite, or features that are the same for all tokens.

    Notes
    -----
    Works with D × E matrices instead of the N × N ones of the definition [Kornblith et al. 2019; paper 79].
    """
    x, y = _pair(x, y)
    x, y = _centred("x", x), _centred("y", y)
    return float(np.sum((y.T @ x) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _centred(name: str, rows: np.ndarray) -> np.ndarray:
    """Features with mean 0 over the tokens, in a unit in which their squares neither overflow nor vanish."""
    if (rows == rows[0]).all():
        raise ValueError(f"{name}: expected tokens that differ, got the same features for all {len(rows)}")
    rows = rows / np.abs(rows).max()
    return rows - rows.mean(0)


def local_neighborhood_similarity(x: Operand, y: Operand, k: int = 10) -> float:
    """Mean Jaccard overlap of each token's k nearest neighbours, by cosine, in two representations.

    Parameters
    ----------
    x, y : array_like (N, D), (N, E)
        Representations of the same N tokens, row by row; computed in float64.
    k : int
        Number of neighbours, 1 ≤ k ≤ N − 1; a token is not its own neighbour. Of neighbours as near (to ten
        decimals of the cosine) the earlier ones count.

    Returns
    -------
    float
        |A ∩ B| / |A ∪ B|, averaged: 1 if all neighbourhoods agree, about k / (2 N) for unrelated ones.

    Raises
    ------
    ValueError
        For other shapes, another k, numbers that are not finite, or a token whose features are all zero.

    Notes
    -----
    Boggust et al. 2022, as used by paper 79. Takes O(N²) memory.
    """
    x, y = _pair(x, y)
    if not 1 <= k < len(x):
        raise ValueError(f"k: expected between 1 and {len(x) - 1} for {len(x)} tokens, got {k}")
    a, b = _neighbours("x", x, k), _neighbours("y", y, k)
    shared = (a & b).sum(1)
    return float(np.mean(shared / (2 * k - shared)))


def _neighbours(name: str, rows: np.ndarray, k: int) -> np.ndarray:
    """Whether j is among the k nearest of i, (N, N)."""
    largest = np.abs(rows).max(1, keepdims=True)
    if not largest.all():
        raise ValueError(f"{name}: expected no token of zeros, got zeros for token {largest.argmin()}")
    unit = rows / largest  # so that squares neither overflow nor vanish
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distance = -np.round(unit @ unit.T, DECIMALS)
    np.fill_diagonal(distance, np.inf)
    near = np.zeros(distance.shape, bool)
    np.put_along_axis(near, np.argsort(distance, axis=1, kind="stable")[:, :k], True, axis=1)
    return near


def _pair(x: Operand, y: Operand) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (N, ·), checked."""
    x, y = (np.asarray(raw(a), dtype=np.float64) for a in (x, y))
    for name, rows in (("x", x), ("y", y)):
        if rows.ndim != 2 or not rows.shape[1]:
            raise ValueError(f"{name}: expected shape (N, D), got {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"y: expected as many tokens as in x, at least 2, got {len(y)} and {len(x)}")
    return x, y
