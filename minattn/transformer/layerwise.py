"""Layerwise attention shortcuts: the last block of a GPT attends to the outputs of all blocks before it.

With h⁽⁰⁾ the embedding, h⁽ˡ⁾ the residual stream after block l, and L blocks, the last block's attention is

    q_i = W_Q norm(h_i⁽ᴸ⁻¹⁾)        k_lj = W_K norm(h_j⁽ˡ⁾ + e_l)        v_lj = W_V norm(h_j⁽ˡ⁾ + e_l)
    a_i = softmax over all (l, j), j ≤ i, of q_i · k_lj / √D        o_i = Σ_lj a_ilj v_lj

with e_l a learned vector that tells layers apart. Everything else is an ordinary block: the layers that a
query may see are more keys, not more weights.

Verma and Pilanci, Adaptive Large Language Models By Layerwise Attention Shortcuts, arXiv 2409.10870 (paper
154). The vectors e_l and the residual form of the feature maps are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minattn import nn
from minattn.attention import AppendCache, KVCache, attention, both, causal, left_padding
from minattn.attention.masks import MaskMod, at_positions, shifted
from minattn.autograd import no_grad, permute, reshape, stack
from minattn.autograd.engine import Array, Operand, raw

from .block import Block
from .config import Config
from .embed import check_ids, init_gpt2
from .gpt import GPT
from .layerwise_report import DepthReport

__all__ = ["LayerwiseShortcutGPT", "depth_attention", "naive_depth_attention", "naive_depth_gradients",
           "naive_final_block"]

PAPERS = (154,)

MODES = ("context+depth", "depth", "last")


# ---- the naive form: one score at a time


def naive_depth_attention(q: Array, k: Array, v: Array, mode: str = "context+depth") -> np.ndarray:
    """One sequence, in four loops: heads, queries, layers, positions.

    Parameters
    ----------
    q : (H, N, D)
    k, v : (H, N, S, D) and (H, N, S, Dv)
        Keys and values of S layers at every position.
    mode : {"context+depth", "depth", "last"}
        Which pairs of layer and position a query sees; see `depth_attention`.
    """
    H, N, S, Dv = v.shape
    out = np.zeros((H, N, Dv))
    for h in range(H):
        for i in range(N):
            scores, values = [], []
            for layer in range(S):
                for j in range(N):
                    seen = {"context+depth": j <= i, "depth": j == i, "last": j <= i and layer == S - 1}[mode]
                    if seen:
                        product = math.fsum(a * b for a, b in zip(q[h, i], k[h, j, layer], strict=True))
                        scores.append(product / math.sqrt(q.shape[2]))
                        values.append(v[h, j, layer])
            powers = [math.exp(s - max(scores)) for s in scores]
            for d in range(Dv):
                out[h, i, d] = math.fsum(p * x[d] for p, x in zip(powers, values, strict=True)) / sum(powers)
    return out


def naive_depth_gradients(q: Array, k: Array, v: Array, g: Array, mode: str = "context+depth"
                          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of Σ g · o with respect to q, k and v of `naive_depth_attention`, in the same loops.

    With a the weights of a query: ∂/∂v = a g, ∂/∂s = a (g · v − g · o), ∂/∂q = Σ ∂s k / √D.
    """
    (H, N, D), S = q.shape, k.shape[2]
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for h in range(H):
        for i in range(N):
            total, mixed, power = 0.0, 0.0, {}
            for layer in range(S):
                for j in range(N):
                    if j == i or (j < i and mode != "depth"):
                        if mode != "last" or layer == S - 1:
                            power[layer, j] = math.exp(q[h, i] @ k[h, j, layer] / math.sqrt(D))
                            total += power[layer, j]
            for (layer, j), p in power.items():
                mixed += p / total * (g[h, i] @ v[h, j, layer])
            for (layer, j), p in power.items():
                ds = p / total * (g[h, i] @ v[h, j, layer] - mixed) / math.sqrt(D)
                dv[h, j, layer] += p / total * g[h, i]
                dq[h, i] += ds * k[h, j, layer]
                dk[h, j, layer] += ds * q[h, i]
    return dq, dk, dv


def naive_final_block(streams: Sequence[Array], state: dict[str, Array], heads: int, embed: Array,
                      mode: str = "context+depth") -> np.ndarray:
    """The last block on one sequence: streams[l] (N, D) is h⁽ˡ⁾, embed (S, D) holds the vectors e_l.

    `state` holds the weights under the names of ``Block.state_dict()``: pre-norm, layer norms, GELU.
    """
    N, D = streams[-1].shape

    def norm(row, name):
        centred = [r - math.fsum(row) / D for r in row]
        deviation = math.sqrt(math.fsum(c * c for c in centred) / D + 1e-5)
        return [c / deviation * w + b
                for c, w, b in zip(centred, state[f"{name}.weight"], state[f"{name}.bias"], strict=True)]

    def linear(row, name):
        return [math.fsum(w * r for w, r in zip(ws, row, strict=True)) + b
                for ws, b in zip(state[f"{name}.weight"], state[f"{name}.bias"], strict=True)]

    E, S = D // heads, len(streams)
    q = np.zeros((heads, N, E))
    k, v = np.zeros((heads, N, S, E)), np.zeros((heads, N, S, E))
    for i in range(N):
        query = linear(norm(streams[-1][i], "norm1"), "attn.q_proj")
        for h in range(heads):
            q[h, i] = query[h * E : (h + 1) * E]
        for layer, stream in enumerate(streams):
            row = norm(stream[i] + embed[layer], "norm1")
            key, value = linear(row, "attn.k_proj"), linear(row, "attn.v_proj")
            for h in range(heads):
                k[h, i, layer], v[h, i, layer] = key[h * E : (h + 1) * E], value[h * E : (h + 1) * E]
    mixed = naive_depth_attention(q, k, v, mode)
    out = np.zeros((N, D))
    for i in range(N):
        side_by_side = [x for h in range(heads) for x in mixed[h, i]]
        middle = streams[-1][i] + linear(side_by_side, "attn.out_proj")
        hidden = [t * 0.5 * (1 + math.erf(t / math.sqrt(2)))
                  for t in linear(norm(middle, "norm2"), "mlp.up")]
        out[i] = middle + linear(hidden, "mlp.down")
    return out


# ---- the fast form: layers are more keys


def depth_attention(q: Operand, k: Operand, v: Operand, *, mode: str = "context+depth",
                    mask_mod: MaskMod | None = None, score_mod: Callable | None = None,
                    return_weights: bool = False, attend: Callable[..., Any] = attention) -> Any:
    """Causal attention to S layers at once: o_i = Σ_lj a_ilj v_lj, a_i a softmax over pairs (l, j).

    A query sees, according to `mode`,

    ``"context+depth"``  every layer at every position j ≤ i: S (i + 1) keys
    ``"depth"``          every layer at its own position: S keys, O(N S D) for all queries
    ``"last"``           the last of the S layers at every j ≤ i: ordinary causal attention

    Parameters
    ----------
    q : (B, H, N, D)
        Queries, which stand at the last N of the M positions.
    k, v : (B, Hk, M, S, D) and (B, Hk, M, S, Dv)
        Keys and values of each position and layer; Hk divides H.
    mode : {"context+depth", "depth", "last"}
    mask_mod, score_mod : callable, optional
        ``mask_mod(b, h, i, j)`` and ``score_mod(score, b, h, i, j)`` of positions, on top of causality, alike
        for all layers.
    return_weights : bool
        Also return the weights.
    attend : callable, optional
        What computes a masked attention in the shapes of `minattn.attention.attention`, which it is by
        default.

    Returns
    -------
    out : (B, H, N, Dv)
        Or (out, weights), with weights (B, H, N, M, S), in mode "last" (B, H, N, M, 1), in mode "depth"
        (B, H, N, 1, S).

    Raises
    ------
    ValueError
        If the mode is unknown or shapes do not fit.

    References
    ----------
    Verma and Pilanci, arXiv 2409.10870 (paper 154).
    """
    _check_keys(q, k, v, mode)
    more = {"return_weights": True} if return_weights else {}
    if mode == "depth":
        found = _own_position(q, k, v, mask_mod, score_mod, attend, more)
    else:
        if mode == "last":
            k, v = k[:, :, :, -1:], v[:, :, :, -1:]
        found = _every_position(q, k, v, mask_mod, score_mod, attend, more)
    return found if return_weights else found[0]


def _every_position(q: Operand, k: Operand, v: Operand, mask_mod: MaskMod | None, score_mod: Callable | None,
                    attend: Callable[..., Any], more: dict[str, bool]) -> tuple:
    """Layers and positions in one row of keys: key m is layer m % S at position m // S."""
    B, Hk, M, S, D = k.shape
    here, there = np.arange(M - q.shape[2], M), np.arange(M * S) // S
    visible = causal if mask_mod is None else both(causal, mask_mod)
    found = attend(q, reshape(k, (B, Hk, M * S, D)), reshape(v, (B, Hk, M * S, v.shape[-1])),
                   mask_mod=at_positions(visible, here, there),
                   score_mod=score_mod and at_positions(score_mod, here, there), **more)
    if not more:
        return (found,)
    out, weights = found
    return out, reshape(weights, (*weights.shape[:3], M, S))


def _own_position(q: Operand, k: Operand, v: Operand, mask_mod: MaskMod | None, score_mod: Callable | None,
                  attend: Callable[..., Any], more: dict[str, bool]) -> tuple:
    """Positions do not mix, so they join the batch: B · N attentions of one query to S keys."""
    (B, H, N, D), (_, Hk, M, S, Dv) = q.shape, v.shape
    start = M - N

    def place(c: Any) -> tuple[Any, Any]:
        return c // N, start + c % N

    def mask(c: Any, h: Any, i: Any, layer: Any) -> Any:
        b, at = place(c)
        return mask_mod(b, h, at, at)  # type: ignore[misc]

    def score(s: Any, c: Any, h: Any, i: Any, layer: Any) -> Any:
        b, at = place(c)
        return score_mod(s, b, h, at, at)  # type: ignore[misc]

    found = attend(reshape(permute(q, 0, 2, 1, 3), (B * N, H, 1, D)),
                   reshape(permute(k[:, :, start:], 0, 2, 1, 3, 4), (B * N, Hk, S, D)),
                   reshape(permute(v[:, :, start:], 0, 2, 1, 3, 4), (B * N, Hk, S, Dv)),
                   mask_mod=mask_mod and mask, score_mod=score_mod and score, **more)
    out, *weights = found if more else (found,)
    return (permute(reshape(out, (B, N, H, Dv)), 0, 2, 1, 3),
            *(permute(reshape(w, (B, N, H, 1, S)), 0, 2, 1, 3, 4) for w in weights))


def _check_keys(q: Operand, k: Operand, v: Operand, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    for name, x, axes in (("q", q, 4), ("k", k, 5), ("v", v, 5)):
        if np.ndim(raw(x)) != axes:
            kind = "(batch, heads, positions, features)" if axes == 4 else \
                "(batch, heads, positions, layers, features)"
            raise ValueError(f"{name}: expected axes {kind}, got shape {np.shape(raw(x))}")
    if v.shape[:4] != k.shape[:4]:
        raise ValueError(f"v: expected shape {k.shape[:4]} before the features, as in k, got {v.shape}")
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"q: expected at most the {k.shape[2]} positions of k, got {q.shape[2]}")


# ---- the model


class LayerwiseShortcutGPT(GPT):
    """`GPT` whose last block attends to the outputs of several blocks, by `depth_attention`.

    Its weights have the names, shapes and, for the same `rng`, the initial values of `GPT(config)`; besides
    them it has `layer_embed` and, if asked for, the feature maps.

    Parameters
    ----------
    config : Config
        At least two layers.
    mode : {"context+depth", "depth", "last"}
        What a query of the last block sees; "last" is an ordinary GPT.
    layers : sequence of int, optional
        The layers on offer, in ascending order, from 0 (the embedding) to L − 1; all by default.
    feature_maps : int, optional
        Hidden size of a map of each layer's own, h ← h + MLP_l(h), that its output passes before it becomes
        keys and values; none by default.
    rng : numpy.random.Generator
        Source of the initial weights and of dropout.

    Attributes
    ----------
    layer_embed : Parameter (S, D)
        The vectors e_l, zero at first; absent in mode "last", where there is nothing to tell apart.

    Raises
    ------
    ValueError
        If mode, layers or feature maps do not fit.

    References
    ----------
    Verma and Pilanci, arXiv 2409.10870 (paper 154).

    Examples
    --------
    >>> config = Config(vocab=65, context=64, layers=4, heads=4, d_model=128)
    >>> model = LayerwiseShortcutGPT(config, mode="depth", rng=np.random.default_rng(0))
    >>> model(np.zeros((2, 10), int)).shape
    (2, 10, 65)
    """

    def __init__(self, config: Config, mode: str = "context+depth", *, layers: Sequence[int] | None = None,
                 feature_maps: int | None = None, rng: np.random.Generator) -> None:
        self.layers = _chosen(config.layers, mode, layers, feature_maps)
        super().__init__(config, rng=rng)
        self.mode = mode
        if mode == "last":
            return
        self.layer_embed = nn.Parameter(np.zeros((len(self.layers), config.d_model), np.float32))
        if feature_maps is not None:
            self.maps = nn.ModuleList(nn.MLP(config.d_model, feature_maps, rng=rng) for _ in self.layers)
            init_gpt2(self.maps, config.layers, rng)

    def hidden(self, ids: Array, *, mask_mod: MaskMod | None = None, caches: Sequence[KVCache] | None = None,
               pad: Array | None = None) -> Operand:
        """Residual stream (B, N, D) after the last block and norm."""
        if self.mode == "last":
            return super().hidden(ids, mask_mod=mask_mod, caches=caches, pad=pad)
        start = caches[0].length if caches else 0
        streams = [self.embed(ids, start if pad is None else start - np.asarray(pad))]
        mask = causal if mask_mod is None else both(causal, mask_mod)
        mask = mask if pad is None else both(mask, left_padding(pad))
        for n, block in enumerate(self.blocks[:-1]):
            streams.append(block(streams[-1], mask_mod=mask, cache=caches[n] if caches else None))
        x = self._final(streams, start, mask, caches[-1] if caches else None)
        return self.norm(x) if self.config.pre_norm else x

    def _final(self, streams: list[Operand], start: int, mask_mod: MaskMod, cache: KVCache | None) -> Operand:
        """The last block: `Block.forward` with attention to the streams in place of self-attention."""
        block: Block = self.blocks[-1]
        attn, x = block.attn, block.hook_resid_pre(streams[-1])
        here = np.arange(start, start + x.shape[1])

        def shortcuts(h: Operand) -> Operand:
            q = attn.hook_q(attn.position.rotate(attn._heads(attn.q_proj(h), attn.n_heads), here))
            k, v = self._keys_and_values(block, [streams[n] for n in self.layers], here)
            mask = mask_mod
            if self.mode == "depth":  # no earlier position is read, so none is kept
                mask = shifted(mask_mod, start, start)
            elif cache is not None:
                k, v, _ = cache.append(k, v)
            k, v = (reshape(t, (*t.shape[:2], -1, len(self.layers), t.shape[-1])) for t in (k, v))
            heads = attn.hook_heads(depth_attention(q, k, v, mode=self.mode, mask_mod=mask,
                                                    score_mod=attn.position.score_mod, attend=attn._attend))
            B, H, N, Dv = heads.shape
            return attn.out_proj(reshape(permute(heads, 0, 2, 1, 3), (B, N, H * Dv)))

        x = block.hook_resid_mid(block._add(x, block.norm1, shortcuts))
        return block.hook_resid_post(block._add(x, block.norm2, block.mlp))

    def _keys_and_values(self, block: Block, streams: list[Operand], here: np.ndarray
                         ) -> tuple[Operand, Operand]:
        """Keys and values (B, Hk, N · S, D) of the streams, layer after layer for each position."""
        attn, (B, N, D) = block.attn, streams[0].shape
        if hasattr(self, "maps"):
            streams = [h + f(h) for h, f in zip(streams, self.maps, strict=True)]
        x = reshape(stack(streams, 2) + self.layer_embed, (B, N * len(streams), D))
        x = block.norm1(x) if self.config.pre_norm else x
        k = attn._heads(attn.k_proj(x), attn.n_kv_heads)
        v = attn._heads(attn.v_proj(x), attn.n_kv_heads)
        return attn.hook_k(attn.position.rotate(k, np.repeat(here, len(streams)))), attn.hook_v(v)

    def new_caches(self) -> list[KVCache]:
        """An empty cache for each block.

        That of the last holds S keys and values a position, in the order of `layers`, and none in mode
        "depth".
        """
        return [AppendCache() for _ in range(self.config.layers)]

    def depth_report(self, ids: Array) -> DepthReport:
        """Which layers the last block reads at every position of ids (B, N)."""
        ids, attn = check_ids(ids), self.blocks[-1].attn
        at, training = f"blocks.{self.config.layers - 1}.attn", self.training
        self.eval()
        with no_grad():
            _, seen = self.run_with_cache(ids, names=(f"{at}.hook_q", f"{at}.hook_k"))
        self.train(training)
        q, k = seen[f"{at}.hook_q"], seen[f"{at}.hook_k"]
        k = reshape(k, (*k.shape[:2], -1, len(self.layers), k.shape[-1]))
        _, weights = depth_attention(q, k, k, mode=self.mode, score_mod=attn.position.score_mod,
                                     return_weights=True)
        return DepthReport(self.layers, np.asarray(raw(weights)).sum(3), np.asarray(ids))


def _chosen(L: int, mode: str, layers: Sequence[int] | None, feature_maps: int | None) -> tuple[int, ...]:
    """The layers on offer, once all choices are known to fit."""
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if L < 2:
        raise ValueError(f"config: expected at least 2 layers, of which the last attends to others, got {L}")
    if mode == "last":
        for name, given in (("layers", layers), ("feature_maps", feature_maps)):
            if given is not None:
                raise ValueError(f"{name}: expected none in mode 'last', got {given!r}")
        return (L - 1,)
    chosen = tuple(range(L)) if layers is None else tuple(layers)
    if not chosen or list(chosen) != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < L:
        raise ValueError(f"layers: expected numbers from 0 to {L - 1} in ascending order, got {layers!r}")
    if feature_maps is not None and feature_maps < 1:
        raise ValueError(f"feature_maps: expected a hidden size of at least 1, got {feature_maps}")
    return chosen
