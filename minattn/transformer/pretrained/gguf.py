"""GGUF, the file of llama.cpp: metadata, then named tensors, many of them in blocks of few bits.

    "GGUF"  version  tensors  entries │ key type value … │ name axes sizes type offset … │ padding │ data
     4 B      u32      u64      u64        metadata           one a tensor                to 32 bytes

Numbers are little-endian, strings a length (u64) and UTF-8. Sizes come innermost axis first.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from minattn.kernels.packed import KINDS, Packed

from .checkpoint import CheckpointError

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_KINDS = {0: "float32", 1: "float16", 3: "q4_1", 8: "q8_0"}


class _Entry(NamedTuple):
    """Where a tensor lies in the file, and as what."""

    kind: str
    shape: Any
    offset: int
    stored: tuple[tuple[int, ...], np.dtype]


class GGUF:
    """An open GGUF file.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    fields : mapping of str to number, str, or list of them
        The metadata; lists are read when they are asked for.
    tensors : dict of str to (kind, shape, offset, stored)

    Raises
    ------
    CheckpointError
        If it is not a whole GGUF file of version 2 or 3, or a tensor is of a type unknown here.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        try:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writable; the file stays
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from error
        self._at = 0
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise self._broken("its header is cut off or damaged") from error

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: not a usable GGUF file: {what}")

    def _read_header(self) -> None:
        if self._map[:4] != b"GGUF":
            raise self._broken(f"it starts with {self._map[:4]!r}")
        self._at = 4
        version, tensors, entries = self._numbers("IQQ")
        if version not in (2, 3):
            raise self._broken(f"expected version 2 or 3, got {version}")
        self.fields = _Fields({self._string(): self._value(*self._numbers("I")) for _ in range(entries)})
        found = [self._tensor() for _ in range(tensors)]
        align = self.fields.get("general.alignment", 32)
        start = -(-self._at // align) * align
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, 0, self._at)  # the vocabulary, until it is asked for
        self.tensors = {name: entry._replace(offset=start + entry.offset) for name, entry in found}
        for name, entry in self.tensors.items():
            if entry.offset + _nbytes(entry) > len(self._map):
                raise self._broken(f"it ends before the tensor {name}")

    def _numbers(self, form: str) -> tuple:
        values = struct.unpack_from(f"<{form}", self._map, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._map):
            raise self._broken("its header is cut off or damaged")
        return self._map[start : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            start = self._at
            kind, count = self._numbers("IQ")
            self._skip(kind, count)
            return lambda: self._array(start)
        if kind not in _NUMBERS:
            raise self._broken(f"metadata of unknown type {kind}")
        return self._numbers(_NUMBERS[kind])[0]

    def _skip(self, kind: int, count: int) -> None:
        """Pass over the entries of an array."""
        if kind in _NUMBERS:
            self._at += count * struct.calcsize(f"<{_NUMBERS[kind]}")
        elif kind == _STRING:
            length = struct.Struct("<Q")
            for _ in range(count):
                self._at += 8 + length.unpack_from(self._map, self._at)[0]
        else:
            raise self._broken(f"metadata with an array of type {kind}")

    def _array(self, start: int) -> list:
        self._at = start
        kind, count = self._numbers("IQ")
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        return list(self._numbers(f"{count}{_NUMBERS[kind]}"))

    def _tensor(self) -> tuple[str, _Entry]:
        name, (axes,) = self._string(), self._numbers("I")
        *sizes, kind, offset = self._numbers(f"{axes}QIQ")
        if kind not in _KINDS:
            raise self._broken(f"tensor {name} is of type {kind}; known are {_KINDS}")
        shape = tuple(reversed(sizes))
        if _KINDS[kind] == "float32":
            return name, _Entry("float32", shape, offset, (shape, np.dtype(np.float32)))
        dtype, width, stored = KINDS[_KINDS[kind]]
        if len(shape) != 2 or shape[1] % width:
            raise self._broken(f"tensor {name} has shape {shape} in {_KINDS[kind]}")
        return name, _Entry(_KINDS[kind], shape, offset,
                            ((shape[0], shape[1] // width * stored), np.dtype(dtype)))

    def read(self, name: str, mapped: bool = False) -> np.ndarray | Packed:
        """A tensor: a float32 array, or packed.

        Parameters
        ----------
        name : str
        mapped : bool
            Whether the array is the file in memory, of which only what is used is read; else it is a copy.
        """
        entry = self.tensors[name]
        shape, dtype = entry.stored
        count = math.prod(shape)
        if mapped:
            data = np.frombuffer(self._map, dtype, count, entry.offset)
        else:
            data = np.fromfile(self.path, dtype, count, offset=entry.offset)
            self._leave(entry)
        data = data.reshape(shape)
        return data if entry.kind == "float32" else Packed(entry.kind, data, entry.shape)

    def _leave(self, entry: _Entry) -> None:
        """Keep the pages of a tensor that was copied from being mapped along with their neighbours."""
        first = -(-entry.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (entry.offset + _nbytes(entry)) // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(self._map, "madvise") and last > first:
            self._map.madvise(mmap.MADV_RANDOM, first, last - first)


class _Fields(Mapping):
    """Values by name, those that are functions called first."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        return value() if callable(value) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _nbytes(entry: _Entry) -> int:
    shape, dtype = entry.stored
    return math.prod(shape) * dtype.itemsize
