"""In-context regression: values against loops, moments against the stated distributions."""

import numpy as np
import pytest

from minattn.data import linear_regression


def test_values_are_the_inner_products():
    x, y, w = linear_regression(np.random.default_rng(0), 4, 7, 3, dtype=np.float64)
    assert x.shape == (4, 7, 3) and y.shape == (4, 7) and w.shape == (4, 3)
    for b in range(4):
        for i in range(7):
            assert np.isclose(y[b, i], sum(x[b, i, k] * w[b, k] for k in range(3)), rtol=1e-12)
    assert np.std(w, axis=0).min() > 0.1  # every sequence has weights of its own


def test_moments():
    sigma = np.array([[2.0, 0.6], [0.6, 0.5]])
    x, y, w = linear_regression(
        np.random.default_rng(0),
        20_000,
        5,
        2,
        noise=0.3,
        weight_scale=0.7,
        covariance=sigma,
        dtype=np.float64,
    )
    assert np.allclose(np.cov(x.reshape(-1, 2).T), sigma, atol=0.03)
    assert np.allclose(np.cov(w.T), 0.49 * np.eye(2), atol=0.02)
    error = y - np.einsum("bnd,bd->bn", x, w)
    assert np.isclose(error.std(), 0.3, atol=0.005)
    assert abs(np.corrcoef(error[:, 0], error[:, 1])[0, 1]) < 0.03


def test_dtype_and_least_squares_recovers_the_weights():
    x, y, w = linear_regression(np.random.default_rng(0), 3, 10, 4)
    assert x.dtype == y.dtype == w.dtype == np.float32
    for b in range(3):
        assert np.allclose(np.linalg.lstsq(x[b], y[b], rcond=None)[0], w[b], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise": -1}, "noise"),
        ({"weight_scale": -1}, "weight_scale"),
        ({"dim": 0}, "dim"),
        ({"covariance": np.eye(3)}, "covariance"),
        ({"covariance": [[1, 0.5], [0.4, 1]]}, "symmetric"),
        ({"covariance": [[1, 2], [2, 1]]}, "positive definite"),
    ],
)
def test_bad_input(change, words):
    with pytest.raises(ValueError, match=words):
        linear_regression(np.random.default_rng(0), **{"batch": 1, "points": 2, "dim": 2} | change)
    with pytest.raises(TypeError, match="rng"):
        linear_regression(0, 1, 1, 1)
