"""The exercises as plain pytest: ``pytest tests/exercises/attention.py`` grades a student's file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .score import grade
from .task import Task, stubs


def as_tests(chapter: str, tasks: Sequence[Task]) -> Callable[..., None]:
    """A test a task, which fails with what was lost; ``EXERCISES=mine.py`` names another file."""
    import pytest

    @pytest.mark.parametrize("task", tasks, ids=lambda task: task.function)
    def test_exercise(task: Task, record_property: Callable[[str, object], None]) -> None:
        source = Path(os.environ.get("EXERCISES", stubs(chapter))).read_bytes()
        report = grade(source, [task]).tasks[0]
        record_property("points", report.points)
        told = [report.problem, *(text for layer in report.layers for text in layer.told), *report.causes]
        if report.points < report.of:
            lines = [f"{report.points:g} of {report.of:g} points", *filter(None, told), report.hints[0]]
            pytest.fail("\n".join(lines), pytrace=False)

    return test_exercise
