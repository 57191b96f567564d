"""Attention against its loops, PyTorch, finite differences and the laws it must obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import (
    NORMALIZERS,
    attention,
    attention_scores,
    attention_weights,
    causal,
    dot_product,
    naive_attention,
    padding,
    sliding_window,
    weighted_sum,
)
from minattn.autograd import Tensor, grad
from minattn.testing import check_grads

# (B, H, Hk, N, M, D, Dv)
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 5, 3, 2),
    (2, 4, 2, 5, 7, 3, 4),
    (2, 3, 1, 4, 1, 2, 5),
    (1, 2, 2, 9, 6, 5, 1),
    (3, 6, 2, 3, 11, 4, 3),
    (2, 3, 3, 7, 7, 4, 4),
]
MAIN = SHAPES[2]


def inputs(shape, seed=0, size=1.0, dtype=np.float64):
    B, H, Hk, N, M, D, Dv = shape
    rng = np.random.default_rng(seed)
    sizes = ((B, H, N, D), (B, Hk, M, D), (B, Hk, M, Dv))
    return tuple((size * rng.standard_normal(s)).astype(dtype) for s in sizes)


def some_hidden(seed=0):
    """An irregular mask, in which the last query of each head sees nothing."""

    def mask(b, h, i, j):
        return ((7 * b + 5 * h + 3 * i + 2 * j + seed) % 4 != 0) & (i + 1 != mask.N)

    return mask


def softcap(score, b, h, i, j):
    """Nonlinear, and different for every b, h, i and j: it shows in which order things are done."""
    return score * score / (1 + b + h) + 0.1 * i * score - 0.2 * j


def composed(q, k, v, **how):
    """The same in three steps."""
    return weighted_sum(attention_weights(attention_scores(q, k, **how)), v)


def gradients(f, xs, g):
    ts = [Tensor(x, requires_grad=True) for x in xs]
    return [t.data for t in grad(f(*ts), ts, g)]


def test_naive_by_hand():
    # scores ln 2 and 0: weights 2/3 and 1/3
    q, k = np.ones((1, 1, 1, 1)), np.array([[[[math.log(2)], [0.0]]]])
    v = np.array([[[[3.0, 6.0], [0.0, 12.0]]]])
    assert np.allclose(naive_attention(q, k, v), [[[[2.0, 8.0]]]], rtol=0, atol=1e-15)
    # four features, so the scale is 1/2: products 2 and 0 become scores 1 and 0
    q, k = np.ones((1, 1, 1, 4)), np.array([[[[2.0, 0, 0, 0], [0, 0, 0, 0]]]])
    w = math.e / (1 + math.e)
    assert np.allclose(naive_attention(q, k, v), [[[[3 * w, 6 * w + 12 * (1 - w)]]]], rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", [None, causal, "lengths", "irregular"])
def test_equals_loops(shape, mask):
    B, H, _, N, M, _, _ = shape
    q, k, v = inputs(shape)
    rng = np.random.default_rng(1)
    if mask == "lengths":
        mask = padding(rng.integers(0, M + 1, B))
    elif mask == "irregular":
        mask = some_hidden()
        mask.N = N
    for size in (None, (B, H, N, M), (H, 1, M), (M,)):
        bias = None if size is None else rng.standard_normal(size)
        for scale in (None, 0.7):
            how = {"mask_mod": mask, "bias": bias, "scale": scale}
            want = naive_attention(q, k, v, **how)
            got = attention(q, k, v, **how)
            assert type(got) is np.ndarray and got.dtype == np.float64
            assert got.shape == want.shape
            assert np.abs(got - want).max() < 1e-13
            assert np.abs(composed(q, k, v, **how) - want).max() < 1e-13
            assert np.abs(attention(*map(Tensor, (q, k, v)), **how).data - want).max() < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
def test_score_mod_comes_before_bias_and_mask(shape):
    B, _, _, N, M, _, _ = shape
    q, k, v = inputs(shape, 2)
    bias = np.random.default_rng(3).standard_normal((B, 1, N, M))
    how = {"score_mod": softcap, "bias": bias, "mask_mod": causal}
    want = naive_attention(q, k, v, **how)
    assert np.abs(attention(q, k, v, **how) - want).max() < 1e-13


def test_inputs_of_the_main_case_are_not_degenerate():
    q, k, v = inputs(MAIN)
    out, weights = attention(q, k, v, return_weights=True)
    assert out.std(axis=2).min() > 0.05  # rows differ
    assert weights.max() < 0.9 and weights.min() > 1e-3  # neither one-hot nor uniform
    assert weights.std(axis=-1).min() > 0.01


def test_weights_and_lse():
    q, k, v = inputs(MAIN)
    mask = some_hidden()
    mask.N = q.shape[2]
    out, weights, lse = attention(q, k, v, mask_mod=mask, return_weights=True, return_lse=True)
    assert np.array_equal(attention(q, k, v, mask_mod=mask, return_weights=True)[1], weights)
    assert np.array_equal(attention(q, k, v, mask_mod=mask, return_lse=True)[1], lse)
    assert len(attention(q, k, v, return_lse=True)) == 2
    B, H, _, N, M, D, _ = MAIN
    for b in range(B):
        for h in range(H):
            for i in range(N):
                terms = [
                    math.exp(q[b, h, i] @ k[b, h // 2, j] / math.sqrt(D)) if mask(b, h, i, j) else 0.0
                    for j in range(M)
                ]
                if sum(terms):
                    assert lse[b, h, i] == pytest.approx(math.log(sum(terms)), abs=1e-13)
                    assert np.allclose(weights[b, h, i], np.array(terms) / sum(terms), rtol=0, atol=1e-14)
                    assert np.allclose(out[b, h, i], weights[b, h, i] @ v[b, h // 2], rtol=0, atol=1e-14)
                else:
                    assert lse[b, h, i] == -np.inf and not weights[b, h, i].any() and not out[b, h, i].any()
    assert (lse == -np.inf).sum() == B * H


# ---- rows with nothing visible, large scores, precision


@pytest.mark.parametrize("normalizer", list(NORMALIZERS))
@pytest.mark.parametrize("parts", [False, True])
def test_row_with_nothing_visible(normalizer, parts):
    q, k, v = inputs(MAIN)
    how = {"mask_mod": lambda b, h, i, j: (i != 1) & (j != 2), "normalizer": normalizer}

    def f(q, k, v):
        return attention(q, k, v, **how, return_weights=True)[0] if parts else attention(q, k, v, **how)

    out = f(q, k, v)
    assert not out[:, :, 1].any() and np.isfinite(out).all() and out[:, :, 0].any()
    g = np.random.default_rng(1).standard_normal(out.shape)
    dq, dk, dv = gradients(f, (q, k, v), g)
    assert all(np.isfinite(d).all() and d.any() for d in (dq, dk, dv))
    assert not dq[:, :, 1].any() and not dk[:, :, 2].any() and not dv[:, :, 2].any()
    g[:, :, 1] = 0  # the empty row passes nothing on
    assert all(np.array_equal(a, b) for a, b in zip((dq, dk, dv), gradients(f, (q, k, v), g), strict=True))


def test_nothing_visible_at_all():
    q, k, v = inputs(MAIN)
    for how in ({"mask_mod": lambda b, h, i, j: j < 0}, {"bias": np.full((1, 7), -np.inf)}):
        out, weights, lse = attention(q, k, v, **how, return_weights=True, return_lse=True)
        assert not out.any() and not weights.any() and (lse == -np.inf).all()
        assert not attention(q, k, v, **how).any()
        for d in gradients(lambda *x, how=how: attention(*x, **how), (q, k, v), np.ones(out.shape)):
            assert not d.any()


def test_gradient_of_lse_of_an_empty_row_is_zero():
    q, k, v = inputs(MAIN)
    dq, dk = gradients(
        lambda q, k: attention(q, k, v, mask_mod=lambda b, h, i, j: (i != 1) & (j >= 0), return_lse=True)[1],
        (q, k),
        np.ones(q.shape[:3]),
    )
    assert not dq[:, :, 1].any() and dq[:, :, 0].any() and np.isfinite(dk).all() and np.isfinite(dq).all()


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("normalizer", ["softmax", "sigmoid"])
def test_no_keys_and_no_queries(heads, normalizer):
    shape = (2, 4, heads, 5, 0, 3, 4)
    q, k, v = inputs(shape)
    out, weights = attention(q, k, v, normalizer=normalizer, mask_mod=causal, return_weights=True)
    assert out.shape == (2, 4, 5, 4) and not out.any() and weights.shape == (2, 4, 5, 0)
    assert np.array_equal(attention(q, k, v, normalizer=normalizer), out)
    assert attention(q[:, :, :0], *inputs(MAIN)[1:][:1] * 2)[..., :1].shape == (2, 4, 0, 1)
    (dq,) = gradients(lambda q: attention(q, k, v, normalizer=normalizer), (q,), np.ones(out.shape))
    assert not dq.any()


def test_no_keys_has_an_empty_lse():
    q, k, v = inputs((2, 4, 2, 5, 0, 3, 4), dtype=np.float32)
    lse = attention(q, k, v, return_lse=True)[1]
    assert lse.shape == (2, 4, 5) and (lse == -np.inf).all() and lse.dtype == np.float32


@pytest.mark.parametrize("size", [50.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores(size, dtype):
    q, k, v = inputs(MAIN, dtype=dtype)
    top = np.abs(attention_scores(q, k)).max()
    q = q * dtype(size / top)
    assert np.abs(attention_scores(q, k)).max() == pytest.approx(size, rel=1e-5)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for how in ({}, {"mask_mod": causal}, {"bias": np.full((5, 1), -size, dtype=dtype)}):
            out = attention(q, k, v, **how)
            want = naive_attention(q, k, v, **how)
            assert np.abs(out - want).max() < (2e-2 if dtype == np.float32 and size > 100 else 2e-4)
            assert np.abs(composed(q, k, v, **how) - want).max() < 2e-2
            grads = gradients(lambda *x, how=how: attention(*x, **how), (q, k, v), np.ones_like(out))
            assert all(np.isfinite(d).all() for d in grads)


@pytest.mark.parametrize("shape", [(2, 4, 2, 33, 47, 16, 24), (1, 2, 2, 64, 64, 32, 32)])
def test_float32_is_as_exact_as_another_order_of_operations(shape):
    q, k, v = inputs(shape, 4)
    low = tuple(x.astype(np.float32) for x in (q, k, v))
    q, k, v = (x.astype(np.float64) for x in low)
    out = attention(*low, mask_mod=causal)
    assert out.dtype == np.float32
    want = attention(q, k, v, mask_mod=causal)
    other = composed(*low, mask_mod=causal)
    rounding = np.abs((want + 0.3) - 0.3 - want).max() + np.spacing(np.float32(np.abs(want).max()))
    assert 0 < np.abs(out - want).max() <= 2 * np.abs(other - want).max() + rounding
    g = np.random.default_rng(5).standard_normal(out.shape).astype(np.float32)
    f = {"fast": lambda *x: attention(*x, mask_mod=causal), "other": lambda *x: composed(*x, mask_mod=causal)}
    fast, parts = (gradients(f[name], low, g) for name in ("fast", "other"))
    for d, o, w in zip(fast, parts, gradients(f["other"], (q, k, v), g.astype(float)), strict=True):
        assert d.dtype == np.float32
        assert np.abs(d - w).max() <= 2 * np.abs(o - w).max() + np.spacing(np.float32(np.abs(w).max()))


# ---- gradients


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", [None, causal])
def test_gradients_to_second_order(shape, mask):
    B, M = shape[0], shape[4]
    bias = np.random.default_rng(5).standard_normal((B, 1, 1, M))
    if M == 1:  # one weight, always 1: nothing but v has a gradient
        q, k, v = inputs(shape)
        check_grads(lambda v: attention(q, k, v, mask_mod=mask), v)
        return
    check_grads(
        lambda q, k, v, bias: attention(q, k, v, mask_mod=mask, bias=bias, scale=0.6), *inputs(shape), bias
    )


@pytest.mark.parametrize(
    "how",
    [
        {"normalizer": "sigmoid"},
        {"normalizer": "softmax", "score_mod": softcap},
        {"normalizer": "relu"},
        {"normalizer": "entmax15"},
        {"normalizer": "sparsemax"},
    ],
)
def test_gradients_of_the_composed_form(how):
    check_grads(lambda q, k, v: attention(q, k, v, mask_mod=sliding_window(3), **how), *inputs(MAIN))


def test_gradients_of_weights_and_lse():
    q, k, v = inputs(MAIN)
    check_grads(lambda q, k: attention(q, k, v, mask_mod=causal, return_weights=True)[1], q, k)
    check_grads(lambda q, k: attention(q, k, v, mask_mod=causal, return_lse=True)[1], q, k)


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_gradient_is_that_of_the_parts(shape):
    B, H, _, N, M, _, Dv = shape
    rng = np.random.default_rng(6)
    xs = (*inputs(shape), rng.standard_normal((1, H, N, M)))
    g = rng.standard_normal((B, H, N, Dv))
    fused = gradients(lambda q, k, v, b: attention(q, k, v, bias=b, mask_mod=causal), xs, g)
    parts = gradients(lambda q, k, v, b: composed(q, k, v, bias=b, mask_mod=causal), xs, g)
    for x, a, b in zip(xs, fused, parts, strict=True):
        assert a.shape == x.shape
        assert np.abs(a - b).max() < 1e-13


def test_two_backward_passes_give_the_same():
    q, k, v = (Tensor(x, requires_grad=True) for x in inputs(MAIN))
    out = attention(q, k, v, mask_mod=causal)
    g = np.random.default_rng(0).standard_normal(out.shape)
    before = g.copy()
    first = grad(out, (q, k, v), g, retain_graph=True)
    second = grad(out, (q, k, v), g)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(first, second, strict=True))
    assert np.array_equal(g, before)


def test_backward_pass_uses_the_weights_of_the_forward_pass(monkeypatch):
    q, k, v = (Tensor(x, requires_grad=True) for x in inputs(MAIN))
    out = attention(q, k, v, mask_mod=causal)
    monkeypatch.setattr(dot_product, "attention_weights", None)
    assert grad(out, (q, k, v), np.ones(out.shape), retain_graph=True)[0].shape == q.shape
    with pytest.raises(TypeError, match="not callable"):  # … unless it is to be differentiated again
        grad(out, (q, k, v), np.ones(out.shape), create_graph=True)


def test_only_the_bias_differentiated_twice():
    q, k, v = inputs(MAIN)
    check_grads(lambda b: attention(q, k, v, bias=b), np.random.default_rng(0).standard_normal((4, 5, 7)))


def test_inputs_are_left_alone():
    q, k, v = inputs(MAIN)
    bias = np.random.default_rng(0).standard_normal((2, 4, 5, 7))
    before = [x.copy() for x in (q, k, v, bias)]
    gradients(
        lambda *x: attention(*x[:3], bias=x[3], mask_mod=causal), (q, k, v, bias), np.ones((2, 4, 5, 4))
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, (q, k, v, bias), strict=True))


# ---- PyTorch as judge


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["none", "boolean", "float"])
def test_equals_pytorch(shape, kind):
    torch = pytest.importorskip("torch")
    B, H, _, N, M, _, Dv = shape
    rng = np.random.default_rng(7)
    xs, g = inputs(shape), rng.standard_normal((B, H, N, Dv))
    visible = rng.random((B, 1, N, M)) < 0.7
    visible[..., 0] = True  # PyTorch's ways disagree on rows with nothing visible
    bias = rng.standard_normal((H, N, M))
    mask = lambda b, h, i, j: visible[b, 0, i, j]  # noqa: E731
    ours = {"none": {}, "boolean": {"mask_mod": mask}, "float": {"bias": bias}}
    theirs = {"none": None, "boolean": torch.from_numpy(visible), "float": torch.from_numpy(bias)[None]}
    ts = [torch.from_numpy(x).requires_grad_() for x in xs]
    out = torch.nn.functional.scaled_dot_product_attention(*ts, attn_mask=theirs[kind], enable_gqa=True)
    out.backward(torch.from_numpy(g))
    assert np.abs(attention(*xs, **ours[kind]) - out.detach().numpy()).max() < 1e-10
    for a, t in zip(gradients(lambda *x: attention(*x, **ours[kind]), xs, g), ts, strict=True):
        assert np.abs(a - t.grad.numpy()).max() < 1e-10


# ---- laws


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_order_of_keys_does_not_matter(seed, M):
    rng = np.random.default_rng(seed)
    q, k, v = inputs((2, 4, 2, 3, M, 3, 2), seed)
    order = rng.permutation(M)
    moved = attention(q, k[:, :, order], v[:, :, order])
    assert np.abs(moved - attention(q, k, v)).max() < 1e-13


@given(st.integers(0, 2**32 - 1), st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_adding_a_constant_to_a_row_changes_nothing(seed, c):
    q, k, v = inputs(MAIN, seed)
    rows = c * np.random.default_rng(seed).standard_normal((2, 4, 5, 1))
    assert np.abs(attention(q, k, v, bias=rows) - attention(q, k, v)).max() < 1e-11


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_output_lies_between_the_values(seed):
    q, k, v = inputs(MAIN, seed, size=3)
    out = attention(q, k, v)
    v = np.repeat(v, 2, axis=1)
    assert (out <= v.max(2, keepdims=True) + 1e-12).all() and (out >= v.min(2, keepdims=True) - 1e-12).all()


@pytest.mark.parametrize("t", range(6))
def test_causality(t):
    """Changing key t changes what queries from t on get, and nothing before."""
    q, k, v = inputs((2, 3, 3, 6, 6, 4, 2))
    before = attention(q, k, v, mask_mod=causal)
    k2, v2 = k.copy(), v.copy()
    k2[:, :, t] += 1
    v2[:, :, t] -= 2
    after = attention(q, k2, v2, mask_mod=causal)
    assert np.array_equal(before[:, :, :t], after[:, :, :t])
    assert (np.abs(before - after)[:, :, t:].max(axis=(0, 1, 3)) > 1e-3).all()


def test_grouped_heads_are_repeated_keys():
    q, k, v = inputs((2, 6, 2, 5, 7, 3, 4))
    want = attention(q, np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1))
    assert np.abs(attention(q, k, v) - want).max() < 1e-14
    assert np.abs(attention(q, np.tile(k, (1, 3, 1, 1)), np.tile(v, (1, 3, 1, 1))) - want).max() > 0.1


def test_grouped_heads_copy_neither_keys_nor_values():
    import tracemalloc

    q, k, v = inputs((1, 64, 1, 1, 500, 64, 64))
    copies = 64 * k.nbytes
    with_scores = 3 * 64 * 500 * 8
    tracemalloc.start()
    attention(q, k, v)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < with_scores + 2 * q.nbytes + 100_000 < copies / 4


def test_normalizer_may_be_a_function():
    q, k, v = inputs(MAIN)

    def linear(scores, dim):
        assert dim == -1
        return np.where(scores == -np.inf, 0, scores)

    scores = np.einsum("bhid,bhjd->bhij", q, np.repeat(k, 2, axis=1)) / math.sqrt(3)
    want = np.tril(scores) @ np.repeat(v, 2, axis=1)
    assert np.abs(attention(q, k, v, normalizer=linear, mask_mod=causal) - want).max() < 1e-13
