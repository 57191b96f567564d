"""Probability of a label sequence, summed over all increasing paths through a graph of states.

States 1 … S stand in a row and edges run forward only. A path visits M states, the first one and the last one
among them; at its i-th state u it emits the i-th label, at a cost of ln p(y_i | u). How a path may go on
depends only on where it is, so one number for each label and state sums them all:

            state u →                          F[1, 1] = p(y_1 | 1)
    label   F . . . . .                        F[i, u] = p(y_i | u) · Σ_{v<u} F[i−1, v] E[v, u]
      i     . F F F . .     row i from row     P       = F[M, S]
      ↓     . . F F F .     i − 1, in O(S²)
            . . . . . F     (dots: no path that ends well comes by)

Everything is kept in logarithms: the probabilities of long sequences underflow. The reference in NumPy stands
below, the compiled form in `cpu/dag.py`.

Source: Huang, Zhou, Liu, Li and Huang, "Directed Acyclic Transformer for Non-Autoregressive Machine
Translation" (ICML 2022); ExLM (arXiv 2501.13397) trains with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.autograd import exp, logsumexp, namespace, primitive, reshape, stack, sum, where
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, launch

__all__ = ["dag_log_likelihood"]

NEVER = -np.inf  # ln 0


def _edges(a: Operand, states: Array) -> Operand:
    """ln E (B, S, S) with ln 0 wherever no path may go: backwards, on the spot, and beyond the last state."""
    xp, to = namespace(a), np.arange(a.shape[2])
    allowed = (to[:, None] < to) & (to < states[:, None, None])
    return where(xp.asarray(allowed), a, NEVER)


def _arrivals(e: Operand, edges: Operand) -> list[Operand]:
    """For each label i, ln Σ over paths that arrive at state u with it, before u has emitted it: (B, S)."""
    xp, S = namespace(e), e.shape[2]
    start = np.where(np.arange(S) == 0, 0.0, NEVER).astype(e.dtype)
    found = [xp.asarray(np.repeat(start[None], len(e), 0))]
    for i in range(1, e.shape[1]):
        before = found[-1] + e[:, i - 1]
        found.append(logsumexp(reshape(before, (*before.shape, 1)) + edges, 1))
    return found


def _log_likelihood(e: Array, a: Array, /, labels: Array, states: Array) -> tuple[Array, Array]:
    """ln F[M, S] for each row of the batch, and the arrivals (B, M, S)."""
    if e.size and compiled(e, a):
        from .cpu import dag

        e, a = np.ascontiguousarray(e), np.ascontiguousarray(a)
        arrivals, out = np.full(e.shape, NEVER, e.dtype), np.empty(len(e), e.dtype)
        launch(dag.forward, e, a, labels, states, arrivals, out)
        return out, arrivals
    arrivals = stack(_arrivals(e, _edges(a, states)), 1)
    end = map(namespace(e).asarray, (np.arange(len(e)), labels - 1, states - 1))
    return (arrivals + e)[tuple(end)], arrivals

def _d_log_likelihood(g, out, e, a, labels, states, saved):
    """Shares: how much of P goes through state u at label i, and through edge (v, u) on the way to it."""
    xp = namespace(e)
    g = where(raw(out) > NEVER, g, 0)
    if saved is not None and e.size and compiled(e, a, saved):
        from .cpu import dag

        e, a = np.ascontiguousarray(e), np.ascontiguousarray(a)
        de, da = np.zeros_like(e), np.zeros_like(a)
        launch(dag.backward, np.ascontiguousarray(g), e, a, labels, states, saved, de, da)
        return de, da
    edges = _edges(a, states)
    arrivals = _arrivals(e, edges) if saved is None else [saved[:, i] for i in range(e.shape[1])]
    share, da, de = 0, 0, [None] * e.shape[1]
    for i in reversed(range(e.shape[1])):
        ends = (labels[:, None] == i + 1) & (states[:, None] == 1 + np.arange(e.shape[2]))
        share = de[i] = share + where(xp.asarray(ends), reshape(g, (len(e), 1)), 0)
        if i:  # undo the log-sum-exp of arrival i: the share of each state before, given that u is reached
            before, after = arrivals[i - 1] + e[:, i - 1], arrivals[i]
            after = where(raw(after) > NEVER, after, 0)
            ways = exp(reshape(before, (*before.shape, 1)) + edges - after[:, None])
            ways = ways * share[:, None]
            share, da = sum(ways, 2), da + ways
    return stack(de, 1), da if e.shape[1] > 1 else a * 0


log_likelihood = primitive(_log_likelihood, _d_log_likelihood, "dag_log_likelihood", saves=True, real=True)


def dag_log_likelihood(emissions: Operand, transitions: Operand, label_lengths: Any = None,
                       state_lengths: Any = None) -> Operand:
    """ln P(labels), summed over all increasing paths from the first state to the last one.

        P = Σ_{1 = u_1 < … < u_M = S}  p(y_1 | u_1) Π_{i>1} E[u_{i−1}, u_i] p(y_i | u_i)

    Parameters
    ----------
    emissions : (B, M, S)
        ln p(y_i | u) of the i-th label at state u.
    transitions : (B, S, S)
        ln E[v, u]; what stands on the diagonal and below is not read.
    label_lengths, state_lengths : integers (B,), optional
        How many labels and states of each row count; all by default.

    Returns
    -------
    (B,)
        −∞ where there is no path at all (more labels than states, or one label and several states); its
        gradient is then 0.

    Raises
    ------
    ValueError
        If shapes do not fit, or a length is below 1 or above what there is.
    """
    if len(emissions.shape) != 3:
        raise ValueError(f"emissions: expected (B, M, S), got shape {emissions.shape}")
    B, M, S = emissions.shape
    if transitions.shape != (B, S, S):
        raise ValueError(f"transitions: expected shape {(B, S, S)}, got {transitions.shape}")
    labels = checked_lengths("label_lengths", label_lengths, B, M)
    states = checked_lengths("state_lengths", state_lengths, B, S)
    return log_likelihood(emissions, transitions, labels=labels, states=states)


def checked_lengths(name: str, given: Any, B: int, most: int) -> np.ndarray:
    """`given` as B integers in [1, most]; all `most` if None."""
    given = np.full(B, most) if given is None else raw(given)
    lengths = np.asarray(given.get() if hasattr(given, "get") else given)  # from the GPU, if they are there
    if lengths.shape != (B,) or lengths.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected {B} integers, got {lengths.dtype} of shape {lengths.shape}")
    if B and not (lengths.min() >= 1 and lengths.max() <= most):
        raise ValueError(f"{name}: expected values in [1, {most}], got {lengths}")
    return lengths.astype(np.int64)
