"""Score functions compiled into loops over a tile: their values, derivatives, and which of them are kept."""

import ctypes
import math

import numpy as np
import pytest

import minattn as mn
from minattn.autograd import Tensor
from minattn.kernels.mods import like

pytest.importorskip("numba")
from numba import njit

from minattn.kernels.cpu import mods
from minattn.kernels.cpu.mods import change_tile, tile_function

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(mods, "_kept", {})


def run(score_mod, s, at=(0, 0, 0, 0), gradient=False):
    """The compiled loop on a tile at (b, h, i0, j0): what becomes of s, and the slope (or what that held).

    In the kernels a tile is keys by queries, and longer than there are queries: what follows is not touched.
    """
    m, n = s.shape
    s, slope = (np.concatenate([x.T, np.full((n, 3), 7, s.dtype)], 1) for x in (s, np.full_like(s, 7)))
    pointer = ctypes.POINTER(np.ctypeslib.as_ctypes_type(s.dtype))
    pointers = [ctypes.cast(x.ctypes.data, pointer) for x in (s, slope)]
    tile_function(score_mod, s.dtype, gradient).ctypes(*pointers, *s.shape, m, *at)
    assert (s[:, m:] == 7).all() and (slope[:, m:] == 7).all()
    return s[:, :m].T, slope[:, :m].T


def tile(dtype=np.float64):
    return np.random.default_rng(0).standard_normal((4, 5)).astype(dtype) * 2


# ---- values and derivatives

FUNCTIONS = {
    # of minattn, and the derivative as a function of the number
    "exp": (mn.exp, np.exp, np.exp),
    "tanh": (mn.tanh, np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": (mn.sigmoid, lambda x: 1 / (1 + np.exp(-x)), lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
    "relu": (mn.relu, lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
}


@pytest.mark.parametrize("dtype, tolerance", [(F32, 5e-7), (F64, 1e-15)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_minattn(name, dtype, tolerance):
    f, value, slope = FUNCTIONS[name]
    s = tile(dtype)
    s[0, 0] = 0
    want = value(s.astype(float)), slope(s.astype(float))
    mod = lambda x, b, h, i, j: f(x)  # noqa: E731
    found, untouched = run(mod, s)
    moved, slopes = run(mod, s, gradient=True)
    for got, expected in ((found, want[0]), (moved, want[0]), (slopes, want[1])):
        np.testing.assert_allclose(got / (1 + np.abs(expected)), expected / (1 + np.abs(expected)), rtol=0,
                                   atol=tolerance)
    assert (untouched == 7).all()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_functions_of_minattn_at_the_ends(dtype):
    far = np.array([[1e4, -1e4, 200, -200, np.nan]], dtype)
    for f, ends in ((mn.tanh, [1, -1, 1, -1, np.nan]), (mn.sigmoid, [1, 0, 1, 0, np.nan]),
                    (mn.relu, [1e4, 0, 200, 0, np.nan])):
        mod = lambda x, b, h, i, j: f(x)  # noqa: B023, E731
        found, _ = run(mod, far)
        moved, slopes = run(mod, far, gradient=True)
        for got in (found, moved):
            np.testing.assert_allclose(got[0], ends, atol=1e-30)
        assert np.isfinite(slopes[0, :4]).all()


def test_where_arithmetic_and_indices():
    weights = np.arange(24.0).reshape(2, 3, 4)

    def mod(s, b, h, i, j):
        return mn.where((j > i) | (h == 2), s * weights[b, h, i % 4] - 1.5, -s / (1 + abs(i - j)))

    s, (b, h, i0, j0) = tile(), (1, 2, 3, 2)
    for h in (1, 2):
        found, _ = run(mod, s, (b, h, i0, j0))
        moved, slopes = run(mod, s, (b, h, i0, j0), gradient=True)
        for r, c in np.ndindex(s.shape):
            i, j = i0 + r, j0 + c
            chosen = j > i or h == 2
            slope = weights[b, h, i % 4] if chosen else -1 / (1 + abs(i - j))
            want = slope * s[r, c] - (1.5 if chosen else 0)
            assert found[r, c] == pytest.approx(want, abs=1e-14) == pytest.approx(moved[r, c], abs=1e-14)
            assert slopes[r, c] == pytest.approx(slope, abs=1e-13)


@pytest.mark.parametrize("dtype, tolerance", [(F32, 1e-6), (F64, 1e-14)])
def test_small_and_large_derivatives(dtype, tolerance):
    for factor in (1e-12, 1.0, 1e12):
        _, slopes = run(lambda s, b, h, i, j: s * s * factor, tile(dtype), gradient=True)  # noqa: B023
        np.testing.assert_allclose(slopes, 2 * factor * tile(dtype).astype(float), rtol=tolerance)


def test_constants_stay_in_the_precision_of_the_scores():
    """Captured float64 does not widen float32, so the compiled loop is the arithmetic of float32."""
    by, table = 0.1, np.full(3, 0.1)
    s = tile(F32)
    found, _ = run(lambda s, b, h, i, j: s * by, s)
    np.testing.assert_array_equal(found, s * np.float32(0.1))
    found, _ = run(lambda s, b, h, i, j: s * table[0], s)
    np.testing.assert_array_equal(found, s * np.float32(0.1))
    found, _ = run(lambda s, b, h, i, j: s * 0.1, s)
    np.testing.assert_array_equal(found, s * np.float32(0.1))
    wide, _ = run(lambda s, b, h, i, j: s * by, tile())
    np.testing.assert_array_equal(wide, tile() * 0.1)
    assert table.dtype == np.float64 and isinstance(by, float)


def test_whole_numbers_stay_whole():
    order, n = np.array([2, 0, 1]), 3
    found, _ = run(lambda s, b, h, i, j: s + order[j % n] // 2, np.zeros((1, 6), np.float32))
    np.testing.assert_array_equal(found, [[1, 0, 0, 1, 0, 0]])


def test_a_tile_inside_a_kernel():
    @njit
    def kernel(address, s, slope):
        change_tile(address, s, slope, 4, 1, 2, 3, 4)

    s, slope = tile(), np.zeros((4, 5))
    kernel(0, s, slope)
    np.testing.assert_array_equal(s, tile())
    compiled = tile_function(lambda s, b, h, i, j: s * b + 10 * h + 100 * i + 1000 * j, F64, True)
    kernel(compiled.address, s, slope)
    want = tile() + 20 + 100 * np.arange(3, 8) + 1000 * np.arange(4, 8)[:, None]
    np.testing.assert_allclose(s[:, :4], want[:, :4], rtol=1e-15)
    np.testing.assert_allclose(slope[:, :4], 1, rtol=1e-12)
    np.testing.assert_array_equal(s[:, 4], tile()[:, 4])


# ---- what has no loop

class Holder:
    def mod(self, s, b, h, i, j):
        return s


def test_derivatives_that_a_step_to_the_side_would_miss():
    """The values have a loop; the derivative must not come from one that loses the step."""
    dtype = F64
    for mod in (lambda s, b, h, i, j: abs(s), lambda s, b, h, i, j: s**2, lambda s, b, h, i, j: s**3,
                lambda s, b, h, i, j: 2.0**s, lambda s, b, h, i, j: s * np.abs(s),
                lambda s, b, h, i, j: s * np.real(s)):
        assert tile_function(mod, dtype) is not None and tile_function(mod, dtype, True) is None

    def in_place(s, b, h, i, j):
        s **= 3
        return s

    assert tile_function(in_place, dtype) is not None and tile_function(in_place, dtype, True) is None
    for mod in (lambda s, b, h, i, j: s * abs(i - j), lambda s, b, h, i, j: s * 2.0 ** abs(i - j),
                lambda s, b, h, i, j: s * (i > j), lambda s, b, h, i, j: s - like(0.5 * i, s)):
        assert tile_function(mod, dtype, True) is not None


def test_what_cannot_be_compiled():
    tensor, text, big = Tensor(np.ones(3)), "x", np.ones(10_001)
    some, plain = [1.0], np.array([1 + 2j])
    for mod in (lambda s, b, h, i, j: s + tensor[0], lambda s, b, h, i, j: s if text else 0,
                lambda s, b, h, i, j: s * big[0], lambda s, b, h, i, j: s * some[0],
                lambda s, b, h, i, j: s * plain[0].real, lambda s, b, h, i, j: mn.log(s),
                lambda s, b: s, lambda s, b, h, i, j, *, w=2: s * w, Holder().mod, Holder(), mn.exp, math.exp,
                lambda s, b, h, i, j, w=text: s):
        assert tile_function(mod, F64) is None and tile_function(mod, F64, True) is None
    fits = big[1:]
    assert tile_function(lambda s, b, h, i, j: s * fits[0], F64) is not None


def test_a_condition_on_the_score_has_values_alone():
    mod = lambda s, b, h, i, j: mn.where(s > 0, s, 0.0)  # noqa: E731
    np.testing.assert_array_equal(run(mod, tile())[0], np.maximum(tile(), 0))
    assert tile_function(mod, F64, True) is None


# ---- what is kept

@pytest.fixture
def compiled(monkeypatch):
    """Compilations, which give numbers in place of functions."""
    made = []

    def compile_(mod, dtype, gradient):
        made.append((dtype, gradient))
        return len(made)

    monkeypatch.setattr(mods, "_compile", compile_)
    return made


def times(factor):
    return lambda s, b, h, i, j: s * factor


def test_equal_functions_are_compiled_once(compiled):
    table = np.arange(3.0)
    for _ in range(2):
        assert tile_function(times(2.0), F64) == tile_function(times(2.0), F64) == 1
        assert tile_function(times(2.0), F64, True) == 2
        assert tile_function(times(2.0), F32) == 3
        assert tile_function(times(table), F64) == tile_function(times(table.copy()), F64) == 4
    assert compiled == [(F64, False), (F64, True), (F32, False), (F64, False)]


def test_unequal_functions_are_not(compiled):
    captured = [2.0, 3.0, 2, 1, True, np.float32(2), np.arange(3.0), np.arange(3), np.arange(3.0)[None],
                np.arange(3.0)[:, None], np.arange(1.0, 4), np.ones(3, np.float32), mn.exp, np.exp, math]
    found = [tile_function(times(x), F64) for x in captured]
    assert found == list(range(1, len(captured) + 1))
    assert [tile_function(times(x), F64) for x in captured] == found
    assert tile_function(lambda s, b, h, i, j: s / 2.0, F64) == len(captured) + 1


def test_functions_that_cannot_be_compiled_are_not_tried_again(monkeypatch):
    tries = []

    def fail(*args):
        tries.append(args)
        raise mods.NumbaError("no")

    monkeypatch.setattr(mods, "_compile", fail)
    assert tile_function(times(2.0), F64) is None and tile_function(times(2.0), F64) is None
    assert len(tries) == 1


def test_the_oldest_is_forgotten(compiled, monkeypatch):
    assert mods.KEPT >= 16
    monkeypatch.setattr(mods, "KEPT", 2)
    assert [tile_function(times(x), F64) for x in (1.0, 2.0, 3.0, 3.0, 2.0, 1.0)] == [1, 2, 3, 3, 2, 4]
    assert len(mods._kept) == 2


outer, unused = 1.0, [1]


def by_global(s, b, h, i, j):
    return s * outer


def by_inner(s, b, h, i, j):
    def inner(x):
        return x * outer
    return inner(s)


def by_default(s, b, h, i, j, factor=outer):
    return s * factor


@pytest.mark.parametrize("mod", [by_global, by_inner])
def test_changed_globals_are_seen(mod, compiled, monkeypatch):
    assert tile_function(mod, F64) == 1
    monkeypatch.setitem(globals(), "outer", 2.0)
    assert tile_function(mod, F64) == 2
    monkeypatch.setitem(globals(), "outer", [2.0])
    assert tile_function(mod, F64) is None
    monkeypatch.setitem(globals(), "outer", 1.0)
    assert tile_function(mod, F64) == 1


def test_changed_defaults_are_seen(compiled, monkeypatch):
    assert tile_function(by_default, F64) == 1
    monkeypatch.setattr(by_default, "__defaults__", (np.ones(2),))
    assert tile_function(by_default, F64) == 2
    monkeypatch.setattr(by_default, "__defaults__", ("text",))
    assert tile_function(by_default, F64) is None


def test_modules_whose_values_may_change_have_no_loop(compiled):
    import json

    import minattn.attention

    for module, known in ((math, True), (np, True), (np.linalg, True), (mn, True), (minattn.attention, True),
                          (json, False), (pytest, False)):
        assert (tile_function(times(module), F64) is not None) is known


# ---- like

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_like(dtype):
    x = np.array([0.5, 0.25])
    for score in (np.ones(2, dtype), Tensor(np.ones(2, dtype))):
        found = like(x, score)
        assert type(found) is np.ndarray and found.dtype == dtype
        np.testing.assert_array_equal(found, x)
    assert like(0.5, dtype(1)).dtype == dtype and like(2, dtype(1)).dtype == dtype


def test_like_of_numbers_and_other_libraries(other_library):
    assert like(0.5, 1.0) == 0.5 and type(like(0.5, 1.0)) is float and type(like(2, 1)) is int
    found = like(other_library(np.array([0.5])), other_library(np.ones(2, np.float32)))
    assert found.dtype == np.float32 and found.get() == [0.5]
