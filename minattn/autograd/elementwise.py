"""Elementwise primitives, each with its derivative beside it.

Operands broadcast as in NumPy; the sweep sums a gradient over broadcast axes. Derivatives of functions
that accept complex numbers carry `dual` (the complex conjugate; nothing for reals): a gradient here, as in
PyTorch, is the direction of steepest ascent, ∂L/∂Re z + i ∂L/∂Im z.
"""

from __future__ import annotations

import math

import numpy as np

from .engine import Array, Operand, namespace, primitive, raw


def dual(x: Operand) -> Operand:
    """The complex conjugate of `x`; `x` itself when it is real."""
    if getattr(x, "dtype", np.float64) not in _COMPLEX:
        return x.conjugate() if isinstance(x, complex) else x
    from .spectral import conj

    return conj(x)


_COMPLEX = (np.dtype(np.complex64), np.dtype(np.complex128))


def _add(x: Array, y: Array, /) -> Array:
    """Sum x + y."""
    return x + y

def _d_add(g, out, x, y):
    return g, g


def _sub(x: Array, y: Array, /) -> Array:
    """Difference x − y."""
    return x - y

def _d_sub(g, out, x, y):
    return g, lambda: -g


def _mul(x: Array, y: Array, /) -> Array:
    """Product x · y."""
    return x * y

def _d_mul(g, out, x, y):
    return lambda: g * dual(y), lambda: g * dual(x)


def _div(x: Array, y: Array, /) -> Array:
    """Quotient x / y."""
    return x / y

def _d_div(g, out, x, y):
    return lambda: g / dual(y), lambda: -g * dual(out / y)


def _neg(x: Array, /) -> Array:
    """Negative −x."""
    return -x

def _d_neg(g, out, x):
    return -g


def _pow(x: Array, y: Array, /) -> Array:
    """Power xʸ."""
    return x**y

def _d_pow(g, out, x, y):
    def by_base():  # y xʸ⁻¹, and 0 rather than 0·∞ where y = 0
        less = y - 1 if isinstance(y, (int, float)) and y else where(raw(y) == 0, 1, y - 1)
        return g * dual(y * x**less)

    def by_exponent():  # xʸ ln x, and 0 at x = 0, where xʸ vanishes faster than ln x grows
        base = x if hasattr(x, "dtype") else namespace(g).asarray(x, dtype=g.dtype)
        zero = raw(base) == 0
        return g * dual(where(zero, 0, out * log(where(zero, 1, base))))

    return by_base, by_exponent


def _exp(x: Array, /) -> Array:
    """Exponential eˣ."""
    return namespace(x).exp(x)

def _d_exp(g, out, x):
    return g * dual(out)


def _log(x: Array, /) -> Array:
    """Natural logarithm ln x."""
    return namespace(x).log(x)

def _d_log(g, out, x):
    return g / dual(x)


def _log1p(x: Array, /) -> Array:
    """ln(1 + x), accurate near x = 0."""
    return namespace(x).log1p(x)

def _d_log1p(g, out, x):
    return g / dual(1 + x)


def _sqrt(x: Array, /) -> Array:
    """Square root √x."""
    return namespace(x).sqrt(x)

def _d_sqrt(g, out, x):
    return g / dual(2 * out)


def _sign(x: Array, /) -> Array:
    """Sign of x: −1, 0 or 1. Its derivative is taken to be zero."""
    return namespace(x).sign(x)

def _d_zero(g, out, x):
    return g * 0


def _abs(x: Array, /) -> Array:
    """Absolute value |x|, real also for complex x; derivative 0 at 0."""
    return namespace(x).abs(x)

def _d_abs(g, out, x):
    if raw(x).dtype in _COMPLEX:
        return g * (x / where(raw(out) == 0, 1, out))
    return g * sign(x)


def _sin(x: Array, /) -> Array:
    """Sine."""
    return namespace(x).sin(x)

def _d_sin(g, out, x):
    return g * dual(cos(x))


def _cos(x: Array, /) -> Array:
    """Cosine."""
    return namespace(x).cos(x)

def _d_cos(g, out, x):
    return -g * dual(sin(x))


def _tanh(x: Array, /) -> Array:
    """Hyperbolic tangent."""
    return namespace(x).tanh(x)

def _d_tanh(g, out, x):
    return g * dual(1 - out * out)


def _sigmoid(x: Array, /) -> Array:
    """Logistic function σ(x) = 1 / (1 + e⁻ˣ), without overflow for any x."""
    xp = namespace(x)
    z = xp.exp(-xp.abs(x))  # in (0, 1]
    return xp.where(x >= 0, 1, z) / (1 + z)

def _d_sigmoid(g, out, x):
    return g * out * (1 - out)


def _softplus(x: Array, /) -> Array:
    """ln(1 + eˣ), without overflow."""
    xp = namespace(x)
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))

def _d_softplus(g, out, x):
    return g * sigmoid(x)


def _relu(x: Array, /) -> Array:
    """max(x, 0); derivative 0 at 0."""
    return namespace(x).maximum(x, 0)

def _d_relu(g, out, x):
    return g * (raw(x) > 0)


def _erf(x: Array, /) -> Array:
    """Error function (2/√π) ∫₀ˣ e^(−t²) dt."""
    if type(x).__module__.startswith("cupy"):
        from cupyx.scipy.special import erf as erf_gpu

        return erf_gpu(x)
    try:
        from scipy.special import erf as erf_cpu
    except ImportError:  # slower, but the same values: NumPy alone has no erf
        erf_cpu = np.vectorize(math.erf, otypes=[float])
    return erf_cpu(x).astype(np.result_type(x, np.float16), copy=False)

def _d_erf(g, out, x):
    return g * (2 / math.sqrt(math.pi)) * exp(-(x * x))


_HALF_ROOT = 1 / math.sqrt(2)
_PHI_0 = 1 / math.sqrt(2 * math.pi)  # the normal density at 0
_TANH_SCALE = math.sqrt(2 / math.pi)


def _gelu_erf(x: Array, /) -> Array:
    """Gaussian error linear unit x Φ(x), Φ the standard normal distribution function."""
    return 0.5 * x * (1 + _erf(x * _HALF_ROOT))

def _d_gelu_erf(g, out, x):
    cdf = 0.5 * (1 + erf(x * _HALF_ROOT))
    return g * (cdf + x * _PHI_0 * exp(-0.5 * (x * x)))


def _gelu_tanh(x: Array, /) -> Array:
    """0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    return 0.5 * x * (1 + namespace(x).tanh(_TANH_SCALE * (x + 0.044715 * x * x * x)))

def _d_gelu_tanh(g, out, x):
    t = tanh(_TANH_SCALE * (x + 0.044715 * x * x * x))
    slope = _TANH_SCALE * (1 + 3 * 0.044715 * x * x)
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)


def gelu(x: Operand, approximate: str = "none") -> Operand:
    """Gaussian error linear unit x Φ(x), or its tanh form with ``approximate="tanh"``."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f'approximate: expected "none" or "tanh", got {approximate!r}')
    return gelu_erf(x) if approximate == "none" else gelu_tanh(x)


def _silu(x: Array, /) -> Array:
    """x σ(x)."""
    return x * _sigmoid(x)

def _d_silu(g, out, x):
    s = sigmoid(x)
    return g * (s + out * (1 - s))


def _maximum(x: Array, y: Array, /) -> Array:
    """Larger of x and y; equal operands share the gradient half and half."""
    return namespace(x).maximum(x, y)

def _d_maximum(g, out, x, y):
    x, y = raw(x), raw(y)
    tie = (x == y) * np.asarray(0.5, dtype=g.dtype)[()]
    return lambda: g * ((x > y) + tie), lambda: g * ((y > x) + tie)


def _minimum(x: Array, y: Array, /) -> Array:
    """Smaller of x and y; equal operands share the gradient half and half."""
    return namespace(x).minimum(x, y)

def _d_minimum(g, out, x, y):
    return _d_maximum(g, out, y, x)  # x gets what y would get


def _clip(x: Array, /, min: float | None, max: float | None) -> Array:
    return namespace(x).clip(x, min, max)

def _d_clip(g, out, x, min, max):
    return g * (raw(out) == raw(x))


def clip(x: Operand, min: float | None = None, max: float | None = None) -> Operand:
    """x limited to [min, max]; derivative 1 inside and on the border, 0 outside."""
    if min is None and max is None:
        raise ValueError("clip: expected min, max or both, got neither")
    return clip_to(x, min=min, max=max)


def _select(x: Array, y: Array, /, cond: Array) -> Array:
    xp = namespace(x if hasattr(x, "dtype") else y if hasattr(y, "dtype") else cond)
    return xp.where(xp.asarray(cond), x, y)

def _d_select(g, out, x, y, cond):
    return lambda: where(cond, g, 0), lambda: where(cond, 0, g)


def where(cond: Operand, x: Operand, y: Operand) -> Operand:
    """x where `cond` holds, y elsewhere. `cond` is not differentiated.

    The gradient of the branch not taken is exactly zero, whatever its value (an infinity included).
    """
    return select(x, y, cond=raw(cond))


def _astype(x: Array, /, dtype: np.dtype) -> Array:
    return x.astype(dtype)

def _d_astype(g, out, x, dtype):
    return g  # the sweep brings it to the dtype of x


def _straight_through(soft: Array, hard: Array, /) -> Array:
    return hard

def _d_straight_through(g, out, soft, hard):
    return g, None


def straight_through(hard: Operand, soft: Operand) -> Operand:
    """The value of `hard` with the gradient of `soft`.

    Used for choices that cannot be differentiated, e.g. ``straight_through(one_hot(argmax), softmax(x))``.
    """
    hard = raw(hard)
    if hard.shape != soft.shape:
        raise ValueError(f"hard: expected the shape of soft, {soft.shape}, got {hard.shape}")
    return pass_through(soft, hard)


add = primitive(_add, _d_add)
sub = primitive(_sub, _d_sub)
mul = primitive(_mul, _d_mul)
div = primitive(_div, _d_div)
neg = primitive(_neg, _d_neg)
pow = primitive(_pow, _d_pow)
exp = primitive(_exp, _d_exp)
log = primitive(_log, _d_log)
log1p = primitive(_log1p, _d_log1p)
sqrt = primitive(_sqrt, _d_sqrt)
abs = primitive(_abs, _d_abs)
sign = primitive(_sign, _d_zero, real=True)
sin = primitive(_sin, _d_sin)
cos = primitive(_cos, _d_cos)
tanh = primitive(_tanh, _d_tanh)
sigmoid = primitive(_sigmoid, _d_sigmoid, real=True)
softplus = primitive(_softplus, _d_softplus, real=True)
relu = primitive(_relu, _d_relu, real=True)
erf = primitive(_erf, _d_erf, real=True)
gelu_erf = primitive(_gelu_erf, _d_gelu_erf, real=True)
gelu_tanh = primitive(_gelu_tanh, _d_gelu_tanh, real=True)
silu = primitive(_silu, _d_silu, real=True)
maximum = primitive(_maximum, _d_maximum, real=True)
minimum = primitive(_minimum, _d_minimum, real=True)
clip_to = primitive(_clip, _d_clip, "clip", real=True)
select = primitive(_select, _d_select, "where")
astype = primitive(_astype, _d_astype)
pass_through = primitive(_straight_through, _d_straight_through)
