"""Attention with fewer projections: a product of two matrices is one matrix.

Standard attention multiplies by four matrices. In a single head two pairs of them follow one another,

    scores  (X W_Q)(X W_K)ᵀ = X (W_Q W_Kᵀ) Xᵀ            output  A (X W_V) W_O = A X (W_V W_O)

so one matrix of each pair is enough to express the same function:

    standard    softmax(X W_Q (X W_K)ᵀ / √d) (X W_V) W_O        4 d²
    optimised   softmax(X W_Q (X W_K)ᵀ / √d)  X      W_O        3 d²
    efficient   softmax(X W_Q  Xᵀ      / √d)  X      W_O        2 d²
    super       softmax(X W_Q  Xᵀ      / √d) (W_A X) W_O        2 d² + N²

W_A (N, N) is new: it mixes positions before attention does. With h heads, head m reads the m-th of h equal
slices of the columns of X in place of a projection of its own. Then a matrix is not merged but missing.

Hosseini and Hosseini, You Need to Pay Better Attention, arXiv 2403.01643 (paper 15).
"""

# Where the parent class has a Linear, these have the identity or another module.
# mypy: disable-error-code="assignment, union-attr, arg-type"

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minattn.attention import MultiHeadAttention
from minattn.attention.masks import MaskMod, whole
from minattn.attention.normalizers import Normalizer
from minattn.attention.position import PositionEncoding
from minattn.autograd import tril
from minattn.autograd.engine import Array, Operand
from minattn.nn import HookPoint, Module, Parameter

PAPERS = (15,)

__all__ = ["Alignment", "EfficientAttention", "OptimisedAttention", "SuperAttention", "attention_flop_count",
           "attention_parameter_count", "merged", "naive_pay_better"]


# ---- the naive form: all five matrices, one number at a time


def naive_pay_better(x: Array, W_Q: Array, W_K: Array, W_V: Array, W_A: Array, W_O: Array, heads: int = 1,
                     mask_mod: MaskMod | None = None) -> Array:
    """Standard attention of one sequence with values W_A X W_V; a variant hands in identities.

    Parameters
    ----------
    x : (N, D)
        Real or complex, so that derivatives can be taken by complex steps.
    W_Q, W_K, W_V, W_O : (D, D)
        As the weights of linear layers, output first.
    W_A : (N, N)
    """
    N, D = x.shape
    E = D // heads

    def linear(W, row):
        return [sum(W[c, d] * row[d] for d in range(D)) for c in range(D)]

    q, k, v = ([linear(W, row) for row in x] for W in (W_Q, W_K, W_V))
    v = [[sum(W_A[i, j] * v[j][d] for j in range(N)) for d in range(D)] for i in range(N)]
    out = np.zeros((N, D), np.result_type(x, W_Q, W_K, W_V, W_A, W_O))
    for i in range(N):
        side_by_side = []
        for h in range(heads):
            part = range(h * E, (h + 1) * E)
            seen = [j for j in range(N) if mask_mod is None or mask_mod(0, h, i, j)]
            power = {j: np.exp(sum(q[i][d] * k[j][d] for d in part) / math.sqrt(E)) for j in seen}
            total = sum(power.values())
            side_by_side += [sum((power[j] / total * v[j][d] for j in seen), 0.0) for d in part]
        out[i] = linear(W_O, side_by_side)
    return out


# ---- the fast form: multi-head attention, some of whose projections are the identity


class OptimisedAttention(MultiHeadAttention):
    """`MultiHeadAttention` without W_V: head m weighs the m-th slice of the input's columns.

        O = [softmax(Q_m K_mᵀ / √(d/h)) X_m]_m W_O

    Parameters
    ----------
    d_model, n_heads : int
        d and h; h divides d.
    bias, position, normalizer, dropout, rng
        As in `MultiHeadAttention`. For the same `rng` the weights that are left have the same initial values.

    References
    ----------
    Hosseini and Hosseini, arXiv 2403.01643 (paper 15).
    """

    def __init__(self, d_model: int, n_heads: int, *, bias: bool = True,
                 position: PositionEncoding | None = None, normalizer: str | Normalizer = "softmax",
                 dropout: float = 0.0, rng: np.random.Generator) -> None:
        super().__init__(d_model, n_heads, bias=bias, position=position, normalizer=normalizer,
                         dropout=dropout, rng=rng)
        self.v_proj = HookPoint()  # the identity


class EfficientAttention(OptimisedAttention):
    """`OptimisedAttention` without W_K as well: the keys are the input too.

        O = softmax(X W_Q Xᵀ / √d) X W_O

    Parameters
    ----------
    d_model : int
    n_heads : int
        1 in the paper; with more, head m reads the m-th slice of the columns as keys and as values.
    **how
        As in `OptimisedAttention`.

    References
    ----------
    Hosseini and Hosseini, arXiv 2403.01643 (paper 15).
    """

    def __init__(self, d_model: int, n_heads: int = 1, **how: Any) -> None:
        super().__init__(d_model, n_heads, **how)
        self.k_proj = HookPoint()


class Alignment(Module):
    """V ↦ W_A V, positions mixed by a learned matrix, which is the identity at first.

    Parameters
    ----------
    context : int
        N: W_A is (N, N).
    causal : bool
        Whether only the lower triangle counts. Then shorter sequences are served, by the corner of W_A.

    References
    ----------
    Hosseini and Hosseini, arXiv 2403.01643 (paper 15).
    """

    def __init__(self, context: int, causal: bool = False) -> None:
        self.context, self.causal = whole("context", context), causal
        self.weight = Parameter(np.eye(context, dtype=np.float32))

    def forward(self, x: Operand) -> Operand:
        """x (B, N, D) → (B, N, D)."""
        N = x.shape[1]
        if N > self.context or (N < self.context and not self.causal):
            most = "at most " if self.causal else ""
            raise ValueError(f"value: expected {most}{self.context} positions, which W_A mixes, got {N}")
        return (tril(self.weight)[:N, :N] if self.causal else self.weight) @ x


class SuperAttention(EfficientAttention):
    """`EfficientAttention` whose values are mixed along the positions first, alike for all heads.

        O = softmax(X W_Q Xᵀ / √d) (W_A X) W_O

    Parameters
    ----------
    d_model, context : int
        d and N, the length of all sequences.
    n_heads : int
    causal : bool
        Whether W_A is lower triangular. The mask of the weights is still the caller's, as everywhere.
    **how
        As in `OptimisedAttention`.

    Raises
    ------
    ValueError
        If a sequence has another length (with `causal`: a larger one), or there is a cache, in which values
        would lie that later positions have not been mixed into.

    References
    ----------
    Hosseini and Hosseini, arXiv 2403.01643 (paper 15).
    """

    def __init__(self, d_model: int, context: int, n_heads: int = 1, *, causal: bool = False, **how: Any
                 ) -> None:
        super().__init__(d_model, n_heads, **how)
        self.v_proj = Alignment(context, causal)

    def forward(self, query: Operand, key: Operand | None = None, value: Operand | None = None,
                **how: Any) -> Operand:
        """Output (B, N, d_model); see `MultiHeadAttention.forward`."""
        if how.get("cache") is not None:
            raise ValueError("cache: expected None, as values mix all positions, got a cache")
        return super().forward(query, key, value, **how)


def merged(standard: MultiHeadAttention) -> EfficientAttention:
    """The `EfficientAttention` that computes what a single head of standard attention computes.

    With W_Q' = W_Q W_Kᵀ and W_O' = W_V W_O. Of the biases, that of K adds the same to all scores of a query
    and cancels; that of V passes the weights, which sum to one.

    Parameters
    ----------
    standard : MultiHeadAttention
        With one head of d_model features, no position encoding and the softmax.

    Raises
    ------
    ValueError
        If it has several heads, a position encoding or another normaliser: nothing can be merged then.

    References
    ----------
    Hosseini and Hosseini, arXiv 2403.01643 (paper 15).
    """
    if standard.n_heads != 1:
        raise ValueError(f"standard: expected one head, whose matrices can be merged, got {standard.n_heads}")
    if type(standard.position) is not PositionEncoding or standard.normalizer != "softmax":
        raise ValueError("standard: expected no position encoding and the softmax, got "
                         f"{type(standard.position).__name__} and {standard.normalizer!r}")
    D = standard.q_proj.d_in
    bias = standard.q_proj.bias is not None
    twin = EfficientAttention(D, bias=bias, rng=np.random.default_rng(0))
    q, k, v, o = (layer.weight.data for layer in (standard.q_proj, standard.k_proj, standard.v_proj,
                                                  standard.out_proj))
    twin.q_proj.weight.data, twin.out_proj.weight.data = k.T @ q, o @ v
    if bias:
        twin.q_proj.bias.data = k.T @ standard.q_proj.bias.data
        twin.out_proj.bias.data = o @ standard.v_proj.bias.data + standard.out_proj.bias.data
    return twin


# ---- what is saved


_MATRICES = {"standard": 4, "optimised": 3, "efficient": 2, "super": 2}


def attention_parameter_count(kind: str, d_model: int, context: int | None = None, bias: bool = False) -> int:
    """Entries of the weights of one layer: 4 d², 3 d², 2 d², or 2 d² + N², plus d for each bias.

    Parameters
    ----------
    kind : {"standard", "optimised", "efficient", "super"}
    d_model, context : int
        d, and N, which "super" alone needs.
    bias : bool
        Whether each of the matrices with d² entries comes with a bias.

    Raises
    ------
    ValueError
        If there is no such kind, or "super" has no context.

    References
    ----------
    Hosseini and Hosseini, arXiv 2403.01643 (paper 15).
    """
    N = _context(kind, context)
    return _MATRICES[kind] * (d_model * d_model + bias * d_model) + N * N


def attention_flop_count(kind: str, d_model: int, N: int) -> int:
    """Operations of one layer's matrix products on one sequence, a multiplication and an addition being two.

    2 N d² for each projection, 4 N² d for scores and output, and 2 N² d for W_A.

    Parameters
    ----------
    kind : {"standard", "optimised", "efficient", "super"}
    d_model, N : int
    """
    align = 2 * _context(kind, N) * N * d_model
    return 2 * _MATRICES[kind] * N * d_model * d_model + 4 * N * N * d_model + align


def _context(kind: str, context: int | None) -> int:
    """Side of W_A; 0 where there is none."""
    if kind not in _MATRICES:
        raise ValueError(f"kind: expected one of {', '.join(_MATRICES)}, got {kind!r}")
    if kind != "super":
        return 0
    return whole("context", context)
