"""The gated recurrent unit [Cho et al. 2014], in PyTorch's form: one step, the naive loops, and a whole scan.

With the hidden state h and the input x, and weights stacked in the order r, z, n::

    r  = σ(W_ir x + b_ir + W_hr h + b_hr)            what of the old state the proposal sees
    z  = σ(W_iz x + b_iz + W_hz h + b_hz)            how much of the old state stays
    n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))   the proposal
    h' = (1 − z) ⊙ n + z ⊙ h

The scan is one primitive for a whole sequence. Past the end of a sequence z is set to 1: the state stays, and
every derivative but that of h is zero, without another case in the loops.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minattn.autograd import chunk, linear, namespace, primitive, sigmoid, stack, tanh, vjp, where
from minattn.autograd.engine import Array, Operand


def gru_naive(x: Array, h: Array, W_ih: Array, W_hh: Array,
              b_ih: Array, b_hh: Array, lengths: Array | None = None) -> tuple[Array, Array]:
    """One sample after another, one position after another, on plain NumPy arrays.

    Parameters
    ----------
    x : array (B, N, D)
    h : array (B, H)
        The initial state.
    W_ih, W_hh, b_ih, b_hh : arrays (3H, D), (3H, H), (3H,), (3H,)
    lengths : integers (B,), optional
        How many positions of each sample count.

    Returns
    -------
    array (B, N, H), array (B, H)
        The states, zero past the end of a sample, and the last one of each.
    """
    (B, N, _), H = x.shape, h.shape[1]
    states, last = np.zeros((B, N, H), x.dtype), h.copy()
    for b in range(B):
        for t in range(N if lengths is None else lengths[b]):
            from_x, from_h = W_ih @ x[b, t] + b_ih, W_hh @ last[b] + b_hh
            r = 1 / (1 + np.exp(-(from_x[:H] + from_h[:H])))
            z = 1 / (1 + np.exp(-(from_x[H : 2 * H] + from_h[H : 2 * H])))
            n = np.tanh(from_x[2 * H :] + r * from_h[2 * H :])
            last[b] = states[b, t] = (1 - z) * n + z * last[b]
    return states, last


def gru_step(x: Operand, h: Operand, W_ih: Operand, W_hh: Operand,
             b_ih: Operand | None = None, b_hh: Operand | None = None) -> Operand:
    """The next state (B, H) from x (B, D) and h (B, H)."""
    return _update(linear(x, W_ih, b_ih), linear(h, W_hh, b_hh), h)


def _update(from_x: Operand, from_h: Operand, h: Operand) -> Operand:
    (xr, xz, xn), (hr, hz, hn) = chunk(from_x, 3, -1), chunk(from_h, 3, -1)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = tanh(xn + r * hn)
    return (1 - z) * n + z * h


def _gru_scan(from_x: Array, h: Array, W: Array, b: Array, /, keep: Array | None
              ) -> tuple[Array, tuple]:
    """All states (N, B, H) from W_ih x + b_ih (N, B, 3H).

    `keep` (N, B, 1) is False past the end.
    """
    xp, (N, B, _), H = namespace(from_x), from_x.shape, h.shape[-1]
    states = xp.empty((N, B, H), from_x.dtype)
    gates = xp.empty((N, B, 3, H), from_x.dtype)
    old = xp.empty_like(states)  # W_hn h + b_hn
    for t in range(N):
        from_h = h @ W.T + b
        rz = sigmoid(from_x[t, :, : 2 * H] + from_h[:, : 2 * H])
        r, z, old[t] = rz[:, :H], rz[:, H:], from_h[:, 2 * H :]
        if keep is not None:
            z = xp.where(keep[t], z, z.dtype.type(1))
        n = xp.tanh(from_x[t, :, 2 * H :] + r * old[t])
        gates[t, :, 0], gates[t, :, 1], gates[t, :, 2] = r, z, n
        h = states[t] = (1 - z) * n + z * h
    return states, (gates, old)

def _d_gru_scan(g, states, from_x, h, W, b, keep, saved):
    if saved is None:  # this pass is itself recorded: go through the steps one by one
        steps = partial(_gru_steps, keep=keep)
        return vjp(steps, (from_x, h, W, b), g, create_graph=True)[1]
    xp, (N, B, H) = namespace(g), states.shape
    gates, old = saved
    r, z, n = gates[:, :, 0], gates[:, :, 1], gates[:, :, 2]
    before = xp.concatenate([h[None], states[:-1]])
    by_n = (1 - z) * (1 - n * n)  # ∂h'/∂ the argument of tanh
    by_r, by_z = by_n * old * r * (1 - r), (before - n) * z * (1 - z)
    slopes = xp.stack([by_r, by_z, by_n * r], 2)  # ∂h'/∂ the three parts of W_hh h + b_hh
    dh, d_from_h = xp.zeros((B, H), g.dtype), xp.empty_like(gates)
    dn = xp.empty_like(states)
    for t in reversed(range(N)):
        dh = dh + g[t]
        dn[t] = dh * by_n[t]
        d_from_h[t] = dh[:, None] * slopes[t]
        dh = dh * z[t] + d_from_h[t].reshape(B, 3 * H) @ W
    rows = d_from_h.reshape(N * B, 3 * H)
    d_from_x = d_from_h.copy()
    d_from_x[:, :, 2] = dn
    dW = rows.T @ before.reshape(N * B, H)
    return d_from_x.reshape(N, B, 3 * H), dh, dW, rows.sum(0)


def _gru_steps(from_x: Operand, h: Operand, W: Operand, b: Operand, keep: Array | None) -> Operand:
    """The scan as single steps, each recorded."""
    states = []
    for t in range(from_x.shape[0]):
        new = _update(from_x[t], linear(h, W, b), h)
        h = new if keep is None else where(keep[t], new, h)
        states.append(h)
    return stack(states)


gru_scan = primitive(_gru_scan, _d_gru_scan, saves=True)
