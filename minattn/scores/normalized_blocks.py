"""Blocks that pool positions in six ways: normalised attention and its competitors.

Richter and Wattenhofer, Normalized Attention Without Probability Cage, arXiv 2005.09561 (paper 37).
"""

# Where the parent class has a Linear, these have several modules in a row.
# mypy: disable-error-code="assignment, union-attr"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import MultiHeadAttention
from minattn.autograd import amax, no_grad, reshape, where
from minattn.autograd import sum as total
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import gelu

from .normalized import EPS, normalize_rows

PAPERS = (37,)

__all__ = ["NormalizedAttention", "PoolingBlock", "RowNorm", "isolation_ratio", "pooling_baselines"]


class RowNorm(nn.Module):
    """`normalize_rows` with a learned gain and bias for each head: a normaliser for `MultiHeadAttention`.

    Parameters
    ----------
    n_heads : int
    eps : float

    Attributes
    ----------
    gain, bias : Parameter (H,)
        Ones and zeros at first.
    """

    def __init__(self, n_heads: int, eps: float = EPS) -> None:
        self.gain = nn.Parameter(np.ones(n_heads, np.float32))
        self.bias = nn.Parameter(np.zeros(n_heads, np.float32))
        self.eps = eps

    def forward(self, scores: Operand, dim: int) -> Operand:
        """Scores (B, H, N, M) → weights."""
        shape = (len(self.gain.data), 1, 1)
        return normalize_rows(scores, reshape(self.gain, shape), reshape(self.bias, shape), self.eps, dim)


class NormalizedAttention(MultiHeadAttention):
    """`MultiHeadAttention` with NAP's weights, and LayerNorm and GELU between the heads and W_O.

        output = W_O gelu(LN([head_1 … head_H]))

    Parameters
    ----------
    d_model, n_heads : int
    rng : numpy.random.Generator

    References
    ----------
    Richter and Wattenhofer, arXiv 2005.09561 (paper 37).
    """

    def __init__(self, d_model: int, n_heads: int, *, rng: np.random.Generator) -> None:
        super().__init__(d_model, n_heads, normalizer=RowNorm(n_heads), rng=rng)
        self.out_proj = nn.Sequential(nn.LayerNorm(d_model), nn.Activation("gelu"), self.out_proj)

    def _attend(self, q: Operand, k: Operand, v: Operand, **how: Any) -> Operand:
        return super()._attend(q, k, v, scale=1.0, **how)


def _raw_scores(scores: Operand, dim: int) -> Operand:
    """The scores themselves, over √M; 0 where masked."""
    return where(raw(scores) > -np.inf, scores, 0) / math.sqrt(scores.shape[dim])


class _Pool(nn.Module):
    """The sum or the largest entry over all positions, the same for each query."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def forward(self, x: Operand) -> Operand:
        """x (B, N, D) → (B, 1, D)."""
        return total(x, 1, keepdim=True) if self.kind == "sum" else amax(x, 1, keepdim=True)


KINDS = ("nap", "bert", "mte", "non", "sum", "max")


class PoolingBlock(nn.Module):
    """A block of one of six kinds, which differ in how positions are pooled.

    ``"nap"``   x ← x + LN(W_O gelu(LN(heads))), normalised weights; x ← x + LN(W₂ gelu(LN(W₁ x)))
    ``"mte"``   the same with softmax weights
    ``"non"``   the same with the scores as weights, heads divided by √N in the place of their LN
    ``"bert"``  x ← LN(x + W_O heads), softmax weights;                x ← LN(x + W₂ gelu(W₁ x))
    ``"sum"``, ``"max"``   x ← x + LN(pool of x), no attention; the rest as "nap", with a wider W₁

    Parameters
    ----------
    kind : str
    d_model, n_heads : int
    std : float
        Of the initial weights, which are N(0, std²); biases are 0.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If there is no such kind.

    References
    ----------
    Richter and Wattenhofer, arXiv 2005.09561 (paper 37).
    """

    def __init__(self, kind: str, d_model: int, n_heads: int, *, std: float = 0.02, rng: np.random.Generator
                 ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        self.kind = kind
        pools = kind in ("sum", "max")
        self.pool: Callable[[Operand], Operand] = (
            _Pool(kind) if pools else _attention_of(kind, d_model, n_heads, rng))
        d_mlp = round((12 * d_model + 8) / (2 * d_model + 1) * d_model) if pools else 4 * d_model
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.up, self.down = nn.Linear(d_model, d_mlp, rng=rng), nn.Linear(d_mlp, d_model, rng=rng)
        if kind != "bert":
            self.norm_mlp = nn.LayerNorm(d_mlp)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data = nn.init.normal(layer.weight.shape, std=std, rng=rng)
                layer.bias.data = np.zeros_like(layer.bias.data)

    def forward(self, x: Operand) -> Operand:
        """x (B, N, D) → (B, N, D)."""
        if self.kind == "bert":
            x = self.norm1(self.pool(x) + x)
            return self.norm2(self.down(gelu(self.up(x))) + x)
        x = self.norm1(self.pool(x)) + x
        return self.norm2(self.down(gelu(self.norm_mlp(self.up(x))))) + x


def _attention_of(kind: str, d_model: int, n_heads: int, rng: np.random.Generator) -> MultiHeadAttention:
    """The attention of a block: NAP's, or another one's weights with NAP's LayerNorm and GELU."""
    if kind == "nap":
        return NormalizedAttention(d_model, n_heads, rng=rng)
    attn = MultiHeadAttention(d_model, n_heads, normalizer=_raw_scores if kind == "non" else "softmax",
                              rng=rng)
    if kind != "bert":
        norm = [nn.LayerNorm(d_model)] if kind == "mte" else []
        attn.out_proj = nn.Sequential(*norm, nn.Activation("gelu"), attn.out_proj)
    return attn


def pooling_baselines(d_model: int, n_heads: int, *, std: float = 0.02, rng: np.random.Generator
                      ) -> dict[str, PoolingBlock]:
    """NAP's competitors by name: a `PoolingBlock` of every other kind, with about as many parameters.

    Without W_Q, W_K, W_V and W_O, sum and max pooling make their feed-forward layer wider, about 6 d instead
    of 4 d.

    Parameters
    ----------
    d_model, n_heads : int
    std : float
        Of the initial weights.
    rng : numpy.random.Generator

    References
    ----------
    Richter and Wattenhofer, arXiv 2005.09561 (paper 37).
    """
    return {kind: PoolingBlock(kind, d_model, n_heads, std=std, rng=rng) for kind in KINDS[1:]}


def isolation_ratio(block: PoolingBlock, x: Array, *, raw_heads: bool = False) -> float:
    """‖branch‖ / ‖residual‖ of a block: how much a token hears of the others, beside what it is itself.

    The branch is what the pooling puts out: W_O's output for the kinds with attention, and LN of the pooled
    tokens for the others, whose pool has no matrix. Where it falls with N, long sequences begin as isolated
    tokens.

    Parameters
    ----------
    block : PoolingBlock
    x : (B, N, D)
    raw_heads : bool
        Take the heads' output as it is, before LN, GELU and W_O, in the place of the branch.

    References
    ----------
    Richter and Wattenhofer, arXiv 2005.09561 (paper 37).
    """
    with no_grad():
        if block.kind in ("sum", "max"):
            pooled = block.pool(x)
            branch = raw(pooled if raw_heads else block.norm1(pooled)) + np.zeros_like(x)
        elif raw_heads:
            branch = block.run_with_cache(x, names="pool.hook_heads")[1]["pool.hook_heads"]
        else:
            branch = raw(block.pool(x))
    return float(np.linalg.norm(branch) / np.linalg.norm(x))
