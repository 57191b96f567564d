"""The exponential of the compiled kernels against long doubles."""

import numpy as np
import pytest

exp = pytest.importorskip("minattn.kernels.cpu.exp")
numba = pytest.importorskip("numba")


@numba.njit
def exps(x, out):
    for i in range(x.size):
        out[i] = exp.exp(x[i])


def run(x):
    out = np.full_like(x, 7)
    exps(x, out)
    return out


def test_single_precision_is_within_two_units_in_the_last_place():
    x = np.concatenate([np.linspace(-87, 88, 1_000_001), np.linspace(-1e-3, 1e-3, 1001)]).astype(np.float32)
    error = np.abs(run(x) / np.exp(x.astype(np.longdouble)) - 1)
    assert error.max() < 2e-7 and error.max() > 2e-8


def test_single_precision_at_the_ends():
    x = np.array([0, -87.01, -1e30, -np.inf, 88, 1e30, np.nan], np.float32)
    top = np.exp(np.float32(88))
    np.testing.assert_allclose(run(x), [1, 0, 0, 0, top, top, np.nan], rtol=2e-7)


def test_double_precision_is_the_librarys():
    x = np.array([0.0, 1, -3.5, 700, -np.inf])
    np.testing.assert_allclose(run(x), np.exp(x), rtol=1e-15)
