"""How much a language model still looks at its source, and partial attention, which never stops looking.

A language model continues a source of m tokens. At a step with t target keys visible, one softmax shares
weight 1 among m + t keys. If all logits lie in [−c, c], every exp lies in [e^−c, e^c], so the part of the
source, M_t = Σ_{j≤m} a_tj, obeys

    m e^−2c / (m e^−2c + t)  ≤  M_t  ≤  m e^2c / (m e^2c + t)  →  0     for t → ∞

which the paper calls attention degeneration. What is left of the source is measured by its mass M_t, and by
the sensitivity ‖∂o_t/∂X‖_F of an output o_t to the source's embeddings X.

`PartialAttentionLM` (PALM) adds to every layer an attention whose keys are source states only:

    h ← h + attention(norm(h));   h ← h + PA(norm(h), norm(h)_{1…m});   h ← h + mlp(norm(h))

with a source that sees itself both ways, positions that start anew at the target, and an embedding that
tells source from target.

Fu et al., "Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder",
arXiv 2304.04052 (paper 100). The bounds on M_t are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from minattn import nn
from minattn.attention import AppendCache, KVCache, causal, prefix
from minattn.attention.masks import MaskMod, whole
from minattn.autograd import Tensor, cat, grad
from minattn.autograd.engine import Array, Operand, raw

from .block import Block, make_norm
from .config import Config
from .decoder_only import check_positions, check_weight, weighted_loss
from .embed import Embed, check_ids, init_gpt2

PAPERS = (100,)

__all__ = ["PartialAttentionLM", "PartialBlock", "naive_partial_attention", "naive_source_sensitivity",
           "source_attention_mass", "source_mass_bounds", "source_sensitivity"]

PairOfCaches = tuple[KVCache, KVCache]


# ---- naive forms


def naive_partial_attention(source: Sequence[int], ids: Sequence[int], state: Mapping[str, Array], heads: int,
                            bidirectional: bool = True, restart: bool = True) -> np.ndarray:
    """Logits (N, V) of a `PartialAttentionLM` on one pair of sequences, one query after the other, float64.

    Pre-norm with layer norms, GELU and learned positions; `state` holds the weights under the names of
    ``PartialAttentionLM.state_dict()``.
    """
    w = {name: np.asarray(value, np.float64) for name, value in state.items()}
    m, N = len(source), len(source) + len(ids)

    def norm(x, name):
        return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)

    def read(rows, i, keys, name):
        """What query i gets from the rows whose numbers are `keys`."""
        q = np.split(linear(rows[i], f"{name}.q_proj"), heads)
        k = [np.split(linear(rows[j], f"{name}.k_proj"), heads) for j in keys]
        v = [np.split(linear(rows[j], f"{name}.v_proj"), heads) for j in keys]
        mixed = []
        for h in range(heads):
            e = [math.exp(q[h] @ k[j][h] / math.sqrt(len(q[h]))) for j in range(len(keys))]
            mixed.append(sum(e[j] * v[j][h] for j in range(len(keys))) / math.fsum(e))
        return linear(np.concatenate(mixed), f"{name}.out_proj")

    def visible(i, last):
        """Keys before `last` that query i sees: a two-sided source sees all of itself."""
        return [j for j in range(last) if j <= i or (bidirectional and i < m and j < m)]

    x = []
    for i, token in enumerate([*source, *ids]):
        position = i - m if restart and i >= m else i
        x.append(w["embed.token.weight"][token] + w["embed.position.weight"][position]
                 + w["segment.weight"][int(i >= m)])
    for n in range(len([name for name in w if name.endswith("norm1.weight")])):
        at = f"blocks.{n}"
        rows = [norm(row, f"{at}.norm1") for row in x]
        x = [x[i] + read(rows, i, visible(i, N), f"{at}.attn") for i in range(N)]
        rows = [norm(row, f"{at}.norm_cross") for row in x]
        x = [x[i] + read(rows, i, visible(i, m), f"{at}.cross") for i in range(N)]
        for i in range(N):
            up = linear(norm(x[i], f"{at}.norm2"), f"{at}.mlp.up")
            gelu = np.array([t * (1 + math.erf(t / math.sqrt(2))) / 2 for t in up])
            x[i] = x[i] + linear(gelu, f"{at}.mlp.down")
    return np.array([w["head.weight"] @ norm(row, "norm") for row in x[m:]])


def naive_source_sensitivity(f: Callable[[Array], Array], x: Array, step: int, eps: float = 1e-5) -> float:
    """‖∂f(x)_step/∂x‖_F by moving one number of x (m, D) at a time; f maps (1, m, D) to (1, n, E)."""
    squares = []
    for place in np.ndindex(*x.shape):
        ahead, behind = np.array(x), np.array(x)
        ahead[place] += eps
        behind[place] -= eps
        slope = (f(ahead[None])[0, step] - f(behind[None])[0, step]) / (2 * eps)
        squares += [float(s) ** 2 for s in slope]
    return math.sqrt(math.fsum(squares))


# ---- measures


def source_attention_mass(weights: Operand, m: int, *, skip: int = 0) -> Operand:
    """M_t = Σ_j a_tj over the source keys skip ≤ j < m.

    Parameters
    ----------
    weights : (…, N, M)
        Attention weights, rows are queries; the first m keys are the source.
    m : int
        Length of the source; 0 gives mass 0.
    skip : int
        First keys that do not count. A trained model parks much of its weight on its first token, whatever
        that token is (an attention sink): ``skip=1`` leaves it out.

    Returns
    -------
    (…, N)

    Raises
    ------
    ValueError
        If there are fewer than m keys, or `skip` is not between 0 and m.

    References
    ----------
    Fu et al., arXiv 2304.04052; sinks: Xiao et al., arXiv 2309.17453.
    """
    shape = np.shape(raw(weights))
    if len(shape) < 2 or whole("m", m, 0) > shape[-1]:
        raise ValueError(f"weights: expected shape (…, N, M) with M ≥ m={m} keys, got {shape}")
    if whole("skip", skip, 0) > m:
        raise ValueError(f"skip: expected at most m={m} keys, got {skip}")
    return weights[..., skip:m].sum(-1)


def source_mass_bounds(m: int, t: Array, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on the mass M_t of m source keys beside t target keys, if all logits lie in [−c, c].

    m e^−2c / (m e^−2c + t) ≤ M_t ≤ m e^2c / (m e^2c + t); both 0 where there is no source.

    Parameters
    ----------
    m : int
        Number of source keys.
    t : array of numbers ≥ 0
        Number of target keys that are visible.
    c : float
        Largest absolute logit.

    Returns
    -------
    (lower, upper)
        In the shape of t.

    Raises
    ------
    ValueError
        If m, t or c is negative.

    References
    ----------
    Derived here for Fu et al., arXiv 2304.04052: each exp of a logit lies in [e^−c, e^c].
    """
    t = np.asarray(t, np.float64)
    if not (t >= 0).all():
        raise ValueError("t: expected numbers of target keys of at least 0")
    if not (math.isfinite(c) and c >= 0):
        raise ValueError(f"c: expected a finite bound of at least 0, got {c}")
    if whole("m", m, 0) == 0:
        return np.zeros(t.shape), np.zeros(t.shape)
    return 1 / (1 + t / m * math.exp(2 * c)), 1 / (1 + t / m * math.exp(-2 * c))


def source_sensitivity(f: Callable[[Tensor], Tensor], x: Array, steps: Sequence[int]) -> np.ndarray:
    """‖∂o_t/∂X‖_F of outputs o_t = f(X)_t for each t in `steps`: all entries of the Jacobian, exactly.

    One row of the Jacobian takes one backward pass; here the E rows of an output are the E entries of a
    batch that repeats X, so that one pass finds them all.

    Parameters
    ----------
    f : callable
        Maps embeddings (R, m, D) of R sources to outputs (R, n, E), each row from its own source.
    x : array (m, D)
        Embeddings X of one source.
    steps : sequence of int
        Indices t of the outputs, 0 ≤ t < n.

    Returns
    -------
    array (len(steps),)

    Raises
    ------
    ValueError
        If x is not (m, D), f does not depend on it, or a step is beyond the outputs.

    References
    ----------
    Fu et al., arXiv 2304.04052 (sensitivity of the attention output to the source).
    """
    x = np.asarray(raw(x))
    if x.ndim != 2:
        raise ValueError(f"x: expected shape (m, D), got {x.shape}")
    n, E = f(Tensor(x[None])).shape[1:]
    if not all(0 <= t < n for t in steps):
        raise ValueError(f"steps: expected outputs from 0 to {n - 1}, got {list(steps)}")
    source = Tensor(np.repeat(x[None], E, 0), requires_grad=True)
    out = f(source)
    if not out.requires_grad:
        raise ValueError("f: its output does not depend on the source")
    found = []
    for t in steps:
        cotangent = np.zeros(out.shape, out.dtype)
        cotangent[np.arange(E), t, np.arange(E)] = 1
        (jacobian,) = grad(out, source, cotangent, retain_graph=True)
        found.append(math.sqrt(float((raw(jacobian) ** 2).sum())))
    return np.array(found)


# ---- the model


class PartialBlock(Block):
    """A block with partial attention: all positions read the source states of this layer once more.

    Parameters
    ----------
    config : Config
    rng : numpy.random.Generator
        Source of the initial weights and of dropout.
    """

    def __init__(self, config: Config, *, rng: np.random.Generator) -> None:
        super().__init__(config, cross=True, rng=rng)

    def forward(self, x: Operand, *, source: int, mask_mod: MaskMod,  # type: ignore[override]
                partial_mask: MaskMod | None = None, caches: PairOfCaches | None = None) -> Operand:
        """x (B, N, D) whose first `source` rows are the source → (B, N, D).

        With `caches`, one of keys of all positions and one of source keys, later calls hand in target rows
        alone, and the partial attention reads the keys that its cache kept from the first.
        """
        own, of_source = (None, None) if caches is None else caches
        x = self.hook_resid_pre(x)
        x = self._add(x, self.norm1, lambda h: self.attn(h, mask_mod=mask_mod, cache=own))
        x = self._add(x, self.norm_cross, lambda h: self.cross(h, h[:, :source], mask_mod=partial_mask,
                                                               cache=of_source))
        x = self.hook_resid_mid(x)
        return self.hook_resid_post(self._add(x, self.norm2, self.mlp))


class PartialAttentionLM(nn.Module):
    """Decoder-only model with an attention to its source alone in every layer (PALM).

    Parameters
    ----------
    config : Config
        Positions added to the embeddings: "learned", "sinusoidal" or "none".
    bidirectional : bool
        Whether source positions see the whole source; otherwise those up to their own.
    restart : bool
        Whether positions start anew at the target; otherwise they go on after the source.
    source_loss : float
        λ ≥ 0, the weight of a source token in the loss. With a `bidirectional` source a state sees the
        token that it is to predict, and only has to copy it.
    rng : numpy.random.Generator

    Attributes
    ----------
    segment : Embedding (2, D)
        Added to every token: row 0 in the source, row 1 in the target. Zero, with zeros in
        ``blocks.*.cross.out_proj`` and both switches off, it leaves a `GPT`.

    Raises
    ------
    ValueError
        If positions live inside the attention, or λ is negative.

    References
    ----------
    Fu et al., arXiv 2304.04052.

    Examples
    --------
    >>> model = PartialAttentionLM(Config(vocab=9, context=12, layers=2, heads=2, d_model=8),
    ...                            rng=np.random.default_rng(0))
    >>> model(np.zeros((3, 5), int), np.zeros((3, 4), int)).shape
    (3, 4, 9)
    """

    def __init__(self, config: Config, *, bidirectional: bool = True, restart: bool = True,
                 source_loss: float = 0.0, rng: np.random.Generator) -> None:
        check_positions(config)
        self.config, self.source_loss = config, check_weight(source_loss)
        self.bidirectional, self.restart = bidirectional, restart
        self.embed = Embed(config, rng=rng)
        self.segment = nn.Embedding(2, config.d_model, rng=rng)
        self.blocks = nn.ModuleList(PartialBlock(config, rng=rng) for _ in range(config.layers))
        if config.pre_norm:
            self.norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab, bias=False, rng=rng)
        if config.tied:
            self.head.weight = self.embed.token.weight
        init_gpt2(self, config.layers, rng)

    def embedded(self, source: Array, ids: Array, seen: int = 0) -> Operand:
        """Token + position + segment of source and target; of the target alone if some was `seen`."""
        start = seen if self.restart else seen + check_ids(source).shape[1]
        target = self.embed(ids, start) + self.segment(np.ones(ids.shape, int))
        if seen:
            return target
        return cat([self.embed(source) + self.segment(np.zeros(source.shape, int)), target], 1)

    def hidden(self, x: Operand, m: int, caches: Sequence[PairOfCaches] | None = None) -> Operand:
        """Embedded source (m rows) and target (B, N, D) → states (B, N, D) after the last block and norm."""
        mask = prefix(m) if self.bidirectional else causal
        later = caches is not None and caches[0][0].length > 0  # then all rows are target, and see all of it
        partial = None if self.bidirectional or later else causal
        for n, block in enumerate(self.blocks):
            x = block(x, source=m, mask_mod=mask, partial_mask=partial, caches=caches and caches[n])
        return self.norm(x) if self.config.pre_norm else x

    def forward(self, source: Array, ids: Array, caches: Sequence[PairOfCaches] | None = None) -> Operand:
        """Source ids (B, M), target ids (B, N), the separator first → logits (B, N, V) of the next token.

        With caches (see `new_caches`) the first call reads the source, and `ids` of later ones continue the
        target.
        """
        source, ids = check_ids(source), check_ids(ids)
        seen = max(0, caches[0][0].length - source.shape[1]) if caches else 0
        h = self.hidden(self.embedded(source, ids, seen), source.shape[1], caches)
        return self.head(h[:, -ids.shape[1]:])

    def loss(self, source: Array, ids: Array, targets: Array, label_smoothing: float = 0.0) -> Tensor:
        """−(Σ log p(target) + λ Σ_{j≥2} log p(s_j)) over the weight of all tokens scored, in nats a token."""
        m = check_ids(source).shape[1]
        h = self.hidden(self.embedded(source, ids), m)
        return weighted_loss(self.head(h[:, m:]), targets, self.head(h[:, : m - 1]), source[:, 1:],
                             self.source_loss, label_smoothing)

    def new_caches(self) -> list[PairOfCaches]:
        """For each block an empty cache of all positions, and one of its partial attention's source keys."""
        return [(AppendCache(), AppendCache()) for _ in range(self.config.layers)]
