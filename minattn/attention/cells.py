"""Cells of the taxonomy that are no special case of `attention`: co, hierarchical, and per feature.

Each mechanism is a `Module` and says in `steps` which attention steps it takes: a `Step` is a function of
(q, k, v) with the tensors it is applied to, so that `probe_taxonomy` looks at what really runs.

`CoAttention`            two sequences attend to each other at once       Lu et al. 2016, arXiv 1606.00061
`HierarchicalAttention`  words → sentences → …, a learned query a level   Yang et al. 2016, NAACL
`MultiDimAttention`      a weight for every feature of every value        Shen et al. 2017, arXiv 1709.04696
`MetaEmbedding`          several representations of one position          Kiela et al. 2018, arXiv 1804.07983
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from minattn.autograd import amax, expand, namespace, reshape, softmax, stack, sum, tanh, unsqueeze
from minattn.autograd.engine import Array, Operand, raw
from minattn.nn import Linear, Module, ModuleList

from .alignment import attend

PAPERS = (1,)


@dataclass(frozen=True)
class Step:
    """One attention step: a mechanism (q, k, v) -> output, and what it is applied to.

    Attributes
    ----------
    mechanism : callable
        Function of q (B, H, N, D), k (B, H, M, Dk), v (B, H, M, Dv) that returns (B, H, N, Dv).
    q, k, v : array or Tensor
        What it is applied to.
    """

    mechanism: Callable
    q: Operand
    k: Operand
    v: Operand

    @cached_property
    def output(self) -> Operand:
        """mechanism(q, k, v), computed once."""
        return self.mechanism(self.q, self.k, self.v)


# ---- the naive forms


def naive_co_attention(x: Array, y: Array, weights: dict[str, Array], pool: str = "hidden"
                       ) -> tuple[Array, Array]:
    """Both summaries of `CoAttention` from its ``state_dict``, one affinity at a time."""
    (B, N, Dx), (_, M, Dy) = x.shape, y.shape
    W = weights["affinity.weight"]
    outs = np.zeros((B, Dx)), np.zeros((B, Dy))
    for b in range(B):
        C = [[math.tanh(math.fsum(x[b, i, d] * W[d, e] * y[b, j, e] for d in range(Dx) for e in range(Dy)))
              for j in range(M)] for i in range(N)]
        turned = [[C[i][j] for i in range(N)] for j in range(M)]
        for out, own, other, A, one, two in ((outs[0], x[b], y[b], C, "x", "y"),
                                             (outs[1], y[b], x[b], turned, "y", "x")):
            scores = [max(row) for row in A]
            if pool == "hidden":
                E = len(weights[f"score_{one}.weight"][0])
                scores = [0.0] * len(own)
                for i in range(len(own)):
                    for e in range(E):
                        inner = math.fsum(own[i] * weights[f"hidden_{one}.weight"][e])
                        for j in range(len(other)):
                            inner += A[i][j] * math.fsum(other[j] * weights[f"hidden_{two}.weight"][e])
                        scores[i] += weights[f"score_{one}.weight"][0][e] * math.tanh(inner)
            powers = [math.exp(s - max(scores)) for s in scores]
            for i in range(len(own)):
                out[b] += powers[i] / math.fsum(powers) * own[i]
    return outs


def naive_hierarchical(x: Array, weights: dict[str, Array], mask: Array | None = None) -> Array:
    """`HierarchicalAttention` from its ``state_dict``, by recursion: units are sums of weighted parts."""

    def summary(unit: Array, real: Any, level: int) -> tuple[Array, bool]:
        if level < 0:
            return unit, bool(real)
        found = [summary(part, r, level - 1) for part, r in zip(unit, real, strict=True)]
        parts = [s for s, visible in found if visible]
        if not parts:
            return np.zeros(unit.shape[-1]), False
        W, c = weights[f"hidden.{level}.weight"], weights[f"hidden.{level}.bias"]
        w = weights[f"query.{level}.weight"][0]
        scores = [math.fsum(w[e] * math.tanh(math.fsum(W[e] * p) + c[e]) for e in range(len(w)))
                  for p in parts]
        powers = [math.exp(s - max(scores)) for s in scores]
        shares = [x / math.fsum(powers) for x in powers]
        return np.array([math.fsum(a * p[d] for a, p in zip(shares, parts, strict=True))
                         for d in range(unit.shape[-1])]), True

    real = np.ones(x.shape[:-1], dtype=bool) if mask is None else mask
    return np.array([summary(unit, r, x.ndim - 3)[0] for unit, r in zip(x, real, strict=True)])


def naive_multi_dim(q: Array, k: Array, v: Array, weights: dict[str, Array]) -> Array:
    """`MultiDimAttention` from its ``state_dict``: for every query and feature, a softmax over the keys."""
    out = np.zeros((*q.shape[:3], v.shape[3]))
    W1, W2, b, W = (weights[n] for n in ("from_q.weight", "from_k.weight", "from_k.bias", "scores.weight"))
    for at in np.ndindex(q.shape[:3]):
        head = at[:2]
        for d in range(v.shape[3]):
            scores = []
            for j in range(k.shape[2]):
                s = 0.0
                for e in range(len(b)):
                    s += W[d][e] * math.tanh(math.fsum(W1[e] * q[at]) + math.fsum(W2[e] * k[head][j]) + b[e])
                scores.append(s)
            total = math.fsum(math.exp(s - max(scores)) for s in scores)
            for j, s in enumerate(scores):
                out[at][d] += math.exp(s - max(scores)) / total * v[head][j][d]
    return out


# ---- the fast forms


class CoAttention(Module):
    """Parallel co-attention: both sequences are summarised, each under the eyes of the other.

        C = tanh(X W_b Yᵀ)                                   affinity of every pair, (B, N, M)
        a_x = softmax(w_x · tanh(W_x X + C (W_y Y)))         pool="hidden", weights over the N positions of X
        a_x = softmax(max_j C_ij)                            pool="max"
        x̂ = Σ_i a_x,i x_i,    and ŷ with X and Y exchanged and Cᵀ for C

    Parameters
    ----------
    d_x, d_y : int
        Features of the two sequences.
    d_hidden : int
        E, rows of W_x and W_y.
    pool : {"hidden", "max"}
        How the affinities of a position become its score.
    rng : numpy.random.Generator
        Source of the initial weights.

    References
    ----------
    Lu, Yang, Batra, Parikh 2016, arXiv 1606.00061, section 3.3.
    """

    def __init__(self, d_x: int, d_y: int, d_hidden: int = 8, *, pool: str = "hidden",
                 rng: np.random.Generator) -> None:
        if pool not in ("hidden", "max"):
            raise ValueError(f"pool: expected 'hidden' or 'max', got {pool!r}")
        self.pool = pool
        self.affinity = Linear(d_y, d_x, bias=False, rng=rng)
        if pool == "hidden":
            self.hidden_x = Linear(d_x, d_hidden, bias=False, rng=rng)
            self.hidden_y = Linear(d_y, d_hidden, bias=False, rng=rng)
            self.score_x = Linear(d_hidden, 1, bias=False, rng=rng)
            self.score_y = Linear(d_hidden, 1, bias=False, rng=rng)

    def steps(self, x: Operand, y: Operand) -> list[Step]:
        """The two attention steps: over x (B, N, d_x), and over y (B, M, d_y)."""
        d_x, d_y = self.affinity.weight.shape
        for name, s, d in (("x", x, d_x), ("y", y, d_y)):
            if np.ndim(raw(s)) != 3 or s.shape[2] != d or s.shape[0] != x.shape[0]:
                raise ValueError(f"{name}: expected shape (batch, positions, {d}), got {np.shape(raw(s))}")
        C = tanh(x @ self.affinity(y).mT)
        if self.pool == "max":
            one = namespace(x).ones((x.shape[0], 1, 1, 1), dtype=x.dtype)
            return [_summary(one, unsqueeze(amax(A, -1), 2), s) for A, s in ((C, x), (C.mT, y))]
        in_x, in_y = self.hidden_x(x), self.hidden_y(y)
        return [_summary(self.score_x.weight, tanh(in_x + C @ in_y), x),
                _summary(self.score_y.weight, tanh(in_y + C.mT @ in_x), y)]

    def forward(self, x: Operand, y: Operand) -> tuple[Operand, Operand]:
        """Summaries x̂ (B, d_x) and ŷ (B, d_y)."""
        over_x, over_y = self.steps(x, y)
        return over_x.output[:, 0, 0], over_y.output[:, 0, 0]


def _summary(query: Operand, keys: Operand, values: Operand, mask: Array | None = None) -> Step:
    """softmax(keys · query) over the positions of (B, n, E), weighting values (B, n, D)."""
    B, _, E = keys.shape
    q = expand(reshape(query, (-1, 1, 1, E)), (B, 1, 1, E))
    mask_mod = None if mask is None else lambda b, h, i, j: mask[b, j]
    mechanism = partial(attend, alignment="dot", mask_mod=mask_mod)
    return Step(mechanism, q, unsqueeze(keys, 1), unsqueeze(values, 1))


class HierarchicalAttention(Module):
    """Words are summed to sentences, sentences to documents, each level with a query of its own.

        a_j = softmax_j(w · tanh(W h_j + c)),    s = Σ_j a_j h_j

    for the parts h_j of every unit; the sums s are the parts of the next level.

    Parameters
    ----------
    D : int
        Features of the words, and of every unit above them.
    levels : int
        How many levels of attention; two by default, word to sentence and sentence to document.
    d_hidden : int
        Rows of W.
    rng : numpy.random.Generator
        Source of the initial weights.

    Notes
    -----
    Yang et al. run a bidirectional GRU over the parts of every unit before they are weighted; here the parts
    are taken as they come.

    References
    ----------
    Yang, Yang, Dyer, He, Smola, Hovy 2016, Hierarchical Attention Networks for Document Classification.
    """

    def __init__(self, D: int, levels: int = 2, d_hidden: int = 8, *, rng: np.random.Generator) -> None:
        if levels < 1:
            raise ValueError(f"levels: expected at least 1, got {levels}")
        self.hidden = ModuleList(Linear(D, d_hidden, rng=rng) for _ in range(levels))
        self.query = ModuleList(Linear(d_hidden, 1, bias=False, rng=rng) for _ in range(levels))

    def steps(self, x: Operand, mask: Array | None = None) -> list[Step]:
        """One step a level, words first; every unit of a level is an entry of the step's batch."""
        levels = len(self.hidden)
        if np.ndim(raw(x)) != levels + 2:
            raise ValueError(f"x: expected {levels + 2} axes (batch, {levels} of units, features), "
                             f"got shape {np.shape(raw(x))}")
        if mask is not None and (mask.dtype != bool or mask.shape != x.shape[:-1]):
            raise ValueError(f"mask: expected booleans of shape {x.shape[:-1]}, "
                             f"got {mask.dtype} of {mask.shape}")
        found = []
        for hidden, query in zip(self.hidden, self.query, strict=True):
            *units, n, D = x.shape
            parts = reshape(x, (math.prod(units), n, D))
            seen = None if mask is None else mask.reshape(-1, n)
            found.append(_summary(query.weight, tanh(hidden(parts)), parts, seen))
            x = reshape(found[-1].output, (*units, D))
            mask = None if mask is None else mask.any(-1)  # a unit without a real part is hidden above
        return found

    def forward(self, x: Operand, mask: Array | None = None) -> Operand:
        """Documents (B, D) of words x (B, sentences, words, D); `mask` is False where a word is padding."""
        return self.steps(x, mask)[-1].output[:, 0, 0]


class MultiDimAttention(Module):
    """Attention with a softmax for each feature: o_id = Σ_j softmax_j(s_ijd) v_jd.

        s_ij = W tanh(W₁ q_i + W₂ k_j + b), a vector with a score for each of the Dv features

    If all rows of W are equal it is additive attention.

    Parameters
    ----------
    d_q, d_k, d_v : int
        Features of queries, keys and values.
    d_hidden : int
        Size of the hidden layer.
    rng : numpy.random.Generator
        Source of the initial weights.

    References
    ----------
    Shen, Zhou, Long, Jiang, Pan, Zhang 2017, DiSAN, arXiv 1709.04696, section 3.1; their further bias on
    the scores is the same for every key, and a softmax does not see it.
    """

    def __init__(self, d_q: int, d_k: int, d_v: int, d_hidden: int = 8, *, rng: np.random.Generator) -> None:
        self.from_q = Linear(d_q, d_hidden, bias=False, rng=rng)
        self.from_k = Linear(d_k, d_hidden, rng=rng)
        self.scores = Linear(d_hidden, d_v, bias=False, rng=rng)

    def weights(self, q: Operand, k: Operand) -> Operand:
        """Weights (B, H, N, M, Dv), which sum to one over the M keys for each feature."""
        sums = unsqueeze(self.from_q(q), 3) + unsqueeze(self.from_k(k), 2)
        return softmax(self.scores(tanh(sums)), 3)

    def forward(self, q: Operand, k: Operand, v: Operand) -> Operand:
        """Outputs (B, H, N, Dv)."""
        d_v = self.scores.d_out
        for name, x in (("q", q), ("k", k), ("v", v)):
            if np.ndim(raw(x)) != 4 or x.shape[:2] != q.shape[:2]:
                raise ValueError(f"{name}: expected 4 axes (batch, heads, positions, features), the "
                                 f"first two as in q, got shape {np.shape(raw(x))}")
        if v.shape[2:] != (k.shape[2], d_v):
            raise ValueError(f"v: expected {k.shape[2]} positions of {d_v} features, got shape {v.shape}")
        return sum(self.weights(q, k) * unsqueeze(v, 2), 3)


class MetaEmbedding(Module):
    """Attention over several representations of each position, instead of over positions.

        e_r = P_r x_r + c_r,    a_r = p_r(w · e_r),    out = Σ_r a_r e_r

    Parameters
    ----------
    sizes : sequence of int
        Features of each representation.
    D : int
        Features they are brought to.
    distribution : str
        p, "softmax" or "sigmoid", as in the paper.
    rng : numpy.random.Generator
        Source of the initial weights.

    References
    ----------
    Kiela, Wang, Cho 2018, Dynamic Meta-Embeddings, arXiv 1804.07983.
    """

    def __init__(self, sizes: Sequence[int], D: int, *, distribution: str = "softmax",
                 rng: np.random.Generator) -> None:
        self.distribution = distribution
        self.projections = ModuleList(Linear(d, D, rng=rng) for d in sizes)
        self.query = Linear(D, 1, bias=False, rng=rng)

    def steps(self, *xs: Operand) -> list[Step]:
        """One step, in which every position is an entry of the batch and its representations are the keys."""
        if len(xs) != len(self.projections):
            raise ValueError(f"xs: expected {len(self.projections)} representations, got {len(xs)}")
        e = stack([project(x) for project, x in zip(self.projections, xs, strict=True)], 2)  # (B, N, R, D)
        B, N, R, D = e.shape
        found = _summary(self.query.weight, reshape(e, (B * N, R, D)), reshape(e, (B * N, R, D)))
        mechanism = partial(attend, alignment="dot", distribution=self.distribution)
        return [Step(mechanism, found.q, found.k, found.v)]

    def forward(self, *xs: Operand) -> Operand:
        """Embeddings (B, N, D) of representations x_r (B, N, d_r)."""
        (step,) = self.steps(*xs)
        return reshape(step.output, (*xs[0].shape[:2], step.v.shape[3]))
