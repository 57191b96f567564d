"""GPT: PyTorch's twin, the cache, causality, and what its configuration promises."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minattn.autograd import no_grad
from minattn.nn import AdamW, clip_grad_norm_, decay_groups
from minattn.transformer import GPT, Config

torch = pytest.importorskip("torch", reason="PyTorch is the judge: pip install -e '.[compare]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from torch_gpt import TorchGPT  # noqa: E402

SMALL = Config(vocab=11, context=9, layers=2, heads=2, d_model=6)
VARIANTS = [
    SMALL,
    replace(SMALL, d_model=8, position="rope", norm="rms", activation="swiglu", kv_heads=1, bias=False,
            tied=False),
    replace(SMALL, position="alibi", pre_norm=False),
    replace(SMALL, position="sinusoidal", activation="relu"),
    replace(SMALL, position="none", activation="geglu", heads=1, layers=1),
]


def make(config: Config, seed: int = 0) -> GPT:
    """A model in float64 whose weights are large enough for its outputs to differ."""
    model = GPT(config, rng=np.random.default_rng(seed)).to(np.float64)
    for p in model.parameters():
        p.data = p.data + 0.3 * np.random.default_rng(p.size).standard_normal(p.shape)
    return model


def ids(B: int, N: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SMALL.vocab, (B, N))


@pytest.mark.parametrize("N, heads", [(1, 1), (5, 2), (7, 4)])
def test_block_equals_the_naive_block(N, heads):
    from minattn.attention import causal
    from minattn.transformer.block import Block, naive_block

    block = Block(replace(SMALL, d_model=8, heads=heads), rng=np.random.default_rng(0)).to(np.float64)
    for p in block.parameters():
        p.data = p.data + 0.3 * np.random.default_rng(p.size).standard_normal(p.shape)
    x = np.random.default_rng(1).standard_normal((2, N, 8))
    got = block(x, mask_mod=causal).data
    want = np.stack([naive_block(row, block.state_dict(), heads) for row in x])
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("B, N", [(1, 1), (3, 7), (2, 9)])
def test_logits_and_gradients_equal_pytorch(bias, tied, B, N):
    config = replace(SMALL, bias=bias, tied=tied)
    ours = make(config)
    theirs = TorchGPT(config, ours.state_dict())
    x = ids(B, N)
    cotangent = np.random.default_rng(1).standard_normal((B, N, config.vocab))
    got, want = ours(x), theirs(torch.tensor(x))
    assert np.ptp(got.data) > 0.1
    np.testing.assert_allclose(got.data, want.detach().numpy(), rtol=1e-11, atol=1e-11)
    got.backward(cotangent)
    want.backward(torch.tensor(cotangent))
    for name, p in ours.named_parameters():
        their_name = theirs.names["embed.token.weight" if config.tied and name == "head.weight" else name]
        np.testing.assert_allclose(p.grad, getattr(theirs, their_name).grad.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype, bound", [(np.float64, 1e-9), (np.float32, 2e-3)])
def test_a_hundred_training_steps_equal_pytorch(dtype, bound):
    config = Config(vocab=20, context=16, layers=2, heads=4, d_model=32, bias=False)
    rng = np.random.default_rng(0)
    ours = GPT(config, rng=rng).to(dtype)
    theirs = TorchGPT(config, ours.state_dict())
    params = list(theirs.parameters())
    groups = [{"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.1},
              {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]
    mine = AdamW(decay_groups(ours.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.99))
    other = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    first = None
    for _ in range(100):
        tokens = np.cumsum(rng.integers(0, 3, (8, 17)), 1) % 20  # predictable in part
        x, y = tokens[:, :-1], tokens[:, 1:]
        mine.zero_grad(), other.zero_grad()
        a, b = ours.loss(x, y), theirs.loss(np.ascontiguousarray(x), np.ascontiguousarray(y))
        a.backward(), b.backward()
        clip_grad_norm_(ours.parameters(), 1.0), torch.nn.utils.clip_grad_norm_(params, 1.0)
        mine.step(), other.step()
        first = a.item() if first is None else first
        assert abs(a.item() / b.item() - 1) < bound
    assert a.item() < 0.8 * first


@pytest.mark.parametrize("config", VARIANTS)
def test_the_future_changes_nothing_and_the_past_does(config):
    model = make(config)
    x = ids(2, 8)
    base = model(x).data
    for t in range(8):
        changed = x.copy()
        changed[:, t] = (changed[:, t] + 1) % config.vocab
        out = model(changed).data
        np.testing.assert_array_equal(out[:, :t], base[:, :t])
        assert all(np.abs(out[:, i] - base[:, i]).max() > 1e-6 for i in range(t, 8))


@pytest.mark.parametrize("config", VARIANTS)
@pytest.mark.parametrize("cuts", [[], [1], [3, 4, 5], [7], [1, 2, 3, 4, 5, 6, 7]])
def test_cached_in_any_pieces_equals_uncached(config, cuts):
    model = make(config).eval()
    x = ids(3, 8)
    with no_grad():
        want = model(x).data
        caches = model.new_caches()
        parts = []
        for piece in np.split(x, cuts, axis=1):
            before = caches[0].length
            parts.append(model(piece, caches=caches).data)
            assert all(c.length == before + piece.shape[1] for c in caches)
    np.testing.assert_allclose(np.concatenate(parts, 1), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("config", VARIANTS)
def test_positions_matter_except_without_them(config):
    model = make(replace(config, layers=1))
    x = ids(1, 6)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    apart = np.abs(model(x).data[:, -1] - model(swapped).data[:, -1]).max()
    assert (apart < 1e-12) == (config.position == "none")


def test_hooks_read_and_replace_the_residual_stream_and_heads():
    model = make(SMALL).eval()
    x = ids(2, 5)
    out, cache = model.run_with_cache(x)
    assert cache["blocks.1.attn.hook_weights"].shape == (2, 2, 5, 5)
    np.testing.assert_allclose(cache["blocks.1.attn.hook_weights"].sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(cache["blocks.0.hook_resid_post"], cache["blocks.1.hook_resid_pre"])
    np.testing.assert_allclose(out.data, model(x).data, atol=1e-12)  # attention computed apart or fused
    silenced = model.run_with_hooks(x, hooks={"blocks.0.attn.hook_heads": lambda h: h * 0})
    assert np.abs(silenced.data - out.data).max() > 1e-3


def test_initial_loss_is_that_of_guessing_and_residual_writes_are_scaled():
    config = Config(vocab=50, context=16, layers=8, heads=4, d_model=64)
    model = GPT(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    loss = model.loss(rng.integers(0, 50, (8, 16)), rng.integers(0, 50, (8, 16))).item()
    assert abs(loss - np.log(50)) < 0.05
    state = model.state_dict()
    assert abs(state["blocks.3.attn.out_proj.weight"].std() - 0.02 / 4) < 2e-4
    assert abs(state["blocks.3.mlp.down.weight"].std() - 0.02 / 4) < 2e-4
    assert abs(state["blocks.3.mlp.up.weight"].std() - 0.02) < 5e-4
    assert not state["blocks.3.mlp.up.bias"].any()


@pytest.mark.parametrize("what, message", [
    (lambda: replace(SMALL, heads=4), "d_model: expected a multiple of heads=4, got 6"),
    (lambda: replace(SMALL, kv_heads=3, heads=2), "kv_heads: expected a divisor"),
    (lambda: replace(SMALL, position="rope"), "d_model: rotary positions need an even"),
    (lambda: replace(SMALL, layers=0), "layers: expected at least 1"),
    (lambda: replace(SMALL, position="xpos"), "position: expected one of learned"),
    (lambda: replace(SMALL, activation="gel"), "activation: expected one of"),
    (lambda: make(SMALL)(np.zeros((2, 10), int)), "position"),
    (lambda: make(SMALL)(np.zeros(3, int)), "ids: expected integers of shape"),
    (lambda: make(SMALL)(np.zeros((1, 3))), "ids: expected integers of shape"),
    (lambda: make(SMALL)(np.full((1, 3), 11)), "ids"),
])
def test_bad_input_is_named(what, message):
    with pytest.raises(ValueError, match=message):
        what()
