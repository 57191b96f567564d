"""Layer norm and RMS norm, each forward and backward in one primitive."""

from __future__ import annotations

from minattn.autograd import mean, namespace, primitive, sum
from minattn.autograd.engine import Array, Operand


def _centre(x: Operand, eps: float) -> tuple[Operand, Operand]:
    """x less its mean and the reciprocal of its standard deviation, over the last axis."""
    centred = x - mean(x, -1, keepdim=True)
    return centred, (mean(centred * centred, -1, keepdim=True) + eps) ** -0.5


def _layer_norm(x: Array, weight: Array, bias: Array, /, eps: float) -> tuple[Array, tuple]:
    centred, rstd = _centre(x, eps)
    centred *= rstd
    return centred * weight + bias, (centred, rstd)

def _d_layer_norm(g, out, x, weight, bias, eps, saved):
    if saved is None:
        centred, rstd = _centre(x, eps)
        xhat = centred * rstd
    else:
        xhat, rstd = saved
    lead = tuple(range(g.ndim - 1))

    def dx():
        gw = g * weight
        return rstd * (gw - mean(gw, -1, keepdim=True) - xhat * mean(gw * xhat, -1, keepdim=True))

    return dx, lambda: sum(g * xhat, lead), lambda: sum(g, lead)


def layer_norm(x: Operand, weight: Operand | None = None, bias: Operand | None = None, eps: float = 1e-5) -> Operand:
    """(x − x̄) / √(var x + ε) · w + b over the last axis, var with divisor D."""
    ones, zeros = _identity_affine(x)
    return normalized(x, ones if weight is None else weight, zeros if bias is None else bias, eps=eps)


def _identity_affine(x: Operand) -> tuple[Array, Array]:
    xp, D = namespace(x), x.shape[-1]
    return xp.ones(D, dtype=x.dtype), xp.zeros(D, dtype=x.dtype)


def _rms_norm(x: Array, weight: Array, /, eps: float) -> tuple[Array, Array]:
    rms = (mean(x * x, -1, keepdim=True) + eps) ** -0.5
    return x * rms * weight, rms

def _d_rms_norm(g, out, x, weight, eps, saved):
    rms = (mean(x * x, -1, keepdim=True) + eps) ** -0.5 if saved is None else saved
    xhat = x * rms

    def dx():
        gw = g * weight
        return rms * (gw - xhat * mean(gw * xhat, -1, keepdim=True))

    return dx, lambda: sum(g * xhat, tuple(range(g.ndim - 1)))


def rms_norm(x: Operand, weight: Operand | None = None, eps: float = 1e-6) -> Operand:
    """x / √(mean x² + ε) · w over the last axis."""
    return rms_normalized(x, _identity_affine(x)[0] if weight is None else weight, eps=eps)


normalized = primitive(_layer_norm, _d_layer_norm, saves=True)
rms_normalized = primitive(_rms_norm, _d_rms_norm, saves=True)
