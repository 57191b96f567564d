"""Is a point a weighted mean of others? The cage in which softmax attention keeps its outputs.

Richter and Wattenhofer, Normalized Attention Without Probability Cage, arXiv 2005.09561 (paper 37).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from minattn.autograd.engine import Array

PAPERS = (37,)

__all__ = ["in_convex_hull", "naive_in_convex_hull"]


def in_convex_hull(point: Array, vertices: Array, tol: float = 1e-7) -> bool:
    """Whether a point is a weighted mean of vertices, by a linear programme: λ ≥ 0, Σ λ = 1, Vᵀ λ = point.

    Parameters
    ----------
    point : (D,)
    vertices : (n, D)
    tol : float
        Largest violation of the equations that counts as none.

    Raises
    ------
    ImportError
        If SciPy, whose solver this needs, is not installed.
    ValueError
        If shapes do not fit.

    References
    ----------
    Richter and Wattenhofer, arXiv 2005.09561 (paper 37).
    """
    point, vertices = _checked_hull(point, vertices)
    try:
        from scipy.optimize import linprog
    except ImportError as error:
        raise ImportError("in_convex_hull needs SciPy's linear programming: python -m pip install scipy"
                          ) from error
    equations = np.vstack([vertices.T, np.ones(len(vertices))])
    found = linprog(np.zeros(len(vertices)), A_eq=equations, b_eq=np.append(point, 1),  # λ ≥ 0 goes unsaid
                    options={"primal_feasibility_tolerance": tol})
    return bool(found.status == 0)


def naive_in_convex_hull(point: Array, vertices: Array, tol: float = 1e-9) -> bool:
    """`in_convex_hull` by enumeration: a point of the hull lies in a simplex of at most D + 1 vertices.

    Carathéodory's theorem. Each set of that many vertices is solved for its weights, so this is for few.
    """
    point, vertices = _checked_hull(point, vertices)
    n, D = vertices.shape
    for chosen in combinations(range(n), min(n, D + 1)):
        A = np.vstack([vertices[list(chosen)].T, np.ones(len(chosen))])
        b = np.append(point, 1)
        weights = np.linalg.lstsq(A, b, rcond=None)[0]
        if np.abs(A @ weights - b).max() <= tol and weights.min() >= -tol:
            return True
    return False


def _checked_hull(point: Array, vertices: Array) -> tuple[np.ndarray, np.ndarray]:
    point, vertices = np.asarray(point, np.float64), np.asarray(vertices, np.float64)
    if vertices.ndim != 2 or not len(vertices):
        raise ValueError(f"vertices: expected shape (n, D) with n ≥ 1, got {vertices.shape}")
    if point.shape != vertices.shape[1:]:
        raise ValueError(f"point: expected shape {vertices.shape[1:]}, as the vertices, got {point.shape}")
    return point, vertices
