"""Layer norm and RMS norm, each forward and backward in one primitive.

The NumPy reference stands first; the Numba form in `cpu/norms.py` makes one pass where it makes ten.
"""

from __future__ import annotations

import numpy as np

from minattn.autograd import mean, namespace, primitive
from minattn.autograd.engine import Array, Operand

from .dispatch import compiled, launch


def _centre(x: Operand, eps: float) -> tuple[Operand, Operand]:
    """x̂, which is x with mean 0 and variance 1 over the last axis, and the reciprocal of its deviation."""
    centred = x - mean(x, -1, keepdim=True)
    rstd = (mean(centred * centred, -1, keepdim=True) + eps) ** -0.5
    return centred * rstd, rstd


def _matrix(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def _several_rows(x: Array) -> bool:
    """A single row is left to NumPy: it is done before threads have started."""
    return x.size > x.shape[-1]


def _layer_norm(x: Array, weight: Array, bias: Array, /, eps: float) -> tuple[Array, tuple | None]:
    if not (_several_rows(x) and compiled(x, weight, bias)):
        return _centre(x, eps)[0] * weight + bias, None
    from .cpu import norms

    rows = _matrix(x)
    out, m, r = np.empty_like(rows), np.empty(len(rows), x.dtype), np.empty(len(rows), x.dtype)
    launch(norms.layer_norm, rows, weight, bias, x.dtype.type(eps), out, m, r)
    return out.reshape(x.shape), (m, r)


def _d_layer_norm(g, out, x, weight, bias, eps, saved):
    if saved is not None:
        from .cpu import norms

        dw, db = norms.stripes(x.dtype, x.shape[-1]), norms.stripes(x.dtype, x.shape[-1])
        dx = np.empty(x.shape, x.dtype)
        rows = dx.reshape(-1, x.shape[-1])
        launch(norms.layer_norm_backward, _matrix(g), _matrix(x), weight, *saved, rows, dw, db)
        return dx, dw.sum(0), db.sum(0)
    xhat, rstd = _centre(x, eps)

    def dx():
        gw = g * weight
        return rstd * (gw - mean(gw, -1, keepdim=True) - xhat * mean(gw * xhat, -1, keepdim=True))

    return dx, lambda: g * xhat, g


def layer_norm(x: Operand, weight: Operand | None = None, bias: Operand | None = None,
               eps: float = 1e-5) -> Operand:
    """(x − x̄) / √(var x + ε) · w + b over the last axis of x (…, D), var with divisor D; w and b are (D)."""
    ones, zeros = _identity_affine(x)
    weight, bias = ones if weight is None else weight, zeros if bias is None else bias
    _check_features("weight", weight, x)
    _check_features("bias", bias, x)
    return normalized(x, weight, bias, eps=eps)


def _identity_affine(x: Operand) -> tuple[Array, Array]:
    if x.ndim == 0:
        raise ValueError("x: expected at least one axis, got shape ()")
    xp, D = namespace(x), x.shape[-1]
    return xp.ones(D, dtype=x.dtype), xp.zeros(D, dtype=x.dtype)


def _check_features(name: str, parameter: Operand, x: Operand) -> None:
    if parameter.shape != x.shape[-1:]:
        raise ValueError(f"{name}: expected shape {x.shape[-1:]}, the last axis of x, got {parameter.shape}")


def _rms_norm(x: Array, weight: Array, /, eps: float) -> tuple[Array, Array | None]:
    if not (_several_rows(x) and compiled(x, weight)):
        return x * (mean(x * x, -1, keepdim=True) + eps) ** -0.5 * weight, None
    from .cpu import norms

    rows = _matrix(x)
    out, r = np.empty_like(rows), np.empty(len(rows), x.dtype)
    launch(norms.rms_norm, rows, weight, x.dtype.type(eps), out, r)
    return out.reshape(x.shape), r


def _d_rms_norm(g, out, x, weight, eps, saved):
    if saved is not None:
        from .cpu import norms

        dw, dx = norms.stripes(x.dtype, x.shape[-1]), np.empty(x.shape, x.dtype)
        rows = dx.reshape(-1, x.shape[-1])
        launch(norms.rms_norm_backward, _matrix(g), _matrix(x), weight, saved, rows, dw)
        return dx, dw.sum(0)
    rms = (mean(x * x, -1, keepdim=True) + eps) ** -0.5
    xhat = x * rms

    def dx():
        gw = g * weight
        return rms * (gw - xhat * mean(gw * xhat, -1, keepdim=True))

    return dx, lambda: g * xhat


def rms_norm(x: Operand, weight: Operand | None = None, eps: float = 1e-6) -> Operand:
    """x / √(mean x² + ε) · w over the last axis of x (…, D); w is (D)."""
    weight = _identity_affine(x)[0] if weight is None else weight
    _check_features("weight", weight, x)
    return rms_normalized(x, weight, eps=eps)


normalized = primitive(_layer_norm, _d_layer_norm, "layer_norm", saves=True, real=True)
rms_normalized = primitive(_rms_norm, _d_rms_norm, "rms_norm", saves=True, real=True)
