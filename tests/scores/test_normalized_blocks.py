"""Blocks that pool in six ways, number by number; what they add to a token at initialisation."""

import math

import numpy as np
import pytest

from minattn.attention import causal, naive_attention
from minattn.autograd import Tensor, grad
from minattn.scores.normalized import naive_normalized_attention
from minattn.scores.normalized_blocks import (
    KINDS,
    NormalizedAttention,
    PoolingBlock,
    RowNorm,
    isolation_ratio,
    pooling_baselines,
)
from minattn.testing import check_grads

pytestmark = pytest.mark.paper(37)

D, H = 6, 2


def rng(seed=0):
    return np.random.default_rng(seed)


def enlarged(module, seed=1):
    """In float64, with weights and gains large enough for everything to matter."""
    draw = rng(seed)
    for _, p in module.to(np.float64).named_parameters():
        p.data = p.data + 0.4 * draw.standard_normal(p.shape)
    return module


def by_hand(kind, x, state):
    """The block on one sequence x (N, D), from the formulas of its docstring."""
    N = len(x)

    def linear(rows, name):
        return rows @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(rows, name):
        centred = rows - rows.mean(-1, keepdims=True)
        rows = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return rows * state[f"{name}.weight"] + state[f"{name}.bias"]

    def gelu(rows):
        return np.vectorize(lambda t: t * 0.5 * (1 + math.erf(t / math.sqrt(2))))(rows)

    def heads(rows):
        return rows.reshape(N, H, D // H).transpose(1, 0, 2)[None]

    if kind in ("sum", "max"):
        branch = x.sum(0) if kind == "sum" else x.max(0)
    else:
        q, k, v = (heads(linear(x, f"pool.{c}_proj")) for c in "qkv")
        if kind == "nap":
            mixed = naive_normalized_attention(q, k, v, state["pool.normalizer.gain"],
                                               state["pool.normalizer.bias"])
        elif kind == "non":
            scores = np.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(D // H)
            mixed = np.einsum("bhij,bhjd->bhid", scores, v) / math.sqrt(N)
        else:
            mixed = naive_attention(q, k, v)
        branch = mixed[0].transpose(1, 0, 2).reshape(N, D)
        if kind in ("nap", "mte"):
            branch = norm(branch, "pool.out_proj.0")
        if kind != "bert":
            branch = gelu(branch)
        last = {"nap": "pool.out_proj.2", "mte": "pool.out_proj.2", "non": "pool.out_proj.1",
                "bert": "pool.out_proj"}[kind]
        branch = linear(branch, last)
    if kind == "bert":
        x = norm(x + branch, "norm1")
        return norm(x + linear(gelu(linear(x, "up")), "down"), "norm2")
    x = x + norm(branch, "norm1")
    return x + norm(linear(gelu(norm(linear(x, "up"), "norm_mlp")), "down"), "norm2")


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_its_formula(kind):
    block = enlarged(PoolingBlock(kind, D, H, rng=rng()))
    for N in (1, 2, 5):
        x = rng(2).standard_normal((2, N, D))
        got = block(x).data
        np.testing.assert_allclose(got, np.stack([by_hand(kind, row, block.state_dict()) for row in x]),
                                   atol=1e-10)
    others = [enlarged(PoolingBlock(k, D, H, rng=rng()))(x).data for k in KINDS if k != kind]
    assert all(np.abs(got - other).max() > 1e-3 for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_everything(kind):
    block, x = enlarged(PoolingBlock(kind, D, H, rng=rng())), rng(3).standard_normal((2, 4, D))
    check_grads(block, x, order=1)
    names, params = zip(*block.named_parameters(), strict=True)
    found = grad(block(x), list(params), rng(4).standard_normal(x.shape))
    dead = {name for name, g in zip(names, found, strict=True) if np.abs(g.data).max() < 1e-9}
    # A key's bias adds the same to all scores of a query, which neither softmax nor NAP sees.
    assert dead == ({"pool.k_proj.bias"} if kind in ("nap", "mte", "bert") else set())


def test_normalized_attention_is_multi_head_attention_with_a_row_norm():
    module, x = enlarged(NormalizedAttention(D, H, rng=rng())), rng(5).standard_normal((2, 5, D))
    assert isinstance(module.normalizer, RowNorm)
    assert {n for n, _ in module.named_parameters()} >= {"normalizer.gain", "normalizer.bias"}
    _, seen = module.run_with_cache(x, names=("hook_weights", "hook_q", "hook_k"))
    scores = seen["hook_q"] @ seen["hook_k"].swapaxes(-1, -2)  # no 1/√D
    gain, bias = module.normalizer.gain.data, module.normalizer.bias.data
    want = ((scores - scores.mean(-1, keepdims=True)) / (scores.std(-1, keepdims=True) + 1e-3)
            * gain[:, None, None] + bias[:, None, None])
    np.testing.assert_allclose(seen["hook_weights"], want, atol=1e-12)
    masked = module(x, mask_mod=causal).data
    np.testing.assert_allclose(module(x[:, :3], mask_mod=causal).data, masked[:, :3], atol=1e-12)
    assert RowNorm(3).eps == 1e-3
    np.testing.assert_array_equal(RowNorm(3).gain.data, 1)
    np.testing.assert_array_equal(RowNorm(3).bias.data, 0)


def test_competitors_have_about_as_many_parameters():
    def size(block):
        return sum(p.data.size for p in block.parameters())

    others, own = pooling_baselines(64, 4, rng=rng()), size(PoolingBlock("nap", 64, 4, rng=rng()))
    assert list(others) == ["bert", "mte", "non", "sum", "max"]
    assert all(block.kind == kind for kind, block in others.items())
    assert all(abs(size(block) / own - 1) < 0.02 for block in others.values())
    assert others["sum"].up.weight.shape == (385, 64)  # about 6 · 64
    assert others["bert"].up.weight.shape == (256, 64)


def test_initial_weights():
    for block, std in ((PoolingBlock("nap", 64, 4, rng=rng()), 0.02),
                       (pooling_baselines(64, 4, std=0.5, rng=rng())["bert"], 0.5)):
        layers = [block.up, block.down, block.pool.q_proj, block.pool.v_proj]
        for layer in layers:
            assert layer.weight.data.std() == pytest.approx(std, rel=0.05)
            assert abs(layer.weight.data.mean()) < std / 10
            np.testing.assert_array_equal(layer.bias.data, 0)
    default = pooling_baselines(64, 4, rng=rng())["max"]
    assert default.up.weight.data.std() == pytest.approx(0.02, rel=0.05)


def tokens(n, seed=6):
    x = rng(seed).standard_normal((2, n, 64)).astype(np.float32)
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_isolation_ratio_is_of_the_branch_and_the_token(kind):
    block, x = PoolingBlock(kind, 64, 4, std=0.1, rng=rng()), tokens(9)
    pooled = block.pool(x).data if kind not in ("sum", "max") else block.pool(x)
    branch = np.broadcast_to(pooled if kind in KINDS[:4] else block.norm1(pooled).data, x.shape)
    assert isolation_ratio(block, x) == pytest.approx(np.sqrt((branch**2).sum() / (x**2).sum()), rel=1e-5)
    raw = isolation_ratio(block, x, raw_heads=True)
    if kind in ("sum", "max"):
        pooled = np.broadcast_to(pooled, x.shape)
        assert raw == pytest.approx(np.linalg.norm(pooled) / np.linalg.norm(x), rel=1e-5)
    else:
        heads = block.run_with_cache(x, names="pool.hook_heads")[1]["pool.hook_heads"]
        assert raw == pytest.approx(np.linalg.norm(heads) / np.linalg.norm(x), rel=1e-5)
    assert not isinstance(raw, Tensor) and raw != isolation_ratio(block, x)


def test_long_sequences_begin_isolated_with_a_softmax_alone():
    def fall(kind):
        block = PoolingBlock(kind, 64, 4, rng=rng())
        return isolation_ratio(block, tokens(256)) / isolation_ratio(block, tokens(16))

    assert fall("bert") == pytest.approx(1 / 4, rel=0.2)
    assert fall("nap") == pytest.approx(1, rel=0.1) and fall("sum") == pytest.approx(1, rel=0.01)


def test_mistakes():
    with pytest.raises(ValueError, match=r"^kind: expected one of nap, bert, .*max, got 'mean'$"):
        PoolingBlock("mean", D, H, rng=rng())
    with pytest.raises(ValueError, match=r"^d_model: "):
        PoolingBlock("nap", 5, 2, rng=rng())
