"""What a chapter declares about its exercises, and how the declarations are found.

A `Task` says what is drawn, what is right, what is often wrong, and what each layer of checks is worth:

    runs        the function returns arrays for every input
    shapes      as many as asked for, of the right shapes and kinds
    values      equal to the reference, for inputs drawn afresh
    gradients   ⟨gradient, v⟩ equals a central difference of the plain forward form along random v
    limits      named special cases
    bytes       the answer is right within so many bytes of memory: the system enforces it, nobody is asked

A wrong answer that is often given is a function whose docstring is the diagnosis.  Wrong answers and
`solution` are sent through the sandbox as source text, so each must stand alone with ``np``.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("runs", "shapes", "values", "gradients", "limits", "bytes")
Draw = Callable[[np.random.Generator], dict[str, Any]]


@dataclass(frozen=True)
class Limit:
    """A named special case; what is right is the reference's answer."""

    name: str
    draw: Draw


@dataclass(frozen=True)
class Task:
    """One exercise.

    Attributes
    ----------
    number, function, level : its place, the name of the student's function, "warm-up", "core" or "stretch".
    points : layer -> points.
    draw : generator of random numbers -> named arguments.
    reference : the library's answer to them; outputs : what its parts are called.
    solution : the same from NumPy alone, another way; `selftest` grades it.
    hints : three, each saying more than the one before.
    mistakes : at least three wrong answers as functions; the docstring says what is wrong.
    limits : special cases.
    forward, wrt : for a task that returns gradients: the plain function that it differentiates, and of what.
    large, memory : an input, and the bytes in which it must be answered.
    tolerance : of differences, relative to the largest expected number.
    """

    number: int
    function: str
    level: str
    points: dict[str, float]
    draw: Draw
    reference: Callable[..., Any]
    solution: Callable[..., Any]
    hints: tuple[str, str, str]
    mistakes: tuple[Callable[..., Any], ...]
    outputs: tuple[str, ...] = ("the result",)
    limits: tuple[Limit, ...] = ()
    forward: Callable[..., Any] | None = None
    wrt: tuple[str, ...] = ()
    large: Draw | None = None
    memory: int = 0
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        unknown = set(self.points) - set(LAYERS)
        if unknown or len(self.hints) != 3 or len(self.mistakes) < 3:
            raise ValueError(
                f"{self.function}: expected layers of {LAYERS}, three hints and three mistakes or more, "
                f"got {sorted(self.points)}, {len(self.hints)}, {len(self.mistakes)}"
            )
        needs = {
            "limits": bool(self.limits),
            "gradients": self.forward is not None,
            "bytes": self.large is not None,
        }
        for layer, has in needs.items():
            if (layer in self.points) != has:
                raise ValueError(f"points: expected {layer} exactly when it is declared, in {self.function}")

    @property
    def total(self) -> float:
        return sum(self.points.values())

    def parts(self, answer: Any) -> list[np.ndarray]:
        """An answer of the reference's form as a list of arrays."""
        return [np.asarray(a) for a in (answer if isinstance(answer, tuple) else (answer,))]


def as_submission(form: Callable[..., Any], function: str) -> bytes:
    """The source of a stand-alone function as a submission in which it has the name that a task asks for."""
    source = textwrap.dedent(inspect.getsource(form))
    renamed = re.sub(rf"^def {form.__name__}\b", f"def {function}", source, count=1, flags=re.M)
    return f"import numpy as np\n\n\n{renamed}".encode()


def chapters() -> list[str]:
    """The chapters that have exercises, by name."""
    return sorted(p.stem for p in (ROOT / "tests" / "exercises").glob("*.py") if not p.stem.startswith("_"))


def stubs(chapter: str) -> Path:
    """The file that students fill in."""
    return ROOT / "chapters" / chapter / "exercises.py"


def tasks_of(chapter: str) -> list[Task]:
    """What a chapter declares; ValueError for a chapter without exercises."""
    if chapter not in chapters():
        raise ValueError(f"chapter: expected one of {', '.join(chapters())}, got {chapter!r}")
    path = ROOT / "tests" / "exercises" / f"{chapter}.py"
    spec = importlib.util.spec_from_file_location(f"minattn_exercises_{chapter}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tasks = list(module.TASKS)
    if [t.number for t in tasks] != list(range(1, len(tasks) + 1)):
        raise ValueError(f"TASKS: expected numbers from 1 on in {path.name}, got {[t.number for t in tasks]}")
    return tasks
