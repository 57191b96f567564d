"""Which form of a kernel runs: compiled by Numba where that is installed and the array fits, else NumPy's.

Compiled forms have no derivatives of derivatives; `recorded` takes them of the NumPy form.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from minattn.autograd import grad, reshape
from minattn.autograd.engine import Array, Operand, Tensor

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@functools.cache
def have_numba() -> bool:
    """Whether Numba can be imported; says so once if not."""
    try:
        import numba
    except ImportError:
        warnings.warn("Numba is not installed: minattn's kernels run in NumPy, more slowly", stacklevel=3)
        return False
    if "NUMBA_THREADING_LAYER" not in os.environ:  # OpenMP's threads spin and starve those of BLAS
        numba.config.THREADING_LAYER = "workqueue"
    return True


PATIENCE = 1_000_000
"""Entries up to which a kernel runs when its compiler is switched off: about a second of Python."""


def compiled(*arrays: Array, work: int = 0) -> bool:
    """Whether the Numba form serves these arrays: NumPy's, all float32 or all float64.

    With ``NUMBA_DISABLE_JIT=1`` it is a loop in Python, to be stepped through, and serves if neither the
    arrays nor `work`, the number of times that it goes round, exceed `PATIENCE`.
    """
    dtype = arrays[0].dtype
    fit = all(type(a) is np.ndarray and a.dtype == dtype for a in arrays)
    if not (fit and dtype in _FLOATS and have_numba()):
        return False
    return not _interpreted() or max(work, *(a.size for a in arrays)) <= PATIENCE


@functools.cache
def _interpreted() -> bool:
    """Whether Numba's compiler is switched off."""
    import numba

    return bool(numba.config.DISABLE_JIT)


@functools.cache
def have_blas() -> bool:
    """Whether compiled loops can call BLAS, which Numba finds in SciPy; an interpreted loop cannot."""
    return importlib.util.find_spec("scipy") is not None and not _interpreted()


_one_at_a_time = threading.Lock()


def launch(kernel: Callable, *args: Any) -> None:
    """Run a compiled kernel; one at a time, since Numba's work queue must not be entered by two threads."""
    with _one_at_a_time:
        kernel(*args)


def recorded(f: Callable, g: Operand, *args: Operand) -> tuple:
    """gᵀ ∂f/∂arg for each arg that wants it, else None; recorded, so that it can be differentiated again."""
    wanted = [isinstance(x, Tensor) and x.requires_grad for x in args]
    apart = [reshape(x, x.shape) for x in args]  # one tensor may come as several arguments
    inputs = [x for x, w in zip(apart, wanted, strict=True) if w]
    found = iter(grad([f(*apart)], inputs, [g], create_graph=True, allow_unused=True))
    return tuple(next(found) if w else None for w in wanted)
