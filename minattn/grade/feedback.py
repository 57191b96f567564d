"""What a student reads: where, how much, the likely cause, and a hint, in this order."""

from __future__ import annotations

from pathlib import Path

from .score import Report, TaskReport


def text(report: Report, file: Path, hints: int = 1) -> str:
    """A report as plain lines, with the path of the file that was graded."""
    lines = [f"Graded: {file}", ""]
    for task in report.tasks:
        lines += [*_task(task, hints), ""]
    lines += [
        f"{report.points:g} of {report.of:g} points.  Seed {report.seed}.",
        f"Kept apart by: {report.protection}.",
    ]
    if report.points < report.of:
        open_ = next(t for t in report.tasks if t.points < t.of)
        lines.append(
            f"Next: {open_.function}, then the same command with --task {open_.number}; --hints 2 tells more."
        )
    else:
        lines.append("Next: the following chapter.")
    return "\n".join(lines)


def _task(task: TaskReport, hints: int) -> list[str]:
    lines = [f"Task {task.number}, {task.function}: {task.points:g} of {task.of:g}"]
    if task.problem:
        lines.append(f"  {task.problem}")
    for layer in task.layers:
        lines.append(
            f"  {layer.name:<10} {layer.points:4.2g} of {layer.of:g}   {layer.passed:.3g} of "
            f"{layer.cases} cases"
        )
        if not task.problem:
            lines += [f"      {told}" for told in layer.told[:2]]
    lines += [f"  Likely cause: {cause}" for cause in task.causes]
    lines += [f"  Hint {i + 1}: {hint}" for i, hint in enumerate(task.hints[:hints])]
    if task.printed:
        lines += ["  Your code printed:", *(f"      {line}" for line in task.printed.splitlines()[:20])]
    return lines
