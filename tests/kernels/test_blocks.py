"""`minattn.kernels.blocks` against the mask that it stands for, asked one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import causal, document, padding, shifted, sliding_window
from minattn.attention.masks import block_mask, mask_array
from minattn.kernels import blocks
from minattn.kernels.blocks import HIDDEN, VISIBLE, BlockMask


def of(array, tile=None):
    """The block mask of booleans (B, H, N, M)."""
    return BlockMask(lambda start, stop: array[:, :, start:stop], *array.shape[2:], tile)


def states(array, tile):
    """HIDDEN, VISIBLE or 0 for partial, tile by tile."""
    B, H, N, M = array.shape
    out = np.empty((B, H, -(-N // tile), -(-M // tile)), int)
    for b, h, n, m in np.ndindex(out.shape):
        seen = array[b, h, n * tile: (n + 1) * tile, m * tile: (m + 1) * tile]
        out[b, h, n, m] = VISIBLE if seen.all() else HIDDEN if not seen.any() else 0
    return out


def check(mask, array):
    """That a block mask holds `array`, and no tile more than it must."""
    assert mask.table.dtype == np.int32 and mask.partial.dtype == bool
    want = states(array, mask.tile)
    np.testing.assert_array_equal(np.minimum(mask.table, 0), want)
    numbers = mask.table[mask.table >= 0]
    np.testing.assert_array_equal(np.sort(numbers), np.arange(len(mask.partial)))
    assert mask.partial.shape[1:] == (mask.tile, mask.tile)
    for b, h, n, m in np.argwhere(mask.table >= 0):
        at = np.s_[b, h, n * mask.tile: (n + 1) * mask.tile, m * mask.tile: (m + 1) * mask.tile]
        rows, columns = array[at].shape
        part = mask.partial[mask.table[b, h, n, m]]
        np.testing.assert_array_equal(part[:rows, :columns], array[at])
        assert not part[rows:].any() and not part[:, columns:].any()
    np.testing.assert_array_equal(mask.array(), array)
    assert mask.array().dtype == bool and mask.array().shape == array.shape
    assert mask.density == pytest.approx((want != HIDDEN).mean())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]), st.integers(1, 5))
def test_holds_any_mask(seed, share, tile):
    rng = np.random.default_rng(seed)
    B, H, N, M = rng.integers(1, (3, 3, 12, 12))
    coarse = rng.random((B, H, N, M)) < share
    array = coarse & (rng.random((B, H, 1, M)) < 0.7) | (rng.random((B, H, N, 1)) < 0.2)
    check(of(array, tile), array)


@pytest.mark.parametrize("mask, density", [
    (causal, 10 / 16),
    (sliding_window(3), 7 / 16),
    (sliding_window(8), 9 / 16),
    (sliding_window(100), 10 / 16),
    (padding(np.array([4])), 4 / 16),
    (document(np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3])), 4 / 16),
    (lambda b, h, i, j: i + j < 0, 0.0),
    (lambda b, h, i, j: i + j >= 0, 1.0),
])
def test_density_of_known_masks(mask, density, monkeypatch):
    monkeypatch.setattr(blocks, "TILE", 4)
    found = BlockMask(lambda start, stop: mask_array(shifted(mask, start), 1, 1, stop - start, 16), 16, 16)
    assert found.density == density and isinstance(found.density, float)
    check(found, mask_array(mask, 1, 1, 16, 16) & np.ones((16, 16), bool))


def test_causal_has_partial_tiles_on_its_diagonal_alone():
    mask = of(np.tri(10, dtype=bool)[None, None], 4)
    np.testing.assert_array_equal(mask.table[0, 0], [[0, HIDDEN, HIDDEN], [VISIBLE, 1, HIDDEN],
                                                    [VISIBLE, VISIBLE, 2]])
    np.testing.assert_array_equal(mask.partial[:2], [np.tri(4), np.tri(4)])
    np.testing.assert_array_equal(mask.partial[2], np.pad(np.tri(2), (0, 2)))


def test_asked_strip_by_strip():
    asked = []

    def visible(start, stop):
        asked.append((start, stop))
        return np.ones((1, 1, stop - start, 5), bool)

    BlockMask(visible, 10, 5, 4)
    assert asked == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 7), (2, 1, 1, 7), (1, 3, 1, 1), (2, 3, 1, 7)])
def test_what_is_asked_may_broadcast(shape):
    """Axes of size 1 stand for all queries or all keys; batches and heads stay as they come."""
    seen = np.random.default_rng(0).random(shape) < 0.5
    mask = BlockMask(lambda start, stop: seen, 6, 7, 4)
    check(mask, np.broadcast_to(seen, (*shape[:2], 6, 7)))


@pytest.mark.parametrize("N, M", [(0, 5), (5, 0), (0, 0)])
def test_nothing(N, M):
    mask = of(np.ones((1, 1, N, M), bool), 4)
    assert mask.density == 0.0 and mask.array().shape == (1, 1, N, M)
    assert mask.table.dtype == np.int32 and mask.table.shape == (1, 1, -(-N // 4), -(-M // 4))
    assert mask.partial.shape == (0, 4, 4) and mask.partial.dtype == bool
    of_two = BlockMask(lambda start, stop: np.ones((2, 3, stop - start, 0), bool), 5, 0, 4)
    assert of_two.table.shape == (2, 3, 2, 0)


def test_size_of_a_tile(monkeypatch):
    array = np.tri(300, dtype=bool)[None, None]
    assert of(array).tile == blocks.TILE and of(array).table.shape[2] == -(-300 // blocks.TILE)
    check(of(array), array)
    monkeypatch.setattr(blocks, "TILE", 3)
    assert of(array[:, :, :4, :4]).tile == 3 and of(array[:, :, :4, :4], 2).tile == 2


def test_kept_with_a_mask_of_ours_alone():
    window = sliding_window(3)
    assert block_mask(window, 1, 1, 9, 9) is block_mask(window, 1, 1, 9, 9)
    assert block_mask(window, 1, 1, 9, 8) is not block_mask(window, 1, 1, 9, 9)

    def other(b, h, i, j):
        return i + j < 9

    assert block_mask(other, 1, 1, 9, 9) is not block_mask(other, 1, 1, 9, 9)
    for mask in (window, other, causal):
        check(block_mask(mask, 2, 3, 9, 11), mask_array(mask, 2, 3, 9, 11) & np.ones((9, 11), bool))


def test_kept_masks_by_tiles_of_many_strips(monkeypatch):
    monkeypatch.setattr(blocks, "TILE", 4)
    ids = np.array([[0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 2]])
    found = block_mask(document(ids), 2, 3, 9, 9)
    assert found.table.shape == (2, 1, 3, 3)  # heads do not differ
    check(found, ids[:, None, :, None] == ids[:, None, None, :])
