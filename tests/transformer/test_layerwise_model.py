"""GPT with layerwise shortcuts: the last block by loops, its reductions to a plain GPT, caches, reports."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import document, padding
from minattn.autograd import Tensor, no_grad
from minattn.nn import AdamW, HookPoint
from minattn.testing import check_causal, check_grads
from minattn.transformer import GPT, Config, LayerwiseShortcutGPT, generate
from minattn.transformer.layerwise import naive_final_block

pytestmark = pytest.mark.paper(154)

SMALL = Config(vocab=11, context=9, layers=3, heads=2, d_model=6)
ROPE = replace(SMALL, d_model=8, position="rope", norm="rms", activation="swiglu", kv_heads=1, bias=False,
               tied=False)
ALIBI = replace(SMALL, position="alibi", pre_norm=False)
SHORTCUTS = ("context+depth", "depth")


def make(mode="context+depth", config=SMALL, seed=0, **how):
    """A model in float64 whose weights, layer embedding included, are large enough to matter."""
    return enlarged(LayerwiseShortcutGPT(config, mode, rng=np.random.default_rng(seed), **how))


def enlarged(model):
    model = model.to(np.float64)
    for name, p in model.named_parameters():
        p.data = p.data + 0.3 * np.random.default_rng([len(name), p.size]).standard_normal(p.shape)
    return model


def ids(B, N, seed=0):
    return np.random.default_rng(seed).integers(0, SMALL.vocab, (B, N))


def streams_of(model, x):
    """h⁽⁰⁾ … h⁽ᴸ⁻¹⁾, collected from outside, by hooks."""
    names = ("embed.hook_embed", *(f"blocks.{n}.hook_resid_post" for n in range(model.config.layers - 1)))
    _, seen = model.run_with_cache(x, names=names)
    return [seen[name] for name in names]


@pytest.mark.parametrize("mode", SHORTCUTS)
@pytest.mark.parametrize("B, N, heads", [(1, 1, 1), (2, 5, 2), (1, 7, 3)])
def test_the_last_block_equals_the_loops(mode, B, N, heads):
    model, x = make(mode, replace(SMALL, heads=heads)), ids(B, N)
    state = model.blocks[-1].state_dict()
    want = np.stack([naive_final_block([h[b] for h in streams_of(model, x)], state, heads,
                                       model.layer_embed.data, mode) for b in range(B)])
    with model.hooked({"blocks.2.hook_resid_post": lambda out: np.testing.assert_allclose(
            out.data, want, rtol=1e-10, atol=1e-10)}):
        logits = model(x)
    mean, var = want.mean(-1, keepdims=True), want.var(-1, keepdims=True)
    normed = (want - mean) / np.sqrt(var + 1e-5) * model.norm.weight.data + model.norm.bias.data
    np.testing.assert_allclose(logits.data, normed @ model.embed.token.weight.data.T, rtol=1e-10, atol=1e-10)
    assert N == 1 or np.ptp(logits.data, axis=1).min() > 1e-3


@pytest.mark.parametrize("mode", SHORTCUTS)
@pytest.mark.parametrize("how", [{}, {"feature_maps": 5}, {"layers": [0, 2]}])
def test_gradients_of_every_parameter(mode, how):
    model, x = make(mode, replace(SMALL, layers=3, d_model=4), **how), ids(2, 3)
    named = dict(model.named_parameters())

    def forward(*values):  # the values take the place of the parameters, so that gradients reach them
        for name, value in zip(named, values, strict=True):
            *path, last = name.split(".")
            owner = model.get_submodule(".".join(path)) if path else model
            object.__setattr__(owner, last, value)
        object.__setattr__(model.head, "weight", model.embed.token.weight)
        return model(x)

    check_grads(forward, *(p.data.copy() for p in named.values()), order=1, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("config", [SMALL, ROPE, ALIBI])
def test_last_is_a_plain_gpt_exactly(config):
    plain, model = (f(config, rng=np.random.default_rng(3))
                    for f in (GPT, lambda c, rng: LayerwiseShortcutGPT(c, "last", rng=rng)))
    assert plain.state_dict().keys() == model.state_dict().keys()
    np.testing.assert_array_equal(model(ids(2, 7)).data, plain(ids(2, 7)).data)
    for one in (plain, model):
        one.loss(ids(2, 7), ids(2, 7, 1)).backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        np.testing.assert_array_equal(a.grad, b.grad)


@pytest.mark.parametrize("config", [SMALL, ROPE, ALIBI])
def test_the_last_layer_alone_on_offer_is_a_plain_gpt(config):
    """The general path with S = 1 and e = 0; with e ≠ 0 it is another model."""
    plain = enlarged(GPT(config, rng=np.random.default_rng(3)))
    model = LayerwiseShortcutGPT(config, layers=[2], rng=np.random.default_rng(4)).to(np.float64)
    report = model.load_state_dict(plain.state_dict(), strict=False)
    assert list(report.missing) == ["layer_embed"] and not report.unexpected
    np.testing.assert_allclose(model(ids(2, 7)).data, plain(ids(2, 7)).data, rtol=1e-11, atol=1e-11)
    model.layer_embed.data = np.ones((1, config.d_model)) * np.arange(config.d_model)
    assert np.abs(model(ids(2, 7)).data - plain(ids(2, 7)).data).max() > 1e-3


@pytest.mark.parametrize("config", [SMALL, ROPE, ALIBI])
def test_silent_blocks_leave_an_ordinary_last_block(config):
    """If the earlier blocks add nothing and e = 0, every key is there L times: as if it were there once."""
    config = replace(config, pre_norm=True)
    plain = enlarged(GPT(config, rng=np.random.default_rng(3)))
    for block in plain.blocks[:-1]:
        for layer in (block.attn.out_proj, block.mlp.down):
            for p in layer.parameters():
                p.data = np.zeros_like(p.data)
    model = LayerwiseShortcutGPT(config, rng=np.random.default_rng(4)).to(np.float64)
    model.load_state_dict(plain.state_dict(), strict=False)
    np.testing.assert_allclose(model(ids(2, 7)).data, plain(ids(2, 7)).data, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(model.depth_report(ids(2, 7)).p, 1 / 3, rtol=1e-12)
    model.layer_embed.data = np.random.default_rng(0).standard_normal(model.layer_embed.shape)
    assert np.abs(model(ids(2, 7)).data - plain(ids(2, 7)).data).max() > 1e-3


@pytest.mark.parametrize("mode", SHORTCUTS)
def test_without_keys_all_layers_weigh_the_same(mode):
    model = make(mode)
    assert np.ptp(model.depth_report(ids(2, 7)).p, axis=-1).min() > 1e-4
    model.blocks[-1].attn.k_proj.weight.data[:] = 0
    report = model.depth_report(ids(2, 7))
    np.testing.assert_allclose(report.p, 1 / 3, rtol=1e-12)
    np.testing.assert_allclose(report.entropy(), np.log(3), rtol=1e-12)


@pytest.mark.parametrize("config", [SMALL, ROPE, ALIBI])
@pytest.mark.parametrize("mode", SHORTCUTS)
def test_causality(mode, config):
    model = make(mode, config)
    check_causal(lambda x: model(x).data, ids(2, 7), change=lambda t: (t + 1) % SMALL.vocab)


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(1, 8)), st.sampled_from(SHORTCUTS), st.sampled_from([SMALL, ROPE, ALIBI]),
       st.sampled_from([None, [0, 2], [1]]))
def test_any_split_gives_the_same_and_uses_the_cache(cuts, mode, config, layers):
    model, x = make(mode, config, layers=layers, feature_maps=3), ids(2, 9)
    whole, caches = model(x).data, model.new_caches()
    assert len(caches) == 3 and not caches[-1].length
    seen = []
    with no_grad(), model.hooked({"blocks.2.attn.hook_k": lambda k: seen.append(k.shape[2])}):
        pieces = [model(piece, caches=caches).data for piece in np.split(x, sorted(cuts), axis=1)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, rtol=1e-10, atol=1e-10)
    S = len(model.layers)
    assert seen == [S * n for n in np.diff([0, *sorted(cuts), 9])]  # new keys only
    assert [c.length for c in caches] == [9, 9, 0 if mode == "depth" else 9 * S]


@pytest.mark.parametrize("mode", SHORTCUTS)
def test_what_the_cache_holds_is_what_counts(mode):
    """Spoilt entries of the last block's cache change the output: they are read, not computed afresh."""
    model, x, caches = make(mode), ids(1, 6), None
    with no_grad():
        outs = []
        for spoil in (False, True):
            caches = model.new_caches()
            model(x[:, :5], caches=caches)
            if mode == "depth":
                assert caches[-1].memory == 0  # nothing is kept that nobody reads
                return
            if spoil:
                caches[-1].read().values[:, :, 4] += 1
            outs.append(model(x[:, 5:], caches=caches).data)
    assert np.abs(outs[0] - outs[1]).max() > 1e-3


@pytest.mark.parametrize("mode", SHORTCUTS)
def test_generation_with_and_without_the_cache(mode):
    model = make(mode)
    with_cache, without = (generate(model, ids(2, 3), 6, cache=c, rng=np.random.default_rng(0))
                           for c in (True, False))
    np.testing.assert_array_equal(with_cache, without)
    assert with_cache.shape == (2, 9) and len(np.unique(with_cache[:, 3:])) > 1


def test_a_cache_of_another_kind_or_with_gradients_is_refused():
    model = make()
    with pytest.raises(RuntimeError, match="gradients"):
        model(ids(1, 2), caches=model.new_caches())


def test_a_position_that_may_not_see_itself_reads_nothing_in_depth():
    model, x, at = make("depth"), ids(1, 7), "blocks.2.attn.hook_heads"

    def not_four(b, h, i, j):
        return j != 4

    for cut in ([7], [2], [5]):
        caches = model.new_caches()
        with no_grad():
            seen = [model.run_with_cache(part, names=at, caches=caches, mask_mod=not_four)[1][at]
                    for part in np.split(x, cut, axis=1) if part.size]
        assert (np.concatenate(seen, 2) != 0).any((0, 1, 3)).tolist() == [n != 4 for n in range(7)]


@pytest.mark.parametrize("mode", ["last", *SHORTCUTS])
def test_masks_reach_every_block(mode):
    """Two documents in one sequence equal the two apart (no position table: each starts afresh)."""
    model, x = make(mode, replace(SMALL, position="none")), ids(1, 7)
    together = model(x, mask_mod=document(np.array([0, 0, 0, 1, 1, 1, 1]))).data
    np.testing.assert_allclose(together[:, :3], model(x[:, :3]).data, atol=1e-12)
    np.testing.assert_allclose(together[:, 3:], model(x[:, 3:]).data, atol=1e-12)
    assert np.abs(together - model(x).data)[:, 3:].max() > 1e-3
    caches = model.new_caches()
    with no_grad():
        halves = [model(part, mask_mod=padding(np.array([4])), caches=caches).data
                  for part in np.split(x, [2], axis=1)]
    np.testing.assert_allclose(np.concatenate(halves, 1), model(x, mask_mod=padding(np.array([4]))).data,
                               atol=1e-12)


@pytest.mark.parametrize("config", [SMALL, ROPE, ALIBI])
@pytest.mark.parametrize("mode", ["last", *SHORTCUTS])
def test_padding_before_a_sequence_is_not_seen(mode, config):
    model, x, pad = make(mode, config), ids(3, 7), np.array([0, 2, 5])
    got = model(x, pad=pad).data
    for b, n in enumerate(pad):
        np.testing.assert_allclose(got[b : b + 1, n:], model(x[b : b + 1, n:]).data, atol=1e-12)
    caches = model.new_caches()
    with no_grad():
        halves = [model(part, caches=caches, pad=pad).data for part in np.split(x, [4], axis=1)]
    halves = np.concatenate(halves, 1)
    for b, n in enumerate(pad):
        np.testing.assert_allclose(halves[b, n:], got[b, n:], atol=1e-12)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_feature_maps_are_added_to_each_layer(pre_norm):
    """Maps whose output weights are zero change nothing; others give keys of h + MLP(h)."""
    config = replace(SMALL, pre_norm=pre_norm)
    model, bare = make(feature_maps=5, config=config), make(config=config)
    own = {name: p for name, p in model.state_dict().items() if not name.startswith("maps.")}
    bare.load_state_dict(own)
    x = ids(2, 5)
    assert len(model.maps) == 3 and model.maps[0].up.weight.shape == (5, 6)
    with_maps, without = model(x).data, bare(x).data
    assert np.abs(with_maps - without).max() > 1e-3
    h = streams_of(model, x)
    rows = np.stack([h[n] + model.maps[n](h[n]).data for n in range(3)], 2) + model.layer_embed.data
    if pre_norm:
        rows = model.blocks[-1].norm1(rows).data
    want = (rows @ model.blocks[-1].attn.k_proj.weight.data.T + model.blocks[-1].attn.k_proj.bias.data)
    _, seen = model.run_with_cache(x, names="blocks.2.attn.hook_k")
    got = seen["blocks.2.attn.hook_k"]
    np.testing.assert_allclose(got[:, 1], want.reshape(2, 15, 6)[..., 3:], atol=1e-12)
    for f in model.maps:
        for p in f.down.parameters():
            p.data = np.zeros_like(p.data)
    np.testing.assert_allclose(model(x).data, without, atol=1e-13)


def test_initial_weights_are_those_of_a_gpt():
    plain = GPT(SMALL, rng=np.random.default_rng(5)).state_dict()
    model = LayerwiseShortcutGPT(SMALL, layers=[1, 2], feature_maps=400, rng=np.random.default_rng(5))
    state = model.state_dict()
    for name, value in plain.items():
        np.testing.assert_array_equal(state[name], value)
    extra = state.keys() - plain.keys()
    assert {n for n in extra if not n.startswith("maps.")} == {"layer_embed"}
    assert state["layer_embed"].shape == (2, 6) and not state["layer_embed"].any()
    assert state["layer_embed"].dtype == np.float32
    assert state["maps.1.up.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert state["maps.1.down.weight"].std() == pytest.approx(0.02 / np.sqrt(6), rel=0.1)
    assert not state["maps.0.up.bias"].any()


def test_parameters_differ_by_the_layer_embedding_alone():
    count = {mode: LayerwiseShortcutGPT(SMALL, mode, rng=np.random.default_rng(0)).num_parameters()
             for mode in ("last", *SHORTCUTS)}
    assert count["last"] == GPT(SMALL, rng=np.random.default_rng(0)).num_parameters()
    assert count["depth"] == count["context+depth"] == count["last"] + 3 * 6


@pytest.mark.parametrize("mode", SHORTCUTS)
def test_hooks_of_the_last_block_are_called(mode):
    model, x = make(mode), ids(2, 5)
    _, seen = model.run_with_cache(x)
    block = {name.removeprefix("blocks.2."): a.shape for name, a in seen.items()}
    assert block["attn.hook_q"] == block["attn.hook_heads"] == (2, 2, 5, 3)
    assert block["attn.hook_k"] == block["attn.hook_v"] == (2, 2, 15, 3)
    assert block["attn.hook_weights"] == ((10, 2, 1, 3) if mode == "depth" else (2, 2, 5, 15))
    for at in ("pre", "mid", "post"):
        assert block[f"hook_resid_{at}"] == (2, 5, 6)
        changed = model.run_with_hooks(x, hooks={f"blocks.2.hook_resid_{at}": lambda h: h * np.arange(6)})
        assert np.abs(changed.data - model(x).data).max() > 1e-3
    for hook in ("q", "k", "v", "heads"):
        changed = model.run_with_hooks(x, hooks={f"blocks.2.attn.hook_{hook}": lambda h: h * np.arange(3)})
        assert np.abs(changed.data - model(x).data).max() > 1e-4
    assert isinstance(model.blocks[2].attn.hook_q, HookPoint)


def test_dropout_acts_in_training_and_not_in_reports():
    model = make(config=replace(SMALL, dropout=0.5))
    x = ids(2, 5)
    assert np.abs(model(x).data - model(x).data).max() > 1e-3
    np.testing.assert_array_equal(model.depth_report(x).p, model.depth_report(x).p)
    assert model.training and model.eval().depth_report(x) and not model.training
    np.testing.assert_array_equal(model(x).data, model(x).data)


def test_it_trains():
    model = LayerwiseShortcutGPT(SMALL, "depth", rng=np.random.default_rng(0))
    optimizer = AdamW(model.parameters(), lr=1e-2)
    x, losses = np.tile(ids(1, 9), (4, 1)), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(x[:, :-1], x[:, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] and np.abs(model.layer_embed.data).max() > 1e-3


# ---- reports


def test_the_report_is_the_sum_of_weights():
    """p_i(l) against the weights that a hook sees."""
    for config in (SMALL, ROPE, ALIBI):
        for mode in SHORTCUTS:
            model, x = make(mode, config, layers=[0, 2]), ids(2, 5)
            report = model.depth_report(x)
            _, seen = model.run_with_cache(x, names="blocks.2.attn.hook_weights")
            w = seen["blocks.2.attn.hook_weights"]
            want = (w.reshape(2, 5, 2, 2).transpose(0, 2, 1, 3) if mode == "depth"
                    else w.reshape(2, 2, 5, 5, 2).sum(3))
            np.testing.assert_allclose(report.p, want, rtol=1e-12)
            np.testing.assert_allclose(report.p.sum(-1), 1, rtol=1e-12)
            assert report.layers == (0, 2) and report.ids is not None
            np.testing.assert_array_equal(report.ids, x)
    last = make("last").depth_report(ids(2, 5))
    assert last.layers == (2,) and last.p == pytest.approx(1) and last.spread() < 1e-12


# ---- bad input


@pytest.mark.parametrize("args, how, message", [
    ((SMALL, "deep"), {}, r"mode: expected one of context\+depth, depth, last, got 'deep'"),
    ((replace(SMALL, layers=1),), {}, "config: expected at least 2 layers, .*, got 1"),
    ((SMALL, "last"), {"layers": [2]}, r"layers: expected none in mode 'last', got \[2\]"),
    ((SMALL, "last"), {"feature_maps": 4}, "feature_maps: expected none in mode 'last', got 4"),
    ((SMALL,), {"layers": []}, r"layers: expected numbers from 0 to 2 in ascending order, got \[\]"),
    ((SMALL,), {"layers": [0, 0]}, r"layers: .*, got \[0, 0\]"),
    ((SMALL,), {"layers": [2, 1]}, r"layers: .*, got \[2, 1\]"),
    ((SMALL,), {"layers": [-1, 2]}, r"layers: .*, got \[-1, 2\]"),
    ((SMALL,), {"layers": [1, 3]}, r"layers: .*, got \[1, 3\]"),
    ((SMALL,), {"feature_maps": 0}, "feature_maps: expected a hidden size of at least 1, got 0"),
])
def test_bad_choices_are_named(args, how, message):
    with pytest.raises(ValueError, match=message):
        LayerwiseShortcutGPT(*args, **how, rng=np.random.default_rng(0))


def test_the_default_reads_all_layers_and_positions():
    model = LayerwiseShortcutGPT(SMALL, rng=np.random.default_rng(0))
    assert (model.mode, model.layers) == ("context+depth", (0, 1, 2))
    assert LayerwiseShortcutGPT(SMALL, "last", rng=np.random.default_rng(0)).layers == (2,)
    assert LayerwiseShortcutGPT(replace(SMALL, layers=2), feature_maps=1, rng=np.random.default_rng(0)).maps
    assert isinstance(model(ids(1, 2)), Tensor)


def test_ids_of_a_report_are_checked():
    with pytest.raises(ValueError, match="ids: expected integers of shape"):
        make().depth_report(np.zeros(3))
