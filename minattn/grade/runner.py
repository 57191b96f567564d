"""Start a submission in its sandbox, give it inputs, collect what comes back, and leave nothing running."""

from __future__ import annotations

import ctypes
import functools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import frames
from .sandbox import SPACE, Sandbox, candidates

PRINTED = 10_000
"""Bytes of what a submission prints that are kept; the rest is read and thrown away."""


@dataclass(frozen=True)
class Limits:
    """What one process may use: seconds of processor and of wall clock, bytes of memory and of answers."""

    cpu: float = 10.0
    wall: float = 20.0
    memory: int = 2**29
    answer: int = 2**26


@dataclass(frozen=True)
class Problem:
    """Why there is no answer: the exception's name (or "limit", "crash", "forged"), its text, and the
    line."""

    kind: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        at = f"line {self.line}: " if self.line is not None else ""
        if self.kind in ("limit", "crash", "forged"):
            return f"{at}{self.message}"
        return f"{at}{self.kind}: {self.message}" if self.message else f"{at}{self.kind}"


Answer = list[np.ndarray] | Problem


@dataclass
class Run:
    """One process: an answer for every call, what was printed, and the problem that kept it from loading."""

    answers: list[Answer]
    broken: Problem | None = None
    printed: str = ""
    seconds: float = 0.0
    loaded: bool = False


@dataclass
class _Inbox:
    """Frames as they arrive; the first that is not one ends the hearing."""

    calls: int
    limit: int
    buffer: bytearray = field(default_factory=bytearray)
    answers: list[Answer] = field(default_factory=list)
    loaded: bool = False
    broken: Problem | None = None

    def feed(self, chunk: bytes) -> None:
        if self.broken is not None:
            return
        self.buffer += chunk
        try:
            while (frame := frames.take(self.buffer, self.limit)) is not None:
                self.limit -= sum(a.nbytes for a in frame[1])
                self._hear(*frame)
        except frames.Malformed as e:
            self.broken = Problem("forged", f"what came back is not an answer: {e}")

    def _hear(self, info: dict[str, Any], arrays: list[np.ndarray]) -> None:
        state = info.get("state")
        problem = Problem(
            _short(info.get("error"), 80), _short(info.get("message"), 300), _line(info.get("line"))
        )
        if not self.loaded:
            if state == "loaded":
                self.loaded = True
            elif state == "error":
                self.broken = problem
            else:
                raise frames.Malformed("an answer before the module was loaded")
            return
        if info.get("call") != len(self.answers) or len(self.answers) >= self.calls:
            raise frames.Malformed("an answer to a question that was not asked")
        self.answers.append(arrays if state == "ok" else problem)


def run(
    source: bytes,
    function: str,
    calls: Sequence[dict[str, Any]],
    limits: Limits | None = None,
    sandbox: Sandbox | None = None,
) -> Run:
    """Call a submission's function once for each set of named arguments, in one process of its own."""
    limits = Limits() if limits is None else limits
    sandbox = best() if sandbox is None else sandbox
    arrays = [np.frombuffer(source, np.uint8)]
    told = [frames.encode(call, arrays) for call in calls]
    inside = {"cpu": limits.cpu, "memory": limits.memory, "file": SPACE}
    job = frames.pack({"function": function, "calls": told, "limits": inside}, arrays)
    inbox = _Inbox(len(calls), limits.answer)
    start = time.monotonic()
    printed, end = _converse(job, inbox, limits, sandbox)
    result = Run([], inbox.broken, printed.decode("utf-8", "replace"), time.monotonic() - start, inbox.loaded)
    silent = inbox.broken or end
    result.answers = [*inbox.answers, *[silent] * (len(calls) - len(inbox.answers))]
    if not inbox.loaded and inbox.broken is None:
        result.broken = end
    return result


def _converse(job: bytes, inbox: _Inbox, limits: Limits, sandbox: Sandbox) -> tuple[bytes, Problem]:
    """The life of one child: what it printed, and how it ended."""
    place = Path(tempfile.mkdtemp(prefix="grade-"))
    sealed = (
        os.memfd_create("job") if hasattr(os, "memfd_create") else os.dup(tempfile.TemporaryFile().fileno())
    )
    os.write(sealed, job) if len(job) < 2**20 else _write_all(sealed, job)
    os.lseek(sealed, 0, os.SEEK_SET)
    hear, speak = os.pipe()
    _adopt()
    if sandbox.user is not None:
        os.chown(place, sandbox.user, sandbox.user)
    try:
        child = subprocess.Popen(
            sandbox.command(place, [str(sealed), str(speak)]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(sealed, speak),
            cwd=place,
            env=sandbox.environment,
            start_new_session=True,
            user=sandbox.user,
            group=sandbox.user,
            extra_groups=None if sandbox.user is None else [],
        )
        os.close(speak)
        speak = -1
        try:
            return _listen(child, hear, inbox, limits)
        finally:
            _end(child, sandbox)
    finally:
        for descriptor in (sealed, hear, speak):
            if descriptor >= 0:
                os.close(descriptor)
        shutil.rmtree(place, ignore_errors=True)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[: 2**26]) :]


def _listen(child: subprocess.Popen, hear: int, inbox: _Inbox, limits: Limits) -> tuple[bytes, Problem]:
    """Read answers and prints until the child is gone, has said enough, or its time is over."""
    deadline = time.monotonic() + limits.wall
    printed = bytearray()
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        for source in (hear, child.stdout.fileno()):
            os.set_blocking(source, False)
            selector.register(source, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(printed), Problem("limit", f"it took longer than {limits.wall:g} seconds")
            if inbox.broken is not None and inbox.broken.kind == "forged":
                break
            ready = selector.select(min(left, 0.25))
            for key, _ in ready:
                chunk = os.read(key.fd, 2**18)
                if not chunk:
                    selector.unregister(key.fd)
                elif key.fd == hear:
                    inbox.feed(chunk)
                else:
                    printed += chunk[: PRINTED - len(printed)]
            if not ready and child.poll() is not None:
                break  # a descendant may still hold the pipes; it is ended with the child
        try:
            code = child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return bytes(printed), Problem("limit", f"it took longer than {limits.wall:g} seconds")
    return bytes(printed), Problem("crash", _ending(code, limits))


def _ending(code: int, limits: Limits) -> str:
    """What an exit status says; shells and bubblewrap report signal s as 128 + s."""
    number = -code if code < 0 else code - 128
    if number in (signal.SIGKILL, signal.SIGXCPU):
        return f"it was stopped: more than {limits.cpu:g} seconds of processor time, or too much memory"
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
        return f"the interpreter crashed ({signal.Signals(number).name}); recursion without end does that"
    return "the program ended itself before it had answered"


def _end(child: subprocess.Popen, sandbox: Sandbox) -> None:
    """Kill the child's session; where no namespace has swept up, whatever else descends from it, too."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()
    if sandbox.name == "limits":
        _sweep()


def _sweep() -> None:
    """End strays that a submission left to this process, which adopts orphans: none of ours outlives
    `run`."""
    if sys.platform != "linux":
        return
    for _ in range(50):
        strays = [
            int(p.name)
            for p in Path("/proc").glob("[0-9]*")
            if _parent(p) == os.getpid() and _session(p) != os.getsid(0)
        ]
        if not strays:
            return
        for pid in strays:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError, PermissionError):
                pass


def _stat(process: Path) -> list[str]:
    try:
        return (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ["?", "-1", "-1", "-1"]


def _parent(process: Path) -> int:
    return int(_stat(process)[1])


def _session(process: Path) -> int:
    return int(_stat(process)[3])


@functools.cache
def _adopt() -> None:
    """Orphans of a submission become children of this process and not of the system's first (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _short(value: Any, length: int) -> str:
    """Text that came from outside: one line, printable, of bounded length."""
    text = value if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else " " for c in text[:length])


def _line(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 10**6 else None


LOOK_AROUND = b"""
import os, socket
import numpy as np

def look(file, grader):
    found = [0, 0, 0, 0, 0]
    try:
        with socket.socket() as s:
            s.settimeout(0.2)
            found[0] = s.connect_ex(("127.0.0.1", 9)) != 101 and len(socket.if_nameindex()) > 0
        found[0] = found[0] and any(name != "lo" for _, name in socket.if_nameindex())
    except OSError:
        pass
    try:
        found[1] = len(open(bytes(file), "rb").read()) > 0
    except OSError:
        pass
    try:
        found[2] = os.path.exists("/proc/%d" % grader)
        os.kill(grader, 0)
        found[4] = 1
    except OSError:
        pass
    try:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        found[3] = 1
    except OSError:
        pass
    return np.array(found)
"""
"""Tries the network, a file of the library, this process's entry, a second process, and a signal to the
grader."""


def probe(sandbox: Sandbox) -> Sandbox | None:
    """The sandbox with what is still open in it, or None when nothing runs in it at all."""
    file = np.frombuffer(os.fsencode(Path(__file__).resolve()), np.uint8)
    try:
        seen = run(LOOK_AROUND, "look", [{"file": file, "grader": os.getpid()}], Limits(wall=30), sandbox)
    except OSError:
        return None
    answer = seen.answers[0]
    if isinstance(answer, Problem) or len(answer) != 1 or answer[0].shape != (5,):
        return None
    names = ("network", "files", "processes", "fork", "parent")
    return replace(sandbox, open=tuple(n for n, yes in zip(names, answer[0], strict=True) if yes))


@functools.cache
def best() -> Sandbox:
    """The first sandbox that works here; RuntimeError when not even a bare process does."""
    for sandbox in candidates():
        tried = probe(sandbox)
        if tried is not None:
            return tried
    raise RuntimeError(
        "no student's code can be run here: as root install bubblewrap or allow namespaces; "
        "else grade as an ordinary user that can read Python and NumPy"
    )
