"""`minattn.kernels.flash` against loops, on tiles so small that every case has many."""

import numpy as np
import pytest

from minattn.attention import causal, padding, sliding_window
from minattn.autograd import Tensor, grad, no_grad
from minattn.kernels import blocks, flash
from minattn.kernels.blocks import BlockMask
from minattn.kernels.flash import flash_attention
from tests.kernels import loops
from tests.kernels.loops import inputs, visible_array

torch = pytest.importorskip("torch")
pytest.importorskip("numba")

TILES = {"ROWS": 3, "COLUMNS": 4}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, size in TILES.items():
        monkeypatch.setattr(flash, name, size)
    monkeypatch.setattr(blocks, "TILE", 3)


@pytest.fixture(params=["tiles", "dense"])
def form(request, monkeypatch):
    """Compiled tiles and all scores at once, each known to have run."""
    launched = []

    def launch(run, kernel, *args):
        launched.append(kernel.__name__)
        run(kernel, *args)

    monkeypatch.setattr(flash, "launch", launch)
    if request.param == "dense":
        monkeypatch.setattr(flash, "compiled", lambda *arrays: False)
    yield request.param
    assert bool(launched) is (request.param == "tiles")


def gradients(arrays, g, **options):
    """Output and gradients as arrays."""
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    out = flash_attention(*xs, **options)
    assert isinstance(out, Tensor)
    return out.data, [d.data for d in grad(out, xs, g)]


CASES = {
    # name: (B, H, Hk, N, M, D, Dv), options
    "one of each": ((1, 1, 1, 1, 1, 1, 1), {}),
    "one query": ((2, 4, 2, 1, 9, 3, 5), {}),
    "one key": ((1, 2, 1, 7, 1, 3, 2), {}),
    "everything visible, odd features": ((2, 2, 2, 7, 10, 5, 3), {}),
    "few queries": ((1, 2, 2, 4, 11, 3, 4), {}),
    "four heads of one": ((1, 4, 1, 8, 13, 4, 7), {}),
    "one feature": ((1, 2, 1, 8, 9, 1, 1), {}),
    "causal, three heads of one": ((2, 6, 2, 13, 13, 4, 5), {"causal": True}),
    "causal, later queries": ((2, 4, 1, 5, 11, 2, 2), {"causal": True, "offset": 6}),
    "causal, far later queries": ((1, 2, 1, 5, 11, 2, 2), {"causal": True, "offset": 20}),
    "causal, keys in the future": ((1, 2, 2, 11, 9, 3, 2), {"causal": True, "offset": -4}),
    "causal, all in the future": ((1, 2, 2, 5, 4, 3, 2), {"causal": True, "offset": -5}),
    "causal, more keys than queries": ((2, 4, 2, 7, 9, 3, 5), {"causal": True}),
    "causal, more queries than keys": ((1, 3, 3, 11, 4, 4, 2), {"causal": True}),
    "window": ((1, 2, 1, 14, 14, 3, 3), {"mask_mod": sliding_window(3)}),
    "padding, a batch with nothing": ((3, 2, 2, 6, 8, 3, 3), {"mask_mod": padding(np.array([5, 0, 8]))}),
    "both kinds of mask": ((2, 2, 1, 9, 9, 3, 3), {"mask_mod": padding(np.array([9, 2])), "causal": True,
                                                  "offset": 1}),
    "of the head": ((2, 4, 2, 6, 7, 3, 3), {"mask_mod": lambda b, h, i, j: (h + i + j) % 2 == 0}),
    "of the batch and the head": ((2, 4, 2, 6, 7, 3, 3), {"mask_mod": lambda b, h, i, j: i * (b + h) >= j}),
    "of the query alone": ((1, 2, 2, 6, 6, 3, 3), {"mask_mod": lambda b, h, i, j: i % 3 != 1}),
    "two far apart": ((1, 1, 1, 5, 12, 3, 3), {"mask_mod": lambda b, h, i, j: (j == 1) | (j == 10)}),
    "all the same": ((1, 1, 1, 5, 5, 3, 3), {"mask_mod": lambda b, h, i, j: True}),
    "scale": ((1, 2, 1, 5, 6, 3, 3), {"scale": -0.7, "causal": True}),
    "sigmoid": ((2, 4, 2, 7, 9, 3, 4), {"weight": "sigmoid"}),
    "sigmoid, causal": ((1, 2, 1, 9, 9, 3, 4), {"weight": "sigmoid", "causal": True, "offset": -2}),
    "sigmoid, window": ((1, 2, 2, 9, 9, 3, 4), {"weight": "sigmoid", "mask_mod": sliding_window(2)}),
    "relu": ((2, 4, 1, 7, 9, 3, 4), {"weight": "relu"}),
    "relu, causal": ((1, 2, 1, 9, 9, 3, 4), {"weight": "relu", "causal": True, "offset": 1}),
    "relu, window": ((1, 2, 2, 9, 9, 3, 4), {"weight": "relu", "mask_mod": sliding_window(2)}),
}


def unrolled(shape, options):
    """The mask as booleans, and what the loops take besides."""
    B, H, _, N, M, _, _ = shape
    seen = visible_array((B, H, N, M), options.get("causal", False), options.get("offset", 0),
                         options.get("mask_mod"))
    return seen, {name: options[name] for name in ("scale", "weight") if name in options}


@pytest.mark.parametrize("case", CASES)
def test_equals_loops(case, form):
    shape, options = CASES[case]
    *arrays, g = inputs(*shape)
    seen, plain = unrolled(shape, options)
    want, lse = loops.forward(*arrays, seen, **plain)
    out, found = gradients(arrays, g, **options)
    alone = flash_attention(*arrays, **options)
    assert type(alone) is np.ndarray and out.shape == want.shape
    np.testing.assert_array_equal(alone, out)
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)
    assert not seen.any() or np.abs(want).max() > 0.1
    for got, expected in zip(found, loops.backward(*arrays, g, seen, **plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)
    if options.get("weight", "softmax") == "softmax":
        again, found_lse = flash_attention(*arrays, **options, return_lse=True)
        np.testing.assert_array_equal(again, out)
        np.testing.assert_allclose(found_lse, lse, rtol=0, atol=1e-12)
        assert found_lse.shape == shape[:2] + shape[3:4]


@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "relu"])
def test_the_loops_themselves(weight):
    """Their backward pass is the derivative of their forward pass."""
    rng = np.random.default_rng(1)
    *arrays, g = inputs(1, 2, 1, 3, 4, 2, 3)
    g_lse = rng.standard_normal((1, 2, 3)) * (weight == "softmax")
    options = {"weight": weight, "mod": lambda s, b, h, i, j: s * s + j, "slope": lambda s, b, h, i, j: 2 * s}
    seen = visible_array((1, 2, 3, 4), True, 1)

    def value(step):
        out, lse = loops.forward(*(x + step * d for x, d in zip(arrays, directions, strict=True)), seen,
                                 **options)
        return np.sum(g * out) + np.sum(g_lse * lse)

    directions = [rng.standard_normal(x.shape) for x in arrays]
    found = loops.backward(*arrays, g, seen, g_lse=g_lse, **options)
    slope = sum(np.sum(x * d) for x, d in zip(found, directions, strict=True))
    assert abs(slope - (value(1e-5) - value(-1e-5)) / 2e-5) < 1e-7 and abs(slope) > 0.1


@pytest.mark.parametrize("Hk", [1, 2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_equals_torch(Hk, is_causal, form):
    *arrays, g = inputs(2, 4, Hk, 10, 10, 5, 3, seed=Hk)
    ts = [torch.tensor(x, requires_grad=True) for x in arrays]
    want = torch.nn.functional.scaled_dot_product_attention(*ts, is_causal=is_causal, enable_gqa=True)
    want.backward(torch.tensor(g))
    out, found = gradients(arrays, g, causal=is_causal)
    np.testing.assert_allclose(out, want.detach().numpy(), rtol=0, atol=1e-12)
    for got, t in zip(found, ts, strict=True):
        np.testing.assert_allclose(got, t.grad.numpy(), rtol=0, atol=1e-11)


def test_equals_torch_of_a_random_mask(form):
    rng = np.random.default_rng(5)
    *arrays, g = inputs(2, 4, 2, 11, 13, 4, 6, seed=5)
    seen = rng.random((2, 4, 11, 13)) < 0.4
    seen[..., 0] = True  # SDPA gives NaN or zeros for empty rows, as the version will
    ts = [torch.tensor(x, requires_grad=True) for x in arrays]
    want = torch.nn.functional.scaled_dot_product_attention(*ts, attn_mask=torch.tensor(seen), scale=0.3,
                                                            enable_gqa=True)
    want.backward(torch.tensor(g))
    out, found = gradients(arrays, g, mask_mod=lambda b, h, i, j: seen[b, h, i, j], scale=0.3)
    np.testing.assert_allclose(out, want.detach().numpy(), rtol=0, atol=1e-12)
    for got, t in zip(found, ts, strict=True):
        np.testing.assert_allclose(got, t.grad.numpy(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("tiles", [(4, 3), (1, 1), (128, 256), (5, 100), (100, 5)])
def test_tiles_do_not_matter(tiles, monkeypatch):
    *arrays, g = inputs(1, 4, 2, 17, 23, 5, 6)
    want, wanted = gradients(arrays, g, causal=True, offset=6)
    for name, size in zip(TILES, tiles, strict=True):
        monkeypatch.setattr(flash, name, size)
    out, found = gradients(arrays, g, causal=True, offset=6)
    for got, expected in zip([out, *found], [want, *wanted], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def test_tiles_of_a_mask_hold_tiles_of_queries(monkeypatch):
    sizes = []
    monkeypatch.setattr(flash, "launch", lambda run, kernel, *args: sizes.append(args[-4:-2]))
    *arrays, _ = inputs(1, 2, 1, 9, 9, 2, 2)
    holes = np.random.default_rng(0).random((1, 1, 9, 9)) < 0.5
    for tile in (6, 4):
        blocks_of_holes = BlockMask(lambda start, stop: holes[:, :, start:stop], 9, 9, tile)
        flash_attention(*arrays, block_mask=blocks_of_holes)
    flash_attention(*arrays)
    flash_attention(*arrays, mask_mod=causal)
    assert sizes == [(3, 6), (4, 4), (3, 4), (3, 4)]


@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "relu"])
@pytest.mark.parametrize("options", [{}, {"causal": True, "offset": 14}, {"mask_mod": sliding_window(9)}])
def test_single_precision(options, weight):
    """At most twice the error that all scores at once have in float32, plus its rounding."""
    *arrays, g = inputs(2, 4, 2, 33, 47, 16, 8, np.float32, seed=1)
    seen, plain = unrolled((2, 4, 2, 33, 47, 16, 8), {**options, "weight": weight})
    wanted = [loops.forward(*arrays, seen, **plain)[0], *loops.backward(*arrays, g, seen, **plain)]
    out, found = gradients(arrays, g, **options, weight=weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "compiled", lambda *a: False)
        plain_out, plain_found = gradients(arrays, g, **options, weight=weight)
    for got, dense, want in zip([out, *found], [plain_out, *plain_found], wanted, strict=True):
        assert got.dtype == np.float32
        scale = np.abs(want).max()
        assert np.abs(got - want).max() <= 2 * np.abs(dense - want).max() + 2e-7 * scale


@pytest.mark.parametrize("options", [{}, {"causal": True, "offset": -3},
                                     {"mask_mod": lambda b, h, i, j: (i + j) % 5 == h}])
def test_log_sum_exp_and_output_together(options, form):
    *arrays, g = inputs(2, 4, 2, 9, 10, 3, 5, seed=2)
    seen, _ = unrolled((2, 4, 2, 9, 10, 3, 5), options)
    g_lse = np.random.default_rng(3).standard_normal((2, 4, 9))
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    out, lse = flash_attention(*xs, **options, return_lse=True)
    want_out, want_lse = loops.forward(*arrays, seen)
    np.testing.assert_allclose(out.data, want_out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lse.data, want_lse, rtol=0, atol=1e-12)
    wanted = loops.backward(*arrays, g, seen, g_lse=g_lse)
    for got, want in zip(grad([out, lse], xs, [g, g_lse], retain_graph=True), wanted, strict=True):
        np.testing.assert_allclose(got.data, want, rtol=0, atol=1e-11)
    wanted = loops.backward(*arrays, 0 * g, seen, g_lse=g_lse)
    for got, want in zip(grad(lse, xs[:2], g_lse), wanted, strict=False):
        np.testing.assert_allclose(got.data, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-4), (np.float64, 1e-11)])
@pytest.mark.parametrize("size", [50.0, 1e4])
@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "relu"])
def test_large_scores(dtype, tolerance, size, weight, form):
    """±50 and ±10⁴, beyond where an exponential is finite, of either sign alone and of both."""
    *arrays, g = inputs(1, 3, 3, 9, 9, 4, 4, dtype)
    q, k, _ = arrays
    q[:, 1], k[:, 1] = np.abs(q[:, 1]), np.abs(k[:, 1])
    q[:, 2], k[:, 2] = np.abs(q[:, 2]), -np.abs(k[:, 2])
    q *= dtype(size / np.abs((q @ k.mT) / 2).max())
    seen = visible_array((1, 3, 9, 9), True)
    want, lse = loops.forward(*arrays, seen, weight=weight)
    assert np.abs(lse).max() > size / 2
    out, found = gradients(arrays, g, causal=True, weight=weight)
    for got, expected in zip([out, *found], [want, *loops.backward(*arrays, g, seen, weight=weight)],
                             strict=True):
        scale = 1 + np.abs(expected).max()
        error = tolerance * (1 + (size > 100) * (dtype == np.float32) * 30)  # scores known to 10⁻⁷ of 10⁴
        np.testing.assert_allclose(got / scale, expected / scale, rtol=0, atol=error)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "relu"])
@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_nan_is_not_hidden(dtype, weight, nan, form):
    *arrays, g = inputs(1, 1, 1, 6, 6, 3, 3, dtype)
    arrays[0][0, 0, 2, 1] = nan
    out, found = gradients(arrays, g, weight=weight)
    assert np.isnan(out[0, 0, 2]).all() and np.isfinite(out[0, 0, [0, 1, 3, 4, 5]]).all()
    assert np.isfinite(found[0][0, 0, [0, 1, 3, 4, 5]]).all() and np.isnan(found[2]).all()
    if weight != "relu":  # which is flat wherever a score is not positive
        assert np.isnan(found[0][0, 0, 2]).all() and np.isnan(found[1]).all()


def test_infinite_scores_are_not_hidden(form):
    *arrays, _ = inputs(1, 1, 1, 5, 6, 3, 3)
    arrays[0][0, 0, 2], arrays[1][0, 0, 1] = 1e200, 1e200
    with np.errstate(all="ignore"):
        out = flash_attention(*arrays)
    assert np.isnan(out[0, 0, 2]).all() and np.isfinite(out[0, 0, [0, 1, 3, 4]]).all()


def laid_out(x):
    """Ways in which the same values can lie in memory."""
    wide = np.full((*x.shape[:2], x.shape[2] + 3, x.shape[3] + 2), np.nan, x.dtype)
    wide[:, :, : x.shape[2], : x.shape[3]] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    apart = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    return {
        "heads inside": np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3),
        "front of a buffer": wide[:, :, : x.shape[2], : x.shape[3]],
        "features first": np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3),
        "reversed": np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1],
        "reversed batch": np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        "every other": np.repeat(x, 2, 2)[:, :, ::2],
        "read only": frozen,
        "unaligned": apart,
    }


LAYOUTS = list(laid_out(np.zeros((1, 1, 1, 1))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_and_inputs_left_alone(layout):
    *arrays, g = inputs(2, 4, 2, 7, 9, 3, 5, seed=4)
    want, wanted = gradients(arrays, g, causal=True)
    views = [laid_out(x)[layout] for x in (*arrays, g)]
    kept = [x.copy() for x in views]
    out, found = gradients(views[:3], views[3], causal=True)
    for got, expected in zip([out, *found], [want, *wanted], strict=True):
        np.testing.assert_array_equal(got, expected)
    for x, before in zip(views, kept, strict=True):
        np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_broadcast_views(axis):
    *arrays, g = inputs(2, 4, 4, 7, 9, 3, 5, seed=4)
    views = [np.broadcast_to(np.take(x, [0], axis), x.shape) for x in (*arrays, g)]
    whole = [x.copy() for x in views]
    want, wanted = gradients(whole[:3], whole[3])
    out, found = gradients(views[:3], views[3])
    for got, expected in zip([out, *found], [want, *wanted], strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("N, M", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask_mod": causal}])
def test_nothing_to_attend(N, M, options):
    *arrays, g = inputs(2, 2, 1, N, M, 3, 4)
    out, lse = flash_attention(*arrays, **options, return_lse=True)
    assert out.shape == (2, 2, N, 4) and not out.any() and (lse == -np.inf).all()
    _, found = gradients(arrays, g, **options)
    for x, d in zip(arrays, found, strict=True):
        assert d.shape == x.shape and not d.any()


def test_no_features_of_values(form):
    """BLAS multiplies nothing of size 0: all scores at once serve."""
    *arrays, _ = inputs(1, 2, 1, 5, 6, 3, 4)
    if form == "tiles":
        flash_attention(*arrays)  # only that the kernel runs at all
    assert flash_attention(*arrays[:2], arrays[2][..., :0]).shape == (1, 2, 5, 0)


def test_some_tensors_and_no_grad(form):
    *arrays, g = inputs(1, 2, 1, 5, 6, 3, 4)
    want, wanted = gradients(arrays, g)
    for n in range(3):
        xs = [Tensor(x, requires_grad=True) if n == m else x for m, x in enumerate(arrays)]
        out, lse = flash_attention(*xs, return_lse=True)
        assert isinstance(out, Tensor) and isinstance(lse, Tensor)
        assert out.requires_grad and lse.requires_grad is (n < 2)
        np.testing.assert_allclose(grad(out, xs[n], g)[0].data, wanted[n], rtol=0, atol=1e-13)
    plain, lse = flash_attention(Tensor(arrays[0]), *arrays[1:], return_lse=True)
    assert isinstance(plain, Tensor) and isinstance(lse, Tensor) and not plain.requires_grad
    with no_grad():
        hidden = flash_attention(*(Tensor(x, requires_grad=True) for x in arrays))
    assert not hidden.requires_grad
    np.testing.assert_array_equal(hidden.data, want)
