"""`minattn.kernels.dropout`: the mask is that of the generator, and the mean stays."""

import numpy as np
import pytest

from minattn.autograd import Tensor, grad
from minattn.kernels import dropout
from minattn.testing import check_grads


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entries_are_zero_or_scaled(dtype):
    x = np.random.default_rng(0).standard_normal((200, 300)).astype(dtype)
    out = dropout(x, 0.3, np.random.default_rng(1))
    kept = out != 0
    assert type(out) is np.ndarray and out.dtype == dtype
    np.testing.assert_allclose(out[kept], x[kept] / dtype(0.7), rtol=1e-6)
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / x.size)
    assert abs(dropout(np.ones(60_000), 0.3, np.random.default_rng(2)).mean() - 1) < 0.02


def test_the_generator_decides():
    x = np.ones(100)
    np.testing.assert_array_equal(
        dropout(x, 0.5, np.random.default_rng(3)), dropout(x, 0.5, np.random.default_rng(3))
    )
    kept = np.random.default_rng(3).random(100, dtype=np.float32) >= 0.5
    np.testing.assert_array_equal(dropout(x, 0.5, np.random.default_rng(3)), 2 * kept)
    rng = np.random.default_rng(3)
    assert (dropout(x, 0.5, rng) != dropout(x, 0.5, rng)).any()


def test_gradient_is_the_mask():
    x = Tensor(np.ones((5, 6)), requires_grad=True)
    out = dropout(x, 0.4, np.random.default_rng(0))
    u = np.random.default_rng(1).standard_normal((5, 6))
    np.testing.assert_allclose(grad(out, x, u)[0].data, out.data * u)
    check_grads(lambda x: dropout(x, 0.4, np.random.default_rng(0)), np.ones((2, 3)))


def test_nothing_is_dropped_with_probability_zero():
    x = Tensor(np.ones(3))
    assert dropout(x, 0, np.random.default_rng(0)) is x
    assert (dropout(np.ones(1000), 1e-9, np.random.default_rng(0)) > 0).all()


@pytest.mark.parametrize("p", [-0.1, 1, 1.0, 1.5])
def test_probability_is_checked(p):
    with pytest.raises(ValueError, match=rf"p: expected a probability in \[0, 1\), got {p}"):
        dropout(np.ones(3), p, np.random.default_rng(0))


@pytest.mark.parametrize("rng", [None, 0, np.random.RandomState(0)])
def test_generator_is_checked(rng):
    with pytest.raises(
        TypeError, match=rf"rng: expected a numpy\.random\.Generator, got {type(rng).__name__}"
    ):
        dropout(np.ones(3), 0.0, rng)


def test_other_library(other_library):
    x = np.arange(1.0, 7)
    there = dropout(other_library(x), 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(there.get(), dropout(x, 0.5, np.random.default_rng(0)))
