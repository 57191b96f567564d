"""Which form of a kernel runs: compiled by Numba where it is installed and the array fits, else the NumPy reference."""

from __future__ import annotations

import functools
import warnings

import numpy as np

from minattn.autograd.engine import Array

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@functools.cache
def have_numba() -> bool:
    """Whether Numba can be imported; says so once if not."""
    try:
        import numba  # noqa: F401
    except ImportError:
        warnings.warn("Numba is not installed: minattn's kernels run in NumPy, more slowly", stacklevel=3)
        return False
    return True


def compiled(*arrays: Array) -> bool:
    """Whether the Numba form serves these arrays: NumPy's, all float32 or all float64."""
    dtype = arrays[0].dtype
    return dtype in _FLOATS and all(type(a) is np.ndarray and a.dtype == dtype for a in arrays) and have_numba()
