"""Nothing is earned by force, and nothing is left behind."""

import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from minattn.grade import grade, runner, tasks_of

from .hostile import HOSTILE

QUICK = runner.Limits(cpu=1.0, wall=4.0, memory=2**28)


def attempt(name: str) -> tuple[str, float, float]:
    task = tasks_of("attention")[1]
    report = grade(HOSTILE[name], [task], student=name, limits=QUICK)
    return name, report.points, report.tasks[0].seconds


def descendants() -> set[int]:
    """Processes of this machine in which this test's mark stands: all that a submission may leave."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"GRADE_PACKAGES" in (entry / "environ").read_bytes():
                found.add(int(entry.name))
        except OSError:
            pass
    return found


@pytest.fixture(scope="module")
def outcome():
    if runner.best().name == "limits":
        pytest.skip("only limits keep submissions apart here: they could reach this process")
    mine = {f for f in os.listdir(tempfile.gettempdir()) if f.startswith("grade-")}
    before = descendants()
    with ProcessPoolExecutor(2) as pool:
        points = {name: (earned, took) for name, earned, took in pool.map(attempt, HOSTILE)}
    deadline = time.monotonic() + 10
    while (left := descendants() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    folders = {f for f in os.listdir(tempfile.gettempdir()) if f.startswith("grade-")} - mine
    return points, left, folders


def test_at_least_forty():
    assert len(HOSTILE) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_earned(outcome, name):
    points, _, _ = outcome
    assert points[name][0] == 0


@pytest.mark.slow
def test_nobody_waits_longer_than_the_limit(outcome):
    slow = {name: took for name, (_, took) in outcome[0].items() if took > QUICK.wall + 1.5}
    assert not slow


@pytest.mark.slow
def test_nothing_is_left(outcome):
    _, processes, folders = outcome
    assert not processes and not folders


@pytest.mark.slow
def test_an_honest_one_still_gets_all(outcome):
    from minattn.grade.task import as_submission

    task = tasks_of("attention")[1]
    assert grade(as_submission(task.solution, task.function), [task]).points == task.total
