"""Does a bias of −ln n tame sigmoid attention, does it then learn like softmax, and is it the smoother map?

Growth: norms of outputs and sums of weights for 16 to 1,024 random tokens that have a direction in common.
(With independent tokens of mean zero the values cancel, and the growth is not seen.)

Letters: GPTs of two layers on Hamlet and Macbeth, with softmax, and with sigmoids with and without the bias.

Smoothness: the largest Jacobian norm of self-attention that gradient ascent finds among inputs whose tokens
have length R at most.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from minattn import data, nn
from minattn.attention import attention
from minattn.autograd import Tensor, grad, jvp
from minattn.autograd import sum as total
from minattn.autograd.engine import Operand
from minattn.findings import Finding
from minattn.scores.sigmoid import jacobian_norm, sigmoid_attention
from minattn.scores.sigmoid_block import SigmoidTransformerBlock
from minattn.transformer import GPT, Config

PAPERS = (117,)

LENGTHS, D_GROWTH = (16, 32, 64, 128, 256, 512, 1024), 64
PLAYS = ("hamlet", "macbeth")
CONTEXT, BATCH, STEPS, RATE, WARMUP = 64, 16, 600, 3e-3, 30
KINDS = ("softmax", "bias", "plain")
RADII, TOKENS, D_MAP, STARTS, CLIMB = (1.0, 2.0, 4.0, 8.0, 16.0), 8, 4, 6, 60

Batch = tuple[np.ndarray, np.ndarray]


# ---- growth


def grown(seed: int) -> dict[str, list[float]]:
    """Mean norm of an output and mean sum of a row of weights at each length, with and without b = −ln n."""
    rng = np.random.default_rng([seed, 117])
    W = rng.standard_normal((3, D_GROWTH, D_GROWTH)) / math.sqrt(D_GROWTH)
    shared = rng.standard_normal(D_GROWTH)
    found: dict[str, list[float]] = {"norm_bias": [], "norm_plain": [], "mass_bias": [], "mass_plain": []}
    for n in LENGTHS:
        x = rng.standard_normal((n, D_GROWTH)) + 0.3 * shared
        x /= np.sqrt((x * x).mean(-1, keepdims=True))
        q, k, v = ((x @ w)[None, None] for w in W)
        for name, b in (("bias", -math.log(n)), ("plain", 0.0)):
            out, weights = sigmoid_attention(q, k, v, b, return_weights=True)
            found[f"norm_{name}"].append(float(np.linalg.norm(out, axis=-1).mean()))
            found[f"mass_{name}"].append(float(weights.sum(-1).mean()))
    return found


def slope(values: list[float]) -> float:
    """Of the line through ln value over ln n."""
    return float(np.polyfit(np.log(LENGTHS), np.log(values), 1)[0])


def at_initialisation(seed: int) -> Finding:
    """What the bias does before any training."""
    found = grown(seed)
    return Finding(
        paper=117,
        claim="Without a bias the outputs of sigmoid attention and the sums of its weights grow in "
              "proportion to the length of the sequence; with b = −ln n they do not grow.",
        numbers={name: slope(values) for name, values in found.items()},
        bars=[("abs(norm_plain - 1)", "<=", 0.1), ("abs(norm_bias)", "<=", 0.1),
              ("abs(mass_plain - 1)", "<=", 0.05), ("abs(mass_bias)", "<=", 0.1)],
        curves={"lengths": LENGTHS, **found}, seed=seed)


# ---- letters


@functools.cache
def text() -> tuple[int, np.ndarray, np.ndarray]:
    """Number of letters, the first nine tenths of the plays, and the last tenth."""
    plays = data.shakespeare(PLAYS)
    vocabulary = data.CharVocabulary(plays)
    return len(vocabulary), *data.split(vocabulary.encode(plays))


def untrained(kind: str, seed: int) -> GPT:
    """Two layers with the same weights for every kind."""
    config = Config(vocab=text()[0], context=CONTEXT, layers=2, heads=4, d_model=48)
    model = GPT(config, rng=np.random.default_rng(seed))
    for n in range(config.layers if kind != "softmax" else 0):
        block = SigmoidTransformerBlock(config, b=0.0 if kind == "plain" else None,
                                        rng=np.random.default_rng(0))
        block.load_state_dict(model.blocks[n].state_dict())
        model.blocks[n] = block
    return model


def validate(model: GPT) -> float:
    """Mean loss on the tenth held out, in nats a letter."""
    held_out = text()[2]
    n = (len(held_out) - 1) // CONTEXT
    x, y = (held_out[s : s + n * CONTEXT].reshape(n, CONTEXT) for s in (0, 1))
    losses = [model.loss(x[i : i + 64], y[i : i + 64]).item() * len(x[i : i + 64]) for i in range(0, n, 64)]
    return float(sum(losses) / n)


def fit(kind: str, seed: int, steps: int = STEPS) -> tuple[GPT, list[float]]:
    """A trained model and its validation loss, four times in training."""
    model = untrained(kind, seed)
    history = nn.train(
        model, lambda model, batch: model.loss(*batch),
        lambda rng: data.batches(rng, text()[1], BATCH, CONTEXT), nn.AdamW(model.parameters(), lr=RATE),
        steps, rng=np.random.default_rng([seed, 1]), clip=1.0,
        schedule=nn.schedule.linear(RATE, steps=steps, warmup=WARMUP, floor=RATE / 10),
        evaluate=validate, eval_every=steps // 4, title=f"{kind}, seed {seed}")
    return model.eval(), [loss for _, loss in history.validation]


def on_letters(seed: int) -> Finding:
    """Three models that differ in what makes weights of scores."""
    losses = {kind: fit(kind, seed)[1] for kind in KINDS}
    return Finding(
        paper=117,
        claim="On letters sigmoid attention with b = −ln N ends within 0.08 nats of softmax attention, and "
              "without the bias at least 0.05 nats above itself with it.",
        numbers={kind: values[-1] for kind, values in losses.items()},
        bars=[("bias - softmax", "<=", 0.08), ("plain - bias", ">=", 0.05)],
        curves={f"loss_{kind}": values for kind, values in losses.items()}, seed=seed)


# ---- smoothness


def self_attention(kind: str, W: np.ndarray) -> Callable[[Operand], Operand]:
    """x (n, d) → attention of its tokens to one another, with the three matrices W."""

    def f(x: Operand) -> Operand:
        q, k, v = ((x @ w)[None, None] for w in W)
        return attention(q, k, v) if kind == "softmax" else sigmoid_attention(q, k, v)

    return f


def inside(x: np.ndarray, radius: float) -> np.ndarray:
    """Tokens longer than the radius are cut to it."""
    return x * np.minimum(1, radius / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))


def steepest(kind: str, W: np.ndarray, radius: float, rng: np.random.Generator) -> float:
    """The largest Jacobian norm met on gradient ascents from several starts, whose steps shrink."""
    f, best = self_attention(kind, W), 0.0
    for start in range(STARTS):
        x = rng.standard_normal((TOKENS, D_MAP))
        if start % 2:  # half of the starts are two clusters, where weights are tied
            x = x[rng.integers(0, 2, TOKENS)] + 0.05 * x
        x *= radius / np.linalg.norm(x, axis=-1, keepdims=True) * rng.uniform(0.3, 1)
        for step in range(CLIMB):
            size, u, v = jacobian_norm(f, x, steps=4, rng=rng, return_vectors=True)
            best = max(best, size)
            point = Tensor(x, requires_grad=True)
            along = total(jvp(f, point, v, create_graph=True)[1] * u)
            (g,) = grad(along, [point])
            x = inside(x + 0.3 * radius * (1 - step / CLIMB) * g.data / max(np.linalg.norm(g.data), 1e-12),
                       radius)
    return best


def on_balls(seed: int) -> Finding:
    """Both maps with the same matrices."""
    W = np.random.default_rng([seed, 2]).standard_normal((3, D_MAP, D_MAP)) / math.sqrt(D_MAP)
    found = {kind: [steepest(kind, W, radius, np.random.default_rng([seed, 3])) for radius in RADII]
             for kind in ("softmax", "sigmoid")}
    ratio = [a / b for a, b in zip(found["softmax"], found["sigmoid"], strict=True)]
    return Finding(
        paper=117,
        claim="The largest Jacobian norm among inputs of radius R grows slower for sigmoid than for softmax "
              "attention: their ratio rises with R.",
        numbers={"ratio_small": ratio[0], "ratio_large": ratio[-1],
                 **{f"{kind}_large": values[-1] for kind, values in found.items()}},
        bars=[("ratio_large / ratio_small", ">", 1)],
        curves={"radii": RADII, **{f"norm_{kind}": values for kind, values in found.items()}}, seed=seed)


def run(seed: int) -> list[Finding]:
    """Growth, letters, smoothness."""
    return [at_initialisation(seed), on_letters(seed), on_balls(seed)]
