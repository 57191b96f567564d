"""Paper 134: signed weights from likeness and nearness, alone, in heads, and in a classifier of pairs."""

import numpy as np
import pytest

from minattn.attention import MultiHeadAttention, causal, padding
from minattn.attention.multihead import naive_multihead
from minattn.autograd import Tensor, grad
from minattn.scores.comateformer import (
    PAPER_SHARES,
    Comateformer,
    CompositionalAttention,
    CrossComposition,
    compositional_weights,
    dual_affinity,
    naive_dual_affinity,
    naive_quasi_attention,
)
from minattn.testing import check_causal, check_grads
from minattn.transformer.config import Config
from minattn.transformer.encoder import Encoder

pytestmark = pytest.mark.paper(134)
CONFIG = Config(vocab=11, context=9, layers=2, heads=2, d_model=8, d_mlp=12)


def vectors(*shapes, seed=0):
    rng = np.random.default_rng([seed, 134])
    return [rng.standard_normal(s) for s in shapes]


def in_float64(model, seed=9):
    """Larger weights than those at the start, so that nothing is near 0."""
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = 0.5 * rng.standard_normal(p.shape)
    return model


@pytest.mark.parametrize("form", ["double", "plain", "centred"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 6, 3), (5, 2, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_equal_the_loops(form, shape, masked):
    N, M, D = shape
    a, b = vectors((2, N, D), (2, M, D))
    visible = (np.arange(N)[:, None] + np.arange(M)) % 3 > 0 if masked else None
    E, near = dual_affinity(a, b, alpha=0.7, beta=0.4)
    m = compositional_weights(E, near, form, visible)
    for n in range(2):
        want = naive_dual_affinity(a[n], b[n], 0.7, 0.4, form, visible)
        for got, exact in zip((E, near, m), want, strict=True):
            np.testing.assert_allclose(got[n], exact, rtol=1e-12, atol=1e-13)
    assert (np.abs(m) < 1).all()
    check_grads(lambda x, y: compositional_weights(*dual_affinity(x, y), form, visible), a, b)


def test_distances_of_other_projections():
    q, k, far, there = vectors((3, 4), (5, 4), (3, 2), (5, 2))
    E, near = dual_affinity(q, k, far, there, scale=0.5)
    np.testing.assert_allclose(E, 0.5 * dual_affinity(q, k)[0])
    np.testing.assert_allclose(near, 0.5 * dual_affinity(far, there)[1])
    np.testing.assert_allclose(near, 0.5 * naive_dual_affinity(far, there)[1])


def test_limits():
    q, k = vectors((6, 4), (6, 4))
    E, near = dual_affinity(q, k, beta=0.0)
    np.testing.assert_array_equal(compositional_weights(E, near), np.tanh(E))
    assert np.abs(compositional_weights(E, near, "plain")).max() <= 0.5
    same = np.full((6, 4), 10.0)
    E, near = dual_affinity(same, same)
    np.testing.assert_array_equal(compositional_weights(E, near), np.ones((6, 6)))  # sum pooling
    np.testing.assert_array_equal(compositional_weights(E, near, "plain"), np.full((6, 6), 0.5))
    E, near = dual_affinity(q, q)  # one projection for both
    np.testing.assert_array_equal(near, near.T)
    np.testing.assert_array_equal(near.argmax(1), np.arange(6))
    np.testing.assert_array_equal(np.diag(near), 0)


def test_what_is_hidden_does_not_move_the_mean():
    q, k = vectors((3, 4), (5, 4))
    visible = np.arange(5)[None] < 3
    whole = compositional_weights(*dual_affinity(q, k), "centred", visible)
    np.testing.assert_allclose(whole[:, :3], compositional_weights(*dual_affinity(q, k[:3]), "centred"))
    np.testing.assert_array_equal(whole[:, 3:], 0)


def in_loops(layer, x, visible):
    """The layer head by head, out of its weights."""
    state, H, D = layer.state_dict(), layer.n_heads, x.shape[2]
    q, k, v = (np.stack(np.split(x @ state[f"{c}_proj.weight"].T + state[f"{c}_proj.bias"], H, -1), 1)
               for c in "qkv")
    own = naive_quasi_attention(q, k, v, alpha=layer.alpha, beta=layer.beta, double=layer.form == "double",
                                visible=visible)[0]
    soft = np.zeros_like(own)
    s = np.where(visible, q @ k.swapaxes(-1, -2) / np.sqrt(D // H), -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    soft = p / p.sum(-1, keepdims=True) @ v
    S = H - layer.replaced
    heads = np.concatenate([soft[:, :S], own[:, S:]], 1)
    if layer.gate is not None:
        both = np.concatenate([soft, own], -1) @ state["gate.weight"].T + state["gate.bias"]
        g = 1 / (1 + np.exp(-both))
        heads[:, S:] = (g * soft + (1 - g) * own)[:, S:]
    out = np.concatenate([heads[:, h] for h in range(H)], -1)
    return out @ state["out_proj.weight"].T + state["out_proj.bias"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("form", ["double", "plain"])
def test_layer_equals_the_loops(share, gate, form):
    x, g = vectors((2, 5, 12), (2, 5, 12))
    layer = in_float64(CompositionalAttention(12, 3, share=share, form=form, alpha=0.8, beta=1.2, gate=gate,
                                              rng=np.random.default_rng(0)))
    assert layer.replaced == {0.0: 0, 0.3: 1, 0.5: 2, 1.0: 3}[share]
    plain = layer(x)
    np.testing.assert_allclose(plain.data, in_loops(layer, x, np.ones((1, 1, 1, 5), bool)), atol=1e-11)
    by_head = lambda b, h, i, j: (j <= i) | (h == 2)  # noqa: E731
    np.testing.assert_allclose(layer(x, mask_mod=by_head).data,
                               in_loops(layer, x, by_head(*np.ogrid[:2, :3, :5, :5])), atol=1e-11)
    seen = []
    handle = layer.hook_weights.register_forward_hook(lambda module, args, out: seen.append(out))
    watched = layer(x, mask_mod=by_head)
    handle.remove()
    np.testing.assert_allclose(watched.data, layer(x, mask_mod=by_head).data, atol=1e-12)
    assert seen[0].shape == (2, 3, 5, 5)
    weights, step = [layer.q_proj.weight, layer.v_proj.weight], 1e-6
    for p, slope in zip(weights, grad(plain, weights, g), strict=True):
        was, along = p.data, np.random.default_rng(6).standard_normal(p.shape)
        ends = []
        for sign in (1, -1):
            p.data = was + sign * step * along
            ends.append((g * in_loops(layer, x, np.ones((1, 1, 1, 5), bool))).sum())
        p.data = was
        got = (slope.data * along).sum()
        assert got == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-6)


def test_centred_heads_and_causality():
    (x,) = vectors((2, 5, 8))
    for form in ("centred", "double"):
        layer = in_float64(CompositionalAttention(8, 2, form=form, rng=np.random.default_rng(0)))
        check_causal(lambda y, f=layer: f(y, mask_mod=causal), x)
    short = layer(x[:, :3]).data
    np.testing.assert_allclose(layer(x, mask_mod=padding(np.array([3, 3]))).data[:, :3], short, atol=1e-12)


def test_no_share_or_an_open_gate_is_the_standard_layer():
    (x,) = vectors((2, 5, 12))
    layer = in_float64(CompositionalAttention(12, 3, share=0.0, rng=np.random.default_rng(0)))
    want = naive_multihead(x, x, x, layer.state_dict(), 3, 3)
    np.testing.assert_allclose(layer(x).data, want, atol=1e-12)
    gated = in_float64(CompositionalAttention(12, 3, gate=True, rng=np.random.default_rng(0)))
    gated.gate.weight.data = np.zeros_like(gated.gate.weight.data)
    gated.gate.bias.data = np.full_like(gated.gate.bias.data, 60.0)
    want = naive_multihead(x, x, x, gated.state_dict(), 3, 3)
    np.testing.assert_allclose(gated(x).data, want, atol=1e-12)
    assert isinstance(gated, MultiHeadAttention)


def test_two_sentences_read_each_other():
    a, b = vectors((2, 3, 4), (2, 5, 4))
    cross = in_float64(CrossComposition(4, alpha=0.6, beta=0.3, rng=np.random.default_rng(0)))
    visible = np.arange(5)[None, None] < np.array([5, 4])[:, None, None]
    A, B = cross(a, b, visible)
    for n in range(2):
        like, far = (w.weight.data.T for w in (cross.likeness, cross.nearness))
        E = naive_dual_affinity(a[n] @ like, b[n] @ like)[0]
        near = naive_dual_affinity(a[n] @ far, b[n] @ far)[1]
        m = np.tanh(0.6 * E) * 2 / (1 + np.exp(-0.3 * near)) * visible[n]
        np.testing.assert_allclose(A.data[n], m @ b[n], atol=1e-12)
        np.testing.assert_allclose(B.data[n], m.T @ a[n], atol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_classifier(pool):
    rng = np.random.default_rng(3)
    ids, lengths = rng.integers(0, 11, (3, 9)), np.array([9, 5, 7])
    standard = Encoder(CONFIG, rng=np.random.default_rng(0)).to("float64")
    model = in_float64(Comateformer(CONFIG, 3, shares=[], pool=pool, rng=np.random.default_rng(0)))
    standard.load_state_dict(model.encoder.state_dict())
    h = standard(ids, lengths).data
    pooled = h[:, 0] if pool == "cls" else np.stack([x[:n].mean(0) for x, n in zip(h, lengths, strict=True)])
    want = pooled @ model.classify.weight.data.T + model.classify.bias.data
    np.testing.assert_allclose(model(ids, lengths).data, want, atol=1e-10)
    np.testing.assert_allclose(model(ids).data[:1], want[:1], atol=1e-10)
    logits = want - want.max(-1, keepdims=True)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(3), [0, 2, 1]]
    assert model.loss(ids, np.array([0, 2, 1]), lengths).item() == pytest.approx(losses.mean())


def test_shares_and_padding():
    model = in_float64(Comateformer(CONFIG, shares=(1.0, 0.5), rng=np.random.default_rng(0)))
    assert [b.attn.replaced for b in model.encoder.blocks] == [2, 1]
    every = Comateformer(CONFIG, rng=np.random.default_rng(0))
    assert [b.attn.replaced for b in every.encoder.blocks] == [2, 2]
    rng = np.random.default_rng(4)
    ids, lengths = rng.integers(0, 11, (2, 9)), np.array([6, 9])
    other = ids.copy()
    other[0, 6:] = (ids[0, 6:] + 1) % 11
    np.testing.assert_allclose(model(ids, lengths).data, model(other, lengths).data, atol=1e-13)
    np.testing.assert_allclose(model(ids[:1, :6]).data, model(ids, lengths).data[:1], atol=1e-11)
    assert PAPER_SHARES == (0.5, 0.4, 0.3)
    assert every.classify.weight.data.std() < 0.05  # GPT-2's scheme


def test_mistakes():
    rng = np.random.default_rng(0)
    q, k = vectors((3, 4), (5, 4))
    with pytest.raises(ValueError, match=r"^q_near, k_near: expected both or none of them$"):
        dual_affinity(q, k, q)
    with pytest.raises(ValueError, match=r"^k: expected shape \('M', 4\), got \(5, 3\)$"):
        dual_affinity(q, k[:, :3])
    with pytest.raises(ValueError, match=r"^k_near: expected shape \('M', 4\), got \(1, 5, 4\)$"):
        dual_affinity(q, k, q, k[None])
    for make in (lambda: compositional_weights(q @ k.T, q @ k.T, "half"),
                 lambda: CompositionalAttention(8, 2, form="half", rng=rng)):
        with pytest.raises(ValueError, match=r"^form: expected one of double, plain, centred, got 'half'$"):
            make()
    with pytest.raises(ValueError, match=r"^share: expected a number in \[0, 1\], got 1.5$"):
        CompositionalAttention(8, 2, share=1.5, rng=rng)
    with pytest.raises(ValueError, match=r"^shares: expected at most 2, one a layer, got 3$"):
        Comateformer(CONFIG, shares=PAPER_SHARES, rng=rng)
    with pytest.raises(ValueError, match=r'^pool: expected "mean" or "cls", got \'max\'$'):
        Comateformer(CONFIG, pool="max", rng=rng)
    layer = CompositionalAttention(8, 2, rng=rng)
    with pytest.raises(ValueError, match=r"^bias: expected None, likeness and nearness have none$"):
        layer(np.ones((1, 3, 8), np.float32), bias=np.zeros((3, 3), np.float32))
    assert isinstance(layer(Tensor(np.ones((1, 3, 8), np.float32))), Tensor)
