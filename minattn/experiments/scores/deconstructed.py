"""Which principle of attention does a small language model need, in all layers or in half of them?

Characters of Shakespeare, four layers, equal training for all. Each variant stands in all layers; the two
that are expected to fail alone also stand in every second one, beside standard layers.
"""

from __future__ import annotations

import functools

import numpy as np

from minattn import data, nn
from minattn.autograd import no_grad
from minattn.findings import Finding
from minattn.scores.deconstructed import VARIANTS, HybridStack, attention_report, hybrid
from minattn.transformer.config import Config

PAPERS = (103,)

LAYERS, N, D, STEPS, BATCH, RATE = 4, 64, 48, 600, 16, 4e-3
WEAK = ("average", "non_approximate")
FORMS = {name: [name] * LAYERS for name in VARIANTS} | {f"{v}_hybrid": hybrid(v, LAYERS) for v in WEAK}


@functools.cache
def corpus() -> tuple[np.ndarray, np.ndarray, int]:
    """Ids for training and for validation, and how many characters there are."""
    text = data.shakespeare()[:1_000_000]
    vocabulary = data.CharVocabulary(text)
    return (*data.split(vocabulary.encode(text)), len(vocabulary))


def bigram_loss() -> float:
    """Of counted pairs of characters with one added to each, on the validation text."""
    train, held_out, V = corpus()
    counts = np.ones((V, V))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    p = counts / counts.sum(1, keepdims=True)
    return float(-np.log(p[held_out[:-1], held_out[1:]]).mean())


def trained(form: str, seed: int, steps: int = STEPS) -> HybridStack:
    """A model after so many steps."""
    train, _, V = corpus()
    config = Config(vocab=V, context=N, layers=LAYERS, heads=4, d_model=D, norm="rms", position="rope",
                    bias=False)
    model = HybridStack(config, FORMS[form], text=train[:N], rng=np.random.default_rng([seed, 1]))
    nn.train(model, lambda model, pair: model.loss(*pair),
             lambda rng: data.batches(rng, train, BATCH, N),
             nn.AdamW(model.parameters(), lr=RATE, weight_decay=0.01), steps,
             rng=np.random.default_rng([seed, 2]), clip=1.0,
             schedule=nn.schedule.linear(RATE, steps=steps, warmup=40, floor=RATE / 20),
             title=f"{form}, seed {seed}")
    return model.eval()


def validation(model: HybridStack, skip: tuple[int, ...] = ()) -> float:
    """Loss on 128 windows, the same for all."""
    x, y = data.batches(np.random.default_rng(7), corpus()[1], 128, N)
    with no_grad():
        return float(model.loss(x, y, skip).item())


def looks(model: HybridStack) -> dict[str, float]:
    """`attention_report` of 8 windows, mean over layers."""
    x, _ = data.batches(np.random.default_rng(8), corpus()[1], 8, N)
    with no_grad():
        found = [attention_report(a) for a in model.weights(x)]
    return {key: float(np.mean([f[key] for f in found])) for key in found[0]}


def run(seed: int) -> list[Finding]:
    """All forms; what each costs, and what hybrids recover."""
    models = {form: trained(form, seed) for form in FORMS}
    losses = {form: validation(model) for form, model in models.items()} | {"bigram": bigram_loss()}
    more = {f"{form}_{key}": value for form, model in models.items() if form != "mlp"
            for key, value in looks(model).items()}
    recovered = {f"{v}_recovered": (losses[v] - losses[f"{v}_hybrid"]) / (losses[v] - losses["standard"])
                 for v in WEAK}
    skipped = {f"{v}_skipped": validation(models[f"{v}_hybrid"], (0, 2)) for v in WEAK}
    mixing = [v for v in VARIANTS if v not in ("mlp", "standard")]
    return [
        Finding(paper=103,
                claim="Without mixing a model is no better than counted pairs of characters; every way of "
                      "mixing beats it.",
                numbers=losses,
                bars=[("mlp", ">=", "standard + 0.3"), ("mlp", ">=", "bigram - 0.02"),
                      *((v, "<=", "mlp - 0.05") for v in mixing)], seed=seed),
        Finding(paper=103,
                claim="Uniform averages and weights without pairs fail in all layers, and recover most of "
                      "what they lose when every second layer is standard.",
                numbers=losses | recovered | skipped,
                bars=[*((v, ">=", "standard + 0.2") for v in WEAK),
                      *((f"{v}_recovered", ">=", 0.7) for v in WEAK)], seed=seed),
        Finding(paper=103,
                claim="Weights that know only positions, or only tokens, cost little, and so does a "
                      "polynomial in place of the exponential.",
                numbers=losses | more,
                bars=[*((v, "<=", "standard + 0.15") for v in ("fixed", "random", "static")),
                      ("approximate", "<=", "standard + 0.25")], seed=seed)]
