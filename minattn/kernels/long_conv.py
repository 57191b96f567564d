"""Causal convolution of every feature with a filter of its own, long or short.

    y_td = Σ_j w_dj x_{t−j, d},    j = 0 … min(t, K − 1)

`long_conv` multiplies Fourier transforms, N log N steps whatever the length K of the filter: padded with
zeros to N + K − 1 places, nothing that leaves at the end comes in at the beginning. `short_conv` goes over
the K entries, and takes what came before: a sequence may be cut anywhere, if the last K − 1 inputs of one
part are handed to the next.

Both have gradients of their own form: dx is the convolution of the cotangent with w from the end to the
beginning, dw_dj = Σ_bt g_btd x_{b, t−j, d}.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.autograd import cat, irfft, namespace, primitive, rfft
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, launch, recorded
from .scan import check_floats, check_shape

__all__ = ["long_conv", "naive_causal_conv", "short_conv"]


def naive_causal_conv(x: Array, weight: Array, state: Array | None = None) -> Array:
    """Causal convolution of x (B, N, D) with weight (D, K) after `state` (B, K − 1, D), by loops."""
    (B, N, D), K = x.shape, weight.shape[1]
    y = np.zeros((B, N, D))
    for b, t, d in np.ndindex(B, N, D):
        for j in range(K):
            if t >= j:
                y[b, t, d] += float(weight[d, j]) * float(x[b, t - j, d])
            elif state is not None:
                y[b, t, d] += float(weight[d, j]) * float(state[b, K - 1 + t - j, d])
    return y


# --- by Fourier transforms --------------------------------------------------------------------------------

def long_conv(x: Operand, weight: Operand) -> Operand:
    """y_td = Σ_j w_dj x_{t−j, d} by Fourier transforms.

    Parameters
    ----------
    x : (B, N, D)
    weight : (D, K)
        Entry j meets the input j positions back. K may be anything; entries from N on meet nothing.

    Returns
    -------
    y : (B, N, D)
        In the precision of x, with errors of the size of rounding in the largest output of a feature: a
        small output beside large ones has fewer correct digits than `short_conv` gives. Differentiable any
        number of times.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    _check(x, weight)
    if 0 in x.shape:
        return x * 1
    return convolved(x, weight[:, : x.shape[1]])


def smooth_size(n: int) -> int:
    """The least number from n on without a prime factor over 5: transforms of such lengths are fast."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def transforms(x: Array) -> Any:
    """SciPy's transforms where it is installed and x is NumPy's: they take several features at once."""
    if type(x) is np.ndarray:
        try:
            import scipy.fft

            return scipy.fft
        except ImportError:
            pass
    return namespace(x).fft


def _long_conv(x: Array, weight: Array, /) -> tuple[Array, tuple]:
    (_, N, _), fft = x.shape, transforms(x)
    n = smooth_size(N + weight.shape[1] - 1)
    X, W = fft.rfft(x, n, axis=1), fft.rfft(weight.T, n, axis=0)
    return fft.irfft(X * W, n, axis=1)[:, :N].astype(x.dtype, copy=False), (X, W, n)

def _d_long_conv(g, out, x, weight, saved):
    if saved is None:
        return recorded(long_conv_reference, g, x, weight)
    (X, W, n), fft = saved, transforms(x)
    G = fft.rfft(g, n, axis=1)

    def dx():
        return fft.irfft(G * W.conj(), n, axis=1)[:, : x.shape[1]].astype(x.dtype, copy=False)

    def dweight():
        correlation = fft.irfft((G * X.conj()).sum(0), n, axis=0)
        return correlation[: weight.shape[1]].T.astype(x.dtype, copy=False)

    return dx, dweight


def long_conv_reference(x: Operand, weight: Operand) -> Operand:
    """`long_conv` from differentiable transforms."""
    N = x.shape[1]
    n = N + weight.shape[1] - 1
    return irfft(rfft(x, n, 1) * rfft(weight.mT, n, 0), n, 1)[:, :N]


convolved = primitive(_long_conv, _d_long_conv, "long_conv", saves=True, real=True)


# --- entry by entry ---------------------------------------------------------------------------------------

def short_conv(x: Operand, weight: Operand, state: Operand | None = None, *,
               return_state: bool = False) -> Any:
    """y_td = Σ_j w_dj x_{t−j, d}, one entry of the filter after another.

    Parameters
    ----------
    x : (B, N, D)
    weight : (D, K)
        Entry j meets the input j positions back (PyTorch's ``conv1d`` has them the other way round).
    state : (B, K − 1, D), optional
        The inputs before x, the latest last; zeros by default.
    return_state : bool
        Also return the last K − 1 inputs.

    Returns
    -------
    y : (B, N, D), or (y, state)
        Differentiable any number of times.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    _check(x, weight)
    (B, N, D), K = x.shape, weight.shape[1]
    if state is None:
        state = namespace(x).zeros((B, K - 1, D), dtype=x.dtype)
    check_shape("state", state, (B, K - 1, D), x)
    if compiled(*map(raw, (x, weight, state)), work=B * N * D * K):
        y = banded(x, weight, state)
    else:
        y = banded_reference(x, weight, state)
    return (y, cat([state, x[:, max(N - K + 1, 0) :]], 1)[:, min(N, K - 1) :]) if return_state else y


def banded_reference(x: Operand, weight: Operand, state: Operand) -> Operand:
    """`short_conv`, one product for each entry of the filter."""
    N, K = x.shape[1], weight.shape[1]
    padded, total = cat([state, x], 1), x * weight[:, 0]
    for j in range(1, K):
        total = total + padded[:, K - 1 - j : K - 1 - j + N] * weight[:, j]
    return total


def _banded(x: Array, weight: Array, state: Array, /) -> tuple[Array, bool]:
    from .cpu import long_conv as cpu

    y = np.empty(x.shape, x.dtype)
    launch(cpu.banded, *map(np.ascontiguousarray, (x, weight.T, state)), y, cpu.parts())
    return y, True

def _d_banded(g, out, x, weight, state, saved):
    if saved is None:
        return recorded(banded_reference, g, x, weight, state)
    from .cpu import long_conv as cpu

    dx, dstate = np.zeros(x.shape, x.dtype), np.zeros(state.shape, x.dtype)
    dw = np.zeros((len(x), *weight.T.shape), x.dtype)
    arrays = map(np.ascontiguousarray, (g, x, weight.T, state))
    launch(cpu.banded_backward, *arrays, dx, dw, dstate, cpu.parts())
    return dx, dw.sum(0).T, dstate


banded = primitive(_banded, _d_banded, "short_conv", saves=True)


def _check(x: Operand, weight: Operand) -> None:
    check_floats("x", x, "B, N, D")
    check_floats("weight", weight, "D, K")
    if weight.shape[1] == 0:
        raise ValueError(f"weight: expected at least one entry for each feature, got shape {weight.shape}")
    check_shape("weight", weight, (x.shape[2], weight.shape[1]), x)
