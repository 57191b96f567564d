"""Checkpoints in Hugging Face's layout: a folder with ``config.json`` and arrays in safetensors files.

    8 bytes: n │ n bytes of JSON: name → dtype, shape, first and last byte │ the arrays, end to end

Such a file is mapped into memory and its float32 arrays are views of it: loading reads nothing but the
header, and of the rest only what is used, when it is used. Nothing here can run code: pickles are refused
unread.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from minattn.nn import Module

M = TypeVar("M", bound=Module)

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that run code when they are read as they are meant to be."""


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded; the message names the file and what is wrong with it."""


class Stored(NamedTuple):
    """An array that is still in its file: safetensors' name of its dtype, its shape, its bytes, mapped."""

    place: str
    dtype: str
    shape: tuple[int, ...]
    bytes: np.ndarray

    def read(self) -> np.ndarray:
        """The array in float32: a view of the file if it is kept so and aligned, else a copy.

        Raises
        ------
        CheckpointError
            If its dtype is none of F32, F16 and BF16.
        """
        if self.dtype == "F32":
            values = np.require(self.bytes.view("<f4"), np.float32, "A")
        elif self.dtype == "F16":
            values = self.bytes.view("<f2").astype(np.float32)
        elif self.dtype == "BF16":  # the upper half of a float32
            values = (self.bytes.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            raise CheckpointError(f"{self.place}: expected F32, F16 or BF16, got {self.dtype}")
        return values.reshape(self.shape)


def open_safetensors(path: str | os.PathLike, sha256: str | None = None) -> dict[str, Stored]:
    """The arrays of a safetensors file by name, none of them read yet.

    Parameters
    ----------
    path : path
    sha256 : str, optional
        What the file's digest must be; the whole file is then read once.

    Raises
    ------
    CheckpointError
        If the file is missing, cut short, damaged, or another than `sha256` says.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with open(path, "rb") as file:
            digest = sha256 and hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise CheckpointError(f"{path}: expected SHA-256 {sha256}, got {digest}; another or a damaged "
                                  "file, delete it")
        with safe_open(path, framework="np"):  # the format's own library says whether the file is whole
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cut short, damaged or no safetensors file, delete it ({error})"
                              ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    mapped = np.asarray(np.memmap(path, np.uint8, "r"))
    start = 8 + int(mapped[:8].view("<u8")[0])
    header = json.loads(mapped[8:start].tobytes())
    header.pop("__metadata__", None)
    return {name: Stored(f"{path}: {name}", entry["dtype"], tuple(entry["shape"]),
                         mapped[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]])
            for name, entry in header.items()}


def read_json(path: Path, kind: type) -> Any:
    """What a JSON file holds, if that is of this kind (dict or list); else a CheckpointError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged or no JSON ({error})") from error
    if not isinstance(values, kind):
        raise CheckpointError(f"{path}: expected a {kind.__name__}, got {type(values).__name__}")
    return values


class Settings:
    """A JSON file with an object in it, whose values are asked for by name and kind.

    Raises
    ------
    CheckpointError
        If the file is missing or holds something else.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.values: dict[str, Any] = read_json(self.path, dict)

    def get(self, name: str, kind: type, default: Any = ...) -> Any:
        """The value of that name; without a default, or where it is of another kind, a CheckpointError."""
        value = self.values.get(name)
        if value is None and default is not ...:
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"{self.path}: {name}: expected {kind.__name__}, "
                                  f"got {'nothing' if value is None else repr(value)}")
        return value

    def choose(self, name: str, choices: Mapping[str, str], default: str) -> str:
        """What the name of an option means here; an unknown one is a CheckpointError."""
        value = self.get(name, str, default)
        if value not in choices:
            raise CheckpointError(f"{self.path}: {name}: expected one of {', '.join(choices)}, got {value!r}")
        return choices[value]

    def require(self, name: str, wanted: Any) -> None:
        """Refuse every value but `wanted`, which is also what is meant where there is none."""
        value = self.values.get(name)
        if value is not None and value != wanted:
            raise CheckpointError(f"{self.path}: {name}: only {wanted!r} is known here, got {value!r}")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model: its settings, and its arrays by name."""

    folder: Path
    settings: Settings
    arrays: dict[str, Stored]

    def below(self, prefix: str) -> Checkpoint:
        """The same with `prefix` taken off the names that begin with it: a model with a head keeps its trunk
        under a name of its own, a trunk alone does not."""
        return Checkpoint(self.folder, self.settings,
                          {name.removeprefix(prefix): stored for name, stored in self.arrays.items()})


def open_checkpoint(folder: str | os.PathLike, sha256: str | None = None) -> Checkpoint:
    """The checkpoint in a folder: one ``model.safetensors``, or several with an index.

    Parameters
    ----------
    folder : path
    sha256 : str, optional
        Digest of ``model.safetensors``.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or there are only pickled weights.
    """
    folder = Path(folder)
    settings = Settings(folder / "config.json")
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise CheckpointError(_without_weights(folder))
        return Checkpoint(folder, settings, open_safetensors(folder / SINGLE, sha256))
    return Checkpoint(folder, settings, _open_shards(folder))


def _without_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if not pickled:
        return f"{folder}: has neither {SINGLE} nor {INDEX}"
    return (f"{folder}: has its weights in {listed(pickled)} only: pickles, which can run any code when they "
            f"are read, are never read here; convert it to {SINGLE}, as save_pretrained of transformers does")


def _open_shards(folder: Path) -> dict[str, Stored]:
    """The arrays of several files, as the index distributes them."""
    index = Settings(folder / INDEX)
    places = index.get("weight_map", dict)
    shards = {}
    for shard in sorted(set(map(str, places.values()))):
        if Path(shard).name != shard:
            raise CheckpointError(f"{index.path}: expected names of files beside it, got {shard!r}")
        shards[shard] = open_safetensors(folder / shard)
    missing = [name for name, shard in places.items() if name not in shards[str(shard)]]
    if missing:
        raise CheckpointError(f"{index.path}: its files lack {listed(missing)}")
    return {name: shards[shard][name] for name, shard in places.items()}


class Source(NamedTuple):
    """Where a parameter's values come from: an array's name, and what is done with the array."""

    name: str
    take: Callable[[np.ndarray], np.ndarray] = lambda values: values


def fill(model: M, checkpoint: Checkpoint, find: Callable[[str], Source | None],
         ignored: Callable[[str], bool] = lambda name: False) -> M:
    """Give a model the arrays of a checkpoint, without copying them; returns the model in evaluation mode.

    Parameters
    ----------
    model : Module
        Made with `minattn.nn.init.Blank`.
    checkpoint : Checkpoint
    find : callable
        Name of a parameter to its `Source`; None where the checkpoint has none because it is zero.
    ignored : callable
        Whether an array of that name may be left over: buffers, and parts that the model does without.

    Raises
    ------
    CheckpointError
        If an array is missing, left over, of another shape, or of a dtype that is not known.
    """
    parameters = dict(model.named_parameters())
    sources = {name: source for name in parameters if (source := find(name)) is not None}
    wanted = {source.name for source in sources.values()}
    missing = sorted(wanted - checkpoint.arrays.keys())
    extra = [name for name in checkpoint.arrays if name not in wanted and not ignored(name)]
    if missing or extra:
        what = "; ".join(f"{word} {listed(names)}"
                         for word, names in (("lacks", missing), ("has also", extra)) if names)
        raise CheckpointError(f"{checkpoint.folder}: no {type(model).__name__} as config.json says: {what}")
    read = {name: checkpoint.arrays[name].read() for name in wanted}
    state = {name: np.zeros(p.shape, np.float32) for name, p in parameters.items() if name not in sources}
    for name, source in sources.items():
        found, shape = read[source.name], parameters[name].shape
        state[name] = source.take(found) if found.ndim else found
        if state[name].shape != shape:
            raise CheckpointError(f"{checkpoint.folder}: {source.name} of shape {found.shape} does not fit "
                                  f"config.json, by which {name} has shape {shape}")
    model.load_state_dict(state, assign=True)
    return model.eval()


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def their_name(ours: str, modules: Mapping[str, str], block: str) -> str:
    """ "blocks.3.norm1.weight" is `block`, with 3 in place of {}, then ``modules["norm1"]``, then ".weight".

    A parameter with no module around it stands in `modules` itself.
    """
    if ours in modules:
        return modules[ours]
    module, _, kind = ours.rpartition(".")
    if not module.startswith("blocks."):
        return f"{modules[module]}.{kind}"
    _, n, module = module.split(".", 2)
    return f"{block.format(n)}{modules[module]}.{kind}"
