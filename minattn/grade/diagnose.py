"""Where two answers differ, how much, and which known mistake gives exactly what a student got."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .task import Task

Answered = tuple[dict[str, Any], list[np.ndarray], list[np.ndarray]]


def agree(got: np.ndarray, want: np.ndarray, tolerance: float) -> bool:
    """Equal shapes and kinds, and no number further away than tolerance × the largest expected one."""
    return not difference(got, want, tolerance)


def difference(got: np.ndarray, want: np.ndarray, tolerance: float, show: bool = True) -> str:
    """Where the first wrong number is and how much is wrong; empty when nothing is."""
    if got.shape != want.shape or got.dtype.kind != want.dtype.kind:
        return f"shape {got.shape} of {got.dtype}, expected {want.shape} of {want.dtype}"
    if not want.size:
        return ""
    a, b = (x.astype(np.complex128 if want.dtype.kind == "c" else np.float64) for x in (got, want))
    scale = float(np.abs(b).max()) or 1.0
    with np.errstate(all="ignore"):
        off = np.abs(a - b)
        wrong = ~(off <= tolerance * scale)
    if not wrong.any():
        return ""
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    at = f"at {list(first)}" if first else "the number"
    numbers = f" got {a[first]:.6g}, expected {b[first]:.6g};" if show else ""
    if not np.isfinite(a).all():
        return f"{int(wrong.sum())} of {wrong.size} wrong, the first {at};{numbers} some are NaN or infinite"
    return (
        f"{int(wrong.sum())} of {wrong.size} numbers wrong, the first {at};{numbers} "
        f"largest difference {off.max():.3g} (allowed {tolerance * scale:.1g})"
    )


def causes(task: Task, answered: Sequence[Answered]) -> list[str]:
    """Likely causes: known mistakes that explain every wrong answer, else what the numbers themselves
    suggest."""
    wrong = [case for case in answered if not _same(case[2], case[1], task.tolerance)]
    if not wrong:
        return []
    named = []
    for mistake in task.mistakes:
        if all(_same(got, _tried(task, mistake, inputs), task.tolerance) for inputs, _, got in wrong):
            text = " ".join((mistake.__doc__ or "").split())
            named.append(f"{mistake.__name__}: {text}")
    return named or _general(task, wrong)


def _tried(task: Task, mistake: Any, inputs: dict[str, Any]) -> list[np.ndarray]:
    copies = {k: x.copy() if isinstance(x, np.ndarray) else x for k, x in inputs.items()}
    with np.errstate(all="ignore"):
        try:
            return task.parts(mistake(**copies))
        except (ValueError, IndexError, ZeroDivisionError):
            return []


def _same(got: list[np.ndarray], want: list[np.ndarray], tolerance: float) -> bool:
    """Whether two answers agree, NaN and infinity at the same places included."""
    if len(got) != len(want):
        return False
    for a, b in zip(got, want, strict=True):
        if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
            return False
        odd = ~np.isfinite(b)
        if not np.array_equal(a[odd], b[odd], equal_nan=True):
            return False
        if not agree(np.where(odd, 0, a), np.where(odd, 0, b), tolerance):
            return False
    return True


def _general(task: Task, wrong: Sequence[Answered]) -> list[str]:
    """A sign, a factor, a lower precision, a transposed matrix: said only when it explains all wrong
    answers."""
    pairs = [
        (name, a, b)
        for _, want, got in wrong
        if len(got) == len(want)
        for name, a, b in zip(task.outputs, got, want, strict=True)
        if not agree(a, b, task.tolerance)
    ]
    if not pairs or len({name for name, _, _ in pairs}) > 1:
        return []
    name = pairs[0][0]
    if all(a.ndim >= 2 and agree(np.swapaxes(a, -1, -2), b, task.tolerance) for _, a, b in pairs):
        return [f"{name} is the transpose of what is right"]
    pairs = [(n, a, b) for n, a, b in pairs if a.shape == b.shape and np.isfinite(a).all() and np.any(b)]
    if not pairs or not all(np.isfinite(b).all() for _, _, b in pairs):
        return []
    if all(agree(a, b, 1e-5) for _, a, b in pairs):
        return [
            f"{name} is nearly right, but not to the precision of float64: is something float32 on the way?"
        ]
    factors = [float(np.vdot(b, a).real / np.vdot(b, b).real) for _, a, b in pairs]
    if all(agree(a, f * b, task.tolerance) for f, (_, a, b) in zip(factors, pairs, strict=True)):
        if np.ptp(factors) < 1e-6:
            return [f"{name} is {factors[0]:.6g} times what is right"]
        return [
            f"{name} is right but for a factor that differs from case to case: "
            f"{', '.join(f'{f:.4g}' for f in factors[:3])}"
        ]
    return []
