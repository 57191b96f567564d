"""Causal linear attention and the delta rule: a matrix as state, with products of matrices inside chunks.

The state S, (D, Dv) for each head, maps keys to values; position t writes to it, then reads:

    linear attention       S_t = α_t S_{t−1} + k_t v_tᵀ                              o_t = S_tᵀ q_t
    delta rule             S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ       o_t = S_tᵀ q_t

(Our S has keys as rows: it is the transpose of the S (I − β k kᵀ) that some papers write.) The delta rule
stores not v_t but its difference from what k_t finds already:

    S_t = α_t S_{t−1} + k_t u_tᵀ    with    u_t = β_t e_t,   e_t = v_t − α_t S_{t−1}ᵀ k_t

so both are one recurrence. Over a chunk of C positions that begins with the state S, let
L_ij = α_{j+1} ⋯ α_i be what is left at i of what j wrote (1 if i = j, 0 if j > i) and c_i = α_1 ⋯ α_i what is
left of S. With rows for positions and ∘ for products of entries,

    O = c ∘ (Q S) + (Q Kᵀ ∘ L) U                        S' = c_C S + Kᵀ (L_C ∘ U)
    E = V − c ∘ (K S) − (K Kᵀ ∘ L, strictly below the diagonal) U,   U = β ∘ E

The last line is a triangular system for E, solved from the first row down (the "WY form" of the product of
the matrices I − β k kᵀ). For linear attention, U = V. Nothing is divided by a decay: α_t may be 0.

A sequence may be cut anywhere: the last state of one part, given as `state` to the next, continues it. The
compiled loops (`cpu/linear_attention.py`) take one head after another; NumPy takes all heads at once.

Katharopoulos et al. 2020 (arXiv 2006.16236), Schlag et al. 2021 (arXiv 2102.11174), Yang et al. 2024
(arXiv 2406.06484; with decay, arXiv 2412.06464).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.autograd import cat, namespace, primitive, reshape, solve, tril, unsqueeze
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, have_blas, launch, recorded
from .scan import apart, check_floats, check_shape, linear_scan, side_by_side

__all__ = ["delta_rule", "linear_attention", "naive_delta_rule", "naive_linear_attention"]

SMALL = 1_000_000
"""Up to so many multiplications by the state, NumPy serves: the compiler takes seconds, once a machine."""


# --- one number at a time ---------------------------------------------------------------------------------

def naive_linear_attention(q: Array, k: Array, v: Array, decay: Array | None = None,
                           state: Array | None = None) -> tuple[Array, Array]:
    """`linear_attention` of arrays and the last state, by loops."""
    out = np.zeros(v.shape)
    S = np.zeros((*q.shape[:2], q.shape[3], v.shape[3])) if state is None else np.array(state, float)
    for b, h, t in np.ndindex(q.shape[:3]):
        for d, e in np.ndindex(S.shape[2:]):
            S[b, h, d, e] *= 1.0 if decay is None else decay[b, h, t]
            S[b, h, d, e] += float(k[b, h, t, d]) * float(v[b, h, t, e])
            out[b, h, t, e] += float(q[b, h, t, d]) * S[b, h, d, e]
    return out, S


def naive_delta_rule(q: Array, k: Array, v: Array, beta: Array, decay: Array | None = None,
                     state: Array | None = None) -> tuple[Array, Array]:
    """`delta_rule` of arrays and the last state, with the matrix I − β k kᵀ written out."""
    out = np.zeros(v.shape)
    D, Dv = q.shape[3], v.shape[3]
    S = np.zeros((*q.shape[:2], D, Dv)) if state is None else np.array(state, float)
    for b, h, t in np.ndindex(q.shape[:3]):
        before, key, step = S[b, h].copy(), k[b, h, t].astype(float), float(beta[b, h, t])
        for d, e in np.ndindex(D, Dv):
            total = 0.0
            for c in range(D):
                total += ((c == d) - step * key[d] * key[c]) * before[c, e]
            S[b, h, d, e] = (1.0 if decay is None else decay[b, h, t]) * total + step * key[d] * v[b, h, t, e]
            out[b, h, t, e] += float(q[b, h, t, d]) * S[b, h, d, e]
    return out, S


# --- the functions ----------------------------------------------------------------------------------------

def linear_attention(q: Operand, k: Operand, v: Operand, decay: Operand | None = None,
                     state: Operand | None = None, *, chunk: int = 64, return_state: bool = False) -> Any:
    """S_t = α_t S_{t−1} + k_t v_tᵀ and o_t = S_tᵀ q_t: causal, without scale, feature map or normalizer.

    Parameters
    ----------
    q, k : (B, H, N, D)
    v : (B, H, N, Dv)
        A feature of ones in v makes the sum of the weights one of the outputs, to divide by.
    decay : (B, H, N), optional
        α, usually in [0, 1]; 1 by default.
    state : (B, H, D, Dv), optional
        S_{−1}, zeros by default.
    chunk : int
        Positions taken at once; the result does not depend on it but for rounding.
    return_state : bool
        Also return S_{N−1}.

    Returns
    -------
    out : (B, H, N, Dv), or (out, state)
        Differentiable any number of times; derivatives of derivatives take the NumPy form.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit, or `chunk` is not positive.
    """
    return _run(q, k, v, None, decay, state, chunk, return_state)


def delta_rule(q: Operand, k: Operand, v: Operand, beta: Operand, decay: Operand | None = None,
               state: Operand | None = None, *, chunk: int = 64, return_state: bool = False) -> Any:
    """S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ and o_t = S_tᵀ q_t.

    Parameters
    ----------
    q, k, v, decay, state, chunk, return_state
        As in `linear_attention`. The keys are used as they are; with |k_t| = 1 and β_t = 1, k_t finds exactly
        v_t afterwards.
    beta : (B, H, N)
        The share of what k_t finds that is replaced.

    Returns
    -------
    out : (B, H, N, Dv), or (out, state)

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit, or `chunk` is not positive.
    """
    check_floats("q", q, "B, H, N, D")
    check_shape("beta", beta, q.shape[:3], q)
    return _run(q, k, v, beta, decay, state, chunk, return_state)


def _run(q: Operand, k: Operand, v: Operand, beta: Operand | None, decay: Operand | None,
         state: Operand | None, chunk: int, return_state: bool) -> Any:
    check_floats("q", q, "B, H, N, D")
    check_floats("v", v, "B, H, N, Dv")
    (B, H, N, D), Dv, xp = q.shape, v.shape[3], namespace(q)
    check_shape("k", k, q.shape, q)
    check_shape("v", v, (B, H, N, Dv), q)
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk: expected a positive integer, got {chunk!r}")
    if decay is None:
        decay = xp.ones((B, H, N), dtype=q.dtype)
    if state is None:
        state = xp.zeros((B, H, D, Dv), dtype=q.dtype)
    check_shape("decay", decay, (B, H, N), q)
    check_shape("state", state, (B, H, D, Dv), q)
    delta, chunk = beta is not None, max(min(chunk, N), 1)
    beta = decay if beta is None else beta
    large = B * H * N * D * Dv > SMALL
    if large and compiled(*map(raw, (q, k, v, decay, beta, state))) and have_blas():
        flat = chunked(q, k, v, decay, beta, state, chunk=chunk, delta=delta)
        out, last = apart(flat, (B, H, N, Dv), (B, H, D, Dv))
    else:
        out, last = chunked_reference(q, k, v, decay, beta, state, chunk, delta)
    return (out, last) if return_state else out


# --- chunks in NumPy --------------------------------------------------------------------------------------

def chunked_reference(q: Operand, k: Operand, v: Operand, decay: Operand, beta: Operand, S: Operand,
                      chunk: int, delta: bool) -> tuple[Operand, Operand]:
    """Output and last state; all heads at once, one chunk after another."""
    outs = []
    for start in range(0, q.shape[2], chunk):
        part = (slice(None), slice(None), slice(start, start + chunk))
        Q, K, V, b = q[part], k[part], v[part], unsqueeze(beta[part], -1)
        c, L = products_of_decays(decay[part])
        U = V
        if delta:
            G = tril(K @ K.mT * L, -1)
            U = b * solve(_identity(G) + G * b.mT, V - c * (K @ S))
        outs.append(c * (Q @ S) + (Q @ K.mT * L) @ U)
        S = c[:, :, -1:] * S + K.mT @ (L[:, :, -1:].mT * U)
    return (cat(outs, 2) if outs else v), S


def _identity(like: Operand) -> Array:
    return namespace(like).eye(like.shape[-1], dtype=like.dtype)


def products_of_decays(decay: Operand) -> tuple[Operand, Operand]:
    """c_i = α_1 ⋯ α_i, (B, H, C, 1), and L_ij = α_{j+1} ⋯ α_i, (B, H, C, C), of decays (B, H, C)."""
    B, H, C = decay.shape
    xp = namespace(decay)
    a = reshape(decay, (B * H, C, 1))
    # Column j of L decays from the 1 at row j on; before the first column comes c, from the 1 before row 1.
    seen = xp.broadcast_to(xp.eye(C, C + 1, 1, dtype=decay.dtype), (B * H, C, C + 1))
    first = xp.broadcast_to(xp.eye(1, C + 1, dtype=decay.dtype), (B * H, C + 1))
    left = reshape(linear_scan(a, seen, first), (B, H, C, C + 1))
    return left[..., :1], left[..., 1:]


# --- chunks compiled --------------------------------------------------------------------------------------

def _heads(*arrays: Array) -> list[Array]:
    """The arrays (B, H, …) as contiguous (B · H, …)."""
    return [np.ascontiguousarray(a).reshape(-1, *a.shape[2:]) for a in arrays]


def _factors(dtype: Any) -> Array:
    """What `product` multiplies by: overwrite, add, subtract."""
    return np.array([[1, 0], [1, 1], [-1, 1]], dtype)


def _chunked(q: Array, k: Array, v: Array, decay: Array, beta: Array, state: Array, /, chunk: int,
             delta: bool) -> tuple[Array, tuple]:
    from .cpu import linear_attention as cpu

    (B, H, N, D), Dv = q.shape, v.shape[3]
    flat, (out, S) = side_by_side(q.dtype, (B * H, N, Dv), (B * H, D, Dv))
    S[:] = state.reshape(S.shape)
    states = np.empty((B * H, -(-N // chunk), D, Dv), q.dtype)
    errors = np.empty((B * H, N, Dv) if delta else (B * H, 0, 0), q.dtype)
    launch(cpu.run, cpu.forward, *_heads(q, k, v, decay, beta), S, states, errors, out, chunk,
           _factors(q.dtype))
    return flat, (states, errors)

def _d_chunked(g, out, q, k, v, decay, beta, state, chunk, delta, saved):
    if saved is None:
        def flat(*args):
            return cat([reshape(part, part.size) for part in chunked_reference(*args, chunk, delta)])
        return recorded(flat, g, q, k, v, decay, beta, state)
    from .cpu import linear_attention as cpu

    dout, dlast = apart(g, v.shape, state.shape)
    dS = np.array(dlast).reshape(-1, *state.shape[2:])
    grads = [np.zeros(x.shape, x.dtype) for x in (q, k, v, decay, beta)]
    launch(cpu.run, cpu.backward, *_heads(q, k, v, decay, beta, dout), *saved, chunk, _factors(q.dtype), dS,
           *_heads(*grads))
    return *grads[:4], (grads[4] if delta else None), dS.reshape(state.shape)


chunked = primitive(_chunked, _d_chunked, "linear_attention", saves=True)
