"""Attention whose weights are a likeness times a nearness, both signed and none of them normalised.

    e_ij = α s q_i · k_j            how alike
    n_ij = −β s ‖q_i − k_j‖₁        how near: 0 where the two are the same, negative elsewhere
    m_ij = c tanh(e_ij) σ(n_ij)     between −c/2 and c/2
    o_i  = Σ_j m_ij v_j

A sum of absolute differences is no matrix product, so the tiles go through it number by number, vectorised
over the keys of a tile. Nothing is normalised: tiles of keys are simply added, without a running maximum, a
sum or anything saved for the way back, which computes e and n once more:

               keys of a tile →                    dm = g vᵀ
    query q_i  e n → m · · · ·   o_i += m v        de = dm c σ(n) (1 − tanh² e)
               (the tile is all that is stored)    dn = dm m (1 − σ(n))
                                                   dq_i = Σ_j α s de k_j − β s dn sign(q_i − k_j)
                                                   dk_j = Σ_i α s de q_i + β s dn sign(q_i − k_j)

Memory is O(N) beside the inputs. The slope of |x| at 0 is 0. A mask is an array that broadcasts; one of
padding, (B, 1, 1, M), stays small.

Li et al., Comateformer, arXiv 2412.07220 (paper 134), and Tay et al., Compositional De-Attention Networks,
2019. The compiled loops are in `cpu/dual_affinity.py`.
"""

from __future__ import annotations

import math

import numpy as np

from minattn.autograd import matmul, namespace, primitive, sigmoid, sign, tanh, where
from minattn.autograd import sum as total
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, launch

__all__ = ["l1_distance", "naive_quasi_attention", "quasi_attention"]


def naive_quasi_attention(q: Array, k: Array, v: Array, *, alpha: float = 1.0, beta: float = 1.0,
                          double: bool = True, scale: float | None = None, visible: Array | None = None,
                          g: Array | None = None) -> tuple[np.ndarray, ...]:
    """`quasi_attention` pair by pair: the output and, for a cotangent g, what comes back to q, k and v."""
    (B, H, N, D), (M, Dv) = q.shape, v.shape[2:]
    s, c = 1 / math.sqrt(D) if scale is None else scale, 2.0 if double else 1.0
    seen = np.broadcast_to(True if visible is None else visible, (B, H, N, M))
    out, dq, dk, dv = np.zeros((B, H, N, Dv)), np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for b, h, i, j in np.ndindex(B, H, N, M):
        if not seen[b, h, i, j]:
            continue
        x, y, value = q[b, h, i], k[b, h, j], v[b, h, j]
        alike = math.tanh(alpha * s * math.fsum(x[d] * y[d] for d in range(D)))
        near = 1 / (1 + math.exp(beta * s * math.fsum(abs(x[d] - y[d]) for d in range(D))))
        for e in range(Dv):
            out[b, h, i, e] += c * alike * near * value[e]
        if g is None:
            continue
        for e in range(Dv):
            dv[b, h, j, e] += c * alike * near * g[b, h, i, e]
        dm = math.fsum(g[b, h, i, e] * value[e] for e in range(Dv))
        by_likeness = alpha * s * dm * c * near * (1 - alike**2)
        by_nearness = -beta * s * dm * c * alike * near * (1 - near)
        for d in range(D):
            side = (x[d] > y[d]) - float(x[d] < y[d])
            dq[b, h, i, d] += by_likeness * y[d] + by_nearness * side
            dk[b, h, j, d] += by_likeness * x[d] - by_nearness * side
    return (out,) if g is None else (out, dq, dk, dv)


# --- all pairs at once ------------------------------------------------------------------------------------

def _l1_distance(q: Array, k: Array, /) -> Array:
    """Σ_d |q_id − k_jd|: (…, N, D) and (…, M, D) → (…, N, M), one feature after another."""
    xp = namespace(q)
    out = xp.zeros((*q.shape[:-1], k.shape[-2]), dtype=q.dtype)
    for d in range(q.shape[-1]):
        out += xp.abs(q[..., :, None, d] - k[..., None, :, d])
    return out

def _d_l1_distance(g, out, q, k):
    def sides():
        return sign(q[..., :, None, :] - k[..., None, :, :]) * g[..., None]

    return lambda: total(sides(), -2), lambda: -total(sides(), -3)


l1_distance = primitive(_l1_distance, _d_l1_distance, real=True)


def _dense(q: Operand, k: Operand, v: Operand, alpha: float, beta: float, double: bool, scale: float,
           visible: Array | None) -> Operand:
    """The output from matrices of all pairs."""
    alike, near = _factors(q, k, alpha, beta, scale)
    return _shown((2 if double else 1) * alike * near, visible) @ v

def _d_dense(g, q, k, v, alpha, beta, double, scale, visible):
    alike, near = _factors(q, k, alpha, beta, scale)
    c = 2 if double else 1
    dm = _shown(c * matmul(g, v.mT), visible)
    de = alpha * scale * dm * near * (1 - alike * alike)
    by_q, by_k = _d_l1_distance(-beta * scale * dm * alike * near * (1 - near), None, q, k)
    return (lambda: de @ k + by_q(), lambda: de.mT @ q + by_k(),
            lambda: _shown(c * alike * near, visible).mT @ g)


def _factors(q: Operand, k: Operand, alpha: float, beta: float, scale: float) -> tuple[Operand, Operand]:
    """tanh(e) and σ(n), each (B, H, N, M)."""
    return tanh(alpha * scale * matmul(q, k.mT)), sigmoid(-beta * scale * l1_distance(q, k))


def _shown(m: Operand, visible: Array | None) -> Operand:
    return m if visible is None else where(visible, m, 0)


# --- tiles ------------------------------------------------------------------------------------------------

def _tiled(q: Array, k: Array, v: Array, /, alpha: float, beta: float, double: bool, scale: float,
           visible: Array | None) -> Array:
    """Σ_j m_ij v_j."""
    if not (q.size and k.size and v.size and compiled(q, k, v, work=_work(q, k))):
        return _dense(q, k, v, alpha, beta, double, scale, visible)
    from .cpu import dual_affinity

    out = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
    factors = (q.dtype.type(alpha * scale), q.dtype.type(beta * scale), q.dtype.type(2 if double else 1))
    launch(dual_affinity.forward, *map(np.ascontiguousarray, (q, k, v)), _seen(visible, q, k), *factors, out)
    return out

def _d_tiled(g, out, q, k, v, alpha, beta, double, scale, visible):
    plain = all(isinstance(x, np.ndarray) for x in (g, q, k, v))  # else the derivative is being recorded
    if not (plain and q.size and k.size and v.size and compiled(q, k, v, g, work=_work(q, k))):
        return _d_dense(g, q, k, v, alpha, beta, double, scale, visible)
    from .cpu import dual_affinity

    found = tuple(np.zeros(x.shape, x.dtype) for x in (q, k, v))
    factors = (q.dtype.type(alpha * scale), q.dtype.type(beta * scale), q.dtype.type(2 if double else 1))
    arrays = map(np.ascontiguousarray, (q, k, v, g))
    launch(dual_affinity.backward, *arrays, _seen(visible, q, k), *factors, *found)
    return found


def _seen(visible: Array | None, q: Array, k: Array) -> np.ndarray:
    """The mask at its own size, one axis for each of (B, H, N, M); (1, 1, 1, 1) if all is visible."""
    return np.ones((1, 1, 1, 1), bool) if visible is None else np.ascontiguousarray(visible)


def _work(q: Array, k: Array) -> int:
    return q.size * k.shape[2]


tiled = primitive(_tiled, _d_tiled, "quasi_attention", real=True)


def quasi_attention(q: Operand, k: Operand, v: Operand, *, alpha: float = 1.0, beta: float = 1.0,
                    double: bool = True, scale: float | None = None, visible: Array | None = None) -> Operand:
    """Σ_j c tanh(α s q_i · k_j) σ(−β s ‖q_i − k_j‖₁) v_j, in tiles.

    Parameters
    ----------
    q : (B, H, N, D)
    k, v : (B, H, M, D) and (B, H, M, Dv)
    alpha, beta : float
    double : bool
        Whether c is 2, so that weights reach ±1; else it is 1 and they reach ±1/2.
    scale : float, optional
        s, by default 1/√D.
    visible : array of bool, optional
        Four axes that broadcast to (B, H, N, M); a pair that is not visible has weight 0.

    Returns
    -------
    (B, H, N, Dv)
        Zeros for a query that sees nothing.

    Raises
    ------
    ValueError
        If shapes do not fit.
    TypeError
        If `visible` is not boolean.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if np.ndim(raw(x)) != 4:
            raise ValueError(f"{name}: expected 4 axes (batch, heads, positions, features), "
                             f"got shape {np.shape(raw(x))}")
    (B, H, N, D), M = q.shape, k.shape[2]
    if k.shape != (B, H, M, D):
        raise ValueError(f"k: expected batch, heads and features {(B, H, D)} as in q, got shape {k.shape}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v: expected shape {k.shape[:3]} before the features, as in k, got {v.shape}")
    if visible is not None:
        if visible.dtype != bool:
            raise TypeError(f"visible: expected booleans, got {visible.dtype}")
        full = (B, H, N, M)
        if visible.ndim != 4 or any(n not in (1, m) for n, m in zip(visible.shape, full, strict=True)):
            raise ValueError(f"visible: expected 4 axes that broadcast to {full}, got {visible.shape}")
    scale = 1 / math.sqrt(max(D, 1)) if scale is None else scale
    return tiled(q, k, v, alpha=alpha, beta=beta, double=double, scale=scale, visible=visible)
