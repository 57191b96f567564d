"""The harness: no switch that should not changes a token, and its figures are those of a count."""

import itertools
import time

import numpy as np
import pytest

from minattn.attention import dot_product
from minattn.inference import harness as module
from minattn.inference.batching import continuous_iterations, static_iterations
from minattn.inference.harness import InferenceHarness, Report, Switches
from minattn.inference.roofline import Meter, RooflineModel, Work, counted_llama, naive_greedy
from minattn.inference.variants import calibrate, convert_kv_heads, prune_model, quantize_model, smooth_model
from minattn.kernels.flash import COLUMNS, ROWS
from minattn.transformer import generate

from .decoders import VOCAB, llama

pytestmark = pytest.mark.paper(162)

rng = np.random.default_rng(0)
PROMPTS = [rng.integers(0, VOCAB, n).tolist() for n in (3, 18, 1, 6, 9)]
LENGTHS = [7, 2, 9, 1, 4]
CALIBRATION = rng.integers(0, VOCAB, (2, 20))


def harness(model=None, **options):
    return InferenceHarness(llama() if model is None else model, **{"peak": 1e9, "bandwidth": 1e8, "slots": 2,
                                                                    "calibration": CALIBRATION, **options})


def allowed(**some):
    try:
        return Switches(**some)
    except ValueError:
        return None


EXACT = [s for a, c, b, p in itertools.product(
    ("tiled", "naive"), ("contiguous", "none", "paged"), ("single", "static", "continuous"), (False, True))
    if (s := allowed(attention=a, cache=c, batching=b, speculative=p))]


@pytest.fixture(scope="module")
def texts():
    model = llama()
    return [naive_greedy(p, model.state_dict(), model.config, n)
            for p, n in zip(PROMPTS, LENGTHS, strict=True)]


def test_there_are_as_many_exact_ways():
    assert len(EXACT) == 2 * (2 * 4 + 2)


@pytest.mark.parametrize("switches", EXACT, ids=str)
def test_no_token_changes(switches, texts):
    report = harness().run(PROMPTS, LENGTHS, switches)
    assert [t.tolist() for t in report.texts] == texts
    assert report.work.flops > 0 and report.seconds > 0
    assert (report.cache_bytes == 0) == (switches.cache == "none")
    assert (report.acceptance > 0) == switches.speculative
    want = {"single": sum(LENGTHS), "static": static_iterations(LENGTHS, 2),
            "continuous": continuous_iterations(LENGTHS, 2)}[switches.batching]
    assert report.iterations <= want if switches.speculative else report.iterations == want


def test_scores_in_tiles_give_the_same_tokens(monkeypatch):
    """A prompt long enough for tiles, with tiles made to start at once."""
    monkeypatch.setattr(dot_product, "TILED", 1)
    model, prompt = llama(context=256), rng.integers(0, VOCAB, 150).tolist()
    reports = {a: harness(model).run([prompt], [5], Switches(attention=a)) for a in ("tiled", "naive")}
    np.testing.assert_array_equal(reports["tiled"].texts[0], reports["naive"].texts[0])
    assert reports["tiled"].work == reports["naive"].work
    assert reports["naive"].score_bytes == 4 * 150 * 150 * 8
    long = harness(llama(context=512)).run([rng.integers(0, VOCAB, 200).tolist()], [1])
    assert long.score_bytes == 4 * ROWS * COLUMNS * 8 < 4 * 200 * 200 * 8


def test_naive_attention_forms_all_weights_and_leaves_no_listener(monkeypatch):
    model, formed = llama(), []
    monkeypatch.setattr(module, "attached", lambda m, hooks: formed.extend(hooks) or original(m, hooks))
    harness(model).run([[1, 2]], [2])
    assert not formed
    harness(model).run([[1, 2]], [2], Switches(attention="naive"))
    assert formed == [f"blocks.{n}.attn.hook_weights" for n in range(2)]
    assert not any(b.attn.hook_weights._forward_hooks for b in model.blocks)


original = module.attached


def counts(model, passes, weight_bytes, cache_bytes):
    """The work of passes [(new tokens of each sequence, ...)] on one set of caches, counted one by one."""
    held, total = [[[] for _ in range(2)] for _ in passes[0]], Work()
    for new in passes:
        meter = Meter()
        counted_llama(new, model.state_dict(), model.config, meter, held)
        total = total + Work(meter.flops, len(meter.weights) * weight_bytes, len(meter.cache) * cache_bytes)
    return total


def test_work_is_what_the_loops_count(texts):
    model = llama()
    report = harness(model).run(PROMPTS[:1], LENGTHS[:1])
    text = texts[0]
    passes = [[text[:3]], *([[t]] for t in text[3:-1])]
    assert report.work == counts(model, passes, 8, 8)
    without = harness(model).run(PROMPTS[:1], LENGTHS[:1], Switches(cache="none"))
    again = sum((counts(model, [[text[:n]]], 8, 0) for n in range(3, 10)), Work())
    assert without.work == again
    batch = harness(model).run(PROMPTS[:2], LENGTHS[:2], Switches(batching="static"))
    costs = RooflineModel(model.config, peak=1, bandwidth=1, weight_bytes=8, cache_bytes=8)
    want = sum((costs.decode([n, n]) for n in range(19, 25)), costs.prefill([18, 18]))
    assert batch.work == want


def test_work_of_continuous_batching():
    costs = RooflineModel(llama().config, peak=1, bandwidth=1, weight_bytes=8, cache_bytes=8)
    switches = Switches(batching="continuous", cache="paged")
    report = harness().run([[1, 2], [3], [4, 5, 6]], [3, 1, 2], switches)
    want = costs.prefill([2]) + costs.prefill([1]) + costs.prefill([3]) + costs.decode([3])
    assert report.work == want + costs.decode([4, 4]) and report.iterations == 3
    assert report.cache_bytes == 2 * 2 * 16 * 2 * 2 * 4 * 8  # two requests, two blocks of the model


def test_work_of_speculation_has_both_models():
    model = llama()
    report = harness(model, draft=model, lookahead=3).run([[1, 2]], [7], Switches(speculative=True))
    costs = RooflineModel(model.config, peak=1, bandwidth=1, weight_bytes=8, cache_bytes=8)
    target = costs.extend([5], [5], 4) + costs.extend([8], [3], 3)
    draft = [(2, 2), (3, 1), (4, 1), (6, 2), (7, 1)]
    assert report.work == sum((costs.extend([n], [k]) for n, k in draft), target)
    assert report.acceptance == 1 and report.iterations == 2
    default = harness(model).run([[1, 2]], [7], Switches(speculative=True))
    assert default.acceptance > 0.5 and default.work.weight_bytes < report.work.weight_bytes


def test_bound_is_the_sum_over_passes():
    report = harness(peak=1e9, bandwidth=1e8).run([[1, 2, 3]], [3])
    costs = RooflineModel(llama().config, peak=1e9, bandwidth=1e8, weight_bytes=8, cache_bytes=8)
    works = [costs.prefill([3]), costs.decode([4]), costs.decode([5])]
    assert report.bound == pytest.approx(sum(costs.seconds(w) for w in works), rel=1e-12)
    assert report.bound == pytest.approx(sum(max(w.flops / 1e9, w.bytes / 1e8) for w in works), rel=1e-12)


def test_time_is_that_of_the_clock(monkeypatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert harness().run([[1]], [1]).seconds == 2.5


def test_heads_change_the_cache():
    tested = harness(llama(heads=4, kv_heads=2))
    prompt, tokens = [1] * 10, 7
    held = {}
    for kv_heads in (None, 4, 1):
        report = tested.run([prompt], [tokens], Switches(kv_heads=kv_heads, cache="paged"))
        held[kv_heads] = report.cache_bytes
        if kv_heads != 1:
            assert report.texts[0].tolist() == generate(tested.model, [prompt], tokens)[0].tolist()
    assert held == {None: 2 * 2 * 16 * 2 * 4 * 8, 4: 2 * 2 * 16 * 4 * 4 * 8, 1: 2 * 2 * 16 * 1 * 4 * 8}


def test_weights_are_those_of_the_variants():
    model = llama()
    tested, inputs = harness(model, sparsity=0.4), calibrate(model, CALIBRATION)
    smoothed = smooth_model(model, inputs)
    wanted = {"float": model, "int8": quantize_model(model), "magnitude": prune_model(model, 0.4),
              "smoothquant": quantize_model(smoothed, round_inputs=True),
              "wanda": prune_model(model, 0.4, inputs)}
    works = {}
    for weights, variant in wanted.items():
        report = tested.run(PROMPTS[:2], LENGTHS[:2], Switches(weights=weights))
        for text, p, n in zip(report.texts, PROMPTS, LENGTHS, strict=False):
            np.testing.assert_array_equal(text, generate(variant, [p], n)[0])
        x = np.array([PROMPTS[1]])
        np.testing.assert_allclose(tested.decoder(None, weights)(x).data, variant(x).data, rtol=1e-12)
        works[weights] = report.work
    assert works["int8"].weight_bytes * 8 == works["float"].weight_bytes
    assert works["int8"] == works["smoothquant"] and works["float"] == works["wanda"] == works["magnitude"]
    assert tested.decoder(None, "int8") is tested.decoder(None, "int8")
    both = tested.decoder(1, "int8")
    x = np.array([PROMPTS[1]])
    np.testing.assert_allclose(both(x).data, quantize_model(convert_kv_heads(model, 1))(x).data, rtol=1e-12)


def test_switches_say_what_they_change():
    assert str(Switches()) == "defaults"
    assert str(Switches(cache="paged", weights="int8")) == "cache=paged, weights=int8"
    assert isinstance(harness().run([[1]], [1]), Report)


def test_switches_that_do_not_exist_or_go_together():
    for name in ("attention", "cache", "batching", "weights"):
        with pytest.raises(ValueError, match=rf"^{name}: expected one of .*, got 'other'$"):
            Switches(**{name: "other"})
    for some in ({"batching": "continuous"}, {"speculative": True}):
        with pytest.raises(ValueError, match=r"^cache: expected contiguous or paged with"):
            Switches(cache="none", **some)
    for batching in ("static", "continuous"):
        with pytest.raises(ValueError, match=rf"^batching: expected single with .*, got '{batching}'"):
            Switches(speculative=True, batching=batching)


def test_bad_input():
    tested = harness(calibration=None)
    for weights in ("smoothquant", "wanda"):
        with pytest.raises(ValueError, match=rf"^calibration: expected ids for weights='{weights}'"):
            tested.run([[1]], [1], Switches(weights=weights))
    for prompts, lengths in (([], []), ([[1]], [1, 2])):
        with pytest.raises(ValueError, match=r"^max_new: expected a number for each of at least one prompt"):
            tested.run(prompts, lengths)
    with pytest.raises(ValueError, match=r"^max_new\[0\]: expected a whole number ≥ 1, got 0"):
        tested.run([[1]], [0])
    with pytest.raises(ValueError, match=r"^peak: expected a finite number above 0"):
        harness(peak=0)
    with pytest.raises(ValueError, match=r"^slots: "):
        harness(slots=0)
    with pytest.raises(ValueError, match=r"^lookahead: "):
        harness(lookahead=0)
