"""Checkpoint files: what goes in comes out, any damage is noticed, and a kill leaves a whole file."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minattn import nn
from minattn.nn import checkpoint


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def content(rng):
    return {
        "weights": {"a.weight": rng.standard_normal((3, 4)).astype(np.float32), "b": rng.standard_normal(5)},
        "ids": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
        "scalar": np.array(2.5), "nothing": np.zeros((0, 3)), "mask": np.array([True, False]),
        "state": [{"step": 3, "m": rng.standard_normal(2)}, {}],
        "rng": rng.bit_generator.state,
        "numbers": [1, -2.5e-300, 0.1, float("inf"), 10**40, True, None, np.float64(0.1), np.int64(7)],
        "texts": {"unicode": "ἀρχή", "empty": "", "sly": checkpoint.MARK + "weights/b", "path/like": "x"},
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape) == (b.dtype, b.shape) and np.array_equal(a, b)
    return type(b) is type(a.item() if isinstance(a, np.generic) else a) and a == b


def test_what_goes_in_comes_out(rng, tmp_path):
    given = content(rng)
    checkpoint.save(tmp_path / "run", given)
    assert same(given, checkpoint.load(tmp_path / "run"))
    assert os.listdir(tmp_path) == ["run"], "nothing is left beside the file"
    assert checkpoint.load(str(tmp_path / "run")).keys() == given.keys()


def test_arrays_of_one_name_in_two_places(tmp_path):
    given = {"a": {"w": np.arange(3), "v": [np.zeros(2)]}, "b": {"w": np.ones(4)}, "w": np.arange(5.0)}
    checkpoint.save(tmp_path / "run", given)
    assert same(given, checkpoint.load(tmp_path / "run"))


def test_arrays_elsewhere_are_fetched(tmp_path):
    """An array with a method `get`, as CuPy's have, is brought to the CPU."""

    class Elsewhere:
        def get(self):
            return np.arange(4.0)

    checkpoint.save(tmp_path / "run", {"a": Elsewhere()})
    assert same({"a": np.arange(4.0)}, checkpoint.load(tmp_path / "run"))


def test_tuples_come_back_as_lists_and_no_arrays_are_fine(tmp_path):
    checkpoint.save(tmp_path / "run", {"a": (1, (2.0, "x"))})
    assert checkpoint.load(tmp_path / "run") == {"a": [1, [2.0, "x"]]}


def test_any_generator_goes_on(tmp_path):
    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64):
        rng = np.random.Generator(kind(3))
        rng.random(5)
        rng.integers(10, dtype=np.uint32)  # leaves half a draw behind
        checkpoint.save(tmp_path / "run", {"rng": rng.bit_generator.state})
        want = rng.integers(10, size=7, dtype=np.uint32)
        other = np.random.Generator(kind(4))
        other.bit_generator.state = checkpoint.load(tmp_path / "run")["rng"]
        np.testing.assert_array_equal(other.integers(10, size=7, dtype=np.uint32), want)


def test_every_damage_is_noticed(rng, tmp_path):
    path = tmp_path / "run"
    checkpoint.save(path, content(rng))
    whole = path.read_bytes()
    for cut in [0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"damaged or no checkpoint.*delete it"):
            checkpoint.load(path)
    for place in rng.integers(8, len(whole), 60):  # one bit anywhere: in the header, the text or an array
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            loaded = checkpoint.load(path)
        except ValueError as e:
            assert "delete it" in str(e)
        else:  # a bit of white space in the header, perhaps
            path.write_bytes(whole)
            assert same(loaded, checkpoint.load(path))


def test_other_files_are_refused(tmp_path, rng):
    nn.Linear(2, 3, rng=rng).save(tmp_path / "weights")  # a safetensors file, but no checkpoint
    (tmp_path / "text").write_text("hello")
    for name in ("weights", "text"):
        with pytest.raises(ValueError, match="no checkpoint"):
            checkpoint.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "absent")


def test_a_failed_save_leaves_the_old_file(tmp_path):
    checkpoint.save(tmp_path / "run", {"a": 1})
    with pytest.raises(TypeError, match=r"b/0: expected arrays.*got set"):
        checkpoint.save(tmp_path / "run", {"b": [{1, 2}]})
    with pytest.raises(TypeError, match="c: expected texts as keys, got 1"):
        checkpoint.save(tmp_path / "run", {"c": {1: 2}})
    with pytest.raises(TypeError, match=r"^content: expected texts as keys, got 1"):
        checkpoint.save(tmp_path / "run", {1: 2})
    with pytest.raises(TypeError, match=r"^content: expected arrays.*got set"):
        checkpoint.save(tmp_path / "run", {1, 2})
    assert checkpoint.load(tmp_path / "run") == {"a": 1} and os.listdir(tmp_path) == ["run"]


def test_generators_are_found_once_and_in_order(rng):
    shared, own = np.random.default_rng(1), np.random.default_rng(2)
    model = nn.Sequential(nn.Dropout(0.1, shared), nn.Linear(2, 2, rng=rng), nn.Dropout(0.2, own),
                          nn.Dropout(0.3, shared))
    assert list(checkpoint.generators(model)) == [shared, own]


WRITER = """
import sys, itertools, numpy as np
from minattn.nn import checkpoint
print("ready", flush=True)
for i in itertools.count():
    checkpoint.save(sys.argv[1], {"i": i, "a": np.full(100_000, i)})
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_file(rng, tmp_path):
    path, seen = tmp_path / "run", []
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if path.exists():
            loaded = checkpoint.load(path)
            assert (loaded["a"] == loaded["i"]).all() and loaded["a"].size == 100_000
            seen.append(loaded["i"])
    assert len(set(seen)) > 3, "the kills must have fallen among the writes"
