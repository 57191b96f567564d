"""Losses, with PyTorch's names and reductions; `cross_entropy` and `ctc_loss` come from their own files.

``reduction="none"`` gives one loss for each element (or row), ``"sum"`` their sum, ``"mean"`` their mean.
"""

from __future__ import annotations

import numpy as np

from minattn.autograd import (
    exp,
    gather,
    log,
    matmul,
    mean,
    namespace,
    norm,
    relu,
    softplus,
    sum,
    where,
)
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import cross_entropy

from .ctc import ctc_loss

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "ctc_loss", "info_nce", "kl_div",
           "margin_ranking_loss", "mse_loss", "multi_margin_loss", "triplet_margin_loss"]


def _reduce(loss: Operand, reduction: str) -> Operand:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return sum(loss)
    if reduction == "mean":
        return mean(loss)
    raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')


def _same_shape(**operands: Operand) -> None:
    """Refuse to broadcast: (B,) against (B, 1) would quietly compare everything with everything."""
    (first, x), *others = operands.items()
    for name, y in others:
        if np.shape(raw(y)) != x.shape:
            raise ValueError(f"{name}: expected the shape of {first}, {x.shape}, got {np.shape(raw(y))}")


def mse_loss(input: Operand, target: Operand, *, reduction: str = "mean") -> Operand:
    """Squared difference (x − y)², for two tensors of one shape."""
    _same_shape(input=input, target=target)
    difference = input - target
    return _reduce(difference * difference, reduction)


def binary_cross_entropy_with_logits(logits: Operand, target: Operand, *, pos_weight: Operand | None = None,
                                     reduction: str = "mean") -> Operand:
    """−(w y ln σ(x) + (1 − y) ln(1 − σ(x))) for logits x and targets y in [0, 1], of one shape.

    With −ln σ(x) = softplus(−x) nothing overflows or cancels: a sure right answer costs e^−|x|, not 0.

    Parameters
    ----------
    pos_weight : broadcastable to logits, optional
        w, how much a positive counts; by default 1.
    """
    _same_shape(logits=logits, target=target)
    y = raw(target)
    if y.size and not (y.min() >= 0 and y.max() <= 1):
        raise ValueError(f"target: expected values in [0, 1], got [{y.min()}, {y.max()}]")
    positive = target if pos_weight is None else pos_weight * target
    return _reduce(positive * softplus(-logits) + (1 - target) * softplus(logits), reduction)


def kl_div(input: Operand, target: Operand, *, log_target: bool = False, reduction: str = "mean") -> Operand:
    """KL(p ‖ q) = Σ p (ln p − ln q) with `input` ln q and `target` p, or ln p if `log_target`; 0 ln 0 = 0.

    Parameters
    ----------
    reduction : {"mean", "batchmean", "sum", "none"}
        As in PyTorch, "mean" divides by the number of entries. The divergence of a row on average is
        "batchmean", which divides by the length of the first axis.
    """
    _same_shape(input=input, target=target)
    if log_target:
        loss = exp(target) * (target - input)
    else:
        p = raw(target)
        if p.size and not p.min() >= 0:
            raise ValueError(f"target: expected probabilities, got {p.min()}; for logarithms set log_target")
        loss = target * (log(where(p > 0, target, 1)) - input)
    return sum(loss) / input.shape[0] if reduction == "batchmean" else _reduce(loss, reduction)


def info_nce(a: Operand, b: Operand, *, temperature: float = 0.07) -> Operand:
    """Contrastive loss of pairs: row i of `a` should be nearest to row i of `b`, and vice versa.

    With rows scaled to length 1 and S = a bᵀ / τ (B, B), the mean of the cross-entropies of the rows and of
    the columns of S with the diagonal as target (InfoNCE in both directions, as in CLIP).

    Parameters
    ----------
    a, b : (B, D)
    temperature : float
        τ > 0.
    """
    if a.ndim != 2:
        raise ValueError(f"a: expected (B, D), got shape {a.shape}")
    _same_shape(a=a, b=b)
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    a, b = a / norm(a, dim=1, keepdim=True), b / norm(b, dim=1, keepdim=True)
    similarity = matmul(a, b.mT) / temperature
    diagonal = np.arange(len(raw(a)))
    return (cross_entropy(similarity, diagonal) + cross_entropy(similarity.mT, diagonal)) / 2


def triplet_margin_loss(anchor: Operand, positive: Operand, negative: Operand, *, margin: float = 1.0,
                        p: float = 2, eps: float = 1e-6, reduction: str = "mean") -> Operand:
    """max(0, d(anchor, positive) − d(anchor, negative) + margin), d(x, y) = ‖x − y + ε‖ₚ of the last axis."""
    _same_shape(anchor=anchor, positive=positive, negative=negative)
    near, far = (norm(anchor - x + eps, p, dim=-1) for x in (positive, negative))
    return _reduce(relu(near - far + margin), reduction)


def margin_ranking_loss(input1: Operand, input2: Operand, target: Operand, *, margin: float = 0.0,
                        reduction: str = "mean") -> Operand:
    """max(0, −y (x₁ − x₂) + margin): y = 1 wants x₁ above x₂ by the margin, y = −1 below."""
    _same_shape(input1=input1, input2=input2, target=target)
    y = raw(target)
    if not ((y == 1) | (y == -1)).all():
        raise ValueError("target: expected every entry to be 1 or −1")
    return _reduce(relu(margin - target * (input1 - input2)), reduction)


def multi_margin_loss(input: Operand, target: Array, *, p: int = 1, margin: float = 1.0,
                      reduction: str = "mean") -> Operand:
    """Σ over i ≠ y of max(0, margin − x_y + x_i)ᵖ / C, for scores x (B, C) and classes y (B,)."""
    if input.ndim != 2:
        raise ValueError(f"input: expected scores (B, C), got shape {input.shape}")
    if p not in (1, 2):
        raise ValueError(f"p: expected 1 or 2, got {p}")
    B, C = input.shape
    y = np.asarray(raw(target)) if not hasattr(raw(target), "dtype") else raw(target)
    if y.shape != (B,) or y.dtype.kind not in "iu" or (B and not (y.min() >= 0 and y.max() < C)):
        raise ValueError(f"target: expected {B} integers in [0, {C}), got {y.dtype} of shape {y.shape}: {y}")
    own = gather(input, 1, y[:, None])
    hinge = relu(margin - own + input) ** p
    others = y[:, None] != namespace(y).arange(C)
    return _reduce(sum(where(others, hinge, 0), 1) / C, reduction)
