"""Does a language model gain when its last block reads all layers instead of the last alone?

Four-layer models of the letters of Hamlet and Macbeth, with equal initial weights and equal batches, which
differ in what the last block attends to:

    plain           the layer before it, at all earlier positions: a GPT
    depth           all layers, at its own position
    context_depth   all layers, at all earlier positions
    own             the layer before it, at its own position: `depth` without its shortcuts, as a control

The same again from smaller initial weights, and on melodies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minattn import data, nn
from minattn.findings import Finding
from minattn.transformer.config import Config
from minattn.transformer.layerwise import LayerwiseShortcutGPT

PAPERS = (154,)

PLAYS = ("hamlet", "macbeth")
CONTEXT, BATCH, STEPS, RATE, WARMUP = 48, 16, 200, 3e-3, 20
MELODY_STEPS, MELODIES, TUNE_TOKENS = 1000, 512, 22
READ = 64  # windows of validation text on which depth distributions are read

Batch = tuple[np.ndarray, np.ndarray]


class Task(NamedTuple):
    """Number of tokens, a source of batches, and the windows and targets on which models are compared."""

    vocab: int
    batch: Callable[[np.random.Generator], Batch]
    validation: Batch


class Fit(NamedTuple):
    """A trained model, its validation loss in nats a token, and that loss while it was trained."""

    model: LayerwiseShortcutGPT
    loss: float
    curve: list[tuple[int, float]]


@functools.cache
def text() -> tuple[data.CharVocabulary, np.ndarray, np.ndarray]:
    """The alphabet of the two plays, their first nine tenths and the last tenth, as letters."""
    plays = data.shakespeare(PLAYS)
    vocabulary = data.CharVocabulary(plays)
    return vocabulary, *data.split(vocabulary.encode(plays))


def letters() -> Task:
    """Random windows of the two plays; validation on all windows of the tenth held out."""
    vocabulary, train, held_out = text()
    n = (len(held_out) - 1) // CONTEXT
    x, y = (held_out[s : s + n * CONTEXT].reshape(n, CONTEXT) for s in (0, 1))
    return Task(len(vocabulary), lambda rng: data.batches(rng, train, BATCH, CONTEXT), (x, y))


def melodies() -> Task:
    """Fresh tunes in every batch; targets of the validation that nobody could know are left out."""

    def tunes(rng: np.random.Generator) -> Batch:
        tokens, _ = data.melody(rng, BATCH)
        return tokens[:, :-1], tokens[:, 1:]

    tokens, known = data.melody(np.random.default_rng(154), MELODIES)
    return Task(TUNE_TOKENS, tunes, (tokens[:, :-1], np.where(known[:, 1:], tokens[:, 1:], -100)))


def untrained(vocab: int, mode: str, seed: int, *, weights: str = "uniform",
              layers: Sequence[int] | None = None) -> LayerwiseShortcutGPT:
    """A model whose weights depend on the seed and not on the mode.

    Embeddings are N(0, 0.02²) and biases 0, as in every GPT of ours; the weights of linear layers are
    "uniform" on ±1/√fan_in, or "small", N(0, 0.02²).
    """
    rng = np.random.default_rng(seed)
    config = Config(vocab=vocab, context=CONTEXT, layers=4, heads=4, d_model=48, tied=False)
    plain = LayerwiseShortcutGPT(config, "last", rng=rng)
    for layer in plain.modules():
        if isinstance(layer, nn.Linear):
            shape, bound = layer.weight.shape, 1 / math.sqrt(layer.d_in)
            layer.weight.data = (nn.init.uniform(shape, bound, rng=rng) if weights == "uniform"
                                 else nn.init.normal(shape, 0, 0.02, rng=rng))
    model = LayerwiseShortcutGPT(config, mode, layers=layers, rng=rng)
    model.load_state_dict(plain.state_dict(), strict=False)
    return model


def validate(model: LayerwiseShortcutGPT, task: Task) -> float:
    """Mean loss over the targets of the validation, in nats a token."""
    x, y = task.validation
    losses, counts = [], []
    for i in range(0, len(x), 64):
        counts.append((y[i : i + 64] >= 0).sum())
        losses.append(model.loss(x[i : i + 64], y[i : i + 64]).item() * counts[-1])
    return float(sum(losses) / sum(counts))


def fit(task: Task, mode: str, seed: int, *, weights: str = "uniform", layers: Sequence[int] | None = None,
        steps: int = STEPS, eval_every: int | None = None) -> Fit:
    """Train one model: AdamW, `WARMUP` steps of warm-up, then a line down to a tenth of the rate."""
    model = untrained(task.vocab, mode, seed, weights=weights, layers=layers)
    history = nn.train(
        model, lambda model, batch: model.loss(*batch), task.batch, nn.AdamW(model.parameters(), lr=RATE),
        steps, rng=np.random.default_rng([seed, 1]),
        schedule=nn.schedule.linear(RATE, steps=steps, warmup=WARMUP, floor=RATE / 10),
        evaluate=lambda model: validate(model, task), eval_every=eval_every, title=f"{mode}, seed {seed}")
    return Fit(model.eval(), history.validation[-1][1], history.validation)


def compare(task: Task, seed: int, names: Sequence[str], **how: Any) -> Mapping[str, Fit]:
    """Models by name, trained alike; `how` goes to `fit`."""
    modes = {"plain": "last", "depth": "depth", "context_depth": "context+depth", "own": "depth"}
    return {name: fit(task, modes[name], seed, layers=[3] if name == "own" else None, **how)
            for name in names}


def on_letters(seed: int) -> Finding:
    """The paper's claim on Shakespeare."""
    task = letters()
    fits = compare(task, seed, ("plain", "depth", "context_depth", "own"), eval_every=25)
    sample = task.validation[0][:READ]
    both, depth = (fits[name].model.depth_report(sample) for name in ("context_depth", "depth"))
    return Finding(
        paper=154,
        claim="On the letters of Hamlet and Macbeth a last block that reads all layers at its own position "
              "ends below a plain GPT with the same weights; one that reads all layers at all positions is "
              "no worse, and reads earlier layers to a degree that depends on the token.",
        numbers={**{name: f.loss for name, f in fits.items()},
                 "shallow_mass": 1 - both.mean().mean(0)[-1], "spread": both.spread(),
                 "explained_by_token": both.explained(), "entropy": both.entropy().mean(),
                 "depth_shallow_mass": 1 - depth.mean().mean(0)[-1], "depth_entropy": depth.entropy().mean()},
        bars=[("plain - depth", ">=", 0.03), ("context_depth - plain", "<=", 0.01, "mean"),
              ("shallow_mass", ">=", 0.2), ("spread", ">=", 0.02)],
        curves={"steps": [n for n, _ in fits["plain"].curve],
                **{name: [loss for _, loss in f.curve] for name, f in fits.items()},
                "by_layer": both.mean().ravel().tolist(), "depth_by_layer": depth.mean().ravel().tolist()},
        seed=seed)


def from_small_weights(seed: int) -> Finding:
    """The same from weights with which the stream below the last block still is mostly the embedding."""
    fits = compare(letters(), seed, ("plain", "depth", "context_depth"), weights="small")
    return Finding(
        paper=154,
        claim="From linear weights N(0, 0.02²) the gain is gone: after as many steps the model that reads "
              "all layers at its own position is less than 0.03 nats below the plain one.",
        numbers={name: f.loss for name, f in fits.items()},
        bars=[("plain - depth", "<", 0.03)],
        seed=seed)


def on_melodies(seed: int) -> Finding:
    """The paper's claim on symbolic music, as it would read if tunes were like letters."""
    fits = compare(melodies(), seed, ("plain", "depth", "context_depth"), steps=MELODY_STEPS, eval_every=100)
    return Finding(
        paper=154,
        claim="On synthetic melodies, too, the model that reads all layers at its own position ends at least "
              "0.03 nats below the plain one, a token that can be known.",
        numbers={name: f.loss for name, f in fits.items()},
        bars=[("plain - depth", ">=", 0.03)],
        found="All of the models learn the tunes all but completely in that time, which leaves no room for "
              "such a gain; what differences remain are smaller, and of either sign.",
        curves={"melody_steps": [n for n, _ in fits["plain"].curve],
                **{f"melody_{name}": [loss for _, loss in f.curve] for name, f in fits.items()}},
        seed=seed)


def run(seed: int) -> list[Finding]:
    """Letters, letters from small weights, melodies."""
    return [on_letters(seed), from_small_weights(seed), on_melodies(seed)]
