"""What do the techniques for faster inference save, counted where that is possible, measured where it is not?

Bytes of caches, FLOPs a byte, unused positions and iterations are counted, so exact. The time of a token with
and without a cache, and what compression costs in loss, are measured on SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minattn.attention import KVCache
from minattn.autograd import log_softmax, no_grad
from minattn.autograd.engine import raw
from minattn.data import shakespeare
from minattn.findings import Finding
from minattn.inference.batching import ContinuousBatcher, continuous_iterations, static_iterations
from minattn.inference.paging import BLOCK, BlockPool, PagedKVCache, rewind
from minattn.inference.roofline import Meter, RooflineModel, counted_llama
from minattn.inference.variants import (
    calibrate,
    convert_kv_heads,
    prune_model,
    quantize_model,
    smooth_model,
)
from minattn.transformer import GPT, Config, Step, generate, load

PAPERS = (162,)

REQUESTS, SLOTS, MEAN = 64, 8, 64
CONTEXT, REPEATS, TEXTS = 256, 5, 20
TINY = Config(vocab=13, context=1024, layers=2, heads=2, kv_heads=1, d_model=8, d_mlp=7, norm="rms",
              activation="swiglu", position="rope", bias=False)
PROMPTS = [2**n for n in range(14)]


@functools.cache
def smollm2() -> Any:
    """SmolLM2-135M-Instruct, loaded once."""
    return load("smollm2")


@functools.cache
def text() -> np.ndarray:
    """The first plays of Shakespeare as tokens."""
    return np.array(smollm2().tokenizer.encode(shakespeare()[:200_000]))


def excerpt(rng: np.random.Generator, n: int) -> np.ndarray:
    """n tokens from somewhere, (1, n)."""
    start = rng.integers(len(text()) - n)
    return text()[None, start : start + n]


def tiny(rng: np.random.Generator) -> GPT:
    """A two-layer Llama with random weights, large enough to write different texts."""
    model = GPT(TINY, rng=rng).to(np.float64).eval()
    for p in model.parameters():
        p.data = p.data + 0.4 * rng.standard_normal(p.shape)
    return model


# --- counted --------------------------------------------------------------------------------------------

def cache_bytes(model: GPT, ids: np.ndarray) -> int:
    """Bytes of the caches once the model has read ids."""
    caches = model.new_caches()
    with no_grad():
        model.hidden(ids, caches=caches)
    return sum(c.memory for c in caches)


def decode_excess(config: Config, rng: np.random.Generator, draws: int = 300) -> float:
    """The largest intensity of decoding over max(batch, H / Hk), at 2 bytes a number: at most 1."""
    worst = 0.0
    for kv_heads in (1, 3, 9):
        costs = RooflineModel(replace(config, kv_heads=kv_heads), peak=1, bandwidth=1)
        for _ in range(draws):
            lengths = rng.integers(1, 8192, rng.integers(1, 65)).tolist()
            bound = max(len(lengths), config.heads / kv_heads)
            worst = max(worst, costs.decode(lengths).intensity / bound)
    return worst


def prefill_slopes(config: Config) -> list[float]:
    """FLOPs a byte of a block that reads a prompt, over its length N, for N = 1, 2, 4, … 8192."""
    costs = RooflineModel(config, peak=1, bandwidth=1)
    return [costs.block([N], [N]).intensity / N for N in PROMPTS]


def counter_gap(model: GPT, rng: np.random.Generator) -> int:
    """How far the formulas are from a count of every operation and number, over a prefill and a decode."""
    prompts = [rng.integers(0, TINY.vocab, n).tolist() for n in rng.integers(1, 9, 3)]
    costs, lengths, gap = RooflineModel(TINY, peak=1, bandwidth=1), [len(p) for p in prompts], 0
    held: list[list[list]] = [[[] for _ in range(TINY.layers)] for _ in prompts]
    for new, work in ((prompts, costs.prefill(lengths)),
                      ([[0], [1], [2]], costs.decode([n + 1 for n in lengths]))):
        meter = Meter()
        counted_llama(new, model.state_dict(), TINY, meter, held)
        gap += abs(meter.flops - work.flops) + abs(2 * len(meter.weights) - int(work.weight_bytes))
        gap += abs(2 * len(meter.cache) - int(work.cache_bytes))
    return gap


def waste(model: GPT, rng: np.random.Generator) -> tuple[int, float]:
    """Most and mean of the unused positions of a sequence, over texts of random length from one pool."""
    pool, found = BlockPool(), []
    for n in rng.integers(1, 120, TEXTS):
        caches = [PagedKVCache(pool) for _ in model.blocks]
        generate(model, [[1]], int(n), cache=caches)
        found.append(max(c.waste for c in caches))
        for cache in caches:
            cache.reset()
    return max(found), float(np.mean(found))


def counts(seed: int) -> Finding:
    """Caches, intensities and blocks."""
    rng = np.random.default_rng(seed)
    model, small = smollm2(), tiny(rng)
    ids = excerpt(rng, 64)
    gqa, mha = cache_bytes(model, ids), cache_bytes(convert_kv_heads(model, model.config.heads), ids)
    slopes = {n: prefill_slopes(replace(model.config, kv_heads=n)) for n in (9, 3)}
    most, mean = waste(small, rng)
    formula = RooflineModel(model.config, peak=1, bandwidth=1, cache_bytes=4).cache([64])
    numbers = {"gqa_cache": gqa, "mha_cache": mha, "gqa_formula": formula,
               "counter_gap": counter_gap(small, rng), "decode_excess": decode_excess(model.config, rng),
               "prefill_mha_low": min(slopes[9]), "prefill_mha_high": max(slopes[9]),
               "prefill_gqa_low": min(slopes[3]), "prefill_gqa_high": max(slopes[3]),
               "waste": most, "mean_waste": mean}
    bars = [("gqa_cache", "==", "mha_cache * 3 / 9"), ("gqa_cache", "==", "gqa_formula"),
            ("counter_gap", "==", 0), ("decode_excess", "<=", 1),
            ("prefill_mha_low", "==", 1), ("prefill_mha_high", "==", 1),
            ("prefill_gqa_low", ">=", 1), ("prefill_gqa_high", "<=", 3), ("waste", "<", BLOCK)]
    return Finding(162, "The cache of SmolLM2 is 3/9 of one with a key head for each query head; at 2 bytes "
                   "a number decoding does at most max(batch, H/Hk) FLOPs a byte, a block that reads N "
                   "tokens N with MHA and N to 3 N with SmolLM2's heads; a paged cache wastes less than a "
                   "block a sequence; and the formulas are what loops count.", numbers, bars, seed)


# --- iterations -----------------------------------------------------------------------------------------

def geometric(rng: np.random.Generator) -> list[int]:
    """Lengths of the requests' answers."""
    return rng.geometric(1 / MEAN, REQUESTS).tolist()


def batching(seed: int) -> Finding:
    """Static and continuous batching of the same requests, and a model that serves them."""
    rng = np.random.default_rng(seed)
    model, lengths = tiny(rng), geometric(rng)
    prompts = [rng.integers(0, TINY.vocab, n).tolist() for n in rng.integers(1, 12, REQUESTS)]
    batcher = ContinuousBatcher(model, SLOTS)
    for prompt, n in zip(prompts, lengths, strict=True):
        batcher.submit(prompt, n)
    texts = batcher.run()
    wrong = sum(t.tolist() != generate(model, [p], n)[0].tolist()
                for t, p, n in zip(texts, prompts, lengths, strict=True))
    numbers = {"static": static_iterations(lengths, SLOTS), "continuous": len(batcher.log),
               "simulated": continuous_iterations(lengths, SLOTS), "wrong_texts": wrong,
               "least": max(-(-sum(lengths) // SLOTS), max(lengths))}
    return Finding(162, "Continuous batching takes less than 1/1.8 of the iterations of static batching, for "
                   "64 requests of geometric length (mean 64) and 8 slots, and gives each its own text.",
                   numbers, [("static / continuous", ">=", 1.8), ("continuous", "==", "simulated"),
                             ("wrong_texts", "==", 0)], seed)


# --- time -----------------------------------------------------------------------------------------------

def token_seconds(model: GPT, ids: np.ndarray, caches: Sequence[KVCache] | None) -> float:
    """Seconds for the logits after ids (1, N), all but the last of which the caches hold already."""
    step = Step(model, False if caches is None else caches)
    with no_grad():
        start = time.perf_counter()
        step(ids)
        seconds = time.perf_counter() - start
    if caches is not None:
        rewind(caches, ids.shape[1] - 1)
    return seconds


def cached_decoding(seed: int) -> Finding:
    """One more token of SmolLM2 after 256, computed from scratch, with a contiguous and a paged cache."""
    rng, model = np.random.default_rng(seed), smollm2()
    ids = excerpt(rng, CONTEXT + 1)
    ways: dict[str, Sequence[KVCache] | None] = {
        "scratch": None, "contiguous": model.new_caches(), "paged": [PagedKVCache() for _ in model.blocks]}
    for caches in (ways["contiguous"], ways["paged"]):
        with no_grad():
            model.hidden(ids[:, :-1], caches=caches)
    times = [{name: token_seconds(model, ids, caches) for name, caches in ways.items()}
             for _ in range(REPEATS)]
    shortest = {name: min(t[name] for t in times) for name in ways}
    logits = {name: _next(model, ids, caches) for name, caches in ways.items()}
    off = max(np.abs(logits[name] - logits["scratch"]).max() for name in ways)
    same = all(logits[name].argmax() == logits["scratch"].argmax() for name in ways)
    numbers = {**shortest, "relative_gap": float(off / np.abs(logits["scratch"]).max()), "same_token": same}
    return Finding(162, "After 256 tokens, SmolLM2's next one takes less than a fifth of the time with a "
                   "cache, contiguous or paged, and is the same.", numbers,
                   [("scratch / contiguous", ">=", 5), ("scratch / paged", ">=", 5), ("same_token", "==", 1),
                    ("relative_gap", "<=", 1e-4)], seed)


def _next(model: GPT, ids: np.ndarray, caches: Sequence[KVCache] | None) -> np.ndarray:
    with no_grad():
        out = np.asarray(raw(Step(model, False if caches is None else caches)(ids)), np.float64)
    if caches is not None:
        rewind(caches, ids.shape[1] - 1)
    return out


# --- compression ----------------------------------------------------------------------------------------

def loss(model: GPT, ids: np.ndarray) -> float:
    """Mean loss in nats of each token but the first."""
    with no_grad():
        law = np.asarray(raw(log_softmax(model(ids[:, :-1]), -1)), np.float64)
    return -float(np.take_along_axis(law, ids[:, 1:, None], -1).mean())


def compression(seed: int) -> Finding:
    """What each way to make the weights smaller or fewer costs SmolLM2, in nats a token of Shakespeare."""
    rng, model = np.random.default_rng(seed), smollm2()
    inputs = calibrate(model, excerpt(rng, 512))
    ids = np.concatenate([excerpt(rng, 129) for _ in range(4)])
    numbers = {"float": loss(model, ids), "int8": loss(quantize_model(model), ids),
               "rounded_inputs": loss(quantize_model(model, round_inputs=True), ids),
               "smoothquant": loss(quantize_model(smooth_model(model, inputs), round_inputs=True), ids),
               "magnitude": loss(prune_model(model, 0.5), ids),
               "wanda": loss(prune_model(model, 0.5, inputs), ids),
               "mqa": loss(convert_kv_heads(model, 1), ids)}
    return Finding(162, "SmolLM2 in int8 loses less than 0.03 nats a token; with inputs rounded too, "
                   "smoothing lowers the loss; half of the weights dropped by Wanda cost less than by "
                   "magnitude; mean heads, untrained, cost more than either.", numbers,
                   [("int8 - float", "<=", 0.03), ("smoothquant", "<", "rounded_inputs"),
                    ("wanda", "<", "magnitude"), ("mqa", ">", "magnitude")], seed)


def run(seed: int) -> list[Finding]:
    """All four findings on what is drawn from `seed`."""
    return [counts(seed), batching(seed), cached_decoding(seed), compression(seed)]
