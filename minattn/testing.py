"""Checks that can fail: gradients against finite differences, along random directions.

A test that differentiates ``f(x).sum()`` sees one cotangent, all ones, for which a softmax has no gradient.
`check_grads` draws random cotangents and directions, and checks derivatives of derivatives in the same way.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minattn.autograd import Tensor, grad
from minattn.autograd.engine import Operand, raw


def check_grads(f: Callable, *args: Operand, order: int = 2, rng: np.random.Generator | None = None,
                rtol: float = 1e-6, atol: float = 1e-6, step: float = 1e-6, _depth: int = 0) -> None:
    """Compare uᵀ J v from the backward pass with a central difference of uᵀ f along v, for random u and v.

    Parameters
    ----------
    f : callable
        A function of Tensors that returns a Tensor.
    *args : array_like
        Float64 (or complex128) points; the check says nothing useful in lower precision.
    order : int
        Check derivatives up to this order: the gradient function itself is checked at order − 1.
    rng : numpy.random.Generator
        Source of u and v; by default a fixed seed.
    rtol, atol, step : float
        Tolerances on the directional derivative, and the step of the central difference.

    Raises
    ------
    AssertionError
        If the two disagree; the message tells the order at which they do.
    TypeError, ValueError
        If the arguments are not float64 or complex128, or if f does not depend on them at all.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    xs = [np.array(raw(a)) for a in args]
    for i, x in enumerate(xs):
        if x.dtype not in (np.float64, np.complex128):
            raise TypeError(f"args[{i}]: expected float64 or complex128, got {x.dtype}")
    y = f(*[Tensor(x) for x in xs])
    if not isinstance(y, Tensor):
        raise TypeError(f"f: expected a function that returns a Tensor, got {type(y).__name__}")
    u = _direction(rng, y.data)
    vs = [_direction(rng, x) for x in xs]

    gradients = _gradient(f, *xs, u)
    if _depth == 0 and all(g is None for g in gradients):
        raise ValueError("f: its output does not depend on the arguments")
    got = sum(map(_inner, map(_filled, gradients, xs), vs))
    ahead, behind = (f(*[Tensor(xs[i] + h * vs[i]) for i in range(len(xs))]) for h in (step, -step))
    want = (_inner(ahead, u) - _inner(behind, u)) / (2 * step)
    if not abs(got - want) <= atol + rtol * abs(want):
        raise AssertionError(f"order 1: the backward pass gives {got:.10g}, finite differences {want:.10g}")
    for i in range(len(xs) if order > 1 else 0):
        try:  # the gradient with respect to argument i, as a function of the arguments and of the cotangent
            check_grads(lambda *ts, i=i: _filled(_gradient(f, *ts)[i], ts[i]), *xs, u, order=order - 1,
                        rng=rng, rtol=rtol, atol=atol, step=step, _depth=_depth + 1)
        except AssertionError as e:
            raise AssertionError(f"derivative with respect to argument {i}: {e}") from None


def check_causal(f: Callable[[np.ndarray], Operand], x: np.ndarray, *, dim: int = 1,
                 change: Callable[[np.ndarray], np.ndarray] | None = None, tol: float = 0.0) -> None:
    """Change position t of the input, for each t: no output before t may change, and some output from t must.

    Parameters
    ----------
    f : callable
        Maps x to an output with the same positions along `dim`.
    x : array
    change : callable, optional
        Makes another value of a position; adds 1 by default. For token ids: ``lambda t: (t + 1) % V``.
    tol : float
        By how much an earlier output may move; not at all by default.

    Raises
    ------
    AssertionError
        If the future reaches the past, or a position changes nothing.
    """
    change = (lambda t: t + 1) if change is None else change
    before = np.moveaxis(np.asarray(raw(f(x))), dim, 0)
    for t in range(x.shape[dim]):
        y = x.copy()
        there = np.moveaxis(y, dim, 0)  # a view
        there[t] = change(there[t])
        moved = np.abs(np.moveaxis(np.asarray(raw(f(y))), dim, 0) - before)
        if t and not moved[:t].max() <= tol:
            early = int(np.argmax(moved[:t].reshape(t, -1).max(1) > tol))
            raise AssertionError(f"changing position {t} changes the output at {early} "
                                 f"by {moved[early].max():.3g}")
        if not moved[t:].max() > tol:
            raise AssertionError(f"changing position {t} changes nothing from there on")


def _direction(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """A random direction of the shape and kind of `like`."""
    v = rng.standard_normal(like.shape)
    return v + 1j * rng.standard_normal(like.shape) if like.dtype.kind == "c" else v


def _inner(a: Tensor, b: np.ndarray) -> float:
    """Re Σ conj(a) b, the inner product in which a gradient is the direction of steepest ascent."""
    return float(np.sum(np.conj(a.data) * b).real)


def _gradient(f: Callable, *point: Operand) -> tuple:
    """uᵀ ∂f/∂x for each x of the point (x…, u), recorded, to be differentiated again; None for zero."""
    *xs, u = (t if isinstance(t, Tensor) else Tensor(t) for t in point)
    xs = [x if x.requires_grad else Tensor(x.data, requires_grad=True) for x in xs]
    y = f(*xs)
    if not y.requires_grad:
        return (None,) * len(xs)
    return grad(y, xs, u, create_graph=True, allow_unused=True)


def _filled(g: Tensor | None, x: Operand) -> Tensor:
    return Tensor(np.zeros_like(raw(x))) if g is None else g
