"""Attention in tiles, compiled: a thread takes a tile of queries, and all that it needs stays in its cache.

`forward` and `backward` are the loops of `flash.py` over tiles. Here a tile of scores is Sᵀ, a row a key:

             queries →
           ┌─────────────┐        Sᵀ = K Qᵀ              Q alone is turned, once for all keys
    keys   │             │        O += P V               Pᵀ read by columns
      ↓    │ s_ij        │        dV += Pᵀ dO,  dK += dSᵀ Q,  dQ += dS K
           └─────────────┘

Then neither K nor V is ever turned or copied, and the running maximum and sum of each query, which go from
key to key, are arithmetic between whole rows. The products are `matmul.py`'s; what lies between them goes
over a tile once or twice:

    soften      S → exp(S − m), with running maxima m and sums l
    pay_back    S, dP → P, dS

A row has `lanes(queries)` numbers, of which those beyond the last query mean nothing.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange, typeof, types

from .exp import exp
from .matmul import BYTES, product
from .mods import change_tile

SUMS = {"contract", "reassoc", "nsz"}
SOFTMAX, SIGMOID, RELU = range(3)
HIDDEN, VISIBLE = -1, -2


@njit(error_model="numpy")
def lanes(x, n):
    """Numbers in as many vector registers as n numbers of the kind of x need."""
    W = BYTES // x.itemsize
    return (n + W - 1) // W * W


@njit(error_model="numpy")
def turn(x, factor, out):
    """Columns of `out` ← factor · rows of x; the rest zero."""
    out[:] = out.dtype.type(0)
    for r in range(len(x)):
        for d in range(x.shape[1]):
            out[d, r] = factor * x[r, d]


@njit(error_model="numpy", fastmath=SUMS)
def soften(s, top, total, o):
    """Sᵀ ← exp(Sᵀ − m), with m, l (here `top`, `total`) and o brought up to date; see `flash.py`."""
    best, shift, zero = top.copy(), np.empty_like(top), top.dtype.type(0)
    for c in range(len(s)):
        for r in range(s.shape[1]):
            best[r] = s[c, r] if s[c, r] > best[r] else best[r]
    for r in range(len(top)):
        shift[r] = best[r] if best[r] != -np.inf else zero
        if top[r] != best[r]:
            keep = exp(top[r] - shift[r])
            total[r] *= keep
            for d in range(o.shape[1]):
                o[r, d] *= keep
            top[r] = best[r]
    for c in range(len(s)):
        for r in range(s.shape[1]):
            s[c, r] = exp(s[c, r] - shift[r])
            total[r] += s[c, r]


@njit(error_model="numpy", fastmath=SUMS)
def weigh(s, weight):
    """Weights that need no other score of their row: σ(s) or max(s, 0)."""
    one, zero = s.dtype.type(1), s.dtype.type(0)
    for c in range(len(s)):
        for r in range(s.shape[1]):
            if weight == SIGMOID:
                s[c, r] = one / (one + exp(-s[c, r])) if s[c, r] != -np.inf else zero
            else:
                s[c, r] = s[c, r] if not s[c, r] < zero else zero


@njit(error_model="numpy", fastmath=SUMS)
def pay_back(s, dp, lse, delta, weight):
    """From scores and dP = dO Vᵀ to weights P, in the place of s, and dS, in the place of dP; all turned.

        softmax  P = exp(s − lse),  dS = P ∘ (dP − δ)     δ_i = Σ_d dO_id O_id
        sigmoid  P = σ(s),          dS = P (1 − P) ∘ dP
        relu     P = max(s, 0),     dS = [s > 0] ∘ dP
    """
    one, zero = s.dtype.type(1), s.dtype.type(0)
    if weight == SOFTMAX:
        for c in range(len(s)):
            for r in range(s.shape[1]):
                s[c, r] = exp(s[c, r] - lse[r])
                dp[c, r] = s[c, r] * (dp[c, r] - delta[r])
        return
    weigh(s, weight)
    for c in range(len(s)):
        for r in range(s.shape[1]):
            slope = s[c, r] * (one - s[c, r]) if weight == SIGMOID else (one if s[c, r] > zero else zero)
            dp[c, r] *= slope


@njit(error_model="numpy")
def hide_future(s, i0, j0):
    """−∞ where key j0 + c comes after position i0 + r."""
    for c in range(len(s)):
        for r in range(min(max(j0 + c - i0, 0), s.shape[1])):
            s[c, r] = -np.inf


@njit(error_model="numpy")
def hide_outside(s, runs, j0):
    """−∞ where key j0 + c is outside the run that query r sees: from runs[0, r], before runs[1, r]."""
    for c in range(len(s)):
        for r in range(runs.shape[1]):
            s[c, r] = s[c, r] if (runs[0, r] <= j0 + c) & (j0 + c < runs[1, r]) else -np.inf


@njit(error_model="numpy")
def hide_some(s, seen):
    """−∞ where a tile of a mask, keys by queries, says so."""
    for c in range(len(s)):
        for r in range(seen.shape[1]):
            s[c, r] = s[c, r] if seen[c, r] else -np.inf


@njit(error_model="numpy")
def state_of(table, b, h, i0, j0, tile):
    """HIDDEN, VISIBLE, or the number of the partial tile that holds query i0 and key j0."""
    if table.size == 0:
        return VISIBLE
    return table[b % table.shape[0], h % table.shape[1], i0 // tile, j0 // tile]


@njit(error_model="numpy")
def reach(runs, causal, last, M):
    """The first key that a tile of queries may see, and the first behind; `last` is its last position."""
    begin, end = 0, M
    if runs.size:
        begin, end = max(runs[0].min(), 0), runs[1].max()
    return begin, (min(end, last + 1) if causal else end)


@njit(error_model="numpy")
def hide(s, i0, j0, causal, offset, runs, seen):
    """All kinds of mask on a tile of scores."""
    if causal and j0 + len(s) - 1 > i0 + offset:
        hide_future(s, i0 + offset, j0)
    if runs.size:
        hide_outside(s, runs, j0)
    if seen.size:
        hide_some(s, seen)


@njit(error_model="numpy")
def seen_of(partial, state, i0, m, n, tile):
    """The booleans of a partial tile, keys by queries, for m queries from i0 on; none of a visible one."""
    if state < 0:
        return np.empty((0, 0), np.bool_)
    return partial[state, :n, i0 % tile: i0 % tile + m]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def forward(q, k, v, scale, causal, offset, runs, table, partial, mod, weight, rows, columns, out, lse):
    """Tiles of `rows` queries by `columns` keys; see `flash.py`."""
    (B, H, N, D), (Hk, M, Dv) = q.shape, v.shape[1:]
    tiles, tile, zero, one = (N + rows - 1) // rows, partial.shape[1], q.dtype.type(0), q.dtype.type(1)
    for t in prange(B * H * tiles):
        b, h, i0 = t // (H * tiles), t // tiles % H, t % tiles * rows
        i1, g = min(i0 + rows, N), h // (H // Hk)
        m, w = i1 - i0, lanes(q, i1 - i0)
        turned, space = np.empty((D, w), q.dtype), np.empty(columns * w, q.dtype)
        o = np.zeros((w, Dv), q.dtype)
        top, total = np.full(w, -np.inf, q.dtype), np.zeros(w, q.dtype)
        turn(q[b, h, i0:i1], scale, turned)
        mine = runs[b % runs.shape[0], h % runs.shape[1], :, i0:i1]
        begin, end = reach(mine, causal, i1 - 1 + offset, M)
        for j0 in range(begin, end, columns):
            state = state_of(table, b, h, i0, j0, tile)
            if state == HIDDEN:
                continue
            n = min(columns, end - j0)
            s = space[: n * w].reshape(n, w)
            product(k[b, g, j0: j0 + n], turned, s, one, zero)
            change_tile(mod, s, s, m, b, h, i0, j0)
            hide(s, i0, j0, causal, offset, mine, seen_of(partial, state, i0, m, n, tile))
            if weight == SOFTMAX:
                soften(s, top, total, o)
            else:
                weigh(s, weight)
            product(s.T, v[b, g, j0: j0 + n], o, one, one)
        for r in range(m):
            alive = total[r] if weight == SOFTMAX and total[r] != zero else one
            lse[b, h, i0 + r] = top[r] + math.log(alive)
            for d in range(Dv):
                out[b, h, i0 + r, d] = o[r, d] / alive


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def backward(q, k, v, do, lse, delta, scale, causal, offset, runs, table, partial, mod, weight, rows, columns,
             dq, dk, dv):
    """The gradients; a thread takes a head of keys with its heads of queries, so that nothing is shared."""
    (B, H, N, D), (Hk, M, Dv) = q.shape, v.shape[1:]
    tile, zero, one = partial.shape[1], q.dtype.type(0), q.dtype.type(1)
    for t in prange(B * Hk):
        b, g, widest = t // Hk, t % Hk, lanes(q, rows)
        space, q_space, do_space = (np.empty((3, columns * widest), q.dtype), np.empty(D * widest, q.dtype),
                                    np.empty(Dv * widest, q.dtype))
        for h in range(g * (H // Hk), (g + 1) * (H // Hk)):
            for i0 in range(0, N, rows):
                i1 = min(i0 + rows, N)
                m, w = i1 - i0, lanes(q, i1 - i0)
                q_turned, do_turned = q_space[: D * w].reshape(D, w), do_space[: Dv * w].reshape(Dv, w)
                turn(q[b, h, i0:i1], scale, q_turned)
                turn(do[b, h, i0:i1], one, do_turned)
                shift, mean = np.zeros(w, q.dtype), np.zeros(w, q.dtype)
                for r in range(m):
                    shift[r] = lse[b, h, i0 + r] if lse[b, h, i0 + r] != -np.inf else zero
                    mean[r] = delta[b, h, i0 + r]
                mine = runs[b % runs.shape[0], h % runs.shape[1], :, i0:i1]
                begin, end = reach(mine, causal, i1 - 1 + offset, M)
                for j0 in range(begin, end, columns):
                    state = state_of(table, b, h, i0, j0, tile)
                    if state == HIDDEN:
                        continue
                    n = min(columns, end - j0)
                    s, ds = space[0, : n * w].reshape(n, w), space[1, : n * w].reshape(n, w)
                    slope = space[2, : n * w].reshape(n, w)
                    product(k[b, g, j0: j0 + n], q_turned, s, one, zero)
                    product(v[b, g, j0: j0 + n], do_turned, ds, one, zero)
                    change_tile(mod, s, slope, m, b, h, i0, j0)
                    hide(s, i0, j0, causal, offset, mine, seen_of(partial, state, i0, m, n, tile))
                    pay_back(s, ds, shift, mean, weight)
                    if mod != 0:
                        ds *= slope
                    product(s[:, :m], do[b, h, i0:i1], dv[b, g, j0: j0 + n], one, one)
                    product(ds[:, :m], q[b, h, i0:i1], dk[b, g, j0: j0 + n], scale, one)
                    product(ds[:, :m].T, k[b, g, j0: j0 + n], dq[b, h, i0:i1], scale, one)


def run(kernel: Any, *args: Any) -> None:
    """Call `forward` or `backward`, compiled once for a precision, whatever the layout of the arrays."""
    kinds = tuple(_any_layout(arg) for arg in args)
    if kinds not in kernel.overloads:
        kernel.disable_compile(False)
        kernel.compile(kinds)
        kernel.disable_compile()
    kernel(*args)


def _any_layout(arg: Any) -> Any:
    kind = typeof(arg)
    loose = isinstance(kind, types.Array) and kind.dtype in (types.float32, types.float64) and kind.ndim == 4
    return types.Array(kind.dtype, 4, "A") if loose else kind
