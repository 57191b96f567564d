"""Matrix products inside compiled loops: BLAS on parts of larger arrays, without copies.

Numba's own `np.dot` wants whole contiguous arrays and overwrites its result. The routine beneath it, which
Numba links for itself, takes the distance between rows, and a factor for what the result holds already.
"""

import functools
from contextlib import AbstractContextManager

from numba import njit, types

_xxgemm = types.ExternalFunction("numba_xxgemm", types.intc(
    types.char, types.char, types.char, types.intp, types.intp, types.intp, types.voidptr, types.voidptr,
    types.intp, types.voidptr, types.intp, types.voidptr, types.voidptr, types.intp))
SINGLE, DOUBLE, AS_IT_IS, TURNED = map(ord, "sdnt")


@njit(error_model="numpy")
def product(a, turn_a, b, turn_b, c, factors):
    """C ← α A B + β C with factors = [α, β]; A or B is transposed first if its flag is set.

    The rows of A, B and C are contiguous; C is not empty.
    """
    size = c.itemsize
    m, n = c.shape
    k = a.shape[0] if turn_a else a.shape[1]
    # BLAS goes by columns: it sees Aᵀ, Bᵀ and Cᵀ = Bᵀ Aᵀ. A single row has no next.
    _xxgemm(types.char(SINGLE if size == 4 else DOUBLE), types.char(TURNED if turn_b else AS_IT_IS),
            types.char(TURNED if turn_a else AS_IT_IS), n, m, k, factors[:1].ctypes,
            b.ctypes, max(b.strides[0] // size, b.shape[1]), a.ctypes, max(a.strides[0] // size, a.shape[1]),
            factors[1:].ctypes, c.ctypes, max(c.strides[0] // size, n))


@functools.cache
def _pools():
    import scipy.linalg.cython_blas  # noqa: F401  the library that Numba calls must be there to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager:
    """While this lasts, BLAS works on the thread that calls it: the loop around it has divided the work."""
    return _pools().limit(limits=1, user_api="blas")
