"""What runs inside the sandbox, with the student's code: inputs in, arrays out, nothing else.

    python -I -S child.py JOB RESULTS     two open file descriptors

Reads one frame (source, name of the function, arguments of every call, limits), shuts the door behind itself
(limits that cannot be raised again), runs the source as a module and calls the function once for each set of
arguments.  Every answer leaves at once as a frame of its own, so that what was right before a crash still
counts. No expected value ever comes here; whatever the student's code writes into the pipe is read as arrays
or refused.
"""

from __future__ import annotations

import mmap
import os
import resource
import sys
import types
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, *filter(None, [os.environ.pop("GRADE_PACKAGES", "")])]

import frames  # noqa: E402
import numpy as np  # noqa: E402

NAME = "exercises.py"


def in_use() -> int:
    """Bytes of private memory that the limit RLIMIT_DATA would count now, found by bisection: /proc is not
    here."""
    low, high = 0, 2**34
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    while high - low > 2**20:
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_DATA, (middle, hard))
        try:
            mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
            high = middle
        except OSError:
            low = middle
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    return high


def shut(limits: dict) -> None:
    """Limits on this process from here on: memory, time, files, and no second process or thread."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(spent.ru_utime + spent.ru_stime + limits["cpu"]) + 1
    bounds = {
        "RLIMIT_CPU": cpu,
        "RLIMIT_FSIZE": limits["file"],
        "RLIMIT_NOFILE": 32,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 1,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_STACK": 2**23,
    }
    if sys.platform == "linux":
        bounds["RLIMIT_DATA"] = in_use() + limits["memory"]
        bounds["RLIMIT_AS"] = bounds["RLIMIT_DATA"] + 2**30
    for name, bound in bounds.items():
        which = getattr(resource, name, None)
        if which is not None:
            hard = resource.getrlimit(which)[1]
            least = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.setrlimit(which, (least, least))


def told(error: BaseException) -> dict:
    """What a student needs to know of an exception: its kind, its text, the line of the submission."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return {
        "state": "error",
        "error": type(error).__name__[:80],
        "message": str(text)[:300],
        "line": line if type(line) is int else None,
    }


def plain(value: Any) -> list[np.ndarray]:
    """What the function returned as a list of arrays; anything but arrays and numbers is a TypeError."""
    parts = value if type(value) in (tuple, list) else (value,)
    if len(parts) > 16:
        raise TypeError(f"returned {len(parts)} things")
    arrays = []
    for part in parts:
        if type(part) is np.ndarray and part.dtype.kind in "fciub":
            arrays.append(part)
        elif isinstance(part, (np.number, np.bool_)) or type(part) in (float, int, bool):
            arrays.append(np.asarray(part))
        else:
            kind = f"an array of {part.dtype}" if type(part) is np.ndarray else type(part).__name__
            raise TypeError(f"returned {kind}; expected NumPy arrays of numbers")
    return arrays


def main(job: int, results: int) -> None:
    with open(job, "rb") as file:
        info, arrays = frames.take(bytearray(file.read()), 2**40)
    source, send = arrays[0].tobytes(), os.fdopen(results, "wb", buffering=0).write
    shut(info["limits"])
    if os.path.isdir("/work") and HERE == "/grade":
        os.chdir("/work")
    module = types.ModuleType("exercises")
    module.__file__ = NAME
    sys.modules["exercises"] = module
    try:
        exec(compile(source, NAME, "exec", dont_inherit=True), module.__dict__)
        function = getattr(module, info["function"], None)
        if not callable(function):
            raise NameError(f"there is no function {info['function']}")
    except BaseException as e:
        send(frames.pack({**told(e), "where": "load"}))
        return
    send(frames.pack({"state": "loaded"}))
    for i, call in enumerate(info["calls"]):
        arguments = frames.decode(call, arrays)
        try:
            send(frames.pack({"call": i, "state": "ok"}, plain(function(**arguments))))
        except BaseException as e:
            send(frames.pack({**told(e), "call": i}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)
