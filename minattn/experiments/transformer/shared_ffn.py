"""How much does a translation model need a feed-forward layer of its own in every block?

The task, reverse and look up: with r the source backwards, t_i = table[r_i, r_{i−1 mod T}], for a random
table that each seed draws anew. Attention alone can bring two symbols together; which pair they were is for
the feed-forward layers to tell. Small encoder–decoders that differ in nothing but their sharing plan are
trained alike.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import numpy as np

from minattn import nn
from minattn.autograd import no_grad
from minattn.autograd.engine import raw
from minattn.findings import Finding
from minattn.transformer.config import Config
from minattn.transformer.generate import TranslationStep
from minattn.transformer.shared_ffn import (
    PLANS,
    FFNSharing,
    OneWideTransformer,
    ffn_flops,
    ffn_parameter_count,
)
from minattn.transformer.similarity import linear_cka, local_neighborhood_similarity

PAPERS = (79,)

T, V, BATCH, RATE, WARMUP = 8, 16, 64, 3e-3, 25
STEPS, LONGER, EVERY = 400, 600, 50
START = V  # the token that begins a target
CONFIG = Config(vocab=V + 1, context=T, layers=2, heads=1, d_model=32, d_mlp=128, activation="relu",
                tied=False)
SCALE = (768 / CONFIG.d_model) ** 0.5  # GPT-2's σ = 0.02 is meant for D = 768: here the same σ √D
SMALLER = 3.0  # a start 40 % smaller, to see how much of the outcome hangs on it
COMPARED = {"baseline": "Baseline", "shared": "SharedEncNoDec", "wide": "OneWide", "none": "NoEncNoDec"}
STATES = ("hook_resid_mid", "hook_resid_post")

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class Task:
    """Sentences and their translations under one random table."""

    def __init__(self, seed: int) -> None:
        self.table = np.random.default_rng([seed, 79]).integers(0, V, (V, V))
        self.held_out = self.batch(np.random.default_rng([seed, 7979]), 512)

    def batch(self, rng: np.random.Generator, size: int = BATCH) -> Batch:
        """Sources (B, T), what the decoder reads (B, T), START first, and what it is to say (B, T)."""
        source = rng.integers(0, V, (size, T))
        turned = source[:, ::-1]
        target = self.table[turned, np.roll(turned, 1, axis=1)]
        return source, np.concatenate([np.full((size, 1), START), target[:, :-1]], 1), target

    def accuracy(self, model: OneWideTransformer) -> float:
        """Share of held-out tokens that the model finds most likely, given the right ones before them."""
        source, ids, target = self.held_out
        return float((raw(model(source, ids)).argmax(-1) == target).mean())


class Fit(NamedTuple):
    """A trained model, its accuracy on fresh sentences, and (step, accuracy) on the way."""

    model: OneWideTransformer
    accuracy: float
    curve: list[tuple[int, float]]


def untrained(plan: str | FFNSharing, seed: int, scale: float = SCALE) -> OneWideTransformer:
    """A model whose embeddings and attention depend on the seed and not on the plan."""
    model = OneWideTransformer(CONFIG, sharing=plan, rng=np.random.default_rng(seed))
    for p in model.parameters():
        if p.ndim == 2:
            p.data = p.data * np.float32(scale)
    return model


def fit(task: Task, plan: str | FFNSharing, seed: int, steps: int = STEPS, eval_every: int | None = None,
        scale: float = SCALE) -> Fit:
    """Train one model with Adam, the right tokens given (teacher forcing): a warm-up, a line down to zero."""
    model = untrained(plan, seed, scale)
    history = nn.train(
        model, lambda model, batch: model.loss(*batch), task.batch, nn.Adam(model.parameters()), steps,
        rng=np.random.default_rng([seed, 1]), schedule=nn.schedule.linear(RATE, steps=steps, warmup=WARMUP),
        evaluate=task.accuracy, eval_every=eval_every, title=f"{plan}, seed {seed}")
    return Fit(model.eval(), history.validation[-1][1], history.validation)


def encoder_states(model: OneWideTransformer, source: np.ndarray) -> list[np.ndarray]:
    """What the encoder holds for each token (B·T, D): embedded, then after each attention and each FFN."""
    names = tuple(f"encoder.blocks.{n}.{state}" for n in range(len(model.encoder.blocks)) for state in STATES)
    with no_grad():
        _, cache = model.run_with_cache(source, source[:, :1], names=("encoder.embed", *names))
    return [cache[name].reshape(-1, CONFIG.d_model) for name in ("encoder.embed", *names)]


def cka_of_states(model: OneWideTransformer, source: np.ndarray) -> list[float]:
    """CKA of every state of the encoder with every other, row by row."""
    states = encoder_states(model, source)
    return [linear_cka(x, y) for x in states for y in states]


def decode(model: OneWideTransformer, source: np.ndarray) -> np.ndarray:
    """Greedy translation (B, T), one token after the other, keys and values kept."""
    ids = np.full((len(source), 1), START)
    with no_grad():
        step = TranslationStep(model, source)
        for _ in range(T):
            ids = np.concatenate([ids, raw(step(ids)).argmax(-1)[:, None]], 1)
    return ids[:, 1:]


def seconds_a_step(models: dict[str, OneWideTransformer], source: np.ndarray, rounds: int = 150
                   ) -> dict[str, float]:
    """Median time of the decoder for one token of a batch of encoded sources, the models taking turns.

    It is the processor's time, in which whatever else the machine does has no part.
    """
    ids = np.full((len(source), T), START)
    times: dict[str, list[float]] = {name: [] for name in models}
    with no_grad():
        memories = {name: raw(model.encode(source)) for name, model in models.items()}
        for _ in range(rounds):
            for name, model in models.items():
                caches, start = model.new_caches(), time.process_time()
                for n in range(T):
                    model.decode(ids[:, n : n + 1], memories[name], None, caches)
                times[name].append((time.process_time() - start) / T)
    return {name: statistics.median(spent) for name, spent in times.items()}


def likeness(model: OneWideTransformer, other: OneWideTransformer, source: np.ndarray) -> dict[str, float]:
    """How alike two encoders' outputs are."""
    x, y = (encoder_states(m, source)[-1] for m in (model, other))
    return {"cka": linear_cka(x, y), "lns": local_neighborhood_similarity(x, y)}


def accuracies(task: Task, fits: dict[str, Fit], seed: int) -> Finding:
    """What the plans reach with their parameters; some train for longer, some from a smaller start."""
    longer = {name: fit(task, COMPARED[name], seed, LONGER) for name in ("shared", "wide", "none")}
    smaller = {name: fit(task, plan, seed, scale=SMALLER) for name, plan in COMPARED.items()}
    parameters = {plan: ffn_parameter_count(CONFIG, fits[plan].model.sharing) for plan in PLANS}
    baseline, wide, source = fits["Baseline"].model, fits["OneWide"].model, task.held_out[0][:64]
    other = fit(task, "Baseline", seed + 1000).model  # on the same task, from weights unlike those of the two
    alike = {name: likeness(model, other, source) for name, model in (("seeds", baseline), ("wide", wide))}
    return Finding(
        paper=79,
        claim="One feed-forward layer, shared by the encoder's layers, with none in the decoder, keeps most "
              "of the accuracy at a quarter of the feed-forward parameters; one as wide as all together is "
              "about as good or better; without any feed-forward layer much is lost.",
        numbers={**{name: fits[plan].accuracy for name, plan in COMPARED.items()},
                 **{f"{name}_longer": f.accuracy for name, f in longer.items()},
                 **{f"{name}_smaller_start": f.accuracy for name, f in smaller.items()},
                 "shared_of_parameters": parameters["SharedEncNoDec"] / parameters["Baseline"],
                 "wide_of_parameters": parameters["OneWide"] / parameters["Baseline"],
                 **{f"{kind}_{name}": value for name, both in alike.items() for kind, value in both.items()}},
        bars=[("shared_of_parameters", "==", 0.25), ("baseline - shared", "<=", 0.15, "mean"),
              ("shared - none", ">=", 0.1, "mean"), ("wide - shared", ">=", -0.05, "mean"),
              ("wide - none", ">=", 0.1, "mean"), ("shared_longer", ">=", 0.97, "mean"),
              ("wide_longer", ">=", 0.97, "mean")],
        curves={"parameters": list(parameters.values()), "accuracy": [fits[plan].accuracy for plan in PLANS],
                **{f"accuracy_{name}": [a for _, a in fits[plan].curve] for name, plan in COMPARED.items()},
                "cka_baseline": cka_of_states(baseline, source), "cka_wide": cka_of_states(wide, source)},
        seed=seed)


def speed(task: Task, fits: dict[str, Fit], seed: int) -> Finding:
    """How long the decoder of the baseline and of the wide model takes for a token."""
    baseline, wide = fits["Baseline"].model, fits["OneWide"].model
    source, _, target = task.held_out
    times = seconds_a_step({"Baseline": baseline, "OneWide": wide}, source[:BATCH])
    return Finding(
        paper=79,
        claim="The wide model decodes faster than the baseline: its decoder has no feed-forward operations.",
        numbers={"baseline_step_ms": 1e3 * times["Baseline"], "wide_step_ms": 1e3 * times["OneWide"],
                 "baseline_ffn_flops": ffn_flops(CONFIG, baseline.sharing)["decoder"],
                 "wide_ffn_flops": ffn_flops(CONFIG, wide.sharing)["decoder"],
                 "wide_decoded": float((decode(wide, source) == target).mean())},
        bars=[("wide_ffn_flops", "==", 0), ("baseline_ffn_flops", ">", 0),
              ("wide_step_ms", "<", "baseline_step_ms")],
        seed=seed)


def run(seed: int) -> list[Finding]:
    """Train every plan, then judge their accuracy and the decoders' speed."""
    task = Task(seed)
    fits = {plan: fit(task, plan, seed, eval_every=EVERY) for plan in PLANS}
    return [accuracies(task, fits, seed), speed(task, fits, seed)]
