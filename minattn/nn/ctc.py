"""Connectionist temporal classification: how likely a label sequence is when its alignment is unknown.

A *path* names a class for every frame. It spells a target if merging equal neighbours and then dropping
blanks leaves the target: with ``-`` for the blank, ``aa-ab-`` spells ``aab``. The loss is −ln of the summed
probability of all paths that spell the target. There are exponentially many, but how a path may go on depends
only on its place in

    - a - a - b -        (the target with blanks around every label; S = 2L + 1 places)

so one number for each place, carried from frame to frame, sums them all.

Source: Graves, Fernández, Gomez and Schmidhuber, "Connectionist Temporal Classification" (ICML 2006).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.autograd import gather, logsumexp, mean, namespace, pad, stack, sum, where
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import unfold

__all__ = ["ctc_loss"]

NEVER = -np.inf  # ln 0


def _places(targets: Array, lengths: Array, blank: int) -> tuple[Array, Array]:
    """Classes (B, S) of the places, and at which ones a path may arrive by a jump over the blank before."""
    B, L = targets.shape
    classes = np.full((B, 2 * L + 1), blank)
    classes[:, 1::2] = np.where(np.arange(L) < lengths[:, None], targets, blank)
    jump = classes != blank  # and not from an equal label: without the blank the two would merge
    jump[:, 2:] &= classes[:, 2:] != classes[:, :-2]
    return classes, jump


def _log_likelihood(e: Operand, jump: Array, frames: Array, lengths: Array) -> Operand:
    """ln Σ over paths of their probability, given the ln-probability e (T, B, S) of each place at each time.

        α_t(s) = e_t(s) + ln(exp α_{t−1}(s) + exp α_{t−1}(s − 1) + [jump(s)] exp α_{t−1}(s − 2))

    Two more places stand left of the first, so that every place has three predecessors; before the first
    frame all paths wait at the nearer one.
    """
    xp, (T, B, S) = namespace(e), e.shape
    ways = xp.zeros((B, 3, S), dtype=e.dtype)  # from s − 2, s − 1 and s
    ways[:, 0] = xp.where(xp.asarray(jump), 0.0, NEVER)
    alpha = xp.full((B, S + 2), NEVER, dtype=e.dtype)
    alpha[:, 1] = 0.0
    for t in range(T):
        came = logsumexp(unfold(alpha, 3) + ways, 1)
        after = pad(came + e[t], ((0, 0), (2, 0)), NEVER)
        alpha = where(xp.asarray(t < frames)[:, None], after, alpha) if t >= frames.min() else after
    rows = np.arange(B)
    last = stack([alpha[rows, 2 * lengths + 2], alpha[rows, 2 * lengths + 1]])  # final blank, final label
    return logsumexp(where(np.stack([lengths >= 0, lengths > 0]), last, NEVER), 0)


def _lengths(name: str, given: Any, B: int, least: int, most: int) -> Array:
    lengths = np.asarray(raw(given))
    if lengths.shape != (B,) or lengths.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected {B} integers, got {lengths.dtype} of shape {lengths.shape}")
    if B and not (least <= lengths.min() and lengths.max() <= most):
        raise ValueError(f"{name}: expected values in [{least}, {most}], got {lengths}")
    return lengths.astype(np.int64)


def ctc_loss(log_probs: Operand, targets: Array, input_lengths: Array, target_lengths: Array, *,
             blank: int = 0, reduction: str = "mean", zero_infinity: bool = False) -> Operand:
    """−ln P(target), summed over all alignments, with classes independent from frame to frame.

    Parameters
    ----------
    log_probs : (T, B, C)
        ln-probabilities of the C classes, the blank among them, at each of T frames: a `log_softmax`.
    targets : integers (B, L)
        Labels, each row padded at its end with anything.
    input_lengths, target_lengths : integers (B,)
        How many frames and labels of each row count.
    reduction : {"mean", "sum", "none"}
        "mean" divides each loss by its target's length (at least 1), then averages over the batch.
    zero_infinity : bool
        Give 0 instead of ∞ for a target that does not fit its frames (L labels with r pairs of equal
        neighbours need L + r frames). Its gradient is 0 either way.
    """
    if log_probs.ndim != 3 or 0 in log_probs.shape:
        raise ValueError(f"log_probs: expected (T, B, C) without a size of 0, got shape {log_probs.shape}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')
    T, B, C = log_probs.shape
    if not 0 <= blank < C:
        raise ValueError(f"blank: expected one of the {C} classes, got {blank}")
    targets = np.asarray(raw(targets))
    if targets.ndim != 2 or len(targets) != B or targets.dtype.kind not in "iu":
        raise ValueError(f"targets: expected integers of shape ({B}, L), got {targets.dtype} {targets.shape}")
    frames = _lengths("input_lengths", input_lengths, B, 1, T)
    lengths = _lengths("target_lengths", target_lengths, B, 0, targets.shape[1])
    counted = targets[np.arange(targets.shape[1]) < lengths[:, None]]
    if np.any((counted < 0) | (counted >= C) | (counted == blank)):
        raise ValueError(f"targets: expected classes in [0, {C}) other than the blank {blank}, got {counted}")
    classes, jump = _places(targets, lengths, blank)
    e = gather(log_probs, 2, np.broadcast_to(classes, (T, *classes.shape)))
    loss = -_log_likelihood(e, jump, frames, lengths)
    if zero_infinity:
        loss = where(raw(loss) == np.inf, 0, loss)
    if reduction == "none":
        return loss
    return sum(loss) if reduction == "sum" else mean(loss / np.maximum(lengths, 1))
