"""A graph of states that answers for several masked words at once: transitions, loss and best path.

A masked language model fills each gap alone, so it cannot say "either this pair of words or that one". Here
every gap owns several states; edges run forward only, and a path from the first state to the last one
chooses which states speak for the m labels y_1 … y_m:

    E_uv  = Σ_c g_u^c · softmax_{v>u}(q_u^c · k_v^c / √(D/C))       g_u = softmax_c of the gate at u
    F[1, 1] = p(y_1 | 1),    F[i, u] = p(y_i | u) Σ_{v<u} F[i−1, v] E_vu,    loss = −ln F[m, S] / m

Source: Zheng et al., "ExLM" (ICML 2025, arXiv 2501.13397) and the authors' code; the graph is that
of Huang et al., "Directed Acyclic Transformer" (ICML 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from minattn.attention.dot_product import attention_scores
from minattn.autograd import gather, log_softmax, logsumexp, mean, namespace, permute, sum, unsqueeze, where
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels.dag import checked_lengths, dag_log_likelihood

PAPERS = (180,)

__all__ = ["dag_alignment_loss", "naive_dag_alignment", "naive_transition_matrix", "transition_matrix",
           "viterbi"]

# ---- naive


def naive_transition_matrix(q: np.ndarray, k: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """E (S, S), not its logarithm, from q, k (C, S, D/C) and gate (S, C), one number at a time."""
    C, S, E = q.shape
    out = np.zeros((S, S))
    for u in range(S - 1):
        opened = [math.exp(gate[u, c]) for c in range(C)]
        for c in range(C):
            after = {v: math.exp(math.fsum(q[c, u, d] * k[c, v, d] for d in range(E)) / math.sqrt(E))
                     for v in range(u + 1, S)}
            for v, weight in after.items():
                out[u, v] += opened[c] / math.fsum(opened) * weight / math.fsum(after.values())
    return out


def _paths(m: int, S: int) -> Iterator[tuple[int, ...]]:
    """All increasing runs of m states out of 0 … S − 1 that begin with the first and end with the last."""
    if m == S == 1:
        yield (0,)
    elif m >= 2:
        for between in combinations(range(1, S - 1), m - 2):
            yield (0, *between, S - 1)


def naive_dag_alignment(p: np.ndarray, targets: np.ndarray, E: np.ndarray
                        ) -> tuple[float, tuple[int, ...], float]:
    """Every path of one graph, tried in turn: its loss, its best path, and that path's probability.

    p (S, V) are the states' probabilities of the labels, `targets` m labels, E (S, S) the transitions; all
    probabilities, not logarithms. There are C(S − 2, m − 2) paths.
    """
    found = {}
    for path in _paths(len(targets), len(E)):
        emitted = math.prod(float(p[u, y]) for u, y in zip(path, targets, strict=True))
        found[path] = emitted * math.prod(float(E[v, u]) for v, u in pairwise(path))
    best = max(found, key=lambda path: found[path])
    return -math.log(math.fsum(found.values())) / len(targets), best, found[best]


# ---- fast


def transition_matrix(q: Operand, k: Operand, gate: Operand, lengths: Any = None) -> Operand:
    """ln E, the logarithms of the probabilities with which a path steps from state u to a later state v.

    Each of C chunks is a head of attention in which a state sees only those after it; a gate, which depends
    on the state that is left, mixes the heads:  E_uv = Σ_c g_u^c · softmax_{v>u}(q_u^c · k_v^c / √(D/C)).

    Parameters
    ----------
    q, k : (B, C, S, D/C)
    gate : (B, S, C)
        ln g but for a constant: g_u = softmax_c.
    lengths : integers (B,), optional
        How many states of each row count; all by default.

    Returns
    -------
    (B, S, S)
        Rows of E sum to 1 but for the last state of each graph and what lies beyond it, which lead nowhere:
        ln E is −∞ there, as it is on and below the diagonal.

    Raises
    ------
    ValueError
        If shapes do not fit or a length is out of range.

    References
    ----------
    Zheng et al., arXiv 2501.13397; its code calls this ``extract_links``.
    """
    scores = attention_scores(q, k)
    B, C, S, _ = scores.shape
    if np.shape(raw(gate)) != (B, S, C):
        raise ValueError(f"gate: expected shape {(B, S, C)}, got {np.shape(raw(gate))}")
    count, here = checked_lengths("lengths", lengths, B, S), np.arange(S)
    later = namespace(scores).asarray((here[:, None] < here) & (here < count[:, None, None]))
    chunks = log_softmax(where(later[:, None], scores, -np.inf), -1)
    return logsumexp(chunks + unsqueeze(permute(log_softmax(gate, -1), 0, 2, 1), 3), 1)


def dag_alignment_loss(log_probs: Operand, targets: Array, transitions: Operand, target_lengths: Any = None,
                       state_lengths: Any = None, *, reduction: str = "mean") -> Operand:
    """−ln of the probability of the targets, summed over all alignments of targets to increasing states.

        P(y) = Σ_{1 = u_1 < … < u_m = S}  p(y_1 | u_1) Π_{i>1} E[u_{i−1}, u_i] p(y_i | u_i)

    Parameters
    ----------
    log_probs : (B, S, V)
        ln p(y | u) of V labels at each state: a `log_softmax`.
    targets : integers (B, M)
        Labels, each row padded at its end with any label.
    transitions : (B, S, S)
        ln E, as from `transition_matrix`.
    target_lengths, state_lengths : integers (B,), optional
        How many labels and states of each row count; all by default.
    reduction : {"mean", "sum", "none"}
        "mean" divides each row's loss by its number of labels m, then averages over the rows, as ExLM does;
        "sum" and "none" do not divide.

    Returns
    -------
    () or (B,)
        ∞ where no path fits (m > S, or m = 1 < S); the gradient is then 0.

    Raises
    ------
    ValueError
        If shapes, labels, lengths or the reduction are not as above.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')
    e, lengths = _emissions(log_probs, targets, target_lengths)
    loss = -dag_log_likelihood(e, transitions, lengths, state_lengths)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return sum(loss)
    return mean(loss / namespace(loss).asarray(lengths, dtype=loss.dtype))


def viterbi(emissions: Array, transitions: Array, label_lengths: Any = None, state_lengths: Any = None
            ) -> tuple[np.ndarray, np.ndarray]:
    """The most probable path: the recursion of `dag_alignment_loss` with a maximum in place of the sum.

    Parameters
    ----------
    emissions : (B, M, S)
        ln p(y_i | u) of the i-th label; for a path without given labels the best label's, max_y ln p(y | u).
    transitions : (B, S, S)
        ln E.
    label_lengths, state_lengths : integers (B,), optional
        How many labels and states of each row count; all by default.

    Returns
    -------
    paths : integers (B, M)
        State of each label, −1 behind a row's last label, and everywhere if there is no path.
    scores : (B,)
        ln of the path's probability, −∞ if there is no path.

    Raises
    ------
    ValueError
        If shapes or lengths do not fit.
    """
    e, a = np.asarray(raw(emissions)), np.asarray(raw(transitions))
    if e.ndim != 3 or a.shape != (e.shape[0], e.shape[2], e.shape[2]):
        raise ValueError(f"transitions: expected (B, S, S) for emissions (B, M, S), "
                         f"got {a.shape} for {e.shape}")
    B, M, S = e.shape
    m = checked_lengths("label_lengths", label_lengths, B, M)
    s = checked_lengths("state_lengths", state_lengths, B, S)
    rows, here = np.arange(B), np.arange(S)
    a = np.where(here[:, None] < here, a, -np.inf)
    best, came = [np.where(here == 0, e[:, 0], -np.inf)], []
    for i in range(1, M):
        ways = best[-1][:, :, None] + a
        came.append(ways.argmax(1))
        best.append(ways.max(1) + e[:, i])
    scores = np.stack(best, 1)[rows, m - 1, s - 1]
    paths = np.full((B, M), -1)
    for i in reversed(range(M)):
        ahead = came[i][rows, paths[:, i + 1]] if i + 1 < M else s - 1
        paths[:, i] = np.where(i == m - 1, s - 1, np.where(i < m - 1, ahead, -1))
    return np.where(scores[:, None] > -np.inf, paths, -1), scores


def _emissions(log_probs: Operand, targets: Array, lengths: Any) -> tuple[Operand, np.ndarray]:
    """ln p(y_i | u) (B, M, S) of each target at each state, and how many targets count."""
    if log_probs.ndim != 3:
        raise ValueError(f"log_probs: expected (B, S, V), got shape {log_probs.shape}")
    B, S, V = log_probs.shape
    y = np.asarray(raw(targets))
    if y.ndim != 2 or len(y) != B or y.dtype.kind not in "iu":
        raise ValueError(f"targets: expected integers of shape ({B}, M), got {y.dtype} {y.shape}")
    if y.size and not (y.min() >= 0 and y.max() < V):
        raise ValueError(f"targets: expected labels in [0, {V}), got [{y.min()}, {y.max()}]")
    wanted = namespace(log_probs).asarray(np.repeat(y[:, None], S, 1))
    lengths = checked_lengths("target_lengths", lengths, B, y.shape[1])
    return permute(gather(log_probs, 2, wanted), 0, 2, 1), lengths
