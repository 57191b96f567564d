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

from minattn.autograd import exp, gather, logsumexp, mean, namespace, primitive, stack, sum, where
from minattn.autograd.engine import Array, Operand, raw

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


def _ln(allowed: Array, like: Operand) -> Array:
    """ln 1 where `allowed`, ln 0 elsewhere."""
    return namespace(like).asarray(np.where(allowed, 0.0, NEVER).astype(like.dtype))


def _neighbours(jump: Array, side: int, like: Operand) -> tuple[Array, Array]:
    """Where a path may have come from (side −1) or may go (1): places (3, S), and ln 1 or ln 0 (B, 3, S)."""
    S = jump.shape[1]
    near = np.arange(S) + side * np.arange(3)[:, None]  # the place itself, the next, the one after the next
    inside, near = (near >= 0) & (near < S), near.clip(0, S - 1)
    allowed = np.repeat(inside[None], len(jump), 0)
    allowed[:, 2] &= jump if side < 0 else jump[:, near[2]]
    return namespace(like).asarray(near), _ln(allowed, like)


def _forward(e: Operand, jump: Array, frames: Array) -> list[Operand]:
    """α_t(s), the ln-probability of all beginnings of paths that are at place s at time t.

        α_t(s) = e_t(s) + ln(exp α_{t−1}(s) + exp α_{t−1}(s − 1) + [jump(s)] exp α_{t−1}(s − 2))

    After the last frame of a row its α stays as it is.
    """
    near, ways = _neighbours(jump, -1, e)
    alphas = [e[0] + _ln(np.arange(e.shape[2]) < 2, e)]
    for t in range(1, len(e)):
        after = logsumexp(alphas[-1][:, near] + ways, 1) + e[t]
        alphas.append(where(_column(t < frames, e), after, alphas[-1]) if t >= frames.min() else after)
    return alphas


def _backward(e: Operand, jump: Array, frames: Array, ends: Array) -> list[Operand]:
    """β_t(s), the ln-probability of all ways to go on from place s after time t and to end well.

        β_t(s) = ln Σ over r = s, s + 1 and, if jump(s + 2), s + 2 of exp(e_{t+1}(r) + β_{t+1}(r))
    """
    near, ways = _neighbours(jump, 1, e)
    betas = [_ln(ends, e)]
    for t in range(len(e) - 1, 0, -1):
        before = logsumexp((e[t] + betas[-1])[:, near] + ways, 1)
        betas.append(where(_column(t < frames, e), before, betas[-1]) if t >= frames.min() else before)
    return betas[::-1]


def _column(mask: Array, like: Operand) -> Array:
    return namespace(like).asarray(mask)[:, None]


def _log_likelihood(e: Array, /, jump: Array, frames: Array, ends: Array) -> tuple[Array, list[Array]]:
    """ln Σ over paths of their probability; e (T, B, S) is the ln-probability of each place at each time."""
    alphas = _forward(e, jump, frames)
    return logsumexp(alphas[-1] + _ln(ends, e), 1), alphas

def _d_log_likelihood(g, out, e, jump, frames, ends, saved):
    alphas = _forward(e, jump, frames) if saved is None else saved
    paths = stack(alphas) + stack(_backward(e, jump, frames, ends))  # ln of all that pass place s at time t
    possible = raw(out) > NEVER
    share = exp(paths - where(possible, out, 0)[None, :, None])
    counted = (np.arange(len(e))[:, None] < frames)[:, :, None]
    return where(counted, g[None, :, None] * share, 0)


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
    last = 2 * lengths[:, None]  # a path ends at the final blank, or at the final label if there is one
    ends = (np.arange(classes.shape[1]) <= last) & (np.arange(classes.shape[1]) >= np.maximum(last - 1, 0))
    loss = -log_likelihood(e, jump=jump, frames=frames, ends=ends)
    if zero_infinity:
        loss = where(raw(loss) == np.inf, 0, loss)
    if reduction == "none":
        return loss
    return sum(loss) if reduction == "sum" else mean(loss / np.maximum(lengths, 1))


log_likelihood = primitive(_log_likelihood, _d_log_likelihood, saves=True)
