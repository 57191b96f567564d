"""Derivatives of functions: products with Jacobians and Hessians, and the matrices themselves.

Every one is built from `grad`. A Jacobian–vector product comes from differentiating a vector–Jacobian product
twice: u ↦ Jᵀu is linear, and the transpose of that map, applied to v, is J v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .engine import Operand, Tensor, enable_grad, grad, namespace, raw
from .reduce import sum
from .shape import reshape, stack


def _variables(*xs: Operand) -> list[Tensor]:
    """The points at which to differentiate; Tensors that require gradients stay in their graph."""
    return [x if isinstance(x, Tensor) and x.requires_grad else Tensor(x, requires_grad=True) for x in xs]


def _evaluate(f: Callable, xs: list[Tensor]) -> Tensor:
    y = f(*xs)
    if not isinstance(y, Tensor):
        raise TypeError(f"f: expected a function that returns a Tensor, got {type(y).__name__}")
    return y


def _zeros(like: Tensor, requires_grad: bool = False) -> Tensor:
    return Tensor(namespace(like).zeros_like(like.data), requires_grad)


def _grad_or_zeros(y: Tensor, xs: list[Tensor], u: Any, create_graph: bool, retain: bool = False) -> tuple:
    if not y.requires_grad:
        return tuple(_zeros(x) for x in xs)
    found = grad(y, xs, u, create_graph=create_graph, retain_graph=retain or create_graph, allow_unused=True)
    return tuple(_zeros(x) if g is None else g for g, x in zip(found, xs, strict=True))


def vjp(f: Callable, xs: Operand | tuple, u: Operand, create_graph: bool = False) -> tuple[Tensor, tuple]:
    """f(x) and uᵀ ∂f/∂x for each x: one backward pass."""
    with enable_grad():
        points = _variables(*(xs if isinstance(xs, tuple) else (xs,)))
        y = _evaluate(f, points)
        return y, _grad_or_zeros(y, points, u, create_graph)


def _dot(g: Operand, v: Operand) -> Operand:
    """Σ g v, the sum over all axes."""
    if np.shape(raw(v)) != g.shape:
        raise ValueError(f"v: expected a direction of shape {g.shape}, got {np.shape(raw(v))}")
    return sum(g * v)


def jvp(f: Callable, xs: Operand | tuple, vs: Operand | tuple, create_graph: bool = False) -> tuple:
    """f(x) and Σ ∂f/∂x v: how f changes when x moves along v. Costs two backward passes."""
    xs, vs = (t if isinstance(t, tuple) else (t,) for t in (xs, vs))
    if len(xs) != len(vs):
        raise ValueError(f"vs: expected one direction for each of the {len(xs)} arguments, got {len(vs)}")
    with enable_grad():
        points = _variables(*xs)
        y = _evaluate(f, points)
        u = _zeros(y, requires_grad=True)
        pulled = _grad_or_zeros(y, points, u, create_graph=True)  # Jᵀu, a linear function of u
        along = [_dot(p, v) for p, v in zip(pulled, vs, strict=True)]
        along = [t for t in along if t.requires_grad]
        return y, grad(along, u, create_graph=create_graph)[0] if along else _zeros(y)


def hvp(f: Callable, x: Operand, v: Operand, create_graph: bool = False) -> Tensor:
    """Hessian of a scalar function times v, ∇(∇f · v), without forming the Hessian."""
    with enable_grad():
        (point,) = _variables(x)
        (g,) = _grad_or_zeros(_evaluate(f, [point]), [point], None, create_graph=True)
        return _grad_or_zeros(_dot(g, v), [point], None, create_graph)[0]


def jacobian(f: Callable, x: Operand, create_graph: bool = False) -> Tensor:
    """∂f_i/∂x_j, the axes of f(x) before those of x; one backward pass for each entry of f(x)."""
    with enable_grad():
        (point,) = _variables(x)
        y = _evaluate(f, [point])
        shape = (*y.shape, *point.shape)
        xp = namespace(y)
        if y.size == 0:
            return Tensor(xp.zeros(shape, dtype=y.dtype))
        us = xp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
        rows = [_grad_or_zeros(y, [point], u, create_graph, retain=True)[0] for u in us]
        return reshape(stack(rows), shape)


def hessian(f: Callable, x: Operand, create_graph: bool = False) -> Tensor:
    """∂²f/∂x_i∂x_j of a scalar function: the Jacobian of its gradient."""
    return jacobian(lambda p: _grad_or_zeros(_evaluate(f, [p]), [p], None, True)[0], x, create_graph)
