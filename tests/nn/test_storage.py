import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from minattn import nn
from minattn.nn.storage import load_arrays, load_metadata, replacing, save_arrays


@pytest.fixture
def rng():
    return np.random.default_rng(23)


ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.array(3), "empty": np.zeros((0, 4)),
    "half": np.array([0.5, -1], np.float16), "flags": np.array([True, False]),
    "strided": np.arange(24.0).reshape(4, 6)[::2, ::3], "transposed": np.arange(6.0).reshape(2, 3).T,
}


def test_arrays_come_back_as_they_were(tmp_path):
    path = tmp_path / "a.safetensors"
    save_arrays(path, ARRAYS, {"step": "7"})
    back = load_arrays(path)
    assert back.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
        assert back[name].dtype == value.dtype and back[name].shape == value.shape, name
    assert load_metadata(path) == {"step": "7"}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_no_metadata_is_an_empty_dictionary(tmp_path):
    save_arrays(tmp_path / "a", {"x": np.zeros(1)})
    assert load_metadata(tmp_path / "a") == {}


def test_a_model_comes_back(tmp_path, rng):
    def build():
        model = nn.Sequential(nn.Linear(3, 4, rng=rng), nn.BatchNorm1d(4), nn.GRUCell(4, 4, rng=rng),
                              nn.Linear(4, 4, rng=rng))
        model[3].weight = model[2].weight_hh = nn.Parameter(rng.standard_normal((12, 4)).astype(np.float32))
        return model

    model, other = build(), build()
    model[1](np.eye(4, dtype=np.float32))  # so that the running averages have moved
    model.save(tmp_path / "m.safetensors", {"note": "ß"})
    assert other.load(tmp_path / "m.safetensors") == ([], [])
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value, err_msg=name)
    on_disk = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert "2.weight_hh" in on_disk and "3.weight" not in on_disk  # tied: once
    assert on_disk["1.num_batches_tracked"] == 1


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_arrays(path, {"x": np.zeros(3)})
    old = path.read_bytes()

    def full(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_arrays(path, {"x": np.ones(3)})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_the_draft_is_in_the_same_folder_and_on_disk_before_it_is_moved(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (events.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    with replacing(tmp_path / "a") as draft:
        assert draft.parent == tmp_path and draft.name != "a"
        draft.write_bytes(b"new")
    assert events == ["fsync", "replace"] and (tmp_path / "a").read_bytes() == b"new"


WRITER = """
import sys
import numpy as np
from minattn.nn import Linear
model = Linear(300, 300, rng=np.random.default_rng(0))
version = int(sys.argv[2])
while True:
    version += 1
    for p in model.parameters():
        p.data = np.full_like(p.data, version)
    model.save(sys.argv[1])
    print(version, flush=True)
"""


def test_killed_at_any_moment_the_file_is_whole_and_no_older_than_reported(tmp_path):
    path, last = tmp_path / "m.safetensors", 0
    moments = np.random.default_rng(0).uniform(0, 0.05, 6)
    for moment in moments:
        command = [sys.executable, "-c", WRITER, str(path), str(last)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        reported = int(writer.stdout.readline())  # it is under way
        time.sleep(moment)
        writer.send_signal(signal.SIGKILL)
        reported = max([reported, *map(int, writer.communicate()[0].split())])
        state = load_arrays(path)
        (version,) = {value for array in state.values() for value in np.unique(array)}
        assert version in (reported, reported + 1), (version, reported)
        last = int(version)
    assert last >= len(moments)
