"""From answers to points and words: layers, differences, likely causes.

Nothing is earned by returning something: the layers other than values pay only if some value was right.
Each pays for the part of its cases that passed, so a hidden case that fails costs itself alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .diagnose import agree, causes, difference
from .runner import Answer, Limits, Problem, Run, best, run
from .sandbox import Sandbox
from .task import Task

PUBLIC, HIDDEN = 2, 4


@dataclass
class Case:
    """One question: its inputs, what is right, and what came."""

    name: str
    layer: str
    public: bool
    inputs: dict[str, Any]
    want: list[np.ndarray]
    got: Answer = field(default_factory=lambda: Problem("limit", "it was not asked: time was over"))


@dataclass
class Layer:
    """Points of one layer, and what to say about the cases that failed."""

    name: str
    points: float
    of: float
    passed: float
    cases: int
    told: list[str] = field(default_factory=list)


@dataclass
class TaskReport:
    """One task of one submission."""

    number: int
    function: str
    points: float
    of: float
    layers: list[Layer]
    problem: str = ""
    causes: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    printed: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    """One submission: points, tasks, what kept its code apart, and the seed that draws the same cases
    again."""

    student: str
    seed: int
    points: float
    of: float
    protection: str
    tasks: list[TaskReport]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def grade(
    source: bytes,
    tasks: Sequence[Task],
    *,
    student: str = "",
    seed: int = 0,
    limits: Limits | None = None,
    sandbox: Sandbox | None = None,
) -> Report:
    """Grade one submission.

    Parameters
    ----------
    source : bytes
        The file, as it was handed in; it is neither decoded nor compiled here.
    tasks : sequence of Task
    student, seed : str, int
        Together they draw the hidden cases: the same pair draws the same ones.
    limits, sandbox : optional
        Of each process.
    """
    limits = Limits() if limits is None else limits
    sandbox = best() if sandbox is None else sandbox
    found: list[TaskReport] = []
    stuck: Problem | None = None
    for task in tasks:
        report, stuck = _grade_task(source, task, student, seed, limits, sandbox, stuck)
        found.append(report)
    return Report(
        student, seed, sum(t.points for t in found), sum(t.of for t in found), sandbox.told(), found
    )


def _rng(*key: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def questions(task: Task, student: str, seed: int) -> list[Case]:
    """All cases of a task but the large one: public ones are always the same, hidden ones are drawn
    afresh."""
    cases = []
    for i in range(PUBLIC + HIDDEN):
        public = i < PUBLIC
        rng = _rng(task.function, i) if public else _rng(task.function, i, student, seed)
        cases.append(_case(f"case {i + 1}", "values", public, task, task.draw(rng)))
    for limit in task.limits:
        cases.append(_case(limit.name, "limits", True, task, limit.draw(_rng(limit.name, student, seed))))
    return cases


def _case(name: str, layer: str, public: bool, task: Task, inputs: dict[str, Any]) -> Case:
    with np.errstate(all="ignore"):
        want = task.parts(task.reference(**inputs))
    return Case(name, layer, public, inputs, want)


def _grade_task(
    source: bytes,
    task: Task,
    student: str,
    seed: int,
    limits: Limits,
    sandbox: Sandbox,
    stuck: Problem | None,
) -> tuple[TaskReport, Problem | None]:
    """One task; `stuck` is why the module could not be loaded for the task before, which is not tried
    again."""
    cases = questions(task, student, seed)
    if stuck is not None:
        ran = Run([stuck] * len(cases), stuck)
    else:
        room = replace(limits, answer=2**20 + 4 * sum(a.nbytes for c in cases for a in c.want))
        ran = run(source, task.function, [c.inputs for c in cases], room, sandbox)
    for case, answer in zip(cases, ran.answers, strict=True):
        case.got = answer
    values = [c for c in cases if c.layer == "values"]
    layers = [_runs(task, cases), _shapes(task, cases), _values(task, values, "values")]
    right = layers[2].passed > 0
    if "gradients" in task.points:
        layers.append(_gradients(task, values, _rng("v", task.function, student, seed)))
    if "limits" in task.points:
        layers.append(_values(task, [c for c in cases if c.layer == "limits"], "limits"))
    if "bytes" in task.points:
        layers.append(_bytes(source, task, _rng("large", student, seed), limits, sandbox, right))
    for layer in layers:
        if not right:
            layer.points = 0.0
    report = TaskReport(
        task.number,
        task.function,
        round(sum(x.points for x in layers), 6),
        task.total,
        layers,
        printed=ran.printed,
        seconds=ran.seconds,
    )
    _explain(report, task, cases, ran.broken)
    lost = (
        ran.broken if ran.broken is not None and (ran.broken.kind != "NameError") and not ran.loaded else None
    )
    return report, lost


def _explain(report: TaskReport, task: Task, cases: list[Case], broken: Problem | None) -> None:
    """The problem in one sentence, the likely causes, and the hints."""
    problems = [c.got for c in cases if isinstance(c.got, Problem)]
    if broken is not None:
        report.problem = str(broken)
    elif problems:
        report.problem = "not written yet" if problems[0].kind == "NotImplementedError" else str(problems[0])
    if report.points < report.of:
        answered = [(c.inputs, c.want, c.got) for c in cases if not isinstance(c.got, Problem)]
        report.causes = causes(task, answered)
        report.hints = list(task.hints)


def _layer(task: Task, name: str, passed: float, cases: int, told: list[str]) -> Layer:
    of = task.points.get(name, 0.0)
    return Layer(name, of * passed / max(cases, 1), of, passed, cases, told)


def _runs(task: Task, cases: list[Case]) -> Layer:
    failed = [c for c in cases if isinstance(c.got, Problem)]
    told = [f"{failed[0].name}: {failed[0].got}"] if failed else []
    return _layer(task, "runs", len(cases) - len(failed), len(cases), told)


def _misshapen(task: Task, case: Case) -> str:
    """What is wrong with the form of an answer, or nothing."""
    if isinstance(case.got, Problem):
        return "no answer"
    if len(case.got) != len(case.want):
        return f"returned {len(case.got)} arrays, expected {len(case.want)}: {', '.join(task.outputs)}"
    for name, got, want in zip(task.outputs, case.got, case.want, strict=True):
        if got.shape != want.shape:
            return f"{name} has shape {got.shape}, expected {want.shape}"
        if got.dtype != want.dtype:
            return f"{name} is {got.dtype}, expected {want.dtype}"
    return ""


def _shapes(task: Task, cases: list[Case]) -> Layer:
    wrong = [(c, text) for c in cases if (text := _misshapen(task, c))]
    told = [f"{wrong[0][0].name}: {wrong[0][1]}"] if wrong else []
    return _layer(task, "shapes", len(cases) - len(wrong), len(cases), told)


def _values(task: Task, cases: list[Case], layer: str) -> Layer:
    """Every output of every case counts alike."""
    passed, told = 0.0, []
    for case in cases:
        if isinstance(case.got, Problem) or len(case.got) != len(case.want):
            told.append(
                f"{case.name}: {case.got if isinstance(case.got, Problem) else _misshapen(task, case)}"
            )
            continue
        for name, got, want in zip(task.outputs, case.got, case.want, strict=True):
            text = difference(got, want, task.tolerance, show=case.public)
            passed += (not text) / len(case.want)
            if text:
                told.append(f"{case.name}{'' if case.public else ' (hidden)'}: {name}: {text}")
    return _layer(task, layer, passed, len(cases), told)


def _gradients(task: Task, cases: list[Case], rng: np.random.Generator) -> Layer:
    """Σ ⟨gradient, v⟩ against (⟨f(x + hv), g⟩ − ⟨f(x − hv), g⟩) / 2h of the plain forward form."""
    assert task.forward is not None
    step, passed, told = 1e-5, 0, []
    for case in cases:
        x = {name: value for name, value in case.inputs.items() if name != "g"}
        v = {name: rng.standard_normal(x[name].shape) for name in task.wrt}
        ahead, behind = (
            np.sum(case.inputs["g"] * task.forward(**{**x, **{n: x[n] + h * v[n] for n in v}}))
            for h in (step, -step)
        )
        want = (ahead - behind) / (2 * step)
        if isinstance(case.got, Problem) or _misshapen(task, case):
            told.append(f"{case.name}: no gradient to check")
            continue
        with np.errstate(all="ignore"):
            got = sum(float(np.sum(g * v[n])) for g, n in zip(case.got, task.wrt, strict=False))
        if abs(got - want) <= 1e-6 * (1 + abs(want)):
            passed += 1
        else:
            told.append(
                f"{case.name}: along a random direction your gradients promise a change of {got:.6g}, "
                f"the function changes by {want:.6g}"
            )
    return _layer(task, "gradients", passed, len(cases), told)


def _bytes(
    source: bytes, task: Task, rng: np.random.Generator, limits: Limits, sandbox: Sandbox, right: bool
) -> Layer:
    """The large case in a process whose memory is bounded; not tried when no small one was right."""
    assert task.large is not None
    if not right:
        return _layer(task, "bytes", 0, 1, ["not tried: no small case was right"])
    case = _case("the large case", "bytes", True, task, task.large(rng))
    room = replace(limits, memory=task.memory, answer=2**20 + 4 * sum(a.nbytes for a in case.want))
    case.got = run(source, task.function, [case.inputs], room, sandbox).answers[0]
    if isinstance(case.got, Problem) and case.got.kind.endswith("MemoryError"):
        told = [f"more than {task.memory / 2**20:.0f} MiB of memory: {case.got}"]
        return _layer(task, "bytes", 0, 1, told)
    layer = _values(task, [case], "bytes")
    return layer


__all__ = ["PUBLIC", "Case", "Layer", "Report", "TaskReport", "agree", "grade", "questions"]
