"""Attention in tiles, compiled: a thread takes a tile of queries, and all that it needs stays in its cache.

`forward` and `backward` are the loops of `flash.py` over tiles. The products are BLAS's (`gemm.py`); what
lies between them goes over a tile once or twice:

    soften      S → exp(S − m), with running maxima m and sums l
    pay_back    S, dP → P, dS

The largest of many floats has no fast loop, because NaN gives comparisons an order. The bits of a float, read
as an integer, grow with it if it is positive and fall if it is negative; with all but the sign flipped in the
second case they grow throughout, and the largest of many integers has one.
"""

import math
from typing import Any

import numpy as np
from numba import njit, prange, typeof, types
from numba.extending import overload

from .exp import exp
from .gemm import one_blas_thread, product
from .mods import change_tile

SUMS = {"contract", "reassoc", "nsz"}
SOFTMAX, SIGMOID, RELU = range(3)
HIDDEN, VISIBLE = -1, -2


def _bits(s):
    """A tile of floats, read as integers."""
    return s.view(np.int32 if s.itemsize == 4 else np.int64)


@overload(_bits)
def _bits_of(s):
    integer = types.int32 if s.dtype is types.float32 else types.int64
    return lambda s: s.view(integer)


@njit(error_model="numpy")
def raise_tops(s, top):
    """top_r ← max(top_r, max_c s_rc), in place."""
    bits, tops = _bits(s), _bits(top)
    integer = bits.dtype.type
    sign, rest = integer(8 * bits.itemsize - 1), integer(np.iinfo(bits.dtype).max)
    for r in range(len(s)):
        best = tops[r] ^ ((tops[r] >> sign) & rest)
        for c in range(s.shape[1]):
            best = max(best, integer(bits[r, c] ^ ((bits[r, c] >> sign) & rest)))
        tops[r] = best ^ ((best >> sign) & rest)


@njit(error_model="numpy", fastmath=SUMS)
def soften(s, top, total, o):
    """S ← exp(S − m), with m, l (here `top`, `total`) and o brought up to date; see `flash.py`."""
    before = top.copy()
    raise_tops(s, top)
    zero = s.dtype.type(0)
    for r in range(len(s)):
        shift, part = top[r] if top[r] != -np.inf else zero, zero
        for c in range(s.shape[1]):
            s[r, c] = exp(s[r, c] - shift)
            part += s[r, c]
        if before[r] != top[r]:
            keep = exp(before[r] - shift)
            total[r] *= keep
            for d in range(o.shape[1]):
                o[r, d] *= keep
        total[r] += part


@njit(error_model="numpy", fastmath=SUMS)
def weigh(s, weight):
    """Weights that need no other score of their row: σ(s) or max(s, 0)."""
    one, zero = s.dtype.type(1), s.dtype.type(0)
    for r in range(len(s)):
        for c in range(s.shape[1]):
            if weight == SIGMOID:
                s[r, c] = one / (one + exp(-s[r, c])) if s[r, c] != -np.inf else zero
            else:
                s[r, c] = s[r, c] if not s[r, c] < zero else zero


@njit(error_model="numpy", fastmath=SUMS)
def pay_back(s, dp, lse, delta, weight):
    """From scores and dP = dO Vᵀ to weights P, in the place of s, and dS, in the place of dP.

        softmax  P = exp(s − lse),  dS = P ∘ (dP − δ)     δ_i = Σ_d dO_id O_id
        sigmoid  P = σ(s),          dS = P (1 − P) ∘ dP
        relu     P = max(s, 0),     dS = [s > 0] ∘ dP
    """
    one, zero = s.dtype.type(1), s.dtype.type(0)
    if weight == SOFTMAX:
        for r in range(len(s)):
            shift, mean = lse[r] if lse[r] != -np.inf else zero, delta[r]
            for c in range(s.shape[1]):
                s[r, c] = exp(s[r, c] - shift)
                dp[r, c] = s[r, c] * (dp[r, c] - mean)
        return
    weigh(s, weight)
    for r in range(len(s)):
        for c in range(s.shape[1]):
            slope = s[r, c] * (one - s[r, c]) if weight == SIGMOID else (one if s[r, c] > zero else zero)
            dp[r, c] *= slope


@njit(error_model="numpy")
def hide_future(s, i0, j0):
    """−∞ where key j0 + c comes after position i0 + r."""
    for r in range(len(s)):
        for c in range(max(i0 + r + 1 - j0, 0), s.shape[1]):
            s[r, c] = -np.inf


@njit(error_model="numpy")
def hide_some(s, seen):
    """−∞ where a tile of a mask says so."""
    for r in range(len(s)):
        for c in range(s.shape[1]):
            s[r, c] = s[r, c] if seen[r, c] else -np.inf


@njit(error_model="numpy")
def state_of(table, b, h, i0, j0, tile):
    """HIDDEN, VISIBLE, or the number of the partial tile that holds query i0 and key j0."""
    if table.size == 0:
        return VISIBLE
    return table[b % table.shape[0], h % table.shape[1], i0 // tile, j0 // tile]


@njit(error_model="numpy")
def hide(s, i0, j0, causal, offset, partial, state):
    """Both kinds of mask on a tile of scores."""
    if causal and j0 + s.shape[1] - 1 > i0 + offset:
        hide_future(s, i0 + offset, j0)
    if state >= 0:
        hide_some(s, partial[state])


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def forward(q, k, v, factors, causal, offset, table, partial, mod, weight, rows, columns, out, lse):
    """Tiles of `rows` queries by `columns` keys; see `flash.py`."""
    (B, H, N, _), (Hk, M, Dv) = q.shape, v.shape[1:]
    tiles, zero, one = (N + rows - 1) // rows, q.dtype.type(0), q.dtype.type(1)
    for t in prange(B * H * tiles):
        b, h, i0 = t // (H * tiles), t // tiles % H, t % tiles * rows
        i1, g = min(i0 + rows, N), h // (H // Hk)
        o, m = out[b, h, i0:i1], i1 - i0
        o[:] = zero
        space = np.empty(rows * columns, q.dtype)
        top, total = np.full(m, -np.inf, q.dtype), np.zeros(m, q.dtype)
        end = max(min(M, i1 + offset), 0) if causal else M
        for j0 in range(0, end, columns):
            state = state_of(table, b, h, i0, j0, columns)
            if state == HIDDEN:
                continue
            j1 = min(j0 + columns, end)
            s = space[: m * (j1 - j0)].reshape(m, j1 - j0)
            product(q[b, h, i0:i1], False, k[b, g, j0:j1], True, s, factors[0])
            change_tile(mod, s, s, b, h, i0, j0)
            hide(s, i0, j0, causal, offset, partial, state)
            if weight == SOFTMAX:
                soften(s, top, total, o)
            else:
                weigh(s, weight)
            product(s, False, v[b, g, j0:j1], False, o, factors[1])
        if weight == SOFTMAX:
            for r in range(m):
                alive = total[r] if total[r] != zero else one
                lse[b, h, i0 + r] = top[r] + math.log(alive)
                for d in range(Dv):
                    o[r, d] /= alive


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def backward(q, k, v, do, lse, delta, factors, causal, offset, table, partial, mod, weight, rows, columns,
             dq, dk, dv):
    """The gradients; a thread takes a head of keys with its heads of queries, so that nothing is shared."""
    (B, H, N, _), (Hk, M, _) = q.shape, v.shape[1:]
    for t in prange(B * Hk):
        b, g = t // Hk, t % Hk
        space = np.empty((3, rows * columns), q.dtype)
        for h in range(g * (H // Hk), (g + 1) * (H // Hk)):
            for j0 in range(0, M, columns):
                start = max(j0 - offset, 0) // rows * rows if causal else 0
                for i0 in range(start, N, rows):
                    i1, j1 = min(i0 + rows, N), min(j0 + columns, M)
                    if causal:
                        j1 = min(j1, i1 + offset)
                    m, n = i1 - i0, j1 - j0
                    state = state_of(table, b, h, i0, j0, columns)
                    if state == HIDDEN or n <= 0:  # with fewer queries than keys, none may see the last
                        continue
                    s, ds = space[0, : m * n].reshape(m, n), space[1, : m * n].reshape(m, n)
                    slope = space[2, : m * n].reshape(m, n)
                    product(q[b, h, i0:i1], False, k[b, g, j0:j1], True, s, factors[0])
                    product(do[b, h, i0:i1], False, v[b, g, j0:j1], True, ds, factors[2])
                    change_tile(mod, s, slope, b, h, i0, j0)
                    hide(s, i0, j0, causal, offset, partial, state)
                    pay_back(s, ds, lse[b, h, i0:i1], delta[b, h, i0:i1], weight)
                    product(s, True, do[b, h, i0:i1], False, dv[b, g, j0:j1], factors[1])
                    if mod != 0:
                        ds *= slope
                    product(ds, True, q[b, h, i0:i1], False, dk[b, g, j0:j1], factors[3])
                    product(ds, False, k[b, g, j0:j1], False, dq[b, h, i0:i1], factors[3])


def run(kernel: Any, *args: Any) -> None:
    """Call `forward` or `backward`, compiled once for a precision, whatever the layout of the arrays."""
    kinds = tuple(_any_layout(arg) for arg in args)
    if kinds not in kernel.overloads:
        kernel.disable_compile(False)
        kernel.compile(kinds)
        kernel.disable_compile()
    with one_blas_thread():
        kernel(*args)


def _any_layout(arg: Any) -> Any:
    kind = typeof(arg)
    loose = isinstance(kind, types.Array) and kind.dtype in (types.float32, types.float64) and kind.ndim == 4
    return types.Array(kind.dtype, 4, "A") if loose else kind
