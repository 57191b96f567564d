"""Random draws that several generators share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw_distinct(
    rng: np.random.Generator, batch: int, n: int, k: int, log_weights: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """(batch, k) distinct numbers below n in random order, drawn one after another with the given weights.

    The k smallest of E_i / w_i, E_i exponential, are such a draw (the exponential race); w_i = 1 by default.
    """
    race = rng.standard_exponential((batch, n))
    if log_weights is not None:
        race *= np.exp(-log_weights)
    first = np.argpartition(race, k - 1, axis=1)[:, :k]
    order = np.argsort(np.take_along_axis(race, first, axis=1), axis=1)
    return np.take_along_axis(first, order, axis=1)
