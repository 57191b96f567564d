"""Files: what is whole is mapped, and all else is one clear error that leaves everything as it was."""

import hashlib
import json
import pickle
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from minattn import nn
from minattn.nn.init import Blank
from minattn.transformer.pretrained.checkpoint import (
    Checkpoint,
    CheckpointError,
    Settings,
    Source,
    Stored,
    fill,
    listed,
    open_checkpoint,
    open_safetensors,
    read_json,
    their_name,
)

ARRAYS = {
    "up.weight": np.arange(6, dtype=np.float32).reshape(3, 2) - 2.5,
    "up.bias": np.ones(3, np.float32),
    "half": np.array([1.5, -0.25, 65504], np.float16),
    "many": np.arange(4),
}


def write(path, header, data, length=None):
    """A safetensors file, byte by byte."""
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def folder(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text('{"n": 3, "x": 2.5, "name": "a", "none": null, "on": true}')
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- one file


def test_float32_is_the_file_itself_and_read_only(folder):
    stored = open_safetensors(folder / "model.safetensors")
    assert set(stored) == set(ARRAYS)
    for name in ("up.weight", "up.bias"):
        got = stored[name].read()
        np.testing.assert_array_equal(got, ARRAYS[name])
        assert got.dtype == np.float32 and not got.flags.writeable and type(got) is np.ndarray
        base = got
        while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap), "copied"
    # a change of the file is seen: nothing was copied
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-len(np.float32(0).tobytes()), 2)
        last = max(stored, key=lambda name: stored[name].bytes.ctypes.data)
        before = stored[last].bytes.tobytes()
        file.write(b"\x07\x07\x07\x07")
        file.flush()
        assert stored[last].bytes.tobytes() != before


def test_half_precision_is_widened_exactly(tmp_path):
    values = np.array([1.0, -0.15625, 3.0e38, 0.0], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    header = {
        "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
        "h": {"dtype": "F16", "shape": [3], "data_offsets": [8, 14]},
    }
    half = np.array([1.5, -0.25, 65504], np.float16)
    stored = open_safetensors(write(tmp_path / "x.safetensors", header, upper.tobytes() + half.tobytes()))
    want = (upper.astype(np.uint32) << 16).view(np.float32).reshape(2, 2)
    np.testing.assert_array_equal(stored["b"].read(), want)
    np.testing.assert_allclose(stored["b"].read().ravel(), values, rtol=2**-7)
    np.testing.assert_array_equal(stored["h"].read(), half.astype(np.float32))
    assert stored["b"].read().dtype == stored["h"].read().dtype == np.float32


@pytest.mark.parametrize("name", ["many", "wide"])
def test_other_dtypes_are_refused_when_they_are_read(tmp_path, name):
    save_file({"many": np.arange(4), "wide": np.ones(2)}, tmp_path / "x.safetensors")
    stored = open_safetensors(tmp_path / "x.safetensors")[name]
    with pytest.raises(
        CheckpointError, match=rf"x\.safetensors: {name}: expected F32, F16 or BF16, got [IF]64$"
    ):
        stored.read()


def test_arrays_that_are_not_aligned_are_copied_and_right(tmp_path):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "f": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    values = np.array([1.25, -3.0], np.float32)
    for spaces in range(4):
        text = json.dumps(header).encode() + b" " * spaces
        path = write(tmp_path / f"{spaces}.safetensors", text, b"\0" + values.tobytes())
        got = open_safetensors(path)["f"].read()
        np.testing.assert_array_equal(got, values)
        assert got.flags.aligned


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(folder, share):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    before = contents(folder)
    with pytest.raises(
        CheckpointError, match="cut short, damaged or no safetensors file, delete it"
    ) as caught:
        open_safetensors(path)
    assert str(path) in str(caught.value) and contents(folder) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"\xff" * 8 + b[8:],
        lambda b: b[:8] + b"!" + b[9:],
        lambda b: b + b"\0",
        lambda b: b.replace(b'"F32"', b'"F99"', 1),
        lambda b: b.replace(b"[3,2]", b"[3,3]"),
        lambda b: pickle.dumps({"a": [1, 2, 3]}),
        lambda b: b"GGUF" + b[4:],
    ],
)
def test_a_damaged_header_is_refused(folder, damage):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    before = contents(folder)
    with pytest.raises(CheckpointError, match="cut short, damaged or no safetensors"):
        open_safetensors(path)
    assert contents(folder) == before


def test_a_digest_finds_what_the_format_cannot(folder):
    path = folder / "model.safetensors"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(open_safetensors(path, sha256)) == set(ARRAYS)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    assert set(open_safetensors(path)) == set(ARRAYS)
    with pytest.raises(
        CheckpointError, match=f"expected SHA-256 {sha256}, got (?!{sha256})[0-9a-f]{{64}}; another"
    ):
        open_safetensors(path, sha256)
    with pytest.raises(CheckpointError, match="expected SHA-256"):
        open_checkpoint(folder, sha256)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be read \(No such file"):
        open_safetensors(tmp_path / "a.safetensors")


# ---- settings


def test_settings_are_asked_for_by_kind(folder):
    said = Settings(folder / "config.json")
    assert said.get("n", int) == 3 and said.get("x", float) == 2.5 and said.get("on", bool) is True
    got = said.get("n", float)
    assert got == 3.0 and type(got) is float
    assert (
        said.get("none", int, 7) == 7 and said.get("gone", str, None) is None and said.get("n", int, 7) == 3
    )
    for name, kind, message in [
        ("n", str, "n: expected str, got 3"),
        ("on", int, "on: expected int, got True"),
        ("x", int, r"x: expected int, got 2\.5"),
        ("name", float, "name: expected float"),
        ("none", int, "none: expected int, got nothing"),
        ("on", float, "on: expected"),
        ("gone", list, "gone: expected list, got nothing"),
    ]:
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder))}/config.json: {message}"):
            said.get(name, kind)
    assert said.choose("name", {"a": "A", "b": "B"}, "b") == "A"
    assert said.choose("gone", {"a": "A", "b": "B"}, "b") == "B"
    with pytest.raises(CheckpointError, match="name: expected one of b, c, got 'a'"):
        said.choose("name", {"b": "B", "c": "C"}, "b")
    said.require("n", 3)
    said.require("none", 3)
    said.require("gone", 3)
    with pytest.raises(CheckpointError, match="n: only 4 is known here, got 3"):
        said.require("n", 4)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "damaged or no JSON"),
        ("[1]", "expected a dict, got list"),
        (b"\xff\xfe", "damaged or no JSON"),
        ("", "damaged or no JSON"),
    ],
)
def test_other_files_than_json_objects(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        Settings(tmp_path / "config.json")


def test_json_is_read_as_utf_8(tmp_path):
    (tmp_path / "a.json").write_text('["é"]', encoding="utf-8")
    assert read_json(tmp_path / "a.json", list) == ["é"]
    with pytest.raises(CheckpointError, match=r"b\.json: cannot be read \(No such file"):
        read_json(tmp_path / "b.json", list)


# ---- folders


def test_a_folder(folder):
    found = open_checkpoint(str(folder))
    assert found.folder == folder and found.settings.values["n"] == 3 and set(found.arrays) == set(ARRAYS)
    below = found.below("up.")
    assert set(below.arrays) == {"weight", "bias", "half", "many"} and below.folder == folder
    assert below.arrays["weight"] == found.arrays["up.weight"] and below.settings is found.settings


def test_pickles_are_refused_and_never_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (tmp_path / "harm").touch, ()

    (tmp_path / "config.json").write_text("{}")
    for name in ("pytorch_model.bin", "optimizer.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Harm()))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"weights in optimizer\.pt, pytorch_model\.bin only: pickles"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        open_checkpoint(tmp_path)
    assert (
        not (tmp_path / "harm").exists()
        and set(contents(tmp_path)) == {"config.json", "model.safetensors", "optimizer.pt"}
        and len(before) == 3
    )


def test_a_pickle_beside_good_weights_does_not_matter(folder):
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert set(open_checkpoint(folder).arrays) == set(ARRAYS)


def test_folders_without_something(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(No such file"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"has neither model.safetensors nor model.safetensors.index.json$"
    ):
        open_checkpoint(tmp_path)


@pytest.fixture
def shards(folder):
    """The same arrays in two files."""
    (folder / "model.safetensors").unlink()
    save_file({k: ARRAYS[k] for k in ("up.weight", "many")}, folder / "a.safetensors")
    save_file({k: ARRAYS[k] for k in ("up.bias", "half")}, folder / "b.safetensors")
    index(
        folder,
        {
            "up.weight": "a.safetensors",
            "many": "a.safetensors",
            "up.bias": "b.safetensors",
            "half": "b.safetensors",
        },
    )
    return folder


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def test_several_files(shards):
    found = open_checkpoint(shards)
    assert found.folder == shards and found.settings.values["n"] == 3
    arrays = found.arrays
    assert list(arrays) == ["up.weight", "many", "up.bias", "half"]
    for name in ("up.weight", "up.bias", "half"):
        np.testing.assert_array_equal(arrays[name].read(), ARRAYS[name])


def test_one_file_goes_before_an_index(shards):
    save_file({"one": np.ones(1, np.float32)}, shards / "model.safetensors")
    assert list(open_checkpoint(shards).arrays) == ["one"]


def test_indices_that_do_not_fit_their_files(shards):
    index(shards, {"up.weight": "a.safetensors", "gone": "b.safetensors"})
    with pytest.raises(CheckpointError, match=r"index\.json: its files lack gone$"):
        open_checkpoint(shards)
    index(shards, {"up.weight": "c.safetensors"})
    with pytest.raises(CheckpointError, match=r"c\.safetensors: cannot be read"):
        open_checkpoint(shards)
    for place in ("../a.safetensors", str(shards / "a.safetensors"), "x/a.safetensors"):
        index(shards, {"up.weight": place})
        with pytest.raises(CheckpointError, match="expected names of files beside it, got '"):
            open_checkpoint(shards)
    index(shards, [1])
    with pytest.raises(CheckpointError, match="weight_map: expected dict, got"):
        open_checkpoint(shards)
    whole = (shards / "b.safetensors").read_bytes()
    (shards / "b.safetensors").write_bytes(whole[:-1])
    index(shards, {"up.weight": "a.safetensors", "half": "b.safetensors"})
    with pytest.raises(CheckpointError, match=r"b\.safetensors: cut short"):
        open_checkpoint(shards)


# ---- into a model


class Twice(nn.Module):
    """Two layers and a table, tied."""

    def __init__(self):
        self.up = nn.Linear(2, 3, rng=Blank())
        self.down = nn.Linear(3, 2, bias=False, rng=Blank())
        self.table = nn.Embedding(2, 3, rng=Blank())
        self.down.weight = self.table.weight


def checkpoint(folder, **arrays):
    """A checkpoint of arrays in memory; _ stands for a dot."""
    stored = {
        name.replace("_", "."): Stored(name, "F32", a.shape, a.astype(np.float32).reshape(-1).view(np.uint8))
        for name, a in arrays.items()
    }
    return Checkpoint(folder, Settings(folder / "config.json"), stored)


def find(ours):
    if ours == "up.bias":
        return None
    return Source("both", lambda a: a[:3]) if ours == "up.weight" else Source("both", lambda a: a[3:].T)


def test_fill_takes_zero_or_parts_and_keeps_ties(folder):
    both = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    model = fill(Twice(), checkpoint(folder, both=both, extra=both), find, lambda name: name == "extra")
    np.testing.assert_array_equal(model.up.weight.data, both[:3])
    np.testing.assert_array_equal(model.table.weight.data, both[3:].T)
    np.testing.assert_array_equal(model.up.bias.data, np.zeros(3))
    assert (
        model.up.bias.dtype == np.float32 and model.down.weight is model.table.weight and not model.training
    )
    assert np.shares_memory(model.up.weight.data, model.table.weight.data.base)


def test_fill_reads_an_array_once_for_all_its_parts(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        Stored, "read", lambda self: read.append(self.place) or np.zeros(self.shape, np.float32)
    )
    fill(Twice(), checkpoint(folder, both=np.zeros((6, 2)), extra=np.zeros(2)), find, lambda name: True)
    assert read == ["both"]


def test_fill_names_what_is_missing_left_over_or_of_another_shape(folder):
    many = {f"more{n}": np.zeros(1) for n in range(5)}
    with pytest.raises(CheckpointError, match=r"no Twice as config.json says: lacks both$"):
        fill(Twice(), checkpoint(folder), find)
    with pytest.raises(CheckpointError, match=r"says: has also more0, more1, more2 and 2 more$"):
        fill(Twice(), checkpoint(folder, both=np.zeros((6, 2)), **many), find)
    with pytest.raises(CheckpointError, match=r"says: lacks both; has also more0, more1, more2 and 2 more$"):
        fill(Twice(), checkpoint(folder, **many), find)
    for shape in ((5, 2), (6, 3)):
        with pytest.raises(
            CheckpointError,
            match=rf"both of shape \({shape[0]}, {shape[1]}\) does not fit config.json, "
            r"by which (down|up)\.weight has shape",
        ):
            fill(Twice(), checkpoint(folder, both=np.zeros(shape)), find)
    with pytest.raises(CheckpointError, match=r"both of shape \(\) does not fit"):
        fill(Twice(), checkpoint(folder, both=np.zeros(())), find)


def test_names():
    modules = {"embed.token": "wte", "norm1": "ln_1", "attn.q_proj": "q", "alone": "x.alone"}
    assert their_name("embed.token.weight", modules, "h.{}.") == "wte.weight"
    assert their_name("blocks.12.attn.q_proj.bias", modules, "h.{}.") == "h.12.q.bias"
    assert their_name("blocks.0.norm1.weight", modules, "a.{}.b.") == "a.0.b.ln_1.weight"
    assert their_name("alone", modules, "h.{}.") == "x.alone"


def test_lists_of_names_are_short():
    assert [listed("abcde"[:n]) for n in range(6)] == [
        "",
        "a",
        "a, b",
        "a, b, c",
        "a, b, c and 1 more",
        "a, b, c and 2 more",
    ]
    assert listed(iter("abc"), most=1) == "a and 2 more"
