"""SiLU x σ(x): the value and the slope in one pass, so that the backward pass is one product.

The reference is `minattn.autograd.silu`, of which NumPy makes a dozen passes.
"""

from __future__ import annotations

import numpy as np

from minattn.autograd import elementwise, primitive
from minattn.autograd.engine import Array, is_grad_enabled

from .dispatch import compiled, launch


def _fused_silu(x: Array, /) -> tuple[Array, Array | None]:
    """Sigmoid linear unit x σ(x)."""
    if not compiled(x):
        return elementwise.silu(x), None
    from .cpu.silu import value, value_and_slope

    x = np.asarray(x, order="C")
    out = np.empty_like(x)
    if not is_grad_enabled():
        launch(value, x.ravel(), out.ravel())
        return out, None
    slope = np.empty_like(x)
    launch(value_and_slope, x.ravel(), out.ravel(), slope.ravel())
    return out, slope


def _d_fused_silu(g, out, x, saved=None):
    return elementwise.silu.derivative(g, out, x) if saved is None else g * saved


silu = primitive(_fused_silu, _d_fused_silu, "silu", saves=True, real=True)
