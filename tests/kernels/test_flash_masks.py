"""Masks of tiled attention: what is hidden is not touched, and any mask equals loops."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor, grad
from minattn.kernels import blocks, flash
from minattn.kernels.flash import BlockMask, flash_attention
from tests.kernels import loops
from tests.kernels.loops import inputs, visible_array

pytest.importorskip("numba")


@pytest.fixture
def small(monkeypatch):
    for name, size in {"ROWS": 3, "COLUMNS": 4}.items():
        monkeypatch.setattr(flash, name, size)
    monkeypatch.setattr(blocks, "TILE", 4)


def of(array, tile=None):
    return BlockMask(lambda start, stop: array[:, :, start:stop], *array.shape[2:], tile)


def gradients(arrays, g, **options):
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    out, lse = flash_attention(*xs, **options, return_lse=True)
    return [out.data, lse.data, *(d.data for d in grad([out, lse], xs, g))]


@settings(max_examples=300, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 3, 3, 8, 9, 4, 4))), tiles=st.tuples(
        *(st.integers(1, 5) for _ in range(4))), options=st.fixed_dictionaries({
            "causal": st.booleans(), "offset": st.integers(-6, 9),
            "weight": st.sampled_from(["softmax", "softmax", "sigmoid", "relu"])}),
    masked=st.tuples(st.booleans(), st.booleans(), st.booleans()), share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_mask_equals_loops(shape, tiles, options, masked, share, seed):
    B, group, Hk, N, M, D, Dv = shape
    H, rng = group * Hk, np.random.default_rng(seed)
    *arrays, g = inputs(B, H, Hk, N, M, D, Dv, seed=seed)
    is_masked, by_batch, by_head = masked
    seen = visible_array((B, H, N, M), options["causal"], options["offset"])
    plain = {"weight": options["weight"]}
    if is_masked:
        array = rng.random((B if by_batch else 1, H if by_head else 1, N, M)) < share
        array |= rng.random((N, 1)) < 0.2
        options["block_mask"] = of(array, tiles[3])
        seen &= array
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    with mock.patch.multiple(flash, ROWS=tiles[0], COLUMNS=tiles[1]):
        out = flash_attention(*xs, **options)
        found = grad(out, xs, g)
    np.testing.assert_allclose(out.data, loops.forward(*arrays, seen, **plain)[0], rtol=0, atol=1e-11)
    assert not out.data[~seen.any(-1)].any() and not found[0].data[~seen.any(-1)].any()
    for got, want in zip(found, loops.backward(*arrays, g, seen, **plain), strict=True):
        np.testing.assert_allclose(got.data, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "relu"])
def test_hidden_tiles_are_not_touched(weight, small):
    """Tiles of 4: NaN and infinities stand where no query of a tile looks, and get no gradient."""
    *arrays, g = inputs(1, 2, 1, 8, 20, 3, 3)
    seen = np.zeros((1, 1, 8, 20), bool)
    seen[..., :4, 4:7] = seen[..., 4:, 8:12] = seen[..., 5, 4:6] = True
    arrays[1][:, :, :4], arrays[1][:, :, 12:] = np.nan, np.inf
    arrays[2][:, :, :4], arrays[2][:, :, 12:] = np.inf, np.nan
    found = flash_attention(*arrays, block_mask=of(seen), weight=weight)
    want = loops.forward(*arrays, visible_array((1, 2, 8, 20), mask=lambda b, h, i, j: seen[0, 0, i, j]),
                         weight=weight)[0]
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    dq, dk, dv = (d.data for d in grad(flash_attention(*xs, block_mask=of(seen), weight=weight), xs, g))
    for d in (dq, dk, dv):
        assert np.isfinite(d).all() and np.abs(d).max() > 0.1
    for d in (dk, dv):
        assert not d[:, :, :4].any() and not d[:, :, 12:].any() and d[:, :, 4:12].any((0, 1, 3)).sum() == 7


@pytest.mark.parametrize("runs", [True, False])
def test_a_tile_of_queries_is_not_touched_by_what_others_see(runs, small):
    """Queries from 12 on are NaN: the others, and the keys that these alone do not see, are as they were."""
    *arrays, g = inputs(1, 2, 1, 16, 12, 3, 3)
    seen = np.zeros((1, 1, 16, 12), bool)
    seen[..., :12, :5] = seen[..., 12:, 8:] = True
    seen[..., 3, 1] = runs
    want = gradients(arrays, [g, np.ones((1, 2, 16))], block_mask=of(seen))
    assert (of(seen).runs is not None) == runs
    arrays[0][:, :, 12:] = np.nan
    found = gradients(arrays, [g, np.ones((1, 2, 16))], block_mask=of(seen))
    for n, (got, expected) in enumerate(zip(found, want, strict=True)):
        clean = np.s_[:, :, :12] if n < 3 else np.s_[:, :, :8]
        np.testing.assert_array_equal(got[clean], expected[clean])
        assert np.isfinite(got[clean]).all()


@pytest.mark.parametrize("offset", [0, 5, -3])
def test_the_future_is_not_touched(offset, small):
    """Queries by threes, keys by fours: what a tile of queries cannot see may be anything."""
    *arrays, g = inputs(1, 2, 1, 12, 20, 3, 3)
    last = 5 + offset  # queries 0 … 5 see no later key
    clean = gradients(arrays, [g, np.ones((1, 2, 12))], causal=True, offset=offset)
    arrays[1][:, :, last + 1:], arrays[2][:, :, last + 1:] = np.nan, np.inf
    found = gradients(arrays, [g, np.ones((1, 2, 12))], causal=True, offset=offset)
    for got, want in zip(found[:3], clean[:3], strict=True):
        np.testing.assert_array_equal(got[:, :, :6], want[:, :, :6])
    assert not np.isfinite(found[0][:, :, 6:]).all()
    beyond = 11 + offset + 1  # no query sees these
    assert not found[3][:, :, beyond:].any() and not found[4][:, :, beyond:].any()


def test_hidden_tiles_cost_nothing(small, monkeypatch):
    """Two products for each tile that is not hidden, which is cut to fit a run of keys; counted in Python."""
    from minattn.kernels.cpu import flash as compiled

    loops_in_python, products = compiled.forward.py_func, []
    monkeypatch.setattr(compiled, "product", lambda a, b, c, *factors: products.append((len(a), c.shape)))
    for name in ("lanes", "state_of", "seen_of", "reach"):
        monkeypatch.setattr(compiled, name, getattr(compiled, name).py_func)
    for name in ("turn", "change_tile", "hide", "soften"):
        monkeypatch.setattr(compiled, name, lambda *args: None)
    monkeypatch.setattr(compiled, "prange", range)
    *arrays, _ = inputs(1, 2, 1, 16, 16, 3, 3)
    window = np.tri(16, dtype=bool)[None, None] & ~np.tri(16, k=-4, dtype=bool)
    holes = window.copy()
    holes[..., 3::4, 1::4] = False
    assert of(window).density == of(holes).density == 7 / 16
    assert of(window).runs is not None and of(holes).runs is None
    out, lse = np.zeros((1, 2, 16, 3)), np.zeros((1, 2, 16))
    starts, ends = (0, 3, 6, 9, 12, 15), (3, 6, 9, 12, 15, 16)  # of the tiles of queries
    keys = {  # of each tile of queries
        flash.Plan(1.0): [16] * 6, flash.Plan(1.0, causal=True): ends,
        flash.Plan(1.0, blocks=of(window)): [end - max(start - 3, 0)
                                               for start, end in zip(starts, ends, strict=True)],
        flash.Plan(1.0, blocks=of(holes)): [4, 8, 8, 8],  # tiles of 4, as the mask's
    }
    for plan, reach in keys.items():
        products.clear()
        loops_in_python(*arrays, *flash._numbers(plan, arrays[0], False), out, lse)
        assert len(products) == 2 * 2 * sum(-(-n // 4) for n in reach)  # two heads, two products
        assert sum(n for n, _ in products[::2]) == 2 * sum(reach)


def test_rows_that_see_nothing(small):
    """Zeros, −∞ and no gradient, in hidden tiles, in partial ones, and in every batch."""
    *arrays, g = inputs(2, 2, 1, 9, 10, 3, 4)
    seen = np.random.default_rng(0).random((2, 2, 9, 10)) < 0.5
    empty = np.zeros((2, 2, 9), bool)
    empty[0, 0, 2] = empty[0, 1, 4:8] = empty[1, :, 8] = True
    seen &= ~empty[..., None]
    out, lse, dq, dk, dv = gradients(arrays, [g, np.ones((2, 2, 9))], block_mask=of(seen))
    assert not out[empty].any() and not dq[empty].any() and (lse[empty] == -np.inf).all()
    assert out[~empty].all() and np.isfinite(lse[~empty]).all()
    assert np.isfinite(dk).all() and np.isfinite(dv).all()


def test_mask_mod_is_block_mask(small):
    *arrays, g = inputs(2, 4, 2, 7, 9, 3, 3)
    seen = np.random.default_rng(3).random((2, 4, 7, 9)) < 0.5
    cotangents = [g, np.ones((2, 4, 7))]
    want = gradients(arrays, cotangents, block_mask=of(seen))
    for mask_mod in (lambda b, h, i, j: seen[b, h, i, j],
                     lambda b, h, i, j: seen[b, h, i, j][..., :] & (i >= 0)):
        for got, expected in zip(gradients(arrays, cotangents, mask_mod=mask_mod), want, strict=True):
            np.testing.assert_array_equal(got, expected)
    again = gradients(arrays, cotangents, mask_mod=lambda b, h, i, j: seen[b, h, i, j], causal=True, offset=1)
    both = gradients(arrays, cotangents, block_mask=of(seen & np.tri(7, 9, 1, dtype=bool)))
    for got, expected in zip(again, both, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_masks_of_less_than_four_axes(small):
    *arrays, _ = inputs(2, 4, 2, 7, 9, 3, 3)
    for mask in (lambda b, h, i, j: True, lambda b, h, i, j: (j < 4)[0, 0, 0], lambda b, h, i, j: (j < 4)[0]):
        seen = visible_array((2, 4, 7, 9), mask=lambda b, h, i, j, m=mask: np.ravel(
            np.broadcast_to(m(*np.ogrid[:2, :4, :7, :9]), (2, 4, 7, 9))[b, h, i, j])[0])
        want = loops.forward(*arrays, seen)[0]
        np.testing.assert_allclose(flash_attention(*arrays, mask_mod=mask), want, rtol=0, atol=1e-12)


def test_mask_mod_is_asked_strip_by_strip(small):
    asked = []

    def mask(b, h, i, j):
        asked.append((i.ravel().tolist(), b.shape, h.shape, j.shape))
        return j <= i

    *arrays, _ = inputs(2, 4, 2, 6, 5, 3, 3)
    flash_attention(*arrays, mask_mod=mask)
    rest = ((2, 1, 1, 1), (1, 4, 1, 1), (1, 1, 1, 5))
    assert asked == [([0, 1, 2, 3], *rest), ([4, 5], *rest)]
