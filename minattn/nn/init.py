"""Initial weights: each function returns a new array of the given shape, drawn from `rng`.

A weight has PyTorch's layout, (out, in) or (out, in, kernel…): its fan-in is the number of inputs that are
summed for one output, its fan-out the number of outputs that one input reaches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Shape = tuple[int, ...]


def check_rng(rng: Any) -> np.random.Generator:
    """`rng` itself, if it is a generator: never a seed, never NumPy's global state."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError("rng: expected a numpy.random.Generator such as numpy.random.default_rng(0), "
                        f"got {rng!r}")
    return rng


def check_sizes(**sizes: int) -> list[int]:
    """The sizes themselves, if each is an integer of at least 1."""
    for name, n in sizes.items():
        if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
            raise TypeError(f"{name}: expected an integer, got {n!r}")
        if n < 1:
            raise ValueError(f"{name}: expected at least 1, got {n}")
    return list(sizes.values())


def fans(shape: Shape) -> tuple[int, int]:
    """Fan-in and fan-out of a weight."""
    if len(shape) < 2:
        raise ValueError(f"shape: expected (out, in, …) with at least two axes, got {shape}")
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


def uniform(shape: Shape, bound: float = 1.0, *, rng: np.random.Generator, dtype: Any = np.float32
            ) -> np.ndarray:
    """Uniform on [−bound, bound)."""
    return check_rng(rng).uniform(-bound, bound, shape).astype(dtype)
