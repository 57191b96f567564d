"""An encoder–decoder with six switches: all of them on, it is a decoder-only language model.

A pair of sequences s_1 … s_m and t_1 … t_n, with a separator t_0 that starts the target. A language model
reads [s, t_0, t] as one sequence; an encoder–decoder has one stack for s and one for t. What lies between:

    1  causal_source   position j of the source sees s_1 … s_j only
    2  shared          encoder and decoder have the same weights
    3  layerwise       decoder layer l reads the states that enter encoder layer l, not the encoder's output
    4  consecutive     t_0 stands at position m + 1, not at 1
    5  joint           one softmax over source and target keys of a layer, in place of two attentions:
                       o_t = Σ_j a_tj v_j,   a_t = softmax over [source ; target up to t] of q_t · k_j / √D
    6  source_loss     λ > 0 in   L = −Σ_i log p(t_i | s, t_<i) − λ Σ_{j≥2} log p(s_j | s_<j)

With (1)–(5) on the logits are those of a decoder-only model on [s, t_0, t], and λ = 1 trains it as one; with
all off they are those of the transformer of 2017.

Fu et al., "Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder",
arXiv 2304.04052 (paper 100).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import KVCache, both, causal, padding
from minattn.attention.masks import MaskMod
from minattn.autograd import Tensor, cat, stack
from minattn.autograd.engine import Array, Operand
from minattn.kernels import cross_entropy

from .block import Block, make_norm
from .config import Config
from .embed import Embed, check_ids, init_gpt2
from .encoder import IGNORED, Encoder
from .seq2seq import EncoderDecoder

PAPERS = (100,)

__all__ = ["JointBlock", "RegularizedEncoderDecoder", "naive_language_model"]


def naive_language_model(ids: Sequence[int], state: Mapping[str, Array], heads: int) -> np.ndarray:
    """Logits (N, V) of a decoder-only model on one sequence, one position after the other, in float64.

    Every layer keeps a list of the keys and values of the positions so far. Pre-norm with layer norms, GELU
    and learned positions; `state` holds the weights under the names of ``GPT.state_dict()``.
    """
    w = {name: np.asarray(value, np.float64) for name, value in state.items()}
    layers = len([name for name in w if name.endswith("norm1.weight")])

    def norm(x, name):
        return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)

    memory: list[list] = [[] for _ in range(layers)]
    logits = []
    for position, token in enumerate(ids):
        x = w["embed.token.weight"][token] + w["embed.position.weight"][position]
        for n in range(layers):
            at = f"blocks.{n}"
            h = norm(x, f"{at}.norm1")
            q, k, v = (np.split(linear(h, f"{at}.attn.{c}_proj"), heads) for c in "qkv")
            memory[n].append((k, v))
            mixed = []
            for head in range(heads):
                scores = [q[head] @ k[head] / math.sqrt(len(q[head])) for k, _ in memory[n]]
                weights = [math.exp(s - max(scores)) for s in scores]
                mixed.append(sum(a / math.fsum(weights) * v[head]
                                 for a, (_, v) in zip(weights, memory[n], strict=True)))
            x = x + linear(np.concatenate(mixed), f"{at}.attn.out_proj")
            hidden = linear(norm(x, f"{at}.norm2"), f"{at}.mlp.up")
            hidden = np.array([t * (1 + math.erf(t / math.sqrt(2))) / 2 for t in hidden])
            x = x + linear(hidden, f"{at}.mlp.down")
        logits.append(w["head.weight"] @ norm(x, "norm"))
    return np.array(logits)


def joint_mask(m: int, target: MaskMod, source: MaskMod | None = None) -> MaskMod:
    """Key j < m belongs to the source and asks `source` (None: visible), key j ≥ m is target key j − m."""

    def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
        in_source = j < m if source is None else (j < m) & source(b, h, i, j)
        return in_source | (j >= m) & target(b, h, i, j - m)

    return visible


class JointBlock(Block):
    """A block whose one attention reads source and target keys in one softmax; without a memory, a `Block`.

    Parameters
    ----------
    config : Config
    rng : numpy.random.Generator
        Source of the initial weights and of dropout.

    References
    ----------
    Fu et al., arXiv 2304.04052: unidirectional cross attention.
    """

    def __init__(self, config: Config, *, rng: np.random.Generator) -> None:
        super().__init__(config, rng=rng)

    def forward(self, x: Operand, *, mask_mod: MaskMod | None = None, cache: KVCache | None = None,
                memory: Operand | None = None, memory_mask: MaskMod | None = None) -> Operand:
        """x (B, N, D), and source states `memory` (B, M, D) as they enter this layer → (B, N, D)."""
        if memory is None:
            return super().forward(x, mask_mod=mask_mod, cache=cache)
        if cache is not None or mask_mod is None:
            raise ValueError("cache, mask_mod: expected no cache and a mask of the target beside a memory")
        source = self.norm1(memory) if self.pre_norm else memory
        mask = joint_mask(memory.shape[1], mask_mod, memory_mask)
        x = self.hook_resid_pre(x)
        x = self._add(x, self.norm1, lambda h: self.attn(h, cat([source, h], 1), mask_mod=mask))
        x = self.hook_resid_mid(x)
        return self.hook_resid_post(self._add(x, self.norm2, self.mlp))


class RegularizedEncoderDecoder(EncoderDecoder):
    """Encoder and decoder that together compute a decoder-only language model, one switch at a time.

    The logits of the target are those of a `GPT` with the same weights on [s, t_0, t] if the first five
    switches are on, and the weights then have GPT's names; with all off they are an `EncoderDecoder`'s.

    Parameters
    ----------
    config : Config
        Positions added to the embeddings: "learned", "sinusoidal" or "none". With `consecutive`, a learned
        table must hold source and target together.
    causal_source, shared, layerwise, consecutive, joint : bool
        Switches 1 to 5 of the module's docstring.
    source_loss : float
        Switch 6: λ ≥ 0, the weight of a source token in the loss. Without `causal_source` the encoder sees
        the token that it is to predict, and only has to copy it.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If positions live inside the attention, or λ is negative.

    References
    ----------
    Fu et al., arXiv 2304.04052 (the regularized encoder-decoder, RED).

    Examples
    --------
    >>> model = RegularizedEncoderDecoder(Config(vocab=9, context=12, layers=2, heads=2, d_model=8),
    ...                                   rng=np.random.default_rng(0))
    >>> model(np.zeros((3, 5), int), np.zeros((3, 4), int)).shape
    (3, 4, 9)
    """

    def __init__(self, config: Config, *, causal_source: bool = True, shared: bool = True,
                 layerwise: bool = True, consecutive: bool = True, joint: bool = True,
                 source_loss: float = 1.0, rng: np.random.Generator) -> None:
        check_positions(config)
        self.config, self.source_loss = config, check_weight(source_loss)
        self.causal_source, self.shared, self.layerwise = causal_source, shared, layerwise
        self.consecutive, self.joint = consecutive, joint
        if not shared:
            self.encoder = Encoder(config, rng=rng)
        self.embed = Embed(config, rng=rng)
        self.blocks = nn.ModuleList(
            JointBlock(config, rng=rng) if joint else Block(config, cross=True, rng=rng)
            for _ in range(config.layers))
        if config.pre_norm:
            self.norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab, bias=False, rng=rng)
        if config.tied:
            self.head.weight = self.embed.token.weight
        init_gpt2(self, config.layers, rng)
        if not shared:
            self.encoder.embed.token.weight = self.embed.token.weight

    def _read(self, source: Array, lengths: Array | None) -> tuple[list[Operand], Operand]:
        """The states that enter each layer of the encoder, and its output; all (B, M, D)."""
        stack_of = self if self.shared else self.encoder
        masks = ([causal] if self.causal_source else []) + ([] if lengths is None else [padding(lengths)])
        x, entering = stack_of.embed(source), []
        if not (self.config.pre_norm or self.shared):
            x = stack_of.norm(x)  # BERT's, which a decoder has not
        for block in stack_of.blocks:
            entering.append(x)
            x = block(x, mask_mod=both(*masks) if masks else None)
        return entering, stack_of.norm(x) if self.config.pre_norm else x

    def encode(self, source: Array, lengths: Array | None = None) -> Operand:
        """Source ids (B, M) → what the decoder reads: (B, M, D), or (B, L, M, D) if `layerwise`."""
        entering, top = self._read(source, lengths)
        return stack(entering, 1) if self.layerwise else top

    def decode(self, ids: Array, memory: Operand, lengths: Array | None = None,
               caches: Sequence[KVCache] | None = None) -> Operand:
        """Target ids (B, N), the separator first, and the memory → logits (B, N, V) of the token after each.

        Raises
        ------
        ValueError
            For caches: a `GPT` with the same weights has them.
        """
        if caches is not None:
            raise ValueError("caches: expected None; use TranslationStep(…, cache=False), or a GPT")
        after = memory.shape[-2] if lengths is None else np.asarray(lengths)  # each target its own source
        x = self.embed(ids, after if self.consecutive else 0)
        visible = None if lengths is None else padding(lengths)
        for n, block in enumerate(self.blocks):
            read = memory[:, n] if self.layerwise else memory
            x = block(x, mask_mod=causal, memory=read, memory_mask=visible)
        return self.head(self.norm(x) if self.config.pre_norm else x)

    def loss(self, source: Array, ids: Array, targets: Array, lengths: Array | None = None,
             label_smoothing: float = 0.0) -> Tensor:
        """−(Σ log p(target) + λ Σ_{j≥2} log p(s_j)) over the weight of all tokens scored, in nats a token.

        At λ = 1 the mean over both sequences, at λ = 0 over the target; targets of −100 do not count.
        """
        entering, top = self._read(source, lengths)
        logits = self.decode(ids, stack(entering, 1) if self.layerwise else top, lengths)
        inner = check_ids(source)[:, 1:]
        if lengths is not None:
            inner = np.where(np.arange(1, inner.shape[1] + 1) < np.asarray(lengths)[:, None], inner, IGNORED)
        return weighted_loss(logits, targets, self.head(top[:, :-1]), inner, self.source_loss,
                             label_smoothing)


def weighted_loss(logits: Operand, targets: Array, source_logits: Operand, source: Array, weight: float,
                  label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of target and source tokens, the latter times `weight`, over the weight of all."""

    def part(logits: Operand, wanted: Array) -> tuple[Operand, int]:
        summed = cross_entropy(logits, wanted, ignore_index=IGNORED, label_smoothing=label_smoothing,
                               reduction="sum")
        return summed, int((np.asarray(wanted) != IGNORED).sum())

    total, count = part(logits, targets)
    if count == 0:
        raise ValueError(f"targets: expected at least one that is not {IGNORED}")
    if weight == 0 or source.shape[1] == 0:
        return total / count
    extra, more = part(source_logits, source)
    return (total + weight * extra) / (count + weight * more)


def check_positions(config: Config) -> None:
    """Refuse positions that live inside the attention, which knows one numbering only."""
    if config.position not in ("learned", "sinusoidal", "none"):
        raise ValueError(f"config: expected learned, sinusoidal or no positions, got {config.position!r}")


def check_weight(weight: float) -> float:
    """λ, once it is known to be a finite number of at least 0."""
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"source_loss: expected a finite weight of at least 0, got {weight}")
    return weight
