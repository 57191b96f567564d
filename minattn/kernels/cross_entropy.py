"""Softmax cross-entropy: its derivative, softmax − target, is simpler than that of its parts.

The NumPy form makes a target of C numbers for each position. The compiled one (`cpu/cross_entropy.py`) takes
the class as it is and goes over the logits once forward, for ln Σ exp, and once backward.
"""

from __future__ import annotations

import numpy as np

from minattn.autograd import exp, log_softmax, namespace, one_hot, primitive, reshape, sum
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, launch

SMALL = 50_000
"""Fewer logits are left to NumPy: a toy model should not wait for a compiler."""


def _cross_entropy(logits: Array, /, target: Array) -> tuple[Array, Array]:
    logp = log_softmax(logits, -1)
    counted = namespace(logp).where(target == 0, 0, logp)  # not 0·∞ for a class ruled out by a logit of −∞
    return -(target * counted).sum(-1), logp

def _d_cross_entropy(g, out, logits, target, saved):
    logp = log_softmax(logits, -1) if saved is None else saved
    total = target.sum(-1, keepdims=True)  # 1, or 0 at ignored positions
    return reshape(g, (*g.shape, 1)) * (exp(logp) * total - target)


def cross_entropy(logits: Operand, target: Array, *, ignore_index: int = -100, label_smoothing: float = 0.0,
                  reduction: str = "mean") -> Operand:
    """−Σ_c t_c log softmax(logits)_c, with logits (…, C) and classes `target` (…) of integers.

    Parameters
    ----------
    ignore_index : int
        Positions with this target count neither in the loss nor in the mean.
    label_smoothing : float
        ε in t = (1 − ε) one_hot + ε / C.
    reduction : {"mean", "sum", "none"}
        "mean" averages over the positions that count; a ValueError if there are none.
    """
    xp, C = namespace(logits), logits.shape[-1]
    target = xp.asarray(raw(target))
    if target.shape != logits.shape[:-1] or target.dtype.kind not in "iu":
        found = f"{target.dtype} {target.shape}"
        raise ValueError(f"target: expected integers of shape {logits.shape[:-1]}, got {found}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    counts = target != ignore_index
    if not ((0 <= target) & (target < C) | ~counts).all():
        raise ValueError(f"target: expected classes in [0, {C}) or ignore_index={ignore_index}, got others")
    loss = class_entropy(logits, target=xp.where(counts, target, -1), smoothing=float(label_smoothing))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return sum(loss)
    n = int(counts.sum())
    if n == 0:
        raise ValueError(f"target: every position is ignored (ignore_index={ignore_index}); there is no mean")
    return sum(loss) / n


def _class_entropy(logits: Array, /, target: Array, smoothing: float) -> tuple[Array, Array]:
    """The loss of each position, for classes `target` with −1 where a position does not count."""
    if logits.size < SMALL or not compiled(logits):
        return _cross_entropy(logits, _smoothed(target, logits, smoothing))
    from .cpu.cross_entropy import forward

    rows = np.ascontiguousarray(logits).reshape(-1, logits.shape[-1])
    loss, lse = np.empty(len(rows), rows.dtype), np.empty(len(rows), rows.dtype)
    launch(forward, rows, _flat(target), rows.dtype.type(smoothing), loss, lse)
    return loss.reshape(target.shape), lse

def _d_class_entropy(g, out, logits, target, smoothing, saved):
    if saved is None or saved.shape == logits.shape:  # recorded, or computed by NumPy
        return _d_cross_entropy(g, out, logits, _smoothed(target, logits, smoothing), saved)
    from .cpu.cross_entropy import backward

    rows = np.ascontiguousarray(logits).reshape(-1, logits.shape[-1])
    out = np.empty_like(rows)
    weights = np.ascontiguousarray(g).reshape(-1)
    launch(backward, weights, rows, _flat(target), rows.dtype.type(smoothing), saved, out)
    return out.reshape(logits.shape)


def _smoothed(target: Array, logits: Operand, smoothing: float) -> Array:
    """The target of each position as C numbers: (1 − ε) one_hot + ε / C, zeros where it does not count."""
    C, counts = logits.shape[-1], target >= 0
    wanted = one_hot(namespace(target).where(counts, target, 0), C, logits.dtype)
    wanted = (1 - smoothing) * wanted + smoothing / C if smoothing else wanted
    return wanted * counts[..., None].astype(wanted.dtype)


def _flat(target: Array) -> Array:
    return np.ascontiguousarray(target, np.int64).reshape(-1)


class_entropy = primitive(_class_entropy, _d_class_entropy, "cross_entropy", saves=True)
