"""Continuous batching: what it generates is each request's own text, in as many iterations as counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import no_grad
from minattn.inference.batching import (
    ContinuousBatcher,
    Iteration,
    continuous_iterations,
    padded_batch,
    selective_step,
    simulate_batching,
    static_iterations,
)
from minattn.inference.paging import BlockPool, PagedKVCache
from minattn.transformer import GPT, Config, generate

from .decoders import VOCAB, gpt, llama

pytestmark = pytest.mark.paper(162)

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=20)


def requests(n, seed=0, longest=9):
    """Prompts of 1 to `longest` tokens, and how many each is to produce."""
    rng = np.random.default_rng(seed)
    return ([rng.integers(0, VOCAB, rng.integers(1, longest + 1)).tolist() for _ in range(n)],
            rng.integers(1, 12, n).tolist())


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 9))
def test_formulas_count_what_the_simulation_does(lengths, slots):
    static, continuous = (simulate_batching(lengths, slots, c) for c in (False, True))
    assert len(static) == static_iterations(lengths, slots)
    assert len(continuous) == continuous_iterations(lengths, slots)
    for found in (static, continuous):
        assert np.bincount(np.concatenate(found), minlength=len(lengths)).tolist() == lengths
        assert max(map(len, found)) <= slots
    assert max(-(-sum(lengths) // slots), *lengths) <= len(continuous) <= len(static)


def test_iterations_by_hand():
    lengths = [8, 2, 7, 4]
    assert static_iterations(lengths, 2) == 15 and continuous_iterations(lengths, 2) == 12
    assert static_iterations(lengths, 1) == continuous_iterations(lengths, 1) == 21
    assert static_iterations(lengths, 9) == continuous_iterations(lengths, 9) == 8
    assert simulate_batching([2, 1, 1], 2, True) == [[0, 1], [0, 2]]
    assert simulate_batching([2, 1, 1], 2, False) == [[0, 1], [0], [2]]
    assert static_iterations([], 3) == continuous_iterations([], 3) == 0


@pytest.mark.parametrize("make", [llama, gpt])
def test_one_step_of_sequences_at_different_positions(make):
    model, rng = make(), np.random.default_rng(0)
    texts = [rng.integers(0, VOCAB, n) for n in (1, 7, 4)]
    caches = [model.new_caches() for _ in texts]
    with no_grad():
        for text, held in zip(texts, caches, strict=True):
            model(text[None], caches=held)
        for _ in range(3):
            new = rng.integers(0, VOCAB, 3)
            texts = [np.append(t, n) for t, n in zip(texts, new, strict=True)]
            found = selective_step(model, new, caches)
            want = np.stack([model(t[None]).data[0, -1] for t in texts])
            assert np.ptp(want, 1).min() > 0.5 and found.dtype == np.float64
            np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-10)
    assert [c[1].length for c in caches] == [4, 10, 7]


@pytest.mark.parametrize("make", [llama, gpt])
@pytest.mark.parametrize("slots", [1, 3, 20])
def test_every_request_gets_its_own_text(make, slots):
    model, (prompts, lengths) = make(), requests(11)
    batcher = ContinuousBatcher(model, slots)
    assert [batcher.submit(p, n) for p, n in zip(prompts, lengths, strict=True)] == list(range(11))
    texts = batcher.run()
    for text, prompt, n in zip(texts, prompts, lengths, strict=True):
        np.testing.assert_array_equal(text, generate(model, [prompt], n)[0])
    assert len({tuple(t) for t in texts}) > 5
    assert [sorted(i.seated) for i in batcher.log] == [sorted(s) for s in
                                                       simulate_batching(lengths, slots, True)]
    assert len(batcher.log) == continuous_iterations(lengths, slots)


def test_the_log_has_the_lengths_that_cost():
    batcher = ContinuousBatcher(llama(), 2)
    for n, prompt in ((3, [1, 2]), (1, [3]), (2, [4, 5, 6])):
        batcher.submit(prompt, n)
    assert batcher.step() == [1] and batcher.step() == [] and sorted(batcher.step()) == [0, 2]
    assert batcher.log == [Iteration((2, 1), (), (0, 1)), Iteration((3,), (3,), (0, 2)),
                           Iteration((), (4, 4), (0, 2))]
    assert batcher.submit([1], 1) == 3
    assert len(batcher.run()) == 4


def test_it_ends_with_eos():
    model, (prompts, _) = llama(seed=1), requests(8, seed=3)
    plain = [generate(model, [p], 14)[0] for p in prompts]
    eos = int(plain[0][len(prompts[0]) + 2])
    batcher = ContinuousBatcher(model, 3, eos=eos)
    for p in prompts:
        batcher.submit(p, 14)
    texts = batcher.run()
    for text, prompt, whole in zip(texts, prompts, plain, strict=True):
        new = whole[len(prompt) :].tolist()
        stop = new.index(eos) + 1 if eos in new else 14
        assert text.tolist() == prompt + new[:stop]
    lengths = [len(t) - len(p) for t, p in zip(texts, prompts, strict=True)]
    assert min(lengths) < 14 and len(batcher.log) == continuous_iterations(lengths, 3)


def test_paged_requests_give_their_blocks_back_when_they_leave():
    model, (prompts, lengths) = llama(), requests(9, seed=4, longest=20)
    pool = BlockPool()
    batcher = ContinuousBatcher(model, 3, new_caches=lambda: [PagedKVCache(pool) for _ in model.blocks])
    for p, n in zip(prompts, lengths, strict=True):
        batcher.submit(p, n)
    held = []
    while batcher.waiting or batcher.seated:
        batcher.step()
        held.append(batcher.memory)
        in_use = (pool.counts > 0).sum()
        assert batcher.memory == in_use * pool.block_bytes
        assert in_use == sum(2 * -(-(len(r.ids) - 1) // 16) for r in batcher.seated)
    assert pool.counts.max() == 0 and batcher.peak >= max(held) > 0 == held[-1]
    assert batcher.peak == 5 * 2 * pool.block_bytes
    for n, (p, m) in enumerate(zip(prompts, lengths, strict=True)):
        np.testing.assert_array_equal(batcher.finished[n], generate(model, [p], m)[0])


def test_a_static_batch_gives_the_same_texts():
    model, (prompts, lengths) = llama(), requests(4, seed=5)
    ids, held = padded_batch(prompts)
    assert ids.shape == (4, held.max()) and held.tolist() == [len(p) for p in prompts]
    together = generate(model, ids, max(lengths), lengths=held)
    for row, p, n in zip(together, prompts, lengths, strict=True):
        start = ids.shape[1] - len(p)
        np.testing.assert_array_equal(row[start : ids.shape[1] + n], generate(model, [p], n)[0])
        assert not row[:start].any()


def test_bad_input():
    model = llama()
    with pytest.raises(ValueError, match=r"^slots: expected a whole number ≥ 1, got 0"):
        ContinuousBatcher(model, 0)
    batcher = ContinuousBatcher(model, 2)
    for ids in ([], [[1]], [1.5], 3):
        with pytest.raises(ValueError, match=r"^ids: expected one sequence of at least one integer, got "):
            batcher.submit(ids, 2)
    with pytest.raises(ValueError, match=r"^max_new: expected a whole number ≥ 1, got 0"):
        batcher.submit([1], 0)
    assert not batcher.waiting and batcher.run() == []
    for count in (static_iterations, continuous_iterations):
        with pytest.raises(ValueError, match=r"^lengths\[1\]: expected a whole number ≥ 1, got 0"):
            count([2, 0], 2)
        with pytest.raises(ValueError, match=r"^slots: expected a whole number ≥ 1, got 0"):
            count([2, 1], 0)
    with pytest.raises(ValueError, match=r"^caches: expected one for each of 2 blocks and 2 sequences, got"):
        selective_step(model, [1, 2], [model.new_caches()])
    with pytest.raises(ValueError, match=r"^caches: expected .*got \[1\]"):
        selective_step(model, [1], [model.new_caches()[:1]])


@pytest.mark.parametrize("options", [{"position": "alibi"}, {"pre_norm": False}])
def test_models_that_it_does_not_know(options):
    model = GPT(Config(vocab=5, context=8, layers=1, heads=1, d_model=4, **options),
                rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^model: expected pre-norm blocks without a bias of positions"):
        selective_step(model, [1], [model.new_caches()])
