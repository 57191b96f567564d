"""States of stretches of keys, compiled: workers side by side, each key and value read once.

So few queries are no work for BLAS, which would copy the keys to multiply them: memory is the limit here.
"""

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from .flash import soften

SUMS = {"contract", "reassoc", "nsz"}
AHEAD = 8


@intrinsic
def _fetch_line(typingctx, at, offset):
    """Tell the processor that the line at this distance from an address will be read."""
    def generate(context, builder, signature, args):
        byte, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [builder.gep(args[0], [args[1]]), *(ir.Constant(whole, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(types.voidptr, types.intp), generate


@njit(error_model="numpy")
def fetch(x, row):
    """Fetch four rows of x from `row` on, ahead of their use; beyond the last begins the next tile."""
    width = x.shape[1] * x.itemsize
    for at in range(row * width, (row + 4) * width, 64):
        _fetch_line(x.ctypes, at)


@njit(error_model="numpy", fastmath=SUMS)
def score(q, k, s):
    """S ← Q Kᵀ for few queries: four keys at a time, so that four sums run side by side."""
    zero, four = q.dtype.type(0), len(k) // 4 * 4
    for j in range(0, four, 4):
        fetch(k, j + AHEAD)
        for r in range(len(q)):
            s0, s1, s2, s3 = zero, zero, zero, zero
            for d in range(q.shape[1]):
                s0 += q[r, d] * k[j, d]
                s1 += q[r, d] * k[j + 1, d]
                s2 += q[r, d] * k[j + 2, d]
                s3 += q[r, d] * k[j + 3, d]
            s[r, j], s[r, j + 1], s[r, j + 2], s[r, j + 3] = s0, s1, s2, s3
    for j in range(four, len(k)):
        for r in range(len(q)):
            last = zero
            for d in range(q.shape[1]):
                last += q[r, d] * k[j, d]
            s[r, j] = last


@njit(error_model="numpy", fastmath=SUMS)
def gather(p, v, o):
    """O ← O + P V, four values at a time, so that O is read and written once for the four."""
    four = len(v) // 4 * 4
    for j in range(0, four, 4):
        fetch(v, j + AHEAD)
        for r in range(len(o)):
            for d in range(o.shape[1]):
                o[r, d] += (p[r, j] * v[j, d] + p[r, j + 1] * v[j + 1, d]
                            + p[r, j + 2] * v[j + 2, d] + p[r, j + 3] * v[j + 3, d])
    for j in range(four, len(v)):
        for r in range(len(o)):
            for d in range(o.shape[1]):
                o[r, d] += p[r, j] * v[j, d]


@njit(error_model="numpy", fastmath=SUMS)
def take_in(q, k, v, s, m, l, o):
    """The state (m, l, o) of G queries takes in a tile of keys; s (G, keys) is scratch."""
    score(q, k, s)
    soften(s, m, l, o)
    gather(s, v, o)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def states(q, k, v, counts, pieces, starts, tile, m, l, o):
    """The state of every piece: rows `starts[w]` … `starts[w + 1]` of `pieces` are a worker's."""
    Hk, G = q.shape[1], q.shape[2]
    for w in prange(len(starts) - 1):
        space = np.empty(G * tile, q.dtype)
        for p in range(starts[w], starts[w + 1]):
            b, h = pieces[p, 1] // Hk, pieces[p, 1] % Hk
            m[p], l[p], o[p] = -np.inf, 0, 0
            for t in range(pieces[p, 2], pieces[p, 3]):
                first, last = t * tile, min((t + 1) * tile, counts[b])
                s = space[: G * (last - first)].reshape(G, last - first)
                take_in(q[b, h], k[b, h, first:last], v[b, h, first:last], s, m[p], l[p], o[p])
