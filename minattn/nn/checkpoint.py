"""Checkpoints: all a run needs to go on, in one file that is never half-written and is checked when read.

The file has the safetensors format. Its arrays are those found in the content; the rest of the content, with
a mark in the place of each array, is JSON in the file's metadata, beside the SHA-256 of both.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .module import Module
from .storage import save_arrays

__all__ = ["generators", "load", "save"]

MARK = "array:"
"""What the JSON has in the place of an array: this and the array's name. Texts that begin so get one more."""


def _without_arrays(content: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """`content` as JSON can hold it; its arrays go to `arrays` under the path that leads to them."""
    if isinstance(content, Mapping):
        for key in content:
            if not isinstance(key, str):
                raise TypeError(f"{path or 'content'}: expected texts as keys, got {key!r}")
        return {k: _without_arrays(v, f"{path}/{k}" if path else k, arrays) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_arrays(v, f"{path}/{i}", arrays) for i, v in enumerate(content)]
    if isinstance(content, np.ndarray) or hasattr(content, "get"):  # CuPy's .get() brings an array to the CPU
        arrays[path] = np.asarray(content.get() if hasattr(content, "get") else content)
        return MARK + path
    if isinstance(content, np.generic):
        return content.item()
    if isinstance(content, str):
        return MARK + content if content.startswith(MARK) else content
    if content is None or isinstance(content, (bool, int, float)):
        return content
    raise TypeError(f"{path or 'content'}: expected arrays, numbers, texts, None, lists or dictionaries "
                    f"of them, got {type(content).__name__}")


def _with_arrays(content: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Undo `_without_arrays`."""
    if isinstance(content, dict):
        return {k: _with_arrays(v, arrays) for k, v in content.items()}
    if isinstance(content, list):
        return [_with_arrays(v, arrays) for v in content]
    if isinstance(content, str) and content.startswith(MARK):
        rest = content.removeprefix(MARK)
        return rest if rest.startswith(MARK) else arrays[rest]
    return content


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def save(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write `content`: dictionaries and lists, however nested, of arrays, numbers, texts and None.

    The file is made under another name and moved to `path` when it is on the disk, so that a kill at any
    moment leaves the old file or the new one. Tuples come back as lists.
    """
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_without_arrays(content, "", arrays))
    save_arrays(path, arrays, {"content": text, "sha256": _digest(text, arrays)})


def load(path: str | os.PathLike) -> dict[str, Any]:
    """What `save` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no file.
    ValueError
        If the file is cut short, changed, or not a checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no checkpoint {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as e:
        raise ValueError(f"path: {os.fspath(path)!r} is damaged or no checkpoint ({e}); delete it") from e
    if "content" not in metadata or metadata.get("sha256") != _digest(metadata["content"], arrays):
        raise ValueError(f"path: {os.fspath(path)!r} is damaged or no checkpoint (wrong checksum); delete it")
    return _with_arrays(json.loads(metadata["content"]), arrays)


def generators(model: Module) -> Iterator[np.random.Generator]:
    """Random generators that are attributes of modules, as dropout's are; each once, in a fixed order."""
    seen: set[int] = set()
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, np.random.Generator) and id(value) not in seen:
                seen.add(id(value))
                yield value
