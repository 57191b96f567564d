"""Complex numbers and Fourier transforms."""

from __future__ import annotations

import numpy as np

from .elementwise import dual
from .engine import Array, Operand, namespace, primitive, raw
from .shape import pad


def _real(z: Array, /) -> Array:
    """Real part."""
    return namespace(z).real(z)

def _d_real(g, out, z):
    return g


def _imag(z: Array, /) -> Array:
    """Imaginary part."""
    return namespace(z).imag(z)

def _d_imag(g, out, z):
    return g * 1j


def _conj(z: Array, /) -> Array:
    """Complex conjugate."""
    return namespace(z).conj(z)

def _d_conj(g, out, z):
    return dual(g)


def _complex(re: Array, im: Array, /) -> Array:
    """re + i·im."""
    xp = namespace(re)
    z = xp.empty(np.broadcast_shapes(np.shape(re), np.shape(im)), dtype=xp.result_type(re, im, np.complex64))
    z.real, z.imag = re, im  # re + 1j * im would have NaN for an infinite im
    return z

def _d_complex(g, out, re, im):
    return lambda: real(g), lambda: imag(g)


def _fit(x: Operand, n: int, dim: int) -> Operand:
    """Trim x or add zeros so that axis `dim` has size n."""
    size = x.shape[dim]
    if n == size:
        return x
    if n < size:
        return x[(slice(None),) * (dim % x.ndim) + (slice(0, n),)]
    widths = [(0, 0)] * x.ndim
    widths[dim] = (0, n - size)
    return pad(x, tuple(widths))


def _weights(n: int, like: Operand, dim: int) -> Array:
    """How often each of the n//2 + 1 frequencies of a real signal occurs among all n, along axis `dim`."""
    w = np.where(2 * np.arange(n // 2 + 1) % n == 0, 1, 2)  # frequencies 0 and n/2 mirror themselves
    shape = [1] * like.ndim
    shape[dim] = len(w)
    return namespace(like).asarray(w, dtype=raw(like).real.dtype).reshape(shape)


def _rfft(x: Array, /, dim: int) -> Array:
    return namespace(x).fft.rfft(x, axis=dim)

def _d_rfft(g, out, x, dim):
    n = x.shape[dim]
    return n * to_signal(g / _weights(n, g, dim), n=n, dim=dim)


def rfft(x: Operand, n: int | None = None, dim: int = -1) -> Operand:
    """Fourier transform of a real signal, X_k = Σ_t x_t e^(−2πi kt/n) for k = 0 … n//2."""
    n = x.shape[dim] if n is None else n
    if n < 1:
        raise ValueError(f"n: expected a length of at least 1, got {n}")
    return to_spectrum(_fit(x, n, dim), dim=dim)


def _irfft(z: Array, /, n: int, dim: int) -> Array:
    return namespace(z).fft.irfft(z, n=n, axis=dim)

def _d_irfft(g, out, z, n, dim):
    return to_spectrum(g, dim=dim) * _weights(n, g, dim) / n


def irfft(z: Operand, n: int | None = None, dim: int = -1) -> Operand:
    """Real signal of length n (default 2(m − 1)) with the spectrum z of size m; inverse of `rfft`."""
    n = 2 * (z.shape[dim] - 1) if n is None else n
    if n < 1:
        raise ValueError(f"n: expected a length of at least 1, got {n}")
    return to_signal(_fit(z, n // 2 + 1, dim), n=n, dim=dim)


def _fft(z: Array, /, dim: int = -1) -> Array:
    """Fourier transform Z_k = Σ_t z_t e^(−2πi kt/n)."""
    return namespace(z).fft.fft(z, axis=dim)

def _d_fft(g, out, z, dim=-1):
    return z.shape[dim] * ifft(g, dim=dim)


def _ifft(z: Array, /, dim: int = -1) -> Array:
    """Inverse of `fft`."""
    return namespace(z).fft.ifft(z, axis=dim)

def _d_ifft(g, out, z, dim=-1):
    return fft(g, dim=dim) / z.shape[dim]


real = primitive(_real, _d_real)
imag = primitive(_imag, _d_imag)
conj = primitive(_conj, _d_conj)
complex = primitive(_complex, _d_complex)
to_spectrum = primitive(_rfft, _d_rfft, "rfft", real=True)
to_signal = primitive(_irfft, _d_irfft, "irfft")
fft = primitive(_fft, _d_fft)
ifft = primitive(_ifft, _d_ifft)
