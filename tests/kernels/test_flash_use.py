"""When tiled attention runs: what `attention` gives it, what it leaves to all scores at once, bad input."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from minattn.attention import (
    attention,
    both,
    causal,
    dot_product,
    naive_attention,
    padding,
    shifted,
    sliding_window,
)
from minattn.autograd import Tensor, grad
from minattn.kernels import blocks, dispatch, flash
from minattn.kernels.flash import BlockMask, flash_attention
from minattn.testing import check_causal, check_grads
from tests.kernels import loops
from tests.kernels.loops import inputs, visible_array

pytest.importorskip("numba")


@pytest.fixture
def small(monkeypatch):
    for name, size in {"ROWS": 3, "COLUMNS": 4}.items():
        monkeypatch.setattr(flash, name, size)
    monkeypatch.setattr(blocks, "TILE", 3)


@pytest.fixture
def launched(monkeypatch):
    """Kernels that ran, and the arguments of the last."""
    names = []

    def launch(run, kernel, *args):
        names.append(kernel.__name__)
        names.last = args
        run(kernel, *args)

    names = type("Names", (list,), {})()
    monkeypatch.setattr(flash, "launch", launch)
    return names


@pytest.fixture
def tiled(monkeypatch, small):
    """`attention` computes in tiles from 20 pairs on, with a score function from 100."""
    monkeypatch.setattr(dot_product, "TILED", 20)
    monkeypatch.setattr(dot_product, "COMPILED", 100)


# ---- attention

MASKS = {
    "none": (None, (False, 0, False)),
    "causal": (causal, (True, 0, False)),
    "later queries": (shifted(causal, queries=3), (True, 3, False)),
    "later keys": (shifted(causal, keys=2), (True, -2, False)),
    "shifted twice": (shifted(shifted(causal, queries=3), keys=1), (True, 2, False)),
    "window": (sliding_window(2), (False, 0, True)),
    "causal and padding": (both(causal, padding(np.array([3, 7]))), (False, 0, True)),
}


@pytest.mark.parametrize("case", MASKS)
def test_attention_uses_tiles_and_equals_loops(case, tiled, launched):
    mask, (is_causal, offset, table) = MASKS[case]
    *arrays, g = inputs(2, 4, 2, 5, 7, 3, 2)
    want = naive_attention(*arrays, mask_mod=mask)
    out = attention(*arrays, mask_mod=mask)
    assert launched == ["forward"] and type(out) is np.ndarray
    assert launched.last[4:6] == (is_causal, offset) and bool(launched.last[6].size) is table
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    out, lse = attention(*xs, mask_mod=mask, return_lse=True, scale=0.3)
    seen = visible_array((2, 4, 5, 7), mask=mask)
    for got, expected in zip((out, lse), loops.forward(*arrays, seen, scale=0.3), strict=True):
        np.testing.assert_allclose(got.data, expected, rtol=0, atol=1e-12)
    found = grad([out, lse], xs, [g, g[..., 0]])
    assert launched == ["forward"] * 3 + ["backward"] * 2
    wanted = loops.backward(*arrays, g, seen, g_lse=g[..., 0], scale=0.3)
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got.data, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("weight", ["sigmoid", "relu"])
def test_attention_uses_tiles_for_other_weights(weight, tiled, launched):
    *arrays, _ = inputs(2, 4, 2, 5, 7, 3, 2)
    out = attention(*arrays, mask_mod=causal, normalizer=weight)
    want = loops.forward(*arrays, visible_array((2, 4, 5, 7), True), weight=weight)[0]
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)
    assert launched == ["forward"]


def test_attention_uses_tiles_for_score_functions_of_many_pairs(tiled, launched):
    def mod(s, b, h, i, j):
        return s - (h + 1) * abs(i - j) / 4

    *arrays, _ = inputs(1, 4, 2, 5, 5, 3, 2)
    for q, count in ((arrays[0][:, :2], 0), (arrays[0], 1)):  # 50 pairs, 100 pairs
        out = attention(q, *arrays[1:], mask_mod=causal, score_mod=mod)
        want = naive_attention(q, *arrays[1:], mask_mod=causal, score_mod=mod)
        np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)
        assert launched == ["forward"] * count


def test_attention_does_without_tiles_where_more_is_asked(tiled, launched):
    *arrays, _ = inputs(1, 2, 2, 4, 5, 3, 3)
    q, k, v = arrays
    attention(q, k, v, return_weights=True)
    attention(q, k, v, bias=np.zeros((4, 5)))
    attention(q, k, v, normalizer="sparsemax")
    attention(q, k, v, normalizer=lambda s, dim: s)
    attention(q[:, :, :3], k, v)  # fewer pairs than TILED
    attention(*(x.astype(np.float16) for x in arrays))
    assert launched == []
    attention(q, k, v)
    assert launched == ["forward"]


@pytest.mark.parametrize("mask", [None, causal, sliding_window(70)])
def test_attention_of_its_own_sizes(mask, launched):
    """As it is used: more than one tile each way, none of them full."""
    *arrays, _ = inputs(1, 2, 1, 150, 300, 8, 4, seed=7)
    seen = visible_array((1, 1, 150, 300), mask=mask)[0, 0]
    s = np.where(seen, arrays[0] @ arrays[1].mT / 8**0.5, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    np.testing.assert_allclose(attention(*arrays, mask_mod=mask), p / p.sum(-1, keepdims=True) @ arrays[2],
                               rtol=0, atol=1e-12)
    assert launched == ["forward"]


def test_the_future_does_not_reach_the_past(small):
    q, k, v, _ = inputs(1, 2, 2, 8, 8, 3, 3)

    def f(x):
        return flash_attention(q + x, k * x, v + x, causal=True)

    check_causal(f, np.random.default_rng(0).standard_normal((1, 1, 8, 3)), dim=2)


# ---- derivatives of derivatives

@pytest.mark.parametrize("options", [
    {}, {"causal": True, "offset": 1}, {"weight": "sigmoid", "scale": 0.5},
    {"weight": "relu", "causal": True}, {"mask_mod": lambda b, h, i, j: (i + j + h) % 3 > 0}])
def test_second_order(options, small, launched):
    *arrays, _ = inputs(1, 2, 1, 3, 4, 2, 2)
    check_grads(lambda q, k, v: flash_attention(q, k, v, **options), *arrays, order=2)
    assert "forward" in launched
    if options.get("weight", "softmax") == "softmax":
        check_grads(lambda q, k: flash_attention(q, k, arrays[2], **options, return_lse=True)[1], *arrays[:2])


def test_recorded_gradients_equal_those_of_tiles(small, launched):
    *arrays, g = inputs(2, 4, 2, 6, 7, 3, 3)
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    for n in range(3):
        some = [x if m >= n else x.data for m, x in enumerate(xs)]
        out, lse = flash_attention(*some, causal=True, return_lse=True)
        wanted = some[n:]
        lses = [g[..., 0]] if n < 2 else []
        outs = [out, lse][: 1 + len(lses)]
        recorded = grad(outs, wanted, [g, *lses], create_graph=True)
        plain = grad(outs, wanted, [g, *lses])
        for a, b in zip(recorded, plain, strict=True):
            np.testing.assert_allclose(a.data, b.data, rtol=0, atol=1e-12)
            assert a.requires_grad is (n < 2) and not b.requires_grad  # dv = Pᵀ g has no v in it


def test_one_tensor_as_queries_keys_and_values(small):
    x = Tensor(np.random.default_rng(0).standard_normal((1, 2, 5, 3)), requires_grad=True)
    g = np.random.default_rng(1).standard_normal((1, 2, 5, 3))
    (plain,) = grad(flash_attention(x, x, x, causal=True), x, g)
    (recorded,) = grad(flash_attention(x, x, x, causal=True), x, g, create_graph=True)
    seen = visible_array((1, 2, 5, 5), True)
    want = sum(loops.backward(x.data, x.data, x.data, g, seen))
    np.testing.assert_allclose(plain.data, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(recorded.data, want, rtol=0, atol=1e-12)
    check_grads(lambda x: flash_attention(x, x, x, causal=True), x, order=2)
    check_grads(lambda x: flash_attention(x, x, x, return_lse=True)[1], x, order=2)


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_no_keys(create_graph):
    *arrays, g = inputs(1, 2, 1, 3, 0, 4, 2)
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    outs = flash_attention(*xs, return_lse=True)
    for d, x in zip(grad(outs, xs, [g, g[..., 0]], create_graph=create_graph), arrays, strict=True):
        assert d.shape == x.shape and not d.data.any()


# ---- several threads, other machines

def test_several_threads_at_once(small):
    problems = [inputs(2, 4, 2, 17 + n, 23, 5, 6, seed=n) for n in range(4)]
    results = {}

    def solve(n):
        *arrays, g = problems[n]
        by = float(n)
        for turn in range(5):
            xs = [Tensor(x, requires_grad=True) for x in arrays]
            out = flash_attention(*xs, causal=True, score_mod=lambda s, b, h, i, j: s - by * j / 8)
            results[n, turn] = [out.data, *(d.data for d in grad(out, xs, g))]

    workers = [threading.Thread(target=solve, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    kept = dict(results)
    for n in range(4):
        solve(n)
        for turn in range(5):
            for got, want in zip(kept[n, turn], results[n, 0], strict=True):
                np.testing.assert_array_equal(got, want)
    assert len(kept) == 20 and not np.allclose(kept[0, 0][0], kept[1, 0][0][:, :, :17])


PROGRAM = """
import sys
{before}
import numpy as np
from minattn.attention import attention, causal, sliding_window
from minattn.autograd import Tensor, tanh
from minattn.kernels import flash, flash_attention
from minattn.attention.position import ALiBi

rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    q, k, v = (Tensor(rng.standard_normal((1, 2, 200, 8)).astype(dtype), True) for _ in range(3))
    plain = flash.Plan(8 ** -0.5, causal=True)
    for f in (lambda: attention(q, k, v, mask_mod=causal),
              lambda: attention(q, k, v, mask_mod=sliding_window(30)),
              lambda: flash_attention(q, k, v, causal=True, score_mod=ALiBi(2).score_mod),
              lambda: flash_attention(q, k, v, score_mod=lambda s, b, h, i, j: 9 * tanh(s / 9))):
        out = f()
        out.backward(rng.standard_normal(out.shape).astype(dtype))
    want = flash.dense_attention(q, k, v, plan=plain)[0].data
    assert abs(attention(q, k, v, mask_mod=causal).data - want).max() < 1e-5
print(flash.tiles_serve(q, k, v, plain), *sorted(m for m in sys.modules if m == "minattn.kernels.cpu.flash"))
"""


def program(before="", **environment):
    """What a fresh interpreter prints, with warnings as errors, and what it writes on the other stream."""
    import os

    found = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM.format(before=before)], text=True,
                           capture_output=True, env={**os.environ, **environment})
    assert found.returncode == 0, found.stderr
    return found.stdout.strip(), found.stderr


def test_nothing_is_written_or_warned_of():
    assert program() == ("True minattn.kernels.cpu.flash", "")


def test_without_the_compiler():
    assert program(NUMBA_DISABLE_JIT="1") == ("False", "")


def test_without_numba():
    missing = "import warnings; warnings.simplefilter('ignore'); sys.modules['numba'] = None"
    assert program(missing) == ("False", "")


def test_without_scipy(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else find(name))
    arrays = inputs(1, 1, 1, 3, 3, 2, 2)[:3]
    dispatch.have_blas.cache_clear()
    try:
        assert not flash.tiles_serve(*arrays, flash.Plan(1.0))
    finally:
        dispatch.have_blas.cache_clear()
    monkeypatch.undo()
    assert flash.tiles_serve(*arrays, flash.Plan(1.0))


def test_other_precisions_are_computed_at_once(launched):
    for dtype in (np.float16, np.longdouble):
        *arrays, _ = inputs(1, 2, 1, 5, 6, 3, 2, dtype)
        out = flash_attention(*arrays, causal=True)
        assert out.dtype == dtype and launched == []
        want = loops.forward(*arrays, visible_array((1, 2, 5, 6), True))[0]
        np.testing.assert_allclose(out.astype(float), want, rtol=0, atol=5e-3)


def test_other_libraries_are_computed_at_once(other_library, launched):
    *arrays, _ = inputs(1, 2, 1, 5, 6, 3, 2)
    theirs = [other_library(x) for x in arrays]
    for options in ({}, {"causal": True, "offset": 1}, {"weight": "sigmoid"}, {"weight": "relu"},
                    {"mask_mod": lambda b, h, i, j: i != j}, {"scale": 2.0}):
        out, want = flash_attention(*theirs, **options), flash_attention(*arrays, **options)
        np.testing.assert_allclose(out.get(), want, rtol=0, atol=1e-12)
    lse = flash_attention(*theirs, return_lse=True)[1].get()
    np.testing.assert_allclose(lse, flash_attention(*arrays, return_lse=True)[1], rtol=0, atol=1e-12)
    assert launched == ["forward"] * 7


# ---- bad input

ARRAYS = inputs(2, 4, 2, 5, 6, 3, 4)[:3]


def of(B, H, N, M):
    return BlockMask(lambda start, stop: np.ones((B, H, stop - start, M), bool), N, M)


@pytest.mark.parametrize("change, error, message", [
    (lambda q, k, v: {"q": q[0]}, ValueError, r"^q: expected floats with 4 axes .* shape \(4, 5, 3\)"),
    (lambda q, k, v: {"k": k[None]}, ValueError, "^k: expected floats with 4 axes"),
    (lambda q, k, v: {"v": v.astype(int)}, ValueError, "^v: expected floats .*got int64"),
    (lambda q, k, v: {"q": q + 0j}, ValueError, "^q: expected floats.*got complex128"),
    (lambda q, k, v: {"k": k[:1]}, ValueError, r"^k: expected batch 2, .* got \(1, 2, 6, 3\)"),
    (lambda q, k, v: {"k": k[..., :2]}, ValueError, "^k: .*and 3 features, got"),
    (lambda q, k, v: {"q": q[:, :3]}, ValueError, "^k: .*heads that divide 3"),
    (lambda q, k, v: {"k": k[:, :0]}, ValueError, "^k: .*heads that divide 4"),
    (lambda q, k, v: {"v": v[:, :1]}, ValueError, r"^v: expected shape \(2, 2, 6\) before the features"),
    (lambda q, k, v: {"v": v[:, :, :5]}, ValueError, "^v: expected shape"),
    (lambda q, k, v: {"v": v[:1]}, ValueError, "^v: expected shape"),
    (lambda q, k, v: {"k": k.astype("f")}, TypeError, "^k, v: expected the dtype of q, float64, got float32"),
    (lambda q, k, v: {"v": v.astype("f")}, TypeError, "^k, v: .* got float64 and float32"),
    (lambda q, k, v: {"weight": "max"}, ValueError, "^weight: expected one of softmax, .*got 'max'"),
    (lambda q, k, v: {"weight": "relu", "return_lse": True}, ValueError, "^return_lse: .*weight='relu'"),
    (lambda q, k, v: {"mask_mod": causal, "block_mask": of(1, 1, 5, 6)}, ValueError, "^block_mask: .*kind"),
    (lambda q, k, v: {"block_mask": of(1, 1, 6, 6)}, ValueError,
     r"^block_mask: .*broadcasts to \(2, 4, 5, 6\), got \(1, 1, 6, 6\)"),
    (lambda q, k, v: {"block_mask": of(1, 1, 5, 5)}, ValueError, "^block_mask: .*broadcasts"),
    (lambda q, k, v: {"block_mask": of(3, 1, 5, 6)}, ValueError, "^block_mask: .*broadcasts"),
    (lambda q, k, v: {"block_mask": of(1, 2, 5, 6)}, ValueError, "^block_mask: .*broadcasts"),
    (lambda q, k, v: {"mask_mod": lambda b, h, i, j: j - i}, TypeError, "^mask_mod: expected bool.*int64"),
])
def test_bad_input(change, error, message):
    q, k, v = ARRAYS
    given = {"q": q, "k": k, "v": v, **change(q, k, v)}
    with pytest.raises(error, match=message):
        flash_attention(given.pop("q"), given.pop("k"), given.pop("v"), **given)
