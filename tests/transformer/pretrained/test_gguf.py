"""The reader of GGUF files against the `gguf` library, which writes them and reads them in its own way."""

import mmap
import struct

import numpy as np
import pytest

from minattn.kernels.packed import Packed, pack
from minattn.transformer.pretrained import CheckpointError
from minattn.transformer.pretrained.gguf import GGUF

gguf = pytest.importorskip("gguf", reason="the judge: pip install gguf")

VALUES = {"a.uint8": ("uint8", 7), "a.int8": ("int8", -7), "a.uint16": ("uint16", 700),
          "a.int16": ("int16", -700), "a.uint32": ("uint32", 70000),
          "a.int32": ("int32", -70000), "a.uint64": ("uint64", 2**40),
          "a.int64": ("int64", -(2**40)), "a.float32": ("float32", 0.5), "a.float64": ("float64", 0.1),
          "a.bool": ("bool", True), "a.text": ("string", "ein schöner Tag"),
          "a.texts": ("array", ["", "ab", "ü"]), "a.numbers": ("array", [3, -1, 2]),
          "a.floats": ("array", [0.5, 2.0])}


def tensors():
    rng = np.random.default_rng(0)
    return {"plain": rng.standard_normal(5).astype(np.float32),
            "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "float16": rng.standard_normal((3, 7)), "q4_1": rng.standard_normal((3, 64)),
            "q8_0": rng.standard_normal((2, 32))}


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "model.gguf")


def write(path, alignment=32):
    writer = gguf.GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for name, (kind, value) in VALUES.items():
        getattr(writer, f"add_{kind}")(name, value)
    for name, values in tensors().items():
        kind = {"q4_1": "Q4_1", "q8_0": "Q8_0", "float16": "F16"}.get(name)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), number),
                              raw_dtype=None if kind == "F16" else number)
    for each in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, each)()
    return path


@pytest.mark.parametrize("alignment", [32, 256])
@pytest.mark.parametrize("mapped", [True, False])
def test_what_was_written_is_read(tmp_path, alignment, mapped):
    read = GGUF(write(tmp_path / "model.gguf", alignment))
    for name, (_, value) in VALUES.items():
        assert read.fields[name] == value and type(read.fields[name]) is type(value), name
    assert read.fields["general.architecture"] == "llama" and "b" not in read.fields
    assert len(read.fields) == len(list(read.fields)) >= len(VALUES) + 1
    assert list(read.tensors) == list(tensors())
    for name, values in tensors().items():
        got = read.read(name, mapped=mapped)
        if name in ("plain", "cube"):
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, values)
        else:
            assert isinstance(got, Packed) and got.kind == name and got.shape == values.shape
            np.testing.assert_array_equal(got.data, pack(values, name).data)
        assert (got if isinstance(got, np.ndarray) else got.data).flags.writeable


def test_the_library_reads_the_same(file):
    theirs = {t.name: t for t in gguf.GGUFReader(file).tensors}
    ours = GGUF(file)
    for name, entry in ours.tensors.items():
        assert entry.offset == theirs[name].data_offset


def test_what_is_done_to_the_arrays_stays_in_memory(file):
    before = file.read_bytes()
    read = GGUF(file)
    for mapped in (True, False):
        read.read("plain", mapped=mapped)[:] = 7
        read.read("q4_1", mapped=mapped).data[:] = 7
    assert (GGUF(file).read("plain") == tensors()["plain"]).all() and file.read_bytes() == before


def test_a_copy_may_be_made_after_the_file_is_in_use(tmp_path):
    """Pages of large tensors that are copied are left out of the mapping; what is read stays the same."""
    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    large = np.arange(60_000, dtype=np.float32)
    for name in "abc":
        writer.add_tensor(name, large)
    for each in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, each)()
    read = GGUF(path)
    mapped, copied = read.read("a", mapped=True), read.read("b")
    for got in (mapped, copied, read.read("b", mapped=True), read.read("c", mapped=True)):
        np.testing.assert_array_equal(got, large)


class Advised:
    """In the place of a mapping: what it is told about its pages."""

    def __init__(self):
        self.told = []

    def madvise(self, *what):
        self.told.append(what)


def test_whole_pages_of_what_is_copied_are_left_out_of_the_mapping(file, tmp_path):
    path, page = tmp_path / "large.gguf", mmap.PAGESIZE
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("small", np.ones(7, np.float32))
    writer.add_tensor("large", np.ones(5 * page, np.float32))
    for each in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, each)()
    read = GGUF(path)
    assert read.tensors["large"].shape == (5 * page,) and GGUF(file).tensors["cube"].shape == (2, 3, 4)
    start = read.tensors["large"].offset
    read._map = Advised()
    read.read("small")
    assert read._map.told == []
    assert read.read("large").sum() == 5 * page
    ((advice, first, length),) = read._map.told
    assert advice == mmap.MADV_RANDOM and first % page == length % page == 0
    assert start <= first < start + page and 0 <= start + 4 * 5 * page - (first + length) < page


def test_a_copy_is_apart_from_the_mapping(file):
    read = GGUF(file)
    mapped = read.read("plain", mapped=True)
    mapped[:] = 7
    assert (read.read("plain") != 7).all() and (read.read("plain", mapped=True) == 7).all()


# ---- what cannot be used

CUT = (": (its header is cut off or damaged|it ends before the tensor [a-z0-9_]+|it starts with b'.*'"
       "|.*empty file)$")


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        GGUF(path)
    assert str(path) in str(caught.value)


def test_a_file_cut_off_anywhere_is_refused(file, tmp_path):
    whole, cut = file.read_bytes(), tmp_path / "cut.gguf"
    last = max(e.offset for e in GGUF(file).tensors.values())
    refusals = set()
    for size in [0, 1, 3, 4, 10, *range(24, last, 37), last, len(whole) - 32 - 34]:
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=CUT) as caught:
            GGUF(cut)
        refusals.add(str(caught.value).split(": ", 1)[1][:40])
    assert len(refusals) >= 4


def test_damage_is_refused(file, tmp_path):
    good = file.read_bytes()
    damaged = tmp_path / "damaged.gguf"

    def with_bytes(at, new):
        damaged.write_bytes(good[:at] + new + good[at + len(new) :])
        return damaged

    refused(with_bytes(0, b"GGML"), "not a usable GGUF file: it starts with b'GGML'")
    refused(with_bytes(4, struct.pack("<I", 1)), "expected version 2 or 3, got 1")
    refused(with_bytes(4, struct.pack("<I", 4)), "expected version 2 or 3, got 4")
    GGUF(with_bytes(4, struct.pack("<I", 2)))
    refused(with_bytes(16, struct.pack("<Q", 2**62)), "its header is cut off or damaged|of unknown type")
    refused(with_bytes(24, struct.pack("<Q", 2**63)), ": its header is cut off or damaged$")
    name = good.index(b"a.uint8") + len("a.uint8")
    refused(with_bytes(name, struct.pack("<I", 77)), "metadata of unknown type 77")
    texts = good.index(b"a.texts") + len("a.texts")
    refused(with_bytes(texts + 4, struct.pack("<I", 9)), "metadata with an array of type 9")
    refused(with_bytes(texts + 16, struct.pack("<Q", 2**50)), ": its header is cut off or damaged$")
    text = good.index("schöner".encode())
    refused(with_bytes(text, b"\xff\xff"), ": its header is cut off or damaged$")
    kind = good.index(b"q4_1") + len("q4_1") + 4 + 16
    refused(with_bytes(kind, struct.pack("<I", 2)), "tensor q4_1 is of type 2; known are")
    refused(with_bytes(kind - 16, struct.pack("<Q", 65)), r"tensor q4_1 has shape \(3, 65\) in q4_1")
    refused(with_bytes(kind + 4, struct.pack("<Q", 2**40)), "it ends before the tensor q4_1")
    refused(tmp_path / "absent.gguf", "cannot be read")
    refused(tmp_path, "cannot be read")
