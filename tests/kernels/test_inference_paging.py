"""The paged cache: equal to the contiguous one, and no block lost or held twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import AppendCache, RingCache
from minattn.autograd import Tensor, no_grad
from minattn.inference.paging import BlockPool, PagedKVCache, rewind
from minattn.inference.roofline import RooflineModel, naive_greedy
from minattn.transformer import Step, generate

from .decoders import VOCAB, gpt, llama

pytestmark = pytest.mark.paper(162)


def entries(n, B=2, Hk=2, D=3, Dv=4, seed=0, dtype=np.float64):
    rng = np.random.default_rng([seed, n])
    return (rng.standard_normal((B, Hk, n, D)).astype(dtype),
            rng.standard_normal((B, Hk, n, Dv)).astype(dtype))


def same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def consistent(pool, *caches):
    """Every block stands in as many tables as it counts, and is free otherwise."""
    want = np.zeros_like(pool.counts)
    for cache in caches:
        np.add.at(want, cache.table.ravel(), 1)
    np.testing.assert_array_equal(pool.counts, want)
    assert sorted(pool._free) == np.flatnonzero(want == 0).tolist()
    assert pool.free == (want == 0).sum()


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("cuts", [[1, 1, 1], [16], [17, 1], [5, 0, 30, 2], [15, 1, 1, 16]])
def test_what_it_hands_out_is_the_contiguous_cache(cuts, size):
    paged, plain = PagedKVCache(BlockPool(size=size)), AppendCache()
    for i, n in enumerate(cuts):
        k, v = entries(n, seed=i)
        same(paged.append(k, v), plain.append(k, v))
        same(paged.read(), plain.read())
        assert paged.length == paged.held == sum(cuts[: i + 1])
        assert 0 <= paged.waste < size
        assert paged.table.shape == (2, -(-sum(cuts[: i + 1]) // size))
        consistent(paged.pool, paged)
    assert paged.memory == paged.table.size * size * 2 * (3 + 4) * 8


def test_position_p_lies_in_block_p_over_16():
    pool = BlockPool(8)
    first, second = PagedKVCache(pool), PagedKVCache(pool)
    k, v = entries(20, B=1)
    first.append(k[:, :, :10], v[:, :, :10])
    second.append(k, v)
    first.append(k[:, :, 10:], v[:, :, 10:])
    assert first.table.tolist() == [[0, 3]] and second.table.tolist() == [[1, 2]]
    np.testing.assert_array_equal(pool.keys[3, :, 2], k[0, :, 18])
    np.testing.assert_array_equal(pool.values[1, :, 15], v[0, :, 15])
    same(first.read(), second.read())


def test_blocks_come_back():
    pool = BlockPool(4)
    cache, other = PagedKVCache(pool), PagedKVCache(pool)
    cache.append(*entries(40, B=1))
    assert pool.free == 1 and cache.waste == 8
    with pytest.raises(RuntimeError, match=r"^take: expected at most the 1 free blocks of 4, got 2; retire"):
        other.append(*entries(17, B=1))
    assert other.length == 0 and pool.free == 1
    consistent(pool, cache, other)
    cache.reset()
    assert pool.free == 4 and cache.length == 0 and cache.memory == 0
    with pytest.raises(RuntimeError, match=r"^read: nothing has been appended"):
        cache.read()
    other.append(*entries(64, B=1))
    assert pool.free == 0 and other.waste == 0
    consistent(pool, cache, other)
    cache.reset()  # a second time does nothing
    consistent(pool, cache, other)


def test_a_pool_of_no_given_size_doubles():
    cache = PagedKVCache()
    sizes = []
    for i in range(9):
        cache.append(*entries(16, B=1, seed=i))
        sizes.append(len(cache.pool.counts))
    assert sizes == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert cache.table.tolist() == [list(range(9))]
    big = PagedKVCache()
    big.append(*entries(100, B=3))
    assert len(big.pool.counts) == 21
    consistent(big.pool, big)


def test_beams_share_blocks_until_they_part():
    cache, plain = PagedKVCache(), AppendCache()
    for c in (cache, plain):
        c.append(*entries(20, B=1))
        c.reorder(np.zeros(3, int))
    assert cache.pool.counts[cache.table[0]].tolist() == [3, 3] and cache.memory == 2 * cache.pool.block_bytes
    same(cache.read(), plain.read())
    k, v = entries(1, B=3)
    same(cache.append(k, v), plain.append(k, v))
    assert len(set(cache.table[:, 0])) == 1 and len(set(cache.table[:, 1])) == 3
    assert cache.memory == 4 * cache.pool.block_bytes
    for c in (cache, plain):
        c.reorder(np.array([2, 2, 0]))
    k, v = entries(12, B=3, seed=5)
    same(cache.append(k, v), plain.append(k, v))
    consistent(cache.pool, cache)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["append", "reorder", "rewind", "reset"]),
                          st.integers(0, 9)), max_size=25), st.integers(0, 99))
def test_any_order_of_use_equals_contiguous_caches(acts, seed):
    rng = np.random.default_rng(seed)
    pool = BlockPool(size=4)
    paged, plain = [PagedKVCache(pool) for _ in range(3)], [AppendCache() for _ in range(3)]
    for i, (which, act, n) in enumerate(acts):
        a, b = paged[which], plain[which]
        if act == "append":
            B = len(b.read().keys) if b._k is not None else 1 + n % 3
            k, v = entries(n, B=B, seed=i)
            same(a.append(k, v), b.append(k, v))
        elif act == "reset":
            a.reset()
            b.reset()
        elif b._k is not None:
            B = len(b.read().keys)
            if act == "reorder":
                index = rng.integers(0, B, 1 + n % 3)
                a.reorder(index)
                b.reorder(index)
            else:
                rewind([a, b], rng.integers(0, b.length + 1))
            same(a.read(), b.read())
        assert a.length == b.length
        consistent(pool, *paged)
        assert all(0 <= c.waste < 4 for c in paged)


def test_rewinding():
    cache, plain = PagedKVCache(), AppendCache()
    k, v = entries(40)
    for c in (cache, plain):
        c.append(k, v)
    rewind([cache, plain], 33)
    same(cache.read(), plain.read())
    assert cache.table.shape == (2, 3) and cache.length == plain.length == 33
    rewind([cache], 16)
    assert cache.table.shape == (2, 1) and cache.waste == 0
    rewind([cache], 16)
    with pytest.raises(ValueError, match=r"^length: expected at most the 16 positions .* held, got 17$"):
        cache.rewind(17)
    with pytest.raises(ValueError, match=r"^length: expected at most the 33 positions"):
        rewind([plain], 34)
    with pytest.raises(ValueError, match=r"^length: expected a whole number ≥ 0"):
        rewind([plain], -1)
    with pytest.raises(TypeError, match=r"^caches: expected an AppendCache or a .*, got RingCache$"):
        rewind([RingCache(3)], 0)
    consistent(cache.pool, cache)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
@pytest.mark.parametrize("make", [llama, gpt])
def test_cache_off_contiguous_and_paged_give_the_same_logits_and_tokens(make, dtype, tolerance):
    model = make(dtype=dtype)
    ids = np.random.default_rng(2).integers(0, VOCAB, (3, 5))
    pool = BlockPool()
    with no_grad():
        steps = [Step(model, cache) for cache in (False, True, lambda: PagedKVCache(pool))]
        text = ids
        for _ in range(20):
            off, contiguous, paged = (np.asarray(step(text).data) for step in steps)
            assert np.ptp(off, 1).min() > 0.5  # not degenerate
            np.testing.assert_allclose(contiguous, off, rtol=0, atol=tolerance)
            np.testing.assert_allclose(paged, off, rtol=0, atol=tolerance)
            assert (off.argmax(1) == contiguous.argmax(1)).all() and (off.argmax(1) == paged.argmax(1)).all()
            text = np.concatenate([text, off.argmax(1)[:, None]], 1)
    assert [c.held for c in steps[2].caches] == [24] * 2
    consistent(pool, *steps[2].caches)
    np.testing.assert_array_equal(generate(model, ids, 20, cache=PagedKVCache), text)


def test_a_beam_search_on_pages_is_that_on_a_contiguous_cache():
    model = llama(seed=3)
    ids = np.random.default_rng(2).integers(0, VOCAB, (2, 15))
    want = generate(model, ids, 8, beams=3)
    np.testing.assert_array_equal(generate(model, ids, 8, beams=3, cache=PagedKVCache), want)


def test_the_loops_generate_the_same():
    model = llama(seed=4)
    want = naive_greedy([1, 2, 3], model.state_dict(), model.config, 15)
    assert generate(model, [[1, 2, 3]], 15, cache=PagedKVCache)[0].tolist() == want
    assert len(set(want)) > 2


def test_its_memory_is_that_of_the_formula_and_the_waste():
    model = llama(layers=3, kv_heads=1)
    pool = BlockPool()
    step = Step(model, lambda: PagedKVCache(pool))
    with no_grad():
        step(np.zeros((2, 21), int))
    costs = RooflineModel(model.config, peak=1, bandwidth=1, cache_bytes=8)
    assert sum(c.memory for c in step.caches) == costs.cache([32, 32])
    assert all(c.waste == 11 for c in step.caches)
    assert pool.block_bytes == costs.cache([16]) / 3


def test_bad_input():
    with pytest.raises(ValueError, match=r"^blocks: expected a whole number ≥ 1, got 0"):
        BlockPool(0)
    with pytest.raises(ValueError, match=r"^size: expected a whole number ≥ 1, got 0"):
        BlockPool(size=0)
    with pytest.raises(TypeError, match=r"^pool: expected a BlockPool, got 3"):
        PagedKVCache(3)
    cache = PagedKVCache()
    k, v = entries(2)
    cache.append(k, v)
    with pytest.raises(ValueError, match=r"^k: expected shape \(2, 2, n, 3\) as before"):
        cache.append(*entries(2, B=3))
    with pytest.raises(ValueError, match=r"^v: expected shape"):
        cache.append(k, v[..., :3])
    with pytest.raises(RuntimeError, match=r"no gradients"):
        cache.append(Tensor(k, requires_grad=True), v)
    other = PagedKVCache(cache.pool)
    with pytest.raises(ValueError, match=r"^k: expected 2 heads of 3 features in float64, as in the pool, "
                                         r"got 1 of 3 in float64"):
        other.append(k[:, :1], v[:, :1])
    with pytest.raises(ValueError, match=r"^v: expected 2 heads of 4 features in float64, .* in float32"):
        other.append(k, v.astype(np.float32))
    assert BlockPool().block_bytes == 0 and PagedKVCache().memory == 0
