"""What a decoder must compute and move, by formula and by counting.

A pass of a decoder takes n new positions of a sequence that is N long with them. With P entries in the
matrices of a block, H query heads and Hk key heads of d features, a block costs

    FLOPs = 2 P n + 4 n N H d          two for a multiplication and an addition; all n × N pairs count
    bytes = P b_w + 2 Hk d N b         each weight once, each key and value once, read or written

Prefill has n = N, decoding n = 1. No machine is faster than its arithmetic or its memory allows,

    time ≥ max(FLOPs / peak, bytes / bandwidth)

so which of the two counts is decided by the intensity FLOPs / bytes. Sequences of one pass share the weights.
By the mediant inequality, (a + c) / (b + d) lies between a / b and c / d: at 2 bytes a number, B sequences
that decode have an intensity between B (the weights' part) and H / Hk (the cache's part), and a prefill's
block one between N and N · H / Hk.

Norms, rotations, softmax and the rows of the embedding are left out. Park et al. 2024 (arXiv 2407.09111),
paper 162; the bound itself is Williams, Waterman and Patterson's of 2009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minattn.attention.masks import whole
from minattn.autograd.engine import Array
from minattn.transformer import Config
from minattn.transformer.gpt import naive_llama

PAPERS = (162,)

__all__ = ["Meter", "RooflineModel", "Work", "block_weights", "counted_llama", "naive_greedy"]


# --- naive: everything one by one ---------------------------------------------------------------------------

@dataclass
class Meter:
    """Counts multiplications and additions as they happen, and the different numbers that were fetched.

    Attributes
    ----------
    flops : int
    weights, cache : set
        Addresses of the matrix entries, and of the keys' and values' numbers, touched so far. A number that
        is touched again in the same pass is still there, and counts once.
    """

    flops: int = 0
    weights: set[tuple] = field(default_factory=set)
    cache: set[tuple] = field(default_factory=set)

    def dot(self, a: Sequence[float], b: Sequence[float], touched: set[tuple], *address: Any) -> float:
        """Σ a_i b_i, where the number b_i lies at (*address, i)."""
        total = 0.0
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            total += x * y
            self.flops += 2
            touched.add((*address, i))
        return total


def counted_llama(new: Sequence[Sequence[int]], state: Mapping[str, Array], config: Config, meter: Meter,
                  held: list | None = None, every: bool = False) -> list[list[list[float]]]:
    """One pass of a Llama over the `new` tokens of several sequences, number by number, on a `meter`.

    `held[s][layer]` holds the keys and values of sequence s so far, a pair (k, v) of Hk lists for each
    position, and is added to. Returns the logits of the last position of each sequence, or of `every` new
    one. All pairs of a new and a held position are multiplied, those that the causal mask then hides too.
    """
    held = [[[] for _ in range(config.layers)] for _ in new] if held is None else held
    out = []
    for s, tokens in enumerate(new):
        x = [state["embed.token.weight"][t].tolist() for t in tokens]
        for layer in range(config.layers):
            x = _counted_block(x, state, config, meter, held[s][layer], s, layer)
        rows = x if every else x[-1:]
        head = "embed.token" if config.tied else "head"  # one matrix, at one address
        out.append([_linear(_norm(r, state["norm.weight"], config), state, head, meter) for r in rows])
    return out


def _counted_block(x: list, state: Mapping[str, Array], config: Config, meter: Meter, kept: list[tuple],
                   s: int, layer: int) -> list:
    d, at, start = config.d_head, f"blocks.{layer}", len(kept)
    queries, out = [], []
    for i, row in enumerate(x):
        normed = _norm(row, state[f"{at}.norm1.weight"], config)
        q, k, v = (_split(_linear(normed, state, f"{at}.attn.{c}_proj", meter), d) for c in "qkv")
        queries.append([_turned(head, start + i, config) for head in q])
        kept.append(([_turned(head, start + i, config) for head in k], v))
    for i, row in enumerate(x):
        heads = _counted_heads(queries[i], start + i, kept, config, meter, (s, layer))
        mixed = _linear(heads, state, f"{at}.attn.out_proj", meter)
        middle = [r + m for r, m in zip(row, mixed, strict=True)]
        normed = _norm(middle, state[f"{at}.norm2.weight"], config)
        gate, up = (_linear(normed, state, f"{at}.mlp.{name}", meter) for name in ("gate", "up"))
        hidden = [z / (1 + math.exp(-z)) * u for z, u in zip(gate, up, strict=True)]
        down = _linear(hidden, state, f"{at}.mlp.down", meter)
        out.append([m + f for m, f in zip(middle, down, strict=True)])
    return out


def _counted_heads(queries: list[list[float]], i: int, kept: list[tuple], config: Config, meter: Meter,
                   place: tuple[int, int]) -> list[float]:
    """The heads of the query at position i side by side; keys after it are multiplied, then hidden."""
    out = []
    for h, q in enumerate(queries):
        g = h * config.n_kv_heads // config.heads
        scores = [meter.dot(q, k[g], meter.cache, "k", *place, j, g) / math.sqrt(config.d_head)
                  for j, (k, _) in enumerate(kept)]
        largest = max(scores[: i + 1])
        a = [math.exp(t - largest) if j <= i else 0.0 for j, t in enumerate(scores)]
        for e in range(config.d_head):
            column = [v[g][e] for _, v in kept]
            out.append(meter.dot(a, column, meter.cache, "v", *place, g, e) / math.fsum(a))
    return out


def _linear(x: list[float], state: Mapping[str, Array], name: str, meter: Meter) -> list[float]:
    return [meter.dot(x, row, meter.weights, name, r)
            for r, row in enumerate(state[f"{name}.weight"].tolist())]


def _norm(x: list[float], gain: Array, config: Config) -> list[float]:
    size = math.sqrt(math.fsum(t * t for t in x) / len(x) + config.norm_eps)
    return [t / size * float(g) for t, g in zip(x, gain, strict=True)]


def _split(x: list[float], d: int) -> list[list[float]]:
    return [x[i : i + d] for i in range(0, len(x), d)]


def _turned(x: list[float], position: int, config: Config) -> list[float]:
    half, out = len(x) // 2, list(x)
    for m in range(half):
        angle = position * config.rope_base ** (-2 * m / len(x))
        z = complex(x[m], x[m + half]) * complex(math.cos(angle), math.sin(angle))
        out[m], out[m + half] = z.real, z.imag
    return out


def naive_greedy(ids: Sequence[int], state: Mapping[str, Array], config: Config, max_new: int) -> list[int]:
    """The most likely continuation of a Llama, everything computed anew for each token; prompt included."""
    found = list(ids)
    for _ in range(max_new):
        found.append(int(naive_llama(found, state, config)[-1].argmax()))
    return found


# --- formulas -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Work:
    """What a pass has to do.

    Attributes
    ----------
    flops : int
    weight_bytes, cache_bytes : float
        Moved between memory and processor: weights, and keys and values.
    """

    flops: int = 0
    weight_bytes: float = 0
    cache_bytes: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.weight_bytes + other.weight_bytes,
                    self.cache_bytes + other.cache_bytes)

    @property
    def bytes(self) -> float:
        """All that is moved."""
        return self.weight_bytes + self.cache_bytes

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes


def block_weights(config: Config) -> int:
    """P, entries of the matrices of one block: q, k, v and output projections, and the feed-forward layer."""
    D, q, kv = config.d_model, config.heads * config.d_head, config.n_kv_heads * config.d_head
    return D * (2 * q + 2 * kv + (3 if config.gated else 2) * config.d_hidden)


class RooflineModel:
    """FLOPs, bytes and the least time of a decoder's passes on a given machine.

    Parameters
    ----------
    config : Config
        Of a decoder-only model. Its output matrix counts once, tied or not.
    peak : float
        FLOPs a second that the machine can do.
    bandwidth : float
        Bytes a second that it can move.
    weight_bytes, cache_bytes : float
        b_w and b, bytes of a weight and of a number in the cache: 2 for float16, 1 for int8.

    Examples
    --------
    >>> model = RooflineModel(config, peak=1e12, bandwidth=1e11)
    >>> work = model.decode([512] * 8)          # a token for each of 8 sequences
    >>> model.seconds(work), work.intensity, model.ridge

    Notes
    -----
    Paper 162. Lengths N count the new positions: a token that is decoded sees N keys, its own among them.
    """

    def __init__(self, config: Config, *, peak: float, bandwidth: float, weight_bytes: float = 2,
                 cache_bytes: float = 2) -> None:
        for name, value in (("peak", peak), ("bandwidth", bandwidth), ("weight_bytes", weight_bytes),
                            ("cache_bytes", cache_bytes)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a finite number above 0, got {value}")
        self.config, self.peak, self.bandwidth = config, peak, bandwidth
        self.weight_bytes, self.cache_bytes = weight_bytes, cache_bytes

    @property
    def ridge(self) -> float:
        """The intensity from which on arithmetic is what takes the time: peak / bandwidth."""
        return self.peak / self.bandwidth

    def block(self, lengths: Sequence[int], new: Sequence[int]) -> Work:
        """One block on the last new[s] positions of sequences that are lengths[s] long with them."""
        N, n, c = self._checked("lengths", lengths), self._checked("new", new), self.config
        if len(N) != len(n) or any(b > a for a, b in zip(N, n, strict=True)):
            raise ValueError(f"new: expected a number from 1 to its length for each of {N}, got {n}")
        P = block_weights(c)
        pairs = sum(a * b for a, b in zip(N, n, strict=True))
        return Work(2 * P * sum(n) + 4 * pairs * c.heads * c.d_head, P * self.weight_bytes,
                    2 * c.n_kv_heads * c.d_head * sum(N) * self.cache_bytes)

    def head(self, rows: int) -> Work:
        """The output matrix for so many positions."""
        entries = self.config.vocab * self.config.d_model
        return Work(2 * entries * whole("rows", rows), entries * self.weight_bytes)

    def extend(self, lengths: Sequence[int], new: Sequence[int], rows: int | None = None) -> Work:
        """The whole model: all blocks, and logits of `rows` positions, by default each sequence's last."""
        block, L = self.block(lengths, new), self.config.layers
        blocks = Work(L * block.flops, L * block.weight_bytes, L * block.cache_bytes)
        return blocks + self.head(len(new) if rows is None else rows)

    def prefill(self, lengths: Sequence[int]) -> Work:
        """Whole prompts, and the first token of each: 2 P N + 4 N² H d a block."""
        return self.extend(lengths, lengths)

    def decode(self, lengths: Sequence[int]) -> Work:
        """One more token for each sequence: 2 P + 4 N H d a block."""
        return self.extend(lengths, [1] * len(lengths))

    def recompute(self, lengths: Sequence[int]) -> Work:
        """One more token for each sequence without a cache: a prefill that leaves nothing behind."""
        work = self.prefill(lengths)
        return Work(work.flops, work.weight_bytes)

    def cache(self, lengths: Sequence[int]) -> float:
        """Bytes of all keys and values: 2 L Hk d N b a sequence."""
        c, tokens = self.config, sum(self._checked("lengths", lengths))
        return 2 * c.layers * c.n_kv_heads * c.d_head * tokens * self.cache_bytes

    def seconds(self, work: Work) -> float:
        """max(FLOPs / peak, bytes / bandwidth): no run of this work can take less."""
        return max(work.flops / self.peak, work.bytes / self.bandwidth)

    @staticmethod
    def _checked(name: str, values: Sequence[int]) -> list[int]:
        values = np.asarray(values).tolist()
        if not isinstance(values, list) or not values or not all(type(n) is int and n >= 1 for n in values):
            raise ValueError(f"{name}: expected a whole number of at least 1 for each sequence, got {values}")
        return values
