"""The partial attention model: equal to its loops, and to a language model once its additions are zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from minattn.autograd import no_grad
from minattn.testing import check_causal
from minattn.transformer import GPT, Config, PartialAttentionLM
from minattn.transformer.partial_attention import naive_partial_attention

pytestmark = pytest.mark.paper(100)

SMALL = Config(vocab=11, context=12, layers=2, heads=2, d_model=6)
SHAPES = [(1, 1, 1), (2, 5, 3), (3, 4, 7), (1, 1, 6)]
SWITCHES = [(True, True), (True, False), (False, True), (False, False)]


def shaken(model):
    """The model in float64, its weights large enough for its outputs to differ."""
    model.to(np.float64)
    for n, p in enumerate(model.parameters()):
        p.data = p.data + 0.3 * np.random.default_rng(n).standard_normal(p.shape)
    return model


def make(config=SMALL, bidirectional=True, restart=True, source_loss=0.0) -> PartialAttentionLM:
    return shaken(PartialAttentionLM(config, bidirectional=bidirectional, restart=restart,
                                     source_loss=source_loss, rng=np.random.default_rng(0)))


def draw(B, M, N, seed=0):
    """Source ids (B, M), target ids (B, N) that start with a separator, and targets."""
    rng = np.random.default_rng(seed)
    source, stream = rng.integers(0, 10, (B, M)), rng.integers(0, 10, (B, N + 1))
    stream[:, 0] = 10
    return source, stream[:, :-1].copy(), stream[:, 1:].copy()


def bump(ids):
    return (ids + 1) % 10


def nll(logits, wanted):
    """−log p of every target that counts."""
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [-logp[b, i, w] for (b, i), w in np.ndenumerate(wanted) if w >= 0]


# ---- naive = fast


@pytest.mark.parametrize("bidirectional, restart", SWITCHES)
@pytest.mark.parametrize("B, M, N", SHAPES)
def test_logits_are_those_of_the_loops(B, M, N, bidirectional, restart):
    model = make(replace(SMALL, heads=3), bidirectional, restart)
    source, ids, _ = draw(B, M, N)
    got = model(source, ids).data
    assert got.shape == (B, N, 11) and np.ptp(got) > 0.1
    want = [naive_partial_attention(s, t, model.state_dict(), 3, bidirectional, restart)
            for s, t in zip(source, ids, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


def test_logits_are_those_of_the_loops_with_one_head_and_no_biases():
    model = make(replace(SMALL, heads=1, bias=False, tied=False, layers=3))
    source, ids, _ = draw(1, 3, 4)
    want = naive_partial_attention(source[0], ids[0], model.state_dict(), 1)
    np.testing.assert_allclose(model(source, ids).data[0], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bidirectional, restart", SWITCHES)
def test_gradients_are_slopes_of_the_loops(bidirectional, restart):
    model = make(replace(SMALL, layers=1), bidirectional, restart)
    source, ids, _ = draw(1, 4, 3)
    rng, state = np.random.default_rng(1), model.state_dict()
    u = rng.standard_normal((3, 11))
    model(source, ids).backward(u[None])
    for name, p in model.named_parameters():  # one direction of each parameter by itself
        turn = rng.standard_normal(p.shape)

        def along(h, name=name, turn=turn):
            moved = {**state, name: state[name] + h * turn}
            moved["head.weight"] = moved["embed.token.weight"]  # tied
            return np.vdot(u, naive_partial_attention(source[0], ids[0], moved, 2, bidirectional, restart))

        want = (along(1e-5) - along(-1e-5)) / 2e-5
        assert np.vdot(p.grad, turn) == pytest.approx(want, rel=1e-6, abs=1e-7), name
        assert p.grad.any() or name.endswith("k_proj.bias"), name


# ---- reductions


@pytest.mark.parametrize("config", [
    SMALL,
    replace(SMALL, layers=1, heads=1, bias=False, tied=False),
    replace(SMALL, position="sinusoidal", norm="rms", activation="swiglu", heads=3, kv_heads=1),
    replace(SMALL, position="none", activation="relu"),
], ids=["plain", "one", "gated", "none"])
@pytest.mark.parametrize("B, M, N", SHAPES)
def test_without_its_additions_it_is_a_language_model(config, B, M, N):
    """PA writes nothing, no segment, a causal source, positions that go on: logits, loss and gradients."""
    model, gpt = make(config, False, False, 1.0), GPT(config, rng=np.random.default_rng(1)).to(np.float64)
    model.segment.weight.data = np.zeros((2, 6))
    for block in model.blocks:
        for p in block.cross.out_proj.parameters():
            p.data = np.zeros_like(p.data)
    own = model.state_dict()
    gpt.load_state_dict({name: own[name] for name in gpt.state_dict()})
    source, ids, targets = draw(B, M, N)
    stream = np.concatenate([source, ids], 1)
    got, want = model(source, ids), gpt(stream)[:, M:]
    assert np.ptp(want.data) > 0.1
    np.testing.assert_allclose(got.data, want.data, rtol=1e-12, atol=1e-12)

    wanted = np.concatenate([source[:, 1:], np.full((B, 1), -100), targets], 1)
    losses = model.loss(source, ids, targets, 0.1), gpt.loss(stream, wanted, 0.1)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    for loss in losses:
        loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    for name, p in gpt.named_parameters():
        np.testing.assert_allclose(ours[name], p.grad, rtol=1e-10, atol=1e-12, err_msg=name)


def test_each_addition_changes_the_logits():
    source, ids, _ = draw(2, 5, 3)
    base = make(bidirectional=False, restart=False)
    before = base(source, ids).data
    for bidirectional, restart in SWITCHES[:3]:
        other = make(bidirectional=bidirectional, restart=restart)
        assert np.abs(other(source, ids).data - before).max() > 1e-3
    base.segment.weight.data = base.segment.weight.data[::-1].copy()
    assert np.abs(base(source, ids).data - before).max() > 1e-3


# ---- who sees whom


@pytest.mark.parametrize("bidirectional, restart", SWITCHES)
def test_the_target_is_causal_and_sees_the_whole_source(bidirectional, restart):
    model = make(bidirectional=bidirectional, restart=restart)
    source, ids, _ = draw(2, 4, 5)
    check_causal(lambda t: model(source, t), ids, change=bump)
    first = model(source, ids).data[:, 0]
    for j in range(4):
        other = source.copy()
        other[:, j] = bump(other[:, j])
        assert np.abs(model(other, ids).data[:, 0] - first).max() > 1e-4


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_source_sees_itself_both_ways_or_causally_and_never_the_target(bidirectional):
    model = make(bidirectional=bidirectional)
    source, ids, _ = draw(1, 4, 3)

    def states(s, t=ids):
        return model.hidden(model.embedded(s, t), 4).data[:, :4]

    np.testing.assert_array_equal(states(source), states(source, bump(ids)))
    if bidirectional:
        other = source.copy()
        other[:, 3] = bump(other[:, 3])
        assert (np.abs(states(other) - states(source))[0].max(-1) > 1e-4).all()
    else:
        check_causal(states, source, change=bump)


def test_partial_attention_has_source_keys_alone():
    model = make()
    source, ids, _ = draw(2, 5, 3)
    names = ("blocks.*.cross.hook_weights", "blocks.*.attn.hook_weights")
    _, seen = model.run_with_cache(source, ids, names=names)
    for n in range(2):
        partial, own = (seen[f"blocks.{n}.{kind}.hook_weights"] for kind in ("cross", "attn"))
        assert partial.shape == (2, 2, 8, 5) and own.shape == (2, 2, 8, 8)
        np.testing.assert_allclose(partial.sum(-1), 1, atol=1e-12)
        assert (partial > 0).all() and (own[:, :, :5, :5] > 0).all() and (own[:, :, :5, 5:] == 0).all()
    _, seen = make(bidirectional=False).run_with_cache(source, ids, names=names)
    partial = seen["blocks.1.cross.hook_weights"]
    assert (np.triu(partial[0, 0, :5], 1) == 0).all() and (partial[:, :, 5:] > 0).all()


def test_positions_start_anew_and_segments_are_added():
    source, ids, _ = draw(1, 5, 3)
    for restart, first in ((True, 0), (False, 5)):
        model = make(restart=restart)
        w = {name.removesuffix(".weight"): value for name, value in model.state_dict().items()}
        x = model.embedded(source, ids).data
        np.testing.assert_allclose(x[:, :5], w["embed.token"][source] + w["embed.position"][:5]
                                   + w["segment"][0], atol=1e-14)
        want = w["embed.token"][ids] + w["embed.position"][first : first + 3] + w["segment"][1]
        np.testing.assert_allclose(x[:, 5:], want, atol=1e-14)
        np.testing.assert_allclose(model.embedded(source, ids[:, 1:], seen=1).data, want[:, 1:], atol=1e-14)
    assert make()(np.zeros((1, 9), int), np.zeros((1, 9), int)).shape == (1, 9, 11)
    with pytest.raises(ValueError, match="positions below 12"):
        make(restart=False)(np.zeros((1, 9), int), np.zeros((1, 4), int))


# ---- caches


@pytest.mark.parametrize("bidirectional, restart", SWITCHES)
@pytest.mark.parametrize("cuts", [[], [1], [2, 3], [1, 2, 3, 4, 5]])
def test_target_in_pieces_with_caches_is_the_target_at_once(bidirectional, restart, cuts):
    model = make(bidirectional=bidirectional, restart=restart)
    source, ids, _ = draw(2, 4, 6)
    want, caches = model(source, ids).data, model.new_caches()
    with no_grad():
        pieces = [model(source, piece, caches).data for piece in np.split(ids, cuts, 1)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), want, rtol=1e-12, atol=1e-12)
    assert [(own.length, of_source.length) for own, of_source in caches] == [(10, 4), (10, 4)]


def test_later_pieces_read_the_caches():
    model = make()
    source, ids, _ = draw(1, 4, 4)
    for which in (0, 1):
        caches = model.new_caches()
        with no_grad():
            model(source, ids[:, :2], caches)
            caches[0][which]._v[...] += 0.5
            got = model(source, ids[:, 2:], caches).data
        assert np.abs(got - model(source, ids).data[:, 2:]).max() > 1e-3


# ---- the loss, norms, bad input


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_source_tokens_count_with_their_weight(weight):
    model = make(bidirectional=False, source_loss=weight)
    source, ids, targets = draw(2, 4, 3)
    targets[1, 2] = -100
    h = model.hidden(model.embedded(source, ids), 4)
    target, inner = nll(model.head(h).data[:, 4:], targets), nll(model.head(h).data[:, :3], source[:, 1:])
    assert len(target) == 5 and len(inner) == 6
    want = (np.sum(target) + weight * np.sum(inner)) / (5 + weight * 6)
    assert model.loss(source, ids, targets).item() == pytest.approx(want, rel=1e-12)


def test_post_norm_has_no_last_norm():
    config = replace(SMALL, pre_norm=False)
    model = make(config)
    source, ids, _ = draw(2, 4, 3)
    assert "norm.weight" not in model.state_dict()
    last = model.hidden(model.embedded(source, ids), 4)
    w = model.blocks[1].norm2.state_dict()
    normed = (last.data - w["bias"]) / w["weight"]
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(model(source, ids).data, model.head(last[:, 4:]).data, atol=1e-12)
    check_causal(lambda t: model(source, t), ids, change=bump)


def test_by_default_all_additions_are_there():
    model = PartialAttentionLM(SMALL, rng=np.random.default_rng(0))
    assert model.bidirectional and model.restart and model.source_loss == 0
    assert model.segment.weight.shape == (2, 6) and model.segment.weight.data.any()
    gpt = GPT(SMALL, rng=np.random.default_rng(0))
    cross = 4 * (6 * 6 + 6) + 2 * 6  # four projections and a norm
    assert model.num_parameters() - gpt.num_parameters() == 2 * cross + 2 * 6


def test_the_stream_is_open_to_hooks():
    model = make()
    source, ids, _ = draw(1, 4, 3)
    _, seen = model.run_with_cache(source, ids, names="blocks.0.hook_resid_*")
    np.testing.assert_array_equal(seen["blocks.0.hook_resid_pre"], model.embedded(source, ids).data)
    pre, mid, post = (seen[f"blocks.0.hook_resid_{place}"] for place in ("pre", "mid", "post"))
    block = model.blocks[0]
    np.testing.assert_allclose(post - mid, block.mlp(block.norm2(mid)).data, atol=1e-12)
    again = block(pre, source=4, mask_mod=lambda b, h, i, j: (j <= i) | (j < 4)).data
    np.testing.assert_allclose(again, post, atol=1e-12)


def test_bad_input_is_refused_by_name():
    source, ids, targets = draw(2, 4, 3)
    for position in ("rope", "alibi"):
        with pytest.raises(ValueError, match=f"config: expected learned.* got '{position}'"):
            make(replace(SMALL, position=position, heads=1))
    with pytest.raises(ValueError, match="source_loss: expected a finite weight of at least 0, got -1"):
        make(source_loss=-1.0)
    model = make()
    with pytest.raises(ValueError, match="ids: expected integers of shape"):
        model(source[0], ids)
    with pytest.raises(ValueError, match="ids: expected integers of shape"):
        model(source, ids * 1.0)
    with pytest.raises(ValueError, match="targets: expected at least one that is not -100"):
        model.loss(source, ids, np.full_like(targets, -100))
