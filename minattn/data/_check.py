"""Checks of arguments; each error names the argument, what was expected and what came."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def generator(rng: Any) -> None:
    """`rng` must be an explicit NumPy generator: never a seed, never a global state."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng must be a numpy.random.Generator such as numpy.random.default_rng(0), got {rng!r}"
        )


def at_least(least: int, **arguments: Any) -> None:
    """Each argument must be an integer of at least `least`."""
    for name, value in arguments.items():
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def probability(**arguments: Any) -> None:
    """Each argument must lie in [0, 1]."""
    for name, value in arguments.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
