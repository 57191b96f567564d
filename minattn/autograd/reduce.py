"""Reductions over axes, softmax and running sums.

`dim` is an axis, a tuple of axes or None for all of them; `keepdim` leaves reduced axes with size 1.
"""

from __future__ import annotations

import math

import numpy as np

from .elementwise import _COMPLEX, abs, astype, dual, exp, sqrt, where
from .engine import Array, Operand, namespace, primitive, raw
from .index import Found, gather
from .shape import axis, expand, flip, pad, reshape, squeeze
from .spectral import real

Dim = int | tuple[int, ...] | None


def axes(dim: Dim, ndim: int) -> tuple[int, ...]:
    """`dim` as a tuple of different axes, counted from the front."""
    dims = tuple(range(ndim)) if dim is None else (dim,) if isinstance(dim, (int, np.integer)) else tuple(dim)
    dims = tuple(axis(d, ndim) for d in dims)
    if len(set(dims)) != len(dims):
        raise ValueError(f"dim: names an axis twice: {dim}")
    return dims


def count(x: Operand, dim: Dim) -> int:
    """Number of entries that a reduction over `dim` brings together."""
    return math.prod(x.shape[d] for d in axes(dim, x.ndim))


def grow(g: Operand, like: Operand, dim: Dim, keepdim: bool) -> Operand:
    """Undo a reduction: give `g` the shape of `like` by repeating it along the axes that were reduced."""
    if not keepdim and dim is not None:
        kept = list(like.shape)
        for d in axes(dim, like.ndim):
            kept[d] = 1
        g = reshape(g, tuple(kept))
    return expand(g, like.shape)


def sum_to(g: Operand, shape: tuple[int, ...]) -> Operand:
    """Sum `g` over the axes along which `shape` was broadcast to it."""
    lead = g.ndim - len(shape)
    if lead < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[lead:], strict=True)):
        raise ValueError(f"derivative: a gradient of shape {g.shape} does not fit an argument of {shape}")
    ones = (lead + i for i, n in enumerate(shape) if n == 1 and g.shape[lead + i] != 1)
    return reshape(sum(g, (*range(lead), *ones)), shape)


def fitted(g: Operand, like: Array) -> Operand:
    """Bring a gradient to the shape and dtype of its argument."""
    if g.shape != like.shape:
        g = sum_to(g, like.shape)
    if g.dtype in _COMPLEX and like.dtype not in _COMPLEX:
        g = real(g)
    return g if g.dtype == like.dtype else astype(g, dtype=like.dtype)


def _sum(x: Array, /, dim: Dim = None, keepdim: bool = False) -> Array:
    """Sum over `dim`."""
    return x.sum(axis=dim, keepdims=keepdim)

def _d_sum(g, out, x, dim=None, keepdim=False):
    return grow(g, x, dim, keepdim)


def mean(x: Operand, dim: Dim = None, keepdim: bool = False) -> Operand:
    """Mean over `dim`; a ValueError if there is nothing to average."""
    n = count(x, dim)
    if n == 0:
        raise ValueError(f"mean: nothing to average over dim {dim} of shape {x.shape}")
    return sum(x, dim, keepdim) / n


def var(x: Operand, dim: Dim = None, correction: int = 1, keepdim: bool = False) -> Operand:
    """Variance Σ|x − x̄|² / (n − correction) over `dim`."""
    n = count(x, dim)
    if n <= correction:
        raise ValueError(f"var: needs more than correction={correction} entries, got {n} over dim {dim}")
    centred = x - mean(x, dim, keepdim=True)
    square = centred * centred if raw(x).dtype not in _COMPLEX else abs(centred) ** 2
    return sum(square, dim, keepdim) / (n - correction)


def std(x: Operand, dim: Dim = None, correction: int = 1, keepdim: bool = False) -> Operand:
    """Standard deviation, the root of `var`."""
    return sqrt(var(x, dim, correction, keepdim))


def _amax(x: Array, /, dim: Dim = None, keepdim: bool = False) -> Array:
    """Largest entry over `dim`; equal largest entries share the gradient."""
    return x.max(axis=dim, keepdims=keepdim)


def _amin(x: Array, /, dim: Dim = None, keepdim: bool = False) -> Array:
    """Smallest entry over `dim`; equal smallest entries share the gradient."""
    return x.min(axis=dim, keepdims=keepdim)

def _d_extremum(g, out, x, dim=None, keepdim=False):
    hit = raw(x) == grow(raw(out), raw(x), dim, keepdim)
    share = hit / hit.sum(axis=dim, keepdims=True)
    return grow(g, x, dim, keepdim) * share.astype(x.dtype)


def _pick(x: Operand, index: Array, dim: int, keepdim: bool) -> Found:
    index = namespace(index).expand_dims(index, dim)
    values = gather(x, dim, index)
    return Found(values, index) if keepdim else Found(squeeze(values, dim), squeeze(index, dim))


def max(x: Operand, dim: int | None = None, keepdim: bool = False) -> Operand:
    """Largest entry; with `dim`, the pair (values, indices), the gradient going to the first of equals."""
    return amax(x) if dim is None else _pick(x, raw(x).argmax(axis=dim), dim, keepdim)


def min(x: Operand, dim: int | None = None, keepdim: bool = False) -> Operand:
    """Smallest entry; with `dim`, the pair (values, indices), the gradient going to the first of equals."""
    return amin(x) if dim is None else _pick(x, raw(x).argmin(axis=dim), dim, keepdim)


def argmax(x: Operand, dim: int | None = None) -> Array:
    """Index of the first largest entry along `dim` (of the flattened tensor if None), as a plain array."""
    return raw(x).argmax(axis=dim)


def argmin(x: Operand, dim: int | None = None) -> Array:
    """Index of the first smallest entry along `dim` (of the flattened tensor if None), as a plain array."""
    return raw(x).argmin(axis=dim)


_LOWEST = {np.dtype(t): float(np.finfo(t).min) for t in (np.float16, np.float32, np.float64)}


def _finite_max(x: Array, dim: Dim) -> Array:
    """Maximum over `dim`, kept as size 1; some finite number where there is no entry above −∞."""
    if x.size == 0:
        return x.sum(axis=dim, keepdims=True)
    return namespace(x).maximum(x.max(axis=dim, keepdims=True), _LOWEST.get(x.dtype, -np.inf))


def _logsumexp(x: Array, /, dim: Dim = None, keepdim: bool = False) -> Array:
    """ln Σ eˣ over `dim`, without overflow; −∞ where all entries are −∞, and where there are none."""
    xp = namespace(x)
    m = _finite_max(x, dim)
    total = xp.exp(x - m).sum(axis=dim, keepdims=True)
    with np.errstate(divide="ignore"):  # ln 0 = −∞ is the right answer for a row of −∞
        out = xp.log(total) + m
    return out if keepdim else out.sum(axis=dim)  # the sum only drops axes of size 1

def _d_logsumexp(g, out, x, dim=None, keepdim=False):
    grown = grow(out, x, dim, keepdim)
    return grow(g, x, dim, keepdim) * exp(x - where(raw(grown) == -np.inf, 0, grown))


def _norm(x: Array, /, dim: Dim, keepdim: bool) -> Array:
    xp = namespace(x)
    return xp.sqrt((xp.abs(x) ** 2).sum(axis=dim, keepdims=keepdim))

def _d_norm(g, out, x, dim, keepdim):
    safe = where(raw(out) == 0, 1, out)
    return grow(g / safe, x, dim, keepdim) * x


def norm(x: Operand, p: float = 2, dim: Dim = None, keepdim: bool = False) -> Operand:
    """Norm (Σ|x|ᵖ)^(1/p) over `dim`; p may be infinite. At x = 0 the derivative is 0."""
    if p == 2:
        return norm2(x, dim=dim, keepdim=keepdim)
    if p == 1:
        return sum(abs(x), dim, keepdim)
    if p == math.inf:
        return amax(abs(x), dim, keepdim)
    if p <= 0:
        raise ValueError(f"p: expected a positive number or infinity, got {p}")
    total = sum(abs(x) ** p, dim, keepdim)
    zero = raw(total) == 0
    return where(zero, 0, where(zero, 1, total) ** (1 / p))


def _softmax(x: Array, /, dim: int = -1) -> Array:
    """eˣ / Σ eˣ along `dim`, without overflow. Entries that are all −∞ give zeros, with zero gradient."""
    xp = namespace(x)
    e = xp.exp(x - _finite_max(x, dim))  # 1 at the maximum, so the sum is at least 1, or 0 if all are −∞
    e /= xp.maximum(e.sum(axis=dim, keepdims=True), 1)
    return e

def _d_softmax(g, out, x, dim=-1):
    weighted = g * out
    return weighted - out * sum(weighted, dim, keepdim=True)


def _log_softmax(x: Array, /, dim: int = -1) -> Array:
    """x − ln Σ eˣ along `dim`, without overflow; −∞ where all entries are −∞."""
    total = _logsumexp(x, dim=dim, keepdim=True)
    return x - namespace(x).where(total == -np.inf, 0, total)

def _d_log_softmax(g, out, x, dim=-1):
    return g - exp(out) * sum(g, dim, keepdim=True)


def _cumsum(x: Array, /, dim: int) -> Array:
    """Running sum along `dim`."""
    return x.cumsum(axis=dim)

def _d_cumsum(g, out, x, dim):
    return flip(cumsum(flip(g, dim), dim), dim)


def _scan(a: Array, b: Array, /, dim: int) -> Array:
    """Linear recurrence h_t = a_t h_{t−1} + b_t along `dim`, h before the start being zero.

    `a` and `b` broadcast against each other. Nothing is divided by a running product, so decays may vanish.
    """
    xp = namespace(b)
    out = xp.empty(np.broadcast_shapes(a.shape, b.shape), dtype=xp.result_type(a, b))
    a, b = (xp.moveaxis(xp.broadcast_to(t, out.shape), dim, 0) for t in (a, b))
    h = xp.moveaxis(out, dim, 0)  # a view: filling h fills out
    for t in range(len(h)):
        h[t] = a[t] * h[t - 1] + b[t] if t else b[t]
    return out


def _shift(x: Operand, dim: int, by: int) -> Operand:
    """Move entries one place along `dim` (by = 1 later, −1 earlier), a zero coming in."""
    n = x.shape[dim]
    index = tuple(slice(None) for _ in range(dim % x.ndim))
    kept = x[(*index, slice(0, n - 1) if by == 1 else slice(1, n))]
    widths = [(0, 0)] * x.ndim
    widths[dim] = (1, 0) if by == 1 else (0, 1)
    return pad(kept, tuple(widths))

def _d_scan(g, out, a, b, dim):
    # λ_t = g_t + a_{t+1} λ_{t+1}: the same recurrence, run backwards
    a_next = expand(_shift(expand(a, out.shape), dim, -1), out.shape)
    adjoint = flip(scan(flip(dual(a_next), dim), flip(g, dim), dim), dim)
    return lambda: adjoint * dual(_shift(out, dim, 1)), adjoint


sum = primitive(_sum, _d_sum)
amax = primitive(_amax, _d_extremum, real=True)
amin = primitive(_amin, _d_extremum, real=True)
logsumexp = primitive(_logsumexp, _d_logsumexp, real=True)
norm2 = primitive(_norm, _d_norm)
softmax = primitive(_softmax, _d_softmax, real=True)
log_softmax = primitive(_log_softmax, _d_log_softmax, real=True)
cumsum = primitive(_cumsum, _d_cumsum)
scan = primitive(_scan, _d_scan)
