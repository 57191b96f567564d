"""A class graded: in parallel, one result file a submission, and on from there after whatever stopped it.

A result is written whole or not at all.  A killed worker loses the submission that it was at, which is
graded again; one at which workers die three times gets no points and is marked for the teacher's eyes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .score import grade
from .task import tasks_of

LARGEST = 2**18
"""Bytes of a submission's file; none of ours is near it."""
TRIES = 3


@dataclass(frozen=True)
class Submission:
    """A student's name and file, as they stand in the folder of the class."""

    student: str
    file: Path

    @property
    def result(self) -> str:
        """The name of its result file: readable, unique, and without anything that a path could mean."""
        raw = os.fsencode(self.student)
        plain = re.sub(r"[^A-Za-z0-9]+", "-", self.student.encode("ascii", "replace").decode())[:40].strip(
            "-"
        )
        return f"{plain or 'student'}.{hashlib.sha256(raw).hexdigest()[:10]}.json"


def submissions(folder: Path) -> list[Submission]:
    """``<student>.py`` and ``<student>/exercises.py``, in order of name; links are listed, and refused on
    reading."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False):
            found.append(Submission(entry.name, Path(entry.path) / "exercises.py"))
        elif entry.name.endswith(".py"):
            found.append(Submission(entry.name[:-3], Path(entry.path)))
    return found


def read(file: Path) -> bytes:
    """The bytes of a plain file of bounded size; OSError says what else it is. Links and pipes are not
    opened."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as opened:
        kind = os.fstat(descriptor)
        if not stat.S_ISREG(kind.st_mode):
            raise OSError("it is not a plain file")
        if kind.st_size > LARGEST:
            raise OSError(f"it has {kind.st_size} bytes, more than {LARGEST}")
        return opened.read(LARGEST)


def grade_file(submission: Submission, chapter: str, seed: int, out: Path) -> None:
    """Grade one submission and write its result; what cannot be read gets 0 and a reason."""
    tasks = tasks_of(chapter)
    problem, source = "", b""
    try:
        source = read(submission.file)
    except OSError as e:
        problem = f"the file could not be read: {e.strerror or e}"
    report = grade(source, tasks, student=submission.student, seed=seed).as_dict()
    _write(
        out / submission.result, {**report, "chapter": chapter, "problem": problem, "sha256": _digest(source)}
    )


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()


def _write(file: Path, result: dict[str, Any]) -> None:
    beside = file.with_suffix(f".{os.getpid()}.part")
    beside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    os.replace(beside, file)


def _done(submission: Submission, chapter: str, seed: int, out: Path) -> bool:
    """Whether a result of this very file, chapter and seed is there."""
    try:
        kept = json.loads((out / submission.result).read_text(encoding="utf-8"))
        source = read(submission.file)
    except (OSError, ValueError):
        return False
    return (kept["chapter"], kept["seed"], kept["sha256"]) == (chapter, seed, _digest(source))


def grade_class(
    folder: Path, chapter: str, out: Path, seed: int, jobs: int, tick: Callable[[], None] = lambda: None
) -> list[str]:
    """Grade all that has no result yet; returns the students whose grading killed its worker every time."""
    out.mkdir(parents=True, exist_ok=True)
    tries: dict[Submission, int] = {}
    left = [s for s in submissions(folder) if not _done(s, chapter, seed, out)]
    while left:
        alone = any(tries.values())  # after a death one at a time, so that the culprit is known
        batch = left[:1] if alone else left
        for submission in batch:
            tries[submission] = tries.get(submission, 0)
        died = _pass(batch, chapter, seed, out, 1 if alone else jobs, tick)
        for submission in died:
            tries[submission] += 1
        if not died and alone:
            tries = {s: 0 for s in tries}
        left = [s for s in left if s not in batch or (s in died and tries[s] < TRIES)]
        given_up = [s for s in died if tries[s] >= TRIES]
        for submission in given_up:
            _write(out / submission.result, _lost(submission, chapter, seed))
            tries.pop(submission)
            tick()
    for part in out.glob("*.part"):  # of workers that were killed as they wrote
        part.unlink()
    return [r["student"] for r in results(out) if r["problem"].startswith("the grader")]


def _pass(
    batch: list[Submission], chapter: str, seed: int, out: Path, jobs: int, tick: Callable[[], None]
) -> list[Submission]:
    """One pool of workers; returns what has no result because the pool broke."""
    died = []
    with (
        tempfile.TemporaryDirectory(prefix="class-") as place,
        ProcessPoolExecutor(jobs, initializer=_work_in, initargs=(place,)) as pool,
    ):
        os.chmod(place, 0o711)
        asked = {pool.submit(grade_file, s, chapter, seed, out): s for s in batch}
        for future in as_completed(asked):
            try:
                future.result()
                tick()
            except BrokenProcessPool:
                if not _done(asked[future], chapter, seed, out):
                    died.append(asked[future])
    return died


def _work_in(place: str) -> None:
    """Folders of submissions go where they are removed even if this worker is killed."""
    tempfile.tempdir = place


def _lost(submission: Submission, chapter: str, seed: int) -> dict[str, Any]:
    of = sum(t.total for t in tasks_of(chapter))
    return {
        "student": submission.student,
        "seed": seed,
        "points": 0.0,
        "of": of,
        "protection": "",
        "tasks": [],
        "chapter": chapter,
        "sha256": "",
        "problem": f"the grader was killed {TRIES} times at it: look yourself",
    }


def results(out: Path) -> list[dict[str, Any]]:
    """All results in a folder, in order of student."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in out.glob("*.json")]
    return sorted(found, key=lambda r: r["student"])
