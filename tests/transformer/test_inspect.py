"""One head changed, logits of attention edited, queries and keys before and after positions, the last row."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from minattn.attention import AppendCache, WindowCache
from minattn.autograd import Tensor, log_softmax, no_grad
from minattn.testing import check_grads
from minattn.transformer import GPT, Config, Step, at_head, last_row_attention, logit_lens

LLAMA = Config(vocab=17, context=32, layers=3, heads=4, kv_heads=2, d_model=16, norm="rms", bias=False,
               activation="swiglu", position="rope")
HEADS = "blocks.1.attn.hook_heads"


def make(**changes):
    model = GPT(replace(LLAMA, **changes), rng=np.random.default_rng(0)).to(np.float64)
    for p in model.parameters():
        p.data = p.data + 0.4 * np.random.default_rng(p.size).standard_normal(p.shape)
    return model.eval()


MODEL = make()
IDS = np.random.default_rng(1).integers(0, 17, (2, 9))


def run(hooks, ids=IDS):
    return MODEL.run_with_hooks(ids, hooks=hooks).data


# ---- one head


def test_a_head_without_output_is_one_whose_columns_of_the_output_matrix_are_zero():
    got = run({HEADS: at_head(2, lambda out: 0 * out)})
    attn = MODEL.blocks[1].attn.out_proj
    kept = attn.weight.data
    attn.weight.data = kept.copy()
    attn.weight.data[:, 8:12] = 0
    want = MODEL(IDS).data
    attn.weight.data = kept
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert np.abs(got - MODEL(IDS).data).max() > 0.1


@pytest.mark.parametrize("head", [0, 3])
def test_a_head_scaled_or_replaced_leaves_the_others(head):
    _, plain = MODEL.run_with_cache(IDS, names=HEADS)
    for change, want in ((lambda out: 2.5 * out, 2.5 * plain[HEADS]),
                         (lambda out: np.ones(out.shape), np.ones(plain[HEADS].shape)),
                         (lambda out: out.data.mean(0, keepdims=True), plain[HEADS].mean(0, keepdims=True))):
        seen = []
        with MODEL.hooked({HEADS: at_head(head, change)}):
            with MODEL.hooked({HEADS: lambda x, seen=seen: seen.append(x.data)}):
                MODEL(IDS)
        others = np.arange(4) != head
        np.testing.assert_array_equal(seen[0][:, others], plain[HEADS][:, others])
        np.testing.assert_array_equal(seen[0][:, head], np.broadcast_to(want, plain[HEADS].shape)[:, head])


def test_gradients_pass_through_a_changed_head():
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 2))
    check_grads(at_head(1, lambda out: out * out), Tensor(x, requires_grad=True))


@pytest.mark.parametrize("head", [-1, 4])
def test_a_head_that_is_not_there(head):
    with pytest.raises(ValueError, match=f"^head: expected a number from 0 to 3, got {head}"):
        run({HEADS: at_head(head, lambda out: out)})


# ---- scores, queries, keys, values


def test_scores_edited_before_the_softmax():
    """A key hidden from one head by a hook: its weight is 0, the others share it as a softmax does."""
    names = ("blocks.1.attn.hook_scores", "blocks.1.attn.hook_weights")
    _, plain = MODEL.run_with_cache(IDS, names=names)

    def hide(scores):
        return np.where(np.arange(scores.shape[-1]) == 2, -np.inf, scores.data)

    with MODEL.hooked({names[0]: at_head(1, hide)}):
        out, edited = MODEL.run_with_cache(IDS, names=names)
    np.testing.assert_array_equal(edited[names[1]][:, [0, 2, 3]], plain[names[1]][:, [0, 2, 3]])
    scores = plain[names[0]][:, 1].copy()
    scores[..., 2] = -np.inf
    want = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(edited[names[1]][:, 1], want, rtol=1e-12, atol=1e-15)
    assert np.abs(out.data - MODEL(IDS).data).max() > 1e-3


def test_weights_replaced():
    """Heads that look at themselves alone carry their own value."""
    _, cache = MODEL.run_with_cache(IDS)
    names = ("blocks.2.attn.hook_heads", "blocks.2.attn.hook_v")
    with MODEL.hooked({"blocks.2.attn.hook_weights": lambda w: np.broadcast_to(np.eye(9), w.shape)}):
        _, edited = MODEL.run_with_cache(IDS, names=names)
    np.testing.assert_allclose(edited[names[0]], np.repeat(edited[names[1]], 2, axis=1), rtol=1e-12)
    np.testing.assert_allclose(edited[names[1]], cache[names[1]], rtol=1e-11)


def test_queries_and_keys_before_and_after_positions():
    _, cache = MODEL.run_with_cache(IDS)
    for n, block in enumerate(MODEL.blocks):
        at = f"blocks.{n}.attn."
        h = block.norm1(cache[f"blocks.{n}.hook_resid_pre"]).data
        for name, H in (("q", 4), ("k", 2)):
            flat = h @ getattr(block.attn, f"{name}_proj").weight.data.T
            want = flat.reshape(2, 9, H, 4).transpose(0, 2, 1, 3)
            np.testing.assert_allclose(cache[f"{at}hook_{name}_pre"], want, rtol=1e-12, atol=1e-12)
            turned = cache[f"{at}hook_{name}"]
            np.testing.assert_allclose(block.attn.position.rotate(want, np.arange(9)), turned, rtol=1e-12)
            np.testing.assert_allclose(turned[:, :, 0], want[:, :, 0])  # position 0 is not turned
            assert np.abs(turned - want).max() > 0.1
        v = (h @ block.attn.v_proj.weight.data.T).reshape(2, 9, 2, 4).transpose(0, 2, 1, 3)
        np.testing.assert_allclose(cache[f"{at}hook_v"], v, rtol=1e-12, atol=1e-12)
        scores = np.repeat(cache[f"{at}hook_k"], 2, 1) @ cache[f"{at}hook_q"].swapaxes(-1, -2) / 2
        seen = np.tril(np.ones((9, 9), bool))
        np.testing.assert_allclose(cache[f"{at}hook_scores"][..., seen], scores.swapaxes(-1, -2)[..., seen],
                                   rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["q_pre", "k_pre", "q", "k", "v"])
def test_queries_keys_and_values_replaced(name):
    """With the past in a cache, a hook changes the new positions alone."""
    hook = {f"blocks.0.attn.hook_{name}": lambda x: -2.0 * x}
    got = run(hook)
    weight = getattr(MODEL.blocks[0].attn, f"{name[0]}_proj").weight
    kept, weight.data = weight.data, -2.0 * weight.data  # a rotation commutes with the factor
    want = MODEL(IDS).data
    weight.data = kept
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
    assert np.abs(got - MODEL(IDS).data).max() > 0.01
    with no_grad():
        caches = MODEL.new_caches()
        MODEL(IDS[:, :5], caches=caches)
        held = caches[0].read().keys.copy()
        MODEL.run_with_hooks(IDS[:, 5:], hooks=hook, caches=caches)
    np.testing.assert_array_equal(caches[0].read().keys[:, :, :5], held)


# ---- the last row


@pytest.mark.parametrize("position", ["rope", "learned", "alibi", "none"])
@pytest.mark.parametrize("N, chunk", [(1, 4), (2, 1), (9, 1), (9, 4), (9, 8), (9, 100)])
def test_the_last_row_is_that_of_the_full_maps(position, N, chunk):
    model = make(position=position)
    ids = IDS[:, :N]
    _, cache = model.run_with_cache(ids)
    want = np.stack([cache[f"blocks.{n}.attn.hook_weights"][:, :, -1] for n in range(3)])
    pieces = []
    with model.hooked({"embed": lambda e: pieces.append(e.shape[1])}):
        got = last_row_attention(model, ids, chunk=chunk)
    assert got.shape == (3, 2, 4, N) and sum(pieces) == N and pieces[-1] == 1 and max(pieces) <= max(chunk, 1)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-12)
    assert N < 3 or got[..., 0].std() > 0.01


def test_the_last_row_with_caches_that_hold_the_past():
    caches = [AppendCache() for _ in range(3)]
    with no_grad():
        MODEL(IDS[:, :6], caches=caches)
    pieces = []
    with MODEL.hooked({"embed": lambda e: pieces.append(e.shape[1])}):
        got = last_row_attention(MODEL, IDS, cache=caches)
    assert pieces == [2, 1] and caches[0].length == 9
    np.testing.assert_allclose(got, last_row_attention(MODEL, IDS), rtol=1e-10)
    assert last_row_attention(MODEL, IDS, cache=lambda: WindowCache(4)).shape == (3, 2, 4, 4)


def test_no_full_map_is_formed():
    """All maps of one layer would take B·H·N² numbers."""
    model = make(layers=1, context=4096).to(np.float32)
    N = 2048
    ids = np.random.default_rng(0).integers(0, 17, (1, N))
    last_row_attention(model, ids, chunk=64)  # kernels are compiled, and that takes memory too
    with no_grad():
        tracemalloc.start()
        rows = last_row_attention(model, ids, chunk=64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    full = 4 * N * N * 4
    print(f"peak {peak / 1e6:.1f} MB, one layer's maps {full / 1e6:.1f} MB")
    assert rows.shape == (1, 1, 4, N) and peak < full / 8


@pytest.mark.parametrize("options, message", [
    ({"chunk": 0}, "^chunk: "), ({"cache": False}, "^chunk: expected None without a cache"),
])
def test_the_last_row_refuses_what_it_cannot_use(options, message):
    with pytest.raises(ValueError, match=message):
        last_row_attention(MODEL, IDS, **options)


def test_the_last_row_of_what_the_caches_hold_already():
    step = Step(MODEL)
    with no_grad():
        step(IDS)
    with pytest.raises(ValueError, match=r"^ids: expected more than the 9 tokens"):
        last_row_attention(MODEL, IDS, cache=step.caches)


# ---- guesses layer by layer


@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_lens_ends_with_the_models_own_answer(pre_norm):
    model = make(pre_norm=pre_norm)
    got = logit_lens(model, IDS)
    assert got.shape == (4, 2, 17)
    np.testing.assert_allclose(got[-1], log_softmax(model(IDS)).data[:, -1], rtol=1e-10)
    np.testing.assert_allclose(np.exp(got).sum(-1), 1, rtol=1e-10)
    x = model.embed(IDS).data[:, -1]
    first = model.head(model.norm(Tensor(x)) if pre_norm else Tensor(x))
    np.testing.assert_allclose(got[0], log_softmax(first).data, rtol=1e-10)
    short = GPT(replace(model.config, layers=1), rng=np.random.default_rng(0)).to(np.float64).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(("blocks.1", "blocks.2"))}
    short.load_state_dict(state)
    np.testing.assert_allclose(got[1], log_softmax(short(IDS)).data[:, -1], rtol=1e-10)
