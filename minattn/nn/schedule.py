"""Learning-rate schedules: each function here returns a function step ↦ lr, to be drawn or handed to `train`.

    cosine        ╱‾‾╲__      up over `warmup` steps, down along half a cosine, then `floor`
    linear        ╱╲____      up, down along a line, then `floor`
    inverse_sqrt  ╱╲_         up, down like 1/√step, without an end
    constant      ╱‾‾‾‾‾      up, and stays

Steps count from 0. Warming up goes through lr · (step + 1)/(warmup + 1), so that step 0 already moves and
step `warmup` is the first at full rate (as in nanoGPT).

    >>> rate = cosine(1e-3, steps=2000, warmup=100, floor=1e-4)
    >>> f"{rate(0):.2e} {rate(100):.2e} {rate(1050):.2e} {rate(5000):.2e}"
    '9.90e-06 1.00e-03 5.50e-04 1.00e-04'
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["constant", "cosine", "inverse_sqrt", "linear"]

Schedule = Callable[[int], float]


def _check(lr: float, warmup: int, steps: int | None = None, floor: float = 0.0) -> None:
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr: expected a finite rate of at least 0, got {lr}")
    if warmup < 0:
        raise ValueError(f"warmup: expected a number of steps of at least 0, got {warmup}")
    if steps is not None and steps <= warmup:
        raise ValueError(f"steps: expected more than the {warmup} steps of warm-up, got {steps}")
    if not 0 <= floor <= lr:
        raise ValueError(f"floor: expected a rate between 0 and lr={lr}, got {floor}")


def _warming(step: int, lr: float, warmup: int) -> float:
    return lr * (step + 1) / (warmup + 1)


def constant(lr: float, *, warmup: int = 0) -> Schedule:
    """lr, after warming up."""
    _check(lr, warmup)
    return lambda step: _warming(step, lr, warmup) if step < warmup else lr


def cosine(lr: float, *, steps: int, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """floor + ½ (1 + cos πx)(lr − floor), x going from 0 at step `warmup` to 1 at `steps`; then floor."""
    _check(lr, warmup, steps, floor)

    def rate(step: int) -> float:
        if step < warmup:
            return _warming(step, lr, warmup)
        x = min((step - warmup) / (steps - warmup), 1.0)
        return floor + 0.5 * (1 + math.cos(math.pi * x)) * (lr - floor)

    return rate


def linear(lr: float, *, steps: int, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """lr + x (floor − lr), where x runs from 0 at step `warmup` to 1 at step `steps`; then floor."""
    _check(lr, warmup, steps, floor)

    def rate(step: int) -> float:
        if step < warmup:
            return _warming(step, lr, warmup)
        x = min((step - warmup) / (steps - warmup), 1.0)
        return lr + x * (floor - lr)

    return rate


def inverse_sqrt(lr: float, *, warmup: int) -> Schedule:
    """lr √((warmup + 1)/(step + 1)) after warming up: needs no last step, so training can always go on."""
    _check(lr, warmup)

    def rate(step: int) -> float:
        return _warming(step, lr, warmup) if step < warmup else lr * math.sqrt((warmup + 1) / (step + 1))

    return rate
