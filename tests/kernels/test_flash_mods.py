"""Score functions inside tiled attention, against loops over single numbers."""

import functools
import math

import numpy as np
import pytest

import minattn as mn
from minattn.attention.position import ALiBi, alibi_slopes
from minattn.autograd import Tensor, grad
from minattn.kernels import blocks, flash
from minattn.kernels.flash import flash_attention
from minattn.testing import check_grads
from tests.kernels import loops
from tests.kernels.loops import inputs, visible_array

pytest.importorskip("numba")

SHAPE = (2, 4, 2, 7, 9, 3, 5)
TABLE = np.random.default_rng(9).standard_normal((4, 16))
SLOPES = alibi_slopes(4)


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """Small tiles; the kernels that ran."""
    for name, size in {"ROWS": 3, "COLUMNS": 4}.items():
        monkeypatch.setattr(flash, name, size)
    monkeypatch.setattr(blocks, "TILE", 3)
    names = []

    def launch(run, kernel, *args):
        names.append(kernel.__name__)
        run(kernel, *args)

    monkeypatch.setattr(flash, "launch", launch)
    return names


def table_mod():
    table = TABLE.copy()
    return lambda s, b, h, i, j: s + table[h, i - j + 8]


def window_mod():
    width, slope = 3, 0.5
    return lambda s, b, h, i, j: mn.where(abs(i - j) < width, s, slope * s - 1)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


CASES = {
    # name: (score_mod, the same of numbers, its derivative by the score)
    "linear biases": (ALiBi(4).score_mod, lambda s, b, h, i, j: s - SLOPES[h] * abs(i - j),
                      lambda s, *at: 1),
    "table of relative positions": (table_mod(), lambda s, b, h, i, j: s + TABLE[h, i - j + 8],
                                    lambda s, *at: 1),
    "soft cap": (lambda s, b, h, i, j: 2 * mn.tanh(s / 2), lambda s, *at: 2 * math.tanh(s / 2),
                 lambda s, *at: 1 / math.cosh(s / 2) ** 2),
    "where": (window_mod(), lambda s, b, h, i, j: s if abs(i - j) < 3 else 0.5 * s - 1,
              lambda s, b, h, i, j: 1 if abs(i - j) < 3 else 0.5),
    "exp": (lambda s, b, h, i, j: mn.exp(s) / 2, lambda s, *at: math.exp(s) / 2,
            lambda s, *at: math.exp(s) / 2),
    "sigmoid": (lambda s, b, h, i, j: 5 * mn.sigmoid(-s), lambda s, *at: 5 * sigmoid(-s),
                lambda s, *at: -5 * sigmoid(s) * sigmoid(-s)),
    "relu": (lambda s, b, h, i, j: mn.relu(s) - 3 * mn.relu(-s), lambda s, *at: s if s > 0 else 3 * s,
             lambda s, *at: 1 if s > 0 else 3),
    "products and quotients": (lambda s, b, h, i, j: s * s / 3 - s / (2 + s * s),
                               lambda s, *at: s * s / 3 - s / (2 + s * s),
                               lambda s, *at: 2 * s / 3 - (2 - s * s) / (2 + s * s) ** 2),
    "one in another": (lambda s, b, h, i, j: mn.tanh(mn.exp(-mn.sigmoid(s)) * 2),
                       lambda s, *at: math.tanh(math.exp(-sigmoid(s)) * 2),
                       lambda s, *at: -2 * math.exp(-sigmoid(s)) * sigmoid(s) * sigmoid(-s)
                       / math.cosh(math.exp(-sigmoid(s)) * 2) ** 2),
    "of all indices": (lambda s, b, h, i, j: s * (1 + b) + 0.3 * h - (i + 2 * j) / 7,
                       lambda s, b, h, i, j: s * (1 + b) + 0.3 * h - (i + 2 * j) / 7,
                       lambda s, b, h, i, j: 1 + b),
    "NumPy on indices": (lambda s, b, h, i, j: s * np.exp(-abs(i - j) / 3.0),
                         lambda s, b, h, i, j: s * math.exp(-abs(i - j) / 3),
                         lambda s, b, h, i, j: math.exp(-abs(i - j) / 3)),
    "not of the score": (lambda s, b, h, i, j: 0 * s + 0.5 * (i - j) * (h - 1.5),
                         lambda s, b, h, i, j: 0.5 * (i - j) * (h - 1.5), lambda s, *at: 0),
}
DENSE = {
    "square": (lambda s, b, h, i, j: s**2, lambda s, *at: s * s, lambda s, *at: 2 * s),
    "cube": (lambda s, b, h, i, j: s**3 / 3, lambda s, *at: s**3 / 3, lambda s, *at: s * s),
    "modulus": (lambda s, b, h, i, j: s - abs(s) / 2, lambda s, *at: s - abs(s) / 2,
                lambda s, *at: 0.5 if s > 0 else 1.5),
    "comparison": (lambda s, b, h, i, j: mn.where(s > 0.2, s, 3 * s), lambda s, *at: s if s > 0.2 else 3 * s,
                   lambda s, *at: 1 if s > 0.2 else 3),
}


def outcome(arrays, g, **options):
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    out = flash_attention(*xs, **options)
    return [out.data, *(d.data for d in grad(out, xs, g))]


def check(case, cases, options):
    """Values and gradients, recorded and not, of one score function."""
    score_mod, mod, slope = cases[case]
    *arrays, g = inputs(*SHAPE, seed=len(case))
    seen = visible_array((2, 4, 7, 9), options.get("causal", False), options.get("offset", 0),
                         options.get("mask_mod"))
    plain = {"weight": options.get("weight", "softmax"), "mod": mod, "slope": slope}
    wanted = [loops.forward(*arrays, seen, **plain)[0], *loops.backward(*arrays, g, seen, **plain)]
    found = outcome(arrays, g, score_mod=score_mod, **options)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)
    np.testing.assert_allclose(flash_attention(*arrays, score_mod=score_mod, **options), wanted[0],
                               rtol=0, atol=1e-11)


OPTIONS = [{}, {"causal": True, "offset": 2}, {"weight": "sigmoid", "causal": True},
           {"weight": "relu"}, {"mask_mod": lambda b, h, i, j: (i + j + h) % 4 < 2}]


@pytest.mark.parametrize("case", CASES)
def test_equals_loops(case, launched):
    for options in OPTIONS:
        launched.clear()
        check(case, CASES, options)
        assert launched == ["forward", "backward", "forward"]


@pytest.mark.parametrize("case", CASES)
def test_all_scores_at_once_equal_loops(case, launched, monkeypatch):
    monkeypatch.setattr(flash, "compiled", lambda *arrays: False)
    for options in OPTIONS:
        check(case, CASES, options)
    assert launched == []


@pytest.mark.parametrize("case", DENSE)
def test_what_tiles_cannot_differentiate_is_computed_at_once(case, launched):
    for options in OPTIONS[:3]:
        check(case, DENSE, options)
    assert launched == ["forward"] * 3  # of arrays, which want no gradient


@pytest.mark.parametrize("case", ["soft cap", "linear biases", "table of relative positions", "sigmoid"])
def test_single_precision(case, launched, monkeypatch):
    """At most twice the error that all scores at once have, plus rounding."""
    score_mod, mod, slope = CASES[case]
    *arrays, g = inputs(*SHAPE, np.float32)
    seen = visible_array((2, 4, 7, 9), True, 1)
    wanted = [loops.forward(*arrays, seen, mod=mod)[0],
              *loops.backward(*arrays, g, seen, mod=mod, slope=slope)]
    tiled = outcome(arrays, g, score_mod=score_mod, causal=True, offset=1)
    assert launched == ["forward", "backward"]
    if case.startswith("table"):  # float64 in the table: tiles take it in the precision of the scores
        table = TABLE.astype(np.float32)
        score_mod = lambda s, b, h, i, j: s + table[h, i - j + 8]  # noqa: E731
    monkeypatch.setattr(flash, "compiled", lambda *arrays: False)
    dense = outcome(arrays, g, score_mod=score_mod, causal=True, offset=1)
    for got, plain, want in zip(tiled, dense, wanted, strict=True):
        assert got.dtype == np.float32
        assert np.abs(got - want).max() <= 2 * np.abs(plain - want).max() + 4e-7 * (1 + np.abs(want).max())


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_soft_cap_of_large_scores(dtype, tolerance):
    *arrays, g = inputs(*SHAPE, dtype)
    arrays[0] *= 3e4
    seen = visible_array((2, 4, 7, 9))
    mod = CASES["soft cap"][1]
    slope = lambda s, *at: 1 / math.cosh(min(abs(s), 700) / 2) ** 2  # noqa: E731
    want = loops.forward(*arrays, seen, mod=mod)[0]
    found = outcome(arrays, g, score_mod=CASES["soft cap"][0])
    np.testing.assert_allclose(found[0], want, rtol=0, atol=tolerance)
    assert all(np.isfinite(x).all() for x in found)
    for got, expected in zip(found[1:], loops.backward(*arrays, g, seen, mod=mod, slope=slope), strict=True):
        scale = 1 + np.abs(expected).max()
        np.testing.assert_allclose(got / scale, expected / scale, rtol=0, atol=tolerance)


slopes_of_module = np.array([0.0, 1.0, 2.0, 3.0])


def by_global(s, b, h, i, j):
    return s - slopes_of_module[h] * abs(i - j)


def test_changed_values_are_seen(launched, monkeypatch):
    """Of captured arrays, changed in place or replaced, of captured numbers, defaults and globals."""
    *arrays, _ = inputs(*SHAPE)
    seen, table, factor = visible_array((2, 4, 7, 9)), np.zeros(4), 1.0
    captured = lambda s, b, h, i, j: factor * s - table[h] * abs(i - j)  # noqa: E731

    def default(s, b, h, i, j, slopes=table):
        return s - slopes[h] * abs(i - j)

    def expect(score_mod, slopes, factor):
        want = loops.forward(*arrays, seen, mod=lambda s, b, h, i, j: factor * s - slopes[h] * abs(i - j),
                             slope=lambda *a: 1)[0]
        np.testing.assert_allclose(flash_attention(*arrays, score_mod=score_mod), want, rtol=0, atol=1e-12)

    for slopes in (np.zeros(4), SLOPES):
        table[:] = slopes
        expect(captured, slopes, factor)
        expect(default, slopes, 1.0)
        monkeypatch.setitem(globals(), "slopes_of_module", slopes)
        expect(by_global, slopes, 1.0)
    factor = -2.0
    expect(captured, slopes, -2.0)
    table = np.ones(4)
    expect(captured, table, -2.0)
    assert launched == ["forward"] * 8


def test_a_captured_tensor_gets_its_gradient(launched):
    rng = np.random.default_rng(0)
    *arrays, _ = inputs(1, 2, 1, 4, 5, 2, 3)

    def f(q, k, v, slopes):
        return flash_attention(q, k, v, causal=True, offset=1,
                               score_mod=lambda s, b, h, i, j: s - slopes[h] * Tensor(np.abs(i - j) + 0.0))

    check_grads(f, *arrays, rng.standard_normal(2), order=2, rng=rng)
    slopes = Tensor(rng.standard_normal(2), requires_grad=True)
    f(*arrays, slopes).backward(rng.standard_normal((1, 2, 4, 3)))
    assert launched == [] and np.abs(slopes.grad).min() > 1e-3


class Slope:
    def __init__(self, by):
        self.by = by

    def mod(self, s, b, h, i, j):
        return s * self.by

    __call__ = mod


def scaled(s, b, h, i, j, *, by=3.0):
    return s * by


def by_others(names):
    """Functions that Numba cannot compile, or not by what they hold."""
    large, by = np.full(20_000, 3.0), [3.0]
    return {
        "method": Slope(3.0).mod,
        "object": Slope(3.0),
        "partial": functools.partial(scaled, by=3.0),
        "keyword": scaled,
        "list": lambda s, b, h, i, j: s * by[0],
        "large array": lambda s, b, h, i, j: s * large[0],
        "another function": lambda s, b, h, i, j: scaled(s, b, h, i, j),
        "function of minattn": lambda s, b, h, i, j: s * mn.log(mn.exp(s * 0 + 3)),
        "text": lambda s, b, h, i, j: s * {"a": 3.0}["a"[0]] if names else s,
    }


@pytest.mark.parametrize("name", by_others(["x"]))
def test_other_functions_are_run_on_all_scores(name, launched):
    *arrays, g = inputs(*SHAPE)
    found = outcome(arrays, g, score_mod=by_others(["x"])[name], causal=True)
    assert launched == []
    for got, want in zip(found, outcome(arrays, g, causal=True, scale=3 / math.sqrt(3)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_errors_of_a_score_function_are_its_own():
    *arrays, _ = inputs(*SHAPE)
    with pytest.raises(TypeError, match="positional argument"):
        flash_attention(*arrays, score_mod=lambda s, b: s)
    with pytest.raises(NameError, match="undefined"):
        flash_attention(*arrays, score_mod=lambda s, b, h, i, j: undefined)  # noqa: F821


def test_second_order():
    *arrays, _ = inputs(1, 2, 1, 3, 4, 2, 2)
    table = TABLE
    check_grads(lambda q, k, v: flash_attention(
        q, k, v, causal=True, offset=1,
        score_mod=lambda s, b, h, i, j: 2 * mn.tanh(s / 2) + table[h, i - j + 8]), *arrays, order=2)
