"""Multi-head attention against PyTorch's, its own definition in loops over heads, and itself in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import (
    ALiBi,
    AppendCache,
    MultiHeadAttention,
    PositionEncoding,
    RingCache,
    RoPE,
    WindowCache,
    attention,
    both,
    causal,
    naive_attention,
    naive_multihead,
    naive_rope,
    padding,
    sliding_window,
)
from minattn.autograd import Tensor, grad, no_grad
from minattn.testing import check_grads


def build(*sizes, seed=0, dtype=np.float64, **how):
    return MultiHeadAttention(*sizes, rng=np.random.default_rng(seed), **how).to(dtype)


def draw(*shapes, seed=1):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(s) for s in shapes)


def naive(mha, x, y=None, z=None, *, Hk, mask_mod=None, bias=None, rope=None):
    """Each head by itself, from the weights; scores by loops."""
    y = x if y is None else y
    z = y if z is None else z
    w = {
        name: (p.weight.data, 0 if p.bias is None else p.bias.data)
        for name, p in (("q", mha.q_proj), ("k", mha.k_proj), ("v", mha.v_proj), ("o", mha.out_proj))
    }
    q, k, v = (t @ w[n][0].T + w[n][1] for n, t in (("q", x), ("k", y), ("v", z)))
    H = mha.n_heads
    D, Dv = q.shape[-1] // H, v.shape[-1] // Hk
    heads = []
    for h in range(H):
        g = h // (H // Hk)
        qh, kh = q[..., h * D : (h + 1) * D], k[..., g * D : (g + 1) * D]
        if rope:
            qh, kh = rope(qh), rope(kh)
        vh = v[..., g * Dv : (g + 1) * Dv]
        b = None if bias is None else np.broadcast_to(bias, (len(x), H, x.shape[1], y.shape[1]))[:, h : h + 1]
        heads.append(naive_attention(qh[:, None], kh[:, None], vh[:, None], bias=b, mask_mod=mask_mod)[:, 0])
    return np.concatenate(heads, -1) @ w["o"][0].T + w["o"][1]


# ---- the definition


@pytest.mark.parametrize(
    "sizes",
    [
        {"d_model": 6, "n_heads": 1},
        {"d_model": 6, "n_heads": 3},
        {"d_model": 12, "n_heads": 6, "n_kv_heads": 2},
        {"d_model": 7, "n_heads": 4, "n_kv_heads": 1, "d_head": 3, "d_v": 5},
        {"d_model": 6, "n_heads": 2, "d_query": 5, "d_key": 4, "d_value": 3, "d_head": 2, "bias": False},
    ],
)
def test_equals_one_head_at_a_time(sizes):
    sizes = dict(sizes)
    mha = build(sizes.pop("d_model"), sizes.pop("n_heads"), **sizes)
    d_query, d_key, d_value = mha.q_proj.d_in, mha.k_proj.d_in, mha.v_proj.d_in
    x, y, z = draw((2, 5, d_query), (2, 7, d_key), (2, 7, d_value))
    how = {"mask_mod": causal, "bias": np.random.default_rng(2).standard_normal((2, 1, 5, 7))}
    got = mha(x, y, z, **how)
    want = naive(mha, x, y, z, Hk=mha.n_kv_heads, **how)
    assert got.shape == want.shape == (2, 5, mha.out_proj.d_out) and want.std() > 0.01
    assert np.abs(got.data - want).max() < 1e-13
    if d_query == d_key == d_value:
        for args, same in (((x,), (x, x, x)), ((x, y), (x, y, y))):
            assert np.array_equal(mha(*args).data, mha(*same).data)
        assert np.array_equal(mha(x, value=z[:, :5]).data, mha(x, x, z[:, :5]).data)
        assert np.abs(mha(x).data - naive(mha, x, Hk=mha.n_kv_heads)).max() < 1e-13
        assert np.abs(mha(x, y).data - naive(mha, x, y, Hk=mha.n_kv_heads)).max() < 1e-13


def by_head(b, h, i, j):
    return (j <= i) | ((h + b) % 2 == 0)


@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_naive_form(bias):
    mha = build(7, 6, n_kv_heads=2, d_head=3, d_v=5, d_query=4, d_key=3, d_value=2, bias=bias)
    x, y, z = draw((2, 5, 4), (2, 7, 3), (2, 7, 2))
    for mask in (None, causal, by_head):
        want = naive_multihead(x, y, z, mha.state_dict(), 6, 2, mask)
        assert want.shape == (2, 5, 7) and want.std() > 0.01
        assert np.abs(mha(x, y, z, mask_mod=mask).data - want).max() < 1e-13


def test_default_sizes():
    shapes = {n: p.shape for n, p in build(12, 4).named_parameters()}
    assert shapes == {
        f"{p}_proj.{n}": s for p in ("q", "k", "v", "out") for n, s in (("weight", (12, 12)), ("bias", (12,)))
    }
    mha = build(12, 4, d_query=8)
    assert [p.d_in for p in (mha.q_proj, mha.k_proj, mha.v_proj)] == [8, 8, 8]
    mha = build(12, 4, d_key=8, n_kv_heads=2, bias=False)
    assert [p.weight.shape for p in (mha.q_proj, mha.k_proj, mha.v_proj, mha.out_proj)] == [
        (12, 12),
        (6, 8),
        (6, 8),
        (12, 12),
    ]
    assert all(p.bias is None for p in (mha.q_proj, mha.k_proj, mha.v_proj, mha.out_proj))
    mha = build(12, 4, d_value=5)
    assert [p.d_in for p in (mha.q_proj, mha.k_proj, mha.v_proj)] == [12, 12, 5]
    mha = build(10, 4, d_head=3)
    assert (mha.v_proj.d_out, mha.out_proj.d_in, mha.n_kv_heads) == (12, 12, 4)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_rope_turns_queries_and_keys_of_each_head(pairing):
    mha = build(8, 2, position=RoPE(4, pairing=pairing))
    (x,) = draw((2, 5, 8))
    want = naive(mha, x, Hk=2, rope=lambda t: naive_rope(t, np.arange(5), pairing=pairing), mask_mod=causal)
    assert np.abs(mha(x, mask_mod=causal).data - want).max() < 1e-13
    mha.position = PositionEncoding()
    assert np.abs(mha(x, mask_mod=causal).data - want).max() > 1e-3


def test_alibi_lowers_scores():
    mha = build(8, 2, position=ALiBi(2))
    (x,) = draw((2, 5, 8))
    distance = np.abs(np.arange(5)[:, None] - np.arange(5))
    want = naive(mha, x, Hk=2, bias=-np.array([2.0**-4, 2.0**-8])[:, None, None] * distance)
    assert np.abs(mha(x).data - want).max() < 1e-13


def test_normalizer():
    (x,) = draw((2, 5, 8))
    outs = [build(8, 2, normalizer=n)(x).data for n in ("softmax", "sparsemax", "sigmoid", lambda s, dim: s)]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(outs) for b in outs[:i])


# ---- PyTorch as judge


def twin(torch, E, H, kdim=None, vdim=None, bias=True):
    """Ours and torch.nn.MultiheadAttention with the same weights."""
    ours = build(E, H, d_key=kdim, d_value=vdim or E if kdim is None else vdim, bias=bias)
    theirs = torch.nn.MultiheadAttention(
        E, H, kdim=kdim, vdim=vdim, bias=bias, batch_first=True, dtype=torch.float64
    )
    w = {n: torch.from_numpy(p.data) for n, p in ours.named_parameters()}
    with torch.no_grad():
        if theirs.in_proj_weight is None:
            for n in "qkv":
                getattr(theirs, f"{n}_proj_weight").copy_(w[f"{n}_proj.weight"])
        else:
            theirs.in_proj_weight.copy_(torch.cat([w[f"{n}_proj.weight"] for n in "qkv"]))
        theirs.out_proj.weight.copy_(w["out_proj.weight"])
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([w[f"{n}_proj.bias"] for n in "qkv"]))
            theirs.out_proj.bias.copy_(w["out_proj.bias"])
    return ours, theirs


@pytest.mark.parametrize(
    "case", ["self", "self without bias", "cross", "sizes", "causal", "padding", "float", "both"]
)
def test_equals_pytorch(case):
    torch = pytest.importorskip("torch")
    E, H, N, M = 12, 3, 5, 7
    kdim, vdim = (4, 6) if case == "sizes" else (None, None)
    ours, theirs = twin(torch, E, H, kdim, vdim, bias=case != "self without bias")
    x, y, z, g = draw((2, N, E), (2, M, kdim or E), (2, M, vdim or E), (2, N, E))
    if case.startswith("self") or case == "causal":
        y = z = x
        M = N
    how, other = {}, {}
    if case == "causal":
        how, other = {"mask_mod": causal}, {"attn_mask": torch.triu(torch.ones(N, N, dtype=torch.bool), 1)}
    if case in ("padding", "both"):
        hidden = np.arange(M) >= np.array([[4], [6]])
        how["mask_mod"], other["key_padding_mask"] = padding(np.array([4, 6])), torch.from_numpy(hidden)
    if case in ("float", "both"):
        bias = np.random.default_rng(3).standard_normal((2, H, N, M))
        how["bias"], other["attn_mask"] = bias, torch.from_numpy(bias.reshape(2 * H, N, M))
    if case == "both":  # PyTorch wants both masks of one type
        other["key_padding_mask"] = torch.where(other["key_padding_mask"], -torch.inf, 0.0).double()
    a = [Tensor(t, requires_grad=True) for t in (x, y, z)]
    b = [torch.from_numpy(t.copy()).requires_grad_() for t in (x, y, z)]
    seen = []
    with ours.hooked({"hook_weights": lambda w: seen.append(w.data)}):
        again = ours(*a, **how)
    out = ours(*a, **how)
    want, weights = theirs(*b, average_attn_weights=False, **other)
    assert np.abs(out.data - want.detach().numpy()).max() < 1e-10
    assert np.abs(again.data - want.detach().numpy()).max() < 1e-10
    assert np.abs(seen[0] - weights.detach().numpy()).max() < 1e-10
    want.backward(torch.from_numpy(g))
    out.backward(g)
    for t, u in zip(a, b, strict=True):
        assert np.abs(t.grad - u.grad.numpy()).max() < 1e-10
    in_weights = (
        np.split(theirs.in_proj_weight.grad.numpy(), 3)
        if theirs.in_proj_weight is not None
        else [getattr(theirs, f"{n}_proj_weight").grad.numpy() for n in "qkv"]
    )
    for n, w in zip("qkv", in_weights, strict=True):
        assert np.abs(getattr(ours, f"{n}_proj").weight.grad - w).max() < 1e-10
    assert np.abs(ours.out_proj.weight.grad - theirs.out_proj.weight.grad.numpy()).max() < 1e-10
    if ours.q_proj.bias is not None:
        in_bias = np.split(theirs.in_proj_bias.grad.numpy(), 3)
        for n, w in zip("qkv", in_bias, strict=True):
            assert np.abs(getattr(ours, f"{n}_proj").bias.grad - w).max() < 1e-10


# ---- gradients


@pytest.mark.parametrize("how", [{}, {"n_kv_heads": 1}, {"position": RoPE(2)}, {"position": ALiBi(2)}])
def test_gradients_to_second_order(how):
    mha = build(4, 2, **how)
    x, y = draw((2, 3, 4), (2, 5, 4))
    check_grads(lambda x: mha(x, mask_mod=causal), x)
    check_grads(lambda x, y: mha(x, y), x, y)


def test_float32_and_arrays():
    mha = build(8, 2, dtype=np.float32, position=RoPE(4))
    x = draw((2, 5, 8))[0].astype(np.float32)
    assert mha(x, mask_mod=causal).dtype == np.float32
    with no_grad():
        assert mha(x, mask_mod=causal, cache=AppendCache()).dtype == np.float32


# ---- hooks


def test_hook_points():
    mha = build(12, 4, n_kv_heads=2, d_v=5, position=RoPE(2))
    x, y = draw((2, 3, 12), (2, 6, 12))
    out, seen = mha.run_with_cache(x, y, mask_mod=causal)
    assert {name: value.shape for name, value in seen.items()} == {
        "hook_q_pre": (2, 4, 3, 3),
        "hook_k_pre": (2, 2, 6, 3),
        "hook_q": (2, 4, 3, 3),
        "hook_k": (2, 2, 6, 3),
        "hook_v": (2, 2, 6, 5),
        "hook_scores": (2, 4, 3, 6),
        "hook_weights": (2, 4, 3, 6),
        "hook_heads": (2, 4, 3, 5),
    }
    assert np.abs(out.data - mha(x, y, mask_mod=causal).data).max() < 1e-14
    assert (seen["hook_scores"] == -np.inf).sum() == 2 * 4 * (5 + 4 + 3)
    e = np.exp(seen["hook_scores"])
    assert np.allclose(seen["hook_weights"], e / e.sum(-1, keepdims=True), rtol=1e-12)
    heads = attention(seen["hook_q"], seen["hook_k"], seen["hook_v"], mask_mod=causal)
    assert np.abs(seen["hook_heads"] - heads).max() < 1e-14
    flat = np.concatenate([seen["hook_heads"][:, h] for h in range(4)], -1)
    assert np.abs(flat @ mha.out_proj.weight.data.T + mha.out_proj.bias.data - out.data).max() < 1e-13
    q = (x @ mha.q_proj.weight.data.T + mha.q_proj.bias.data)[..., 3:6]  # head 1, with positions
    assert np.abs(seen["hook_q"][:, 1, :, :2] - naive_rope(q[..., :2], np.arange(3))).max() < 1e-13


def test_hooks_can_change_what_passes():
    mha = build(8, 2)
    (x,) = draw((2, 5, 8))
    plain, bias = mha(x).data, mha.out_proj.bias.data
    for name in ("hook_q", "hook_k", "hook_v", "hook_scores", "hook_weights", "hook_heads"):
        assert np.abs(mha.run_with_hooks(x, hooks={name: lambda t: 2 * t}).data - plain).max() > 1e-3
    for name in ("hook_v", "hook_weights", "hook_heads"):  # linear from here on
        doubled = mha.run_with_hooks(x, hooks={name: lambda t: 2 * t}).data
        assert np.abs(doubled - (2 * (plain - bias) + bias)).max() < 1e-13
    flat = mha.run_with_hooks(x, hooks={"hook_scores": lambda s: 0 * s})
    mean = (x @ mha.v_proj.weight.data.T + mha.v_proj.bias.data).mean(1, keepdims=True)
    assert np.abs(flat.data - (mean @ mha.out_proj.weight.data.T + bias)).max() < 1e-13


def test_weights_are_formed_apart_only_for_listeners(monkeypatch):
    from minattn.attention import multihead

    mha = build(8, 2, dropout=0.5).eval()
    (x,) = draw((2, 5, 8))
    mha.hook_heads.register_forward_hook(lambda *a: None)
    monkeypatch.setattr(multihead, "attention_scores", None)
    mha(x)
    with pytest.raises(TypeError, match="not callable"):
        mha.run_with_hooks(x, hooks={"hook_weights": lambda w: None})
    with pytest.raises(TypeError, match="not callable"):
        mha.run_with_hooks(x, hooks={"hook_scores": lambda w: None})


# ---- dropout


def test_dropout_is_on_weights_and_in_training_only():
    mha = build(8, 2, dropout=0.3)
    (x,) = draw((4, 30, 8))
    seen = []
    mha.hook_weights.register_forward_hook(lambda m, a, w: seen.append(w.data))
    first, second = mha(x).data, mha(x).data
    assert np.abs(first - second).max() > 1e-3
    mha.eval()
    kept = mha(x).data
    assert np.array_equal(kept, mha(x).data) and np.array_equal(seen[0], seen[2])
    plain = build(8, 2)(x).data
    assert np.abs(kept - plain).max() < 1e-14
    # what is dropped follows the generator, with the stated rate and scale: values of one show the weights
    ones = build(1, 1, dropout=0.3)
    for p, value in ((ones.v_proj, 0), (ones.out_proj, 1)):
        p.weight.data[:], p.bias.data[:] = value, 1 - value
    sums = ones(np.zeros((50, 40, 1))).data  # Σ_j of 40 equal weights, some dropped, others divided by 0.7
    kept_counts = sums * 40 * 0.7
    assert np.abs(kept_counts - np.round(kept_counts)).max() < 1e-4
    assert np.round(kept_counts).mean() == pytest.approx(40 * 0.7, rel=0.02)
    again = build(1, 1, dropout=0.3, seed=0)
    again.load_state_dict(ones.state_dict())
    assert np.array_equal(again(np.zeros((50, 40, 1))).data, sums)


# ---- caches


CACHES = {
    "append": (AppendCache, causal),
    "window": (lambda: WindowCache(4), sliding_window(4)),
    "ring": (lambda: RingCache(4), sliding_window(4)),
}


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("position", [None, RoPE(4), RoPE(2, pairing="half"), ALiBi(4)])
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_any_cuts_give_the_same(name, position, seed):
    rng = np.random.default_rng(seed)
    N = int(rng.integers(1, 14))
    mha = build(16, 4, n_kv_heads=2, position=position)
    x = rng.standard_normal((3, N, 16))
    make, mask = CACHES[name]
    lengths = padding(rng.integers(N // 2 + 1, N + 1, 3))
    cuts = sorted({*rng.integers(1, N + 1, rng.integers(0, N + 1)).tolist(), N})
    with no_grad():
        whole = mha(x, mask_mod=both(mask, lengths)).data
        cache, out, start = make(), [], 0
        for end in cuts:
            out.append(mha(x[:, start:end], mask_mod=both(causal, lengths), cache=cache).data)
            assert cache.length == end
            start = end
        assert np.abs(np.concatenate(out, 1) - whole).max() < 1e-12
        assert np.abs(mha(x, mask_mod=both(mask, lengths)).data - whole).max() == 0  # uncached after cached
        more = mha(x[:, :1], cache=cache)
        assert cache.length == N + 1 and more.shape == (3, 1, 16)


def test_window_of_the_cache_is_enforced_without_another_mask():
    mha = build(8, 2)
    (x,) = draw((2, 9, 8))
    with no_grad():
        got = mha(x, cache=RingCache(3)).data
        want = mha(x, mask_mod=lambda b, h, i, j: (i - 3 < j) & (j <= i)).data
    assert np.abs(got - want).max() < 1e-13


def test_cross_attention_fills_its_cache_once():
    mha = build(8, 2)
    x, y = draw((2, 6, 8), (2, 7, 8))
    cache = AppendCache()
    lengths = padding(np.array([3, 7]))
    with no_grad():
        whole = mha(x, y, mask_mod=lengths).data
        calls = []
        mha.k_proj.register_forward_hook(lambda *a: calls.append(1))
        pieces = [mha(x[:, t : t + 2], y, mask_mod=lengths, cache=cache).data for t in range(0, 6, 2)]
        assert len(calls) == 1 and cache.length == 7
        assert np.abs(np.concatenate(pieces, 1) - whole).max() < 1e-13
        ignored = mha(x[:, :2], y[:, :1] * 0, mask_mod=lengths, cache=cache).data
        assert np.array_equal(ignored, pieces[0])
        # a window is about time; the memory of cross-attention is seen whole
        assert np.abs(mha(x, y, cache=WindowCache(7)).data - mha(x, y).data).max() < 1e-13


def test_cache_and_gradients_do_not_mix():
    mha = build(8, 2)
    (x,) = draw((2, 3, 8))
    with pytest.raises(RuntimeError) as e:
        mha(x, cache=AppendCache())
    assert str(e.value) == "cache: keeps keys and values without gradients; call inside no_grad()"
    for p in (mha.k_proj, mha.v_proj):
        p.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"^cache: "):
        mha(x, cache=AppendCache())
    mha.requires_grad_(False)
    cache = AppendCache()
    mha(x, cache=cache)
    assert cache.length == 3


def test_bias_with_a_cache():
    mha = build(8, 2)
    x, bias = draw((2, 5, 8), (2, 5, 5))
    with no_grad():
        whole = mha(x, mask_mod=causal, bias=bias).data
        cache = AppendCache()
        for t in range(5):
            step = mha(x[:, t : t + 1], bias=bias[:, t : t + 1, : t + 1], cache=cache).data
            assert np.abs(step[:, 0] - whole[:, t]).max() < 1e-13


# ---- the rest


def test_causality():
    mha = build(8, 2, position=RoPE(4))
    (x,) = draw((2, 6, 8))
    before = mha(x, mask_mod=causal).data
    for t in range(6):
        y = x.copy()
        y[:, t] += 1
        after = mha(y, mask_mod=causal).data
        assert np.array_equal(before[:, :t], after[:, :t])
        assert (np.abs(before - after)[:, t:].max(axis=(0, 2)) > 1e-4).all()


def test_without_positions_order_does_not_matter():
    mha = build(8, 2)
    (x,) = draw((2, 6, 8))
    order = np.random.default_rng(0).permutation(6)
    assert np.abs(mha(x[:, order]).data - mha(x).data[:, order]).max() < 1e-13
    mha.position = RoPE(4)
    assert np.abs(mha(x[:, order]).data - mha(x).data[:, order]).max() > 1e-3


def test_same_seed_same_weights():
    a, b, c = build(8, 2), build(8, 2), build(8, 2, seed=1)
    assert all(np.array_equal(p.data, q.data) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not np.array_equal(a.q_proj.weight.data, c.q_proj.weight.data)
    assert not np.array_equal(a.q_proj.weight.data, a.k_proj.weight.data)
    assert a.q_proj.weight.data.std() == pytest.approx(1 / math.sqrt(3 * 8), rel=0.2)


def test_gradients_reach_every_parameter():
    mha = build(8, 4, n_kv_heads=2)
    (x,) = draw((2, 6, 8))
    g = np.random.default_rng(0).standard_normal((2, 6, 8))
    found = grad(mha(x, mask_mod=causal), list(mha.parameters()), g)
    assert len(found) == 8
    for (name, _), d in zip(mha.named_parameters(), found, strict=True):
        assert (np.abs(d.data).max() < 1e-12) == (name == "k_proj.bias")  # shifts a row of scores: no effect


def test_mistakes():
    def refused(message, *args, **how):
        with pytest.raises(ValueError) as e:
            build(*args, **how)
        assert str(e.value) == message

    refused("n_kv_heads: expected a divisor of n_heads=4, got 3", 8, 4, n_kv_heads=3)
    refused("n_kv_heads: expected a divisor of n_heads=4, got 0", 8, 4, n_kv_heads=0)
    refused("n_kv_heads: expected a divisor of n_heads=4, got 8", 8, 4, n_kv_heads=8)
    refused("n_heads: expected a whole number ≥ 1, got 0", 8, 0)
    refused("d_model: expected a multiple of n_heads=3 (or d_head), got 8", 8, 3)
    refused("dropout: expected a probability in [0, 1), got 1", 8, 2, dropout=1)
    refused("dropout: expected a probability in [0, 1), got -0.1", 8, 2, dropout=-0.1)
    with pytest.raises(ValueError, match="softmin"):
        build(8, 2, normalizer="softmin")
    with pytest.raises(ValueError, match=r"\(1, 2, 7\)"):
        build(8, 2)(np.zeros((1, 2, 7)))
    good, bad = np.zeros((1, 2, 8)), np.zeros((2, 8))
    for n, name in enumerate(("query", "key", "value")):
        args = [good, good, good]
        args[n] = bad
        with pytest.raises(ValueError) as e:
            build(8, 2)(*args)
        assert str(e.value) == f"{name}: expected 3 axes (batch, positions, features), got shape (2, 8)"
