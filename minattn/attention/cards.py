"""The cards of the mechanisms that the core itself provides; later chapters register theirs beside each."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minattn.autograd import Tensor, reshape
from minattn.autograd.engine import Operand
from minattn.nn.hooks import attached

from .alignment import attend
from .cells import CoAttention, HierarchicalAttention, MetaEmbedding, MultiDimAttention, Step
from .dot_product import attention
from .masks import MaskMod, block, both, causal, sliding_window
from .multihead import MultiHeadAttention
from .position import ALiBi
from .taxonomy import AttentionCard, register_attention

PAPERS = (1,)

Rng = np.random.Generator


def double(module: Any) -> Any:
    """The module in float64, as the probe's inputs are."""
    return module.to(np.float64)


def aligned(kind: str, sizes: dict[str, tuple[int, ...]], q: Operand, k: Operand, rng: Rng, /,
            **how: Any) -> Step:
    """A step of `attend` whose alignment parameters are drawn from `rng`."""
    drawn: dict[str, Any] = {name: rng.standard_normal(shape) for name, shape in sizes.items()}
    return Step(partial(attend, alignment=kind, **drawn, **how), q, k, k)


def multi_head(x: Tensor, y: Tensor, rng: Rng, mask_mod: MaskMod | None = None, **how: Any) -> Step:
    """The step inside a `MultiHeadAttention` on queries x and keys y, caught by its hooks."""
    heads = double(MultiHeadAttention(x.shape[3], 2, rng=rng, **how))
    seen: dict[str, Any] = {}
    with attached(heads, {name: partial(seen.__setitem__, name) for name in ("hook_q", "hook_k", "hook_v")}):
        heads(x[:, 0], y[:, 0])
    mechanism = partial(attention, mask_mod=mask_mod, score_mod=heads.position.score_mod)
    return Step(mechanism, seen["hook_q"], seen["hook_k"], seen["hook_v"])


def together(x: Tensor, y: Tensor, rng: Rng, pool: str) -> list[Step]:
    """The two steps of `CoAttention`."""
    return double(CoAttention(x.shape[3], y.shape[3], pool=pool, rng=rng)).steps(x[:, 0], y[:, 0])


def hierarchy(x: Tensor, rng: Rng, *units: int) -> list[Step]:
    """The steps of `HierarchicalAttention` on x cut into units, such as 3 sentences of 4 words."""
    net = double(HierarchicalAttention(x.shape[3], len(units), rng=rng))
    return net.steps(reshape(x, (1, *units, x.shape[3])))


def hops(x: Tensor, y: Tensor, rng: Rng, count: int) -> list[Step]:
    """A memory network: keys and values are two embeddings of y; each hop adds what it read to the query."""
    steps: list[Step] = []
    A, C = rng.standard_normal((2, x.shape[3], x.shape[3]))
    for _ in range(count):
        steps.append(Step(partial(attend, alignment="dot"), x, y @ A, y @ C))
        x = x + steps[-1].output
    return steps


def neighbours(b: Any, h: Any, i: Any, j: Any) -> Any:
    """A graph: every node is joined to itself and, both ways round a ring, to the third on."""
    return (i == j) | ((i - j) % 12 == 3) | ((j - i) % 12 == 3)


def views(x: Tensor, rng: Rng, distribution: str) -> list[Step]:
    """`MetaEmbedding` of three representations of every position of x: two parts of it, and its squares."""
    parts = (x[:, 0, :, :2], x[:, 0, :, 2:], x[:, 0] * x[:, 0])
    return double(MetaEmbedding((2, 2, 4), 4, distribution=distribution, rng=rng)).steps(*parts)


def aimed(x: Tensor, y: Tensor, rng: Rng) -> Step:
    """Luong's local-p: each query aims at a place p_i of y and sees the keys within two of it."""
    aim = (y.shape[2] - 1) / (1 + np.exp(-x.data @ rng.standard_normal(x.shape[3])))  # (1, 1, N)
    return Step(partial(attend, mask_mod=lambda b, h, i, j: abs(aim[0, 0][i] - j) <= 2), x, y, y)


ADDITIVE: dict[str, tuple[int, ...]] = {"w": (5,), "W1": (5, 4), "W2": (5, 4), "b": (5,)}
GRAPH: Any = {"family": "graph", "sequences": "self"}
E2D: Any = {"family": "encoder_decoder"}
MEMORY: Any = {"family": "memory_net"}

CARDS = (
    AttentionCard("dot-product attention", lambda x, y, rng: Step(attention, x, y, y),
                  page="attention/dot_product"),
    AttentionCard("multi-head self-attention", lambda x, y, rng: multi_head(x, x, rng), "self",
                  page="attention/multihead"),
    AttentionCard("multi-head cross-attention", lambda x, y, rng: multi_head(x, y, rng),
                  page="attention/multihead"),
    AttentionCard("grouped-query self-attention", lambda x, y, rng: multi_head(x, x, rng, n_kv_heads=1),
                  "self", page="attention/multihead"),
    AttentionCard("causal self-attention", lambda x, y, rng: multi_head(x, x, rng, causal), "self",
                  page="attention/multihead"),
    AttentionCard("self-attention with ALiBi", lambda x, y, rng: multi_head(x, x, rng, position=ALiBi(2)),
                  "self", page="attention/multihead"),
    AttentionCard("sparsemax attention",
                  lambda x, y, rng: Step(partial(attention, normalizer="sparsemax"), x, y, y),
                  page="attention/dot_product", **E2D),
    AttentionCard("sliding-window self-attention",
                  lambda x, y, rng: Step(partial(attention, mask_mod=sliding_window(3)), x, x, x), "self",
                  positions="local", page="attention/dot_product"),
    AttentionCard("block self-attention", lambda x, y, rng: multi_head(x, x, rng, both(block(4), causal)),
                  "self", positions="local", page="attention/dot_product"),
    AttentionCard("additive attention", lambda x, y, rng: aligned("additive", ADDITIVE, x, y, rng), **E2D),
    AttentionCard("general attention", lambda x, y, rng: aligned("general", {"W": (4, 4)}, x, y, rng), **E2D),
    AttentionCard("location attention", lambda x, y, rng: aligned("location", {"W": (9, 4)}, x, y, rng),
                  **E2D),
    AttentionCard("local attention with an aim", aimed, positions="local", **E2D),
    AttentionCard("hard attention",
                  lambda x, y, rng: aligned("scaled", {}, x, y, rng, distribution="hard", rng=rng),
                  positions="hard", **E2D),
    AttentionCard("hard self-attention",
                  lambda x, y, rng: aligned("scaled", {}, x, x, rng, distribution="hard", rng=rng),
                  "self", positions="hard"),
    AttentionCard("memory network, one hop", lambda x, y, rng: hops(x, y, rng, 1), **MEMORY),
    AttentionCard("memory network, three hops", lambda x, y, rng: hops(x, y, rng, 3), **MEMORY),
    AttentionCard("graph attention",
                  lambda x, y, rng: aligned("concat", {"w": (5,), "W": (5, 8), "b": (5,)}, x, x, rng,
                                            mask_mod=neighbours), **GRAPH),
    AttentionCard("graph dot-product attention",
                  lambda x, y, rng: Step(partial(attention, mask_mod=neighbours), x, x, x), **GRAPH),
    AttentionCard("co-attention", lambda x, y, rng: together(x, y, rng, "hidden"), "co", **E2D),
    AttentionCard("co-attention by the largest affinity", lambda x, y, rng: together(x, y, rng, "max"), "co",
                  **E2D),
    AttentionCard("hierarchical attention", lambda x, y, rng: hierarchy(x, rng, 3, 4), "self", "multi",
                  **E2D),
    AttentionCard("hierarchical attention, three levels", lambda x, y, rng: hierarchy(x, rng, 2, 2, 3),
                  "self", "multi", **E2D),
    AttentionCard("multi-dimensional attention",
                  lambda x, y, rng: Step(double(MultiDimAttention(4, 4, 4, rng=rng)), x, y, y),
                  representations="multi_dimensional", **E2D),
    AttentionCard("multi-dimensional self-attention",
                  lambda x, y, rng: Step(double(MultiDimAttention(4, 4, 4, rng=rng)), x, x, x), "self",
                  representations="multi_dimensional"),
    AttentionCard("meta-embedding", lambda x, y, rng: views(x, rng, "softmax"), "self",
                  representations="multi_representational", **E2D),
    AttentionCard("meta-embedding with gates", lambda x, y, rng: views(x, rng, "sigmoid"), "self",
                  representations="multi_representational", **E2D),
)

for _card in CARDS:
    register_attention(_card)
