"""Samplers from noise to text: MDLM's, which never looks back, and the adaptive correction sampler (ACS).

A move goes from noise level t to s ≤ t. With p the model's distribution of a clean token at a position, and
V tokens of which number V is [MASK], the position becomes

    masked:    a token drawn from p with probability 1 − s/t, else it stays masked
    visible:   MDLM: stays as it is;   ACS: drawn again from p with probability η s/t

A model trained on masks alone would confirm what it sees; one trained on hybrid noise knows that a visible
token may be wrong, so a second draw can mend it. A move with s = t reveals nothing and only corrects.

Fathi, Scholak and Noël 2025, arXiv 2504.06416; MDLM: Sahoo et al., arXiv 2406.07524.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from minattn.attention.masks import whole
from minattn.autograd import no_grad, softmax
from minattn.autograd.engine import Array, Operand, raw

PAPERS = (196,)

__all__ = ["ETA", "adaptive_correction_sampler", "correction_kernel", "correction_move", "linear_moves",
           "mdlm_sampler", "naive_correction_move"]

Denoiser = Callable[[Array], Operand]
Moves = Sequence[tuple[float, float]]

ETA = 0.015
"""η of the paper: the share of visible tokens that is drawn again as the level nears the one before."""


def naive_correction_move(ids: Array, logits: Array, t: Array, s: Array, eta: float, u: Array) -> np.ndarray:
    """One move, position by position, with one uniform number u (B, N) for each.

    u walks through the outcomes of its position, tokens in order and [MASK] last, until their probabilities
    exceed it.
    """
    B, N, V = logits.shape
    out = np.array(ids)
    for b in range(B):
        for p in range(N):
            weights = [np.exp(z - max(logits[b, p])) for z in logits[b, p]]
            left = s[b, p] / t[b, p]
            fresh = 1 - left if ids[b, p] == V else eta * left  # probability of a draw from the model
            outcomes = [fresh * w / sum(weights) for w in weights] + [0.0]
            outcomes[ids[b, p]] += 1 - fresh
            passed = 0.0
            for token, probability in enumerate(outcomes):
                passed += probability
                if u[b, p] < passed:
                    out[b, p] = token
                    break
    return out


def correction_kernel(ids: Array, logits: Operand, t: Array, s: Array, eta: float = ETA) -> np.ndarray:
    """Where each position may go in a move from t to s: probabilities (B, N, V + 1), [MASK] last.

        masked:    (1 − s/t) p + (s/t) [MASK]
        visible:   η (s/t) p + (1 − η s/t) [itself]

    Parameters
    ----------
    ids : array of int (B, N)
        Tokens in 0..V, V being [MASK].
    logits : (B, N, V)
        Of the clean tokens.
    t, s : array
        Levels before and after, 0 ≤ s ≤ t ≤ 1 and t > 0, broadcasting to (B, N).
    eta : float
        η in [0, 1]; 0 is MDLM.

    Raises
    ------
    ValueError
        If shapes do not fit, a token is none, or a number is out of its range.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    ids, logits = np.asarray(ids), np.asarray(raw(logits), dtype=np.float64)
    V = logits.shape[-1]
    if logits.ndim != 3 or ids.shape != logits.shape[:2]:
        raise ValueError(f"logits: expected shape (B, N, V) for ids {ids.shape}, got {logits.shape}")
    if ids.dtype.kind not in "iu" or (ids.size and not 0 <= ids.min() <= ids.max() <= V):
        raise ValueError(f"ids: expected integers in [0, {V}], got {ids.dtype} {ids.ravel()[:4].tolist()}")
    fresh = _fresh(ids == V, t, s, eta)[..., None]
    return (fresh * np.concatenate([softmax(logits, -1), np.zeros((*ids.shape, 1))], -1)
            + (1 - fresh) * (np.arange(V + 1) == ids[..., None]))


def _fresh(masked: Array, t: Array, s: Array, eta: float) -> np.ndarray:
    """Probability with which each position is drawn from the model."""
    t, s = np.asarray(t, dtype=np.float64), np.asarray(s, dtype=np.float64)
    if not ((s >= 0) & (s <= t) & (t > 0) & (t <= 1)).all():
        raise ValueError(f"t, s: expected 0 ≤ s ≤ t ≤ 1 and t > 0, got t = {t.ravel()[:4].tolist()}, "
                         f"s = {s.ravel()[:4].tolist()}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected a probability in [0, 1], got {eta}")
    return np.where(masked, 1 - s / t, eta * s / t)


def correction_move(rng: np.random.Generator, ids: Array, logits: Operand, t: Array, s: Array,
                    eta: float = ETA) -> np.ndarray:
    """ids (B, N) after a move from level t to s, drawn from `correction_kernel`, one number a position.

    Parameters are those of `correction_kernel`, after the source of the draws.
    """
    passed = np.cumsum(correction_kernel(ids, logits, t, s, eta), -1)
    u = rng.random(np.shape(ids)) * (1 - 2.0**-32)  # below what rounding may leave of the sum
    return (passed <= u[..., None]).sum(-1)


def linear_moves(steps: int, corrections: int = 0, level: float = 0.0) -> list[tuple[float, float]]:
    """Moves (t, s) from 1 to 0 in `steps` equal steps, then `corrections` moves that stay at `level`.

    Raises
    ------
    ValueError
        If a number is out of its range; corrections need a level in (0, 1].
    """
    times = np.linspace(1, 0, whole("steps", steps) + 1).tolist()
    if whole("corrections", corrections, 0) and not 0 < level <= 1:
        raise ValueError(f"level: expected a number in (0, 1], got {level}")
    return [*pairwise(times), *[(level, level)] * corrections]


def mdlm_sampler(rng: np.random.Generator, denoiser: Denoiser, ids: Array, moves: Moves) -> np.ndarray:
    """MDLM's sampler: a masked token is revealed with probability 1 − s/t, a visible one never changes.

    Parameters
    ----------
    rng : numpy.random.Generator
    denoiser : callable
        ids (B, N) → logits (B, N, V) of the clean tokens; it is called once a move.
    ids : array of int (B, N)
        Where to start: [MASK], number V, wherever there is no given token.
    moves : sequence of (t, s)
        See `linear_moves`.

    Returns
    -------
    array of int (B, N)

    References
    ----------
    Sahoo et al., arXiv 2406.07524.
    """
    ids = np.array(ids)
    for t, s in moves:
        logits = _called(denoiser, ids)
        u = rng.random(ids.shape) * (1 - 2.0**-32)
        revealed = (ids == logits.shape[-1]) & (u < 1 - s / t)
        chances = np.cumsum(softmax(logits, -1), -1)[revealed]
        within = u[revealed] / (1 - s / t)  # uniform again
        ids[revealed] = (chances <= within[:, None]).sum(-1)
    return ids


def adaptive_correction_sampler(rng: np.random.Generator, denoiser: Denoiser, ids: Array, moves: Moves,
                                eta: float = ETA) -> np.ndarray:
    """ACS: reveal masked tokens, and draw visible ones again with probability η s/t.

    Parameters
    ----------
    rng : numpy.random.Generator
    denoiser : callable
        ids (B, N) → logits (B, N, V) of the clean tokens; it is called once a move. It should have been
        trained on hybrid noise: where it takes every visible token for true, nothing is ever mended.
    ids : array of int (B, N)
        Where to start: [MASK], number V, wherever there is no given token. Given tokens stay.
    moves : sequence of (t, s)
        See `linear_moves`; moves with s = t only correct.
    eta : float
        η; with 0 this is `mdlm_sampler`.

    Returns
    -------
    array of int (B, N)

    Raises
    ------
    ValueError
        If shapes do not fit, or a number is out of its range.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    start = ids = np.array(ids)
    for t, s in moves:
        logits = _called(denoiser, ids)
        given = start < logits.shape[-1]
        ids = np.where(given, start, correction_move(rng, ids, logits, t, s, eta))
    return ids


def _called(denoiser: Denoiser, ids: Array) -> np.ndarray:
    """The logits that the model gives, as float64, found fit to draw from."""
    with no_grad():
        logits = np.asarray(raw(denoiser(ids)), dtype=np.float64)
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise ValueError(f"denoiser: expected logits (B, N, V) for ids {ids.shape}, got {logits.shape}")
    if not np.isfinite(logits.max(-1)).all():
        raise ValueError("denoiser: the logits contain NaN or +∞, or leave no token possible")
    return logits
