"""Sigmoid attention: each weight is a sigmoid of its own score, and no row has to sum to one.

    s_ij = q_i · k_j / √D + b        p_ij = 1 / (1 + exp(−s_ij))        o_i = Σ_j p_ij v_j

With n keys and scores near zero the weights of a row sum to n/2 for b = 0, and to n / (n + 1) for b = −ln n:
the bias keeps an output from growing with the length of the text.

Weights of one row do not know one another, so a tile of keys is done when it has been added. Nothing is
carried from tile to tile, forward or backward:

    softmax   m, l ← maximum and sum so far;  O ← O exp(m_old − m) + P V;  at the end O / l;  ln Σ exp is kept
    sigmoid   O ← O + σ(S) V
    softmax   dS = P ∘ (dO Vᵀ − δ),  δ_i = Σ_d dO_id O_id
    sigmoid   dS = P ∘ (1 − P) ∘ dO Vᵀ

Ramapuram et al., Theory, Analysis, and Best Practices for Sigmoid Self-Attention, arXiv 2409.04431 (paper
117).
"""

# mypy: disable-error-code="assignment"

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minattn.attention import attention
from minattn.attention.masks import MaskMod, fitting
from minattn.autograd import astype, cat, jvp, namespace, vjp
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import flash_attention

PAPERS = (117,)

__all__ = ["flash_sigmoid", "jacobian_norm", "naive_jacobian_norm", "naive_sigmoid_attention",
           "sigmoid_attention", "tiled_sigmoid", "tiled_sigmoid_gradients", "visible_bias"]

STRIP = 128
"""Queries whose visible keys are counted at once."""


# ---- the naive form


def naive_sigmoid_attention(q: Array, k: Array, v: Array, b: float | None = None, *,
                            mask_mod: MaskMod | None = None) -> np.ndarray:
    """`sigmoid_attention` with a number b, one weight at a time.

    Parameters
    ----------
    q, k, v : (B, H, N, D), (B, H, M, D), (B, H, M, Dv)
        Real or complex, so that derivatives can be taken by complex steps.
    """
    (B, H, N, D), (M, Dv) = q.shape, v.shape[2:]
    b = -math.log(M) if b is None else b
    out = np.zeros((B, H, N, Dv), np.result_type(q, k, v))
    for n, h, i, j in np.ndindex(B, H, N, M):
        if mask_mod is None or mask_mod(n, h, i, j):
            score = sum(q[n, h, i, d] * k[n, h, j, d] for d in range(D)) / math.sqrt(D) + b
            weight = 1 / (1 + np.exp(-score))
            for d in range(Dv):
                out[n, h, i, d] += weight * v[n, h, j, d]
    return out


# ---- the plug-in


def sigmoid_attention(q: Operand, k: Operand, v: Operand, b: Any = None, *,
                      score_mod: Callable | None = None, mask_mod: MaskMod | None = None,
                      scale: float | None = None, return_weights: bool = False) -> Any:
    """Σ_j σ(scale · q_i · k_j + b) v_j.

    Parameters
    ----------
    q : (B, H, N, D)
    k, v : (B, Hk, M, D) and (B, Hk, M, Dv)
        Hk divides H, as in `minattn.attention.attention`.
    b : float, array, Tensor or "visible", optional
        −ln M by default; "visible" is −ln of the number of keys that a query sees; an array or Tensor
        broadcasts to (B, H, N, 1) and may be learned.
    score_mod : callable, optional
        ``score_mod(score, b, h, i, j) -> score``, of scores that b has been added to.
    mask_mod : callable, optional
        ``mask_mod(b, h, i, j) -> bool``, True where visible.
    scale : float, optional
        1/√D by default.
    return_weights : bool
        Also return the weights (B, H, N, M).

    Returns
    -------
    out : (B, H, N, Dv), or (out, weights)
        Zeros for a query that sees nothing.

    Raises
    ------
    ValueError, TypeError
        If shapes do not fit, b is a word other than "visible", or the scale is 0.

    References
    ----------
    Ramapuram et al., arXiv 2409.04431 (paper 117).
    """
    q, k, scale = with_bias(q, k, b, mask_mod, scale)
    return attention(q, k, v, score_mod=score_mod, mask_mod=mask_mod, normalizer="sigmoid", scale=scale,
                     return_weights=return_weights)


def flash_sigmoid(q: Operand, k: Operand, v: Operand, b: Any = None, *, score_mod: Callable | None = None,
                  mask_mod: MaskMod | None = None, scale: float | None = None) -> Operand:
    """`sigmoid_attention` in compiled tiles at any size: O(N D) memory, forward and backward.

    Parameters and errors are those of `sigmoid_attention`. A causal mask needs no table of tiles.
    """
    q, k, scale = with_bias(q, k, b, mask_mod, scale)
    diagonal = getattr(mask_mod, "diagonal", None)
    how = {"mask_mod": mask_mod} if diagonal is None else {"causal": True, "offset": diagonal}
    return flash_attention(q, k, v, score_mod=score_mod, weight="sigmoid", scale=scale, **how)


def with_bias(q: Operand, k: Operand, b: Any, mask_mod: MaskMod | None, scale: float | None
               ) -> tuple[Operand, Operand, float]:
    """Queries, keys and scale with scale · q' · k' = scale · q · k + b: q' = [q, b / scale] and k' = [k, 1].

    So b may be learned and may differ from query to query, and no loop has to know of it.
    """
    for name, x in (("q", q), ("k", k)):
        if np.ndim(raw(x)) != 4:
            raise ValueError(f"{name}: expected 4 axes (batch, heads, positions, features), "
                             f"got shape {np.shape(raw(x))}")
    (B, H, N, D), M = q.shape, k.shape[2]
    scale = 1 / math.sqrt(D) if scale is None else scale
    if scale == 0:
        raise ValueError("scale: expected a number other than 0, got 0")
    xp = namespace(q)
    if isinstance(b, str):
        if b != "visible":
            raise ValueError(f"b: expected a number, an array or 'visible', got {b!r}")
        b = visible_bias(mask_mod, B, H, N, M)
    elif b is None:
        b = -math.log(M) if M else 0.0
    fitting("b", np.shape(raw(b)), (B, H, N, 1))
    last = xp.zeros((B, H, N, 1), q.dtype) + (astype(b, q.dtype) if hasattr(b, "dtype") else b)
    return cat([q, last / scale], -1), cat([k, xp.ones((*k.shape[:3], 1), k.dtype)], -1), scale


def visible_bias(mask_mod: MaskMod | None, B: int, H: int, N: int, M: int) -> np.ndarray:
    """−ln of the number of keys that each query sees, (B, H, N, 1); 0 for none."""
    if mask_mod is None:
        return np.full((B, H, N, 1), -math.log(M) if M else 0.0)
    b, h, i, j = np.ogrid[:B, :H, :N, :M]
    count = np.empty((B, H, N, 1))
    for start in range(0, N, STRIP):
        rows = i[:, :, start : start + STRIP]
        seen = np.broadcast_to(mask_mod(b, h, rows, j), (B, H, rows.shape[2], M))
        count[:, :, start : start + STRIP] = seen.sum(-1, keepdims=True)
    return -np.log(np.maximum(count, 1))


# ---- the tiles, in NumPy: what the compiled loops do, for one head


def tiled_sigmoid(q: Array, k: Array, v: Array, b: float, *, rows: int = 64, columns: int = 64,
                  order: Sequence[int] | None = None) -> np.ndarray:
    """Σ_j σ(q_i · k_j / √D + b) v_j, a tile of `rows` queries and `columns` keys at a time.

    Parameters
    ----------
    q, k, v : (N, D), (M, D), (M, Dv)
    order : sequence of int, optional
        In which order the tiles of keys come. It does not matter: nothing is carried from one to the next.
    """
    (N, D), M = q.shape, len(k)
    out = np.zeros((N, v.shape[1]), v.dtype)
    for i in range(0, N, rows):
        for t in range(-(-M // columns)) if order is None else order:
            keys = slice(t * columns, (t + 1) * columns)
            p = 1 / (1 + np.exp(-(q[i : i + rows] @ k[keys].T / math.sqrt(D) + b)))
            out[i : i + rows] += p @ v[keys]
    return out


def tiled_sigmoid_gradients(q: Array, k: Array, v: Array, b: float, g: Array, *, rows: int = 64,
                            columns: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of Σ g · o for q, k, v; the weights of each tile are computed again, from nothing saved."""
    (N, D), M = q.shape, len(k)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for i in range(0, N, rows):
        for j in range(0, M, columns):
            mine, keys = slice(i, i + rows), slice(j, j + columns)
            p = 1 / (1 + np.exp(-(q[mine] @ k[keys].T / math.sqrt(D) + b)))
            ds = p * (1 - p) * (g[mine] @ v[keys].T) / math.sqrt(D)
            dv[keys] += p.T @ g[mine]
            dq[mine] += ds @ k[keys]
            dk[keys] += ds.T @ q[mine]
    return dq, dk, dv


# ---- how far an output moves when the input does


def naive_jacobian_norm(f: Callable[[Array], Array], x: Array, step: float = 1e-6) -> float:
    """Largest singular value of the Jacobian of f at x, whose columns are central differences."""
    columns = []
    for at in np.ndindex(x.shape):
        e = np.zeros(x.shape)
        e[at] = step
        columns.append((np.asarray(f(x + e)) - np.asarray(f(x - e))).ravel() / (2 * step))
    return float(np.linalg.svd(np.stack(columns, 1), compute_uv=False)[0])


def jacobian_norm(f: Callable[[Operand], Operand], x: Array, *, steps: int = 50, rng: np.random.Generator,
                  return_vectors: bool = False) -> Any:
    """Largest singular value σ of the Jacobian J of f at x, by power iteration: v ← Jᵀ J v / ‖Jᵀ J v‖.

    J is never formed: J v and Jᵀ u are a forward and a backward derivative.

    Parameters
    ----------
    f : callable
        Of a Tensor, returning one.
    x : array
        Where; in float64.
    steps : int
        Iterations. The error falls as (σ₂/σ₁) to the power of 4 · steps.
    rng : numpy.random.Generator
        Source of the first direction.
    return_vectors : bool
        Also return u and v, of unit length, with σ = uᵀ J v.

    Raises
    ------
    ValueError
        If there is not one step at least.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    v = rng.standard_normal(x.shape)
    v /= np.linalg.norm(v)
    for _ in range(steps):
        u = jvp(f, x, v)[1].data
        size = np.linalg.norm(u)
        if size == 0:
            break
        pulled = vjp(f, x, u / size)[1][0].data
        v = pulled / np.linalg.norm(pulled)
    u = jvp(f, x, v)[1].data
    size = float(np.linalg.norm(u))
    return (size, u / size if size else u, v) if return_vectors else size
