"""Caches: whatever the cuts, the same as one pass; and what they hold, where, in how many bytes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import (
    ALiBi,
    AppendCache,
    KVCache,
    RingCache,
    WindowCache,
    at_positions,
    attention,
    both,
    causal,
    either,
    sliding_window,
)
from minattn.autograd import Tensor, no_grad

B, H, HK, D, DV = 3, 4, 2, 5, 3


def inputs(N, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(s) for s in ((B, H, N, D), (B, HK, N, D), (B, HK, N, DV)))


def piecewise(cache, q, k, v, cuts, score_mod=None, mask_mod=causal):
    """Attention in pieces that end at the cuts, each over what the cache hands out."""
    out, start = [], cache.length
    assert start == 0
    for end in cuts:
        piece = slice(start, end)
        keys, values, there = cache.append(k[:, :, piece], v[:, :, piece])
        assert cache.length == end and len(there) == keys.shape[2] == values.shape[2]
        mask = mask_mod if cache.mask_mod is None else both(mask_mod, cache.mask_mod)
        here = np.arange(start, end)
        score = score_mod and at_positions(score_mod, here, there)
        out.append(
            attention(q[:, :, piece], keys, values, mask_mod=at_positions(mask, here, there), score_mod=score)
        )
        start = end
    return np.concatenate(out, axis=2)


def sinks(n):
    return lambda b, h, i, j: (j < n) & (j <= i)


# a maker of a cache for window w and s sinks, and the mask it stands for
CACHES = {
    "append": (lambda w, s: AppendCache(), lambda w, s: causal),
    "window": (lambda w, s: WindowCache(w), lambda w, s: sliding_window(w)),
    "ring": (lambda w, s: RingCache(w), lambda w, s: sliding_window(w)),
    "window with sinks": (WindowCache, lambda w, s: either(sliding_window(w), sinks(s))),
    "ring with sinks": (RingCache, lambda w, s: either(sliding_window(w), sinks(s))),
}


@pytest.mark.parametrize("name", CACHES)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_any_cuts_give_the_same(name, N, w, s, seed):
    q, k, v = inputs(N, seed)
    rng = np.random.default_rng(seed)
    cuts = [*np.flatnonzero(rng.random(N) < rng.random())[1:].tolist(), N]
    make, mask = CACHES[name]
    cache, score_mod = make(w, s), ALiBi(H).score_mod
    got = piecewise(cache, q, k, v, cuts, score_mod)
    want = attention(q, k, v, mask_mod=mask(w, s), score_mod=score_mod)
    assert np.abs(got - want).max() < 1e-12
    cache.reset()
    assert cache.length == 0 and cache.memory == 0
    again = piecewise(cache, q, k, v, range(1, N + 1), score_mod)
    assert np.abs(again - want).max() < 1e-12


@pytest.mark.parametrize("name", CACHES)
def test_what_is_held(name):
    w, s, N = 4, 2, 11
    _, k, v = inputs(N)
    cache = CACHES[name][0](w, s)
    n_sinks = s if "sinks" in name else 0
    for t in range(N):
        keys, values, positions = cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        window = range(t + 1) if name == "append" else range(max(0, t - w + 1), t + 1)
        expected = sorted({*range(min(n_sinks, t + 1)), *window})
        read = cache.read()
        assert sorted(read.positions) == expected and cache.held == len(expected)
        assert set(expected) <= set(positions) and len(set(positions)) == len(positions)
        for held in ((keys, values, positions), read):
            assert np.array_equal(held[0], k[:, :, held[2]]) and np.array_equal(held[1], v[:, :, held[2]])
    assert cache.length == N


def test_read_adds_nothing():
    _, k, v = inputs(5)
    for make, _ in CACHES.values():
        cache = make(3, 1)
        with pytest.raises(RuntimeError) as e:
            cache.read()
        assert str(e.value) == "read: nothing has been appended to this cache"
        cache.append(k, v)
        first, second = cache.read(), cache.read()
        assert cache.length == 5 and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_growth_is_amortised():
    _, k, v = inputs(100)
    cache, copies, buffer = AppendCache(), 0, None
    for t in range(100):
        cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        copies += cache._k is not buffer
        buffer = cache._k
        assert cache.length <= cache._k.shape[2] < 2 * cache.length + 1
    assert copies == 8  # 1, 2, 4, … 128
    prompt = AppendCache()
    prompt.append(k[:, :, :37], v[:, :, :37])
    assert prompt.memory == 37 * B * HK * (D + DV) * 8
    prompt.append(k[:, :, :1], v[:, :, :1])
    assert prompt.memory == 74 * B * HK * (D + DV) * 8


def test_single_steps_return_views():
    _, k, v = inputs(20)
    for cache in (AppendCache(), RingCache(4)):
        for t in range(9):
            keys, values, _ = cache.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        assert np.shares_memory(keys, cache._k) and np.shares_memory(values, cache._v)


def test_ring_and_window_stay_small():
    _, k, v = inputs(40)
    entry = B * HK * (D + DV) * 8
    ring, window = RingCache(5, sinks=2), WindowCache(5, sinks=2)
    for cache in (ring, window):
        cache.append(k, v)
        assert cache.memory == 7 * entry
    buffer = ring._k
    for t in range(9):
        ring.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        window.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
        assert ring.memory == window.memory == 7 * entry
    assert ring._k is buffer
    first = RingCache(5, sinks=2)
    first.append(k[:, :, :1], v[:, :, :1])
    assert first.memory == 7 * entry and first.held == 1


def test_the_slot_of_a_position():
    _, k, v = inputs(12)
    ring = RingCache(3, sinks=2)
    for t in range(12):
        ring.append(k[:, :, t : t + 1], v[:, :, t : t + 1])
    assert ring.read().positions.tolist() == [0, 1, 11, 9, 10]


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("index", [[2, 0, 0], [1], [1, 1, 2, 0, 0]])
def test_reorder(name, index):
    q, k, v = inputs(9)
    make, mask = CACHES[name]
    cache = make(3, 1)
    cache.reorder(np.array(index))  # nothing held: nothing to do
    assert cache.length == 0 and cache.memory == 0
    cache.append(k[:, :, :6], v[:, :, :6])
    cache.reorder(np.array(index))
    q2, k2, v2 = (x[index] for x in (q, k, v))
    out = []
    for t in range(6, 9):
        keys, values, _ = cache.append(k2[:, :, t : t + 1], v2[:, :, t : t + 1])
        out.append(attention(q2[:, :, t : t + 1], keys, values))
    want = attention(q2, k2, v2, mask_mod=mask(3, 1))[:, :, 6:]
    assert np.abs(np.concatenate(out, 2) - want).max() < 1e-12


def test_what_was_handed_out_survives_what_comes_after():
    """Several steps at once hand out copies or parts of the buffer that are not written again by `append`."""
    _, k, v = inputs(12)
    cache = RingCache(3)
    cache.append(k[:, :, :2], v[:, :, :2])
    keys, values, positions = cache.append(k[:, :, 2:7], v[:, :, 2:7])
    assert positions.tolist() == [0, 1, 2, 3, 4, 5, 6]  # position 0 is still in the window of query 2
    assert np.array_equal(keys, k[:, :, :7]) and np.array_equal(values, v[:, :, :7])


def test_callers_arrays_are_not_kept():
    _, k, v = inputs(4)
    for make, _ in CACHES.values():
        cache = make(6, 1)
        mine = k.copy(), v.copy()
        cache.append(*mine)
        mine[0][:] = mine[1][:] = 7
        assert np.array_equal(cache.read().keys, k) and np.array_equal(cache.read().values, v)


def test_precision_follows_the_first_keys():
    _, k, v = (x.astype(np.float32) for x in inputs(4))
    for make, _ in CACHES.values():
        cache = make(3, 1)
        keys, values, _ = cache.append(k, v)
        assert keys.dtype == values.dtype == cache.read().keys.dtype == np.float32
        assert cache.append(k[:, :, :1], v[:, :, :1]).values.dtype == np.float32


def test_tensors_are_taken_as_values():
    _, k, v = inputs(4)
    cache = AppendCache()
    keys, _, _ = cache.append(Tensor(k), Tensor(v))
    assert type(keys) is np.ndarray and np.array_equal(keys, k)
    with pytest.raises(RuntimeError) as e:
        cache.append(Tensor(k, requires_grad=True), v)
    assert str(e.value) == "k: a cache keeps no gradients; call it inside no_grad()"
    with pytest.raises(RuntimeError, match=r"^v: "):
        cache.append(k, Tensor(v, requires_grad=True) * 2)
    with no_grad():
        cache.append(Tensor(k, requires_grad=True) * 2, v)
    assert cache.length == 8


def test_no_positions_at_once():
    _, k, v = inputs(4)
    for make, _ in CACHES.values():
        cache = make(3, 1)
        assert cache.append(k[:, :, :0], v[:, :, :0]).keys.shape == (B, HK, 0, D)
        cache.append(k, v)
        cache.append(k[:, :, :0], v[:, :, :0])
        assert cache.length == 4
        keys, _, positions = cache.append(k[:, :, :1], v[:, :, :1])
        want = [*range(0 if type(cache) is AppendCache or cache.sinks else 2, 5)]
        if getattr(cache, "sinks", 0):
            want.remove(1)
        assert sorted(positions) == want and keys.shape[2] == len(want)


def test_masks():
    assert AppendCache().mask_mod is None and KVCache.mask_mod is None
    for cache in (WindowCache(3, sinks=2), RingCache(3, sinks=2)):
        assert (cache.w, cache.sinks) == (3, 2)
        for i, j in itertools.product(range(8), range(8)):
            assert cache.mask_mod(0, 0, i, j) == (j <= i and (j > i - 3 or j < 2))
    assert WindowCache(3).sinks == 0


def test_a_subclass_needs_only_append():
    class Last(KVCache):
        """Keeps the last position."""

        held = property(lambda self: min(self.length, 1))

        def append(self, k, v):
            self._k, self._v = self._taken(k, v)
            self.length += k.shape[2]
            self._positions = np.array([self.length - 1])
            return self.read()

    _, k, v = inputs(4)
    cache = Last()
    cache.append(k[:, :, :1], v[:, :, :1])
    keys, _, positions = cache.append(k[:, :, 1:2], v[:, :, 1:2])
    assert np.array_equal(keys, k[:, :, 1:2]) and positions.tolist() == [1]
    with pytest.raises(NotImplementedError) as e:
        KVCache().append(k, v)
    assert str(e.value) == "KVCache does not define append"


@pytest.mark.parametrize("make", [AppendCache, lambda: WindowCache(3), lambda: RingCache(3)])
def test_mistakes(make):
    _, k, v = inputs(4)
    cache = make()

    def refused(message, *args):
        with pytest.raises(ValueError) as e:
            cache.append(*args)
        assert str(e.value) == message

    refused(
        "k: expected shape (batch, heads, positions, features), all but the last as in k, got (3, 2, 4)",
        k[..., 0],
        v[..., 0],
    )
    refused(
        "v: expected shape (batch, heads, positions, features), all but the last as in k, got (3, 2, 3, 3)",
        k,
        v[:, :, :3],
    )
    refused(
        "v: expected shape (batch, heads, positions, features), all but the last as in k, got (3, 2, 4)",
        k,
        v[..., 0],
    )
    assert cache.length == 0
    cache.append(k, v)
    refused("k: expected shape (3, 2, n, 5) as before, got (2, 2, 4, 5)", k[:2], v[:2])
    refused("k: expected shape (3, 2, n, 5) as before, got (3, 2, 4, 4)", k[..., :4], v)
    refused("k: expected shape (3, 2, n, 5) as before, got (3, 1, 4, 5)", k[:, :1], v[:, :1])
    refused("v: expected shape (3, 2, n, 3) as before, got (3, 2, 4, 2)", k, v[..., :2])
    assert cache.length == 4


def test_sizes_are_checked():
    for make in (WindowCache, RingCache):
        with pytest.raises(ValueError, match=r"^w: expected a whole number ≥ 1, got 0"):
            make(0)
        with pytest.raises(ValueError, match=r"^sinks: expected a whole number ≥ 0, got -1"):
            make(3, -1)
