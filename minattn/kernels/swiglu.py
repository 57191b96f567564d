"""SwiGLU's product SiLU(gate) ∘ up: one pass forward, and one backward for both gradients.

The reference is ``silu(gate) * up``. The compiled form (`cpu/swiglu.py`) keeps nothing between the passes but
its arguments: the backward pass computes the sigmoid again, which costs less than reading it back.

Shazeer 2020 (arXiv 2002.05202).
"""

from __future__ import annotations

import numpy as np

from minattn.autograd import elementwise, primitive
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, launch, recorded


def swiglu_reference(gate: Operand, up: Operand) -> Operand:
    """gate σ(gate) ∘ up in array operations."""
    return elementwise.silu(gate) * up


def _swiglu(gate: Array, up: Array, /) -> tuple[Array, bool]:
    if not compiled(gate, up):
        return swiglu_reference(gate, up), False
    from .cpu import swiglu as cpu

    out = np.empty(gate.shape, gate.dtype)
    launch(cpu.forward, *_flat(gate, up), out.reshape(-1))
    return out, True

def _d_swiglu(g, out, gate, up, saved):
    if not saved:
        return recorded(swiglu_reference, g, gate, up) if saved is None else _by_numpy(g, gate, up)
    from .cpu import swiglu as cpu

    dgate, dup = np.empty(gate.shape, gate.dtype), np.empty(gate.shape, gate.dtype)
    launch(cpu.backward, *_flat(g, gate, up), dgate.reshape(-1), dup.reshape(-1))
    return dgate, dup


def _by_numpy(g: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """The derivative with silu' = σ (1 + x (1 − σ))."""
    s = elementwise.sigmoid(gate)
    return g * up * s * (1 + gate * (1 - s)), g * gate * s


def _flat(*arrays: Array) -> list[Array]:
    return [np.ascontiguousarray(a).reshape(-1) for a in arrays]


def swiglu(gate: Operand, up: Operand) -> Operand:
    """gate σ(gate) ∘ up, the hidden values of a SwiGLU layer.

    Parameters
    ----------
    gate, up : (…, D)
        Of one shape: x W_gateᵀ and x W_upᵀ.

    Returns
    -------
    out : (…, D)
        Differentiable any number of times; derivatives of derivatives take the NumPy form.

    Raises
    ------
    ValueError
        If the shapes differ.
    TypeError
        If the dtypes differ, or are complex.
    """
    shape = np.shape(raw(gate))
    if np.shape(raw(up)) != shape:
        raise ValueError(f"up: expected shape {shape}, as gate, got {np.shape(raw(up))}")
    return multiplied(gate, up)


multiplied = primitive(_swiglu, _d_swiglu, "swiglu", saves=True, real=True)
