"""Does a bias of −ln n tame sigmoid attention, does it then learn like softmax, and is it the smoother map?

Growth: norms of outputs and sums of weights for 16 to 1,024 random tokens that have a direction in common.
(With independent tokens of mean zero the values cancel, and the growth is not seen.)

Letters: GPTs of two layers on Hamlet and Macbeth, with softmax, and with sigmoids with and without the bias.

Smoothness: the largest Jacobian norm of self-attention that gradient ascent finds among inputs whose tokens
have length R at most.

Speed: both in compiled tiles, forward.
"""

# mypy: disable-error-code="operator, var-annotated"

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import numpy as np

from minattn import data, nn
from minattn.attention import attention
from minattn.autograd import Tensor, grad, jvp
from minattn.autograd import sum as total
from minattn.autograd.engine import Operand
from minattn.findings import Finding
from minattn.kernels import flash_attention
from minattn.scores.sigmoid import flash_sigmoid, jacobian_norm, sigmoid_attention
from minattn.scores.sigmoid_block import SigmoidTransformerBlock
from minattn.transformer import GPT, Config

PAPERS = (117,)

LENGTHS, D_GROWTH = (16, 32, 64, 128, 256, 512, 1024), 64
PLAYS = ("hamlet", "macbeth")
CONTEXT, BATCH, STEPS, RATE, WARMUP = 64, 16, 600, 3e-3, 30
KINDS = ("softmax", "bias", "plain")
RADII, TOKENS, D_MAP, CLIMB = (1.0, 2.0, 4.0, 8.0, 16.0), 8, 4, 40

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
    """Two layers with the same weights for every kind: N(0, 0.02²) in embeddings, and in linear layers
    uniform on ±1/√fan_in, which lets such small models learn faster."""
    rng = np.random.default_rng(seed)
    config = Config(vocab=text()[0], context=CONTEXT, layers=2, heads=4, d_model=48, tied=False)
    model = GPT(config, rng=rng)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = nn.init.uniform(layer.weight.shape, layer.d_in**-0.5, rng=rng)
    if kind != "softmax":
        own = [block.state_dict() for block in model.blocks]
        b = 0.0 if kind == "plain" else None
        model.blocks = nn.ModuleList(
            SigmoidTransformerBlock(config, b=b, rng=np.random.default_rng(seed)) for _ in own)
        for block, weights in zip(model.blocks, own, strict=True):
            block.load_state_dict(weights)
    return model


def validate(model: GPT) -> float:
    """Mean loss on the tenth held out, in nats a letter."""
    held_out = text()[2]
    n = (len(held_out) - 1) // CONTEXT
    x, y = (held_out[s : s + n * CONTEXT].reshape(n, CONTEXT) for s in (0, 1))
    losses = [model.loss(x[i : i + 64], y[i : i + 64]).item() * len(x[i : i + 64]) for i in range(0, n, 64)]
    return float(sum(losses) / n)


def fit(kind: str, seed: int, steps: int = STEPS) -> tuple[GPT, list[float]]:
    """A trained model, and its training loss, averaged over each twentieth of the steps."""
    model = untrained(kind, seed)
    history = nn.train(
        model, lambda model, batch: model.loss(*batch),
        lambda rng: data.batches(rng, text()[1], BATCH, CONTEXT), nn.AdamW(model.parameters(), lr=RATE),
        steps, rng=np.random.default_rng([seed, 1]), clip=1.0,
        schedule=nn.schedule.linear(RATE, steps=steps, warmup=WARMUP, floor=RATE / 10),
        title=f"{kind}, seed {seed}")
    return model.eval(), [float(np.mean(part)) for part in np.array_split(history.losses, 20)]


def on_letters(seed: int) -> Finding:
    """Three models that differ in what makes weights of scores."""
    fits = {kind: fit(kind, seed) for kind in KINDS}
    return Finding(
        paper=117,
        claim="On letters sigmoid attention with b = −ln N ends within 0.08 nats of softmax attention, and "
              "without the bias at least 0.05 nats above itself with it.",
        numbers={kind: validate(model) for kind, (model, _) in fits.items()},
        bars=[("bias - softmax", "<=", 0.08), ("plain - bias", ">=", 0.05)],
        curves={f"loss_{kind}": losses for kind, (_, losses) in fits.items()}, seed=seed)


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


def bound(W: np.ndarray, x: np.ndarray) -> float:
    """‖V‖ (‖P‖ + ½ ‖A‖ Σ_i ‖x_i‖²) with A = W_Q W_Kᵀ / √d, which bounds the Jacobian norm of the sigmoids."""
    P = sigmoid_attention(*((x @ w)[None, None] for w in W), return_weights=True)[1][0, 0]
    A = W[0] @ W[1].T / math.sqrt(D_MAP)
    return float(np.linalg.norm(W[2], 2) * (np.linalg.norm(P, 2) + np.linalg.norm(A, 2) * (x * x).sum() / 2))


def climb(f: Callable[[Operand], Operand], x: np.ndarray, radius: float, rng: np.random.Generator
          ) -> tuple[float, np.ndarray]:
    """The largest Jacobian norm, and where, on an ascent from x whose steps shrink."""
    best, where = 0.0, x
    for step in range(CLIMB):
        size, u, v = jacobian_norm(f, x, steps=4, rng=rng, return_vectors=True)
        if size > best:
            best, where = size, x
        point = Tensor(x, requires_grad=True)
        (g,) = grad(total(jvp(f, point, v, create_graph=True)[1] * u), [point])
        length = 0.3 * radius * (1 - step / CLIMB) / max(np.linalg.norm(g.data), 1e-12)
        x = inside(x + length * g.data, radius)
    return best, where


def steepest(kind: str, W: np.ndarray, seed: int) -> tuple[list[float], list[np.ndarray]]:
    """The largest Jacobian norm found in each ball, and where: from random tokens, from two clusters, and
    from what was found in the ball before, as it is and stretched to this one."""
    f, rng = self_attention(kind, W), np.random.default_rng([seed, 3])
    sizes, places = [], []
    for n, radius in enumerate(RADII):
        x = rng.standard_normal((2, TOKENS, D_MAP))
        x[1] = x[1, rng.integers(0, 2, TOKENS)] + 0.05 * x[1]
        starts = list(0.7 * radius * x / np.linalg.norm(x, axis=-1, keepdims=True))
        if n:
            starts += [places[-1], places[-1] * radius / RADII[n - 1]]
        size, place = max((climb(f, start, radius, rng) for start in starts), key=lambda found: found[0])
        sizes.append(size)
        places.append(place)
    return sizes, places


def on_balls(seed: int) -> list[Finding]:
    """Both maps with the same matrices: which is the steeper one, and the bound that one of them has."""
    W = np.random.default_rng([seed, 2]).standard_normal((3, D_MAP, D_MAP)) / math.sqrt(D_MAP)
    found, at = {}, {}
    for kind in ("softmax", "sigmoid"):
        found[kind], at[kind] = steepest(kind, W, seed)
    ratio = [a / b for a, b in zip(found["softmax"], found["sigmoid"], strict=True)]
    share = [size / bound(W, x) for size, x in zip(found["sigmoid"], at["sigmoid"], strict=True)]
    return [Finding(
        paper=117,
        claim="The largest Jacobian norm among inputs of radius R grows slower for sigmoid than for softmax "
              "attention: their ratio rises with R.",
        numbers={"ratio_small": ratio[0], "ratio_large": ratio[-1],
                 **{f"{kind}_large": values[-1] for kind, values in found.items()}},
        bars=[("ratio_large / ratio_small", ">", 1)],
        found="The ratio falls from the smallest ball to the largest: in large balls the steepest inputs "
              "that gradient ascent finds belong to sigmoid attention. Where scores reach ln n, all n "
              "sigmoids of a row are at their steepest at once; the weights of a softmax share a sum of one.",
        curves={"radii": RADII, **{f"norm_{kind}": values for kind, values in found.items()}}, seed=seed),
        Finding(
        paper=117,
        claim="No Jacobian of sigmoid attention that the search met exceeds a bound in which the lengths of "
              "tokens stand as the sum of their squares.",
        numbers={"share": max(share)}, bars=[("share", "<=", 1), ("share", ">=", 0.1)],
        curves={"share": share}, seed=seed)]


# ---- speed


def speed(seed: int, n: int = 1024, rounds: int = 25) -> Finding:
    """Both kernels in turn on the same arrays, one thread; the shortest time of each counts,
    of the processor and not of the clock on the wall, so that what else runs there does not."""
    rng = np.random.default_rng([seed, 4])
    q, k, v = rng.standard_normal((3, 1, 4, n, 64), dtype=np.float32)
    calls = {"softmax": lambda: flash_attention(q, k, v), "sigmoid": lambda: flash_sigmoid(q, k, v)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    softmax, sigmoid = (min(times[name][1:]) for name in calls)
    return Finding(
        paper=117,
        claim="In tiles on the CPU sigmoid attention with its bias is faster than softmax attention, by a "
              "twentieth at least.",
        numbers={"speed": softmax / sigmoid, "milliseconds": 1000 * sigmoid},
        bars=[("speed", ">=", 1.05)],
        found="The gain is smaller than a twentieth: with a fast exponential the products dominate, and the "
              "feature that carries the bias costs a part of what the running maximum had cost.",
        seed=seed)


def run(seed: int) -> list[Finding]:
    """Growth, letters, smoothness and its bound, speed."""
    return [at_initialisation(seed), on_letters(seed), *on_balls(seed), speed(seed)]
