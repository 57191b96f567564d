"""The regularized encoder–decoder: a language model with all switches on, the model of 2017 with all off."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from minattn.attention import AppendCache, causal
from minattn.autograd import Tensor, no_grad
from minattn.nn import greedy
from minattn.testing import check_causal
from minattn.transformer import GPT, Block, Config, EncoderDecoder, RegularizedEncoderDecoder, TranslationStep
from minattn.transformer.decoder_only import JointBlock, joint_mask, naive_language_model, weighted_loss

pytestmark = pytest.mark.paper(100)

SMALL = Config(vocab=11, context=12, layers=2, heads=2, d_model=6)
OFF = {"causal_source": False, "shared": False, "layerwise": False, "consecutive": False, "joint": False,
       "source_loss": 0.0}
VARIANTS = [
    SMALL,
    replace(SMALL, layers=1, heads=1, bias=False, tied=False),
    replace(SMALL, position="sinusoidal", norm="rms", activation="swiglu", heads=3, kv_heads=1),
    replace(SMALL, position="none", activation="relu"),
    replace(SMALL, pre_norm=False),
]
SHAPES = [(1, 1, 1), (2, 5, 3), (3, 4, 7), (1, 1, 6)]


def shaken(model):
    """The model in float64, its weights large enough for its outputs to differ."""
    model.to(np.float64)
    for n, p in enumerate(model.parameters()):
        p.data = p.data + 0.3 * np.random.default_rng(n).standard_normal(p.shape)
    return model


def make(config=SMALL, **switches) -> RegularizedEncoderDecoder:
    return shaken(RegularizedEncoderDecoder(config, rng=np.random.default_rng(0), **switches))


def draw(B, M, N, seed=0):
    """Source ids (B, M), target ids (B, N) that start with a separator, and targets."""
    rng = np.random.default_rng(seed)
    source, stream = rng.integers(0, 10, (B, M)), rng.integers(0, 10, (B, N + 1))
    stream[:, 0] = 10
    return source, stream[:, :-1].copy(), stream[:, 1:].copy()


def as_stream(source, ids, targets):
    """What a language model reads, and its targets: s_2 … s_m, nothing at s_m, then those of the target."""
    nothing = np.full((len(source), 1), -100)
    return np.concatenate([source, ids], 1), np.concatenate([source[:, 1:], nothing, targets], 1)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def near(got, want, tol=1e-10):
    assert np.ptp(want) > 1e-3, "degenerate"
    np.testing.assert_allclose(got, want, rtol=tol, atol=tol)


# ---- all on: a decoder-only model


@pytest.mark.parametrize("config", VARIANTS, ids=["plain", "one", "gated", "none", "post"])
@pytest.mark.parametrize("B, M, N", SHAPES)
def test_all_on_logits_and_gradients_are_those_of_a_language_model(config, B, M, N):
    red, gpt = make(config), GPT(config, rng=np.random.default_rng(1)).to(np.float64)
    gpt.load_state_dict(red.state_dict())
    source, ids, _ = draw(B, M, N)
    stream = np.concatenate([source, ids], 1)
    got, want = red(source, ids), gpt(stream)[:, M:]
    near(got.data, want.data)
    cotangent = np.random.default_rng(2).standard_normal(got.shape)
    got.backward(cotangent)
    want.backward(cotangent)
    theirs = gradients(gpt)
    assert theirs.keys() == gradients(red).keys()
    for name, grad in gradients(red).items():
        np.testing.assert_allclose(grad, theirs[name], rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("B, M, N", SHAPES)
def test_all_on_is_the_naive_language_model(B, M, N):
    red = make(replace(SMALL, heads=3))
    source, ids, _ = draw(B, M, N)
    want = [naive_language_model([*s, *t], red.state_dict(), 3)[M:] for s, t in zip(source, ids, strict=True)]
    near(red(source, ids).data, np.array(want))


@pytest.mark.parametrize("config", VARIANTS, ids=["plain", "one", "gated", "none", "post"])
def test_a_padded_batch_is_a_language_model_of_each_row(config):
    red, gpt = make(config), GPT(config, rng=np.random.default_rng(1)).to(np.float64)
    gpt.load_state_dict(red.state_dict())
    source, ids, targets = draw(3, 5, 4)
    lengths = np.array([2, 5, 1])
    got, loss = red(source, ids, lengths).data, red.loss(source, ids, targets, lengths).item()
    summed = 0.0
    for b, n in enumerate(lengths):
        row = source[b : b + 1, :n], ids[b : b + 1], targets[b : b + 1]
        near(got[b], gpt(np.concatenate(row[:2], 1)).data[0, n:])
        summed += gpt.loss(*as_stream(*row)).item() * (n - 1 + 4)
    assert loss == pytest.approx(summed / (12 + 1 + 4 + 0), rel=1e-12)


def test_naive_language_model_is_a_gpt_without_biases_too():
    gpt = shaken(GPT(replace(SMALL, bias=False), rng=np.random.default_rng(0)))
    ids = np.random.default_rng(1).integers(0, 11, (1, 7))
    near(naive_language_model(ids[0], gpt.state_dict(), 2), gpt(ids).data[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("B, M, N", SHAPES)
def test_all_on_loss_and_its_gradients_are_those_of_a_language_model(B, M, N, smoothing):
    red, gpt = make(), GPT(SMALL, rng=np.random.default_rng(1)).to(np.float64)
    gpt.load_state_dict(red.state_dict())
    source, ids, targets = draw(B, M, N)
    if N > 1:
        targets[0, 0] = -100
    got = red.loss(source, ids, targets, label_smoothing=smoothing)
    want = gpt.loss(*as_stream(source, ids, targets), label_smoothing=smoothing)
    assert want.item() > 0.1
    np.testing.assert_allclose(got.item(), want.item(), rtol=1e-10)
    got.backward()
    want.backward()
    theirs = gradients(gpt)
    for name, grad in gradients(red).items():
        np.testing.assert_allclose(grad, theirs[name], rtol=1e-10, atol=1e-10, err_msg=name)


def test_loss_slope_is_that_of_the_naive_language_model():
    red = make()
    source, ids, targets = draw(1, 4, 3)
    stream, wanted = as_stream(source, ids, targets)
    red.loss(source, ids, targets).backward()
    rng, state = np.random.default_rng(3), red.state_dict()
    turn = {name: rng.standard_normal(p.shape) for name, p in red.named_parameters()}
    turn["head.weight"] = turn["embed.token.weight"]

    def loss(h):
        logits = naive_language_model(stream[0], {k: v + h * turn[k] for k, v in state.items()}, 2)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        scored = wanted[0] >= 0
        return -logp[scored, wanted[0][scored]].mean()

    slope = np.vdot(np.concatenate([p.grad.ravel() for p in red.parameters()]),
                    np.concatenate([turn[n].ravel() for n, _ in red.named_parameters()]))
    assert abs(slope) > 0.01
    assert slope == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, rel=1e-5)


# ---- all off: the transformer of 2017


@pytest.mark.parametrize("config", VARIANTS, ids=["plain", "one", "gated", "none", "post"])
@pytest.mark.parametrize("padded", [False, True])
def test_all_off_is_an_encoder_decoder(config, padded):
    red, want = make(config, **OFF), EncoderDecoder(config, rng=np.random.default_rng(1)).to(np.float64)
    want.load_state_dict(red.state_dict())
    source, ids, targets = draw(3, 5, 4)
    lengths = np.array([5, 2, 3]) if padded else None
    near(red(source, ids, lengths).data, want(source, ids, lengths).data)
    losses = [model.loss(source, ids, targets, lengths, 0.1) for model in (red, want)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for loss in losses:
        loss.backward()
    theirs = gradients(want)
    assert theirs.keys() == gradients(red).keys()
    for name, grad in gradients(red).items():
        np.testing.assert_allclose(grad, theirs[name], rtol=1e-10, atol=1e-10, err_msg=name)


# ---- each switch by itself


@pytest.mark.parametrize("switch", ["causal_source", "shared", "layerwise", "consecutive", "joint"])
def test_each_switch_matters(switch):
    """Turned alone, from either end, it changes the logits of a model with more than one layer."""
    source, ids, _ = draw(2, 5, 3)
    for ends in ({}, OFF):
        one, other = make(**ends), make(**{**ends, switch: not make(**ends).__dict__[switch]})
        state = {**other.state_dict(), **one.state_dict()}
        if switch == "shared":  # the same weights twice, of which the encoder's are then moved
            state.update({f"encoder.{name}": value for name, value in state.items() if "encoder" not in name
                          and f"encoder.{name}" in state})
            state["encoder.blocks.0.mlp.up.weight"] = state["encoder.blocks.0.mlp.up.weight"] + 0.1
        other.load_state_dict({name: state[name] for name in other.state_dict()})
        assert np.abs(one(source, ids).data - other(source, ids).data).max() > 1e-3, (switch, ends)


SWITCHES = ("causal_source", "shared", "layerwise", "consecutive", "joint")


@pytest.mark.parametrize("on", list(product([False, True], repeat=5)))
def test_every_combination_trains_all_its_weights_and_keeps_the_target_causal(on):
    switches = dict(zip(SWITCHES, on, strict=True))
    red = make(**switches)
    source, ids, targets = draw(2, 4, 3)
    for lengths in (None, np.array([4, 2])):
        red.zero_grad()
        red.loss(source, ids, targets, lengths).backward()
        for name, grad in gradients(red).items():
            assert grad is not None and (grad.any() or name.endswith("k_proj.bias")), name
    check_causal(lambda t: red(source, t), ids, change=lambda t: (t + 1) % 10)
    memory = red.encode(source)
    assert memory.shape == ((2, 2, 4, 6) if switches["layerwise"] else (2, 4, 6))


def test_a_causal_source_hides_what_comes_later():
    source = draw(1, 5, 1)[0]
    for causal_source in (True, False):
        red = make(causal_source=causal_source)
        top = lambda s, red=red: red.encode(s)[:, 1]  # noqa: E731  states that enter the second layer
        if causal_source:
            check_causal(top, source, change=lambda t: (t + 1) % 10)
        else:
            with pytest.raises(AssertionError, match="changing position"):
                check_causal(top, source, change=lambda t: (t + 1) % 10)


def test_layerwise_reads_the_states_that_enter_each_layer():
    red = make()
    source, _, _ = draw(2, 5, 1)
    _, seen = red.run_with_cache(source, np.array([[10], [10]]), names="blocks.*.hook_resid_pre")
    memory = red.encode(source).data
    for n in range(2):  # the encoder runs first, the decoder second
        np.testing.assert_array_equal(memory[:, n], seen[f"blocks.{n}.hook_resid_pre"])


def test_consecutive_positions_start_after_the_source():
    source, ids, _ = draw(1, 5, 3)
    for consecutive, first in ((True, 5), (False, 0)):
        red = make(consecutive=consecutive)
        _, seen = red.run_with_cache(source, ids, names="embed.hook_embed")
        weights = red.state_dict()
        want = (weights["embed.token.weight"][ids]
                + weights["embed.position.weight"][first : first + 3])
        np.testing.assert_allclose(seen["embed.hook_embed:1"], want, atol=1e-15)
    with pytest.raises(ValueError, match="positions below 12"):
        make()(np.zeros((1, 9), int), np.zeros((1, 4), int))
    assert make(consecutive=False)(np.zeros((1, 9), int), np.zeros((1, 4), int)).shape == (1, 4, 11)


def test_shared_weights_are_counted_once():
    shared, own = make(), make(shared=False)
    assert not hasattr(shared, "encoder")
    block = shared.blocks[0].num_parameters()
    assert own.num_parameters() - shared.num_parameters() == 2 * block + 12 * 6 + 2 * 6  # positions, norm
    assert own.encoder.embed.token.weight is own.embed.token.weight
    assert make(joint=False).num_parameters() > shared.num_parameters()


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_source_tokens_count_with_their_weight(weight):
    red = make(consecutive=False, source_loss=weight)
    source, ids, targets = draw(2, 4, 3)
    targets[1, 2] = -100
    lengths = np.array([4, 2])

    def nll(logits, wanted):
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return [-logp[b, i, w] for (b, i), w in np.ndenumerate(wanted) if w >= 0]

    target = nll(red(source, ids, lengths).data, targets)
    inner = np.where(np.arange(1, 4) < lengths[:, None], source[:, 1:], -100)
    entering = red.embed(source)
    for block in red.blocks:
        entering = Block.forward(block, entering, mask_mod=lambda b, h, i, j: (j <= i) & (j < lengths[b]))
    of_source = nll(red.head(red.norm(entering)).data[:, :-1], inner)
    assert len(target) == 5 and len(of_source) == 4
    want = (np.sum(target) + weight * np.sum(of_source)) / (5 + weight * 4)
    assert red.loss(source, ids, targets, lengths).item() == pytest.approx(want, rel=1e-12)


def test_weighted_loss_without_source_tokens():
    logits = Tensor(np.random.default_rng(0).standard_normal((2, 3, 4)))
    targets = np.array([[0, 1, -100], [3, -100, -100]])
    alone = weighted_loss(logits, targets, logits[:, :0], targets[:, :0], 1.0).item()
    assert alone == weighted_loss(logits, targets, logits, targets, 0.0).item() > 0
    assert weighted_loss(logits, targets, logits, np.full((2, 3), -100), 1.0).item() == pytest.approx(alone)
    with pytest.raises(ValueError, match="targets: expected at least one that is not -100"):
        weighted_loss(logits, np.full((2, 3), -100), logits, targets, 1.0)


# ---- joint attention


def test_joint_mask_asks_source_and_target_apart():
    """With masks that depend on all four numbers, for four numbers and for all at once."""

    def target(b, h, i, j):
        return j + b < i + h

    def of_source(b, h, i, j):
        return (b + h + i + j) % 2 == 0

    for source in (None, of_source):
        mask = joint_mask(3, target, source)
        grid = mask(*np.ogrid[:2, :2, :4, :7])
        assert grid.dtype == bool and grid.shape == (2, 2, 4, 7)
        for b, h, i, j in np.ndindex(grid.shape):
            want = (source is None or source(b, h, i, j)) if j < 3 else target(b, h, i, j - 3)
            assert bool(mask(b, h, i, j)) is want is bool(grid[b, h, i, j])


@pytest.mark.parametrize("pre_norm", [True, False])
def test_joint_attention_hides_padding_and_shares_one_softmax(pre_norm):
    red = make(replace(SMALL, pre_norm=pre_norm), consecutive=False)
    source, ids, _ = draw(2, 5, 3)
    lengths = np.array([5, 2])
    _, seen = red.run_with_cache(source, ids, lengths, names="blocks.1.attn.hook_weights")
    weights = seen["blocks.1.attn.hook_weights:1"]
    assert weights.shape == (2, 2, 3, 8)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-12)
    assert (weights[1, :, :, 2:5] == 0).all() and (weights[0, :, :, :5] > 0).all()
    assert (weights[:, :, 0, 6:] == 0).all() and (weights[:, :, 2, 5:] > 0).all()
    other = source.copy()
    other[1, 2:] = (other[1, 2:] + 1) % 10
    np.testing.assert_array_equal(red(other, ids, lengths).data, red(source, ids, lengths).data)


def test_a_joint_block_without_memory_is_a_block():
    block = shaken(JointBlock(SMALL, rng=np.random.default_rng(0)))
    x = np.random.default_rng(1).standard_normal((2, 4, 6))
    mask = causal
    near(block(x, mask_mod=mask).data, Block.forward(block, x, mask_mod=mask).data, 1e-14)
    _, seen = block.run_with_cache(x[:, 2:], mask_mod=mask, memory=x[:, :2], names="hook_resid_*")
    near(seen["hook_resid_post"], block(x, mask_mod=mask).data[:, 2:])
    np.testing.assert_array_equal(seen["hook_resid_pre"], x[:, 2:])
    assert np.abs(seen["hook_resid_mid"] - x[:, 2:]).max() > 0.1
    for how in ({"mask_mod": mask, "cache": AppendCache()}, {}):
        with pytest.raises(ValueError, match="cache, mask_mod: expected no cache and a mask of the target"):
            block(x, memory=x, **how)
    with no_grad():  # without a memory it takes a cache as any block
        cache = AppendCache()
        near(block(x, mask_mod=mask, cache=cache).data, block(x, mask_mod=mask).data, 1e-14)
    assert cache.length == 4


# ---- generation and bad input


def test_generation_is_that_of_the_language_model_with_the_same_weights():
    red, gpt = make(), GPT(SMALL, rng=np.random.default_rng(1)).to(np.float64)
    gpt.load_state_dict(red.state_dict())
    source, ids, _ = draw(2, 4, 1)
    with no_grad():
        got = greedy(TranslationStep(red, source, cache=False), ids, 5)
        want = greedy(lambda t: gpt(t)[:, -1], np.concatenate([source, ids], 1), 5)
    np.testing.assert_array_equal(got, want[:, 4:])


def test_dropout_acts_in_training_alone():
    red = make(replace(SMALL, dropout=0.5))
    source, ids, _ = draw(1, 4, 3)
    red.eval()
    np.testing.assert_array_equal(red(source, ids).data, red(source, ids).data)
    red.train()
    assert np.abs((red(source, ids) - red(source, ids)).data).max() > 1e-3


def test_bad_input_is_refused_by_name():
    source, ids, targets = draw(2, 4, 3)
    for position in ("rope", "alibi"):
        with pytest.raises(ValueError, match=f"config: expected learned.* got '{position}'"):
            make(replace(SMALL, position=position, heads=1))
    for weight in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="source_loss: expected a finite weight of at least 0"):
            make(source_loss=weight)
    red = make()
    with pytest.raises(ValueError, match="caches: expected None"):
        red.decode(ids, red.encode(source), caches=red.new_caches())
    with pytest.raises(ValueError, match="ids: expected integers of shape"):
        red.loss(source[0], ids, targets)
