"""What a transformer costs: parameters, operations and bytes, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import Config


@dataclass(frozen=True)
class Cost:
    """Costs by part.

    Attributes
    ----------
    parameters : dict
        Entries of the weights.
    flops : dict
        Floating-point operations of the matrix products of one forward pass, a multiplication and an addition
        being two. A backward pass takes twice as many.
    bytes : dict
        Memory of the weights, of the gradients, of AdamW's two running means, and of the keys and values of
        one batch of sequences.
    """

    parameters: dict[str, int]
    flops: dict[str, int]
    bytes: dict[str, int]

    def __repr__(self) -> str:
        lines = []
        for kind in ("parameters", "flops", "bytes"):
            parts: dict[str, int] = getattr(self, kind)
            lines.append(f"{kind:12} {sum(parts.values()):>18,}")
            lines += [f"  {name:10} {n:>18,}" for name, n in parts.items()]
        return "\n".join(lines)


def count(config: Config, N: int | None = None, batch: int = 1, dtype: Any = np.float32) -> Cost:
    """Cost of a `GPT` of this shape on `batch` sequences of length N (the whole context by default).

    Notes
    -----
    With D = d_model, F = d_hidden, L layers, H heads, Hk key heads and E = D/H features a head:

    =============  =================================  ==========================
    part           parameters                         operations for each token
    =============  =================================  ==========================
    attention      L (2 D² + 2 D Hk E) + biases       2 · its matrices
    scores         none                               4 L N D  (Q Kᵀ and A V)
    feed-forward   L · 2 D F (gated: 3 D F) + biases  2 · its matrices
    output         V D, unless tied                   2 V D
    =============  =================================  ==========================
    """
    N = config.context if N is None else N
    D, F, L, V = config.d_model, config.d_hidden, config.layers, config.vocab
    kv = config.n_kv_heads * config.d_head
    attention = 2 * D * D + 2 * D * kv
    mlp = (3 if config.gated else 2) * D * F
    attention_bias = 2 * D + 2 * kv if config.bias else 0
    mlp_bias = D + (2 if config.gated else 1) * F if config.bias else 0
    norm = D * (2 if config.norm == "layer" and config.bias else 1)
    parameters = {
        "embedding": V * D + (config.context * D if config.position == "learned" else 0),
        "attention": L * (attention + attention_bias),
        "mlp": L * (mlp + mlp_bias),
        "norms": (2 * L + config.pre_norm) * norm,
        "output": 0 if config.tied else V * D,
    }
    tokens = batch * N
    flops = {
        "attention": 2 * L * attention * tokens,
        "scores": 4 * L * N * D * tokens,
        "mlp": 2 * L * mlp * tokens,
        "output": 2 * V * D * tokens,
    }
    size = np.dtype(dtype).itemsize
    weights = sum(parameters.values()) * size
    memory = {"weights": weights, "gradients": weights, "AdamW": 2 * weights,
              "KV cache": 2 * L * kv * tokens * size}
    return Cost(parameters, flops, memory)
