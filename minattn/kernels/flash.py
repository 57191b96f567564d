"""Attention in tiles: the N × M scores never exist at once, forward or backward, and tiles that a mask hides
are not computed.

                 keys →                     for each tile of queries:
    queries  ┌────┬────┬────┬────┐              m = −∞, l = 0, o = 0
       ↓     │ ▞  │    │    │    │              for each tile of keys that one of them sees:
             ├────┼────┼────┼────┤                  S = scale · Q Kᵀ, changed by score_mod, −∞ where hidden
             │ ██ │ ▞  │    │    │                  m' = max(m, row maxima of S)
             ├────┼────┼────┼────┤                  P = exp(S − m')
             │ ██ │ ██ │ ▞  │    │                  l = l exp(m − m') + row sums of P
             └────┴────┴────┴────┘                  o = o exp(m − m') + P V,   m = m'
    causal: ██ all seen, ▞ in part              out = o / l,   lse = m + ln l

Backward computes each tile of P again, from S and lse = ln Σ_j exp s_ij:

    P = exp(S − lse),  dP = dO Vᵀ,  dS = P ∘ (dP − δ),  δ_i = Σ_d dO_id O_id
    dV += Pᵀ dO,  dQ += scale · dS K,  dK += scale · dSᵀ Q

Milakov and Gimelshein 2018 (arXiv 1805.02867) for the running maximum, Dao et al. 2022 (arXiv 2205.14135) for
the tiles. The loops are compiled (`cpu/flash.py`); `dense_attention` holds all scores at once: it serves
where no compiler does, and gives derivatives of derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minattn.autograd import logsumexp, namespace, primitive, relu, reshape, sigmoid, softmax, where
from minattn.autograd.engine import Array, Operand, Tensor, is_grad_enabled, raw

from .blocks import BlockMask
from .dispatch import compiled, have_blas, launch, recorded

__all__ = ["BlockMask", "flash_attention"]

ScoreMod = Callable[[Any, Any, Any, Any, Any], Any]
MaskMod = Callable[[Any, Any, Any, Any], Any]

WEIGHTS = {"softmax": 0, "sigmoid": 1, "relu": 2}
ROWS, COLUMNS = 64, 256
"""Queries and keys of a tile."""
EVERY_KEY, NO_TABLE, NO_TILES = (np.empty(shape, dtype) for shape, dtype in (
    ((1, 1, 2, 0), np.int32), ((0, 0, 0, 0), np.int32), ((0, 1, 1), np.bool_)))
"""What the loops get in the place of a mask."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is done to the scores; `offset` is the position of query 0 among the keys."""

    scale: float
    weight: str = "softmax"
    causal: bool = False
    offset: int = 0
    blocks: BlockMask | None = None
    score_mod: ScoreMod | None = None


def flash_attention(q: Operand, k: Operand, v: Operand, *, causal: bool = False, offset: int = 0,
                    score_mod: ScoreMod | None = None, mask_mod: MaskMod | None = None,
                    block_mask: BlockMask | None = None, weight: str = "softmax", scale: float | None = None,
                    return_lse: bool = False) -> Any:
    """weight(score_mod(scale · Q Kᵀ), masked) V, in tiles.

    Parameters
    ----------
    q : (B, H, N, D)
    k, v : (B, Hk, M, D) and (B, Hk, M, Dv)
        Hk divides H, and query head h reads key head h // (H / Hk). Arrays or Tensors, of one dtype; views
        whose rows are contiguous are used as they are.
    causal : bool
        Query i sees key j if j ≤ i + `offset`.
    score_mod : callable, optional
        ``score_mod(score, b, h, i, j) -> score`` in plain arithmetic and functions of NumPy. It is compiled
        into the loop where Numba can (its captured arrays are read once), else all scores are held at once;
        so they are if it captures Tensors, which then get gradients.
    mask_mod : callable, optional
        ``mask_mod(b, h, i, j) -> bool``, True where visible; `block_mask` is the same, made once.
    weight : {"softmax", "sigmoid", "relu"}
        What makes weights of scores; the latter two take each score on its own.
    scale : float, optional
        1/√D by default.
    return_lse : bool
        Also return ln Σ_j exp s_ij, (B, H, N): −∞ where no key is visible.

    Returns
    -------
    out : (B, H, N, Dv), or (out, lse)
        Rows that see no key are zeros, with no gradient.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit, both kinds of mask are given, the weight is unknown or has no lse.
    """
    _check(q, k, v, weight, return_lse, mask_mod, block_mask)
    (B, H, N, D), M = q.shape, k.shape[2]
    if mask_mod is not None:
        block_mask = BlockMask(_strips(mask_mod, B, H, N, M), N, M)
    if block_mask is not None:
        _check_blocks(block_mask, B, H, N, M)
    plan = Plan(1 / math.sqrt(D) if scale is None else scale, weight, causal, offset, block_mask, score_mod)
    return attend(q, k, v, plan, return_lse)


def attend(q: Operand, k: Operand, v: Operand, plan: Plan, return_lse: bool = False) -> Any:
    """`flash_attention` of checked arguments."""
    if not tiles_serve(q, k, v, plan):
        found = dense_attention(q, k, v, plan, return_lse)
    elif not _recording(q, k, v):
        found = _forward(raw(q), raw(k), raw(v), plan)
    else:
        found = tiled_attention(q, k, v, plan=plan), (tiled_lse(q, k, plan=plan) if return_lse else None)
    if any(isinstance(x, Tensor) for x in (q, k, v)):
        found = tuple(x if x is None or isinstance(x, Tensor) else Tensor(x) for x in found)
    return found if return_lse else found[0]


def _recording(*xs: Operand) -> bool:
    return is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in xs)


def tiles_serve(q: Operand, k: Operand, v: Operand, plan: Plan) -> bool:
    """Whether the compiled loops serve: NumPy's floats, something to multiply, a score_mod for Numba."""
    arrays = raw(q), raw(k), raw(v)
    if not all(x.shape[-1] for x in arrays) or not compiled(*arrays) or not have_blas():
        return False
    if plan.score_mod is None:
        return True
    from .cpu.mods import tile_function

    needed = (False, True) if _recording(q, k, v) else (False,)
    return all(tile_function(plan.score_mod, arrays[0].dtype, gradient) is not None for gradient in needed)


# --- all scores at once -----------------------------------------------------------------------------------

def dense_attention(q: Operand, k: Operand, v: Operand, plan: Plan, return_lse: bool = True) -> tuple:
    """Output and log-sum-exp (None if not asked for) from the scores of all pairs."""
    scores = dense_scores(q, k, plan)
    by_name = {"softmax": lambda s: softmax(s, -1), "sigmoid": sigmoid, "relu": relu}
    weights = by_name[plan.weight](scores) if scores.shape[3] else scores
    out = reshape(reshape(weights, _grouped(weights, k)) @ v, (*scores.shape[:3], v.shape[3]))
    return out, (_dense_lse(scores) if return_lse else None)


def _dense_lse(scores: Operand) -> Operand:
    """ln Σ_j exp s_ij; of no key at all −∞, with a gradient of zeros."""
    if scores.shape[3]:
        return logsumexp(scores, -1)
    return scores.sum(-1) + namespace(scores).full((1, 1, 1), -np.inf, dtype=scores.dtype)


def dense_scores(q: Operand, k: Operand, plan: Plan) -> Operand:
    """Scores (B, H, N, M), modified, −∞ where hidden."""
    (B, H, N, _), M = q.shape, k.shape[2]
    xp = namespace(q)
    scores = reshape(reshape(q * plan.scale, _grouped(q, k)) @ k.mT, (B, H, N, M))
    b, h, i, j = xp.ogrid[:B, :H, :N, :M]
    if plan.score_mod is not None:
        scores = plan.score_mod(scores, b, h, i, j)
    if plan.causal:
        scores = where(j <= i + plan.offset, scores, -np.inf)
    if plan.blocks is not None:
        scores = where(xp.asarray(plan.blocks.array()), scores, -np.inf)
    return scores


def _grouped(x: Operand, k: Operand) -> tuple[int, int, int, int]:
    """(B, Hk, rows, features): the query heads that share a key head, one after another."""
    B, H, N, D = x.shape
    return B, k.shape[1], H // k.shape[1] * N, D


# --- in tiles ---------------------------------------------------------------------------------------------

def _forward(q: Array, k: Array, v: Array, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    from .cpu import flash

    q, k, v = map(_with_rows, (q, k, v))
    out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    lse = np.empty(q.shape[:3], q.dtype)
    launch(flash.run, flash.forward, q, k, v, *_numbers(plan, q, False), out, lse)
    return out, lse


def _tiled_attention(q: Array, k: Array, v: Array, /, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    return _forward(q, k, v, plan)

def _d_tiled_attention(g, out, q, k, v, plan, saved):
    if saved is None:
        return recorded(lambda *x: dense_attention(*x, plan, False)[0], g, q, k, v)
    return _backward(q, k, v, plan, g, saved, (g * out).sum(-1))


def _tiled_lse(q: Array, k: Array, /, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    lse = _forward(q, k, k[..., :1], plan)[1]
    return lse, lse

def _d_tiled_lse(g, out, q, k, plan, saved):
    if saved is None:
        return recorded(lambda *x: dense_attention(*x, k, plan)[1], g, q, k)
    # ∂ lse_i / ∂ s_ij = P_ij: no cotangent of the output, and −g in the place of δ.
    nothing = np.zeros((*q.shape[:3], 1), q.dtype)
    return _backward(q, k, k[..., :1], plan, nothing, saved, -g)[:2]


tiled_attention = primitive(_tiled_attention, _d_tiled_attention, saves=True)
tiled_lse = primitive(_tiled_lse, _d_tiled_lse, saves=True)


def _backward(q: Array, k: Array, v: Array, plan: Plan, g: Array, lse: Array, delta: Array) -> tuple:
    from .cpu import flash

    q, k, v, g = map(_with_rows, (q, k, v, g))
    dq, dk, dv = (np.zeros(x.shape, x.dtype) for x in (q, k, v))
    launch(flash.run, flash.backward, q, k, v, g, lse, np.ascontiguousarray(delta), *_numbers(plan, q, True),
           dq, dk, dv)
    return dq, dk, dv


def _numbers(plan: Plan, q: Array, gradient: bool) -> tuple:
    """The plan as the compiled loops take it."""
    dtype, rows, columns, address = q.dtype, ROWS, COLUMNS, 0
    runs, table, partial = EVERY_KEY, NO_TABLE, NO_TILES
    if plan.blocks is not None and plan.blocks.runs is not None:
        runs = plan.blocks.runs
    elif plan.blocks is not None:
        table, partial, columns = plan.blocks.table, plan.blocks.partial.swapaxes(1, 2), plan.blocks.tile
        rows = ROWS if columns % ROWS == 0 else columns
    if plan.score_mod is not None:
        from .cpu.mods import tile_function

        address = tile_function(plan.score_mod, dtype, gradient).address
    return (dtype.type(plan.scale), plan.causal, plan.offset, runs, table, partial, address,
            WEIGHTS[plan.weight], rows, columns)


def _with_rows(x: Array) -> Array:
    """x, or a copy of it whose rows BLAS can read: contiguous, one after another; and open to writing, as
    Numba expects of the arrays that it has compiled for."""
    step, size = x.strides[2], x.itemsize
    fit = x.flags.behaved and (x.shape[3] == 1 or x.strides[3] == size) and (
        x.shape[2] == 1 or (step >= x.shape[3] * size and step % size == 0))
    return x if fit else x.copy()


def _strips(mask_mod: MaskMod, B: int, H: int, N: int, M: int) -> Callable[[int, int], Array]:
    b, h, i, j = np.ogrid[:B, :H, :N, :M]

    def visible(start: int, stop: int) -> Array:
        seen = np.asarray(mask_mod(b, h, i[:, :, start:stop], j))
        if seen.dtype != bool:
            raise TypeError(f"mask_mod: expected booleans, True where visible, got dtype {seen.dtype}")
        return seen.reshape((1,) * (4 - seen.ndim) + seen.shape)

    return visible


def _check(q: Operand, k: Operand, v: Operand, weight: str, return_lse: bool, mask_mod: MaskMod | None,
           block_mask: BlockMask | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        shape = np.shape(raw(x))
        if len(shape) != 4 or x.dtype.kind != "f":
            raise ValueError(f"{name}: expected floats with 4 axes (batch, heads, positions, features), "
                             f"got {x.dtype} of shape {shape}")
    (B, H, _, D), Hk = q.shape, k.shape[1]
    if k.shape[0] != B or k.shape[3] != D or Hk == 0 or H % Hk:
        raise ValueError(f"k: expected batch {B}, heads that divide {H}, and {D} features, got {k.shape}")
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(f"k, v: expected the dtype of q, {q.dtype}, got {k.dtype} and {v.dtype}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v: expected shape {k.shape[:3]} before the features, as in k, got {v.shape}")
    if weight not in WEIGHTS:
        raise ValueError(f"weight: expected one of {', '.join(WEIGHTS)}, got {weight!r}")
    if return_lse and weight != "softmax":
        raise ValueError(f"return_lse: the softmax alone has a log-sum-exp, got weight={weight!r}")
    if mask_mod is not None and block_mask is not None:
        raise ValueError("block_mask: expected one kind of mask, got mask_mod as well")


def _check_blocks(blocks: BlockMask, B: int, H: int, N: int, M: int) -> None:
    """The mask must be of so many queries and keys, and of one batch and head or as many as there are."""
    b, h = blocks.table.shape[:2]
    if (blocks.N, blocks.M) != (N, M) or b not in (1, B) or h not in (1, H):
        raise ValueError(f"block_mask: expected a mask that broadcasts to {(B, H, N, M)}, "
                         f"got {(b, h, blocks.N, blocks.M)}")
