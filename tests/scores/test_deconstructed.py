"""Paper 103: eight sublayers against loops, their cards, and stacks of them."""

import numpy as np
import pytest

from minattn.attention import MultiHeadAttention, causal
from minattn.attention.position import RoPE
from minattn.autograd import grad
from minattn.autograd.engine import raw
from minattn.scores.deconstructed import (
    CARDS,
    VARIANTS,
    Card,
    DeconstructedAttention,
    HybridStack,
    attention_report,
    hybrid,
    naive_deconstructed,
    taylor,
)
from minattn.testing import check_causal, check_grads
from minattn.transformer.config import Config

pytestmark = pytest.mark.paper(103)
CONFIG = Config(vocab=7, context=8, layers=2, heads=2, d_model=12, norm="rms", position="rope", bias=False)
TEXT = np.array([3, 1, 4, 1, 5, 2, 6, 0])


def in_float64(module, seed=3, size=0.6):
    rng = np.random.default_rng(seed)
    for p in module.parameters():
        p.data = size * rng.standard_normal(p.shape)
    return module


def layer_of(variant, D=12, heads=2):
    return in_float64(DeconstructedAttention(variant, D, heads, rng=np.random.default_rng(0)))


def stack_of(*variants, seed=3):
    model = HybridStack(CONFIG, variants, text=TEXT, rng=np.random.default_rng(0)).to("float64")
    return in_float64(model, seed)


def inputs(B, N, D=12, seed=0):
    rng = np.random.default_rng([seed, B, N])
    return rng.standard_normal((B, N, D)), rng.standard_normal((B, N, D))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(1, 1, 12, 2), (2, 5, 12, 2), (3, 7, 6, 1), (1, 4, 12, 3)])
def test_values_and_gradients_equal_the_loops(variant, shape):
    B, N, D, H = shape
    h, source = inputs(B, N, D)
    layer, g = layer_of(variant, D, H), np.random.default_rng(5).standard_normal((B, N, D))

    def loops():
        state = layer.state_dict()
        return np.stack([naive_deconstructed(variant, h[b], source[b], state, H) for b in range(B)])

    out = layer(h, source)
    np.testing.assert_allclose(out.data, loops(), rtol=1e-10, atol=1e-11)
    rng = np.random.default_rng(6)
    for p, slope in zip(layer.parameters(), grad(out, list(layer.parameters()), g), strict=True):
        was, along, ends = p.data, rng.standard_normal(p.shape), []
        for sign in (1, -1):
            p.data = was + sign * 1e-6 * along
            ends.append((g * loops()).sum())
        p.data = was
        assert (slope.data * along).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(layer(h).data, layer(h, h).data)
    check_causal(lambda t: layer(t), h, tol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cards_are_true(variant):
    """Each bit by moving an input and seeing what moves."""
    card, layer = CARDS[variant], layer_of(variant)
    h, other = inputs(1, 5)
    moved = h.copy()
    moved[:, 0] += 1
    assert (np.abs(layer(moved, other).data - layer(h, other).data)[:, 1:].max() > 1e-6) == card.mixing
    model = stack_of(variant, variant)
    if variant == "mlp":
        assert model.weights(TEXT[None]) == []
        assert card == Card(False, False, False, False)
        return
    one, two = (model.weights(ids) for ids in (TEXT[None], TEXT[None] % 3))
    gaps = [np.abs(raw(a) - raw(b)).max() for a, b in zip(one, two, strict=True)]
    assert (max(gaps) > 1e-6) == card.sequence
    gap = np.abs(weights_of(model, TEXT[None], 1.0) - weights_of(model, TEXT[None], 0.0)).max()
    assert (gap > 1e-6) == card.coupling
    q_doubled = layer_of(variant)
    if hasattr(q_doubled, "q_proj"):
        base = np.asarray(layer.weights(h).data)
        exact = softmax_of_pairs(layer, h)
        assert (np.abs(base - exact).max() < 1e-12) == card.form
    else:
        assert not card.form


def weights_of(model, ids, scale):
    """Weights of layer 1 when the values of layer 0, and so the hidden states, are scaled."""
    was = model.layers[0].mlp.down.weight.data
    model.layers[0].mlp.down.weight.data = scale * was
    side, model.beside = model.beside, False  # the stream beside is no hidden state of the input
    if side:
        frozen = model.vectors[None].astype(float)
        source = frozen if model.text is None else model.token(model.text[None])
        out = model.layers[1].mix.weights(model.layers[1].norm1(source))
    else:
        out = model.weights(ids)[1]
    model.beside = side
    model.layers[0].mlp.down.weight.data = was
    return raw(out)


def softmax_of_pairs(layer, h):
    N, (H, d) = h.shape[1], (layer.n_heads, h.shape[2] // layer.n_heads)
    q, k = (np.stack(np.split(h @ w.weight.data.T, H, -1), 1) for w in (layer.q_proj, layer.k_proj))
    rope = RoPE(d, pairing="half")
    q, k = (rope.rotate(t, np.arange(N)) for t in (q, k))
    s = np.where(np.tri(N, dtype=bool), q @ k.swapaxes(-1, -2) / np.sqrt(d), -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_standard_is_multi_head_attention():
    h, _ = inputs(2, 5)
    layer = layer_of("standard")
    other = MultiHeadAttention(12, 2, bias=False, position=RoPE(6, pairing="half"),
                               rng=np.random.default_rng(0)).to("float64")
    other.load_state_dict(layer.state_dict())
    np.testing.assert_allclose(layer(h).data, other(h, mask_mod=causal).data, atol=1e-12)


def test_taylor():
    z = np.random.default_rng(0).standard_normal((3, 4, 9))
    z[0, 0, 3:] = -np.inf
    z[1] = -np.inf
    p = taylor(z)
    np.testing.assert_allclose(p[2].sum(-1), 1)
    np.testing.assert_array_equal(p[1], 0)
    np.testing.assert_array_equal(p[0, 0, 3:], 0)
    want = [1 + x + x * x / 2 for x in z[0, 0, :3]]
    np.testing.assert_allclose(p[0, 0, :3], np.array(want) / sum(want))
    np.testing.assert_allclose(taylor(z[2].T, 0), p[2].T)
    z = z[2]
    gaps = []
    for c in (0.1, 0.01):
        e = np.exp(c * z)
        gaps.append(np.abs(taylor(c * z) - e / e.sum(-1, keepdims=True)).max())
    assert gaps[1] / gaps[0] == pytest.approx(1e-3, rel=0.2)
    check_grads(taylor, z)


def test_without_pairs_it_is_a_recurrence():
    h, _ = inputs(1, 6)
    layer = layer_of("non_approximate")
    a = layer.weights(h).data[0]
    v = np.random.default_rng(4).standard_normal((2, 6, 3))
    q, k = (np.stack(np.split(h[0] @ w.weight.data.T, 2, -1)) for w in (layer.q_proj, layer.k_proj))
    s = (q / (1 + np.exp(-q)) * k).sum(-1) / np.sqrt(6)
    top, below = np.zeros((2, 3)), np.zeros((2, 1))
    for i in range(6):
        top += np.exp(s[:, i, None]) * v[:, i]
        below += np.exp(s[:, i, None])
        np.testing.assert_allclose((a @ v)[:, i], top / below, atol=1e-12)
        if i > 1:  # the ratio of two weights does not depend on the query
            np.testing.assert_allclose(a[:, i, 0] / a[:, i, 1], a[:, 1, 0] / a[:, 1, 1])


def test_static_is_standard_in_the_first_layer():
    static, standard = stack_of("static", "static"), stack_of("standard", "standard")
    ids = TEXT[None, :6]
    for model in (static, standard):
        model.load_state_dict(standard.state_dict())
    np.testing.assert_allclose(static.weights(ids)[0].data, standard.weights(ids)[0].data, atol=1e-13)
    assert np.abs(static.weights(ids)[1].data - standard.weights(ids)[1].data).max() > 1e-3


def test_fixed_weights_are_a_table():
    """The stream beside is the stack on the fixed text with standard layers."""
    fixed, standard = stack_of("fixed", "fixed"), stack_of("standard", "standard")
    standard.load_state_dict(fixed.state_dict())
    for got, want in zip(fixed.weights(TEXT[None, :5] % 2), standard.weights(TEXT[None, :5]), strict=True):
        assert got.shape == (1, 2, 5, 5)
        np.testing.assert_allclose(got.data, want.data, atol=1e-13)
    np.testing.assert_allclose(fixed(TEXT[None]).data, standard(TEXT[None]).data, atol=1e-12)
    vectors = stack_of("random", "random")
    got = vectors.weights(TEXT[None, :5])[0].data
    layer = vectors.layers[0]
    frozen = vectors.vectors[None, :5].astype(float)
    np.testing.assert_allclose(got, layer.mix.weights(layer.norm1(frozen)).data)
    assert vectors.vectors.shape == (8, 12) and 0.015 < vectors.vectors.std() < 0.025


@pytest.mark.parametrize("variants", [("average", "standard"), ("random", "standard"), ("static", "mlp"),
                                      ("fixed", "approximate")])
def test_stack_is_its_layers(variants):
    model = stack_of(*variants)
    ids = np.array([[1, 2, 0, 3], [6, 5, 4, 4]])
    x = tokens = model.token.weight.data[ids]
    frozen = model.vectors[None, :4].astype(float)
    side = model.token.weight.data[TEXT[None, :4]] if variants[0] == "fixed" else frozen

    def norm(t, n):
        return t / np.sqrt((t * t).mean(-1, keepdims=True) + 1e-5) * n.weight.data

    def step(t, layer, source):
        t = t + layer.mix(norm(t, layer.norm1), norm(source, layer.norm1)).data
        return t + layer.mlp(norm(t, layer.norm2)).data

    for name, layer in zip(variants, model.layers, strict=True):
        source = {"static": tokens, "random": side, "fixed": side}.get(name, x)
        x, side = step(x, layer, source), step(side, layer, side)
    np.testing.assert_allclose(model(ids).data, norm(x, model.norm) @ model.head.weight.data.T, atol=1e-11)
    logits = model(ids).data
    logits = logits - logits.max(-1, keepdims=True)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, ids[..., None], -1)[..., 0]
    assert model.loss(ids, ids).item() == pytest.approx(nll.mean())
    check_causal(lambda t: model(t), ids, change=lambda t: (t + 1) % 7, tol=1e-12)


def test_layers_may_be_left_out():
    model = stack_of("average", "standard")
    ids = TEXT[None]
    x = model.layers[1](model.token(ids))
    np.testing.assert_allclose(model(ids, skip=(0,)).data, model.head(model.norm(x)).data, atol=1e-12)
    np.testing.assert_allclose(model(ids, skip=(0, 1)).data, model.head(model.norm(model.token(ids))).data)
    assert model.loss(ids, ids, skip=(0,)).item() != model.loss(ids, ids).item()


def test_hybrid():
    assert hybrid("mlp", 5) == ["mlp", "standard", "mlp", "standard", "mlp"]
    assert hybrid("mlp", 4, 3) == ["mlp", "mlp", "standard", "mlp"]
    assert hybrid("mlp", 2, 1) == ["standard", "standard"]
    sizes = {v: sum(p.size for p in layer_of(v).parameters()) for v in VARIANTS}
    assert sizes["mlp"] == sizes["standard"] == 4 * 144 and sizes["average"] == 2 * 144
    fresh = HybridStack(CONFIG, hybrid("average", 2), rng=np.random.default_rng(0))
    assert 0.01 < fresh.head.weight.data.std() < 0.03


def test_report():
    even = np.tile(np.tri(4) / np.tri(4).sum(1, keepdims=True), (2, 3, 1, 1))
    found = attention_report(even)
    assert found["entropy"] == pytest.approx(np.log([1, 2, 3, 4]).mean())
    assert found["concentration"] == pytest.approx(np.sqrt(1 + 1 / 2 + 1 / 3 + 1 / 4))
    assert found["diversity"] == pytest.approx(0, abs=1e-12)
    assert found["sink"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    heads = np.stack([np.eye(4), np.eye(4)[::-1]])[None]
    assert attention_report(heads)["diversity"] == pytest.approx(1)
    one = attention_report(heads[:, :1])
    assert one["diversity"] == 0 and one["entropy"] == 0 and one["concentration"] == pytest.approx(2)
    assert attention_report(np.ones((1, 1, 1, 1)))["sink"] == 1


def test_mistakes():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^variant: expected one of standard, mlp, average, random, fix"):
        DeconstructedAttention("other", 12, 2, rng=rng)
    with pytest.raises(ValueError, match=r"^d_model: expected an even number of features for each of 2 h"):
        DeconstructedAttention("standard", 6, 2, rng=rng)
    with pytest.raises(ValueError, match=r'^variant: "mlp" mixes nothing and has no weights$'):
        layer_of("mlp").weights(np.zeros((1, 2, 12)))
    with pytest.raises(ValueError, match=r"^every: expected a number ≥ 1, got 0$"):
        hybrid("mlp", 4, 0)
    for wrong in ({"position": "learned"}, {"pre_norm": False}):
        how = {"vocab": 7, "context": 8, "layers": 1, "heads": 1, "d_model": 4, "position": "rope"} | wrong
        with pytest.raises(ValueError, match=r'^config: expected position="rope" and pre_norm=True, got '):
            HybridStack(Config(**how), ["standard"], rng=rng)
    with pytest.raises(ValueError, match=r"^variants: expected 2, one a layer, got 1$"):
        HybridStack(CONFIG, ["standard"], rng=rng)
    with pytest.raises(ValueError, match=r'^variants: expected "random" or "fixed" layers, got both'):
        HybridStack(CONFIG, ["random", "fixed"], text=TEXT, rng=rng)
    with pytest.raises(ValueError, match=r"^text: expected 8 ids for the fixed layers, got None$"):
        HybridStack(CONFIG, ["fixed", "standard"], rng=rng)
    with pytest.raises(ValueError, match=r"^text: expected 8 ids for the fixed layers, got 7$"):
        HybridStack(CONFIG, ["fixed", "standard"], text=TEXT[:7], rng=rng)
    with pytest.raises(ValueError, match=r"^ids: expected at most 8 positions, got 9$"):
        stack_of("mlp", "mlp")(np.zeros((1, 9), int))
    with pytest.raises(ValueError, match=r"^weights: expected shape \(B, H, N, N\), got \(4, 4\)$"):
        attention_report(np.eye(4))
