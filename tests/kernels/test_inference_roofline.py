"""Costs of a decoder: the formulas against a count of every single operation and number."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import no_grad
from minattn.inference.roofline import Meter, RooflineModel, Work, block_weights, counted_llama, naive_greedy
from minattn.transformer import Config, count, generate

from .decoders import llama

pytestmark = pytest.mark.paper(162)

SHAPES = [(4, 4, True), (4, 2, True), (2, 1, False), (1, 1, True)]  # heads, key heads, tied
SMOLLM2 = Config(vocab=49152, context=2048, layers=30, heads=9, kv_heads=3, d_model=576, d_mlp=1536,
                 norm="rms", activation="swiglu", position="rope", bias=False)
UNIT = {"peak": 1.0, "bandwidth": 1.0}


def counted(meter, weight_bytes=2, cache_bytes=2):
    """A meter's count as a `Work`."""
    return Work(meter.flops, len(meter.weights) * weight_bytes, len(meter.cache) * cache_bytes)


@pytest.mark.parametrize(("heads", "kv_heads", "tied"), SHAPES)
def test_counters_equal_the_formulas_exactly(heads, kv_heads, tied):
    model = llama(heads, kv_heads, tied)
    state, config = model.state_dict(), model.config
    costs = RooflineModel(config, **UNIT)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 11, n).tolist() for n in (5, 1, 3)]
    held = [[[] for _ in range(config.layers)] for _ in prompts]
    meter = Meter()
    logits = counted_llama(prompts, state, config, meter, held)
    assert counted(meter) == costs.prefill([5, 1, 3])
    with no_grad():
        for s, prompt in enumerate(prompts):
            np.testing.assert_allclose(logits[s][0], model([prompt]).data[0, -1], rtol=1e-10, atol=1e-10)
    meter = Meter()
    logits = counted_llama([[7], [0], [2]], state, config, meter, held)
    assert counted(meter) == costs.decode([6, 2, 4])
    with no_grad():
        np.testing.assert_allclose(logits[0][0], model([[*prompts[0], 7]]).data[0, -1], rtol=1e-10)
    meter = Meter()
    logits = counted_llama([[1, 4, 4], [3], [5, 6]], state, config, meter, held, every=True)
    assert counted(meter) == costs.extend([9, 3, 6], [3, 1, 2], rows=6)
    with no_grad():
        whole = model([[*prompts[2], 2, 5, 6]]).data[0]
    np.testing.assert_allclose(logits[2], whole[-2:], rtol=1e-10, atol=1e-10)
    assert len(held[0][0]) == 9


def test_without_a_cache_nothing_is_left_behind():
    costs = RooflineModel(SMOLLM2, **UNIT)
    again = costs.recompute([9])
    assert again.flops == costs.prefill([9]).flops and again.cache_bytes == 0
    assert again.weight_bytes == costs.prefill([9]).weight_bytes


def test_smollm2_by_hand():
    """P = 576² · 2 (q, out) + 576 · 192 · 2 (k, v) + 3 · 576 · 1536."""
    P = 663552 + 221184 + 2654208
    assert block_weights(SMOLLM2) == P == 3538944
    costs = RooflineModel(SMOLLM2, **UNIT)
    assert costs.block([100], [1]) == Work(2 * P + 4 * 100 * 576, 2 * P, 2 * 192 * 100 * 2)
    assert costs.block([100], [100]) == Work(200 * P + 4 * 100**2 * 576, 2 * P, 2 * 192 * 100 * 2)
    assert costs.head(3) == Work(6 * 49152 * 576, 2 * 49152 * 576)
    assert costs.decode([100]).flops == 30 * (2 * P + 4 * 100 * 576) + 2 * 49152 * 576
    assert costs.decode([100]).bytes == 2 * (30 * P + 49152 * 576) + 30 * 76800
    assert costs.cache([100]) == 2 * 30 * 192 * 100 * 2
    assert costs.cache([100]) == costs.decode([100]).cache_bytes


def test_the_block_agrees_with_the_count_of_a_forward_pass():
    """`transformer.count` knows a whole forward pass, with logits everywhere."""
    for N in (1, 7, 64):
        theirs = count(SMOLLM2, N, batch=3, dtype=np.float16)
        mine = RooflineModel(SMOLLM2, **UNIT).extend([N] * 3, [N] * 3, rows=3 * N)
        assert mine.flops == sum(theirs.flops.values())
        assert mine.cache_bytes == theirs.bytes["KV cache"]
    gpt2 = Config(vocab=50, context=16, layers=3, heads=2, d_model=8)
    mine = RooflineModel(gpt2, **UNIT).extend([16], [16], rows=16)
    assert mine.flops == sum(count(gpt2).flops.values())


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5), st.sampled_from([1, 2, 4]), st.lists(st.integers(1, 5000), min_size=1, max_size=9))
def test_the_mediant_inequality_bounds_the_intensity_of_decoding(layers, group, lengths):
    config = Config(vocab=64, context=8, layers=layers, heads=8, kv_heads=8 // group, d_model=64, norm="rms",
                    activation="swiglu", position="rope", bias=False)
    costs, B = RooflineModel(config, **UNIT), len(lengths)
    found = costs.decode(lengths).intensity
    assert min(B, group) * (1 - 1e-12) <= found <= max(B, group) * (1 + 1e-12)
    int8 = RooflineModel(config, **UNIT, weight_bytes=1).decode(lengths).intensity
    assert int8 <= max(2 * B, group) * (1 + 1e-12)
    N = lengths[0]
    block = costs.block([N], [N])
    assert N * (1 - 1e-12) <= block.intensity <= N * group * (1 + 1e-12)


def test_the_bounds_are_attained():
    full = RooflineModel(SMOLLM2, **UNIT)
    assert full.head(5).intensity == 5
    mha = RooflineModel(Config(vocab=8, context=8, layers=1, heads=2, d_model=8), **UNIT)
    assert mha.block([40], [40]).intensity == 40 and mha.decode([17]).intensity == 1
    assert full.decode([10**9]).intensity == pytest.approx(3, rel=1e-3)
    assert full.decode([1] * 64).intensity == pytest.approx(64, rel=0.02)


def test_time_is_the_longer_of_arithmetic_and_memory():
    fast = RooflineModel(SMOLLM2, peak=100.0, bandwidth=10.0)
    assert fast.ridge == 10
    assert fast.seconds(Work(1000, 50, 50)) == 10 == fast.seconds(Work(1, 60, 40))
    assert fast.seconds(Work(2000, 50, 50)) == 20
    below, above = fast.decode([50]), fast.prefill([500])
    assert below.intensity < fast.ridge < above.intensity
    assert fast.seconds(below) == below.bytes / 10 and fast.seconds(above) == above.flops / 100
    assert Work(1, 2, 3) + Work(10, 20, 30) == Work(11, 22, 33)


def test_bytes_of_a_number_are_options():
    costs = RooflineModel(SMOLLM2, **UNIT, weight_bytes=1, cache_bytes=4)
    half = RooflineModel(SMOLLM2, **UNIT)
    a, b = costs.decode([70, 3]), half.decode([70, 3])
    assert a.flops == b.flops and 2 * a.weight_bytes == b.weight_bytes and a.cache_bytes == 2 * b.cache_bytes
    assert costs.cache([70, 3]) == 2 * half.cache([70, 3])
    assert costs.block([70], [2]).cache_bytes == 2 * 192 * 70 * 4


def test_greedy_generation_without_a_cache_is_that_of_the_model():
    for seed, n in itertools.product(range(2), (1, 6)):
        model = llama(seed=seed)
        prompt = np.random.default_rng(seed).integers(0, 11, n).tolist()
        want = naive_greedy(prompt, model.state_dict(), model.config, 12)
        assert generate(model, [prompt], 12)[0].tolist() == want
        assert want[:n] == prompt and len(want) == n + 12


@pytest.mark.parametrize("name", ["peak", "bandwidth", "weight_bytes", "cache_bytes"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_what_a_machine_cannot_be(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected a finite number above 0, got {value}$"):
        RooflineModel(SMOLLM2, **{**UNIT, name: value})


@pytest.mark.parametrize("lengths", [[], [0], [3, -1], [2.0], 3, [[1]], [True]])
def test_lengths_that_are_none(lengths):
    costs = RooflineModel(SMOLLM2, **UNIT)
    with pytest.raises(ValueError, match=r"^lengths: expected a whole number of at least 1"):
        costs.cache(lengths)
    with pytest.raises(ValueError, match=r"^lengths: "):
        costs.prefill(lengths)


def test_more_new_positions_than_there_are():
    costs = RooflineModel(SMOLLM2, **UNIT)
    for lengths, new in (([3], [4]), ([3, 3], [1]), ([3], [1, 1])):
        with pytest.raises(ValueError, match=r"^new: expected a number from 1 to its length"):
            costs.extend(lengths, new)
    with pytest.raises(ValueError, match=r"^new: expected a whole number"):
        costs.extend([3], [0])
    with pytest.raises(ValueError, match=r"^rows: expected a whole number"):
        costs.head(0)
