"""One step of Adam or AdamW on a flat array of parameters.

The arithmetic is a dozen operations an entry, so memory decides the time: NumPy reads and writes the arrays
once for each operation, the compiled loop (`cpu/adamw.py`) once for all of them.
"""

from __future__ import annotations

import math

from minattn.autograd import namespace
from minattn.autograd.engine import Array

from .dispatch import compiled, launch

SMALL = 10_000
"""Arrays with fewer entries are left to NumPy: a toy model should not wait for a compiler."""


def adamw_reference(p: Array, g: Array, m: Array, v: Array, scratch: Array, rate: float, beta1: float,
                    beta2: float, eps: float, keep: float, l2: float, root: float) -> None:
    """The step in array operations, `scratch` having the size of `p`; see `adamw`."""
    xp = namespace(p)
    if l2:
        g = g + l2 * p
    xp.multiply(g, 1 - beta1, out=scratch)
    m *= beta1
    m += scratch  # m ← β₁ m + (1 − β₁) g
    xp.multiply(g, g, out=scratch)
    scratch *= 1 - beta2
    v *= beta2
    v += scratch  # v ← β₂ v + (1 − β₂) g²
    xp.sqrt(v, out=scratch)
    scratch /= root
    scratch += eps
    xp.divide(m, scratch, out=scratch)
    scratch *= rate
    p *= keep
    p -= scratch


def adamw(p: Array, g: Array, m: Array, v: Array, scratch: Array, *, step: int, lr: float,
          betas: tuple[float, float], eps: float, decay: float = 0.0, l2: float = 0.0) -> None:
    """Change p, m and v in place:

        g ← g + l2 p
        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
        p ← (1 − lr · decay) p − lr m̂ / (√v̂ + ε),   m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)

    Parameters
    ----------
    p, g, m, v : array (n,)
        Parameters, gradient, and the running means of the gradient and of its square.
    scratch : array (n or more,)
        Overwritten.
    step : int
        t, counted from 1.
    decay, l2 : float
        Weight decay apart from the gradient (AdamW), and added to it (Adam).
    """
    beta1, beta2 = betas
    rate = lr / (1 - beta1**step)
    root = math.sqrt(1 - beta2**step)
    keep = 1 - lr * decay
    if p.size < SMALL or not compiled(p, g, m, v):
        adamw_reference(p, g, m, v, scratch[: p.size], rate, beta1, beta2, eps, keep, l2, root)
        return
    from .cpu.adamw import adamw_loop

    factors = (rate, beta1, 1 - beta1, beta2, 1 - beta2, eps, keep, l2, root)
    numbers = map(p.dtype.type, factors)  # in p's type, else float32 is computed in float64
    launch(adamw_loop, p, g, m, v, *numbers)
