"""Attention with one of its principles taken away at a time, in every layer or in some.

A causal language model whose attention sublayer is one of eight:

    standard          softmax(q_i · k_j / √d), q, k and v from the hidden states
    mlp               no mixing: a gated layer W_d (SiLU(W_g h) ⊙ W_u h) with as many parameters
    average           a_ij = 1/i for j ≤ i
    random            q and k from frozen random vectors, one a position, that run through the same layers
    fixed             the same with the embeddings of one fixed text
    static            q and k from the input's token embeddings, in every layer
    approximate       1 + z + z²/2 in place of e^z, z = q · k / √d
    non_approximate   no pairs: softmax over j ≤ i of s_j = Σ_c SiLU(q_j)_c k_jc / √d, for all queries alike

The values always come from the hidden states. Every variant has a card of four bits, which the tests verify
by moving its inputs.

Xue, Moosavi and Aletras, arXiv 2510.11602 (paper 103). "average" is ours.
"""

# mypy: disable-error-code="index"

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from minattn import nn
from minattn.attention.dot_product import attention_scores, attention_weights
from minattn.attention.masks import causal
from minattn.attention.position import RoPE
from minattn.autograd import permute, reshape, silu, where
from minattn.autograd import sum as total
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import cross_entropy
from minattn.transformer.block import make_mlp, make_norm
from minattn.transformer.config import Config
from minattn.transformer.embed import check_ids, init_gpt2

PAPERS = (103,)

__all__ = ["CARDS", "VARIANTS", "Card", "DeconstructedAttention", "HybridStack", "attention_report", "hybrid",
           "naive_deconstructed", "taylor"]


class Card(NamedTuple):
    """Which of the four principles of attention a variant keeps."""

    mixing: bool
    """Does a position hear of others?"""
    sequence: bool
    """Do weights depend on the input?"""
    form: bool
    """Are they a softmax of products of pairs?"""
    coupling: bool
    """Do they depend on the hidden states of the layer?"""


CARDS = {
    "standard": Card(True, True, True, True),
    "mlp": Card(False, False, False, False),
    "average": Card(True, False, False, False),
    "random": Card(True, False, True, False),
    "fixed": Card(True, False, True, False),
    "static": Card(True, True, True, False),
    "approximate": Card(True, True, False, True),
    "non_approximate": Card(True, True, False, True),
}
"""The card of every variant."""

VARIANTS = tuple(CARDS)
"""Names of the variants."""


# ---- the naive form


def naive_deconstructed(variant: str, h: Array, source: Array, state: dict[str, Array], heads: int
                        ) -> np.ndarray:
    """The sublayer on one sequence h (N, D), position by position; q and k come from `source` (N, D)."""
    N, D = h.shape
    d = D // heads
    if variant == "mlp":
        gate = h @ state["mlp.gate.weight"].T
        return gate / (1 + np.exp(-gate)) * (h @ state["mlp.up.weight"].T) @ state["mlp.down.weight"].T

    def turned(row: Array, position: int) -> Array:
        z = row[: d // 2] + 1j * row[d // 2 :]
        z = z * np.exp(1j * position * 10000.0 ** (-2 * np.arange(d // 2) / d))
        return np.concatenate([z.real, z.imag])

    mixed = np.zeros((N, D))
    for n in range(heads):
        part = slice(n * d, (n + 1) * d)
        q, k = (source @ state[f"{c}_proj.weight"][part].T if variant != "average" else None for c in "qk")
        v = h @ state["v_proj.weight"][part].T
        for i in range(N):
            raw_weights = []
            for j in range(i + 1):
                if variant == "average":
                    raw_weights.append(1.0)
                elif variant == "non_approximate":
                    s = sum(a / (1 + math.exp(-a)) * b for a, b in zip(q[j], k[j], strict=True))
                    raw_weights.append(math.exp(s / math.sqrt(d)))
                else:
                    z = float(turned(q[i], i) @ turned(k[j], j)) / math.sqrt(d)
                    raw_weights.append(1 + z + z * z / 2 if variant == "approximate" else math.exp(z))
            for j, w in enumerate(raw_weights):
                mixed[i, part] += w / sum(raw_weights) * v[j]
    return mixed @ state["out_proj.weight"].T


# ---- the fast form


def taylor(scores: Operand, dim: int = -1) -> Operand:
    """Normaliser with 1 + z + z²/2 in place of e^z; it is at least ½, so the sum is never 0.

    Where a score is −∞ the weight is 0, and a row of such scores gives zeros.
    """
    seen = raw(scores) > -np.inf
    z = where(seen, scores, 0)
    p = where(seen, 1 + z + z * z / 2, 0)
    mass = total(p, dim, keepdim=True)
    return p / where(raw(mass) > 0, mass, 1)


class DeconstructedAttention(nn.Module):
    """One of the eight sublayers; see the head of this file.

    Parameters
    ----------
    variant : str
        One of `VARIANTS`.
    d_model, n_heads : int
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If there is no such variant, or the features of a head are not an even number.

    References
    ----------
    Xue, Moosavi and Aletras, arXiv 2510.11602 (paper 103).
    """

    def __init__(self, variant: str, d_model: int, n_heads: int, *, rng: np.random.Generator) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {variant!r}")
        if d_model % (2 * n_heads):
            raise ValueError(f"d_model: expected an even number of features for each of {n_heads} heads, "
                             f"got {d_model}")
        self.variant, self.n_heads = variant, n_heads
        if variant == "mlp":
            self.mlp = nn.SwiGLU(d_model, 4 * d_model // 3, bias=False, rng=rng)
            return
        if variant != "average":
            self.q_proj = nn.Linear(d_model, d_model, bias=False, rng=rng)
            self.k_proj = nn.Linear(d_model, d_model, bias=False, rng=rng)
        self.v_proj = nn.Linear(d_model, d_model, bias=False, rng=rng)
        self.out_proj = nn.Linear(d_model, d_model, bias=False, rng=rng)
        self.rope = RoPE(d_model // n_heads, pairing="half")

    def weights(self, source: Operand) -> Operand:
        """Weights (B, H, N, N) made of `source` (B, N, D); (1, 1, N, N) of averages.

        Raises
        ------
        ValueError
            If the variant is "mlp", which has none.
        """
        if self.variant == "mlp":
            raise ValueError('variant: "mlp" mixes nothing and has no weights')
        N = source.shape[1]
        if self.variant == "average":
            below = np.tri(N, dtype=source.dtype)
            return (below / below.sum(1, keepdims=True))[None, None]
        q, k = self._heads(self.q_proj(source)), self._heads(self.k_proj(source))
        if self.variant == "non_approximate":
            s = total(silu(q) * k, -1) / math.sqrt(q.shape[-1])
            s = reshape(s, (*s.shape[:2], 1, N))
            return attention_weights(where(np.tri(N, dtype=bool), s, -np.inf))
        here = np.arange(N)
        scores = attention_scores(self.rope.rotate(q, here), self.rope.rotate(k, here), mask_mod=causal)
        return attention_weights(scores, taylor if self.variant == "approximate" else "softmax")

    def forward(self, h: Operand, source: Operand | None = None) -> Operand:
        """h (B, N, D) → (B, N, D), with weights of `source` (B or 1, N, D), which is h by default."""
        if self.variant == "mlp":
            return self.mlp(h)
        mixed = self.weights(h if source is None else source) @ self._heads(self.v_proj(h))
        B, H, N, d = mixed.shape
        return self.out_proj(reshape(permute(mixed, 0, 2, 1, 3), (B, N, H * d)))

    def _heads(self, x: Operand) -> Operand:
        """(B, N, H·d) → (B, H, N, d)."""
        B, N, D = x.shape
        return permute(reshape(x, (B, N, self.n_heads, D // self.n_heads)), 0, 2, 1, 3)


def hybrid(variant: str, layers: int, every: int = 2) -> list[str]:
    """Variants of a stack: `variant` everywhere but in each `every`-th layer, which is standard.

    >>> hybrid("average", 4)
    ['average', 'standard', 'average', 'standard']
    """
    if every < 1:
        raise ValueError(f"every: expected a number ≥ 1, got {every}")
    return ["standard" if (n + 1) % every == 0 else variant for n in range(layers)]


class Layer(nn.Module):
    """h + mix(norm h), then h + mlp(norm h), with `mix` one of the variants."""

    def __init__(self, variant: str, config: Config, *, rng: np.random.Generator) -> None:
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.mix = DeconstructedAttention(variant, config.d_model, config.heads, rng=rng)
        self.mlp = make_mlp(config, rng)

    def forward(self, x: Operand, source: Operand | None = None) -> Operand:
        """x (B, N, D) → (B, N, D); weights are made of norm(source), or of norm(x)."""
        x = x + self.mix(self.norm1(x), None if source is None else self.norm1(source))
        return x + self.mlp(self.norm2(x))


class HybridStack(nn.Module):
    """Causal language model, each layer with its own variant of attention.

    Parameters
    ----------
    config : Config
        With ``position="rope"`` and ``pre_norm=True``.
    variants : sequence of str
        One for each layer; see `hybrid`.
    text : array of int (context,), optional
        The fixed text that "fixed" layers take their weights from.
    rng : numpy.random.Generator
        Also of the random vectors, which are not trained.

    Raises
    ------
    ValueError
        If the configuration is another one, the number of variants is not that of layers, or a text is
        missing or too short.

    References
    ----------
    Xue, Moosavi and Aletras, arXiv 2510.11602 (paper 103).
    """

    def __init__(self, config: Config, variants: Sequence[str], *, text: Array | None = None,
                 rng: np.random.Generator) -> None:
        if config.position != "rope" or not config.pre_norm:
            raise ValueError('config: expected position="rope" and pre_norm=True, '
                             f"got {config.position!r} and {config.pre_norm}")
        if len(variants) != config.layers:
            raise ValueError(f"variants: expected {config.layers}, one a layer, got {len(variants)}")
        beside = {v for v in variants if v in ("random", "fixed")}
        if len(beside) > 1:
            raise ValueError('variants: expected "random" or "fixed" layers, got both; one stream is beside')
        if "fixed" in beside and (text is None or len(text) < config.context):
            raise ValueError(f"text: expected {config.context} ids for the fixed layers, "
                             f"got {None if text is None else len(text)}")
        self.config, self.variants = config, list(variants)
        self.token = nn.Embedding(config.vocab, config.d_model, rng=rng)
        self.layers = nn.ModuleList(Layer(v, config, rng=rng) for v in variants)
        self.norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab, bias=False, rng=rng)
        init_gpt2(self, config.layers, rng)
        self.text = np.asarray(text)[: config.context] if "fixed" in beside else None
        self.vectors = (0.02 * rng.standard_normal((config.context, config.d_model))).astype(np.float32)
        self.beside = bool(beside)

    def run(self, ids: Array, skip: Collection[int] = ()) -> tuple[Operand, list[tuple[Layer, Operand]]]:
        """Residual stream after the last layer, and each layer with what its weights were made of."""
        ids = check_ids(ids)
        N = ids.shape[1]
        if N > self.config.context:
            raise ValueError(f"ids: expected at most {self.config.context} positions, got {N}")
        x = tokens = self.token(ids)
        side = None
        if self.beside:
            frozen = self.vectors[None, :N].astype(tokens.dtype)
            side = frozen if self.text is None else self.token(self.text[None, :N])
        used = []
        for n, layer in enumerate(self.layers):
            if n in skip:
                continue
            source = {"static": tokens, "random": side, "fixed": side}.get(self.variants[n])
            used.append((layer, x if source is None else source))
            x = layer(x, source)
            side = None if side is None else layer(side)
        return x, used

    def forward(self, ids: Array, skip: Collection[int] = ()) -> Operand:
        """ids (B, N) → logits (B, N, V); layers in `skip` are left out."""
        return self.head(self.norm(self.run(ids, skip)[0]))

    def weights(self, ids: Array) -> list[Operand]:
        """The weights of every layer that has some."""
        return [layer.mix.weights(layer.norm1(source)) for layer, source in self.run(ids)[1]
                if layer.mix.variant != "mlp"]

    def loss(self, ids: Array, targets: Array, skip: Collection[int] = ()) -> Operand:
        """Mean cross-entropy in nats."""
        return cross_entropy(self(ids, skip), targets)


def attention_report(weights: Array) -> dict[str, float]:
    """Entropy, concentration, head diversity and sink share of weights (B, H, N, N).

    Entropy is the mean over rows of −Σ a ln a, concentration the mean of ‖A‖_F over heads, diversity one
    minus the mean cosine between the matrices of two heads (0 of a single head), the sink share the mean
    weight of key 0 in all rows but its own.
    """
    a = np.asarray(raw(weights), np.float64)
    if a.ndim != 4 or a.shape[2] != a.shape[3]:
        raise ValueError(f"weights: expected shape (B, H, N, N), got {a.shape}")
    H, N = a.shape[1:3]
    logs = np.log(np.where(a > 0, a, 1))
    norms = np.sqrt((a * a).sum((2, 3)))
    flat = (a / norms[:, :, None, None]).reshape(len(a), H, -1)
    cosines = flat @ flat.swapaxes(1, 2)
    pairs = ~np.eye(H, dtype=bool)
    return {"entropy": float(-(a * logs).sum(-1).mean()), "concentration": float(norms.mean()),
            "diversity": float(1 - cosines[:, pairs].mean()) if H > 1 else 0.0,
            "sink": float(a[:, :, 1:, 0].mean()) if N > 1 else 1.0}
