"""Generation's hot path: one new position through a block in two compiled calls.

`one_step` computes what `Block.forward` computes, for a Llama's block, when nobody looks inside: no
gradient is recorded and no hook listens. It has no arithmetic of its own; that is in
`minattn.kernels.cpu.decoder`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import AppendCache, MultiHeadAttention, RingCache, RoPE, WindowCache, causal
from minattn.autograd import Tensor
from minattn.autograd.engine import Array, Operand, is_grad_enabled, raw
from minattn.kernels.dispatch import compiled
from minattn.kernels.packed import FEW
from minattn.nn.packed import PackedLinear

CACHES = (AppendCache, RingCache, WindowCache)
"""Caches whose `append` of a single position returns what this position may see, all of it."""


def one_step(block: Any, x: Operand, mask_mod: Any, cache: Any) -> Tensor | None:
    """x (B, 1, D) → (B, 1, D) through `block`; None, and nothing has changed, where only the readable form
    serves.

    It serves pre-norm blocks with RMS norms, rotary positions on whole heads, SwiGLU and no biases, in
    float32 with matrices in float32 or packed, up to a few sequences under the causal mask, with the caches
    in `CACHES`.
    """
    if x.shape[1] != 1 or len(x) > FEW or mask_mod is not causal or type(cache) not in CACHES:
        return None
    x, attn, mlp = raw(x), block.attn, block.mlp
    if is_grad_enabled() or not _is_llama(block, attn, mlp) or _watched(block, attn, mlp):
        return None
    layers = (attn.q_proj, attn.k_proj, attn.v_proj, attn.out_proj, mlp.gate, mlp.up, mlp.down)
    w, gains = [_matrix(m) for m in layers], [raw(block.norm1.weight), raw(block.norm2.weight)]
    D = attn.position.dim
    if (any(m is None or m.dtype != w[0].dtype for m in w) or any(a.dtype != np.float32 for a in (x, *gains))
            or (len(w[0]), len(w[2])) != (D * attn.n_heads, D * attn.n_kv_heads)
            or not compiled(x, work=sum(m.size for m in w))):
        return None
    from minattn.kernels.cpu.decoder import enter, leave

    B, rows = len(x), np.ascontiguousarray(x)[:, 0]
    q = np.empty((B, attn.n_heads, D), np.float32)
    k, v = np.empty((2, B, attn.n_kv_heads, D), np.float32)
    enter(rows, gains[0], np.float32(block.norm1.eps), *w[:3], attn.position.theta, cache.length, q, k, v)
    seen = cache.append(k[:, :, None], v[:, :, None])
    out = leave(rows, q, _whole(seen.keys, cache._k), _whole(seen.values, cache._v), seen.keys.shape[2], w[3],
                gains[1], np.float32(block.norm2.eps), *w[4:])
    return Tensor(out[:, None])


def _is_llama(block: Any, attn: Any, mlp: Any) -> bool:
    """Whether the parts are those that the compiled form knows."""
    return (type(attn) is MultiHeadAttention and type(mlp) is nn.SwiGLU and block.pre_norm
            and type(block.norm1) is nn.RMSNorm and type(block.norm2) is nn.RMSNorm
            and block.norm1.weight is not None and block.norm2.weight is not None
            and type(attn.position) is RoPE and not attn.position.interleaved and attn.normalizer == "softmax"
            and not (block.training and (attn.dropout or block.drop.p)))


def _watched(block: Any, attn: Any, mlp: Any) -> bool:
    """Whether a hook listens anywhere in the block."""
    return any(part._forward_hooks for owner in (block, attn, mlp)
               for part in (owner, *(p for p in vars(owner).values() if isinstance(p, nn.Module))))


def _matrix(layer: Any) -> Any:
    """The weights of a linear layer as the kernels take them, or None."""
    if layer.bias is not None:
        return None
    weight = layer.packed if type(layer) is PackedLinear else raw(layer.weight)
    return weight if type(weight) is np.ndarray and weight.flags.c_contiguous else None


def _whole(x: Array, buffer: Array) -> Array:
    """The cache's buffer (B, Hk, size, D) if x (B, Hk, n, D) is the front of it, else x without gaps.

    A front has gaps between the heads; the kernel skips them when it knows the size.
    """
    return buffer if x.base is buffer else np.ascontiguousarray(x)
