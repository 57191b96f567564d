"""Neural attention: scores as loops and split; what they become in known cases; the layer in models."""

import numpy as np
import pytest

from minattn.attention import (
    AppendCache,
    MultiHeadAttention,
    RoPE,
    alignment_score,
    attention,
    causal,
    padding,
)
from minattn.attention.position import ALiBi
from minattn.autograd import Tensor, grad, no_grad, softmax
from minattn.scores import neural
from minattn.scores.neural import (
    NeuralAttention,
    naive_neural_score,
    neural_layers,
    neural_score,
    split_layer,
)
from minattn.testing import check_causal, check_grads
from minattn.transformer import GPT, Config, ViT

from .complex_step import slopes

pytestmark = pytest.mark.paper(3)

# B, H, N, M, D, F
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 2, 4, 4, 3, 5), (1, 3, 2, 5, 4, 2), (1, 1, 5, 3, 2, 7)]


def inputs(B=2, H=2, N=4, M=4, D=3, F=5, seed=0):
    rng = np.random.default_rng([seed, B, H, N, M, D, F])
    return [rng.standard_normal(s) for s in ((B, H, N, D), (B, H, M, D), (H, F, 2 * D), (H, F), (H, F), (H,))]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_gradients_equal_the_loops(shape, activation):
    arrays = inputs(*shape)
    g = np.random.default_rng(1).standard_normal(shape[:4])
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    out = neural_score(*leaves, activation=activation)

    def loops(*x):
        return naive_neural_score(*x, activation=activation)

    np.testing.assert_allclose(out.data, loops(*arrays), rtol=1e-10, atol=1e-12)
    for got, slope in zip(grad(out, leaves, g), slopes(loops, *arrays, g=g), strict=True):
        np.testing.assert_allclose(got.data, slope, rtol=1e-9, atol=1e-11)
    plain = neural_score(*arrays[:5], activation=activation)
    np.testing.assert_allclose(plain + arrays[5][:, None, None], out.data, atol=1e-12)
    np.testing.assert_allclose(plain, naive_neural_score(*arrays[:5], activation=activation), atol=1e-12)


def test_by_hand():
    """q = 2, k = 3: units relu(2 − 3 + ½) = 0 and relu(2 + 3 − 1) = 4, weighed by 10 and ½, plus 7."""
    one = np.ones((1, 1, 1, 1))
    W, b, w = np.array([[[1.0, -1], [1, 1]]]), np.array([[0.5, -1.0]]), np.array([[10.0, 0.5]])
    for form in (neural_score, naive_neural_score):
        assert form(2 * one, 3 * one, W, b, w, np.array([7.0])).item() == 9
        assert form(3 * one, 2 * one, W, b, w).item() == 10 * 1.5 + 2


def test_the_output_bias_cancels():
    q, k, W, b, w, b_a = inputs()
    np.testing.assert_allclose(softmax(neural_score(q, k, W, b, w, b_a), -1),
                               softmax(neural_score(q, k, W, b, w), -1), atol=1e-14)


def test_with_tanh_it_is_additive_attention():
    """Bahdanau's score wᵀ tanh(W₁ q + W₂ k + b), as the general form of the library has it."""
    q, k, W, b, w, _ = inputs(H=1)
    want = alignment_score(q, k, "additive", w=w[0], W1=W[0, :, :3], W2=W[0, :, 3:], b=b[0])
    np.testing.assert_allclose(neural_score(q, k, W, b, w, activation="tanh"), want, atol=1e-12)


def test_units_in_pairs_make_the_score_linear():
    """relu(z) − relu(−z) = z: the query's part is the same for all keys, and a softmax does not see it."""
    q, k, W, b, w, _ = inputs()
    paired = (np.concatenate([x, -x], 1) for x in (W, b, w))
    scores = neural_score(q, k, *paired)
    linear = np.einsum("bhid,hfd,hf->bhi", q, W[:, :, :3], w)[..., None] + np.einsum(
        "bhjd,hfd,hf->bhj", k, W[:, :, 3:], w)[:, :, None] + (w * b).sum(1)[:, None, None]
    np.testing.assert_allclose(scores, linear, atol=1e-12)
    weights = softmax(scores, -1)
    np.testing.assert_allclose(weights, np.broadcast_to(weights[:, :, :1], weights.shape), atol=1e-13)


def test_the_split_of_the_first_layer():
    q, k, W, b, _, _ = inputs(1, 2, 3, 5)
    a, c = split_layer(q, k, W, b)
    np.testing.assert_allclose(a, np.einsum("bhid,hfd->bhif", q, W[:, :, :3]) + b[:, None], atol=1e-13)
    np.testing.assert_allclose(c, np.einsum("bhjd,hfd->bhjf", k, W[:, :, 3:]), atol=1e-13)


def test_second_derivatives():
    arrays = inputs(1, 1, 3, 2, 2, 3)
    check_grads(neural_score, *arrays)


# ---- the layer


def rng(seed=0):
    return np.random.default_rng(seed)


def layer(D=6, H=2, seed=0, **how):
    module = NeuralAttention(D, H, rng=rng(seed), **how).to(np.float64)
    for _, p in module.named_parameters():
        p.data = p.data + 0.5 * rng(seed + 1).standard_normal(p.shape)
    return module


def by_loops(module, x, mask=None):
    """The layer on x (B, N, D), its scores by the naive form."""
    state, (B, N, D), H = module.state_dict(), x.shape, module.n_heads

    def heads(name):
        y = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        return y.reshape(B, N, H, -1).transpose(0, 2, 1, 3)

    q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
    if "down_q" in state:
        q, k = (np.einsum("bhid,hed->bhie", t, state[n]) for t, n in ((q, "down_q"), (k, "down_k")))
    scores = naive_neural_score(q, k, state["W_h"], state["b_h"], state["w_a"])
    out = np.zeros((B, H, N, D // H))
    for b, h, i in np.ndindex(B, H, N):
        seen = [j for j in range(N) if mask is None or mask(b, h, i, j)]
        powers = [np.exp(scores[b, h, i, j]) for j in seen]
        for p, j in zip(powers, seen, strict=True):
            out[b, h, i] += p / sum(powers) * v[b, h, j]
    mixed = out.transpose(0, 2, 1, 3).reshape(B, N, D)
    return mixed @ state["out_proj.weight"].T + state["out_proj.bias"]


def uneven(b, h, i, j):
    return (j <= i) & (i != 1) & ((b + j) % 2 == 0)


@pytest.mark.parametrize("down", [None, 2])
@pytest.mark.parametrize("mask", [None, causal, uneven, padding(np.array([3, 5]))])
def test_the_layer_equals_the_loops(mask, down):
    module, x = layer(d_hidden=5, d_down=down), rng(2).standard_normal((2, 5, 6))
    want = by_loops(module, x, mask)
    np.testing.assert_allclose(module(x, mask_mod=mask).data, want, atol=1e-10)
    _, seen = module.run_with_cache(x, mask_mod=mask, names=("hook_weights", "hook_heads", "hook_scores"))
    assert seen["hook_weights"].shape == (2, 2, 5, 5)
    assert np.ptp(seen["hook_weights"]) > 0.3
    np.testing.assert_allclose(seen["hook_heads"].transpose(0, 2, 1, 3).reshape(x.shape)
                               @ module.out_proj.weight.data.T + module.out_proj.bias.data, want, atol=1e-10)
    if mask is uneven:
        nothing = 0 * want[:, 1] + module.out_proj.bias.data
        np.testing.assert_allclose(module(x, mask_mod=mask).data[:, 1], nothing, atol=1e-14)


def test_no_mask_or_the_causal_one_goes_through_the_tiles(monkeypatch):
    module, x = layer(), rng(3).standard_normal((1, 5, 6))
    calls = []
    real = neural.neural_attention
    monkeypatch.setattr(neural, "neural_attention", lambda *a, **k: calls.append(k) or real(*a, **k))
    module(x), module(x, mask_mod=causal)
    assert calls == [{"causal": False}, {"causal": True}]
    module(x, mask_mod=uneven), module(x, bias=np.zeros((1, 1, 5, 5)))
    layer(dropout=0.5)(x), layer(position=ALiBi(2))(x), layer(normalizer="sigmoid")(x)
    module.run_with_cache(x, names="hook_scores")
    assert len(calls) == 2


def test_other_ways_change_the_scores():
    x = rng(4).standard_normal((1, 5, 6))
    plain = layer()(x).data
    bias = rng(5).standard_normal((1, 2, 5, 5))
    _, seen = layer().run_with_cache(x, names="hook_scores")
    _, moved = layer().run_with_cache(x, bias=bias, names="hook_scores")
    np.testing.assert_allclose(moved["hook_scores"], seen["hook_scores"] + bias, atol=1e-13)
    _, sloped = layer(position=ALiBi(2)).run_with_cache(x, names="hook_scores")
    distance = np.abs(np.arange(5)[:, None] - np.arange(5))
    np.testing.assert_allclose(sloped["hook_scores"], seen["hook_scores"]
                               - np.array([2.0**-4, 2.0**-8])[:, None, None] * distance, atol=1e-13)
    assert np.abs(layer(normalizer="sigmoid")(x).data - plain).max() > 1e-2
    dropped = layer(dropout=0.5)
    assert np.abs(dropped(x).data - plain).max() > 1e-3
    np.testing.assert_allclose(dropped.eval()(x).data, plain, atol=1e-12)


def test_without_output_weights_it_is_the_mean_of_what_is_seen():
    module, x = layer(), rng(6).standard_normal((2, 5, 6))
    module.w_a.data[:] = 0
    _, seen = module.run_with_cache(x, mask_mod=causal, names="hook_weights")
    np.testing.assert_allclose(seen["hook_weights"], np.broadcast_to(
        np.tri(5) / np.arange(1, 6)[:, None], (2, 2, 5, 5)), atol=1e-14)
    uniform = attention(*(np.zeros((2, 2, 5, 3)) for _ in range(2)), rng(7).standard_normal((2, 2, 5, 3)),
                        mask_mod=causal)
    assert uniform.shape == (2, 2, 5, 3)


def test_gradients_reach_everything():
    module, x = layer(d_down=2), rng(8).standard_normal((2, 4, 6))
    names, params = zip(*module.named_parameters(), strict=True)
    assert {"down_q", "down_k", "W_h", "b_h", "w_a"} <= set(names)
    for name, g in zip(names, grad(module(x, mask_mod=causal), list(params), rng(9).standard_normal(x.shape)),
                       strict=True):
        assert np.abs(g.data).max() > 1e-6, name
    check_grads(lambda t: module(t, mask_mod=causal), x[:1], order=1)


@pytest.mark.parametrize("position", [None, RoPE(3 + 1)])
def test_causality_and_caches(position):
    module, x = layer(8, position=position), rng(10).standard_normal((1, 6, 8))
    check_causal(lambda t: module(t, mask_mod=causal), x)
    whole = module(x, mask_mod=causal).data
    for cut in (1, 4):
        cache = AppendCache()
        with no_grad():
            parts = [module(p, mask_mod=causal, cache=cache).data for p in (x[:, :cut], x[:, cut:])]
        np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-12)
        assert cache.length == 6


def test_initial_weights():
    module = NeuralAttention(64, 4, d_hidden=200, d_down=8, rng=rng())
    for p, fan in ((module.W_h, 16), (module.b_h, 16), (module.w_a, 200), (module.down_q, 16),
                   (module.down_k, 16)):
        bound = fan**-0.5
        assert np.abs(p.data).max() <= bound and p.data.std() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert p.data.dtype == np.float32
    assert np.abs(module.down_q.data - module.down_k.data).max() > 0.1
    plain = MultiHeadAttention(64, 4, rng=rng())
    np.testing.assert_array_equal(plain.q_proj.weight.data, module.q_proj.weight.data)
    assert NeuralAttention(8, 2, rng=rng()).W_h.shape == (2, 16, 8)


# ---- in models


CONFIG = Config(vocab=11, context=8, layers=3, heads=2, d_model=8)


def kinds(model):
    return [type(block.attn) for block in model.blocks]


def test_the_first_layer_or_all():
    first, every = (neural_layers(GPT(CONFIG, rng=rng()), *how, rng=rng(1)) for how in ((), ("all",)))
    assert kinds(first) == [NeuralAttention] + [MultiHeadAttention] * 2
    assert kinds(every) == [NeuralAttention] * 3
    plain = GPT(CONFIG, rng=rng()).state_dict()
    for name, value in first.state_dict().items():
        if name in plain:
            np.testing.assert_array_equal(value, plain[name])
    ids = rng(2).integers(0, 11, (2, 8))
    check_causal(lambda t: first(t), ids, dim=1, change=lambda t: (t + 1) % 11)
    assert np.isfinite(first.loss(ids, ids).item())
    sized = neural_layers(GPT(CONFIG, rng=rng()), d_hidden=3, d_down=2, rng=rng(1)).blocks[0].attn
    assert sized.W_h.shape == (2, 3, 4)


def test_settings_are_kept():
    config = Config(vocab=11, context=8, layers=1, heads=2, d_model=8, bias=False,
                    dropout=0.3, position="rope")
    attn = neural_layers(GPT(config, rng=rng()), rng=rng(1)).blocks[0].attn
    assert attn.q_proj.bias is None and attn.dropout == 0.3 and type(attn.position) is RoPE


def test_vision():
    """Patches of images see all others."""
    config = Config(vocab=10, context=17, layers=2, heads=2, d_model=8)
    model = neural_layers(ViT(config, 2, rng=rng()), rng=rng(1))
    images = rng(2).random((3, 1, 8, 8)).astype(np.float32)
    assert model(images).shape == (3, 10)
    model.loss(images, np.array([1, 2, 3])).backward()
    assert np.abs(model.blocks[0].attn.W_h.grad.data).max() > 0


def test_mistakes():
    q, k, W, b, w, _ = inputs()
    with pytest.raises(ValueError, match=r"^activation: expected one of relu, tanh, got 'gelu'$"):
        neural_score(q, k, W, b, w, activation="gelu")
    with pytest.raises(ValueError, match=r"^w_a: expected shape \(2, 5\), as b_h, got \(2, 4\)$"):
        neural_score(q, k, W, b, w[:, :4])
    with pytest.raises(ValueError, match=r"^q: expected 4 axes \(batch, heads, positions, features\), got"):
        neural_score(q[0], k, W, b, w)
    with pytest.raises(ValueError, match=r"^k: expected 4 axes"):
        neural_score(q, k[0], W, b, w)
    with pytest.raises(ValueError, match=r"^k: expected shape \(2, 2, 4, 3\), got \(2, 2, 4, 2\)$"):
        neural_score(q, k[..., :2], W, b, w)
    with pytest.raises(ValueError, match=r"^W_h: expected shape \(2, 5, 6\), got \(2, 5, 4\)$"):
        neural_score(q, k, W[..., :4], b, w)
    with pytest.raises(ValueError, match=r"^b_h: expected shape \(2, 5\), got \(1, 5\)$"):
        neural_score(q, k, W, b[:1], w)
    for name in ("d_hidden", "d_down"):
        with pytest.raises(ValueError, match=rf"^{name}: expected a whole number ≥ 1, got 0$"):
            NeuralAttention(6, 2, rng=rng(), **{name: 0})
    with pytest.raises(ValueError, match=r"^layers: expected 'first' or 'all', got 'last'$"):
        neural_layers(GPT(CONFIG, rng=rng()), "last", rng=rng())
