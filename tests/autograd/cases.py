"""The table: every public function of `minattn.autograd` beside PyTorch's, with inputs for both.

One list for each file of the package; `tests/autograd/test_<file>.py` runs the checks of `case.py` on its list. What
has no counterpart here is named in `ELSEWHERE` with the test that covers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from minattn import autograd as ag

from .case import Case, torch
from .inputs import (
    Rng, Sample, above_minus_one, along, binary, broadcast, complex_normal, distinct, laid_out, nonzero, normal, positive, reduced,
    shapes, unary,
)

ELSEWHERE = {
    "Tensor": "test_tensor", "tensor": "test_engine", "grad": "test_engine", "no_grad": "test_engine",
    "enable_grad": "test_engine", "namespace": "test_engine", "override_derivative": "test_engine",
    "primitive": "test_engine", "hessian": "test_functional", "hvp": "test_functional", "jacobian": "test_functional",
    "jvp": "test_functional", "vjp": "test_functional",
}


def F() -> object:
    return torch.nn.functional


# ---- elementwise.py --------------------------------------------------------------------------------------------------
def clipped(rng: Rng) -> Iterator[Sample]:
    for k, shape in enumerate(shapes(rng)):
        yield (laid_out(rng, normal(rng, shape)),), [{"min": -0.5, "max": 0.7}, {"min": 0.1}, {"max": -0.2}][k % 3]


def chosen(rng: Rng) -> Iterator[Sample]:
    for arrays, _ in binary()(rng):
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
        yield arrays, {"cond": rng.random(broadcast(rng, shape)) < 0.5}


def hard_and_soft(rng: Rng) -> Iterator[Sample]:
    for (x,), _ in unary()(rng):
        yield (x,), {"hard": x > 0}


ELEMENTWISE = [
    Case("add", ag.add, lambda x, y: x + y, binary()),
    Case("add complex", ag.add, lambda x, y: x + y, binary(complex_normal, normal)),
    Case("sub", ag.sub, lambda x, y: x - y, binary()),
    Case("mul", ag.mul, lambda x, y: x * y, binary()),
    Case("mul complex", ag.mul, lambda x, y: x * y, binary(complex_normal, complex_normal)),
    Case("mul complex-and-real", ag.mul, lambda x, y: x * y, binary(normal, complex_normal)),
    Case("div", ag.div, lambda x, y: x / y, binary(normal, nonzero)),
    Case("div complex", ag.div, lambda x, y: x / y, binary(complex_normal, complex_normal)),
    Case("neg", ag.neg, lambda x: -x, unary()),
    Case("pow", ag.pow, lambda x, y: x**y, binary(positive, normal)),
    Case("pow number", lambda x: ag.pow(x, 3), lambda x: x**3, unary()),
    Case("pow base", lambda x: ag.pow(2.5, x), lambda x: 2.5**x, unary()),
    Case("exp", ag.exp, lambda x: x.exp(), unary()),
    Case("exp complex", ag.exp, lambda x: x.exp(), unary(complex_normal)),
    Case("log", ag.log, lambda x: x.log(), unary(positive)),
    Case("log complex", ag.log, lambda x: x.log(), unary(complex_normal)),
    Case("log1p", ag.log1p, lambda x: x.log1p(), unary(above_minus_one)),
    Case("log1p complex", ag.log1p, lambda x: x.log1p(), unary(complex_normal)),
    Case("sqrt", ag.sqrt, lambda x: x.sqrt(), unary(positive)),
    Case("sqrt complex", ag.sqrt, lambda x: x.sqrt(), unary(complex_normal)),
    Case("abs", ag.abs, lambda x: x.abs(), unary()),
    Case("abs complex", ag.abs, lambda x: x.abs(), unary(complex_normal)),
    Case("sign", ag.sign, lambda x: x.sign(), unary()),
    Case("sin", ag.sin, lambda x: x.sin(), unary()),
    Case("sin complex", ag.sin, lambda x: x.sin(), unary(complex_normal)),
    Case("cos", ag.cos, lambda x: x.cos(), unary()),
    Case("cos complex", ag.cos, lambda x: x.cos(), unary(complex_normal)),
    Case("tanh", ag.tanh, lambda x: x.tanh(), unary()),
    Case("tanh complex", ag.tanh, lambda x: x.tanh(), unary(complex_normal)),
    Case("sigmoid", ag.sigmoid, lambda x: x.sigmoid(), unary()),
    Case("softplus", ag.softplus, lambda x: F().softplus(x), unary()),
    Case("relu", ag.relu, lambda x: x.relu(), unary()),
    Case("erf", ag.erf, lambda x: x.erf(), unary()),
    Case("gelu", ag.gelu, lambda x: F().gelu(x), unary()),
    Case("gelu tanh", lambda x: ag.gelu(x, "tanh"), lambda x: F().gelu(x, approximate="tanh"), unary()),
    Case("silu", ag.silu, lambda x: F().silu(x), unary()),
    Case("maximum", ag.maximum, lambda x, y: torch.maximum(x, y), binary()),
    Case("minimum", ag.minimum, lambda x, y: torch.minimum(x, y), binary()),
    Case("clip", ag.clip, lambda x, min=None, max=None: x.clamp(min, max), clipped),
    Case("where", lambda x, y, cond: ag.where(cond, x, y), lambda x, y, cond: torch.where(cond, x, y), chosen),
    Case("astype", lambda x: ag.astype(x, dtype=x.dtype), lambda x: x.to(x.dtype), unary()),
    Case("straight_through", lambda x, hard: ag.straight_through(hard, x), lambda x, hard: x + (hard * 1.0 - x).detach(),
         hard_and_soft, exact=False),
]


# ---- reduce.py -------------------------------------------------------------------------------------------------------
def variance(power: float) -> object:
    def theirs(x, dim, keepdim, correction):
        dims = tuple(range(x.ndim)) if dim is None else dim
        centred = x - x.mean(dims, keepdim=True)
        n = x.numel() if dim is None else np.prod([x.shape[d] for d in np.atleast_1d(dim)])
        return (centred.abs() ** 2).sum(dims, keepdim=keepdim) / (n - correction)

    return lambda x, **options: theirs(x, **options) ** power


def logsumexp(x, dim, keepdim):
    dims = tuple(range(x.ndim)) if dim is None else dim
    return x if dims == () else torch.logsumexp(x, dims, keepdim=keepdim)


def recurrence(a, b, dim):
    a, b = torch.broadcast_tensors(a, b)
    steps, h = [], 0
    for a_t, b_t in zip(a.unbind(dim), b.unbind(dim), strict=True):
        h = a_t * h + b_t
        steps.append(h)
    return torch.stack(steps, dim) if steps else a * b


def recurrences(left=normal, right=normal):
    def samples(rng: Rng) -> Iterator[Sample]:
        for k, shape in enumerate(shapes(rng, least=1, count=28)):
            pair = [shape, broadcast(rng, shape)] if k % 3 else [shape, shape]
            pair = pair[:: rng.choice([1, -1])]
            arrays = tuple(laid_out(rng, v(rng, s)) for v, s in zip((left, right), pair, strict=True))
            yield arrays, {"dim": int(rng.integers(-len(shape), len(shape)))}

    return samples


def norm(p: float) -> tuple:
    return (lambda x, **o: ag.norm(x, p, **o)), (lambda x, **o: torch.linalg.vector_norm(x, p, **o))


REDUCE = [
    Case("sum", ag.sum, lambda x, **o: x.sum(**o), reduced()),
    Case("sum complex", ag.sum, lambda x, **o: x.sum(**o), reduced(complex_normal)),
    Case("mean", ag.mean, lambda x, **o: x.mean(**o), reduced(least=1)),
    Case("var", ag.var, variance(1), reduced(least=2, correction=[0, 1])),
    Case("var complex", ag.var, variance(1), reduced(complex_normal, least=2, correction=[0, 1])),
    Case("std", ag.std, variance(0.5), reduced(least=2, correction=[0, 1])),
    Case("amax", ag.amax, lambda x, dim, keepdim: x.amax(() if dim is None else dim, keepdim), reduced(distinct, least=1)),
    Case("amin", ag.amin, lambda x, dim, keepdim: x.amin(() if dim is None else dim, keepdim), reduced(distinct, least=1)),
    Case("max", ag.max, lambda x, **o: x.max(**o), along(distinct, least_size=1, keepdim=[False, True])),
    Case("max all", ag.max, lambda x: x.max(), unary(distinct, empty=False), empty=False),
    Case("min", ag.min, lambda x, **o: x.min(**o), along(distinct, least_size=1, keepdim=[False, True])),
    Case("min all", ag.min, lambda x: x.min(), unary(distinct, empty=False), empty=False),
    Case("argmax", ag.argmax, lambda x, **o: x.argmax(**o), along(distinct, least_size=1), order=0),
    Case("argmin", ag.argmin, lambda x, **o: x.argmin(**o), along(distinct, least_size=1), order=0),
    Case("logsumexp", ag.logsumexp, logsumexp, reduced()),
    Case("norm", *norm(2), reduced()),
    Case("norm complex", *norm(2), reduced(complex_normal)),
    Case("norm 1", *norm(1), reduced()),
    Case("norm 3", *norm(3), reduced()),
    Case("norm half", *norm(0.5), reduced(nonzero)),
    Case("norm inf", *norm(float("inf")), reduced(distinct, least=1)),
    Case("softmax", ag.softmax, lambda x, dim: x.softmax(dim), along()),
    Case("log_softmax", ag.log_softmax, lambda x, dim: x.log_softmax(dim), along()),
    Case("cumsum", ag.cumsum, lambda x, dim: x.cumsum(dim), along()),
    Case("scan", ag.scan, recurrence, recurrences()),
    Case("scan complex", ag.scan, recurrence, recurrences(complex_normal, complex_normal)),
    Case("scan complex-and-real", ag.scan, recurrence, recurrences(complex_normal, normal)),
]


# ---- shape.py --------------------------------------------------------------------------------------------------------
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
    return {"shape": [(first, rest), (rest, first, 1), (size,), (first, -1) if size else (-1,)][int(rng.integers(4))]}


def several(count: int, dims: bool = False, odd: bool = False):
    """Several arrays of one shape, or with another size along the axis if `odd`."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for k, shape in enumerate(shapes(rng, least=1 if odd else 0)):
            dim = int(rng.integers(-len(shape), len(shape))) if odd else int(rng.integers(-len(shape) - 1, len(shape) + 1))
            parts = [list(shape) for _ in range(1 + k % count)]
            for part in parts if odd else []:
                part[dim] = int(rng.integers(0, 4))
            yield tuple(laid_out(rng, normal(rng, tuple(p))) for p in parts), {"dim": dim}

    return samples


def cut(rng: Rng, shape: tuple) -> dict:
    dim = int(rng.integers(-len(shape), len(shape)))
    n = shape[dim]
    points = [0, *sorted(int(p) for p in rng.integers(0, n + 1, 2)), n]
    return {"sizes": [b - a for a, b in pairwise(points)] if rng.random() < 0.5 else int(rng.integers(1, 4)), "dim": dim}


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
        asked = tuple(-1 if i >= lead and rng.random() < 0.3 and x[i - lead] == n else n for i, n in enumerate(shape))
        yield (laid_out(rng, normal(rng, x)),), {"shape": asked}


SHAPE = [
    Case("reshape", lambda x, shape: ag.reshape(x, *shape), lambda x, shape: x.reshape(shape), options_of(new_shape)),
    Case("permute", lambda x, dims: ag.permute(x, *dims), lambda x, dims: x.permute(dims),
         options_of(lambda r, s: {"dims": tuple(int(d) - len(s) * int(r.integers(2)) for d in r.permutation(len(s)))})),
    Case("transpose", ag.transpose, lambda x, dim0, dim1: x.transpose(dim0, dim1),
         options_of(lambda r, s: dict(zip(("dim0", "dim1"), map(int, r.integers(-len(s), len(s), 2)), strict=True)), 1)),
    Case("expand", lambda x, shape: ag.expand(x, *shape), lambda x, shape: x.expand(shape), expansions),
    Case("unsqueeze", ag.unsqueeze, lambda x, dim: x.unsqueeze(dim),
         options_of(lambda r, s: {"dim": int(r.integers(-len(s) - 1, len(s) + 1))})),
    Case("squeeze", ag.squeeze, lambda x, dim: x.squeeze(dim), options_of(axes_and, 1)),
    Case("squeeze all", ag.squeeze, lambda x: x.squeeze(), unary()),
    Case("cat", lambda *xs, dim: ag.cat(xs, dim), lambda *xs, dim: torch.cat(xs, dim), several(3, odd=True)),
    Case("stack", lambda *xs, dim: ag.stack(xs, dim), lambda *xs, dim: torch.stack(xs, dim), several(3)),
    Case("split", ag.split, lambda x, sizes, dim: x.split(sizes, dim), options_of(cut, 1)),
    Case("chunk", ag.chunk, lambda x, chunks, dim: x.chunk(chunks, dim) if x.shape[dim] else x.split(1, dim),
         options_of(lambda r, s: axes_and(r, s, chunks=int(r.integers(1, 5))), 1)),
    Case("pad", ag.pad, padded, options_of(widths, 1)),
    Case("roll", ag.roll, lambda x, shifts, dims: x.roll(shifts, dims), options_of(rolled, 1)),
    Case("flip", lambda x, dims: ag.flip(x, *dims), lambda x, dims: x.flip(dims),
         options_of(lambda r, s: {"dims": some_axes(r, s)})),
    Case("tril", ag.tril, lambda x, diagonal: x.tril(diagonal), options_of(lambda r, s: {"diagonal": int(r.integers(-3, 4))}, 2)),
    Case("triu", ag.triu, lambda x, diagonal: x.triu(diagonal), options_of(lambda r, s: {"diagonal": int(r.integers(-3, 4))}, 2)),
    Case("repeat_interleave", ag.repeat_interleave, lambda x, repeats, dim: x.repeat_interleave(repeats, dim),
         options_of(lambda r, s: axes_and(r, s, repeats=int(r.integers(0, 4))), 1)),
]


# ---- index.py --------------------------------------------------------------------------------------------------------
def positions(x, index) -> object:
    """Which entries of the flattened x an index picks."""
    return torch.as_tensor(np.array(np.arange(x.numel()).reshape(tuple(x.shape))[index]))


INDICES = [
    ((5,), 2), ((5,), -1), ((5,), slice(None, None, -2)), ((5,), [0, 0, 3]), ((5,), []), ((5,), np.int64(1)),
    ((5,), np.array([True, False, True, True, False])), ((5,), np.zeros(5, bool)), ((5,), np.array(3)), ((), ...),
    ((), None), ((0, 3), slice(0, 2)), ((0, 3), (slice(None), 1)), ((1, 4), (0, slice(1, 3))), ((3, 1), (..., 0)),
    ((3, 4), (None, slice(0, 2), None, -1)), ((3, 4), np.array([[0, 1], [2, 2]])), ((3, 4), ([0, 2, 0], [1, 1, 1])),
    ((3, 4), (slice(None), [3, 0, 0])), ((3, 4), np.eye(3, 4, dtype=bool)), ((2, 3, 4), (..., slice(None, None, -1), 1)),
    ((2, 3, 4), (slice(None), np.array([[1], [0]]), np.array([0, 3]))), ((2, 3, 4), (np.array([1, 0]), slice(1), [2, 2])),
    ((2, 3, 4), (1, ..., np.array([0, 0, 1]))), ((2, 3, 4), (0, slice(None), np.array([True, False, True, True]))),
    ((4, 1, 2), (slice(1, None, 2), 0)), ((2, 2), ()),
]


def indexed(rng: Rng) -> Iterator[Sample]:
    for shape, index in INDICES:
        yield (laid_out(rng, normal(rng, shape)),), {"index": Fixed(index)}


def replaced(rng: Rng) -> Iterator[Sample]:
    for k, (shape, index) in enumerate(INDICES):
        where = np.arange(np.prod(shape, dtype=int)).reshape(shape)[index]
        if len(np.unique(where)) == where.size:
            values = broadcast(rng, where.shape) if k % 2 else where.shape
            yield (laid_out(rng, normal(rng, shape)), laid_out(rng, normal(rng, values))), {"index": Fixed(index)}
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
    return x.reshape(-1).index_put((where.reshape(-1),), values.expand(where.shape).reshape(-1)).reshape(x.shape)


def gathered(rng: Rng) -> Iterator[Sample]:
    for k, shape in enumerate(shapes(rng, 1, count=28)):
        dim = int(rng.integers(-len(shape), len(shape)))
        wanted = list(shape) if k % 2 else [int(rng.integers(0, n + 1)) for n in shape]
        wanted[dim] = int(rng.integers(0, 4)) if shape[dim] else 0
        yield (laid_out(rng, normal(rng, shape)),), {"dim": dim, "index": rng.integers(0, max(shape[dim], 1), wanted)}


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
    Case("getitem", lambda x, index: ag.getitem(x, index.index),
         lambda x, index: x.reshape(-1)[positions(x, index.index)], indexed),
    Case("index_put", lambda x, values, index: ag.index_put(x, index.index, values), put_by_position, replaced),
    Case("gather", ag.gather, lambda x, dim, index: x.gather(dim, index), gathered),
    Case("scatter_add", lambda x, src, dim, index: ag.scatter_add(x, dim, index, src),
         lambda x, src, dim, index: x.scatter_add(dim, index, src[tuple(slice(0, n) for n in index.shape)]), scattered),
    Case("segment_sum", ag.segment_sum,
         lambda x, ids, count: torch.zeros(count, *x.shape[1:], dtype=x.dtype).index_add(0, ids, x), segments),
    Case("embedding", ag.embedding, lambda w, ids: F().embedding(ids, w), tables),
    Case("one_hot", lambda w, ids: ag.one_hot(ids, w.shape[0], w.dtype), lambda w, ids: F().one_hot(ids, w.shape[0]).to(w.dtype),
         tables, order=0),
    Case("sort", ag.sort, lambda x, dim, descending: x.sort(dim, descending), along(distinct, descending=[False, True])),
    Case("topk", ag.topk, lambda x, k, dim: x.topk(k, dim), along(distinct, least_size=1, k=[1, 0])),
    Case("topk two", lambda x: ag.topk(x, 2), lambda x: x.topk(2),
         lambda rng: (((laid_out(rng, distinct(rng, (*s, 2 + len(s)))),), {}) for s in shapes(rng, 0, 3))),
]


# ---- linalg.py -------------------------------------------------------------------------------------------------------
def matrices(values=normal):
    """Pairs for matmul: vectors, matrices, stacks of them that broadcast."""

    def samples(rng: Rng) -> Iterator[Sample]:
        sizes = [(2, 3, 4), (1, 3, 1), (3, 1, 2), (2, 0, 3), (0, 2, 3), (3, 2, 0)]
        stacks = [((), ()), ((2,), ()), ((), (3,)), ((2, 1), (3,)), ((4, 2), (4, 1)), ((0,), ()), ((2, 3), ())]
        for (n, k, m), (a, b) in [(sizes[i % 6], stacks[i % 7]) for i in range(26)]:
            yield (laid_out(rng, values(rng, (*a, n, k))), laid_out(rng, values(rng, (*b, k, m)))), {}
        for a, b in [((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((3,), (4, 3, 2)), ((4, 2, 3), (3,)), ((2, 2, 1, 3), (3,))]:
            yield (laid_out(rng, values(rng, a)), laid_out(rng, values(rng, b))), {}

    return samples


def affine(bias: bool):
    def samples(rng: Rng) -> Iterator[Sample]:
        for shape in shapes(rng, 1):
            E = int(rng.integers(0, 4))
            more = (normal(rng, (E,)),) if bias else ()
            yield (laid_out(rng, normal(rng, shape)), laid_out(rng, normal(rng, (E, shape[-1]))), *more), {}

    return samples


SUMS = ["ij,jk->ik", "bij,bjk->bik", "ij->ji", "ij->", "i,i->", "i,j->ij", "ij,ij->i", "bhid,bhjd->bhij", "...ij,...jk->...ik",
        "...i->i...", "ii->i", "ii->", "ij,kj", "ij,j", "i,ij,j->", "abc,ad->bcd", "iij->j", "iii->i", "ij,...j->...i", "b...,b->..."]


def sums(values=normal):
    def samples(rng: Rng) -> Iterator[Sample]:
        for k, subscripts in enumerate(SUMS * 2):
            sizes = {c: int(rng.integers(0 if k % 7 == 0 else 1, 4)) for c in "abcdhijk"}
            extra = (2, 3)[: int(rng.integers(3))]
            shapes = []
            for term in subscripts.split("->")[0].split(","):
                shape = [s for c in term.replace("...", ".") for s in (extra if c == "." else [sizes[c]])]
                if k >= len(SUMS) and len(set(term)) == len(term):  # sizes of 1 broadcast
                    shape = [1 if rng.random() < 0.2 else n for n in shape]
                shapes.append(tuple(shape))
            yield tuple(laid_out(rng, values(rng, s)) for s in shapes), {"subscripts": subscripts}

    return samples


def square(values=normal, empty=True):
    """Well-conditioned square matrices."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for shape in shapes(rng, 1, 3):
            a = values(rng, (*shape, shape[-1])) * 0.3 + 2 * np.eye(shape[-1])
            yield (laid_out(rng, a),), {}

    return samples


def systems(rng: Rng) -> Iterator[Sample]:
    for k, ((a,), _) in enumerate(square()(rng)):
        n, batch = a.shape[-1], a.shape[:-2]
        b = [(n,), (*batch, n, 2), (n, 3), (2, *batch, n, 1)][k % 4]
        yield (a, laid_out(rng, normal(rng, b))), {}


def solved(a, b):
    """PyTorch takes b for a stack of vectors where its shape allows both readings, so its axes are made plain."""
    columns = b[:, None] if b.ndim == 1 else b
    x = torch.linalg.solve(a, columns.expand(*np.broadcast_shapes(a.shape[:-2], columns.shape[:-2]), *columns.shape[-2:]))
    return x[..., 0] if b.ndim == 1 else x


def rectangular(values=normal):
    def samples(rng: Rng) -> Iterator[Sample]:
        for shape in shapes(rng, 2, 3):
            yield (laid_out(rng, values(rng, shape) * 0.2 + np.eye(*shape[-2:])),), {}

    return samples


LINALG = [
    Case("matmul", ag.matmul, lambda x, y: x @ y, matrices()),
    Case("matmul complex", ag.matmul, lambda x, y: x @ y, matrices(complex_normal)),
    Case("linear", ag.linear, lambda x, w, b: F().linear(x, w, b), affine(True)),
    Case("linear without-bias", ag.linear, lambda x, w: F().linear(x, w), affine(False)),
    Case("einsum", lambda *xs, subscripts: ag.einsum(subscripts, *xs), lambda *xs, subscripts: torch.einsum(subscripts, *xs), sums()),
    Case("einsum complex", lambda *xs, subscripts: ag.einsum(subscripts, *xs),
         lambda *xs, subscripts: torch.einsum(subscripts, *xs), sums(complex_normal)),
    Case("outer", ag.outer, lambda x, y: torch.outer(x, y),
         lambda rng: (((laid_out(rng, normal(rng, (k % 5,))), laid_out(rng, normal(rng, (1 + k % 4,)))), {}) for k in range(24))),
    Case("inverse", ag.inverse, lambda a: torch.linalg.inv(a), square()),
    Case("inverse complex", ag.inverse, lambda a: torch.linalg.inv(a), square(complex_normal)),
    Case("solve", ag.solve, solved, systems),
    Case("pinv", ag.pinv, lambda a: torch.linalg.pinv(a), rectangular()),
    Case("pinv complex", ag.pinv, lambda a: torch.linalg.pinv(a), rectangular(complex_normal)),
]


# ---- spectral.py -----------------------------------------------------------------------------------------------------
def signals(values=normal, sized=True):
    """Arrays along an axis that is not empty, trimmed or extended to n in two cases of three."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for shape in [*shapes(rng, 1, count=24), (8,), (7,), (2,), (2, 6)]:
            dims = [d for d in range(-len(shape), len(shape)) if shape[d]]
            if dims:
                n = {"n": [None, 3, 6, 1][int(rng.integers(4))]} if sized else {}
                yield (laid_out(rng, values(rng, shape)),), {"dim": int(rng.choice(dims)), **n}

    return samples


def spectra(rng: Rng) -> Iterator[Sample]:
    for (z,), options in signals(complex_normal)(rng):
        yield (z,), options if options["n"] or z.shape[options["dim"]] > 1 else {**options, "n": 2}


def transform(f):
    """PyTorch's transform; its library refuses arrays of size 0, of which nothing is known but the shape."""

    def theirs(z, dim, n=None):
        if z.numel():
            return f(z, n, dim)
        model = f(torch.zeros([max(s, 1) for s in z.shape], dtype=z.dtype), n, dim)
        return model[tuple(slice(0, s) if d != dim % z.ndim else slice(None) for d, s in enumerate(z.shape))] * z.real.sum()

    return theirs


SPECTRAL = [
    Case("real", ag.real, lambda z: z.real, unary(complex_normal)),
    Case("imag", ag.imag, lambda z: z.imag, unary(complex_normal)),
    Case("conj", ag.conj, lambda z: z.conj(), unary(complex_normal)),
    Case("conj real", ag.conj, lambda x: x.conj(), unary()),
    Case("complex", ag.complex, lambda re, im: re + 1j * im, binary()),
    Case("rfft", ag.rfft, transform(lambda *a: torch.fft.rfft(*a)), signals()),
    Case("irfft", ag.irfft, transform(lambda *a: torch.fft.irfft(*a)), spectra),
    Case("fft", ag.fft, transform(lambda *a: torch.fft.fft(*a)), signals(complex_normal, sized=False)),
    Case("fft real", ag.fft, transform(lambda *a: torch.fft.fft(*a)), signals(sized=False)),
    Case("ifft", ag.ifft, transform(lambda *a: torch.fft.ifft(*a)), signals(complex_normal, sized=False)),
]

CASES = [*ELEMENTWISE, *REDUCE, *SHAPE, *INDEX, *LINALG, *SPECTRAL]
