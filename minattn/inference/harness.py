"""One decoder, all switches: what each technique of the tutorial does to operations, bytes, cache and time.

    attention   "naive": all scores exist at once · "tiled": as `attention` does it, in tiles where that pays
    cache       "none": everything anew for each token · "contiguous" · "paged"
    kv_heads    None: as the model has them · more, repeated · fewer, by their mean
    batching    "single" · "static": as many as there are slots, until the longest is done · "continuous"
    weights     "float" · "int8" · "smoothquant": int8, and 8 bits for what the blocks' matrices read
                · "magnitude", "wanda": pruned
    speculative a draft guesses, the decoder checks

Of these, attention, cache, batching and speculation never change a token of greedy generation; that, and not
speed, is what makes them switches. `run` does the work with real models, and adds up by `RooflineModel` what
every pass had to do.

Park et al. 2024 (arXiv 2407.09111), paper 162.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from minattn.attention import AppendCache, KVCache
from minattn.attention.masks import whole
from minattn.autograd.engine import Array, raw
from minattn.kernels.flash import COLUMNS, ROWS
from minattn.nn.hooks import attached
from minattn.transformer import GPT, generate

from .batching import ContinuousBatcher, padded_batch
from .paging import BlockPool, PagedKVCache
from .roofline import RooflineModel, Work
from .speculative import speculative_decode
from .variants import calibrate, convert_kv_heads, prune_model, quantize_model, smooth_model

PAPERS = (162,)

__all__ = ["InferenceHarness", "Report", "Switches"]

CHOICES = {"attention": ("tiled", "naive"), "cache": ("contiguous", "none", "paged"),
           "batching": ("single", "static", "continuous"),
           "weights": ("float", "int8", "smoothquant", "magnitude", "wanda")}


@dataclass(frozen=True)
class Switches:
    """How a decoder is run; see the module's list.

    Raises
    ------
    ValueError
        If a switch has no such position, or two exclude each other: continuous batching and speculation need
        a cache, and speculation runs one request at a time.
    """

    attention: str = "tiled"
    cache: str = "contiguous"
    kv_heads: int | None = None
    batching: str = "single"
    weights: str = "float"
    speculative: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.cache == "none" and (self.batching == "continuous" or self.speculative):
            raise ValueError("cache: expected contiguous or paged with continuous batching or speculation, "
                             "got 'none'")
        if self.speculative and self.batching != "single":
            raise ValueError(f"batching: expected single with speculation, got {self.batching!r}")

    def __str__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)
                   if getattr(self, f.name) != f.default]
        return ", ".join(changed) if changed else "defaults"


@dataclass(frozen=True)
class Report:
    """What a run gave and took.

    Attributes
    ----------
    texts : list of array
        Ids of each request, prompt included.
    iterations : int
        Passes of the decoder that gave at least one token.
    work : Work
        FLOPs and bytes of all passes, the draft's too, by the cost model.
    cache_bytes : int
        The most bytes that caches of the decoder had allocated at once.
    score_bytes : int
        The most bytes that the scores of one layer took at once.
    bound : float
        Seconds that the work takes at least on the machine given.
    seconds : float
        Seconds that it took.
    acceptance : float
        Share of the draft's guesses that were accepted; 0 without a draft.
    """

    texts: list[np.ndarray]
    iterations: int
    work: Work
    cache_bytes: int
    score_bytes: int
    bound: float
    seconds: float
    acceptance: float = 0.0


class _Tally:
    """Adds up what the passes of a run cost."""

    def __init__(self, costs: RooflineModel, naive: bool) -> None:
        self.costs, self.naive = costs, naive
        self.work, self.bound = Work(), 0.0
        self.iterations = self.cache_bytes = self.score_bytes = 0

    def add(self, work: Work) -> None:
        self.work = self.work + work
        self.bound += self.costs.seconds(work)

    def scores(self, batch: int, rows: int, columns: int) -> None:
        """Note that a pass had this many scores a head."""
        count = rows * columns if self.naive else min(rows * columns, ROWS * COLUMNS)
        size = batch * self.costs.config.heads * count * self.costs.cache_bytes
        self.score_bytes = max(self.score_bytes, int(size))

    def held(self, caches: Sequence[KVCache]) -> None:
        """Note the bytes of all caches there are."""
        self.cache_bytes = max(self.cache_bytes, sum(c.memory for c in caches))


class InferenceHarness:
    """Runs one decoder under any setting of the switches, and reports what that cost.

    Parameters
    ----------
    model : GPT
        With its matrices as floating numbers. The variants that switches ask for are made when first used.
    peak, bandwidth : float
        FLOPs and bytes a second of the machine, for the roofline's bound.
    slots : int
        Requests that a batch has room for.
    calibration : array of int (B, N), optional
        Text that SmoothQuant and Wanda look at.
    draft : GPT, optional
        What guesses when speculating; by default the decoder itself in int8.
    lookahead : int
        Guesses a round.
    sparsity : float
        Share of weights that pruning drops.

    Examples
    --------
    >>> harness = InferenceHarness(model, peak=5e10, bandwidth=1e10)
    >>> report = harness.run([prompt], [20], Switches(cache="paged"))
    >>> report.work.flops, report.work.bytes, report.cache_bytes, report.seconds

    Notes
    -----
    Paper 162. The bytes counted are those of weights as they are kept (1 for int8, where scales are left out)
    and of a cache in the model's dtype; pruned matrices are kept with their zeros, so pruning saves nothing
    here. The compiled single step serves contiguous caches alone (see `minattn.transformer.one_step`).
    """

    def __init__(self, model: GPT, *, peak: float, bandwidth: float, slots: int = 8,
                 calibration: Array | None = None, draft: GPT | None = None, lookahead: int = 4,
                 sparsity: float = 0.5) -> None:
        self.model, self.peak, self.bandwidth = model, peak, bandwidth
        self.slots, self.lookahead = whole("slots", slots), whole("lookahead", lookahead)
        self.calibration, self.sparsity, self._draft = calibration, sparsity, draft
        self._made: dict[tuple, GPT] = {}
        self.costs_of(model)  # refuses a machine that cannot be

    def costs_of(self, model: GPT, weights: str = "float") -> RooflineModel:
        """The cost model of a decoder whose weights are kept in this way."""
        size = raw(model.embed.token.weight).dtype.itemsize
        return RooflineModel(model.config, peak=self.peak, bandwidth=self.bandwidth, cache_bytes=size,
                             weight_bytes=1 if weights in ("int8", "smoothquant") else size)

    def decoder(self, kv_heads: int | None = None, weights: str = "float") -> GPT:
        """The model with these heads and weights, made once.

        Raises
        ------
        ValueError
            If calibration text is needed and there is none.
        """
        key = (kv_heads, weights)
        if key not in self._made:
            model = self.model if kv_heads is None else convert_kv_heads(self.model, kv_heads)
            self._made[key] = self._with_weights(model, weights)
        return self._made[key]

    def _with_weights(self, model: GPT, weights: str) -> GPT:
        if weights in ("smoothquant", "wanda") and self.calibration is None:
            raise ValueError(f"calibration: expected ids for weights={weights!r}, got None")
        if weights == "int8":
            return quantize_model(model)
        if weights == "smoothquant":
            return quantize_model(smooth_model(model, calibrate(model, self.calibration)), round_inputs=True)
        if weights == "magnitude":
            return prune_model(model, self.sparsity)
        if weights == "wanda":
            return prune_model(model, self.sparsity, calibrate(model, self.calibration))
        return model

    @property
    def draft(self) -> tuple[GPT, str]:
        """The model that guesses, and how its weights are kept."""
        return (self.decoder(None, "int8"), "int8") if self._draft is None else (self._draft, "float")

    def run(self, prompts: Sequence[Sequence[int]], max_new: Sequence[int], switches: Switches | None = None
            ) -> Report:
        """Continue each prompt greedily by its number of tokens, under these switches.

        Raises
        ------
        ValueError
            If there are no prompts, or not as many numbers of tokens.
        """
        switches = Switches() if switches is None else switches
        lengths = [whole(f"max_new[{r}]", n) for r, n in enumerate(max_new)]
        if not prompts or len(prompts) != len(lengths):
            raise ValueError("max_new: expected a number for each of at least one prompt, got "
                             f"{len(lengths)} for {len(prompts)} prompts")
        model = self.decoder(switches.kv_heads, switches.weights)
        tally = _Tally(self.costs_of(model, switches.weights), switches.attention == "naive")
        draft = self.draft if switches.speculative else None  # made before the clock starts
        with _scores_formed(model) if tally.naive else _as_it_is():
            start = time.perf_counter()
            texts, acceptance = self._generate(model, prompts, lengths, switches, tally, draft)
            seconds = time.perf_counter() - start
        return Report(texts, tally.iterations, tally.work, tally.cache_bytes, tally.score_bytes, tally.bound,
                      seconds, acceptance)

    def _generate(self, model: GPT, prompts: Sequence, lengths: list[int], switches: Switches, tally: _Tally,
                  draft: tuple[GPT, str] | None) -> tuple[list[np.ndarray], float]:
        new_caches: Any = _maker(model, switches.cache)
        if draft is not None:
            return self._speculative(model, draft, prompts, lengths, new_caches, tally)
        if switches.batching == "continuous":
            return self._continuous(model, prompts, lengths, new_caches, tally), 0.0
        size = self.slots if switches.batching == "static" else 1
        groups = [slice(i, i + size) for i in range(0, len(prompts), size)]
        return [text for g in groups
                for text in _static(model, prompts[g], lengths[g], new_caches, tally)], 0.0

    def _continuous(self, model: GPT, prompts: Sequence, lengths: list[int], new_caches: Callable,
                    tally: _Tally) -> list[np.ndarray]:
        batcher = ContinuousBatcher(model, self.slots, new_caches=new_caches)
        for prompt, n in zip(prompts, lengths, strict=True):
            batcher.submit(prompt, n)
        texts = batcher.run()
        for iteration in batcher.log:
            for n in iteration.prefilled:
                tally.add(tally.costs.prefill([n]))
                tally.scores(1, n, n)
            if iteration.decoded:
                tally.add(tally.costs.decode(iteration.decoded))
                tally.scores(1, 1, max(iteration.decoded))
        tally.iterations, tally.cache_bytes = len(batcher.log), batcher.peak
        return texts

    def _speculative(self, model: GPT, draft: tuple[GPT, str], prompts: Sequence, lengths: list[int],
                     new_caches: Callable, tally: _Tally) -> tuple[list[np.ndarray], float]:
        cheap, texts, guessed, accepted = self.costs_of(*draft), [], 0, 0
        for prompt, n in zip(prompts, lengths, strict=True):
            caches = new_caches()
            found = speculative_decode(model, draft[0], prompt, n, lookahead=self.lookahead,
                                       new_caches=partial(list, caches))
            texts.append(found.ids)
            for costs, passes in ((tally.costs, found.target), (cheap, found.draft)):
                for p in passes:
                    tally.add(costs.extend([p.length], [p.new], p.rows))
                    tally.scores(1, p.new, p.length)
            tally.iterations += len(found.target)
            tally.held(caches)
            guessed += sum(r.guessed for r in found.rounds)
            accepted += sum(r.accepted for r in found.rounds)
            for cache in caches:
                cache.reset()
        return texts, accepted / max(guessed, 1)


def _static(model: GPT, prompts: Sequence, lengths: list[int], new_caches: Callable | None, tally: _Tally
            ) -> list[np.ndarray]:
    """One batch until its longest is done; every text cut to its own length."""
    ids, held = padded_batch(prompts)
    B, N = ids.shape
    caches = None if new_caches is None else new_caches()
    out = generate(model, ids, max(lengths), lengths=held, cache=False if caches is None else caches)
    for n in range(N, N + max(lengths)):
        new = 1 if caches is not None and n > N else n
        if caches is None:
            tally.add(tally.costs.recompute([n] * B))
        else:
            tally.add(tally.costs.extend([n] * B, [new] * B))
        tally.scores(B, new, n)
    tally.iterations += max(lengths)
    if caches is not None:
        tally.held(caches)
        for cache in caches:
            cache.reset()
    return [row[N - h : N + n] for row, h, n in zip(out, held, lengths, strict=True)]


def _maker(model: GPT, cache: str) -> Callable[[], list[KVCache]] | None:
    """What makes the caches of a request or a batch; paged ones take from one pool."""
    if cache == "none":
        return None
    pool = BlockPool()
    return lambda: [PagedKVCache(pool) if cache == "paged" else AppendCache() for _ in model.blocks]


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _scores_formed(model: GPT) -> Iterator[None]:
    """Context in which every layer forms all its scores and weights: a listener makes it do so."""
    def listen(weights: object) -> None:
        return None

    with attached(model, {f"blocks.{n}.attn.hook_weights": listen for n in range(model.config.layers)}):
        yield
