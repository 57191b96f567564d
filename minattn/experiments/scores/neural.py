"""Which scores can a network of query and key express that a product cannot, and does a text model gain?

Score: queries and keys in the plane, targets softmax(−5 | ‖q‖ − ‖k‖ |): whoever is as far from the origin. No
bilinear form knows a distance from the origin. Losses are Kullback–Leibler divergences.

Text: two-layer models of the letters of Hamlet and Macbeth with learned positions, equal initial weights and
equal batches; in the second the first layer's score is a network. The same again from smaller weights.
"""

# `neural_layers` gives back the GPT that it was given.
# mypy: disable-error-code="return-value"

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from minattn import data, nn
from minattn.autograd import log_softmax
from minattn.autograd.engine import Operand
from minattn.findings import Finding
from minattn.scores.neural import neural_layers, neural_score
from minattn.transformer import GPT, Config

PAPERS = (3,)

SHARPNESS, UNITS, PAIRS, STEPS, RATE = 5.0, 32, 32, 1500, 1e-2
CONTEXT, D, HEADS, LAYERS, BATCH, TEXT_STEPS, TEXT_RATE = 64, 48, 4, 2, 16, 400, 3e-3


def target(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Scores −5 | ‖q‖ − ‖k‖ | of q (1, 1, N, 2) and k (1, 1, M, 2)."""
    far_q, far_k = (np.linalg.norm(x, axis=-1) for x in (q, k))
    return -SHARPNESS * np.abs(far_q[..., :, None] - far_k[..., None, :])


def draw(rng: np.random.Generator, n: int = PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """n queries and n keys."""
    q, k = rng.standard_normal((2, 1, 1, n, 2), dtype=np.float32)
    return q, k


class Bilinear(nn.Module):
    """The score qᵀ W k of learned dot-product attention."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.W = nn.Parameter(nn.init.normal((2, 2), rng=rng))

    def forward(self, q: Operand, k: Operand) -> Operand:
        return (q @ self.W) @ k.mT


class Network(nn.Module):
    """The score of neural attention, one head, with `UNITS` hidden units."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.W_h = nn.Parameter(nn.init.uniform((1, UNITS, 4), 0.5, rng=rng))
        self.b_h = nn.Parameter(nn.init.uniform((1, UNITS), 0.5, rng=rng))
        self.w_a = nn.Parameter(nn.init.uniform((1, UNITS), UNITS**-0.5, rng=rng))

    def forward(self, q: Operand, k: Operand) -> Operand:
        return neural_score(q, k, self.W_h, self.b_h, self.w_a)


def divergence(model: nn.Module, pairs: tuple[np.ndarray, np.ndarray]) -> Operand:
    """Mean over queries of KL(target ‖ model)."""
    wanted = log_softmax(target(*pairs), -1)
    return (np.exp(wanted) * (wanted - log_softmax(model(*pairs), -1))).sum(-1).mean()


def fit_score(kind: Callable[[np.random.Generator], nn.Module], seed: int, steps: int = STEPS
              ) -> tuple[nn.Module, float]:
    """A score trained by Adam at a rate that falls along a line, and its divergence on fresh pairs."""
    model = kind(np.random.default_rng([seed, 3]))
    nn.train(model, divergence, draw, nn.Adam(model.parameters(), lr=RATE), steps,
             rng=np.random.default_rng([seed, 4]),
             schedule=nn.schedule.linear(RATE, steps=steps, floor=RATE / 50),
             title=f"{kind.__name__}, seed {seed}")
    fresh = np.random.default_rng([seed, 5])
    return model, float(np.mean([divergence(model, draw(fresh)).item() for _ in range(100)]))


def on_scores(seed: int) -> Finding:
    """What can be expressed."""
    return Finding(
        paper=3,
        claim="A network of query and key expresses a score that depends on distances from the origin far "
              "better than any bilinear form: a quarter of the divergence at most.",
        numbers={"neural": fit_score(Network, seed)[1], "bilinear": fit_score(Bilinear, seed)[1]},
        bars=[("neural / bilinear", "<=", 0.25)], seed=seed)


@functools.cache
def text() -> tuple[int, np.ndarray, np.ndarray]:
    """How many letters there are, the first nine tenths of the plays, and the last tenth."""
    plays = data.shakespeare(("hamlet", "macbeth"))
    vocabulary = data.CharVocabulary(plays)
    return len(vocabulary), *data.split(vocabulary.encode(plays))


def language_model(kind: str, seed: int, weights: str = "uniform") -> GPT:
    """"dot", or "neural" with a network as the score of the first layer, and all else equal.

    Weights of linear layers are "uniform" on ±1/√fan_in in both, as the network's own, or "small",
    N(0, 0.02²), the network's excepted.
    """
    rng = np.random.default_rng([seed, 6])
    config = Config(vocab=text()[0], context=CONTEXT, layers=LAYERS, heads=HEADS, d_model=D)
    model = GPT(config, rng=rng)
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and weights == "uniform":
            layer.weight.data = nn.init.uniform(layer.weight.shape, layer.d_in**-0.5, rng=rng)
    return neural_layers(model, rng=rng) if kind == "neural" else model


def validate(model: GPT) -> float:
    """Mean loss on windows of the tenth held out, in nats a letter."""
    _, _, held_out = text()
    n = min((len(held_out) - 1) // CONTEXT, 320)
    x, y = (held_out[s : s + n * CONTEXT].reshape(n, CONTEXT) for s in (0, 1))
    return float(np.mean([model.loss(x[i : i + 64], y[i : i + 64]).item() for i in range(0, n, 64)]))


def fit_text(kind: str, seed: int, weights: str = "uniform", steps: int = TEXT_STEPS
             ) -> tuple[GPT, float, list[tuple[int, float]]]:
    """A trained model, its validation loss, and the loss while it was trained."""
    _, train, _ = text()
    model = language_model(kind, seed, weights)
    history = nn.train(model, lambda model, pair: model.loss(*pair),
                       lambda rng: data.batches(rng, train, BATCH, CONTEXT),
                       nn.AdamW(model.parameters(), lr=TEXT_RATE), steps,
                       rng=np.random.default_rng([seed, 7]),
                       schedule=nn.schedule.linear(TEXT_RATE, steps=steps, warmup=20, floor=TEXT_RATE / 10),
                       evaluate=validate, eval_every=max(steps // 8, 1), title=f"{kind}, seed {seed}")
    return model, history.validation[-1][1], history.validation


def on_text(seed: int) -> Finding:
    """Whether a language model is no worse."""
    fits = {kind: fit_text(kind, seed) for kind in ("dot", "neural")}
    return Finding(
        paper=3,
        claim="A model of letters whose first layer scores by a network is no worse than one that scores by "
              "dot products throughout.",
        numbers={kind: loss for kind, (_, loss, _) in fits.items()},
        bars=[("neural - dot", "<=", 0.02, "mean")],
        curves={"steps": [n for n, _ in fits["dot"][2]],
                **{kind: [loss for _, loss in curve] for kind, (_, _, curve) in fits.items()}}, seed=seed)


def from_small_weights(seed: int) -> Finding:
    """The same from weights with which queries and keys hardly differ at first."""
    return Finding(
        paper=3,
        claim="From linear weights N(0, 0.02²) the model with the network ends behind the other after as "
              "many steps.",
        numbers={f"{kind}_small": fit_text(kind, seed, "small")[1] for kind in ("dot", "neural")},
        bars=[("neural_small - dot_small", ">=", 0, "mean")], seed=seed)


def run(seed: int) -> list[Finding]:
    """Scores, text, text from small weights."""
    return [on_scores(seed), on_text(seed), from_small_weights(seed)]
