"""The part of the table for `shape.py` and `index.py`; see `cases.py`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from minattn import autograd as ag

from .case import Case, torch
from .inputs import Rng, Sample, along, broadcast, distinct, laid_out, normal, shapes, unary


def F() -> object:
    return torch.nn.functional


# ---- shape.py ----
def options_of(make, least=0, most=4, values=normal):
    """One array with the options that `make(rng, shape)` gives for its shape."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for shape in shapes(rng, least, most):
            yield (laid_out(rng, values(rng, shape)),), make(rng, shape)

    return samples


def new_shape(rng: Rng, shape: tuple) -> dict:
    size = int(np.prod(shape))
    factors = [n for n in range(1, size + 1) if size % n == 0]
    first = int(rng.choice(factors)) if factors else 0
    rest = size // first if first else 4
    return {
        "shape": [(first, rest), (rest, first, 1), (size,), (first, -1) if size else (-1,)][
            int(rng.integers(4))
        ]
    }


def several(count: int, dims: bool = False, odd: bool = False):
    """Several arrays of one shape, or with another size along the axis if `odd`."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for k, shape in enumerate(shapes(rng, least=1 if odd else 0)):
            dim = (
                int(rng.integers(-len(shape), len(shape)))
                if odd
                else int(rng.integers(-len(shape) - 1, len(shape) + 1))
            )
            parts = [list(shape) for _ in range(1 + k % count)]
            for part in parts if odd else []:
                part[dim] = int(rng.integers(0, 4))
            yield tuple(laid_out(rng, normal(rng, tuple(p))) for p in parts), {"dim": dim}

    return samples


def cut(rng: Rng, shape: tuple) -> dict:
    dim = int(rng.integers(-len(shape), len(shape)))
    n = shape[dim]
    points = [0, *sorted(int(p) for p in rng.integers(0, n + 1, 2)), n]
    return {
        "sizes": [b - a for a, b in pairwise(points)] if rng.random() < 0.5 else int(rng.integers(1, 4)),
        "dim": dim,
    }


def axes_and(rng: Rng, shape: tuple, **more) -> dict:
    return {"dim": int(rng.integers(-len(shape), len(shape))), **more}


def some_axes(rng: Rng, shape: tuple) -> tuple[int, ...]:
    ndim = len(shape)
    axes = rng.choice(ndim, size=int(rng.integers(0, ndim + 1)), replace=False)
    return tuple(int(d) - ndim * int(rng.integers(2)) for d in axes)


def rolled(rng: Rng, shape: tuple) -> dict:
    dims = some_axes(rng, shape)
    if dims and rng.random() < 0.5:
        return {"shifts": tuple(int(n) for n in rng.integers(-4, 5, len(dims))), "dims": dims}
    return {"shifts": int(rng.integers(-4, 5)), "dims": dims[0] if dims else None}


def widths(rng: Rng, shape: tuple) -> dict:
    return {"widths": tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (len(shape), 2))), "value": 1.5}


def padded(x, widths, value):
    return F().pad(x, [n for pair in reversed(widths) for n in pair], value=value)


def expansions(rng: Rng) -> Iterator[Sample]:
    for shape in shapes(rng, count=28):
        x = broadcast(rng, shape)
        lead = len(shape) - len(x)
        asked = tuple(
            -1 if i >= lead and rng.random() < 0.3 and x[i - lead] == n else n for i, n in enumerate(shape)
        )
        yield (laid_out(rng, normal(rng, x)),), {"shape": asked}


SHAPE = [
    Case(
        "reshape",
        lambda x, shape: ag.reshape(x, *shape),
        lambda x, shape: x.reshape(shape),
        options_of(new_shape),
    ),
    Case(
        "permute",
        lambda x, dims: ag.permute(x, *dims),
        lambda x, dims: x.permute(dims),
        options_of(
            lambda r, s: {"dims": tuple(int(d) - len(s) * int(r.integers(2)) for d in r.permutation(len(s)))}
        ),
    ),
    Case(
        "transpose",
        ag.transpose,
        lambda x, dim0, dim1: x.transpose(dim0, dim1),
        options_of(
            lambda r, s: dict(zip(("dim0", "dim1"), map(int, r.integers(-len(s), len(s), 2)), strict=True)), 1
        ),
    ),
    Case("expand", lambda x, shape: ag.expand(x, *shape), lambda x, shape: x.expand(shape), expansions),
    Case(
        "unsqueeze",
        ag.unsqueeze,
        lambda x, dim: x.unsqueeze(dim),
        options_of(lambda r, s: {"dim": int(r.integers(-len(s) - 1, len(s) + 1))}),
    ),
    Case("squeeze", ag.squeeze, lambda x, dim: x.squeeze(dim), options_of(axes_and, 1)),
    Case("squeeze all", ag.squeeze, lambda x: x.squeeze(), unary()),
    Case("cat", lambda *xs, dim: ag.cat(xs, dim), lambda *xs, dim: torch.cat(xs, dim), several(3, odd=True)),
    Case("stack", lambda *xs, dim: ag.stack(xs, dim), lambda *xs, dim: torch.stack(xs, dim), several(3)),
    Case("split", ag.split, lambda x, sizes, dim: x.split(sizes, dim), options_of(cut, 1)),
    Case(
        "chunk",
        ag.chunk,
        lambda x, chunks, dim: x.chunk(chunks, dim) if x.shape[dim] else x.split(1, dim),
        options_of(lambda r, s: axes_and(r, s, chunks=int(r.integers(1, 5))), 1),
    ),
    Case("pad", ag.pad, padded, options_of(widths, 1)),
    Case("roll", ag.roll, lambda x, shifts, dims: x.roll(shifts, dims), options_of(rolled, 1)),
    Case(
        "flip",
        lambda x, dims: ag.flip(x, *dims),
        lambda x, dims: x.flip(dims),
        options_of(lambda r, s: {"dims": some_axes(r, s)}),
    ),
    Case(
        "tril",
        ag.tril,
        lambda x, diagonal: x.tril(diagonal),
        options_of(lambda r, s: {"diagonal": int(r.integers(-3, 4))}, 2),
    ),
    Case(
        "triu",
        ag.triu,
        lambda x, diagonal: x.triu(diagonal),
        options_of(lambda r, s: {"diagonal": int(r.integers(-3, 4))}, 2),
    ),
    Case(
        "repeat_interleave",
        ag.repeat_interleave,
        lambda x, repeats, dim: x.repeat_interleave(repeats, dim),
        options_of(lambda r, s: axes_and(r, s, repeats=int(r.integers(0, 4))), 1),
    ),
]


# ---- index.py ----
def positions(x, index) -> object:
    """Which entries of the flattened x an index picks."""
    return torch.as_tensor(np.array(np.arange(x.numel()).reshape(tuple(x.shape))[index]))


INDICES = [
    ((5,), 2),
    ((5,), -1),
    ((5,), slice(None, None, -2)),
    ((5,), [0, 0, 3]),
    ((5,), []),
    ((5,), np.int64(1)),
    ((5,), np.array([True, False, True, True, False])),
    ((5,), np.zeros(5, bool)),
    ((5,), np.array(3)),
    ((), ...),
    ((), None),
    ((0, 3), slice(0, 2)),
    ((0, 3), (slice(None), 1)),
    ((1, 4), (0, slice(1, 3))),
    ((3, 1), (..., 0)),
    ((3, 4), (None, slice(0, 2), None, -1)),
    ((3, 4), np.array([[0, 1], [2, 2]])),
    ((3, 4), ([0, 2, 0], [1, 1, 1])),
    ((3, 4), (slice(None), [3, 0, 0])),
    ((3, 4), np.eye(3, 4, dtype=bool)),
    ((2, 3, 4), (..., slice(None, None, -1), 1)),
    ((2, 3, 4), (slice(None), np.array([[1], [0]]), np.array([0, 3]))),
    ((2, 3, 4), (np.array([1, 0]), slice(1), [2, 2])),
    ((2, 3, 4), (1, ..., np.array([0, 0, 1]))),
    ((2, 3, 4), (0, slice(None), np.array([True, False, True, True]))),
    ((4, 1, 2), (slice(1, None, 2), 0)),
    ((2, 2), ()),
]


def indexed(rng: Rng) -> Iterator[Sample]:
    for shape, index in INDICES:
        yield (laid_out(rng, normal(rng, shape)),), {"index": Fixed(index)}


def replaced(rng: Rng) -> Iterator[Sample]:
    for k, (shape, index) in enumerate(INDICES):
        where = np.arange(np.prod(shape, dtype=int)).reshape(shape)[index]
        if len(np.unique(where)) == where.size:
            values = broadcast(rng, where.shape) if k % 2 else where.shape
            yield (
                (laid_out(rng, normal(rng, shape)), laid_out(rng, normal(rng, values))),
                {"index": Fixed(index)},
            )
    for shape in shapes(rng, 1, count=8):
        yield (laid_out(rng, normal(rng, shape)), normal(rng, ())), {"index": Fixed(rng.random(shape) < 0.5)}


class Fixed:
    """An index, kept from being taken for an array."""

    def __init__(self, index):
        self.index = index

    def __repr__(self) -> str:
        return repr(self.index)


def put_by_position(x, values, index):
    where = positions(x, index.index)
    return (
        x.reshape(-1).index_put((where.reshape(-1),), values.expand(where.shape).reshape(-1)).reshape(x.shape)
    )


def gathered(rng: Rng) -> Iterator[Sample]:
    for k, shape in enumerate(shapes(rng, 1, count=28)):
        dim = int(rng.integers(-len(shape), len(shape)))
        wanted = list(shape) if k % 2 else [int(rng.integers(0, n + 1)) for n in shape]
        wanted[dim] = int(rng.integers(0, 4)) if shape[dim] else 0
        yield (
            (laid_out(rng, normal(rng, shape)),),
            {"dim": dim, "index": rng.integers(0, max(shape[dim], 1), wanted)},
        )


def scattered(rng: Rng) -> Iterator[Sample]:
    for (x,), options in gathered(rng):
        src = tuple(n + int(rng.integers(0, 2)) for n in options["index"].shape)
        yield (x, laid_out(rng, normal(rng, src))), options


def segments(rng: Rng) -> Iterator[Sample]:
    for shape in shapes(rng, 1, count=26):
        count = int(rng.integers(1, 5))
        yield (laid_out(rng, normal(rng, shape)),), {"ids": rng.integers(0, count, shape[0]), "count": count}


def tables(rng: Rng) -> Iterator[Sample]:
    for ids_shape in shapes(rng, 0, 3):
        V, D = int(rng.integers(1, 5)), int(rng.integers(0, 4))
        yield (laid_out(rng, normal(rng, (V, D))),), {"ids": rng.integers(0, V, ids_shape)}


INDEX = [
    Case(
        "getitem",
        lambda x, index: ag.getitem(x, index.index),
        lambda x, index: x.reshape(-1)[positions(x, index.index)],
        indexed,
    ),
    Case(
        "index_put", lambda x, values, index: ag.index_put(x, index.index, values), put_by_position, replaced
    ),
    Case("gather", ag.gather, lambda x, dim, index: x.gather(dim, index), gathered),
    Case(
        "scatter_add",
        lambda x, src, dim, index: ag.scatter_add(x, dim, index, src),
        lambda x, src, dim, index: x.scatter_add(dim, index, src[tuple(slice(0, n) for n in index.shape)]),
        scattered,
    ),
    Case(
        "segment_sum",
        ag.segment_sum,
        lambda x, ids, count: torch.zeros(count, *x.shape[1:], dtype=x.dtype).index_add(0, ids, x),
        segments,
    ),
    Case("embedding", ag.embedding, lambda w, ids: F().embedding(ids, w), tables),
    Case(
        "one_hot",
        lambda w, ids: ag.one_hot(ids, w.shape[0], w.dtype),
        lambda w, ids: F().one_hot(ids, w.shape[0]).to(w.dtype),
        tables,
        order=0,
    ),
    Case(
        "sort",
        ag.sort,
        lambda x, dim, descending: x.sort(dim, descending),
        along(distinct, descending=[False, True]),
    ),
    Case("topk", ag.topk, lambda x, k, dim: x.topk(k, dim), along(distinct, least_size=1, k=[1, 0])),
    Case(
        "topk two",
        lambda x: ag.topk(x, 2),
        lambda x: x.topk(2),
        lambda rng: (((laid_out(rng, distinct(rng, (*s, 2 + len(s)))),), {}) for s in shapes(rng, 0, 3)),
    ),
]
