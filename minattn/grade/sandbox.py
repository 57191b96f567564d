"""How strangers' code is kept apart from the grader: bubblewrap, bare namespaces, or limits alone.

    bubblewrap   `bwrap`, where it is installed and works; the choice for ordinary users
    namespaces   the same by util-linux' `unshare`: an own file system of the interpreter's and NumPy's
    folders,
                 read only, and 16 MiB of memory to write in; no network; no other process to be seen
    limits       everywhere: an own session, an empty folder, an empty environment, limits on processor,
    memory,
                 processes, files; as root another user.  Files that anybody may read can be read, and the
                 network reached: the report says so.

What a sandbox keeps out is tried, not believed: `probe` sends a program that looks around in it, and reports
carry what it found.  In all three, expected values are never in the student's process.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPACE = 2**24
"""Bytes that a submission may write, in files and in its working folder altogether."""
HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "GRADE_PACKAGES": "/packages",
}
PYTHON = Path(sys.executable).resolve()
WORDS = {
    "network": "the network",
    "files": "files of this machine",
    "processes": "other processes",
    "fork": "starting processes",
    "parent": "signals to the grader",
}


@dataclass(frozen=True)
class Sandbox:
    """One way to start a child.

    Attributes
    ----------
    name : "bubblewrap", "namespaces" or "limits".
    command : (place, arguments of python) -> the command line; `place` is an empty folder of this run.
    environment : what the child finds in its environment.
    user : the user that the command is to be started as, or None.
    open : what `probe` could reach from inside, words for the report; filled in when it was tried.
    """

    name: str
    command: Callable[[Path, list[str]], list[str]]
    environment: dict[str, str]
    user: int | None = None
    open: tuple[str, ...] = ()

    def told(self) -> str:
        """One sentence for the report: what kept this submission apart, and what did not."""
        reach = [word for key, word in WORDS.items() if key in self.open]
        left = (
            f"within its reach: {', '.join(reach)}"
            if reach
            else "no network, files or processes within reach"
        )
        return f"{self.name}; {left}; limits on processor, memory, processes and files"


def visible() -> dict[Path, Path]:
    """What a child must see, read only: path there -> path here."""
    base, numpy = Path(sys.base_prefix).resolve(), Path(np.__file__).resolve().parent
    paths = {Path(p): Path(p) for p in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if os.path.isdir(p)}
    paths |= {base / "lib": base / "lib", PYTHON: PYTHON}
    paths[Path("/packages/numpy")] = numpy
    libs = numpy.parent / "numpy.libs"
    if libs.is_dir():
        paths[Path("/packages/numpy.libs")] = libs
    paths |= {Path("/grade") / name: HERE / name for name in ("child.py", "frames.py")}
    return paths


def hidden() -> list[Path]:
    """Folders within those visible that other packages live in; each is covered by an empty one."""
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    places = [
        stdlib / "site-packages",
        stdlib / "dist-packages",
        *Path("/usr/lib").glob("python3*/dist-packages"),
        *Path("/usr/lib").glob("python3*/site-packages"),
    ]
    return list(dict.fromkeys(p.resolve() for p in places if p.is_dir()))


def _bubblewrap(place: Path, arguments: list[str]) -> list[str]:
    command = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--dir",
        "/dev",
        "--dev-bind",
        "/dev/null",
        "/dev/null",
        "--dev-bind",
        "/dev/urandom",
        "/dev/urandom",
    ]
    for there, here in visible().items():
        command += ["--ro-bind", str(here), str(there)]
    for folder in hidden():
        command += ["--tmpfs", str(folder), "--remount-ro", str(folder)]
    command += ["--size", str(SPACE), "--tmpfs", "/work", "--remount-ro", "/", "--chdir", "/work"]
    return [*command, str(PYTHON), *_python("/grade/child.py"), *arguments]


MOUNT = """set -e
place=$1; user=$2; shift 2
mount -t tmpfs -o size=1m,mode=755 grade "$place"
mkdir "$place/work" "$place/dev"
while [ "$1" != -- ]; do
  there=$place$2
  case $1 in
    bind) if [ -d "$3" ]; then mkdir -p "$there"; else mkdir -p "${there%/*}"; : > "$there"; fi
          mount --bind "$3" "$there"; mount -o remount,bind,ro,nosuid "$there"; shift 3 ;;
    hide) mount -t tmpfs -o size=4k,ro grade "$there"; shift 2 ;;
  esac
done
shift
mount -t tmpfs -o size=16m,nr_inodes=1k,mode=700,uid=$user,gid=$user,nosuid,nodev grade "$place/work"
mount -o remount,ro "$place"
exec chroot "$place" /tools/setpriv --reuid "$user" --regid "$user" $CLEAR --no-new-privs \\
  --bounding-set=-all --inh-caps=-all "$@"
"""


def _namespaces(place: Path, arguments: list[str], user: int) -> list[str]:
    tools = {Path("/tools/setpriv"): Path(shutil.which("setpriv") or "setpriv")}
    devices = {Path(p): Path(p) for p in ("/dev/null", "/dev/urandom")}
    mounts: list[str] = []
    for there, here in {**visible(), **tools, **devices}.items():
        mounts += ["bind", str(there), str(here)]
    for folder in hidden():
        mounts += ["hide", str(folder)]
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--net",
        "--ipc",
        "--uts",
    ]
    clear = "--clear-groups" if user else "--keep-groups"
    command += [] if user else ["--user", "--map-root-user"]
    script = MOUNT.replace("$CLEAR", clear)
    return [
        *command,
        "sh",
        "-c",
        script,
        "sh",
        str(place),
        str(user),
        *mounts,
        "--",
        str(PYTHON),
        *_python("/grade/child.py"),
        *arguments,
    ]


def _limits(place: Path, arguments: list[str]) -> list[str]:
    return [str(PYTHON), *_python(str(HERE / "child.py")), *arguments]


def _python(child: str) -> list[str]:
    return ["-I", "-S", "-B", "-X", "utf8", child]


def candidates() -> list[Sandbox]:
    """Every way that this system might allow, the best first; none is tried here."""
    root = os.geteuid() == 0
    stranger = 61_000 + os.getpid() % 4_000  # one user for each grader: they cannot signal one another
    found = []
    if shutil.which("bwrap"):
        found.append(Sandbox("bubblewrap", _bubblewrap, ENVIRONMENT))
    if all(map(shutil.which, ("unshare", "setpriv", "chroot", "mount"))):
        user = stranger if root else 0
        spaces = Sandbox(
            "namespaces", functools.partial(_namespaces, user=user), {**ENVIRONMENT, "PATH": _PATH}
        )
        found.insert(0 if root else len(found), spaces)  # bubblewrap would leave root its number
    packages = {**ENVIRONMENT, "GRADE_PACKAGES": str(Path(np.__file__).resolve().parents[1])}
    found.append(Sandbox("limits", _limits, packages, stranger if root else None))  # never as root itself
    return found


_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
