"""`minattn.kernels.flash` against loops, on small tiles, so that every case has many."""

import numpy as np
import pytest

from minattn.attention import (
    attention,
    both,
    causal,
    dot_product,
    mask_array,
    naive_attention,
    negate,
    padding,
    shifted,
    sliding_window,
)
from minattn.autograd import Tensor, no_grad
from minattn.kernels import flash
from minattn.kernels.flash import flash_attention


@pytest.fixture(params=["compiled", "reference"])
def form(request, monkeypatch):
    """Both forms of what lies between the products."""
    if request.param == "reference":
        monkeypatch.setattr(flash, "compiled", lambda *arrays: False)
    else:
        pytest.importorskip("numba")
    return request.param


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(flash, "QUERIES", 4)
    monkeypatch.setattr(flash, "KEYS", 3)


def tensors(B, H, Hk, N, M, D, Dv, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((B, H, N, D), (B, Hk, M, D), (B, Hk, M, Dv))
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def visible_by(mask, B, H, M):
    return mask and (lambda start, stop: mask_array(shifted(mask, start), B, H, stop - start, M))


def run(q, k, v, mask=None):
    (B, H, _, D), M = q.shape, k.shape[2]
    return flash_attention(q, k, v, scale=1 / np.sqrt(D), visible=visible_by(mask, B, H, M))


def naive_lse(q, k, mask):
    """ln Σ_j exp s_ij, a row at a time."""
    B, H, N, D = q.shape
    out = np.full((B, H, N), -np.inf)
    for b, h, i in np.ndindex(B, H, N):
        scores = [q[b, h, i] @ k[b, h * k.shape[1] // H, j] / np.sqrt(D) for j in range(k.shape[2])
                  if mask is None or mask(b, h, i, j)]
        if scores:
            out[b, h, i] = max(scores) + np.log(np.sum(np.exp(np.array(scores) - max(scores))))
    return out


CASES = {
    "one of each": ((1, 1, 1, 1, 1, 1, 1), None),
    "everything visible": ((2, 2, 2, 5, 7, 3, 4), None),
    "causal, grouped": ((1, 6, 2, 13, 13, 4, 5), causal),
    "causal, later queries": ((2, 4, 1, 5, 11, 2, 2), shifted(causal, queries=6)),
    "more queries than keys": ((1, 3, 3, 11, 4, 4, 2), causal),
    "window": ((1, 2, 1, 14, 14, 3, 3), sliding_window(3)),
    "padding, a row with nothing": ((3, 2, 2, 6, 8, 3, 3), padding(np.array([5, 0, 8]))),
    "padding and causal": ((2, 2, 1, 9, 9, 3, 3), both(causal, padding(np.array([9, 2])))),
    "strictly later keys": ((1, 2, 2, 9, 9, 3, 3), negate(causal)),
    "of the head": ((2, 4, 2, 6, 6, 3, 3), lambda b, h, i, j: (h + i + j) % 2 == 0),
    "of the query alone": ((1, 2, 2, 6, 6, 3, 3), lambda b, h, i, j: i % 3 != 1),
    "two far apart": ((1, 1, 1, 5, 12, 3, 3), lambda b, h, i, j: (j == 1) | (j == 10)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_loops(case, form, small):
    shape, mask = CASES[case]
    q, k, v = tensors(*shape)
    out, lse = run(q, k, v, mask)
    want = naive_attention(q, k, v, mask_mod=mask)
    assert out.shape == want.shape and lse.shape == want.shape[:3] and np.abs(want).max() > 0.1
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lse, naive_lse(q, k, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tiles", [(4, 3), (1, 1), (128, 512), (5, 100)])
def test_tiles_do_not_matter(tiles, form, monkeypatch):
    q, k, v = tensors(1, 4, 2, 17, 23, 5, 6)
    mask = shifted(causal, queries=6)
    want, lse = run(q, k, v, mask)
    monkeypatch.setattr(flash, "QUERIES", tiles[0])
    monkeypatch.setattr(flash, "KEYS", tiles[1])
    for got, expected in zip(run(q, k, v, mask), (want, lse), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def test_single_precision(form, small):
    """At most twice the error of plain attention in float32, plus its rounding."""
    q, k, v = tensors(2, 6, 3, 33, 47, 16, 8, np.float32, seed=1)
    wide = [x.astype(float) for x in (q, k, v)]
    mask = shifted(causal, queries=14)
    want = naive_attention(*wide, mask_mod=mask)
    scores = (q @ k.repeat(2, 1).mT) / np.float32(4)
    scores[~np.broadcast_to(mask_array(mask, 2, 6, 33, 47), scores.shape)] = -np.inf
    plain = np.exp(scores - scores.max(-1, keepdims=True))
    plain = plain / plain.sum(-1, keepdims=True) @ v.repeat(2, 1)
    out, lse = run(q, k, v, mask)
    assert out.dtype == lse.dtype == np.float32
    assert np.abs(out - want).max() <= 2 * np.abs(plain - want).max() + 2e-7
    np.testing.assert_allclose(lse, naive_lse(*wide[:2], mask), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores(dtype, form, small):
    q, k, v = tensors(1, 2, 2, 9, 9, 4, 4, dtype)
    q, k = 50 * q, 10 * k
    out, lse = run(q, k, v, causal)
    assert np.abs(lse).max() > 500 and np.isfinite(out).all()
    np.testing.assert_allclose(out, naive_attention(q, k, v, mask_mod=causal), rtol=0,
                               atol=1e-4 if dtype == np.float32 else 1e-11)


def test_tiles_without_a_visible_key_are_not_touched(form, small):
    """What lies beyond the first and the last key that a tile of queries sees may be anything."""
    q, k, v = tensors(1, 2, 1, 4, 20, 3, 3)
    k[:, :, :6] = k[:, :, 15:] = v[:, :, :6] = v[:, :, 15:] = np.nan
    out, lse = run(q, k, v, lambda b, h, i, j: (j >= 6) & (j < 15) & (j != 8 + i))
    assert np.isfinite(out).all() and np.isfinite(lse).all()


def test_nan_is_not_hidden(form, small):
    q, k, v = tensors(1, 1, 1, 6, 6, 3, 3, np.float32)
    q[0, 0, 2, 1] = np.nan
    out, _ = run(q, k, v, causal)
    assert np.isnan(out[0, 0, 2]).all() and np.isfinite(out[0, 0, [0, 1, 3, 4, 5]]).all()


def test_views_with_gaps_and_inputs_left_alone(form, small):
    """Heads inside (B, N, H, D), keys at the front of a buffer."""
    q, k, v = tensors(2, 4, 2, 7, 9, 3, 5, seed=4)
    laid_out = np.ascontiguousarray(q.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    buffers = [np.full((2, 2, 16, x.shape[3]), np.nan) for x in (k, v)]
    for buffer, x in zip(buffers, (k, v), strict=True):
        buffer[:, :, :9] = x
    kept = laid_out.copy()
    got = run(laid_out, buffers[0][:, :, :9], buffers[1][:, :, :9], causal)
    for a, b in zip(got, run(q, k, v, causal), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(laid_out, kept)


# ---- when `attention` uses it


@pytest.fixture
def used(monkeypatch):
    """Shapes of the queries that the kernel was given."""
    pytest.importorskip("numba")
    seen = []

    def spy(q, *args, **options):
        seen.append(q.shape)
        return flash_attention(q, *args, **options)

    monkeypatch.setattr(dot_product, "flash_attention", spy)
    monkeypatch.setattr(dot_product, "TILED", 20)
    return seen


@pytest.mark.parametrize("mask", [None, causal, sliding_window(2)])
def test_attention_uses_it_for_values_alone(mask, used):
    q, k, v = tensors(1, 4, 2, 4, 5, 3, 2)
    want = naive_attention(q, k, v, mask_mod=mask)
    out = attention(q, k, v, mask_mod=mask)
    assert used == [q.shape] and type(out) is np.ndarray
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)
    again, lse = attention(Tensor(q), k, v, mask_mod=mask, return_lse=True)
    assert len(used) == 2 and isinstance(again, Tensor) and isinstance(lse, Tensor)
    np.testing.assert_array_equal(again.data, out)
    np.testing.assert_allclose(lse.data, naive_lse(q, k, mask), rtol=0, atol=1e-12)
    with no_grad():
        attention(Tensor(q, requires_grad=True), k, v, mask_mod=mask)
    assert len(used) == 3
    scaled = attention(q, k, v, mask_mod=mask, scale=0.3)
    assert len(used) == 4
    np.testing.assert_allclose(scaled, naive_attention(q, k, v, mask_mod=mask, scale=0.3), rtol=0, atol=1e-12)


def test_attention_does_without_it_where_more_is_asked(used):
    q, k, v = tensors(1, 2, 2, 4, 5, 3, 3)
    attention(Tensor(q, requires_grad=True), k, v)
    attention(q, Tensor(k, requires_grad=True), v)
    attention(q, k, v, return_weights=True)
    attention(q, k, v, bias=np.zeros((4, 5)))
    attention(q, k, v, score_mod=lambda s, b, h, i, j: s)
    attention(q, k, v, normalizer="sparsemax")
    attention(q[:, :, :3], k, v)  # fewer pairs than TILED
    attention(*(x.astype(np.float16) for x in (q, k, v)))
    assert used == []


def test_attention_of_many_queries_asks_the_mask_tile_by_tile(used, monkeypatch):
    monkeypatch.setattr(flash, "QUERIES", 4)
    asked = []

    def mask(b, h, i, j):
        asked.append((int(i.min()), int(i.max()), i.size * j.size))
        return j <= i

    q, k, v = tensors(1, 1, 1, 10, 10, 3, 3)
    out = attention(q, k, v, mask_mod=mask)
    assert asked == [(0, 3, 40), (4, 7, 40), (8, 9, 20)]
    np.testing.assert_allclose(out, naive_attention(q, k, v, mask_mod=causal), rtol=0, atol=1e-12)
