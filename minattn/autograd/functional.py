"""Derivatives of functions: products with Jacobians and Hessians, and the matrices themselves.

Every one is built from `grad`. A Jacobian–vector product comes from differentiating a vector–Jacobian product
twice: u ↦ Jᵀu is linear, and the transpose of that map, applied to v, is J v.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .engine import Operand, Tensor, enable_grad, grad, namespace, raw
from .reduce import sum
from .shape import reshape, stack


def _variables(*xs: Operand) -> list[Tensor]:
    """The points at which to differentiate; Tensors that require gradients stay in their graph."""
    return [x if isinstance(x, Tensor) and x.requires_grad else Tensor(raw(x), requires_grad=True) for x in xs]


def _evaluate(f: Callable, xs: list[Tensor]) -> Tensor:
    y = f(*xs)
    if not isinstance(y, Tensor):
        raise TypeError(f"f: expected a function that returns a Tensor, got {type(y).__name__}")
    return y


def _grad_or_zeros(y: Tensor, xs: list[Tensor], u: Operand, create_graph: bool, retain: bool = False) -> tuple:
    if not y.requires_grad:
        return tuple(Tensor(namespace(x).zeros_like(x.data)) for x in xs)
    found = grad(y, xs, u, create_graph=create_graph, retain_graph=retain or create_graph, allow_unused=True)
    return tuple(Tensor(namespace(x).zeros_like(x.data)) if g is None else g for g, x in zip(found, xs, strict=True))


def vjp(f: Callable, xs: Operand | tuple, u: Operand, create_graph: bool = False) -> tuple[Tensor, tuple]:
    """f(x) and uᵀ ∂f/∂x for each x: one backward pass."""
    with enable_grad():
        points = _variables(*(xs if isinstance(xs, tuple) else (xs,)))
        y = _evaluate(f, points)
        return y, _grad_or_zeros(y, points, u, create_graph)


def jvp(f: Callable, xs: Operand | tuple, vs: Operand | tuple, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """f(x) and Σ ∂f/∂x v: how f changes when x moves along v. Costs two backward passes."""
    xs, vs = (t if isinstance(t, tuple) else (t,) for t in (xs, vs))
    if len(xs) != len(vs):
        raise ValueError(f"vs: expected one direction for each of the {len(xs)} arguments, got {len(vs)}")
    with enable_grad():
        points = _variables(*xs)
        y = _evaluate(f, points)
        u = Tensor(namespace(y).zeros_like(y.data), requires_grad=True)
        pulled = _grad_or_zeros(y, points, u, create_graph=True)  # Jᵀu, a linear function of u
        along = [sum(p * v) for p, v in zip(pulled, vs, strict=True) if p.requires_grad]
        total = along[0] if along else None
        for term in along[1:]:
            total = total + term
        if total is None:
            return y, Tensor(namespace(y).zeros_like(y.data))
        return y, _grad_or_zeros(total, [u], None, create_graph)[0]


def hvp(f: Callable, x: Operand, v: Operand, create_graph: bool = False) -> Tensor:
    """Hessian of a scalar function times v, ∇(∇f · v), without forming the Hessian."""
    with enable_grad():
        (point,) = _variables(x)
        (g,) = _grad_or_zeros(_evaluate(f, [point]), [point], None, create_graph=True)
        if not g.requires_grad:
            return Tensor(namespace(point).zeros_like(point.data))
        return _grad_or_zeros(sum(g * v), [point], None, create_graph)[0]


def jacobian(f: Callable, x: Operand, create_graph: bool = False) -> Tensor:
    """∂f_i/∂x_j with the axes of f(x) first and those of x after them: one backward pass for each entry of f(x)."""
    with enable_grad():
        (point,) = _variables(x)
        y = _evaluate(f, [point])
        shape = (*y.shape, *point.shape)
        xp = namespace(y)
        if y.size == 0:
            return Tensor(xp.zeros(shape, dtype=y.dtype))
        rows = []
        for i in range(y.size):
            u = xp.zeros(y.size, dtype=y.dtype)
            u[i] = 1
            rows.append(_grad_or_zeros(y, [point], u.reshape(y.shape), create_graph, retain=True)[0])
        return reshape(stack(rows), shape)


def hessian(f: Callable, x: Operand, create_graph: bool = False) -> Tensor:
    """∂²f/∂x_i∂x_j of a scalar function: the Jacobian of its gradient."""

    def gradient(point: Tensor) -> Tensor:
        return _grad_or_zeros(_evaluate(f, [point]), [point], None, create_graph=True)[0]

    if np.size(raw(x)) == 0:
        raise ValueError("x: expected at least one entry")
    return jacobian(gradient, x, create_graph)
