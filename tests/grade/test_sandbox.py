"""What is tried of each sandbox, and the frames between the two sides."""

import os
import struct

import numpy as np
import pytest

from minattn.grade import frames, runner
from minattn.grade.sandbox import candidates

NAMES = [c.name for c in candidates()]


@pytest.mark.parametrize("sandbox", candidates(), ids=NAMES)
def test_each_answers_or_is_said_not_to(sandbox):
    tried = runner.probe(sandbox)
    if tried is None:
        pytest.skip(f"{sandbox.name} does not work here")
    if tried.name != "limits":
        assert not {"network", "files", "processes", "parent"} & set(tried.open)
    assert tried.name in tried.told()


def test_namespaces_close_everything_where_root_can_make_them():
    spaces = [c for c in candidates() if c.name == "namespaces"]
    if not spaces or os.geteuid() or os.system("unshare --mount --pid --fork --net true 2> /dev/null"):
        pytest.skip("namespaces cannot be made here")
    tried = runner.probe(spaces[0])
    assert tried is not None and tried.open == ()
    assert runner.best().name == "namespaces"


def test_frames_return_what_was_packed():
    arrays = [np.arange(6.0).reshape(2, 3), np.array(True), np.zeros((0, 4), np.int32)]
    arrays.append(np.ones(1, np.float32))
    buffer = bytearray(frames.pack({"a": 1}, arrays) + b"rest")
    info, found = frames.take(buffer, 2**20)
    assert info == {"a": 1} and buffer == b"rest"
    for got, want in zip(found, arrays, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and (got == want).all()


def test_half_a_frame_waits():
    whole = frames.pack({}, [np.ones(3)])
    assert all(frames.take(bytearray(whole[:n]), 2**20) is None for n in range(len(whole)))


@pytest.mark.parametrize("header", [
    b"[]", b"{}", b"no json", b'{"info": 1, "arrays": []}', b'{"info": {}, "arrays": [["|O", [1]]]}',
    b'{"info": {}, "arrays": [["<f8", [-1]]]}', b'{"info": {}, "arrays": [["<f8", [2]]]}', b"[" * 10**5,
    b'{"info": {}, "arrays": [["<f8", [true]]]}', b'{"info": {}, "arrays": [["<f8", "8"]]}',
    b'{"info": {}, "arrays": []}',
])
def test_forged_frames_are_refused(header):
    forged = struct.pack("<4sIQ", frames.MAGIC, len(header), 8) + header + bytes(8)
    with pytest.raises(frames.Malformed):
        frames.take(bytearray(forged), 2**20)


def test_frames_have_a_limit():
    with pytest.raises(frames.Malformed):
        frames.take(bytearray(frames.pack({}, [np.ones(100)])), 799)


def test_arrays_of_objects_are_not_packed():
    with pytest.raises(TypeError):
        frames.pack({}, [np.array([None])])


def test_arguments_survive():
    arrays = []
    told = frames.encode({"a": np.ones(2), "n": 3, "shape": (1, 2)}, arrays)
    back = frames.decode(told, arrays)
    assert (back["a"] == 1).all() and back["n"] == 3 and back["shape"] == (1, 2)
