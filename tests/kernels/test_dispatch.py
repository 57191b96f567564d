"""Which form of a kernel runs."""

import sys
import threading
import time
import warnings

import numpy as np
import pytest

from minattn.kernels import dispatch


def test_compiled_needs_arrays_of_one_float_dtype():
    pytest.importorskip("numba")
    x, y = np.ones(2, np.float32), np.ones(2)
    assert (
        dispatch.compiled(x) is True
        and dispatch.compiled(y)
        and dispatch.compiled(x, x)
        and dispatch.compiled(y, y, y)
    )
    assert not dispatch.compiled(x, y) and not dispatch.compiled(y, x)
    for dtype in (np.float16, np.int64, np.complex128, bool):
        assert not dispatch.compiled(np.ones(2, dtype))
    assert not dispatch.compiled(np.float64(1)) and not dispatch.compiled(y, np.float64(1))


def test_without_numba_the_reference_runs_and_says_so_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it raises
    dispatch.have_numba.cache_clear()
    try:
        with pytest.warns(
            UserWarning, match="Numba is not installed: minattn's kernels run in NumPy, more slowly"
        ):
            assert dispatch.have_numba() is False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not dispatch.compiled(np.ones(2))
    finally:
        dispatch.have_numba.cache_clear()


def test_without_the_compiler_small_arrays_alone_are_looped_over(monkeypatch):
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(dispatch, "PATIENCE", 5)
    small, large = np.ones(5), np.ones(6)
    for off in (False, True):
        monkeypatch.setattr(numba.config, "DISABLE_JIT", int(off))
        dispatch._interpreted.cache_clear()
        assert dispatch.compiled(small) and dispatch.compiled(small, work=5)
        assert dispatch.compiled(small, large) is dispatch.compiled(large) is not off
        assert dispatch.compiled(small, work=6) is not off
    dispatch._interpreted.cache_clear()


def test_threads_take_turns():
    running, most = [], []

    def kernel(k):
        running.append(k)
        most.append(len(running))
        time.sleep(0.005)
        running.remove(k)

    threads = [threading.Thread(target=dispatch.launch, args=(kernel, k)) for k in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert most == [1] * 5
