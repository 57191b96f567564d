"""A language model of Shakespeare's letters: nanoGPT's CPU configuration, trained from scratch.

    python -m minattn.experiments.transformer.shakespeare                train, and keep the model
    python -m minattn.experiments.transformer.shakespeare --if-missing   only if there is none yet

4 blocks, 4 heads, D = 128, 64 letters of context, batches of 12, 2,000 steps of AdamW under a cosine
schedule. The model is kept in the cache folder. A run that is killed goes on where its last checkpoint was.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minattn import data, nn
from minattn.transformer import GPT, Config

CONFIG = Config(vocab=73, context=64, layers=4, heads=4, d_model=128, bias=False)
BATCH, STEPS, SEED = 12, 2000, 1337
RATE, FLOOR, WARMUP, BETAS, DECAY, CLIP = 1e-3, 1e-4, 100, (0.9, 0.99), 0.1, 1.0


class Corpus(NamedTuple):
    """The alphabet, the letters of eight plays and a half to train on, and Twelfth Night to validate on."""

    vocabulary: data.CharVocabulary
    train: np.ndarray
    validation: np.ndarray


@dataclass
class Run:
    """A trained model and what was recorded while it was trained."""

    model: GPT
    history: nn.History


@functools.cache
def corpus() -> Corpus:
    """Shakespeare as letters; fetched once."""
    text = data.shakespeare()
    vocabulary = data.CharVocabulary(text)
    return Corpus(vocabulary, *data.split(vocabulary.encode(text)))


def batch(ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A batch of random windows, and the same windows one letter on."""
    return data.batches(rng, ids, BATCH, CONFIG.context)


def evaluate(model: GPT) -> float:
    """Mean loss on all of the validation text, cut into windows of the context's length, in nats a letter."""
    N, ids = CONFIG.context, corpus().validation
    n = (len(ids) - 1) // N
    x, y = ids[: n * N].reshape(n, N), ids[1 : n * N + 1].reshape(n, N)
    losses = [model.loss(x[i : i + 64], y[i : i + 64]).item() * len(x[i : i + 64]) for i in range(0, n, 64)]
    return sum(losses) / n


def fit(steps: int, seed: int, checkpoint: Path | None = None, eval_every: int | None = 250) -> Run:
    """Train a fresh model, or go on from the checkpoint if there is one; None validates nowhere."""
    rng = np.random.default_rng(seed)
    model = GPT(CONFIG, rng=rng)
    optimizer = nn.AdamW(nn.decay_groups(model.parameters(), DECAY), lr=RATE, betas=BETAS)
    schedule = nn.schedule.cosine(RATE, steps=STEPS, warmup=WARMUP, floor=FLOOR)
    history = nn.train(
        model, lambda model, batch: model.loss(*batch), lambda rng: batch(corpus().train, rng), optimizer,
        steps, rng=rng, schedule=schedule, clip=CLIP, evaluate=evaluate if eval_every else None,
        eval_every=eval_every, checkpoint=checkpoint, config=settings(seed), title="training on Shakespeare")
    return Run(model, history)


def settings(seed: int) -> dict[str, Any]:
    """Everything that decides the result, the text among it."""
    text = hashlib.sha256(corpus().train.tobytes() + corpus().validation.tobytes()).hexdigest()
    return {"text": text, "config": asdict(CONFIG), "batch": BATCH, "steps": STEPS, "seed": seed,
            "clip": CLIP, "rate": RATE, "floor": FLOOR, "warmup": WARMUP, "betas": list(BETAS),
            "decay": DECAY}


def place() -> Path:
    """Where the trained model is kept; another setting has another place."""
    digest = hashlib.sha256(json.dumps(settings(SEED), sort_keys=True).encode()).hexdigest()[:10]
    return data.cache_dir() / "trained" / f"shakespeare-{digest}.safetensors"


def train_and_keep() -> Run:
    """Train to the end, then put the model in its place; an earlier one stays until then."""
    done = place()
    running = done.with_suffix(".running")
    run = fit(STEPS, SEED, running)
    os.replace(running, done)
    return run


def trained() -> Run:
    """The trained model, trained now if there is none (about a minute and a half on two cores)."""
    return fit(STEPS, SEED, place()) if place().exists() else train_and_keep()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--if-missing", action="store_true", help="do nothing if there is a trained model")
    missing_only = parser.parse_args().if_missing
    run = trained() if missing_only else train_and_keep()
    print(f"{run.history.line()}\nkept in {place()}")


if __name__ == "__main__":
    main()
