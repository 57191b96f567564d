"""Likeness times nearness in tiles of keys: forward by blocks of queries, backward by heads.

Keys and values of a tile are turned around, so that its keys lie side by side: every inner loop then runs
along keys, and the compiler makes vectors of them. Four features are taken at a time, so that the sums of a
tile are read and written once for the four.
"""

import numpy as np
from numba import njit, prange

from .exp import exp

KEYS = 64
ROWS = 32
SUMS = {"contract", "reassoc", "nsz"}


@njit(error_model="numpy", fastmath=SUMS)
def score(x, y, e, n):
    """e ← x · y_j and n ← ‖x − y_j‖₁ for the keys of a tile, y (D, keys)."""
    zero, four = x.dtype.type(0), len(x) // 4 * 4
    for j in range(len(e)):
        e[j], n[j] = zero, zero
    for d in range(0, four, 4):
        x0, x1, x2, x3 = x[d], x[d + 1], x[d + 2], x[d + 3]
        y0, y1, y2, y3 = y[d], y[d + 1], y[d + 2], y[d + 3]
        for j in range(len(e)):
            e[j] += x0 * y0[j] + x1 * y1[j] + x2 * y2[j] + x3 * y3[j]
            n[j] += abs(x0 - y0[j]) + abs(x1 - y1[j]) + abs(x2 - y2[j]) + abs(x3 - y3[j])
    for d in range(four, len(x)):
        for j in range(len(e)):
            e[j] += x[d] * y[d, j]
            n[j] += abs(x[d] - y[d, j])


@njit(error_model="numpy", fastmath={"contract"})
def soften(e, n, a, b):
    """e ← tanh(a e) and n ← σ(−b n), from exponentials that cannot overflow."""
    one, two = e.dtype.type(1), e.dtype.type(2)
    for j in range(len(e)):
        t = exp(-two * abs(a * e[j]))
        r = (one - t) / (one + t)
        e[j] = r if a * e[j] >= 0 else -r
        u = exp(-abs(b * n[j]))
        n[j] = (u if b * n[j] >= 0 else one) / (one + u)


@njit(error_model="numpy")
def turn(x, y):
    """y ← xᵀ."""
    for j in range(len(x)):
        for d in range(x.shape[1]):
            y[d, j] = x[j, d]


@njit(error_model="numpy")
def hide(m, seen, first):
    """Weights of hidden keys become 0; `seen` (M) or (1) is the row of the mask."""
    if len(seen) == 1:
        if not seen[0]:
            m[:] = 0
        return
    for j in range(len(m)):
        if not seen[first + j]:
            m[j] = 0


@njit(error_model="numpy")
def mask_row(seen, b, h, i):
    """The row of a mask that broadcasts."""
    return seen[b if len(seen) > 1 else 0, h if seen.shape[1] > 1 else 0, i if seen.shape[2] > 1 else 0]


@njit(error_model="numpy", fastmath=SUMS)
def gather(m, v, o):
    """o ← o + Σ_j m_j v_j."""
    four = len(m) // 4 * 4
    for j in range(0, four, 4):
        for d in range(len(o)):
            o[d] += m[j] * v[j, d] + m[j + 1] * v[j + 1, d] + m[j + 2] * v[j + 2, d] + m[j + 3] * v[j + 3, d]
    for j in range(four, len(m)):
        for d in range(len(o)):
            o[d] += m[j] * v[j, d]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def forward(q, k, v, seen, a, b, c, out):
    """The output; a = α s, b = β s."""
    B, H, N, D = q.shape
    M, blocks = k.shape[2], (N + ROWS - 1) // ROWS
    for task in prange(B * H * blocks):
        z, h = task // blocks // H, task // blocks % H
        first_row, space = task % blocks * ROWS, np.empty((D + 2) * KEYS, q.dtype)
        last_row = min(first_row + ROWS, N)
        out[z, h, first_row:last_row] = 0
        for first in range(0, M, KEYS):
            T = min(KEYS, M - first)
            y = space[: D * T].reshape(D, T)
            e, n = space[D * T : (D + 1) * T], space[(D + 1) * T : (D + 2) * T]
            turn(k[z, h, first : first + T], y)
            for i in range(first_row, last_row):
                score(q[z, h, i], y, e, n)
                soften(e, n, a, b)
                for j in range(T):
                    e[j] *= c * n[j]
                hide(e, mask_row(seen, z, h, i), first)
                gather(e, v[z, h, first : first + T], out[z, h, i])


@njit(error_model="numpy", fastmath=SUMS)
def spread(x, y, de, dn, dx, dy):
    """dx ← dx + Σ_j (de_j y_j − dn_j sign(x − y_j)); dy_j ← dy_j + de_j x + dn_j sign(x − y_j)."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for d in range(len(x)):
        here, s = x[d], zero
        row, back = y[d], dy[d]
        for j in range(len(de)):
            side = (one if here > row[j] else zero) - (one if here < row[j] else zero)
            push = dn[j] * side
            s += de[j] * row[j] - push
            back[j] += de[j] * here + push
        dx[d] += s


@njit(error_model="numpy", fastmath=SUMS)
def project(x, y, s):
    """s ← x · y_j for the keys of a tile, y (D, keys)."""
    zero, four = x.dtype.type(0), len(x) // 4 * 4
    for j in range(len(s)):
        s[j] = zero
    for d in range(0, four, 4):
        x0, x1, x2, x3 = x[d], x[d + 1], x[d + 2], x[d + 3]
        y0, y1, y2, y3 = y[d], y[d + 1], y[d + 2], y[d + 3]
        for j in range(len(s)):
            s[j] += x0 * y0[j] + x1 * y1[j] + x2 * y2[j] + x3 * y3[j]
    for d in range(four, len(x)):
        for j in range(len(s)):
            s[j] += x[d] * y[d, j]


@njit(error_model="numpy", fastmath=SUMS)
def slopes(m, e, n, a, b, c):
    """e ← a de, n ← b dn and m ← the weights, given m = dm, e = tanh and n = σ."""
    one = m.dtype.type(1)
    for j in range(len(e)):
        weight = c * e[j] * n[j]
        e[j] = a * c * m[j] * n[j] * (one - e[j] * e[j])
        n[j] = b * m[j] * weight * (one - n[j])
        m[j] = weight


@njit(error_model="numpy", fastmath=SUMS)
def scatter(m, g, w):
    """w_j ← w_j + m_j g for the keys of a tile, w (Dv, keys)."""
    for d in range(len(g)):
        for j in range(len(m)):
            w[d, j] += m[j] * g[d]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def backward(q, k, v, g, seen, a, b, c, dq, dk, dv):
    """What comes back to q, k and v: a head is one thread's, as every query adds to every key."""
    B, H, N, D = q.shape
    M, Dv = v.shape[2:]
    for task in prange(B * H):
        z, h = task // H, task % H
        space = np.empty((2 * D + 2 * Dv + 3) * KEYS, q.dtype)
        for first in range(0, M, KEYS):
            T = min(KEYS, M - first)
            here = slice(first, first + T)
            y, back = space[: D * T].reshape(D, T), space[D * T : 2 * D * T].reshape(D, T)
            both = space[2 * D * T : 2 * (D + Dv) * T].reshape(2, Dv, T)
            w, sums = both[0], both[1]
            rows = space[2 * (D + Dv) * T : (2 * (D + Dv) + 3) * T].reshape(3, T)
            m, e, n = rows[0], rows[1], rows[2]
            turn(k[z, h, here], y)
            turn(v[z, h, here], w)
            back[:], sums[:] = 0, 0
            for i in range(N):
                score(q[z, h, i], y, e, n)
                soften(e, n, a, b)
                project(g[z, h, i], w, m)
                slopes(m, e, n, a, b, c)
                row = mask_row(seen, z, h, i)
                hide(m, row, first)
                hide(e, row, first)
                hide(n, row, first)
                spread(q[z, h, i], y, e, n, dq[z, h, i], back)
                scatter(m, g[z, h, i], sums)
            turn(back, dk[z, h, here])
            turn(sums, dv[z, h, here])
