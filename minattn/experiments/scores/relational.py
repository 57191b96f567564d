"""Same or different? Two objects the model has never seen, after few examples.

An object is a random vector of 16 numbers. Pairs for training come from a pool of 32 objects, pairs for the
test from 32 others; half of either are twice the same object. Models have one layer of 32 features, and as
many parameters: four standard heads, two standard and two relational ones, or four relational ones.
"""

from __future__ import annotations

import numpy as np

from minattn import nn
from minattn.autograd import mean, no_grad
from minattn.autograd.engine import Operand
from minattn.findings import Finding
from minattn.kernels import cross_entropy
from minattn.scores.relational import DualAttention, SymbolTable

PAPERS = (5,)

FEATURES, POOL, D, TEST = 16, 32, 32, 2000
SAMPLES, STEPS, BATCH, RATE = (100, 200, 400, 800), 500, 50, 3e-3
KINDS = {"standard": (4, 0, 101), "dual": (2, 2, 96), "relational": (0, 4, 96)}  # heads, hidden features


class Judge(nn.Module):
    """Objects (B, 2, 16) → one layer → mean over objects → logits (B, 2)."""

    def __init__(self, kind: str, *, rng: np.random.Generator) -> None:
        n_sensory, n_relational, hidden = KINDS[kind]
        self.enter = nn.Linear(FEATURES, D, rng=rng)
        self.norm1, self.norm2, self.norm = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        symbols = SymbolTable(D, 2, rng=rng) if n_relational else None
        self.attn = DualAttention(D, n_sensory, n_relational, symbols=symbols, n_relations=2, d_relation=8,
                                  symmetric=True, rng=rng)
        self.mlp = nn.MLP(D, hidden, rng=rng)
        self.leave = nn.Linear(D, 2, rng=rng)

    def forward(self, x: Operand) -> Operand:
        h = self.enter(x)
        h = h + self.attn(self.norm1(h))
        h = h + self.mlp(self.norm2(h))
        return self.leave(mean(self.norm(h), 1))


def pairs(rng: np.random.Generator, pool: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n pairs (n, 2, 16) out of a pool, and 1 where both are the same object: every second one."""
    first, same = rng.integers(0, len(pool), n), np.arange(n) % 2
    other = (first + rng.integers(1, len(pool), n)) % len(pool)
    return pool[np.stack([first, np.where(same, first, other)], 1)], same


def accuracy(kind: str, samples: int, seed: int, steps: int = STEPS) -> float:
    """On pairs of unseen objects, after training on so many pairs."""
    rng = np.random.default_rng([seed, samples])
    pools = rng.standard_normal((2, POOL, FEATURES)).astype(np.float32)
    (x, y), (x_test, y_test) = (pairs(rng, pool, n) for pool, n in zip(pools, (samples, TEST), strict=True))
    model = Judge(kind, rng=np.random.default_rng([seed, 1]))

    def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.choice(samples, BATCH, replace=False)
        return x[chosen], y[chosen]

    nn.train(model, lambda model, pair: cross_entropy(model(pair[0]), pair[1]), batch,
             nn.AdamW(model.parameters(), lr=RATE), steps, rng=np.random.default_rng([seed, 2]), clip=1.0,
             title=f"{kind}, {samples} samples, seed {seed}")
    with no_grad():
        return float((np.asarray(model.eval()(x_test).data).argmax(-1) == y_test).mean())


def parameters(kind: str) -> int:
    """How many numbers a model learns."""
    return sum(p.size for p in Judge(kind, rng=np.random.default_rng(0)).parameters())


def run(seed: int) -> Finding:
    """Three kinds of layer at four sizes of the training set."""
    found = {kind: [accuracy(kind, n, seed) for n in SAMPLES] for kind in KINDS}
    numbers = {f"{kind}_{n}": a for kind, values in found.items()
               for n, a in zip(SAMPLES, values, strict=True)}
    numbers |= {f"{kind}_parameters": parameters(kind) for kind in KINDS}
    return Finding(
        paper=5,
        claim="From 100 examples a layer with relational heads, beside standard ones or alone, judges unseen "
              "objects same or different better than one with standard heads and as many parameters.",
        numbers=numbers,
        bars=[("dual_100", ">=", "standard_100 + 0.05", "mean"),
              ("relational_100", ">=", "standard_100 + 0.05", "mean"),
              ("abs(dual_parameters / standard_parameters - 1)", "<=", 0.05),
              ("abs(relational_parameters / standard_parameters - 1)", "<=", 0.05)],
        curves={"samples": SAMPLES, **found}, seed=seed)
