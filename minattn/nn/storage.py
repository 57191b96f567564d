"""Named arrays in a file that is never half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Context that gives a temporary path beside `path`, and renames it to `path` at the end.

    Whoever opens `path`, at any moment and after any kill, finds the old or the new file.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())  # first the bytes on the disk, then the name
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray],
                metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays (and named strings) as a safetensors file, atomically."""
    from safetensors.numpy import save_file

    whole = {name: np.asarray(a, order="C") for name, a in arrays.items()}  # the format knows no strides
    with replacing(path) as draft:
        save_file(whole, draft, metadata=None if metadata is None else dict(metadata))


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The named arrays in a safetensors file."""
    from safetensors.numpy import load_file

    return load_file(path)


def load_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The named strings in a safetensors file."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})
