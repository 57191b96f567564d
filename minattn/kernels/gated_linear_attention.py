"""Causal linear attention whose state forgets each feature of the keys at a rate of its own.

    S_t = diag(a_t) S_{t−1} + k_t v_tᵀ                              o_t = S_tᵀ q_t

with a_t one number for each feature; `linear_attention` has one for each position. Over a chunk of C
positions that begins with the state S, let L_ijd = a_{j+1,d} ⋯ a_{i,d} be what is left at i of feature d that
j wrote (1 if i = j, 0 if j > i), and c_id = a_{1,d} ⋯ a_{i,d}:

    O = (c ∘ Q) S + A V    with    A_ij = Σ_d q_id k_jd L_ijd
    S' = diag(c_C) S + (K ∘ L_C)ᵀ V

The usual way to A is one product of matrices, (c ∘ Q) (K / c)ᵀ. It divides by decays, overflows when they are
strong, and needs secondary chunks and logarithms to be saved. Here nothing is divided by a decay and no
logarithm is taken: a_t may be 0. NumPy takes C² D products for it (`chunked_reference`). The compiled loops
(`cpu/gated_linear_attention.py`) need none: a state of D × Dv numbers stays in the cache, and going from
position to position costs no more than the products of the chunked form do; chunks are where the backward
pass takes up a kept state and goes forwards again.

Yang et al. 2024 (arXiv 2312.06635).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.autograd import cat, namespace, primitive, reshape, sum, unsqueeze
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, launch, recorded
from .linear_attention import products_of_decays
from .scan import apart, check_floats, check_shape, side_by_side

__all__ = ["gated_linear_attention", "naive_gated_linear_attention"]

SMALL = 1_000_000
"""Up to so many multiplications by the state, NumPy serves: the compiler takes seconds, once a machine."""
CHUNK = 16


def naive_gated_linear_attention(q: Array, k: Array, v: Array, decay: Array, state: Array | None = None
                                 ) -> tuple[Array, Array]:
    """`gated_linear_attention` of arrays and the last state, by loops."""
    out = np.zeros(v.shape)
    S = np.zeros((*q.shape[:2], q.shape[3], v.shape[3])) if state is None else np.array(state, float)
    for b, h, t in np.ndindex(q.shape[:3]):
        for d, e in np.ndindex(S.shape[2:]):
            S[b, h, d, e] *= float(decay[b, h, t, d])
            S[b, h, d, e] += float(k[b, h, t, d]) * float(v[b, h, t, e])
            out[b, h, t, e] += float(q[b, h, t, d]) * S[b, h, d, e]
    return out, S


def gated_linear_attention(q: Operand, k: Operand, v: Operand, decay: Operand, state: Operand | None = None,
                           *, return_state: bool = False) -> Any:
    """S_t = diag(a_t) S_{t−1} + k_t v_tᵀ and o_t = S_tᵀ q_t: causal, without scale or normalizer.

    Parameters
    ----------
    q, k : (B, H, N, D)
    v : (B, H, N, Dv)
    decay : (B, H, N, D)
        a, usually in [0, 1]; exact for any number, 0 among them.
    state : (B, H, D, Dv), optional
        S_{−1}, zeros by default.
    return_state : bool
        Also return S_{N−1}, which continues the sequence when given as `state` to the next part.

    Returns
    -------
    out : (B, H, N, Dv), or (out, state)
        Differentiable any number of times; derivatives of derivatives take the NumPy form.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    check_floats("q", q, "B, H, N, D")
    check_floats("v", v, "B, H, N, Dv")
    (B, H, N, D), Dv = q.shape, v.shape[3]
    if state is None:
        state = namespace(q).zeros((B, H, D, Dv), dtype=q.dtype)
    for name, value, shape in (("k", k, q.shape), ("v", v, (B, H, N, Dv)), ("decay", decay, q.shape),
                               ("state", state, (B, H, D, Dv))):
        check_shape(name, value, shape, q)
    work = B * H * N * D * Dv
    if work > SMALL and compiled(*map(raw, (q, k, v, decay, state)), work=work):
        out, last = apart(gated(q, k, v, decay, state), (B, H, N, Dv), (B, H, D, Dv))
    else:
        out, last = chunked_reference(q, k, v, decay, state)
    return (out, last) if return_state else out


def chunked_reference(q: Operand, k: Operand, v: Operand, decay: Operand, S: Operand
                      ) -> tuple[Operand, Operand]:
    """Output and last state; all heads at once, one chunk after another."""
    B, H, N, D = q.shape
    outs = []
    for start in range(0, N, CHUNK):
        part = (slice(None), slice(None), slice(start, start + CHUNK))
        Q, K, V, a = q[part].mT, k[part].mT, v[part], decay[part].mT
        C = a.shape[3]
        c, L = products_of_decays(reshape(a, (B, H * D, C)))
        c, L = reshape(c, (B, H, D, C)), reshape(L, (B, H, D, C, C))
        A = sum(unsqueeze(Q, 4) * unsqueeze(K, 3) * L, 2)
        outs.append((c * Q).mT @ S + A @ V)
        S = c[..., -1:] * S + (K * L[..., -1, :]) @ V
    return (cat(outs, 2) if outs else v), S


def _flat_reference(*args: Operand) -> Operand:
    return cat([reshape(part, part.size) for part in chunked_reference(*args)])


def _heads(*arrays: Array) -> list[Array]:
    """The arrays (B, H, …) as contiguous (B · H, …)."""
    return [np.ascontiguousarray(a).reshape(-1, *a.shape[2:]) for a in arrays]


def _gated(q: Array, k: Array, v: Array, decay: Array, state: Array, /) -> tuple[Array, Array]:
    from .cpu import gated_linear_attention as cpu

    (B, H, N, D), Dv = q.shape, v.shape[3]
    flat, (out, S) = side_by_side(q.dtype, (B * H, N, Dv), (B * H, D, Dv))
    S[:] = state.reshape(S.shape)
    states = np.empty((B * H, -(-N // CHUNK), D, Dv), q.dtype)
    launch(cpu.forward, *_heads(q, k, v, decay), S, states, out, CHUNK)
    return flat, states

def _d_gated(g, out, q, k, v, decay, state, saved):
    if saved is None:
        return recorded(_flat_reference, g, q, k, v, decay, state)
    from .cpu import gated_linear_attention as cpu

    dout, dlast = apart(g, v.shape, state.shape)
    dS = np.array(dlast).reshape(-1, *state.shape[2:])
    grads = [np.empty(x.shape, x.dtype) for x in (q, k, v, decay)]
    launch(cpu.backward, *_heads(q, k, v, decay, dout), saved, CHUNK, dS, *_heads(*grads))
    return *grads, dS.reshape(state.shape)


gated = primitive(_gated, _d_gated, "gated_linear_attention", saves=True)
