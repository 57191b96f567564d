"""Products of matrices and what solves them."""

from __future__ import annotations

import math
from string import ascii_letters

from .elementwise import abs, dual
from .engine import Array, Operand, namespace, primitive, raw
from .reduce import amax, norm, sum
from .shape import reshape, transpose, unsqueeze


def _rows_of(x: Operand) -> Operand:
    """All axes but the last as one: (…, D) → (n, D)."""
    return reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _matmul(x: Array, y: Array, /) -> Array:
    if y.ndim == 2 and x.ndim > 2:  # one large product instead of a batch of small ones
        return (x.reshape(-1, x.shape[-1]) @ y).reshape(*x.shape[:-1], y.shape[-1]) if x.size else x @ y
    return x @ y

def _d_matmul(g, out, x, y):
    def right():
        if y.ndim == 2 and x.ndim > 2:
            return dual(_rows_of(x)).T @ _rows_of(g)
        return dual(x).mT @ g

    return lambda: matmul(g, dual(y).mT), right


def matmul(x: Operand, y: Operand) -> Operand:
    """Product x @ y of the last two axes, the others broadcasting; vectors as in torch.matmul.

    A ValueError if the inner sizes differ or an operand is a scalar.
    """
    a, b = x.shape, y.shape
    if len(a) > 1 and len(b) > 1:
        if a[-1] != b[-2]:
            raise ValueError(f"matmul: inner sizes differ in {a} @ {b}")
        return product(x, y)
    if not a or not b:
        raise ValueError(f"matmul: expected vectors or matrices, got shapes {a} and {b}")
    if len(a) == 1:
        out = matmul(unsqueeze(x, 0), y)  # x as a row
        return reshape(out, out.shape[:-1] if len(b) == 1 else out.shape[:-2] + out.shape[-1:])
    out = matmul(x, unsqueeze(y, 1))  # y as a column
    return reshape(out, out.shape[:-1])


def _linear(x: Array, weight: Array, *bias: Array) -> Array:
    out = x.reshape(-1, x.shape[-1]) @ weight.T if x.size else x @ weight.T
    if bias:
        out += bias[0]
    return out.reshape(*x.shape[:-1], weight.shape[0])

def _d_linear(g, out, x, weight, *bias):
    rows = _rows_of(g)
    grads = (lambda: reshape(rows @ weight, x.shape), lambda: rows.T @ _rows_of(x))
    return (*grads, lambda: sum(rows, 0)) if bias else grads


def linear(x: Operand, weight: Operand, bias: Operand | None = None) -> Operand:
    """x Wᵀ + b for x (…, D), W (E, D), b (E); result (…, E)."""
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"weight: expected shape (E, D), D the last axis of x {x.shape}, got {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape {weight.shape[:1]}, the rows of weight, got {bias.shape}")
    return affine(x, weight) if bias is None else affine(x, weight, bias)


def _einsum(*xs: Array, terms: tuple[str, ...], out: str) -> Array:
    return namespace(xs[0]).einsum(f"{','.join(terms)}->{out}", *xs, optimize=len(xs) > 1)

def _d_einsum(g, out_value, *xs, terms, out):
    sizes = {c: n for t, x in zip(terms, xs, strict=True) for c, n in zip(t, x.shape, strict=True) if n != 1}

    def back(k):  # the same sum with g in the place of operand k
        others = [(t, x) for i, (t, x) in enumerate(zip(terms, xs, strict=True)) if i != k]
        present = {c for t, x in others for c, n in zip(t, x.shape, strict=True) if n == sizes.get(c, 1)}
        for c in terms[k]:  # a letter summed in operand k alone: its gradient is repeated along it
            if c not in present and c not in out:
                others.append((c, namespace(g).ones(sizes.get(c, 1), dtype=g.dtype)))
        operands = [dual(x) for _, x in others]
        return contracted(g, *operands, terms=(out, *(t for t, _ in others)), out=terms[k])

    return tuple(lambda k=k: back(k) for k in range(len(xs)))


def einsum(subscripts: str, *operands: Operand) -> Operand:
    """Einstein summation, ``einsum("bhid,bhjd->bhij", q, k)``; ``...`` and repeated letters may occur."""
    subscripts = subscripts.replace(" ", "")
    left, arrow, out = subscripts.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"subscripts: {subscripts!r} names {len(terms)} operands, got {len(operands)}")
    if not arrow:  # NumPy's implicit form: letters that occur once, in alphabetical order
        once = sorted(c for c in left if c not in ",." and left.count(c) == 1)
        out = "".join(["..."] * ("..." in left) + once)
    free = [c for c in ascii_letters if c not in subscripts]
    ranks = [x.ndim - len(t.replace("...", "")) for t, x in zip(terms, operands, strict=True)]
    for t, x, n in zip(terms, operands, ranks, strict=True):
        if n < 0 or (n > 0 and "..." not in t):
            raise ValueError(f"subscripts: {t!r} does not fit an operand of shape {x.shape}")
    dots = "".join(free[: max([n for t, n in zip(terms, ranks, strict=True) if "..." in t], default=0)])
    free = free[len(dots) :]
    terms = [t.replace("...", dots[len(dots) - n :]) for t, n in zip(terms, ranks, strict=True)]
    out = out.replace("...", dots)
    factors = list(operands)
    for k, t in enumerate(terms):  # a letter twice in an operand is a diagonal: rename it, multiply by eye
        for i, c in enumerate(t):
            if c in t[:i]:
                x = raw(factors[k])
                if x.shape[i] != x.shape[t.index(c)]:
                    raise ValueError(f"subscripts: {t!r} is a diagonal, but the shape is {x.shape}")
                fresh = free.pop(0)
                terms[k] = terms[k][:i] + fresh + terms[k][i + 1 :]
                terms.append(c + fresh)
                factors.append(namespace(x).eye(x.shape[i], dtype=x.dtype))
    return contracted(*factors, terms=tuple(terms), out=out)


def outer(x: Operand, y: Operand) -> Operand:
    """x yᵀ of two vectors."""
    if x.ndim != 1 or y.ndim != 1:
        raise ValueError(f"outer: expected two vectors, got shapes {x.shape} and {y.shape}")
    return unsqueeze(x, 1) * y


def _inverse(a: Array, /) -> Array:
    """Inverse A⁻¹ of the square matrices in the last two axes."""
    return namespace(a).linalg.inv(a)

def _d_inverse(g, out, a):
    adjoint = dual(out).mT
    return -(adjoint @ g @ adjoint)


def _solve(a: Array, b: Array, /) -> Array:
    return namespace(a).linalg.solve(a, b)

def _d_solve(g, out, a, b):
    db = solved(dual(a).mT, g)
    return lambda: -(db @ dual(out).mT), db


def solve(a: Operand, b: Operand) -> Operand:
    """x with A x = b, for b a vector (n) or matrices (…, n, k); no inverse is formed."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"a: expected square matrices, got shape {a.shape}")
    if b.ndim == 1:
        out = solved(a, unsqueeze(b, 1))
        return reshape(out, out.shape[:-1])
    return solved(a, b)


def pinv(a: Operand, steps: int = 32) -> Operand:
    """Moore–Penrose inverse of the matrices (…, m, n) by Newton–Schulz iteration Z ← Z (2I − A Z).

    It starts from Z = Aᴴ / (‖A‖₁‖A‖∞), converges quadratically once the error is below one, and uses products
    alone, so it is differentiable and runs where no factorisation does.

    Raises
    ------
    ValueError
        If a matrix has not converged to ‖A Z A − A‖ ≤ 10⁻³ ‖A‖ within `steps` (it is ill-conditioned).
    """
    adjoint = transpose(dual(a), -1, -2)
    if adjoint.size == 0:
        return adjoint
    size = amax(sum(abs(a), -2), -1) * amax(sum(abs(a), -1), -1)
    z = adjoint / reshape(size + (raw(size) == 0), (*size.shape, 1, 1))
    eye = namespace(raw(a)).eye(a.shape[-2], dtype=a.dtype)
    for _ in range(steps):
        z = z @ (2 * eye - a @ z)
    A, Z = raw(a), raw(z)
    error = norm(A @ Z @ A - A, 2, (-2, -1))
    if not (error <= 1e-3 * norm(A, 2, (-2, -1))).all():
        raise ValueError(f"steps: {steps} left an error of {float(error.max()):.1e}; a is ill-conditioned")
    return z


product = primitive(_matmul, _d_matmul, "matmul")
affine = primitive(_linear, _d_linear, "linear")
contracted = primitive(_einsum, _d_einsum, "einsum")
inverse = primitive(_inverse, _d_inverse)
solved = primitive(_solve, _d_solve, "solve")
