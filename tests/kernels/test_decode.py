"""Decoding against caches in blocks and in codes: the attention of the plain arrays that they stand for."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.kernels import decode, lean
from minattn.kernels.decode import (
    GROUP,
    QuantizedCache,
    naive_paged_decode,
    naive_quantize,
    paged_decode,
    quantize_cache,
    quantized_decode,
)
from minattn.kernels.lean import lean_attention_decode, naive_decode

pytestmark = pytest.mark.paper(197)


@pytest.fixture(params=["compiled", "reference"])
def form(request, monkeypatch):
    """Both forms of the loop over keys."""
    if request.param == "reference":
        monkeypatch.setattr(decode, "machine_code", lambda *arrays: False)
    else:
        pytest.importorskip("numba")
    return request.param


def tensors(B, H, Hk, M, D, Dv, dtype=np.float64, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    shapes = ((B, H, 1, D), (B, Hk, M, D), (B, Hk, M, Dv))
    return [(size * rng.standard_normal(s)).astype(dtype) for s in shapes]


def in_blocks(x, size, table, blocks):
    """Positions of x (B, Hk, M, D) laid into a pool, NaN where there is none."""
    pool = np.full((blocks, x.shape[1], size, x.shape[3]), np.nan, x.dtype)
    for b in range(len(x)):
        for j in range(x.shape[2]):
            pool[table[b][j // size], :, j % size] = x[b, :, j]
    return pool


CASES = {
    "ragged": ((3, 4, 2, 71, 5, 3), [71, 1, 40]),
    "one key": ((1, 1, 1, 1, 1, 1), None),
    "one head, no key in one sequence": ((2, 1, 1, 33, 17, 2), [0, 33]),
    "grouped by five": ((1, 5, 1, 37, 7, 18), None),
    "whole vectors": ((1, 8, 2, 128, 16, 32), None),
    "many heads": ((2, 6, 6, 40, 20, 4), [40, 32]),
}


# --- blocks -----------------------------------------------------------------------------------------------

def paged(name, size, dtype=np.float64):
    (B, H, Hk, M, D, Dv), lengths = CASES[name]
    q, k, v = tensors(B, H, Hk, M, D, Dv, dtype)
    n = -(-M // size)
    table = np.random.default_rng(7).permutation(B * n + 3)[: B * n].reshape(B, n)
    lengths = [M] * B if lengths is None else lengths
    keys, values = (in_blocks(x, size, table, B * n + 3) for x in (k, v))
    return (q, k, v), keys, values, table, lengths


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 4, 7, 16])
def test_blocks_hold_the_same_attention(name, size, form):
    (q, k, v), keys, values, table, lengths = paged(name, size)
    want = naive_decode(q, k, v, lengths)
    tile = max(size, 8 // size * size)
    tiles = sum(-(-n // tile) for n in lengths) * k.shape[1]
    for workers in {1, 2, 3, tiles // 2 + 1, tiles, tiles + 3}:
        got = paged_decode(q, keys, values, table, lengths, workers=workers, tile=tile)
        assert got.shape == want.shape and got.dtype == q.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    single = [x.astype(np.float32) for x in (q, keys, values)]
    got = paged_decode(*single, table, lengths)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_blocks_one_by_one():
    (q, k, v), keys, values, table, lengths = paged("ragged", 4)
    np.testing.assert_allclose(naive_paged_decode(q, keys, values, table, lengths, scale=0.3),
                               naive_decode(q, k, v, lengths, scale=0.3), rtol=0, atol=1e-14)


def test_every_number_of_workers(form):
    (q, _, _), keys, values, table, lengths = paged("ragged", 4)
    want = naive_paged_decode(q, keys, values, table, lengths)
    for workers in range(1, 2 * (18 + 1 + 10) + 4):
        got = paged_decode(q, keys, values, table, lengths, workers=workers, tile=4)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_blocks_may_be_shared_and_those_behind_the_last_key_are_not_read(form):
    q, k, v = tensors(2, 2, 1, 8, 3, 3)
    table = np.array([[0, 1, -9], [0, 99, 99]])
    keys, values = (x[0].reshape(2, 1, 4, 3) for x in (k, v))
    got = paged_decode(q, keys, values, table, [8, 3], tile=4)
    np.testing.assert_allclose(got[0], naive_decode(q, k, v)[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(got[1:], naive_decode(q[1:], k[:1, :, :3], v[:1, :, :3]), rtol=0, atol=1e-12)
    assert not paged_decode(q, keys, values, table, [0, 0]).any()
    assert paged_decode(q, keys, values[..., :0], table, [8, 3]).shape == (2, 2, 1, 0)
    assert paged_decode(q, np.asfortranarray(keys), values, table, [8, 3])[0, 0, 0, 0] == got[0, 0, 0, 0]


def test_the_scale_and_the_default_tile_of_blocks(form):
    (q, k, v), keys, values, table, lengths = paged("whole vectors", 16)
    got = paged_decode(q, keys, values, table, lengths, scale=0.7)
    np.testing.assert_allclose(got, naive_decode(q, k, v, scale=0.7), rtol=0, atol=1e-12)
    assert [decode._tile(None, D, size) for D, size in ((64, 16), (128, 16), (128, 96), (8, 7))] == [
        256, 128, 192, 259]


@pytest.mark.parametrize("change, message", [
    (dict(q=np.zeros((1, 2, 2, 3))), "q: expected shape (batch, heads, 1, features), got (1, 2, 2, 3)"),
    (dict(q=np.zeros((2, 1, 3))), "q: expected shape (batch, heads, 1, features), got (2, 1, 3)"),
    (dict(keys=np.zeros((5, 2, 3))),
     "keys: expected (blocks, heads that divide 2, size ≥ 1, 3), got (5, 2, 3)"),
    (dict(keys=np.zeros((5, 2, 4, 6))), "keys: expected (blocks,"),
    (dict(keys=np.zeros((5, 0, 4, 3))), "keys: expected (blocks,"),
    (dict(keys=np.zeros((5, 2, 0, 3))), "keys: expected (blocks,"),
    (dict(keys=np.zeros((5, 3, 4, 3))), "keys: expected (blocks,"),
    (dict(values=np.zeros((5, 2, 3, 3))),
     "values: expected (5, 2, 4) before the features, as in keys, got (5, 2, 3, 3)"),
    (dict(values=np.zeros((5, 2, 4))), "values: expected (5, 2, 4)"),
    (dict(table=np.zeros((1, 2))),
     "table: expected whole numbers of shape (1, blocks of a sequence), got float64 of shape (1, 2)"),
    (dict(table=np.zeros((2, 2), int)), "table: expected whole numbers of shape (1, blocks of a sequence)"),
    (dict(table=np.zeros(1, int)), "table: expected whole numbers of shape (1,"),
    (dict(table=np.array([[0, 5]])), "table: expected numbers of blocks from 0 to 4, got [0, 5]"),
    (dict(table=np.array([[-1, 0]])), "table: expected numbers of blocks from 0 to 4, got [-1, 0]"),
    (dict(lengths=[9]), "lengths: expected 1 numbers from 0 to 8, got [9]"),
    (dict(lengths=[-1]), "lengths: expected 1 numbers from 0 to 8, got [-1]"),
    (dict(lengths=[1, 1]), "lengths: expected 1 numbers from 0 to 8, got [1, 1]"),
    (dict(tile=6), "tile: expected a multiple of 4, got 6"),
    (dict(tile=0), "tile: expected a multiple of 4, got 0"),
    (dict(tile=4.0), "tile: expected a multiple of 4, got 4.0"),
    (dict(workers=0), "workers: expected a whole number ≥ 1, got 0"),
])
def test_mistakes_with_blocks(change, message):
    good = dict(q=np.zeros((1, 2, 1, 3)), keys=np.zeros((5, 2, 4, 3)), values=np.zeros((5, 2, 4, 3)),
                table=np.array([[0, 4]]), lengths=[8])
    paged_decode(**good)
    with pytest.raises(ValueError, match=re.escape(message)):
        paged_decode(**{**good, **change})


# --- codes ------------------------------------------------------------------------------------------------

def unpacked(codes, bits):
    """Codes of single tokens (rows · 8 / bits, features), one at a time."""
    return [[int(c) >> shift & 2**bits - 1 for c in row] for row in codes for shift in range(0, 8, bits)]


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_those_of_the_loops(bits):
    _, k, v = tensors(2, 2, 2, 45, 5, 3, seed=3)
    cache = quantize_cache(k, v, bits)
    got_k, got_v = cache.arrays()
    assert got_k.shape == k.shape and got_v.shape == v.shape
    for b, h in np.ndindex(2, 2):
        keys, values = unpacked(cache.keys[b, h], bits), unpacked(cache.values[b, h], bits)
        for first in (0, GROUP):
            for d in range(5):
                codes, scale, zero = naive_quantize(k[b, h, first : first + GROUP, d], bits)
                stop = first + len(codes)
                assert [row[d] for row in keys[first:stop]] == codes.tolist()
                assert cache.key_scale[b, h, first // GROUP, d] == pytest.approx(scale, rel=1e-14)
                assert cache.key_zero[b, h, first // GROUP, d] == zero
                np.testing.assert_allclose(got_k[b, h, first:stop, d], codes * scale + zero, atol=1e-14)
        for j in range(45):
            codes, scale, zero = naive_quantize(v[b, h, j], bits)
            assert values[j][:3] == codes.tolist()
            np.testing.assert_allclose(got_v[b, h, j], codes * scale + zero, rtol=0, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([4, 8]), st.integers(1, 70), st.integers(1, 20))
def test_half_a_step_at_most(seed, bits, M, D):
    rng = np.random.default_rng(seed)
    k, v = 10 ** rng.uniform(-3, 3) * rng.standard_normal((2, 1, 1, M, D))
    got_k, got_v = quantize_cache(k, v, bits).arrays()
    for first in range(0, M, GROUP):
        part = slice(first, first + GROUP)
        step = np.ptp(k[:, :, part], axis=2, keepdims=True) / (2**bits - 1)
        assert (abs(got_k[:, :, part] - k[:, :, part]) <= step / 2 + 1e-12 * abs(k).max()).all()
    step = np.ptp(v, axis=3, keepdims=True) / (2**bits - 1)
    assert (abs(got_v - v) <= step / 2 + 1e-12 * abs(v).max()).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_few_enough_values_are_kept_exactly(bits):
    rng = np.random.default_rng(0)
    k = rng.integers(0, 2**bits, (1, 2, 64, 16)).astype(float)
    v = rng.integers(0, 2**bits, (1, 2, 64, 16)).astype(float)
    k[:, :, [0, 32]], k[:, :, [1, 33]], v[..., 0], v[..., 1] = 0, 2**bits - 1, 0, 2**bits - 1
    for got, want in zip(quantize_cache(k, v, bits).arrays(), (k, v), strict=True):
        np.testing.assert_array_equal(got, want)
    constant = np.full((1, 1, 40, 3), 7.25)
    for got in quantize_cache(constant, constant, bits).arrays():
        np.testing.assert_array_equal(got, constant)


def test_memory_is_that_of_the_arrays():
    k, v = np.ones((2, 1, 8, 1024, 128), np.float32)
    for bits in (8, 4):
        cache = quantize_cache(k, v, bits)
        codes = 2 * 8 * 1024 * 128 * bits // 8
        assert cache.keys.nbytes + cache.values.nbytes == codes
        assert cache.memory == codes + 4 * 2 * 8 * (1024 // 32 * 128 + 1024)
        assert cache.bits == bits and cache.shape == (1, 8, 1024, 128, 128)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", CASES)
def test_codes_give_the_attention_of_what_they_stand_for(name, bits, form):
    (B, H, Hk, M, D, Dv), lengths = CASES[name]
    q, k, v = tensors(B, H, Hk, M, D, Dv)
    cache = quantize_cache(k, v, bits)
    want = naive_decode(q, *cache.arrays(), lengths)
    tiles = sum(-(-n // 32) for n in lengths or [M] * B) * Hk
    for workers in range(1, tiles + 4):
        got = quantized_decode(q, cache, lengths, workers=workers, tile=32)
        assert got.shape == want.shape and got.dtype == q.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    got = quantized_decode(q, cache, lengths, workers=2, tile=96)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    single = quantize_cache(k.astype(np.float32), v.astype(np.float32), bits)
    got = quantized_decode(q.astype(np.float32), single, lengths)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, naive_decode(q, *single.arrays(), lengths), rtol=0, atol=1e-5)


def test_codes_with_a_scale_and_large_scores(form):
    q, k, v = tensors(1, 4, 2, 300, 8, 8, size=12.0)
    cache = quantize_cache(k, v, 8)
    for scale in (None, 0.05):
        want = naive_decode(q, *cache.arrays(), scale=scale)
        np.testing.assert_allclose(quantized_decode(q, cache, scale=scale), want, rtol=0, atol=1e-10)
    plain = lean_attention_decode(q, *cache.arrays(), [123])
    np.testing.assert_allclose(quantized_decode(q, cache, [123]), plain, rtol=0, atol=1e-11)


def test_no_keys_at_all(form):
    q, k, v = tensors(2, 2, 1, 0, 3, 4)
    cache = quantize_cache(k, v, 4)
    assert cache.memory == 0 and [x.shape for x in cache.arrays()] == [k.shape, v.shape]
    assert quantized_decode(q, cache).shape == (2, 2, 1, 4) and not quantized_decode(q, cache).any()
    q, k, v = tensors(2, 2, 1, 5, 3, 4)
    assert not quantized_decode(q, quantize_cache(k, v, 8), [0, 5])[0].any()


def test_the_division_into_workers_is_used(form, monkeypatch):
    seen = []
    monkeypatch.setattr(decode, "stream_k_schedule", lambda t, w: seen.append((list(t), w)) or [])
    q, k, v = tensors(2, 4, 2, 100, 3, 3)
    quantized_decode(q, quantize_cache(k, v, 8), [100, 33], workers=5, tile=32)
    monkeypatch.setattr(lean.os, "cpu_count", lambda: None)
    quantized_decode(q, quantize_cache(k, v, 8))
    assert seen == [([4, 4, 2, 2], 5), ([1] * 4, 4)]


@pytest.mark.parametrize("change, message", [
    (dict(bits=2), "bits: expected 4 or 8, got 2"),
    (dict(k=np.zeros((2, 5, 3))),
     "k: expected floats of 4 axes (batch, heads, positions, features), none empty but the third"),
    (dict(k=np.zeros((1, 2, 5, 3), int)), "k: expected floats of 4 axes"),
    (dict(k=np.zeros((1, 2, 5, 0))), "k: expected floats of 4 axes"),
    (dict(k=np.zeros((1, 0, 5, 3))), "k: expected floats of 4 axes"),
    (dict(v=np.zeros((1, 2, 4, 3))), "v: expected float64 of shape (1, 2, 5) before the features, as k, got"),
    (dict(v=np.zeros((1, 2, 5))), "v: expected float64 of shape (1, 2, 5)"),
    (dict(v=np.zeros((1, 2, 5, 0))), "v: expected float64 of shape (1, 2, 5)"),
    (dict(v=np.zeros((1, 2, 5, 3), np.float32)), "v: expected float64 of shape (1, 2, 5)"),
    (dict(k=np.full((1, 2, 5, 3), np.nan)), "k: expected finite numbers, got nan"),
    (dict(v=np.full((1, 2, 5, 3), np.inf)), "v: expected finite numbers, got inf"),
])
def test_what_cannot_be_coded(change, message):
    good = dict(k=np.zeros((1, 2, 5, 3)), v=np.zeros((1, 2, 5, 3)), bits=8)
    assert isinstance(quantize_cache(**good), QuantizedCache)
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize_cache(**{**good, **change})


@pytest.mark.parametrize("change, message", [
    (dict(q=np.zeros((2, 1, 3))), "q: expected shape (batch, heads, 1, features), got (2, 1, 3)"),
    (dict(q=np.zeros((1, 4, 1, 5))),
     "q: expected float64 of batch 1, heads that 2 divides, and 3 features, as the cache, got float64 of"),
    (dict(q=np.zeros((1, 3, 1, 3))), "q: expected float64 of batch 1"),
    (dict(q=np.zeros((2, 4, 1, 3))), "q: expected float64 of batch 1"),
    (dict(q=np.zeros((1, 4, 1, 3), np.float32)), "q: expected float64 of batch 1"),
    (dict(lengths=[6]), "lengths: expected 1 numbers from 0 to 5, got [6]"),
    (dict(tile=16), "tile: expected a multiple of 32, got 16"),
    (dict(tile=True), "tile: expected a multiple of 32, got True"),
    (dict(workers=1.5), "workers: expected a whole number ≥ 1, got 1.5"),
])
def test_mistakes_with_codes(change, message):
    cache = quantize_cache(np.zeros((1, 2, 5, 3)), np.zeros((1, 2, 5, 3)), 8)
    good = dict(q=np.zeros((1, 4, 1, 3)), cache=cache)
    assert not quantized_decode(**good).any()
    with pytest.raises(ValueError, match=re.escape(message)):
        quantized_decode(**{**good, **change})
