"""Shared feed-forward layers: equal to copied ones, and their gradient to the sum over the copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor, no_grad
from minattn.testing import check_causal, check_grads
from minattn.transformer import Config, EncoderDecoder, TranslationStep
from minattn.transformer.block import Block
from minattn.transformer.shared_ffn import (
    PLANS,
    FFNSharing,
    OneWideTransformer,
    SharedBlock,
    ffn_flops,
    ffn_parameter_count,
    naive_gradient,
    naive_logits,
)

pytestmark = pytest.mark.paper(79)

SMALL = Config(vocab=7, context=6, layers=2, heads=2, d_model=4, d_mlp=3, activation="relu")
PARTS = ("up.weight", "up.bias", "down.weight", "down.bias")


def make(config: Config, sharing="OneWide", seed: int = 0, **options) -> OneWideTransformer:
    """A model in float64 whose weights are large enough for everything to matter."""
    model = OneWideTransformer(config, sharing=sharing, rng=np.random.default_rng(seed), **options)
    rng = np.random.default_rng(seed + 1)
    model.to(np.float64)
    for p in model.parameters():
        p.data = p.data + 0.4 * rng.standard_normal(p.shape)
    return model


def tokens(B: int, M: int, N: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, SMALL.vocab, (B, M)), rng.integers(0, SMALL.vocab, (B, N))


def ffn_arrays(model: OneWideTransformer) -> list[np.ndarray]:
    """The weights of all distinct feed-forward layers."""
    return [p.data for name, p in model.named_parameters() if ".mlp." in name]


def users(model: OneWideTransformer) -> list[tuple[str, int]]:
    """The names of the layers that have a feed-forward layer, with its number in the plan."""
    sides = (("encoder.blocks", model.sharing.encoder), ("blocks", model.sharing.decoder))
    return [(f"{side}.{n}.mlp", use) for side, uses in sides for n, use in enumerate(uses) if use is not None]


# ---- shared = copied


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("plan", PLANS)
def test_logits_equal_the_naive_model_whose_layers_hold_copies(plan, pre_norm):
    for heads, B, M, N in ((2, 3, 5, 4), (1, 1, 1, 1), (4, 2, 1, 6), (1, 1, 6, 1)):
        model = make(replace(SMALL, heads=heads, pre_norm=pre_norm), plan)
        source, ids = tokens(B, M, N)
        got, state = model(source, ids).data, model.state_dict()
        want = np.stack([naive_logits(s, t, state, (2, 2), heads, pre_norm)
                         for s, t in zip(source, ids, strict=True)])
        assert want.std() > 0.1
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layers", [(1, 2), (3, 1), (4, 2)])
def test_sides_of_other_depths_equal_the_naive_model(layers):
    for plan, group in (("SharedEncNoDec", None), ("SharedEncSharedDec", 2), ("SharedEncDec", 3)):
        sharing = FFNSharing.named(plan, *layers, group=group)
        model = make(replace(SMALL, layers=layers[1]), sharing)
        assert (len(model.encoder.blocks), len(model.blocks)) == layers
        assert model.encoder.config.layers == layers[0] and len(model.new_caches()) == layers[1]
        assert model.encoder.embed.token.weight is model.embed.token.weight
        source, ids = tokens(1, 4, 3)
        want = naive_logits(source[0], ids[0], model.state_dict(), layers, 2)
        np.testing.assert_allclose(model(source, ids).data[0], want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("plan", ["SharedEncDec", "SharedEncSharedDec", "OneWide"])
def test_gradient_of_a_shared_layer_is_the_sum_over_its_naive_copies(plan, pre_norm):
    config = replace(SMALL, d_mlp=2, pre_norm=pre_norm)
    model = make(config, plan)
    source, ids = tokens(1, 3, 2)
    logits = model(source, ids)
    cotangent = np.random.default_rng(5).standard_normal(logits.shape)
    logits.backward(cotangent)
    state, by_use = model.state_dict(), {}
    for name, use in users(model):
        by_use.setdefault(use, []).append(name)
    for names in by_use.values():
        shared = model.get_submodule(names[0])
        for part in PARTS:
            copies = [naive_gradient(f"{name}.{part}", cotangent[0], source[0], ids[0], state, (2, 2), 2,
                                     pre_norm) for name in names]
            assert min(np.abs(c).max() for c in copies) > 1e-4  # each use contributes
            layer, kind = part.split(".")
            got = getattr(getattr(shared, layer), kind).grad
            np.testing.assert_allclose(got, sum(copies), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("plan", ["SharedEnc", "SharedDec", "SharedEncSharedDec", "SharedEncDec"])
def test_a_shared_layer_equals_untied_copies_values_and_all_gradients(plan, pre_norm):
    config = replace(SMALL, pre_norm=pre_norm, activation="gelu")
    shared = make(config, plan)
    untied = EncoderDecoder(config, rng=np.random.default_rng(9)).to(np.float64)
    untied.load_state_dict(shared.state_dict())
    source, ids = tokens(3, 5, 4, seed=3)
    lengths = np.array([5, 2, 1])
    a, b = shared(source, ids, lengths), untied(source, ids, lengths)
    np.testing.assert_allclose(a.data, b.data, rtol=1e-11, atol=1e-11)
    cotangent = np.random.default_rng(6).standard_normal(a.shape)
    a.backward(cotangent)
    b.backward(cotangent)
    copies = dict(untied.named_parameters())
    alias = {name: {p_name for p_name, q in shared.named_parameters(unique=False) if q is p}
             for name, p in shared.named_parameters()}
    for name, p in shared.named_parameters():
        want = sum(copies[n].grad for n in alias[name] if n in copies)
        assert np.abs(want).max() > 1e-6 or "k_proj.bias" in name  # a softmax does not see them
        np.testing.assert_allclose(p.grad, want, rtol=1e-10, atol=1e-11)


def test_second_derivatives_pass_through_a_shared_layer():
    model = make(replace(SMALL, activation="gelu", d_mlp=2), "SharedEncDec")
    source, ids = tokens(1, 3, 2)
    layer = model.blocks[0].mlp.up

    def f(weight):
        layer.__dict__["weight"] = weight
        return model(source, ids)

    check_grads(f, layer.weight.data, order=2, rtol=1e-5)


# ---- what comes out in the limits


@pytest.mark.parametrize("pre_norm", [True, False])
def test_sharing_within_one_layer_is_the_baseline(pre_norm):
    config = replace(SMALL, pre_norm=pre_norm, layers=1)
    source, ids = tokens(2, 5, 3)
    for plan in ("Baseline", "SharedEnc", "SharedDec", "SharedEncSharedDec"):
        assert FFNSharing.named(plan, 1) == FFNSharing.named("Baseline", 1)
        got = OneWideTransformer(config, sharing=plan, rng=np.random.default_rng(4))
        want = EncoderDecoder(config, rng=np.random.default_rng(4))
        np.testing.assert_array_equal(got(source, ids).data, want(source, ids).data)


def test_the_baseline_is_an_encoder_decoder_and_all_plans_begin_alike():
    source, ids = tokens(2, 5, 3)
    plain = EncoderDecoder(SMALL, rng=np.random.default_rng(4))
    baseline = OneWideTransformer(SMALL, sharing="Baseline", rng=np.random.default_rng(4))
    np.testing.assert_array_equal(baseline(source, ids).data, plain(source, ids).data)
    start = plain.state_dict()
    for plan in PLANS:
        model = OneWideTransformer(SMALL, sharing=plan, rng=np.random.default_rng(4))
        for name, value in model.state_dict().items():
            if ".mlp." not in name:
                np.testing.assert_array_equal(value, start[name])
        if model.sharing.widen == 1:
            for name, use in users(model):
                first = next(n for n, u in users(model) if u == use)
                state = model.state_dict()
                for part in PARTS:
                    np.testing.assert_array_equal(state[f"{name}.{part}"], start[f"{first}.{part}"])


def test_a_wide_layer_begins_on_the_same_scale():
    config = replace(SMALL, d_model=32, d_mlp=64)
    ffn = OneWideTransformer(config, rng=np.random.default_rng(0)).encoder.blocks[0].mlp
    assert ffn.up.weight.shape == (256, 32) and ffn.down.weight.shape == (32, 256)
    assert abs(ffn.up.weight.data.std() / 0.02 - 1) < 0.03
    assert abs(ffn.down.weight.data.std() / 0.01 - 1) < 0.03  # σ/√(2 · 2 layers)
    assert not ffn.up.bias.data.any() and not ffn.down.bias.data.any()


def test_a_group_of_one_shares_nothing():
    for plan in ("SharedEnc", "SharedDec", "SharedEncSharedDec", "SharedEncDec"):
        grouped = FFNSharing.named(plan, 3, 2, group=1)
        assert grouped == FFNSharing.named("Baseline", 3, 2)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_without_ffns_a_block_is_its_attention(pre_norm):
    """The residual step and the norm vanish too: in the order of 2017 the norm would still be seen."""
    config = replace(SMALL, pre_norm=pre_norm)
    block = Block(config, rng=np.random.default_rng(0)).to(np.float64)
    x = np.random.default_rng(1).standard_normal((2, 5, 4))
    bare = SharedBlock(block, None)
    want = x + block.attn(block.norm1(x)).data if pre_norm else block.norm1(x + block.attn(x)).data
    np.testing.assert_allclose(bare(x).data, want, rtol=1e-13, atol=1e-13)
    assert bare.mlp is None and bare.norm2 is None
    assert {n for n, _ in bare.named_parameters()} == {
        n for n, _ in block.named_parameters() if not n.startswith(("mlp", "norm2"))}
    np.testing.assert_array_equal(SharedBlock(block, block.mlp)(x).data, block(x).data)
    assert block.mlp is not None and block.norm2 is not None  # what was taken over is left as it was


# ---- counts


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(PLANS)), st.integers(1, 4), st.integers(1, 3),
       st.sampled_from(["relu", "swiglu"]), st.booleans(), st.sampled_from([None, 1, 5]))
def test_counts_equal_array_sizes(plan, Ne, Nd, activation, bias, d_mlp):
    config = replace(SMALL, layers=Nd, activation=activation, bias=bias, d_mlp=d_mlp)
    sharing = FFNSharing.named(plan, Ne, Nd)
    model = OneWideTransformer(config, sharing=sharing, rng=np.random.default_rng(0))
    assert sum(a.size for a in ffn_arrays(model)) == ffn_parameter_count(config, sharing)
    assert type(ffn_parameter_count(config, sharing)) is int
    matrices = {side: sum(p.size for block in blocks if block.mlp for n, p in block.mlp.named_parameters()
                          if n.endswith("weight"))
                for side, blocks in (("encoder", model.encoder.blocks), ("decoder", model.blocks))}
    assert ffn_flops(config, sharing) == {side: 2 * n for side, n in matrices.items()}


@pytest.mark.parametrize("Ne, Nd", [(1, 1), (2, 2), (6, 6), (12, 2)])
def test_one_wide_restores_the_budget_but_for_biases(Ne, Nd):
    D, F = SMALL.d_model, SMALL.d_hidden
    baseline, wide = FFNSharing.named("Baseline", Ne, Nd), FFNSharing.named("OneWide", Ne, Nd)
    assert ffn_parameter_count(SMALL, baseline) == (Ne + Nd) * (2 * D * F + F + D)
    assert ffn_parameter_count(SMALL, baseline) - ffn_parameter_count(SMALL, wide) == (Ne + Nd - 1) * D
    assert wide == replace(FFNSharing.named("SharedEncNoDec", Ne, Nd), widen=Ne + Nd)
    shared = ffn_parameter_count(SMALL, FFNSharing.named("SharedEncNoDec", Ne, Nd))
    assert shared * (Ne + Nd) == ffn_parameter_count(SMALL, baseline)
    assert ffn_parameter_count(SMALL, FFNSharing.named("NoEncNoDec", Ne, Nd)) == 0


def test_the_hidden_size_of_the_paper():
    big = Config(vocab=10, context=4, layers=6, heads=16, d_model=1024, d_mlp=4096, activation="relu")
    wide = FFNSharing.named("OneWide", 6)
    assert wide.widen * big.d_hidden == 49152
    assert ffn_flops(big, wide) == {"encoder": 6 * 4 * 1024 * 49152, "decoder": 0}


# ---- plans


def test_plans_of_three_and_two_layers():
    expected = {
        "Baseline": ((0, 1, 2), (3, 4)),
        "SharedEnc": ((0, 0, 0), (3, 4)),
        "SharedDec": ((0, 1, 2), (3, 3)),
        "SharedEncSharedDec": ((0, 0, 0), (3, 3)),
        "SharedEncDec": ((0, 0, 0), (0, 0)),
        "NoEnc": ((None,) * 3, (3, 4)),
        "NoDec": ((0, 1, 2), (None,) * 2),
        "NoEncNoDec": ((None,) * 3, (None,) * 2),
        "SharedEncNoDec": ((0, 0, 0), (None,) * 2),
        "OneWide": ((0, 0, 0), (None,) * 2),
    }
    assert set(expected) == set(PLANS)
    for name, (encoder, decoder) in expected.items():
        plan = FFNSharing.named(name, 3, 2)
        assert (plan.encoder, plan.decoder, plan.widen) == (encoder, decoder, 5 if name == "OneWide" else 1)
    assert FFNSharing.named("Baseline", 2) == FFNSharing((0, 1), (2, 3))


def test_groups_share_within_themselves():
    named = FFNSharing.named
    assert named("SharedEnc", 5, 1, group=2) == FFNSharing((0, 0, 1, 1, 2), (5,))
    assert named("SharedEncSharedDec", 4, group=2) == FFNSharing((0, 0, 1, 1), (4, 4, 5, 5))
    assert named("SharedEncDec", 3, 3, group=2) == FFNSharing((0, 0, 1), (1, 2, 2))
    assert named("SharedDec", 1, 3, group=9) == named("SharedDec", 1, 3)
    assert named("OneWide", 4, 2, group=2) == FFNSharing((0, 0, 1, 1), (None, None), widen=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=5),
       st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=5))
def test_widening_keeps_the_number_of_hidden_units(encoder, decoder):
    plan = FFNSharing(tuple(encoder), tuple(decoder))
    layers, distinct = len(encoder) + len(decoder), len({*encoder, *decoder} - {None})
    assert sorted(plan.ffns) == sorted({*encoder, *decoder} - {None})
    if distinct and layers % distinct == 0:
        assert plan.wide().widen * distinct == layers
        assert (plan.wide().encoder, plan.wide().decoder) == (plan.encoder, plan.decoder)
    else:
        with pytest.raises(ValueError, match=f"divides {layers} layers, got {distinct}"):
            plan.wide()


def test_ffns_come_in_the_order_of_their_first_use():
    assert FFNSharing((3, None, 1), (3, 0)).ffns == [3, 1, 0]


def test_lists_become_tuples_and_plans_can_be_compared():
    plan = FFNSharing([0, None], [1])
    assert plan == FFNSharing((0, None), (1,)) and hash(plan) == hash(FFNSharing((0, None), (1,)))


# ---- used as a model


@pytest.mark.parametrize("plan", ["SharedEncDec", "OneWide", "NoEncNoDec"])
def test_the_target_is_causal(plan):
    model = make(SMALL, plan)
    source, ids = tokens(2, 5, 6)
    check_causal(lambda t: model(source, t), ids, change=lambda t: (t + 1) % 7)


@pytest.mark.parametrize("plan", ["SharedEncDec", "OneWide"])
@pytest.mark.parametrize("cuts", [[1], [2, 3], [1, 2, 3, 4, 5]])
def test_decoding_in_pieces_with_a_cache_equals_one_pass(plan, cuts):
    model = make(SMALL, plan).eval()
    source, ids = tokens(2, 5, 6)
    lengths = np.array([5, 2])
    with no_grad():
        step, caches = TranslationStep(model, source, lengths), model.new_caches()
        pieces = [model.decode(piece, step.memory, lengths, caches) for piece in np.split(ids, cuts, 1)]
        got = np.concatenate([getattr(p, "data", p) for p in pieces], 1)
        assert [cache.length for cache in caches] == [6, 6]
        whole = model(source, ids, lengths)
        np.testing.assert_allclose(got, getattr(whole, "data", whole), atol=1e-12)


def test_a_source_vocabulary_of_its_own():
    model = make(replace(SMALL, layers=1), FFNSharing.named("OneWide", 3, 1), source_vocab=5)
    assert model.encoder.embed.token.weight.shape == (5, 4) and model.embed.token.weight.shape == (7, 4)
    source, ids = tokens(1, 4, 3)
    want = naive_logits(source[0] % 5, ids[0], model.state_dict(), (3, 1), 2)
    np.testing.assert_allclose(model(source % 5, ids).data[0], want, rtol=1e-11, atol=1e-11)


def test_weights_go_into_a_file_once_and_come_back(tmp_path):
    model, other = make(SMALL), make(SMALL, seed=7)
    model.save(tmp_path / "wide.safetensors")
    other.load(tmp_path / "wide.safetensors")
    source, ids = tokens(2, 5, 3)
    np.testing.assert_array_equal(model(source, ids).data, other(source, ids).data)
    assert other.encoder.blocks[0].mlp is other.encoder.blocks[1].mlp


def test_dropout_is_drawn_for_each_use():
    config = replace(SMALL, dropout=0.5)
    model = OneWideTransformer(config, sharing="SharedEncDec", rng=np.random.default_rng(0))
    source, ids = tokens(2, 5, 3)
    assert np.abs(model(source, ids).data - model(source, ids).data).max() > 0
    model.eval()
    np.testing.assert_array_equal(model(source, ids).data, model(source, ids).data)


def test_every_use_of_a_shared_layer_can_be_watched():
    model = make(SMALL, "SharedEncDec")
    _, cache = model.run_with_cache(*tokens(1, 5, 3))
    hidden = {name: value.shape for name, value in cache.items() if "mlp.hook_hidden" in name}
    first = "encoder.blocks.0.mlp.hook_hidden"
    assert list(hidden) == [first, f"{first}:1", f"{first}:2", f"{first}:3"]
    assert list(hidden.values()) == [(1, 5, 3), (1, 5, 3), (1, 3, 3), (1, 3, 3)]


# ---- the naive form itself


def test_naive_gradient_is_the_slope_of_naive_logits():
    model = make(replace(SMALL, layers=1), FFNSharing.named("Baseline", 1))
    source, ids = tokens(1, 3, 2)
    state, name = model.state_dict(), "blocks.0.mlp.down.weight"
    cotangent = np.random.default_rng(2).standard_normal((2, 7))
    direction = np.random.default_rng(3).standard_normal(state[name].shape)

    def value(h):
        moved = {**state, name: state[name] + h * direction}
        return np.sum(cotangent * naive_logits(source[0], ids[0], moved, (1, 1), 2))

    before = {key: array.copy() for key, array in state.items()}
    slope = (value(1e-6) - value(-1e-6)) / 2e-6
    got = naive_gradient(name, cotangent, source[0], ids[0], state, (1, 1), 2)
    assert abs(slope) > 1e-2 and got.dtype == np.float64
    np.testing.assert_allclose(np.sum(got * direction), slope, rtol=1e-7)
    for key, array in state.items():
        np.testing.assert_array_equal(array, before[key])


def test_large_scores_stay_finite_and_equal():
    model = make(SMALL)
    for block in (*model.encoder.blocks, *model.blocks):
        block.attn.q_proj.weight.data *= 5000.0
    source, ids = tokens(1, 5, 4)
    got = model(source, ids).data[0]
    want = naive_logits(source[0], ids[0], model.state_dict(), (2, 2), 2)
    assert np.isfinite(want).all()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


# ---- bad input


@pytest.mark.parametrize("make_plan, error, message", [
    (lambda: FFNSharing((), (0,)), ValueError,
     "encoder: expected a number or None for each layer, got no layer"),
    (lambda: FFNSharing((0,), ()), ValueError,
     "decoder: expected a number or None for each layer, got no layer"),
    (lambda: FFNSharing((0.5,), (0,)), TypeError, "encoder: expected integers and None, got 0.5"),
    (lambda: FFNSharing((0,), (True,)), TypeError, "decoder: expected integers and None, got True"),
    (lambda: FFNSharing((0, -1), (0,)), ValueError, "encoder: expected numbers of at least 0, got -1"),
    (lambda: FFNSharing((0,), (0,), 0), ValueError, "widen: expected at least 1, got 0"),
    (lambda: FFNSharing((0,), (0,), 1.5), TypeError, "widen: expected an integer, got 1.5"),
    (lambda: FFNSharing((0,), (0,), True), TypeError, "widen: expected an integer, got True"),
    (lambda: FFNSharing.named("SharedAll", 2), ValueError,
     f"name: expected one of {', '.join(PLANS)}, got 'SharedAll'"),
    (lambda: FFNSharing.named("Baseline", 0), ValueError,
     "encoder_layers, decoder_layers: expected at least 1 each, got 0 and 0"),
    (lambda: FFNSharing.named("Baseline", 1, 0), ValueError,
     "encoder_layers, decoder_layers: expected at least 1 each, got 1 and 0"),
    (lambda: FFNSharing.named("SharedEnc", 2, group=0), ValueError, "group: expected at least 1, got 0"),
    (lambda: FFNSharing.named("NoEnc", 2, group=2), ValueError,
     "group: expected None, since NoEnc shares nothing, got 2"),
    (lambda: FFNSharing((None,), (None,)).wide(), ValueError,
     "wide: expected a number of feed-forward layers that divides 2 layers, got 0"),
    (lambda: OneWideTransformer(SMALL, sharing=FFNSharing((0,), (0,) * 3), rng=np.random.default_rng(0)),
     ValueError, "sharing: expected a plan for config.layers=2 layers of the decoder, got one for 3"),
    (lambda: OneWideTransformer(SMALL, sharing="Wide", rng=np.random.default_rng(0)),
     ValueError, f"name: expected one of {', '.join(PLANS)}, got 'Wide'"),
])
def test_bad_plans_are_refused(make_plan, error, message):
    with pytest.raises(error) as caught:
        make_plan()
    assert str(caught.value) == message


def test_tensor_in_tensor_out():
    model = make(SMALL)
    assert isinstance(model(*tokens(1, 2, 2)), Tensor)
