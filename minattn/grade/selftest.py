"""The grader graded: blanks get nothing, references everything, and every known mistake is called by its
name."""

from __future__ import annotations

from collections.abc import Iterator

from .score import grade
from .task import Task, as_submission, stubs, tasks_of


def selftest(chapter: str) -> Iterator[tuple[str, str]]:
    """Each check's name, and what is wrong with it (nothing, where it holds)."""
    tasks = tasks_of(chapter)
    blank = grade(stubs(chapter).read_bytes(), tasks)
    yield "blank stubs get 0", "" if blank.points == 0 else f"they got {blank.points}"
    yield "an empty file gets 0", "" if grade(b"", tasks).points == 0 else "it got points"
    broken = grade(b"import numpy as np\n\ndef f(:\n", tasks[:1])
    named = broken.tasks[0].problem
    yield "a syntax error gets 0 with its line", "" if broken.points == 0 and "line 3" in named else named
    for task in tasks:
        right = grade(as_submission(task.solution, task.function), [task], seed=1)
        told = [f"{layer.name}: {text}" for t in right.tasks for layer in t.layers for text in layer.told]
        yield (
            f"{task.function}: reference gets all",
            "" if right.points == task.total else "; ".join(told) or "?",
        )
        for mistake in task.mistakes:
            yield f"{task.function}: {mistake.__name__}", _noticed(task, mistake)


def _noticed(task: Task, mistake) -> str:  # type: ignore[no-untyped-def]
    """Whether a mistake loses points and is named, alone."""
    report = grade(as_submission(mistake, task.function), [task], seed=2).tasks[0]
    if report.points >= report.of:
        return "it loses nothing"
    if [c.split(":")[0] for c in report.causes] != [mistake.__name__]:
        return f"it is called {report.causes or report.problem or 'nothing'}"
    return ""
