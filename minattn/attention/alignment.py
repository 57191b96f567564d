"""The general attention model: how a query is aligned with keys, and how the scores become weights.

    attend(q, K, V) = Σ_j p(a(k_j, q)) v_j        a: alignment function, p: distribution function

Shapes are those of `attention`: q (B, H, N, Dq), k (B, H, M, Dk), v (B, H, M, Dv), scores (B, H, N, M). The
alignment functions are the ones tabulated by Chaudhari, Mithal, Polatkan and Ramanath, "An Attentive Survey
of Attention Models", arXiv 1904.02874, table 1; the activation is tanh throughout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minattn.autograd import cumsum, expand, namespace, norm, softmax, sum, tanh, unsqueeze, where
from minattn.autograd.engine import Array, Operand, Tensor, raw

from .dot_product import weighted_sum
from .masks import MaskMod, mask_array
from .normalizers import NORMALIZERS

PAPERS = (1,)

# ---- the naive forms: one score, then one row, at a time


def naive_alignment_score(q: Array, k: Array, kind: str = "scaled", **parameters: Any) -> Array:
    """Scores (B, H, N, M), each from one query vector and one key vector by the line of the table."""
    (B, H, N, _), M = q.shape, k.shape[2]
    scores = np.zeros((B, H, N, M))
    for b in range(B):
        for h in range(H):
            for i in range(N):
                for j in range(M):
                    at = (b, h, i, j)
                    scores[at] = _naive_score(kind, list(q[b, h, i]), list(k[b, h, j]), at, parameters)
    return scores


def _naive_score(kind: str, q: list, k: list, at: tuple, p: dict) -> float:
    """a(k, q) for one query and one key, two lists of numbers."""
    match kind:
        case "similarity" if p.get("sim", "euclidean") == "euclidean":
            return -math.fsum((x - y) ** 2 for x, y in zip(q, k, strict=True))
        case "similarity":
            return _dot(q, k) / (math.hypot(*q) * math.hypot(*k))
        case "dot":
            return _dot(k, q)
        case "scaled":
            return _dot(k, q) / math.sqrt(len(q))
        case "general":
            return _dot(k, _rows(p["W"], q))
        case "biased_general":
            return _dot(k, [x + c for x, c in zip(_rows(p["W"], q), p["b"], strict=True)])
        case "activated_general":
            return math.tanh(_dot(k, _rows(p["W"], q)) + float(p["b"]))
        case "kernel":
            return _dot(p["phi"](np.array(q)), p["phi"](np.array(k)))
        case "concat":
            return _dot(p["w"], _tanhs(_rows(p["W"], q + k), p["b"]))
        case "additive":
            sums = [x + y for x, y in zip(_rows(p["W1"], q), _rows(p["W2"], k), strict=True)]
            return _dot(p["w"], _tanhs(sums, p["b"]))
        case "deep":
            first = _tanhs(_rows(p["W1"], q + k), p["b1"])
            return _dot(p["w"], _tanhs(_rows(p["W2"], first), p["b2"])) + float(p["b"])
        case "location":
            return _dot(p["W"][at[3]], q)
        case "feature":
            b, h, _, j = at
            both = [_rows(p[W], p[f][b, h, j]) for W, f in (("W1", "f1"), ("W2", "f2"))]
            return _dot(p["w"], _tanhs([x + y for x, y in zip(*both, strict=True)], p["b"]))
    raise ValueError(f"kind: {kind!r} is not in the table")


def _dot(x: Any, y: Any) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True))


def _rows(W: Any, x: Any) -> list[float]:
    return [_dot(row, x) for row in W]


def _tanhs(x: Any, b: Any) -> list[float]:
    return [math.tanh(a + float(c)) for a, c in zip(x, b, strict=True)]


def naive_distribution(scores: Array, kind: str = "softmax", *, rng: Any = None,
                       temperature: float = 1.0) -> Array:
    """Weights of each row of scores (…, M) on its own; sparsemax by trying every possible support."""
    weights = np.zeros(scores.shape)
    for row in np.ndindex(scores.shape[:-1]):
        seen = [j for j, s in enumerate(scores[row]) if s > -math.inf]
        s = [float(scores[row][j]) / temperature for j in seen]
        draw = rng.random() if kind == "hard" else 0.0
        if seen:
            weights[row][seen] = _naive_row(kind, s, draw)
    return weights


def _naive_row(kind: str, s: list[float], draw: float) -> list[float]:
    if kind == "sigmoid":
        return [1 / (1 + math.exp(-x)) for x in s]
    if kind == "sparsemax":
        return _by_enumeration(s)
    powers = [math.exp(x - max(s)) for x in s]
    shares = [x / math.fsum(powers) for x in powers]
    if kind == "softmax":
        return shares
    chosen = next(j for j in range(len(s)) if draw < math.fsum(shares[: j + 1]) or j == len(s) - 1)
    return [float(j == chosen) for j in range(len(s))]


def _by_enumeration(s: list[float]) -> list[float]:
    """The point of the simplex nearest to s: of every set of kept entries the nearest point is tried."""
    nearest, least = [], math.inf
    for size in range(1, len(s) + 1):
        for kept in itertools.combinations(range(len(s)), size):
            shift = (1 - math.fsum(s[j] for j in kept)) / size
            p = [s[j] + shift if j in kept else 0.0 for j in range(len(s))]
            distance = math.fsum((x - y) ** 2 for x, y in zip(p, s, strict=True))
            if min(p) >= 0 and distance < least:
                nearest, least = p, distance
    return nearest


def naive_attend(q: Array, K: Array, V: Array, alignment: str = "scaled", distribution: str = "softmax", *,
                 mask_mod: MaskMod | None = None, rng: Any = None, temperature: float = 1.0,
                 **parameters: Any) -> Array:
    """Σ_j p(a(k_j, q)) v_j in loops, float64."""
    scores = naive_alignment_score(q, K, alignment, **parameters)
    if mask_mod is not None:
        for at in np.ndindex(scores.shape):
            scores[at] = scores[at] if mask_mod(*at) else -math.inf
    weights = naive_distribution(scores, distribution, rng=rng, temperature=temperature)
    out = np.zeros((*q.shape[:3], V.shape[3]))
    for b, h, i, j in np.ndindex(weights.shape):
        for d in range(V.shape[3]):
            out[b, h, i, d] += weights[b, h, i, j] * float(V[b, h, j, d])
    return out


# ---- the fast forms: all scores at once


def _similarity(q: Operand, k: Operand, sim: str = "euclidean") -> Operand:
    if sim == "cosine":
        return (q / norm(q, dim=-1, keepdim=True)) @ (k / norm(k, dim=-1, keepdim=True)).mT
    if sim != "euclidean":
        raise ValueError(f"sim: expected 'euclidean' or 'cosine', got {sim!r}")
    gap = unsqueeze(q, 3) - unsqueeze(k, 2)  # not |q|² − 2 q·k + |k|², which cancels for near vectors
    return -sum(gap * gap, -1)


def _plain_dot(q: Operand, k: Operand) -> Operand:
    return q @ k.mT


def _scaled(q: Operand, k: Operand) -> Operand:
    return (q @ k.mT) / math.sqrt(q.shape[-1])


def _general(q: Operand, k: Operand, W: Operand) -> Operand:
    return (q @ W.mT) @ k.mT


def _biased_general(q: Operand, k: Operand, W: Operand, b: Operand) -> Operand:
    return (q @ W.mT + b) @ k.mT


def _activated_general(q: Operand, k: Operand, W: Operand, b: Operand) -> Operand:
    return tanh((q @ W.mT) @ k.mT + b)


def _kernel(q: Operand, k: Operand, phi: Callable) -> Operand:
    return phi(q) @ phi(k).mT


def _additive(q: Operand, k: Operand, w: Operand, W1: Operand, W2: Operand, b: Operand) -> Operand:
    return _hidden(q @ W1.mT, k @ W2.mT, b) @ w


def _concat(q: Operand, k: Operand, w: Operand, W: Operand, b: Operand) -> Operand:
    Dq = q.shape[-1]  # W [q; k] = W₁ q + W₂ k, so that no pair is ever built
    return _hidden(q @ W[:, :Dq].mT, k @ W[:, Dq:].mT, b) @ w


def _deep(q: Operand, k: Operand, w: Operand, W1: Operand, b1: Operand, W2: Operand, b2: Operand,
          b: Operand) -> Operand:
    Dq = q.shape[-1]
    first = _hidden(q @ W1[:, :Dq].mT, k @ W1[:, Dq:].mT, b1)
    return tanh(first @ W2.mT + b2) @ w + b


def _location(q: Operand, k: Operand, W: Operand) -> Operand:
    return q @ W.mT


def _feature(q: Operand, k: Operand, w: Operand, W1: Operand, W2: Operand, b: Operand, f1: Operand,
             f2: Operand) -> Operand:
    one_row = tanh(f1 @ W1.mT + f2 @ W2.mT + b) @ w  # (B, H, M): the same for every query
    return expand(unsqueeze(one_row, 2), (*q.shape[:3], k.shape[2]))


def _hidden(from_q: Operand, from_k: Operand, b: Operand) -> Operand:
    """tanh of every sum of a row of (B, H, N, E) and one of (B, H, M, E): (B, H, N, M, E)."""
    return tanh(unsqueeze(from_q, 3) + unsqueeze(from_k, 2) + b)


ALIGNMENTS: dict[str, tuple[Callable, dict[str, str]]] = {
    "similarity": (_similarity, {}), "dot": (_plain_dot, {}), "scaled": (_scaled, {}),
    "general": (_general, {"W": "Dk Dq"}), "biased_general": (_biased_general, {"W": "Dk Dq", "b": "Dk"}),
    "activated_general": (_activated_general, {"W": "Dk Dq", "b": ""}),
    "kernel": (_kernel, {"phi": "function"}),
    "concat": (_concat, {"w": "E", "W": "E Dq+Dk", "b": "E"}),
    "additive": (_additive, {"w": "E", "W1": "E Dq", "W2": "E Dk", "b": "E"}),
    "deep": (_deep, {"w": "F", "W1": "E Dq+Dk", "b1": "E", "W2": "F E", "b2": "F", "b": ""}),
    "location": (_location, {"W": "M Dq"}),
    "feature": (_feature, {"w": "E", "W1": "E F1", "W2": "E F2", "b": "E", "f1": "B H M F1",
                           "f2": "B H M F2"}),
}
"""Name of an alignment function -> the function, and the shape of each of its parameters."""


def alignment_score(q: Operand, k: Operand, kind: str = "scaled", **parameters: Any) -> Operand:
    """Scores (B, H, N, M): a(k_j, q_i) for every query and key.

    ==================  =====================================  =============================================
    kind                a(k, q)                                parameters
    ==================  =====================================  =============================================
    similarity          −‖q − k‖², or the cosine               sim="euclidean" or "cosine"
    dot                 kᵀq
    scaled              kᵀq / √Dq
    general             kᵀWq                                   W (Dk, Dq)
    biased_general      kᵀ(Wq + b)                             W (Dk, Dq), b (Dk,)
    activated_general   tanh(kᵀWq + b)                         W (Dk, Dq), b ()
    kernel              φ(q)ᵀφ(k)                              phi, a function of arrays (…, D)
    concat              w·tanh(W[q; k] + b)                    w (E,), W (E, Dq + Dk), b (E,)
    additive            w·tanh(W₁q + W₂k + b)                  w (E,), W1 (E, Dq), W2 (E, Dk), b (E,)
    deep                w·tanh(W₂ tanh(W₁[q; k] + b₁) + b₂)+b  w (F,), W1 (E, Dq + Dk), b1, W2 (F, E), b2, b
    location            (Wq)_j: the key itself plays no part   W (M, Dq)
    feature             w·tanh(W₁f₁ + W₂f₂ + b)                w (E,), W1 (E, F1), W2 (E, F2), b (E,);
                                                               f1 (B, H, M, F1), f2 (B, H, M, F2) of the keys
    ==================  =====================================  =============================================

    Parameters
    ----------
    q, k : (B, H, N, Dq) and (B, H, M, Dk)
        Queries and keys; Dq = Dk for similarity, dot, scaled and kernel.
    kind : str
        A line of the table.
    **parameters : array or Tensor
        Those of the line; all can be differentiated.

    Raises
    ------
    ValueError
        For an unknown kind, a parameter that is missing or not its own, or a shape that does not fit.

    References
    ----------
    Chaudhari et al., arXiv 1904.02874, table 1.
    """
    if kind not in ALIGNMENTS:
        raise ValueError(f"kind: expected one of {', '.join(ALIGNMENTS)}, got {kind!r}")
    function, shapes = ALIGNMENTS[kind]
    _check_inputs(q, k, same=kind in ("similarity", "dot", "scaled", "kernel"))
    given = parameters.keys() - ({"sim"} if kind == "similarity" else set())
    if given != shapes.keys():
        raise ValueError(f"parameters: {kind} takes {', '.join(shapes) or 'none'}, "
                         f"got {', '.join(sorted(given)) or 'none'}")
    _check_parameters(q, k, shapes, parameters)
    return function(q, k, **parameters)


def _check_inputs(q: Operand, k: Operand, same: bool) -> None:
    for name, x in (("q", q), ("k", k)):
        if np.ndim(raw(x)) != 4:
            raise ValueError(f"{name}: expected 4 axes (batch, heads, positions, features), "
                             f"got shape {np.shape(raw(x))}")
    if k.shape[:2] != q.shape[:2] or (same and k.shape[3] != q.shape[3]):
        also = f" and {q.shape[3]} features" if same else ""
        raise ValueError(f"k: expected batch and heads {q.shape[:2]}{also} as in q, got shape {k.shape}")


def _check_parameters(q: Operand, k: Operand, shapes: dict[str, str], parameters: dict[str, Any]) -> None:
    """Each parameter in its shape, in which a letter stands for the same size wherever it occurs."""
    B, H, M, Dk = k.shape
    sizes = {"B": B, "H": H, "M": M, "Dk": Dk, "Dq": q.shape[3], "Dq+Dk": q.shape[3] + Dk}
    for name, letters in shapes.items():
        if letters == "function":
            if not callable(parameters[name]):
                raise ValueError(f"{name}: expected a function, got {parameters[name]!r}")
            continue
        shape, wanted = np.shape(raw(parameters[name])), letters.split()
        fits = len(shape) == len(wanted)
        if not fits or any(sizes.setdefault(w, n) != n for w, n in zip(wanted, shape, strict=True)):
            full = ", ".join(f"{w}={sizes[w]}" if w in sizes else w for w in wanted)
            raise ValueError(f"{name}: expected shape ({full}), got {shape}")


DISTRIBUTIONS = ("softmax", "sparsemax", "sigmoid", "hard")


def attention_distribution(scores: Operand, kind: str = "softmax", *, temperature: float = 1.0,
                           rng: np.random.Generator | None = None) -> Operand:
    """Weights (…, M) from scores (…, M): p in Σ_j p(a_j) v_j, applied to scores / temperature.

    softmax     e^a_j / Σ e^a, never zero
    sparsemax   the point of the simplex nearest to a: zero for keys that are far behind
    sigmoid     1 / (1 + e^−a_j), each key on its own; a row need not sum to one
    hard        one-hot: a key drawn with the probabilities of the softmax. As temperature → 0, the largest.

    Parameters
    ----------
    scores : (…, M)
        −∞ where a key is masked, which gets weight 0; a row that is −∞ throughout gets zeros.
    kind : str
        One of the four.
    temperature : float
        Above zero; divides the scores.
    rng : numpy.random.Generator
        Where hard draws from, one number a row; the others need none. A draw has no gradient.

    Raises
    ------
    ValueError
        For an unknown kind, a temperature that is not above zero, or hard without a generator.

    References
    ----------
    Chaudhari et al., arXiv 1904.02874; sparsemax: Martins and Astudillo 2016, arXiv 1602.02068.
    """
    if kind not in DISTRIBUTIONS:
        raise ValueError(f"kind: expected one of {', '.join(DISTRIBUTIONS)}, got {kind!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    if kind == "hard" and not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng: hard attention draws from a numpy.random.Generator, got {rng!r}")
    if not scores.shape[-1]:
        return scores
    if kind != "hard":
        return NORMALIZERS[kind](scores / temperature, -1)
    drawn = _one_hot_draws(raw(scores), temperature, rng)
    return Tensor(drawn) if isinstance(scores, Tensor) else drawn


def _one_hot_draws(scores: Array, temperature: float, rng: Any) -> Array:
    """For each row u, uniform on [0, 1): the first key at which the cumulated softmax exceeds u."""
    xp = namespace(scores)
    top = scores.max(-1, keepdims=True)
    below = (scores - where(top == -np.inf, 0, top)) / temperature  # 0 at the top, however cold
    total = cumsum(softmax(below.astype(np.float64), -1), -1)  # in float32, u could round up to one
    reached = total > xp.asarray(rng.random(scores.shape[:-1]))[..., None] * total[..., -1:]
    first = reached & (xp.cumsum(reached, -1) == 1)
    return first.astype(scores.dtype)


def attend(q: Operand, K: Operand, V: Operand, alignment: str = "scaled", distribution: str = "softmax", *,
           mask_mod: MaskMod | None = None, rng: np.random.Generator | None = None, temperature: float = 1.0,
           return_weights: bool = False, **parameters: Any) -> Any:
    """The general attention model: o_i = Σ_j p(a(k_j, q_i)) v_j.

    Parameters
    ----------
    q, K, V : (B, H, N, Dq), (B, H, M, Dk), (B, H, M, Dv)
        Queries, keys and values.
    alignment : str
        a, a line of `alignment_score`; ``**parameters`` are its parameters.
    distribution : str
        p, one of `attention_distribution`, with `rng` and `temperature`.
    mask_mod : callable, optional
        ``mask_mod(b, h, i, j) -> bool``, True where query i sees key j; a query that sees none gets zeros.
    return_weights : bool
        Also return the weights (B, H, N, M).

    Raises
    ------
    ValueError
        If shapes do not fit, or a name or parameter is unknown.

    References
    ----------
    Chaudhari et al., arXiv 1904.02874, equation (1).
    """
    scores = alignment_score(q, K, alignment, **parameters)
    if np.ndim(raw(V)) != 4 or V.shape[:3] != K.shape[:3]:
        raise ValueError(f"V: expected shape {K.shape[:3]} before the features, as in K, "
                         f"got {np.shape(raw(V))}")
    if mask_mod is not None:
        B, H, N, M = scores.shape
        scores = where(mask_array(mask_mod, B, H, N, M, namespace(q)), scores, -np.inf)
    weights = attention_distribution(scores, distribution, temperature=temperature, rng=rng)
    out = weighted_sum(weights, V)
    return (out, weights) if return_weights else out
