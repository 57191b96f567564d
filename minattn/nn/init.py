"""Initial weights: each function returns a new array of the given shape, drawn from `rng`.

A weight has PyTorch's layout, (out, in) or (out, in, kernel…): its fan-in is the number of inputs that are
summed for one output, its fan-out the number of outputs that one input reaches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Generator = np.random.Generator

_GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}


class Blank(np.random.Generator):
    """A generator whose draws are all zero and take no memory: for a model whose weights are loaded next.

    >>> model = GPT(config, rng=Blank())
    >>> model.load_state_dict(weights, assign=True)
    """

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return np.broadcast_to(np.float32(0), size)

    def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        return np.broadcast_to(np.float32(0), size)

    def standard_normal(self, size: Any = None, dtype: Any = np.float32, out: Any = None) -> Any:
        return np.broadcast_to(np.float32(0), size)


def check_rng(rng: Any) -> Generator:
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


def gain(activation: str) -> float:
    """By how much weights are enlarged to make up for an activation that shrinks the variance."""
    if activation not in _GAINS:
        raise ValueError(f"activation: expected one of {', '.join(_GAINS)}, got {activation!r}")
    return _GAINS[activation]


def uniform(shape: Shape, bound: float = 1.0, *, rng: Generator, dtype: Any = np.float32) -> np.ndarray:
    """Uniform on [−bound, bound)."""
    return check_rng(rng).uniform(-bound, bound, shape).astype(dtype, copy=False)


def normal(shape: Shape, mean: float = 0.0, std: float = 1.0, *, rng: Generator, dtype: Any = np.float32
           ) -> np.ndarray:
    """Normal with the given mean and standard deviation."""
    return check_rng(rng).normal(mean, std, shape).astype(dtype, copy=False)


def trunc_normal(shape: Shape, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, *,
                 rng: Generator, dtype: Any = np.float32) -> np.ndarray:
    """Normal, drawn again where it falls outside [a, b].

    As in PyTorch, `a` and `b` are values, not numbers of standard deviations: with ``std=0.02`` the default
    [−2, 2] cuts nothing off.
    """
    inside = _normal_cdf((b - mean) / std) - _normal_cdf((a - mean) / std)
    if not inside > 1e-3:
        raise ValueError(f"a, b: expected an interval that the normal often hits, got [{a}, {b}] of "
                         f"probability {inside:.1e}")
    out = check_rng(rng).normal(mean, std, shape)
    while (outside := (out < a) | (out > b)).any():
        out[outside] = rng.normal(mean, std, int(outside.sum()))
    return out.astype(dtype)


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def xavier_uniform(shape: Shape, gain: float = 1.0, *, rng: Generator, dtype: Any = np.float32) -> np.ndarray:
    """Uniform with variance gain² · 2 / (fan-in + fan-out) [Glorot and Bengio 2010].

    A compromise between keeping the variance of activations forwards and of gradients backwards.
    """
    return uniform(shape, gain * math.sqrt(6 / sum(fans(shape))), rng=rng, dtype=dtype)


def xavier_normal(shape: Shape, gain: float = 1.0, *, rng: Generator, dtype: Any = np.float32) -> np.ndarray:
    """Normal with variance gain² · 2 / (fan-in + fan-out) [Glorot and Bengio 2010]."""
    return normal(shape, 0.0, gain * math.sqrt(2 / sum(fans(shape))), rng=rng, dtype=dtype)


def kaiming_uniform(shape: Shape, gain: float = math.sqrt(2), *, rng: Generator, dtype: Any = np.float32
                    ) -> np.ndarray:
    """Uniform with variance gain² / fan-in; the gain √2 keeps variances under ReLU [He et al. 2015]."""
    return uniform(shape, gain * math.sqrt(3 / fans(shape)[0]), rng=rng, dtype=dtype)


def kaiming_normal(shape: Shape, gain: float = math.sqrt(2), *, rng: Generator, dtype: Any = np.float32
                   ) -> np.ndarray:
    """Normal with variance gain² / fan-in; the gain √2 keeps variances under ReLU [He et al. 2015]."""
    return normal(shape, 0.0, gain / math.sqrt(fans(shape)[0]), rng=rng, dtype=dtype)


def orthogonal(shape: Shape, gain: float = 1.0, *, rng: Generator, dtype: Any = np.float32) -> np.ndarray:
    """gain times a matrix (out, rest) with orthonormal rows or columns, whichever are fewer."""
    fans(shape)
    out, rest = shape[0], math.prod(shape[1:])
    q, r = np.linalg.qr(check_rng(rng).normal(size=(max(out, rest), min(out, rest))))
    q = q * np.sign(np.diag(r))  # makes the draw uniform: QR's own signs are not random
    return (gain * (q if out >= rest else q.T)).reshape(shape).astype(dtype)
