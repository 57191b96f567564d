"""Do digits need all four matrices of attention?

Images of 8 by 8 pixels as eight rows of eight, through two pre-norm blocks of 32 features and mean pooling.
Four models with equal initial weights wherever they have a weight in common differ in their attention:

    standard    four heads, 4 d² parameters
    optimised   four heads, no W_V
    efficient   one head, no W_V and no W_K
    super       one head, no W_V and no W_K, values mixed by W_A
"""

# `get` may give None, of which `np.shape` is ().
# mypy: disable-error-code="arg-type"

from __future__ import annotations

import numpy as np

from minattn import data, nn
from minattn.autograd.engine import Operand
from minattn.findings import Finding
from minattn.kernels import cross_entropy
from minattn.scores.pay_better import (
    EfficientAttention,
    OptimisedAttention,
    SuperAttention,
    attention_flop_count,
    attention_parameter_count,
)
from minattn.transformer import Block, Config

PAPERS = (15,)

KINDS = ("standard", "optimised", "efficient", "super")
N, D, LAYERS, HEADS = 8, 32, 2, 4
EPOCHS, BATCH, RATE = 30, 32, 2e-3


class DigitRows(nn.Module):
    """Rows of an image (B, N, N) → blocks → mean over the rows → logits (B, 10)."""

    def __init__(self, kind: str, *, seed: int) -> None:
        rng = np.random.default_rng([seed, 15])
        config = Config(vocab=10, context=N, layers=LAYERS, heads=HEADS, d_model=D)
        self.enter = nn.Linear(N, D, rng=rng)
        self.position = nn.Parameter(nn.init.normal((N, D), std=0.02, rng=rng))
        self.blocks = nn.ModuleList(Block(config, rng=rng) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(D)
        self.leave = nn.Linear(D, 10, rng=rng)
        for n, block in enumerate(self.blocks):
            replace_attention(block, kind, np.random.default_rng([seed, 15, n]))

    def forward(self, images: Operand) -> Operand:
        x = self.enter(images) + self.position
        for block in self.blocks:
            x = block(x)
        return self.leave(self.norm(x).mean(1))


def replace_attention(block: Block, kind: str, rng: np.random.Generator) -> None:
    """Another attention in the place of the block's, from as many of its weights as it has a place for."""
    if kind == "standard":
        return
    own = block.attn.state_dict()
    block.attn = {"optimised": lambda: OptimisedAttention(D, HEADS, rng=rng),
                  "efficient": lambda: EfficientAttention(D, rng=rng),
                  "super": lambda: SuperAttention(D, N, rng=rng)}[kind]()
    block.attn.load_state_dict({name: own.get(name, value) if np.shape(value) == np.shape(own.get(name))
                                else value for name, value in block.attn.state_dict().items()})


def accuracy(model: DigitRows, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose largest logit is that of their label."""
    return float((model(images).data.argmax(-1) == labels).mean())


def fit(kind: str, seed: int, epochs: int = EPOCHS) -> tuple[DigitRows, float]:
    """A model trained on four fifths of the digits, and its accuracy on the rest."""
    digits = data.digits(np.random.default_rng(seed))
    model = DigitRows(kind, seed=seed)
    steps = epochs * len(digits.train_images) // BATCH

    def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rows = rng.integers(0, len(digits.train_images), BATCH)
        return digits.train_images[rows], digits.train_labels[rows]

    nn.train(model, lambda model, pair: cross_entropy(model(pair[0]), pair[1]), batch,
             nn.AdamW(model.parameters(), lr=RATE, weight_decay=0.01), steps,
             rng=np.random.default_rng([seed, 1]),
             schedule=nn.schedule.linear(RATE, steps=steps, warmup=30, floor=RATE / 20),
             title=f"{kind}, seed {seed}")
    return model, accuracy(model.eval(), digits.test_images, digits.test_labels)


def run(seed: int) -> Finding:
    """Accuracies, parameters and operations of the four kinds."""
    numbers: dict[str, float] = {}
    for kind in KINDS:
        model, numbers[kind] = fit(kind, seed)
        weights = sum(p.data.size for name, p in model.blocks[0].attn.named_parameters()
                      if name.endswith("weight"))
        numbers[f"weights_{kind}"] = weights
        numbers[f"excess_{kind}"] = weights - attention_parameter_count(kind, D, N)
        numbers[f"flops_{kind}"] = attention_flop_count(kind, D, N)
    return Finding(
        paper=15,
        claim="On digits read row by row, Optimised and Efficient Attention are as accurate as standard "
              "attention with three quarters and half of its parameters, Super Attention no less, and "
              "operations fall with each matrix that is left out.",
        numbers=numbers,
        bars=[("optimised - standard", ">=", -0.02, "mean"), ("optimised - standard", "<=", 0.02, "mean"),
              ("efficient - standard", ">=", -0.02, "mean"), ("efficient - standard", "<=", 0.02, "mean"),
              ("super - standard", ">=", -0.01, "mean"), ("super - efficient", ">=", -0.005, "mean"),
              ("weights_optimised / weights_standard", "==", 0.75),
              ("weights_efficient / weights_standard", "==", 0.5), ("excess_super", "==", 0),
              ("flops_efficient / flops_optimised", "<", 1), ("flops_optimised / flops_standard", "<", 1)],
        seed=seed)
