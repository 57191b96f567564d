"""Do long sequences begin as isolated tokens, and does it matter which pooling is told to distinguish cases?

Initialisation: how much a block adds to a token, beside the token itself, for 8 to 512 random tokens.

Case distinction: eight tokens with a value and a class each. A flag on token 0 asks for the class of the token
with the largest value, or of that with the smallest. Blocks of three kinds at five learning rates.
"""

from __future__ import annotations

import numpy as np

from minattn import nn
from minattn.autograd.engine import Operand
from minattn.findings import Finding
from minattn.kernels import cross_entropy
from minattn.scores.normalized_blocks import PoolingBlock, isolation_ratio

PAPERS = (37,)

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
D_INIT, HEADS = 64, 4
N, CLASSES, D, LAYERS = 8, 4, 32, 2
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STEPS, BATCH, SOLVED = 600, 64, 0.9


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


class Cases(nn.Module):
    """Tokens (B, N, features) → blocks of one kind → logits (B, classes), read from token 0."""

    def __init__(self, kind: str, *, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.enter = nn.Linear(CLASSES + 2, D, rng=rng)
        self.blocks = nn.ModuleList(PoolingBlock(kind, D, HEADS, std=0.02, rng=rng)
                                    for _ in range(LAYERS))
        self.leave = nn.Linear(D, CLASSES, rng=rng)

    def forward(self, x: Operand) -> Operand:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.leave(x[:, 0])


def cases(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n sequences (n, N, 2 + classes) of value, flag and class, and the class that is asked for."""
    values, classes = rng.uniform(-1, 1, (n, N)), rng.integers(0, CLASSES, (n, N))
    flag = rng.choice([-1, 1], n)
    x = np.zeros((n, N, 2 + CLASSES), np.float32)
    x[:, :, 0], x[:, 0, 1] = 2 * values, flag
    x[:, :, 2:] = np.eye(CLASSES)[classes]
    asked = (flag[:, None] * values).argmax(1)
    return x, classes[np.arange(n), asked]


def accuracy(kind: str, rate: float, seed: int, steps: int = STEPS) -> float:
    """Of a model trained at that rate, on 2,000 fresh sequences."""
    model = Cases(kind, seed=seed)
    nn.train(model, lambda model, pair: cross_entropy(model(pair[0]), pair[1]),
             lambda rng: cases(rng, BATCH), nn.AdamW(model.parameters(), lr=rate, weight_decay=0.0), steps,
             rng=np.random.default_rng([seed, 2]), clip=1.0,
             schedule=nn.schedule.linear(rate, steps=steps, warmup=steps // 10, floor=rate / 20),
             title=f"{kind}, rate {rate}, seed {seed}")
    x, y = cases(np.random.default_rng([seed, 3]), 2000)
    return float((model.eval()(x).data.argmax(-1) == y).mean())
