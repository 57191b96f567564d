"""Merging attention over parts of the keys.

A softmax over a set of keys can be taken part by part. If part p gives the output o_p and the log-sum-exp
ℓ_p of its scores, then over all the keys

    ℓ = ln Σ_p exp ℓ_p          o = Σ_p exp(ℓ_p − ℓ) o_p

so keys may be cut anywhere, attended to in any order or place, and put together at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minattn.autograd import logsumexp, softmax, stack, sum, unsqueeze
from minattn.autograd.engine import Operand


def naive_merge(outs: Sequence[np.ndarray], lses: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The same by the definition: weights exp ℓ_p, summed and divided (overflows where ℓ is large)."""
    masses = [np.exp(lse)[..., None] for lse in lses]
    total = np.sum(masses, axis=0)
    out = np.sum([mass * part for mass, part in zip(masses, outs, strict=True)], axis=0)
    return out / np.where(total > 0, total, 1), np.log(total)[..., 0]


def merge(outs: Sequence[Operand], lses: Sequence[Operand]) -> tuple[Operand, Operand]:
    """Attention over the union of disjoint sets of keys, from the results over each.

    Parameters
    ----------
    outs : sequence of (B, H, N, Dv)
        Output over each set of keys.
    lses : sequence of (B, H, N)
        Log-sum-exp of its scores, −∞ where it had no visible key: ``attention(..., return_lse=True)``.

    Returns
    -------
    out : (B, H, N, Dv)
    lse : (B, H, N)
        What `attention` gives over all the keys; the two can be merged again.

    Raises
    ------
    ValueError
        If there is nothing to merge, or the shapes do not fit.
    """
    if not outs or len(outs) != len(lses):
        raise ValueError(f"lses: expected one for each of outs, and at least one, "
                         f"got {len(lses)} for {len(outs)}")
    for p, lse in enumerate(lses):
        if lse.shape != outs[p].shape[:-1]:
            raise ValueError(f"lses[{p}]: expected shape {outs[p].shape[:-1]} for an output of shape "
                             f"{outs[p].shape}, got {lse.shape}")
    parts = stack(list(lses))
    weights = softmax(parts, 0)  # exp(ℓ_p − ℓ); all zero where every part is empty
    return sum(stack(list(outs)) * unsqueeze(weights, -1), 0), logsumexp(parts, 0)
