"""SiLU(gate) ∘ up and its two gradients, each in one pass."""

from numba import njit, prange

from .exp import exp


@njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def forward(gate, up, out):
    """out = gate σ(gate) up"""
    for i in prange(gate.size):
        out[i] = gate[i] / (gate.dtype.type(1) + exp(-gate[i])) * up[i]


@njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def backward(g, gate, up, dgate, dup):
    """dgate = g up σ (1 + gate (1 − σ)) and dup = g gate σ, with σ = σ(gate)."""
    for i in prange(gate.size):
        one = gate.dtype.type(1)
        s = one / (one + exp(-gate[i]))
        dgate[i] = g[i] * up[i] * s * (one + gate[i] * (one - s))
        dup[i] = g[i] * gate[i] * s
