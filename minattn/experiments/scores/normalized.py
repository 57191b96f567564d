"""Do long sequences begin as isolated tokens, and which pooling can be trained at any learning rate?

Initialisation: how much a block adds to a token, beside the token itself, for 8 to 512 random tokens.

Case distinction: eight tokens with a value and a class each. A flag on token 0 asks for the class of the
token with the largest value, or of that with the smallest.

Mode finding: which of six tokens comes most often among 32?

Both tasks are given to models of two blocks of one kind, at five learning rates; a setting is solved if at
least 0.9 of fresh sequences are answered.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minattn import nn
from minattn.autograd.engine import Operand
from minattn.findings import Finding
from minattn.kernels import cross_entropy
from minattn.scores.normalized_blocks import PoolingBlock, isolation_ratio

PAPERS = (37,)

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
D_INIT, HEADS = 64, 4
D, LAYERS, RATES = 32, 2, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
N, CLASSES, CASE_STEPS, CASE_BATCH = 8, 4, 800, 64
MODE_N, WORDS, MODE_STEPS, MODE_BATCH = 32, 6, 400, 32
KINDS, SOLVED = ("nap", "bert", "max"), 0.9

Batch = tuple[np.ndarray, np.ndarray]


def tokens(rng: np.random.Generator, n: int) -> np.ndarray:
    """Layer-normed random tokens (4, n, 64)."""
    x = rng.standard_normal((4, n, D_INIT)).astype(np.float32)
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def ratios(kind: str, seed: int, std: float = 0.02, *, raw_heads: bool = False) -> list[float]:
    """`isolation_ratio` at each of the lengths."""
    rng = np.random.default_rng([seed, 37])
    block = PoolingBlock(kind, D_INIT, HEADS, std=std, rng=rng)
    return [isolation_ratio(block, tokens(rng, n), raw_heads=raw_heads) for n in LENGTHS]


def slope(values: list[float]) -> float:
    """Of the line through ln value over ln N."""
    return float(np.polyfit(np.log(LENGTHS), np.log(values), 1)[0])


def at_initialisation(seed: int) -> Finding:
    """The slopes of the ratio."""
    found = {"bert": ratios("bert", seed), "nap": ratios("nap", seed), "sum": ratios("sum", seed),
             "nap_raw": ratios("nap", seed, raw_heads=True), "bert_wide": ratios("bert", seed, D_INIT**-0.5)}
    return Finding(
        paper=37,
        claim="At initialisation, what softmax attention adds to a token shrinks as 1/√N beside the token; "
              "what normalised attention adds does not, thanks to the LayerNorm after its heads, without "
              "which it would grow.",
        numbers={name: slope(values) for name, values in found.items()},
        bars=[("abs(bert + 0.5)", "<=", 0.05), ("abs(nap)", "<=", 0.05), ("abs(sum)", "<=", 0.05),
              ("nap_raw", ">", 0.6), ("abs(bert_wide + 0.3)", "<=", 0.1)],
        curves={"lengths": LENGTHS, **found}, seed=seed)


class Reader(nn.Module):
    """Tokens (B, N, features) → blocks of one kind → logits (B, classes), read from token 0."""

    def __init__(self, kind: str, features: int, classes: int, *, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.enter = nn.Linear(features, D, rng=rng)
        self.blocks = nn.ModuleList(PoolingBlock(kind, D, HEADS, rng=rng) for _ in range(LAYERS))
        self.leave = nn.Linear(D, classes, rng=rng)

    def forward(self, x: Operand) -> Operand:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x[:, 0])


def cases(rng: np.random.Generator, n: int = CASE_BATCH) -> Batch:
    """n sequences (n, N, 2 + classes) of value, flag and class, and the class that is asked for."""
    values, classes = rng.uniform(-1, 1, (n, N)), rng.integers(0, CLASSES, (n, N))
    flag = rng.choice([-1, 1], n)
    x = np.zeros((n, N, 2 + CLASSES), np.float32)
    x[:, :, 0], x[:, 0, 1] = 2 * values, flag
    x[:, :, 2:] = np.eye(CLASSES)[classes]
    asked = (flag[:, None] * values).argmax(1)
    return x, classes[np.arange(n), asked]


def modes(rng: np.random.Generator, n: int = MODE_BATCH) -> Batch:
    """n sequences (n, MODE_N, words) of random words, one-hot, and the first of the most frequent ones."""
    x = np.eye(WORDS, dtype=np.float32)[rng.integers(0, WORDS, (n, MODE_N))]
    return x, x.sum(1).argmax(1)


def accuracy(task: Callable[..., Batch], kind: str, rate: float, seed: int, steps: int) -> float:
    """On 1,000 fresh sequences, of a model trained at that rate, with warm-up and a decay to a twentieth."""
    x, y = task(np.random.default_rng([seed, 3]), 1000)
    model = Reader(kind, x.shape[2], y.max() + 1, seed=seed)
    nn.train(model, lambda model, pair: cross_entropy(model(pair[0]), pair[1]), task,
             nn.AdamW(model.parameters(), lr=rate, weight_decay=0.0), steps,
             rng=np.random.default_rng([seed, 2]), clip=1.0,
             schedule=nn.schedule.linear(rate, steps=steps, warmup=steps // 10, floor=rate / 20),
             title=f"{kind}, rate {rate}, seed {seed}")
    return float((model.eval()(x).data.argmax(-1) == y).mean())


def at_all_rates(task: Callable[..., Batch], seed: int, steps: int) -> tuple[dict, dict]:
    """Numbers, how many settings each kind solves and its best accuracy, and the accuracies themselves."""
    found = {kind: [accuracy(task, kind, rate, seed, steps) for rate in RATES] for kind in KINDS}
    numbers: dict[str, float] = {}
    for kind, values in found.items():
        numbers[f"{kind}_solved"] = sum(a >= SOLVED for a in values)
        numbers[f"{kind}_best"] = max(values)
    return numbers, found


def on_cases(seed: int) -> Finding:
    """The task that the register names."""
    numbers, found = at_all_rates(cases, seed, CASE_STEPS)
    return Finding(
        paper=37,
        claim="On case distinction among eight tokens normalised attention solves at least as many of five "
              "learning rates as softmax attention in BERT's blocks.",
        numbers=numbers, bars=[("nap_solved - bert_solved", ">=", 0)],
        found="Softmax attention solves more settings: to copy the class of one token out of eight, weights "
              "that can become one-hot are what is wanted, and small models at these rates train well.",
        curves={"rates": RATES, **{f"case_{kind}": values for kind, values in found.items()}}, seed=seed)


def on_modes(seed: int) -> Finding:
    """The paper's other synthetic task."""
    numbers, found = at_all_rates(modes, seed, MODE_STEPS)
    return Finding(
        paper=37,
        claim="On mode finding among 32 tokens normalised attention solves at least as many of five learning "
              "rates as softmax attention in BERT's blocks, and max pooling solves none.",
        numbers=numbers,
        bars=[("nap_solved - bert_solved", ">=", 0), ("nap_solved", ">=", 3), ("max_solved", "==", 0)],
        curves={f"mode_{kind}": values for kind, values in found.items()}, seed=seed)


def run(seed: int) -> list[Finding]:
    """Initialisation, case distinction, mode finding."""
    return [at_initialisation(seed), on_cases(seed), on_modes(seed)]
