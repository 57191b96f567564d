"""Rows of a matrix times vectors, each weight unpacked in a register on its way to the sum.

The dtype of the array says how a row of K weights is stored:

    float32            K numbers
    uint16 (float16)   K half-precision numbers    s eeeee mmmmmmmmmm
    uint8     (q4_1)   K/32 blocks of 20 bytes     d m | 16 bytes: w[j] = d · low + m, w[16+j] = d · high + m
    int8      (q8_0)   K/32 blocks of 34 bytes     d | 32 bytes:   w[j] = d · byte

A block's part of the sum is d Σ q_j x_j + m Σ x_j, so that m costs one product a block. Memory decides the
time of wide rows; the others need about three instructions for 16 weights.
"""

import numpy as np
from numba import njit, prange
from numba.extending import overload

SUMS = {"contract", "reassoc", "nsz"}  # sums in any order; infinities and NaN stay what they are
WIDTH = 32
LIFT = np.float32(2.0**112)  # between the exponents' offsets of float32, 127, and of float16, 15


@njit(inline="always")
def half(bits):
    """A float16, finite, from its 16 bits: sign and exponent moved to where float32 has them."""
    moved = (np.uint32(bits) & np.uint32(0x7FFF)) << np.uint32(13)
    sign = (np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16)
    return np.uint32(moved | sign).view(np.float32) * LIFT


# ---- one row times one vector.  `n` is the length of an inner loop that is always the same: written as a
# number it would be unrolled, and the outer loop made parallel instead, with a gather for each load.


def _dot_dense(w, scales, r, x, sums, n):
    total = np.float32(0)
    for k in range(x.size):
        total += w[r, k] * x[k]
    return total


def _dot_half(w, scales, r, x, sums, n):
    total = np.float32(0)
    for k in range(x.size):
        total += half(w[r, k]) * x[k]
    return total


def _dot_q4(w, scales, r, x, sums, n):
    total = np.float32(0)
    for i in range(sums.size):
        part = np.float32(0)
        for j in range(n // 2):
            c = np.int32(w[r, 20 * i + 4 + j])
            part += np.float32(np.int32(c & np.int32(15))) * x[32 * i + j]
            part += np.float32(np.int32(c >> np.int32(4))) * x[32 * i + 16 + j]
        total += half(scales[r, 10 * i]) * part + half(scales[r, 10 * i + 1]) * sums[i]
    return total


def _dot_q8(w, scales, r, x, sums, n):
    total = np.float32(0)
    for i in range(sums.size):
        part = np.float32(0)
        for j in range(n):
            part += np.float32(np.int32(w[r, 34 * i + 2 + j])) * x[32 * i + j]
        total += half(scales[r, 17 * i]) * part
    return total


# ---- one row unpacked; products and sums rounded one by one, as NumPy does


def _row_half(w, scales, r, out, n):
    for k in range(out.size):
        out[k] = half(w[r, k])


def _row_q4(w, scales, r, out, n):
    for i in range(out.size // WIDTH):
        d, m = half(scales[r, 10 * i]), half(scales[r, 10 * i + 1])
        for j in range(n // 2):
            c = np.int32(w[r, 20 * i + 4 + j])
            out[32 * i + j] = d * np.float32(np.int32(c & np.int32(15))) + m
        for j in range(n // 2):
            c = np.int32(w[r, 20 * i + 4 + j])
            out[32 * i + 16 + j] = d * np.float32(np.int32(c >> np.int32(4))) + m


def _row_q8(w, scales, r, out, n):
    for i in range(out.size // WIDTH):
        d = half(scales[r, 17 * i])
        for j in range(n):
            out[32 * i + j] = d * np.float32(np.int32(w[r, 34 * i + 2 + j]))


DOTS = {"float32": _dot_dense, "uint16": _dot_half, "uint8": _dot_q4, "int8": _dot_q8}
ROWS = {"uint16": _row_half, "uint8": _row_q4, "int8": _row_q8}


def dot(w, scales, r, x, sums, n):
    """Row r of w times x; `scales` is w as 16-bit numbers, `sums` that of each block of x."""
    return DOTS[w.dtype.name](w, scales, r, x, sums, n)


def row(w, scales, r, out, n):
    """Row r of w, unpacked into `out`."""
    ROWS[w.dtype.name](w, scales, r, out, n)


@overload(dot, jit_options={"fastmath": SUMS, "error_model": "numpy"})
def _dot(w, scales, r, x, sums, n):
    return DOTS[w.dtype.name]


@overload(row, jit_options={"error_model": "numpy"})
def _row(w, scales, r, out, n):
    return ROWS[w.dtype.name]


# ---- many rows


@njit(cache=True, fastmath=SUMS, error_model="numpy")
def block_sums(x):
    """The sum of each 32 neighbours in a row of x (B, K)."""
    sums = np.zeros((len(x), x.shape[1] // WIDTH), x.dtype)
    for b in range(len(x)):
        for i in range(sums.shape[1]):
            for k in range(WIDTH * i, WIDTH * (i + 1)):
                sums[b, i] += x[b, k]
    return sums


@njit(cache=True, error_model="numpy")
def multiply(w, x, out):
    """out (B, R) = x (B, K) Wᵀ on one thread."""
    scales, sums = w.view(np.uint16), block_sums(x)
    for r in range(len(w)):
        for b in range(len(x)):
            out[b, r] = dot(w, scales, r, x[b], sums[b], WIDTH)


@njit(parallel=True, cache=True, error_model="numpy")
def multiply_wide(w, x, out):
    """The same for a large W, a run of rows a thread: to start them takes as long as a million weights."""
    scales, sums = w.view(np.uint16), block_sums(x)
    for r in prange(len(w)):
        for b in range(len(x)):
            out[b, r] = dot(w, scales, r, x[b], sums[b], WIDTH)


@njit(parallel=True, cache=True, error_model="numpy")
def unpack(w, out):
    """out (R, K) = W in float32."""
    scales = w.view(np.uint16)
    for r in prange(len(w)):
        row(w, scales, r, out[r], WIDTH)
