"""Inputs for the table of cases: shapes, memory layouts and values.

A sample is ``(arrays, options)``: the arrays are differentiated, the options are not. Every generator
yields at least twenty, among them axes of size 0 and 1 and views that are transposed, strided or flipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

Rng = np.random.Generator
Sample = tuple[tuple[np.ndarray, ...], dict]
Samples = Callable[[Rng], Iterator[Sample]]

SPECIAL = [
    (),
    (1,),
    (0,),
    (5,),
    (2, 3),
    (3, 1),
    (1, 4),
    (0, 3),
    (3, 0),
    (1, 1),
    (2, 3, 4),
    (2, 1, 3),
    (1, 0, 2),
    (2, 2, 1, 3),
]


def shapes(
    rng: Rng, least: int = 0, most: int = 4, count: int = 24, empty: bool = True
) -> list[tuple[int, ...]]:
    """The special shapes with `least` to `most` axes, then random ones until there are `count`."""
    found = [s for s in SPECIAL if least <= len(s) <= most and (empty or 0 not in s)]
    while len(found) < count:
        ndim = int(rng.integers(max(least, 1), most + 1))
        found.append(tuple(int(n) for n in rng.integers(1, 5, ndim)))
    return found


# ---- values ----
def normal(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def positive(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.3, 2.0, shape)


def above_minus_one(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-0.8, 2.0, shape)


def nonzero(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.3, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def distinct(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """No two entries closer than 0.1, so that a largest one stays the largest under a small change."""
    size = int(np.prod(shape))
    return (rng.permutation(size) - size / 2 + rng.uniform(-0.4, 0.4, size)).reshape(shape)


def complex_normal(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def laid_out(rng: Rng, a: np.ndarray) -> np.ndarray:
    """The same values in another memory layout: as they are, transposed, every second entry, or backwards."""
    a = np.asarray(a)
    kind = rng.integers(4)
    if a.ndim == 0 or kind == 0:
        return a
    if kind == 1:
        return np.asfortranarray(a)
    if kind == 2:
        wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, dtype=a.dtype)
        wide[..., ::2] = a
        return wide[..., ::2]
    return np.flip(np.flip(a).copy())


# ---- samples ----
def unary(values: Callable = normal, least: int = 0, most: int = 4, empty: bool = True) -> Samples:
    """One array of every shape."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for shape in shapes(rng, least, most, empty=empty):
            yield (laid_out(rng, values(rng, shape)),), {}

    return samples


def broadcast(rng: Rng, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `shape`: some axes of size 1, some leading ones left out."""
    kept = tuple(1 if rng.random() < 0.3 else n for n in shape)
    return kept[int(rng.integers(0, len(kept) + 1)) :] if rng.random() < 0.4 else kept


def binary(left: Callable = normal, right: Callable = normal) -> Samples:
    """Two arrays that broadcast together, or to each other, or have the same shape."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for k, shape in enumerate(shapes(rng, count=30)):
            first = broadcast(rng, shape) if k % 3 == 1 else shape
            second = broadcast(rng, shape) if k % 3 else shape
            yield (laid_out(rng, left(rng, first)), laid_out(rng, right(rng, second))), {}

    return samples


def along(values: Callable = normal, empty: bool = True, least_size: int = 0, **more: list) -> Samples:
    """One array and one axis, from the front and from the end; `more` options take their values in turn."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for k, shape in enumerate(shapes(rng, least=1, count=28, empty=empty)):
            dims = [d for d in range(-len(shape), len(shape)) if shape[d] >= least_size]
            if dims:
                options = {name: choices[k % len(choices)] for name, choices in more.items()}
                yield (laid_out(rng, values(rng, shape)),), {"dim": int(rng.choice(dims)), **options}

    return samples


def reduced(values: Callable = normal, least: int = 0, **more: list) -> Samples:
    """One array and the axes to reduce: all, one, or several; at least `least` entries come together."""

    def samples(rng: Rng) -> Iterator[Sample]:
        choices = [dict(zip(more, v, strict=True)) for v in product(*more.values())]
        k = 0
        for shape in shapes(rng, count=30):
            ndim = len(shape)
            dims: list = [None]
            if ndim:
                dims.append(int(rng.integers(-ndim, ndim)))
            if ndim > 1:
                picked = rng.choice(ndim, size=int(rng.integers(1, ndim + 1)), replace=False)
                dims.append(tuple(int(d) for d in picked))
            for dim in dims:
                axes = range(ndim) if dim is None else np.atleast_1d(dim)
                if np.prod([shape[d] for d in axes]) >= least:
                    k += 1
                    options = {"dim": dim, "keepdim": bool(k % 2), **choices[k % len(choices)]}
                    yield (laid_out(rng, values(rng, shape)),), options

    return samples
