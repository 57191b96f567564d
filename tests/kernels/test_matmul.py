"""Products of parts of larger arrays inside compiled loops, against NumPy."""

import itertools

import numpy as np
import pytest

pytest.importorskip("numba")
from numba import njit

from minattn.kernels.cpu import matmul
from minattn.kernels.cpu.matmul import product

SIZES = (1, 4, 7, 17, 35)


@njit
def multiply(a, b, c, alpha, beta):
    product(a, b, c, alpha, beta)


def part(rng, rows, columns, dtype, margin):
    """Random numbers inside a larger array of NaN, and that array."""
    whole = np.full((rows + 2 * margin, columns + 2 * margin), np.nan, dtype)
    inside = whole[margin: margin + rows, margin: margin + columns]
    inside[:] = rng.standard_normal((rows, columns))
    return inside, whole


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 5e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("alpha, beta, margin", [(1, 0, 3), (1, 1, 3), (-0.5, 2.0, 3), (0.3, 0, 0)])
def test_equals_numpy(dtype, tolerance, turned, alpha, beta, margin):
    rng = np.random.default_rng(0)
    for m, n, k in itertools.product(SIZES, repeat=3):
        a = part(rng, k, m, dtype, margin)[0].T if turned else part(rng, m, k, dtype, margin)[0]
        b, _ = part(rng, k, n, dtype, margin)
        c, around = part(rng, m, n, dtype, margin)
        want = alpha * (a.astype(float) @ b) + beta * c
        if beta == 0:
            c[:] = np.nan  # what the result held is not read
        multiply(a, b, c, dtype(alpha), dtype(beta))
        np.testing.assert_allclose(c, want, rtol=0, atol=tolerance)
        assert np.isnan(around).sum() == around.size - c.size  # and nothing beside it is written


def test_every_kind_of_block_is_met():
    """More than a whole block in both directions, and something left of each."""
    for dtype in (np.float32, np.float64):
        wide = matmul.V * matmul.BYTES // np.dtype(dtype).itemsize
        assert any(n > wide and n % wide for n in SIZES)
        assert any(m > matmul.R and m % matmul.R for m in SIZES)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_of_any_distances(dtype):
    """Every other column backwards, rows three apart, and one number everywhere."""
    rng = np.random.default_rng(1)
    whole, b = rng.standard_normal((21, 30)).astype(dtype), rng.standard_normal((15, 9)).astype(dtype)
    everywhere = [np.broadcast_to(x, (7, 15)) for x in (whole[:7, :1], whole[0, 0])]
    for a in (whole[::3, ::-2], *everywhere):
        c = np.empty((7, 9), dtype)
        multiply(a, b, c, dtype(1), dtype(0))
        np.testing.assert_allclose(c, a @ b, rtol=0, atol=1e-5)


def test_nothing_beyond_the_last_page_is_read():
    """The end of a product's arrays may be the end of what the process may read."""
    import mmap

    n = mmap.PAGESIZE // 4
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    _protect(pages, mmap.PAGESIZE)
    x = np.frombuffer(pages, np.float32, n)
    x[:] = np.random.default_rng(2).standard_normal(n)
    a, b = x[-15:].reshape(3, 5), x[-35:].reshape(5, 7)
    c = np.empty((3, 7), np.float32)
    multiply(a, b, c, np.float32(1), np.float32(0))
    np.testing.assert_allclose(c, a @ b, rtol=0, atol=1e-5)


def _protect(pages, start):
    """Take all rights to what lies behind `start`."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mprotect"):
        pytest.skip("mprotect is not to be had here")
    at = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + start
    assert libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(len(pages) - start), 0) == 0
