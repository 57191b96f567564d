"""Products of parts of larger arrays inside compiled loops, against NumPy."""

import itertools

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("scipy")
pytest.importorskip("threadpoolctl")
from numba import njit
from threadpoolctl import threadpool_info

from minattn.kernels.cpu.gemm import one_blas_thread, product

SIZES = (1, 4, 17)


@njit
def multiply(a, turn_a, b, turn_b, c, factors):
    product(a, turn_a, b, turn_b, c, factors)


def part(rng, rows, columns, dtype, margin):
    """Random numbers inside a larger array of NaN, and that array."""
    whole = np.full((rows + 2 * margin, columns + 2 * margin), np.nan, dtype)
    inside = whole[margin: margin + rows, margin: margin + columns]
    inside[:] = rng.standard_normal((rows, columns))
    return inside, whole


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
@pytest.mark.parametrize("alpha, beta, margin", [(1, 0, 3), (1, 1, 3), (-0.5, 2.0, 3), (0.3, 0, 0)])
def test_equals_numpy(dtype, tolerance, turn_a, turn_b, alpha, beta, margin):
    rng = np.random.default_rng(0)
    for m, n, k in itertools.product(SIZES, repeat=3):
        a, _ = part(rng, *((k, m) if turn_a else (m, k)), dtype, margin)
        b, _ = part(rng, *((n, k) if turn_b else (k, n)), dtype, margin)
        c, around = part(rng, m, n, dtype, margin)
        want = alpha * (a.T if turn_a else a).astype(float) @ (b.T if turn_b else b) + beta * c
        if beta == 0:
            c[:] = np.nan  # what the result held is not read
        multiply(a, turn_a, b, turn_b, c, np.array([alpha, beta], dtype))
        np.testing.assert_allclose(c, want, rtol=0, atol=tolerance)
        assert np.isnan(around).sum() == around.size - c.size  # and nothing beside it is written


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [-5, 0, 1, 1000])
def test_a_single_row_may_stand_anywhere(dtype, step):
    """What the next row's distance would be says nothing then."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((1, 4)).astype(dtype), rng.standard_normal((1, 4)).astype(dtype)
    c, size = np.zeros((1, 1), dtype), np.dtype(dtype).itemsize
    odd = [np.lib.stride_tricks.as_strided(x, strides=(step * size, size)) for x in (a, b, c)]
    multiply(odd[0], False, odd[1], True, odd[2], np.array([1, 0], dtype))
    np.testing.assert_allclose(c, a @ b.T, rtol=1e-5)


def test_one_blas_thread_and_then_as_before():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before = threads()
    with one_blas_thread():
        assert before and set(threads()) == {1}
    assert threads() == before


def test_one_blas_thread_where_there_were_more():
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2, "blas"):
        with one_blas_thread():
            inside = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        after = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
    assert inside == {1} and after == {2}
