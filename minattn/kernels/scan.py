"""Scans: linear recurrences along the positions of a sequence, with states that can be handed on.

    linear_scan      h_t = a_t ∘ h_{t−1} + x_t                                           h (B, N, D)
    selective_scan   H_t = exp(dt_t A) ∘ H_{t−1} + (dt_t ∘ x_t) B_tᵀ,   y_t = H_t C_t    y (B, N, D)

The second is the state space model of Mamba (Gu and Dao 2023, arXiv 2312.00752): a scan of D · S numbers
whose decays are made from dt and A on the way, so that the (B, N, D, S) states never exist at once.

The gradient of a scan is a scan from the end to the beginning. With g_t the cotangent of what is read at t,
and dh_t that of the state after step t,

    dh_t = g_t + a_{t+1} dh_{t+1},   dx_t = dh_t,   da_t = dh_t h_{t−1}

A sequence may be cut anywhere: the last state of one part, given as `state` to the next, continues it.
The compiled loops are in `cpu/scan.py`; elsewhere NumPy takes the positions one after another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.autograd import cat, einsum, exp, expand, flip, namespace, primitive, reshape, unsqueeze
from minattn.autograd.elementwise import dual
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, launch, recorded

__all__ = ["linear_scan", "naive_linear_scan", "naive_selective_scan", "selective_scan"]

CHUNK = 32
"""Positions after which `selective_scan` keeps a state, from which the backward pass computes the others."""


# --- one number at a time ---------------------------------------------------------------------------------

def naive_linear_scan(a: Array, x: Array, state: Array | None = None) -> Array:
    """`linear_scan` of arrays (B, N, D), by loops."""
    h = np.zeros(x.shape)
    for b, d in np.ndindex(x.shape[0], x.shape[2]):
        last = 0.0 if state is None else float(state[b, d])
        for t in range(x.shape[1]):
            last = float(a[b, t, d]) * last + float(x[b, t, d])
            h[b, t, d] = last
    return h


def naive_selective_scan(x: Array, dt: Array, A: Array, B: Array, C: Array, skip: Array | None = None,
                         state: Array | None = None) -> tuple[Array, Array]:
    """`selective_scan` of arrays and the last state (B, D, S), by loops."""
    y = np.zeros(x.shape)
    h = np.zeros((x.shape[0], *A.shape)) if state is None else np.array(state, float)
    for b, t, d in np.ndindex(x.shape):
        if skip is not None:
            y[b, t, d] = skip[d] * x[b, t, d]
        for s in range(A.shape[1]):
            h[b, d, s] *= np.exp(float(dt[b, t, d]) * float(A[d, s]))
            h[b, d, s] += float(dt[b, t, d]) * float(x[b, t, d]) * float(B[b, t, s])
            y[b, t, d] += h[b, d, s] * float(C[b, t, s])
    return y, h


# --- what several kernels need ----------------------------------------------------------------------------

def side_by_side(dtype: Any, *shapes: tuple[int, ...]) -> tuple[Array, list[Array]]:
    """One flat array, and views of it of these shapes: a primitive has one result."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    flat = np.empty(sum(sizes), dtype)
    return flat, apart(flat, *shapes)


def apart(flat: Operand, *shapes: tuple[int, ...]) -> list:
    """The parts of `side_by_side`."""
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)]).tolist()
    return [reshape(flat[i:j], shape) for i, j, shape in zip(ends, ends[1:], shapes, strict=False)]


def check_shape(name: str, x: Operand, shape: tuple[int, ...], like: Operand) -> None:
    """ValueError or TypeError unless x has this shape, and the dtype of `like`."""
    if np.shape(raw(x)) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {np.shape(raw(x))}")
    if x.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype}, as the other arguments, got {x.dtype}")


def check_floats(name: str, x: Operand, axes: str, kinds: str = "f") -> None:
    """ValueError unless x has as many axes as letters in `axes`; TypeError unless it holds floats."""
    count = axes.count(",") + 1
    if len(np.shape(raw(x))) != count:
        raise ValueError(f"{name}: expected {count} axes ({axes}), got shape {np.shape(raw(x))}")
    if raw(x).dtype.kind not in kinds:
        raise TypeError(f"{name}: expected floating point numbers, got {raw(x).dtype}")


# --- h_t = a_t h_{t−1} + x_t ------------------------------------------------------------------------------

def linear_scan(a: Operand, x: Operand, state: Operand | None = None) -> Operand:
    """h_t = a_t ∘ h_{t−1} + x_t for t = 0 … N − 1, with h_{−1} = `state`.

    Parameters
    ----------
    a : (B, N, D), or a shape that broadcasts to it
        Decays; any numbers, 0 and 1 among them. Real, or complex like x.
    x : (B, N, D)
    state : (B, D), optional
        Zeros by default.

    Returns
    -------
    h : (B, N, D)
        The state to hand on is ``h[:, -1]``. It can be differentiated any number of times.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    check_floats("x", x, "B, N, D", "fc")
    B, _, D = x.shape
    check_floats("a", a, "B, N, D", "fc")
    if any(n not in (1, m) for n, m in zip(a.shape, x.shape, strict=True)):
        raise ValueError(f"a: expected a shape that broadcasts to {x.shape}, as x, got {a.shape}")
    if state is None:
        state = namespace(x).zeros((B, D), dtype=x.dtype)
    check_shape("state", state, (B, D), x)
    check_shape("a", a, a.shape, x)
    return scanned(a if a.shape == x.shape else expand(a, x.shape), x, state)


def _linear_scan(a: Array, x: Array, state: Array, /) -> tuple[Array, bool]:
    if compiled(a, x, state):
        from .cpu import scan

        h = np.empty(x.shape, x.dtype)
        launch(scan.linear_scan, *map(np.ascontiguousarray, (a, x, state)), h, scan.parts())
        return h, True
    h = namespace(x).empty(x.shape, dtype=x.dtype)
    for t in range(x.shape[1]):
        state = a[:, t] * state + x[:, t]
        h[:, t] = state
    return h, False

def _d_linear_scan(g, out, a, x, state, saved):
    if saved:
        from .cpu import scan

        da, dx, dstate = np.empty_like(out), np.empty_like(out), np.zeros(state.shape, out.dtype)
        arrays = map(np.ascontiguousarray, (g, out, a, state))
        launch(scan.linear_scan_backward, *arrays, da, dx, dstate, scan.parts())
        return da, dx, dstate
    if x.shape[1] == 0:
        return a, x, state * 0
    a = dual(a)
    nothing = namespace(x).zeros(state.shape, dtype=x.dtype)
    onward = cat([a[:, 1:], unsqueeze(nothing, 1)], 1)
    dx = flip(scanned(flip(onward, 1), flip(g, 1), nothing), 1)
    before = cat([unsqueeze(state, 1), out[:, :-1]], 1)
    return dx * dual(before), dx, a[:, 0] * dx[:, 0]


scanned = primitive(_linear_scan, _d_linear_scan, "linear_scan", saves=True)


# --- selective state space --------------------------------------------------------------------------------

def selective_scan(x: Operand, dt: Operand, A: Operand, B: Operand, C: Operand, skip: Operand | None = None,
                   state: Operand | None = None, *, return_state: bool = False) -> Any:
    """H_t = exp(dt_t A) ∘ H_{t−1} + (dt_t ∘ x_t) B_tᵀ and y_t = H_t C_t + skip ∘ x_t.

    Parameters
    ----------
    x, dt : (B, N, D)
        Inputs and lengths of steps; the latter are used as they are (Mamba makes them by a softplus).
    A : (D, S)
        Rates, negative in Mamba, so that exp(dt A) < 1.
    B, C : (B, N, S)
        What is written, and what is read.
    skip : (D), optional
        Mamba's D.
    state : (B, D, S), optional
        H_{−1}, zeros by default.
    return_state : bool
        Also return H_{N−1}.

    Returns
    -------
    y : (B, N, D), or (y, state)
        Differentiable any number of times; derivatives of derivatives hold all (B, N, D, S) states.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.
    """
    check_floats("x", x, "B, N, D")
    check_floats("A", A, "D, S")
    (batch, N, D), S = x.shape, A.shape[1]
    if state is None:
        state = namespace(x).zeros((batch, D, S), dtype=x.dtype)
    for name, value, shape in (("dt", dt, x.shape), ("A", A, (D, S)), ("B", B, (batch, N, S)),
                               ("C", C, (batch, N, S)), ("state", state, (batch, D, S))):
        check_shape(name, value, shape, x)
    if compiled(*map(raw, (x, dt, A, B, C, state)), work=batch * N * D * S):
        y, last = apart(selected(x, dt, A, B, C, state), x.shape, state.shape)
    else:
        y, last = selective_scan_reference(x, dt, A, B, C, state)
    if skip is not None:
        check_shape("skip", skip, (D,), x)
        y = y + skip * x
    return (y, last) if return_state else y


def selective_scan_reference(x: Operand, dt: Operand, A: Operand, B: Operand, C: Operand,
                             state: Operand) -> tuple[Operand, Operand]:
    """y and the last state from a `linear_scan` of all D · S numbers."""
    (batch, N, D), S = x.shape, A.shape[1]
    decay = exp(unsqueeze(dt, -1) * A)
    written = unsqueeze(dt * x, -1) * unsqueeze(B, 2)
    a, u = (reshape(z, (batch, N, D * S)) for z in (decay, written))
    h = reshape(linear_scan(a, u, reshape(state, (batch, D * S))), (batch, N, D, S))
    return einsum("bnds,bns->bnd", h, C), (h[:, -1] if N else state)


def _selective_scan(x: Array, dt: Array, A: Array, B: Array, C: Array, state: Array,
                    /) -> tuple[Array, Array]:
    from .cpu import scan

    flat, (y, h) = side_by_side(x.dtype, x.shape, state.shape)
    h[:] = state
    saved = np.empty((x.shape[0], -(-x.shape[1] // CHUNK), *A.shape), x.dtype)
    arrays = map(np.ascontiguousarray, (x, dt, A, B, C))
    launch(scan.selective_scan, *arrays, h, y, saved, CHUNK, scan.parts())
    return flat, saved

def _d_selective_scan(g, out, x, dt, A, B, C, state, saved):
    if saved is None:
        def flat(*args):
            return cat([reshape(part, part.size) for part in selective_scan_reference(*args)])
        return recorded(flat, g, x, dt, A, B, C, state)
    from .cpu import scan

    dy, dlast = apart(g, x.shape, state.shape)
    dstate, parts, batch = np.array(dlast), scan.parts(), len(x)
    dx, ddt = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    dA = np.zeros((batch, *A.shape), x.dtype)
    dB, dC = np.zeros((parts, *B.shape), x.dtype), np.zeros((parts, *B.shape), x.dtype)
    arrays = map(np.ascontiguousarray, (x, dt, A, B, C, dy))
    launch(scan.selective_scan_backward, *arrays, saved, CHUNK, dstate, dx, ddt, dA, dB, dC)
    return dx, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dstate


selected = primitive(_selective_scan, _d_selective_scan, "selective_scan", saves=True)
