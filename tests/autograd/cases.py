"""The table: every public function of `minattn.autograd` beside PyTorch's, with inputs for both.

One list for each file of the package; `tests/autograd/test_<file>.py` runs the checks of `case.py` on it.
What has no counterpart here is named in `ELSEWHERE` with the test that covers it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minattn import autograd as ag

from .case import Case, torch
from .cases_shape import INDEX, SHAPE
from .inputs import (
    Rng,
    Sample,
    above_minus_one,
    along,
    binary,
    broadcast,
    complex_normal,
    distinct,
    laid_out,
    nonzero,
    normal,
    positive,
    reduced,
    shapes,
    unary,
)

ELSEWHERE = {
    "Tensor": "test_tensor",
    "tensor": "test_engine",
    "grad": "test_engine",
    "no_grad": "test_engine",
    "enable_grad": "test_engine",
    "namespace": "test_engine",
    "override_derivative": "test_engine",
    "primitive": "test_engine",
    "hessian": "test_functional",
    "hvp": "test_functional",
    "jacobian": "test_functional",
    "jvp": "test_functional",
    "vjp": "test_functional",
}


def F() -> object:
    return torch.nn.functional


# ---- elementwise.py ----
def clipped(rng: Rng) -> Iterator[Sample]:
    for k, shape in enumerate(shapes(rng)):
        yield (
            (laid_out(rng, normal(rng, shape)),),
            [{"min": -0.5, "max": 0.7}, {"min": 0.1}, {"max": -0.2}][k % 3],
        )


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
    Case("pow complex", ag.pow, lambda x, y: x**y, binary(complex_normal, complex_normal)),
    Case("pow complex-number", lambda x: x**3, lambda x: x**3, unary(complex_normal)),
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
    Case(
        "where", lambda x, y, cond: ag.where(cond, x, y), lambda x, y, cond: torch.where(cond, x, y), chosen
    ),
    Case("astype", lambda x: ag.astype(x, dtype=x.dtype), lambda x: x.to(x.dtype), unary()),
    Case(
        "straight_through",
        lambda x, hard: ag.straight_through(hard, x),
        lambda x, hard: x + (hard * 1.0 - x).detach(),
        hard_and_soft,
        exact=False,
    ),
]


# ---- reduce.py ----
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
    Case(
        "amax",
        ag.amax,
        lambda x, dim, keepdim: x.amax(() if dim is None else dim, keepdim),
        reduced(distinct, least=1),
    ),
    Case(
        "amin",
        ag.amin,
        lambda x, dim, keepdim: x.amin(() if dim is None else dim, keepdim),
        reduced(distinct, least=1),
    ),
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
    Case("scan real-and-complex", ag.scan, recurrence, recurrences(normal, complex_normal)),
]


# ---- linalg.py ----
def matrices(values=normal):
    """Pairs for matmul: vectors, matrices, stacks of them that broadcast."""

    def samples(rng: Rng) -> Iterator[Sample]:
        sizes = [(2, 3, 4), (1, 3, 1), (3, 1, 2), (2, 0, 3), (0, 2, 3), (3, 2, 0)]
        stacks = [
            ((), ()),
            ((2,), ()),
            ((), (3,)),
            ((2, 1), (3,)),
            ((4, 2), (4, 1)),
            ((0,), ()),
            ((2, 3), ()),
        ]
        for (n, k, m), (a, b) in [(sizes[i % 6], stacks[i % 7]) for i in range(26)]:
            yield (laid_out(rng, values(rng, (*a, n, k))), laid_out(rng, values(rng, (*b, k, m)))), {}
        for a, b in [
            ((3,), (3,)),
            ((3,), (3, 2)),
            ((2, 3), (3,)),
            ((3,), (4, 3, 2)),
            ((4, 2, 3), (3,)),
            ((2, 2, 1, 3), (3,)),
        ]:
            yield (laid_out(rng, values(rng, a)), laid_out(rng, values(rng, b))), {}

    return samples


def affine(bias: bool):
    def samples(rng: Rng) -> Iterator[Sample]:
        for shape in shapes(rng, 1):
            E = int(rng.integers(0, 4))
            more = (normal(rng, (E,)),) if bias else ()
            yield (laid_out(rng, normal(rng, shape)), laid_out(rng, normal(rng, (E, shape[-1]))), *more), {}

    return samples


SUMS = [
    "ij,jk->ik",
    "bij,bjk->bik",
    "ij->ji",
    "ij->",
    "i,i->",
    "i,j->ij",
    "ij,ij->i",
    "bhid,bhjd->bhij",
    "...ij,...jk->...ik",
    "...i->i...",
    "ii->i",
    "ii->",
    "ij,kj",
    "ij,j",
    "i,ij,j->",
    "abc,ad->bcd",
    "iij->j",
    "iii->i",
    "ij,...j->...i",
    "b...,b->...",
    "...ij,...jk",
    "...ji",
]


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
    """PyTorch takes b for a stack of vectors where its shape allows both readings: make its axes plain."""
    columns = b[:, None] if b.ndim == 1 else b
    x = torch.linalg.solve(
        a, columns.expand(*np.broadcast_shapes(a.shape[:-2], columns.shape[:-2]), *columns.shape[-2:])
    )
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
    Case(
        "einsum",
        lambda *xs, subscripts: ag.einsum(subscripts, *xs),
        lambda *xs, subscripts: torch.einsum(subscripts, *xs),
        sums(),
    ),
    Case(
        "einsum complex",
        lambda *xs, subscripts: ag.einsum(subscripts, *xs),
        lambda *xs, subscripts: torch.einsum(subscripts, *xs),
        sums(complex_normal),
    ),
    Case(
        "outer",
        ag.outer,
        lambda x, y: torch.outer(x, y),
        lambda rng: (
            ((laid_out(rng, normal(rng, (k % 5,))), laid_out(rng, normal(rng, (1 + k % 4,)))), {})
            for k in range(24)
        ),
    ),
    Case("inverse", ag.inverse, lambda a: torch.linalg.inv(a), square()),
    Case("inverse complex", ag.inverse, lambda a: torch.linalg.inv(a), square(complex_normal)),
    Case("solve", ag.solve, solved, systems),
    Case("pinv", ag.pinv, lambda a: torch.linalg.pinv(a), rectangular()),
    Case("pinv complex", ag.pinv, lambda a: torch.linalg.pinv(a), rectangular(complex_normal)),
]


# ---- spectral.py ----
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
        return (
            model[tuple(slice(0, s) if d != dim % z.ndim else slice(None) for d, s in enumerate(z.shape))]
            * z.real.sum()
        )

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
