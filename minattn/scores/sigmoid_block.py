"""A transformer block with sigmoid attention, and the switches with which the paper makes it train.

    x ← x + γ ⊙ norm(attention(norm(x)))        γ: LayerScale        outer norm: "hybrid"
    x ← x + γ' ⊙ mlp(norm(x))

Ramapuram et al., arXiv 2409.04431 (paper 117).
"""

# mypy: disable-error-code="override"

from __future__ import annotations

from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import MultiHeadAttention
from minattn.attention.masks import MaskMod
from minattn.autograd.engine import Operand
from minattn.kernels import rms_norm
from minattn.transformer import Block, Config
from minattn.transformer.block import make_norm, make_position

from .sigmoid import with_bias

PAPERS = (117,)

__all__ = ["SigmoidMultiHeadAttention", "SigmoidTransformerBlock"]


class SigmoidMultiHeadAttention(MultiHeadAttention):
    """`MultiHeadAttention` by `sigmoid_attention`.

    Parameters
    ----------
    d_model, n_heads, **how
        As in `MultiHeadAttention`, without a normaliser.
    b : float, "visible" or None
        As in `sigmoid_attention`. None is −ln of the number of keys at hand, which grows with a cache: for a
        model of texts give −ln of the length it is trained on.
    qk_norm : bool
        Queries and keys are divided by their root mean square, so that no score exceeds √D. A rotation by
        RoPE keeps these lengths, so the order of the two does not matter.
    """

    def __init__(self, d_model: int, n_heads: int, *, b: Any = None, qk_norm: bool = False,
                 **how: Any) -> None:
        super().__init__(d_model, n_heads, normalizer="sigmoid", **how)
        self.b, self.qk_norm = b, qk_norm

    def _attend(self, q: Operand, k: Operand, v: Operand, *, mask_mod: MaskMod | None = None,
                **how: Any) -> Operand:
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        q, k, scale = with_bias(q, k, self.b, mask_mod, None)
        return super()._attend(q, k, v, mask_mod=mask_mod, scale=scale, **how)


class SigmoidTransformerBlock(Block):
    """`Block` with sigmoid attention; for the same `rng` it starts with the weights of ``Block(config)``.

    Parameters
    ----------
    config : Config
        Of a pre-norm model.
    b : float, "visible" or None
        Bias of the scores; −ln of ``config.context`` if None.
    layer_scale : float, optional
        What γ and γ', vectors of D numbers that multiply what a sublayer adds, start at; the paper's vision
        models have 1e-4. None of them by default.
    qk_norm : bool
        Whether queries and keys are normalised.
    hybrid_norm : bool
        Whether the output of attention is normalised as well as its input.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If the configuration is post-norm.

    References
    ----------
    Ramapuram et al., arXiv 2409.04431 (paper 117).
    """

    def __init__(self, config: Config, *, b: Any = None, layer_scale: float | None = None,
                 qk_norm: bool = False, hybrid_norm: bool = False, rng: np.random.Generator) -> None:
        if not config.pre_norm:
            raise ValueError("config: expected pre_norm=True, got pre_norm=False")
        super().__init__(config, rng=rng)
        own = self.attn.state_dict()
        b = -float(np.log(config.context)) if b is None else b
        self.attn = SigmoidMultiHeadAttention(
            config.d_model, config.heads, n_kv_heads=config.n_kv_heads, d_head=config.d_head,
            bias=config.bias, position=make_position(config), dropout=config.dropout, b=b, qk_norm=qk_norm,
            rng=rng)
        self.attn.load_state_dict(own)
        self.out_norm = make_norm(config) if hybrid_norm else None
        self.scales = nn.ModuleList() if layer_scale is None else nn.ModuleList(
            LayerScale(config.d_model, layer_scale) for _ in range(2))

    def forward(self, x: Operand, *, mask_mod: MaskMod | None = None, cache: Any = None) -> Operand:
        """x (B, N, D) → (B, N, D); see `Block.forward`."""
        x = self.hook_resid_pre(x)
        mixed = self.attn(self.norm1(x), mask_mod=mask_mod, cache=cache)
        mixed = mixed if self.out_norm is None else self.out_norm(mixed)
        x = self.hook_resid_mid(x + self.drop(self._scaled(0, mixed)))
        return self.hook_resid_post(x + self.drop(self._scaled(1, self.mlp(self.norm2(x)))))

    def _scaled(self, n: int, x: Operand) -> Operand:
        return self.scales[n](x) if len(self.scales) else x


class LayerScale(nn.Module):
    """γ ⊙ x, with γ (D) learned from a small number on."""

    def __init__(self, D: int, start: float) -> None:
        self.weight = nn.Parameter(np.full(D, start, np.float32))

    def forward(self, x: Operand) -> Operand:
        return x * self.weight
