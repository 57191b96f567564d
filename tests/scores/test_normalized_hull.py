"""The convex hull: two ways to tell; softmax stays in it, normalised attention leaves it."""

import sys

import numpy as np
import pytest

from minattn.attention import attention
from minattn.scores.normalized import normalized_attention
from minattn.scores.normalized_hull import in_convex_hull, naive_in_convex_hull

pytestmark = pytest.mark.paper(37)

TRIANGLE = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize("inside", [in_convex_hull, naive_in_convex_hull])
def test_a_triangle(inside):
    for point in ([0.2, 0.2], [0.5, 0.5], [0, 0], [1, 0], [0.3, 0.0]):
        assert inside(point, TRIANGLE) is True
    for point in ([0.5, 0.501], [-1e-3, 0.5], [0.2, -0.1], [2, 0], [-1, -1]):
        assert inside(point, TRIANGLE) is False


@pytest.mark.parametrize("n, D", [(1, 1), (1, 3), (2, 1), (2, 3), (5, 2), (6, 3), (3, 3), (7, 1)])
def test_both_ways_agree(n, D):
    pytest.importorskip("scipy")
    rng = np.random.default_rng([n, D])
    vertices = rng.standard_normal((n, D))
    answers = []
    for _ in range(20):
        for point in (rng.dirichlet(np.ones(n)) @ vertices, 0.7 * rng.standard_normal(D)):
            answers.append(in_convex_hull(point, vertices))
            assert answers[-1] == naive_in_convex_hull(point, vertices)
    assert all(answers[::2])
    if (n, D) != (7, 1):
        assert not all(answers[1::2])


def test_more_vertices_than_a_simplex_needs():
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5]])
    for inside in (in_convex_hull, naive_in_convex_hull):
        assert inside([0.9, 0.8], square) and not inside([1.1, 0.8], square)


def outputs(form, n, D, seed, draws=60):
    """One query's output and the values it was made of, again and again."""
    rng = np.random.default_rng([seed, n, D])
    for _ in range(draws):
        q, k, v = rng.standard_normal((1, 1, 1, 8)), rng.standard_normal((1, 1, n, 8)), rng.standard_normal(
            (1, 1, n, D))
        yield form(q, k, v)[0, 0, 0], v[0, 0]


@pytest.mark.parametrize("n", [8, 32])
@pytest.mark.parametrize("D", [2, 4, 6])
def test_softmax_stays_inside(n, D):
    assert all(in_convex_hull(*pair) for pair in outputs(attention, n, D, 0))


def test_normalised_attention_leaves():
    for D, bar in ((4, 0.95), (8, 0.95), (2, 0.8)):
        drawn = (pair for n in (8, 16, 32) for pair in outputs(normalized_attention, n, D, 1))
        out = [not in_convex_hull(*pair) for pair in drawn]
        assert np.mean(out) > bar
    assert np.mean(out) < 1  # of values in the plane, some stay inside


def test_mistakes(monkeypatch):
    for inside in (in_convex_hull, naive_in_convex_hull):
        with pytest.raises(ValueError, match=r"^vertices: expected shape \(n, D\) with n ≥ 1, got \(2,\)$"):
            inside([0, 0], [0, 0])
        with pytest.raises(ValueError, match=r"^vertices: expected shape .*, got \(0, 2\)$"):
            inside([0, 0], np.zeros((0, 2)))
        with pytest.raises(ValueError, match=r"^point: expected shape \(2,\), as the vertices, got \(3,\)$"):
            inside([0, 0, 0], TRIANGLE)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"^in_convex_hull needs SciPy's linear programming: python -m pip"):
        in_convex_hull([0, 0], TRIANGLE)


def test_tolerance():
    outside = [0.5, 0.5 + 1e-5]
    for inside in (in_convex_hull, naive_in_convex_hull):
        assert not inside(outside, TRIANGLE)
        assert inside(outside, TRIANGLE, tol=1e-4)
