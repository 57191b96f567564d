"""Long short-term memory [Hochreiter and Schmidhuber 1997; Gers et al. 2000], in PyTorch's form.

With the hidden state h, the cell c and the input x, and weights stacked in the order i, f, g, o::

    i  = σ(W_ii x + b_ii + W_hi h + b_hi)       how much of the proposal enters the cell
    f  = σ(W_if x + b_if + W_hf h + b_hf)       how much of the cell stays
    g  = tanh(W_ig x + b_ig + W_hg h + b_hg)    the proposal
    o  = σ(W_io x + b_io + W_ho h + b_ho)       how much of the cell is shown
    c' = f ⊙ c + i ⊙ g
    h' = o ⊙ tanh(c')

The scan is one primitive for a whole sequence. Past the end of a sequence i = 0, f = 1 and o = 0, so the cell
stays and no gradient enters; the hidden state is carried over beside.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minattn.autograd import chunk, linear, namespace, primitive, sigmoid, stack, tanh, vjp, where
from minattn.autograd.engine import Array, Operand


def lstm_naive(x: Array, h: Array, c: Array, W_ih: Array, W_hh: Array, b_ih: Array, b_hh: Array,
               lengths: Array | None = None) -> tuple[Array, Array, Array]:
    """One sample after another, one position after another, on plain NumPy arrays.

    Parameters
    ----------
    x : array (B, N, D)
    h, c : arrays (B, H)
        The initial state and cell.
    W_ih, W_hh, b_ih, b_hh : arrays (4H, D), (4H, H), (4H,), (4H,)
    lengths : integers (B,), optional
        How many positions of each sample count.

    Returns
    -------
    array (B, N, H), array (B, H), array (B, H)
        The states, zero past the end of a sample, and the last state and cell of each sample.
    """
    (B, N, _), H = x.shape, h.shape[1]
    states, h, c = np.zeros((B, N, H), x.dtype), h.copy(), c.copy()
    for k in range(B):
        for t in range(N if lengths is None else lengths[k]):
            total = W_ih @ x[k, t] + b_ih + W_hh @ h[k] + b_hh
            i = 1 / (1 + np.exp(-total[:H]))
            f = 1 / (1 + np.exp(-total[H : 2 * H]))
            g = np.tanh(total[2 * H : 3 * H])
            o = 1 / (1 + np.exp(-total[3 * H :]))
            c[k] = f * c[k] + i * g
            h[k] = states[k, t] = o * np.tanh(c[k])
    return states, h, c


def lstm_step(x: Operand, h: Operand, c: Operand, W_ih: Operand, W_hh: Operand, b_ih: Operand | None = None,
              b_hh: Operand | None = None) -> tuple[Operand, Operand]:
    """The next state and cell (B, H) from x (B, D), h (B, H) and c (B, H)."""
    return _update(linear(x, W_ih, b_ih) + linear(h, W_hh, b_hh), c)


def _update(total: Operand, c: Operand) -> tuple[Operand, Operand]:
    i, f, g, o = chunk(total, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def _lstm_scan(from_x: Array, h: Array, c: Array, W: Array, b: Array, /, keep: Array | None
               ) -> tuple[Array, tuple]:
    """States and cells (N, B, 2, H) from W_ih x + b_ih (N, B, 4H); `keep` (N, B, 1) is False past the end."""
    xp, (N, B, _), H = namespace(from_x), from_x.shape, h.shape[-1]
    out, gates = xp.empty((N, B, 2, H), from_x.dtype), xp.empty((N, B, 4, H), from_x.dtype)
    shown = xp.empty((N, B, H), from_x.dtype)  # tanh c'
    for t in range(N):
        total = from_x[t] + h @ W.T + b
        gates[t] = sigmoid(total).reshape(B, 4, H)
        gates[t, :, 2] = xp.tanh(total[:, 2 * H : 3 * H])
        if keep is not None:
            gates[t] = xp.where(keep[t][:, :, None], gates[t], _held(gates[t]))
        i, f, g, o = (gates[t, :, k] for k in range(4))
        c = f * c + i * g
        shown[t] = xp.tanh(c)
        h = o * shown[t] if keep is None else xp.where(keep[t], o * shown[t], h)
        out[t, :, 0], out[t, :, 1] = h, c
    return out, (gates, shown)

def _d_lstm_scan(grad, out, from_x, h, c, W, b, keep, saved):
    if saved is None:  # this pass is itself recorded: go through the steps one by one
        steps = partial(_lstm_steps, keep=keep)
        return vjp(steps, (from_x, h, c, W, b), grad, create_graph=True)[1]
    xp, (N, B, _, H) = namespace(grad), out.shape
    gates, shown = saved
    i, f, g, o = (gates[:, :, k] for k in range(4))
    before = xp.concatenate([xp.stack([h, c], 1)[None], out[:-1]])
    slopes = xp.stack([g * i * (1 - i), before[:, :, 1] * f * (1 - f), i * (1 - g * g)], 2)  # ∂c'/∂ arguments
    by_o, by_c = shown * o * (1 - o), o * (1 - shown * shown)  # ∂h'/∂ the argument of o, and through c'
    dh, dc = xp.zeros((B, H), grad.dtype), xp.zeros((B, H), grad.dtype)
    d_total = xp.empty_like(gates)
    for t in reversed(range(N)):
        dh = dh + grad[t, :, 0]
        dc = dc + grad[t, :, 1] + dh * by_c[t]
        d_total[t, :, :3] = dc[:, None] * slopes[t]
        d_total[t, :, 3] = dh * by_o[t]
        dc = dc * f[t]
        carried = 0 if keep is None else dh * ~keep[t]
        dh = d_total[t].reshape(B, 4 * H) @ W + carried
    rows = d_total.reshape(N * B, 4 * H)
    return rows.reshape(N, B, 4 * H), dh, dc, rows.T @ before[:, :, 0].reshape(N * B, H), rows.sum(0)


def _held(like: Array) -> Array:
    """Gates (1, 4, 1) that leave the cell as it is: i = 0, f = 1, g = 0, o = 0."""
    return namespace(like).asarray([0, 1, 0, 0], dtype=like.dtype)[None, :, None]


def _lstm_steps(from_x: Operand, h: Operand, c: Operand, W: Operand, b: Operand, keep: Array | None
                ) -> Operand:
    """The scan as single steps, each recorded."""
    out = []
    for t in range(from_x.shape[0]):
        new_h, new_c = _update(from_x[t] + linear(h, W, b), c)
        if keep is None:
            h, c = new_h, new_c
        else:
            h, c = where(keep[t], new_h, h), where(keep[t], new_c, c)
        out.append(stack([h, c], 1))
    return stack(out)


lstm_scan = primitive(_lstm_scan, _d_lstm_scan, saves=True)
