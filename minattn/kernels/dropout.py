"""Dropout: random numbers, one factor for each entry, one product.

Drawing the numbers is most of the time, so there is no compiled form: NumPy makes the factors in the memory
of the comparison and in the precision of x, and the gradient is one product with the same factors.
"""

from __future__ import annotations

import numpy as np

from minattn.autograd import namespace
from minattn.autograd.engine import Operand


def dropout(x: Operand, p: float, rng: np.random.Generator) -> Operand:
    """Zero each entry with probability p and divide the others by 1 − p, so that the mean stays."""
    if not 0 <= p < 1:
        raise ValueError(f"p: expected a probability in [0, 1), got {p}")
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")
    if p == 0:
        return x
    keep = rng.random(x.shape, dtype=np.float32) >= p
    factors = np.multiply(keep, x.dtype.type(1 / (1 - p)), dtype=x.dtype)  # else float64 on the way
    return x * namespace(x).asarray(factors)
