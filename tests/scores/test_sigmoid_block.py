"""The block with sigmoid attention and each of its switches."""

import math

import numpy as np
import pytest

from minattn.attention import AppendCache, causal
from minattn.autograd import Tensor, grad, no_grad
from minattn.scores.sigmoid import naive_sigmoid_attention
from minattn.scores.sigmoid_block import SigmoidMultiHeadAttention, SigmoidTransformerBlock
from minattn.testing import check_causal
from minattn.transformer import Block, Config

pytestmark = pytest.mark.paper(117)

CONFIG = {"vocab": 9, "context": 16, "layers": 1, "heads": 2, "d_model": 8}


def made(seed=0, position="rope", **how):
    """A block in float64 whose weights are large enough to matter, and an input."""
    rng = np.random.default_rng(seed)
    block = SigmoidTransformerBlock(Config(**CONFIG, position=position), rng=rng, **how).to(np.float64)
    for _, p in block.named_parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    return block, rng.standard_normal((2, 5, 8))


def test_starts_with_the_weights_of_a_block():
    config = Config(**CONFIG)
    ours = SigmoidTransformerBlock(config, rng=np.random.default_rng(1)).state_dict()
    theirs = Block(config, rng=np.random.default_rng(1)).state_dict()
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("hybrid_norm", [False, True])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_equals_its_formula(qk_norm, hybrid_norm, layer_scale):
    block, x = made(position="none", qk_norm=qk_norm, hybrid_norm=hybrid_norm, layer_scale=layer_scale)
    w = block.state_dict()

    def norm(t, name):
        t = (t - t.mean(-1, keepdims=True)) / np.sqrt(t.var(-1, keepdims=True) + 1e-5)
        return t * w[f"{name}.weight"] + w[f"{name}.bias"]

    def project(t, name):
        return t @ w[f"attn.{name}.weight"].T + w[f"attn.{name}.bias"]

    h = norm(x, "norm1")
    q, k, v = (project(h, f"{c}_proj").reshape(2, 5, 2, 4).transpose(0, 2, 1, 3) for c in "qkv")
    if qk_norm:
        q, k = (t / np.sqrt((t * t).mean(-1, keepdims=True) + 1e-6) for t in (q, k))
    heads = naive_sigmoid_attention(q, k, v, -math.log(16), mask_mod=causal)
    mixed = project(heads.transpose(0, 2, 1, 3).reshape(2, 5, 8), "out_proj")
    mixed = norm(mixed, "out_norm") if hybrid_norm else mixed
    gain, gain_mlp = (w[f"scales.{n}.weight"] if layer_scale else 1.0 for n in (0, 1))
    middle = x + gain * mixed
    want = middle + gain_mlp * block.mlp(Tensor(norm(middle, "norm2"))).data
    np.testing.assert_allclose(block(x, mask_mod=causal).data, want, atol=1e-12)
    assert ("out_norm.weight" in w) == hybrid_norm
    assert ("scales.1.weight" in w) == (layer_scale is not None)


def test_layer_scale_starts_small():
    block = SigmoidTransformerBlock(Config(**CONFIG), layer_scale=1e-4, rng=np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((2, 5, 8)).astype(np.float32)
    moved = np.abs(block(x).data - x).max()
    assert 0 < moved < 1e-2
    for scale in block.scales:
        np.testing.assert_array_equal(scale.weight.data, np.full(8, 1e-4, np.float32))


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
@pytest.mark.parametrize("b", [None, "visible", -1.0])
def test_causal_and_the_same_in_pieces(position, b):
    block, x = made(position=position, b=b, qk_norm=True, hybrid_norm=True, layer_scale=0.5)
    check_causal(lambda t: block(t, mask_mod=causal), x)
    with no_grad():
        whole, cache = block(x, mask_mod=causal).data, AppendCache()
        parts = [block(x[:, s:t], mask_mod=causal, cache=cache).data for s, t in ((0, 2), (2, 3), (3, 5))]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-12)
    assert cache.length == 5


def test_switches_change_the_output():
    outs = []
    for how in ({}, {"b": 0.0}, {"b": "visible"}, {"qk_norm": True}):
        block, x = made(**how)
        outs.append(block(x, mask_mod=causal).data)
    for m, one in enumerate(outs):
        for other in outs[m + 1 :]:
            assert np.abs(one - other).max() > 1e-3


def test_every_weight_has_a_gradient():
    block, x = made(layer_scale=0.5, hybrid_norm=True)
    out = block(x, mask_mod=causal)
    g = np.random.default_rng(3).standard_normal(out.shape)
    for name, p in block.named_parameters():
        (slope,) = grad(out, [p], g, retain_graph=True)
        assert np.abs(slope.data).max() > 1e-6, name


def test_hooks_see_scores_and_weights():
    block, x = made()
    plain, seen = block(x, mask_mod=causal).data, {}
    for name in ("scores", "weights", "v"):
        getattr(block.attn, f"hook_{name}").register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output.data}))
    np.testing.assert_allclose(block(x, mask_mod=causal).data, plain, atol=1e-12)
    below = np.tril(np.ones((5, 5), bool))
    np.testing.assert_array_equal(seen["scores"] > -np.inf, np.broadcast_to(below, (2, 2, 5, 5)))
    np.testing.assert_allclose(seen["weights"], 0.5 + 0.5 * np.tanh(seen["scores"] / 2), atol=1e-15)


def test_dropout_in_training_alone():
    block = SigmoidTransformerBlock(Config(**CONFIG, dropout=0.5), rng=np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((2, 5, 8)).astype(np.float32)
    assert np.abs(block(x).data - block(x).data).max() > 1e-3
    block.eval()
    np.testing.assert_array_equal(block(x).data, block(x).data)


def test_mistakes():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^config: expected pre_norm=True, got pre_norm=False$"):
        SigmoidTransformerBlock(Config(**CONFIG, pre_norm=False), rng=rng)
    heads = SigmoidMultiHeadAttention(8, 2, b="all", rng=rng)
    with pytest.raises(ValueError, match=r"^b: expected a number, an array or 'visible', got 'all'$"):
        heads(np.ones((1, 5, 8), np.float32))


def test_the_layer_alone_counts_the_keys_at_hand():
    heads = SigmoidMultiHeadAttention(8, 2, rng=np.random.default_rng(0)).to(np.float64)
    x = np.random.default_rng(1).standard_normal((1, 5, 8))
    w, out = heads.state_dict(), heads(x).data
    q, k, v = ((x @ w[f"{c}_proj.weight"].T + w[f"{c}_proj.bias"]).reshape(1, 5, 2, 4).transpose(0, 2, 1, 3)
               for c in "qkv")
    want = naive_sigmoid_attention(q, k, v).transpose(0, 2, 1, 3).reshape(1, 5, 8)
    np.testing.assert_allclose(out, want @ w["out_proj.weight"].T + w["out_proj.bias"], atol=1e-12)
