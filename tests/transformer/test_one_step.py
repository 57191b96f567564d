"""One position through a block in two compiled calls, against the readable block."""

from dataclasses import replace

import numpy as np
import pytest

from minattn import nn
from minattn.attention import AppendCache, RingCache, WindowCache, causal
from minattn.autograd import Tensor, no_grad
from minattn.transformer import GPT, Config, block
from minattn.transformer.block import Block
from minattn.transformer.one_step import _whole, one_step
from minattn.transformer.pretrained.packing import pack_model

pytest.importorskip("numba")

LLAMA = Config(vocab=50, context=64, layers=2, heads=4, kv_heads=2, d_model=64, d_mlp=96, norm="rms",
               activation="swiglu", position="rope", bias=False)


@pytest.fixture
def taken(monkeypatch):
    """Whether each call of a block took the short way."""
    seen = []

    def spy(*args):
        out = one_step(*args)
        seen.append(out is not None)
        return out

    monkeypatch.setattr(block, "one_step", spy)
    return seen


def llama(config=LLAMA, weights="float32", seed=0):
    model = GPT(config, rng=np.random.default_rng(seed)).eval()
    for n, p in enumerate(model.parameters()):  # larger than at first: attention is then far from uniform
        p.data = (8 * p.data if p.ndim == 2 else 1 + 0.3 * np.sin(n + np.arange(p.size))).astype(p.dtype)
    return pack_model(model, weights)


def in_steps(model, ids, caches, cuts):
    """Logits of all positions, computed piece by piece."""
    with no_grad():
        return np.concatenate([model(part, caches=caches).data for part in np.split(ids, cuts, 1)], 1)


def readable(model, ids, caches, cuts, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(block, "one_step", lambda *args: None)
        return in_steps(model, ids, caches, cuts)


CONFIGS = {
    "grouped heads": LLAMA,
    "one key head": replace(LLAMA, kv_heads=1),
    "a key head each": replace(LLAMA, kv_heads=4),
    "one head": replace(LLAMA, heads=1, kv_heads=1),
    "heads of another size": replace(LLAMA, head_size=32, d_mlp=32, norm_eps=1e-2),
    "another base": replace(LLAMA, rope_base=100.0, d_mlp=160, tied=False),
}
CACHES = {"append": AppendCache, "reserved": lambda: AppendCache(30), "window": lambda: WindowCache(5),
          "ring": lambda: RingCache(5), "ring with sinks": lambda: RingCache(4, 2)}


@pytest.mark.parametrize("weights", ["float32", "float16", "q4"])
@pytest.mark.parametrize("case", CONFIGS)
def test_equals_the_readable_block(case, weights, taken, monkeypatch):
    model = llama(CONFIGS[case], weights)
    ids = np.random.default_rng(1).integers(0, 50, (2, 20))
    want = readable(model, ids, model.new_caches(), [7, 8, 12], monkeypatch)
    got = in_steps(model, ids, model.new_caches(), [7, 8, *range(12, 20)])
    layers = model.config.layers
    assert taken == layers * [False] + layers * [True] + layers * [False] + 8 * layers * [True]
    assert want.std() > 0.5
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("cuts", [[1, 2, 3, 9, 10], list(range(1, 16))])
def test_caches_and_cuts(kind, cuts, taken, monkeypatch):
    model = llama()
    ids = np.random.default_rng(2).integers(0, 50, (3, 16))
    want = readable(model, ids, [CACHES[kind]() for _ in range(2)], cuts, monkeypatch)
    caches = [CACHES[kind]() for _ in range(2)]
    got = in_steps(model, ids, caches, cuts)
    assert sum(taken) == 2 * sum(np.diff([0, *cuts, 16]) == 1) and caches[0].length == 16
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_keys_and_values_in_the_cache_are_those_of_the_readable_block(monkeypatch, taken):
    model, caches, others = llama(), [AppendCache(), AppendCache()], [AppendCache(), AppendCache()]
    ids = np.random.default_rng(3).integers(0, 50, (2, 6))
    in_steps(model, ids, caches, range(1, 6))
    readable(model, ids, others, range(1, 6), monkeypatch)
    for cache, other in zip(caches, others, strict=True):
        for got, want in zip(cache.read(), other.read(), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    assert all(taken)


def test_large_scores_and_a_long_past(taken, monkeypatch):
    model = llama()
    for p in (model.blocks[0].attn.q_proj.weight, model.blocks[0].attn.k_proj.weight):
        p.data = 12 * p.data
    ids = np.random.default_rng(4).integers(0, 50, (1, 200))
    want = readable(model, ids, model.new_caches(), [190], monkeypatch)
    got = in_steps(model, ids, model.new_caches(), range(190, 200))
    assert taken[-1]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4 * np.abs(want).max())


# ---- when it does not serve


def stepped(model, taken, caches=None, ids=None, **how):
    """Whether a single position took the short way."""
    caches = model.new_caches() if caches is None else caches
    del taken[:]
    model(np.array([[1]]) if ids is None else ids, caches=caches, **how)
    return any(taken)


def test_a_hook_anywhere_is_served_by_the_readable_block(taken):
    model = llama()
    names = [name for name, _ in model.named_modules() if name.startswith("blocks.")]
    assert len(names) > 50 and "blocks.0.attn.hook_scores" in names and "blocks.1.mlp.gate" in names
    with no_grad():
        assert stepped(model, taken)
        for name in names:
            seen = []
            with model.hooked({name: lambda x, seen=seen: seen.append(1)}):
                del taken[:]
                model(np.array([[1]]), caches=model.new_caches())
            assert seen and taken.count(False) == 1 and taken[int(name[7])] is False, name
        assert stepped(model, taken)
        _, found = model.run_with_cache(np.array([[1]]), caches=model.new_caches())
        assert found["blocks.1.attn.hook_weights"].shape == (1, 4, 1, 1)


def test_gradients_are_served_by_the_readable_block(taken):
    model = llama()
    with pytest.raises(RuntimeError, match="without gradients"):
        model(np.array([[1]]), caches=model.new_caches())
    assert not any(taken)
    model.requires_grad_(False)
    assert not stepped(model, taken)


class Counting(AppendCache):
    """A cache of someone else."""


@pytest.mark.parametrize(("change", "name"), [
    ({"norm": "layer"}, "norm"), ({"bias": True}, "bias"), ({"activation": "geglu"}, "activation"),
    ({"position": "learned"}, "position"), ({"pre_norm": False}, "order"), ({"activation": "silu"}, "mlp")])
def test_other_blocks(change, name, taken):
    model = GPT(replace(LLAMA, **change), rng=np.random.default_rng(0)).eval()
    with no_grad():
        assert not stepped(model, taken), name


def test_what_else_it_does_not_know(taken, monkeypatch):
    model = llama()
    with no_grad():
        assert not stepped(model, taken, [Counting(), Counting()])
        assert not stepped(model, taken, mask_mod=causal)
        assert not stepped(model, taken, ids=np.ones((1, 2), int))
        assert stepped(model, taken, ids=np.ones((4, 1), int))
        assert not stepped(model, taken, ids=np.ones((5, 1), int))
        monkeypatch.setattr(model.blocks[0].attn, "normalizer", "sigmoid")
        monkeypatch.setattr(model.blocks[1].attn.position, "interleaved", True)
        assert not stepped(model, taken)
        assert not stepped(llama().to(np.float64), taken)
        turned = llama()
        for b in turned.blocks:
            b.mlp.down.weight.data = np.asfortranarray(b.mlp.down.weight.data)
        assert not stepped(turned, taken)
        mixed = llama()
        mixed.blocks[0].norm1 = nn.RMSNorm(64, affine=False)
        mixed.blocks[1].mlp.up = pack_model(nn.Sequential(mixed.blocks[1].mlp.up), "q4")[0]
        assert not stepped(mixed, taken)


@pytest.mark.parametrize("kind", CACHES)
def test_keys_of_a_buffer_are_not_copied(kind):
    cache = CACHES[kind]()
    for n in (3, 1, 1, 1):
        new = np.random.default_rng(n).standard_normal((2, 3, n, 4)).astype(np.float32)
        keys = cache.append(new, new).keys
        whole = _whole(keys, cache._k)
        assert whole.flags.c_contiguous
        np.testing.assert_array_equal(whole[:, :, : keys.shape[2]], keys)
    assert (whole is cache._k) is (kind != "window")


def test_dropout_counts_in_training_alone(taken):
    model = GPT(replace(LLAMA, dropout=0.5), rng=np.random.default_rng(0))
    with no_grad():
        assert not stepped(model, taken)
        assert stepped(model.eval(), taken)


def test_a_subclass_is_asked_itself(taken):
    class Doubled(Block):
        def _add(self, x, norm, f):
            return 2 * super()._add(x, norm, f)

    doubled = Doubled(LLAMA, rng=np.random.default_rng(0)).eval()
    x = Tensor(np.random.default_rng(0).standard_normal((1, 1, 64)).astype(np.float32))
    with no_grad():
        doubled(x, mask_mod=causal, cache=AppendCache())
    assert taken == []
