"""Arrays across a pipe without pickle: a length-limited frame of JSON and raw bytes.

    frame = magic (4) · length of the header (4) · length of the body (8) · header (JSON) · body (raw bytes)

The header says what the numbers are: ``{"info": {…}, "arrays": [["<f8", [2, 3]], …]}``.  Whoever reads a
frame checks it against the bytes that came, so that a frame written by hostile code can be refused but can
do nothing. This file runs on both sides of the sandbox's wall and uses NumPy and the standard library alone.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

MAGIC = b"mAt1"
PREFIX = struct.Struct("<4sIQ")
HEADER_LIMIT = 2**20
DTYPES = ("<f8", "<f4", "<f2", "<c16", "<c8", "<i8", "<i4", "<i2", "|i1", "<u8", "<u4", "<u2", "|u1", "|b1")
MAX_DIMS = 8


class Malformed(ValueError):
    """Bytes that are not a frame, or a frame that is larger than was allowed."""


def pack(info: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> bytes:
    """One frame; raises TypeError for an array of objects, strings or dates."""
    told, chunks = [], []
    for array in arrays:
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        if little.dtype.str not in DTYPES or little.ndim > MAX_DIMS:
            raise TypeError(
                f"expected numbers in at most {MAX_DIMS} dimensions, got {array.dtype}, {array.ndim}"
            )
        told.append([little.dtype.str, list(little.shape)])
        chunks.append(little.tobytes())
    header = json.dumps({"info": info, "arrays": told}).encode("ascii")
    body = b"".join(chunks)
    return PREFIX.pack(MAGIC, len(header), len(body)) + header + body


def take(buffer: bytearray, limit: int) -> tuple[dict[str, Any], list[np.ndarray]] | None:
    """Cut the first frame off a buffer; None while it is not complete; `Malformed` if it can never be one."""
    if len(buffer) < PREFIX.size:
        return None
    magic, head, body = PREFIX.unpack_from(buffer)
    if magic != MAGIC or head > HEADER_LIMIT or body > limit:
        raise Malformed(f"expected a frame of at most {limit} bytes")
    end = PREFIX.size + head + body
    if len(buffer) < end:
        return None
    raw = bytes(buffer[PREFIX.size : end])
    del buffer[:end]
    return _read(raw[:head], raw[head:])


def _read(header: bytes, body: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        told = json.loads(header)
        info, listed = told["info"], told["arrays"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise Malformed("the header is not what a frame begins with") from e
    if not isinstance(info, dict) or not isinstance(listed, list):
        raise Malformed("the header is not what a frame begins with")
    arrays, at = [], 0
    for entry in listed:
        dtype, shape = _checked(entry)
        size = math.prod(shape) * dtype.itemsize
        if at + size > len(body):
            raise Malformed("arrays are said to be larger than the bytes that came")
        arrays.append(
            np.frombuffer(body, dtype, math.prod(shape), at).reshape(shape).copy()
            if size
            else np.zeros(shape, dtype)
        )
        at += size
    if at != len(body):
        raise Malformed("more bytes came than the arrays are said to have")
    return info, arrays


def _checked(entry: Any) -> tuple[np.dtype, tuple[int, ...]]:
    """The kind and shape that a header states, refused unless both are plain."""
    if not (
        isinstance(entry, list) and len(entry) == 2 and entry[0] in DTYPES and isinstance(entry[1], list)
    ):
        raise Malformed("an array's kind is not one of those allowed")
    shape = entry[1]
    if len(shape) > MAX_DIMS or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise Malformed("an array's shape is not one of those allowed")
    return np.dtype(entry[0]), tuple(shape)


def encode(values: dict[str, Any], arrays: list[np.ndarray]) -> dict[str, Any]:
    """Named arguments as JSON; arrays are appended to `arrays` and named by their place in it."""
    told: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            told[name] = {"array": len(arrays)}
            arrays.append(value)
        elif isinstance(value, tuple):
            told[name] = {"tuple": list(value)}
        else:
            told[name] = {"value": value}
    return told


def decode(told: dict[str, Any], arrays: list[np.ndarray]) -> dict[str, Any]:
    """The inverse of `encode`; every array is a copy of its own."""
    kinds: dict[str, Any] = {
        "array": lambda at: arrays[at].copy(),
        "tuple": tuple,
        "value": lambda value: value,
    }
    return {name: kinds[kind](what) for name, entry in told.items() for kind, what in entry.items()}
