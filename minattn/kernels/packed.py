"""Matrices in fewer bits than float32: half precision, and groups of 32 weights with a common scale.

    float16   K numbers of 2 bytes a row                                                  16   bits a weight
    q8_0      K/32 blocks of 34 bytes: d | q_0 … q_31                    w_j = d q_j       8.5
    q4_1      K/32 blocks of 20 bytes: d m | q_0 q_16, q_1 q_17, …       w_j = d q_j + m   5

d and m are float16, q of q8_0 is a signed byte, and of q4_1 a nibble, two to a byte, the first in the lower
half. The layout is that of GGUF files, so that a memory-mapped file is used as it is.

A product with few vectors unpacks each weight in a register (`cpu/packed.py`): it is read once, and reading
is what costs. With many, tiles of the matrix are unpacked and multiplied by BLAS. The reference in NumPy,
`_unpacked`, stands in for the compiled forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minattn.autograd import namespace, primitive
from minattn.autograd.engine import Array, Operand

from .dispatch import compiled, launch

__all__ = ["KINDS", "Packed", "pack", "packed_linear"]

WIDTH = 32
KINDS: dict[str, tuple[Any, int, int]] = {"float16": (np.uint16, 1, 1), "q4_1": (np.uint8, 32, 20),
                                          "q8_0": (np.int8, 32, 34)}
"""For each kind: dtype in which it is stored, weights in a block, and entries of that dtype in a block."""

FEW = 4
"""With up to so many vectors each weight is unpacked once for each."""

WIDE = 1 << 21
"""Products of so many numbers are shared out among threads."""

TILE = 1 << 19
"""Weights that are unpacked at a time, 2 MB in float32."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix (R, K) in packed form.

    Attributes
    ----------
    kind : {"float16", "q4_1", "q8_0"}
    data : array (R, stored)
        Rows as they are stored: bits of float16 in uint16, blocks as uint8 (q4_1) or int8 (q8_0). May be a
        view of a memory-mapped file.
    shape : (R, K)

    Raises
    ------
    ValueError
        If there is no such kind, or `data` does not hold a matrix of this shape in it.
    """

    kind: str
    data: np.ndarray
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        dtype, width, stored = KINDS[self.kind]
        rows, columns = self.shape
        if columns % width:
            raise ValueError(f"shape: {self.kind} needs rows of a multiple of {width} weights, got {columns}")
        expected = (rows, columns // width * stored)
        if self.data.dtype != dtype or self.data.shape != expected:
            raise ValueError(f"data: expected {np.dtype(dtype)} of shape {expected}, "
                             f"got {self.data.dtype} {self.data.shape}")

    @property
    def nbytes(self) -> int:
        """Bytes that the packed form takes."""
        return self.data.nbytes

    def rows(self, ids: Array) -> np.ndarray:
        """The rows `ids` (…) in float32, (…, K)."""
        ids = np.asarray(ids)
        return _unpacked(self.kind, self.data[ids.reshape(-1)]).reshape(*ids.shape, self.shape[1])

    def dense(self) -> np.ndarray:
        """The whole matrix in float32."""
        return self.tile(0, self.shape[0])

    def tile(self, start: int, stop: int) -> np.ndarray:
        """Rows from `start` to `stop` in float32."""
        part = self.data[start:stop]
        out = np.empty((len(part), self.shape[1]), np.float32)
        if not compiled(out):
            return _unpacked(self.kind, part)
        from .cpu.packed import unpack

        launch(unpack, part, out)
        return out


def _unpacked(kind: str, data: Array) -> np.ndarray:
    """Packed rows in float32."""
    if kind == "float16":
        return data.view(np.float16).astype(np.float32)
    stored = KINDS[kind][2]
    blocks = np.ascontiguousarray(data).view(np.uint8).reshape(len(data), data.shape[1] // stored, stored)
    d = _scale(blocks[..., :2])
    if kind == "q4_1":
        q = blocks[..., 4:]
        values = np.concatenate([q & 15, q >> 4], -1) * d + _scale(blocks[..., 2:4])
    else:
        values = blocks[..., 2:].view(np.int8) * d
    return values.reshape(len(data), blocks.shape[1] * WIDTH)


def _scale(pair: Array) -> np.ndarray:
    """float16 numbers, given as their bytes (…, 2), in float32, (…, 1)."""
    return np.ascontiguousarray(pair).view(np.float16).astype(np.float32)


def pack(array: Array, kind: str) -> Packed:
    """A matrix (R, K) in packed form, rounded to the nearest that the kind can hold.

    In q8_0 a block's largest magnitude becomes ±127; in q4_1 its smallest weight 0 and its largest 15.

    Raises
    ------
    ValueError
        If `array` is no matrix of finite numbers, or K is no multiple of a block, or a number is beyond
        float16.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    array = np.asarray(array, np.float32)
    if array.ndim != 2 or array.shape[1] % KINDS[kind][1]:
        raise ValueError(f"array: expected a matrix with rows of a multiple of {KINDS[kind][1]} for {kind}, "
                         f"got shape {array.shape}")
    if not np.abs(array).max(initial=0) < 65520:  # what float16 rounds to infinity; also catches NaN
        raise ValueError(f"array: expected finite numbers within float16's range, ±65504, for {kind}")
    if kind == "float16":
        return Packed(kind, array.astype(np.float16).view(np.uint16), array.shape)
    blocks = array.reshape(len(array), -1, WIDTH)
    data = (_to_q4_1 if kind == "q4_1" else _to_q8_0)(blocks).reshape(len(array), -1)
    return Packed(kind, data.view(KINDS[kind][0]), array.shape)


def _to_q4_1(blocks: Array) -> np.ndarray:
    low = blocks.min(-1, keepdims=True)
    d = (blocks.max(-1, keepdims=True) - low) / np.float32(15)
    q = np.floor((blocks - low) * _inverse(d) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_bytes(d), _bytes(low), q[..., :16] | q[..., 16:] << 4], -1)


def _to_q8_0(blocks: Array) -> np.ndarray:
    d = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    q = blocks * _inverse(d)
    rounded = np.sign(q) * np.floor(np.abs(q) + np.float32(0.5))  # halves away from zero, as C's roundf
    return np.concatenate([_bytes(d), rounded.astype(np.int8).view(np.uint8)], -1)


def _inverse(d: Array) -> Array:
    return np.where(d == 0, 0, 1 / np.where(d == 0, 1, d)).astype(np.float32)


def _bytes(scale: Array) -> np.ndarray:
    """Numbers (R, n, 1) as float16, their bytes apart: (R, n, 2)."""
    return scale.astype(np.float16).view(np.uint8)


# ---- products


def _times(x: Array, /, weight: Packed) -> Array:
    rows = np.ascontiguousarray(x).reshape(-1, weight.shape[1])
    out = np.empty((len(rows), weight.shape[0]), x.dtype)
    work = rows.size * weight.shape[0]
    if len(rows) <= FEW and x.dtype == np.float32 and compiled(rows, work=work):
        from .cpu import packed

        launch(packed.multiply_wide if work > WIDE else packed.multiply, weight.data, rows, out)
    else:
        for start, w in _tiles(weight, x.dtype):
            np.matmul(rows, w.T, out=out[:, start : start + len(w)])
    return out.reshape(*x.shape[:-1], weight.shape[0])

def _d_times(g, out, x, weight):
    return times_transposed(g, weight=weight)


def _times_transposed(g: Array, /, weight: Packed) -> Array:
    rows = g.reshape(-1, weight.shape[0])
    out = np.zeros((len(rows), weight.shape[1]), g.dtype)
    for start, w in _tiles(weight, g.dtype):
        out += rows[:, start : start + len(w)] @ w
    return out.reshape(*g.shape[:-1], weight.shape[1])

def _d_times_transposed(h, out, g, weight):
    return times(h, weight=weight)


def _tiles(weight: Packed, dtype: Any) -> Any:
    """(first row, tile of rows in `dtype`), one after the other."""
    R, K = weight.shape
    step = max(1, TILE // K)
    for start in range(0, R, step):
        yield start, weight.tile(start, min(start + step, R)).astype(dtype, copy=False)


def packed_linear(x: Operand, weight: Packed, bias: Operand | None = None) -> Operand:
    """x Wᵀ + b for x (…, K) and a packed W (R, K); differentiable in x and b.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    TypeError
        If x is not an array of floating numbers in NumPy.
    """
    if x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"x: expected {weight.shape[1]} features in the last axis, got shape {x.shape}")
    if namespace(x) is not np or x.dtype.kind != "f":
        raise TypeError(f"x: expected floating numbers in NumPy, got {x.dtype} in {namespace(x).__name__}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape {weight.shape[:1]}, the rows of weight, got {bias.shape}")
    out = times(x, weight=weight)
    return out if bias is None else out + bias


times = primitive(_times, _d_times, "packed_linear")
times_transposed = primitive(_times_transposed, _d_times_transposed)
