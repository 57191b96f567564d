"""Rectified linear attention: loops, its norm, its layer, and the measures."""

import math

import numpy as np
import pytest

from minattn.attention import (
    AppendCache,
    MultiHeadAttention,
    attention,
    causal,
    entmax15,
    padding,
    sparsemax,
)
from minattn.autograd import Tensor, grad, no_grad
from minattn.kernels import rms_norm
from minattn.scores.rela import (
    NormedLinear,
    ReLAAttention,
    alignment_error_rate,
    entmax_bisection,
    head_diversity,
    naive_rela,
    null_rate,
    rms_norm_gated,
    zero_rate,
)
from minattn.testing import check_causal, check_grads

from .complex_step import slopes

pytestmark = pytest.mark.paper(57)

# B, H, N, M, D, Dv
SHAPES = [(1, 1, 1, 1, 1, 1), (1, 1, 1, 4, 3, 2), (2, 3, 5, 5, 4, 4), (1, 2, 3, 7, 5, 3), (3, 1, 4, 2, 2, 5)]


def inputs(B=2, H=3, N=5, M=5, D=4, Dv=4, seed=0):
    rng = np.random.default_rng([seed, B, H, N, M])
    return (rng.standard_normal((B, H, N, D)), rng.standard_normal((B, H, M, D)),
            rng.standard_normal((B, H, M, Dv)), 1 + rng.random(H * Dv), rng.standard_normal(H * Dv))


def side_by_side(heads):
    B, H, N, D = heads.shape
    return heads.transpose(0, 2, 1, 3).reshape(B, N, H * D) if isinstance(heads, np.ndarray) else \
        heads.permute(0, 2, 1, 3).reshape(B, N, H * D)


def fast(q, k, v, gain, gate=None, *, mask_mod=None, eps=1e-8):
    heads = attention(q, k, v, normalizer="relu", mask_mod=mask_mod)
    return rms_norm_gated(side_by_side(heads), gain, gate, eps)


def some(b, h, i, j):
    """Irregular, with a query that sees nothing."""
    return ((3 * i + j + b + h) % 3 > 0) & (i != 2)


def layer(variant="g", seed=0, **how):
    """In float64, with weights large enough to matter."""
    rng = np.random.default_rng(seed)
    made = ReLAAttention(6, 3, variant=variant, rng=rng, **how).to(np.float64)
    for _, p in made.named_parameters():
        p.data = p.data + 0.5 * rng.standard_normal(p.shape)
    return made, rng.standard_normal((2, 5, 6))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("mask", [None, causal, some])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_loops(shape, mask, gated):
    arrays = inputs(*shape)[: 5 if gated else 4]
    g = np.random.default_rng(1).standard_normal((shape[0], shape[2], shape[1] * shape[5]))
    leaves = [Tensor(x, requires_grad=True) for x in arrays]
    out = fast(*leaves, mask_mod=mask, eps=1e-3)

    def loops(*x):
        return naive_rela(*x, mask_mod=mask, eps=1e-3)

    want = loops(*arrays)
    np.testing.assert_allclose(out.data, want, rtol=1e-12, atol=1e-12)
    for got, slope in zip(grad(out, leaves, g), slopes(loops, *arrays, g=g), strict=True):
        np.testing.assert_allclose(got.data, slope, rtol=1e-9, atol=1e-10)
    if shape == SHAPES[2] and mask is None:  # not degenerate
        assert np.ptp(want, axis=1).min() > 1e-2


def test_by_hand():
    """Scores 1, −2, 3: weights 1, 0, 3; 1 · 5 + 3 · 7 = 26. A gain of 2 on one feature: 26 / 26 · 2."""
    q, k = np.ones((1, 1, 1, 1)), np.array([1.0, -2.0, 3.0]).reshape(1, 1, 3, 1)
    v = np.array([[5.0, 0.0], [1.0, 1.0], [7.0, 0.0]]).reshape(1, 1, 3, 2)
    assert attention(q, k, v, normalizer="relu").ravel().tolist() == [26, 0]
    for f in (naive_rela, fast):
        out = f(q, k, v, np.array([2.0, 1.0]), np.array([np.log(3) / 26, 0.0]))
        np.testing.assert_allclose(out.ravel(), [2 * math.sqrt(2) * 0.75, 0], rtol=1e-9)


def test_scaling_all_scores_leaves_the_ungated_output():
    q, k, v, gain, gate = inputs()
    plain, gated = (fast(q, k, v, gain, w, eps=1e-14) for w in (None, gate))
    for c in (0.3, 2.0, 50.0):
        np.testing.assert_allclose(fast(c * q, k, v, gain, eps=1e-14), plain, atol=1e-12)
        np.testing.assert_allclose(naive_rela(c * q, k, v, gain, eps=1e-14), plain, atol=1e-12)
        assert np.abs(fast(c * q, k, v, gain, gate, eps=1e-14) - gated).max() > 1e-2


def test_norm():
    rng = np.random.default_rng(2)
    x, gain = rng.standard_normal((3, 4, 6)), rng.standard_normal(6)
    plain = rms_norm_gated(x, gain)
    np.testing.assert_allclose(plain, x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-8) * gain, atol=1e-14)
    np.testing.assert_allclose(rms_norm_gated(x, gain, np.zeros(6)), rms_norm(x, gain, 1e-8) / 2, atol=1e-14)
    np.testing.assert_array_equal(rms_norm_gated(0 * x, gain, gain), 0)
    check_grads(lambda *t: rms_norm_gated(*t), x, gain, rng.standard_normal(6))
    with pytest.raises(ValueError, match=r"^eps: expected a number above 0, got 0$"):
        rms_norm_gated(x, gain, eps=0)
    with pytest.raises(ValueError, match=r"^gain: expected shape \(6,\), got \(5,\)$"):
        rms_norm_gated(x, gain[:5])
    with pytest.raises(ValueError, match=r"^gate: expected shape \(6,\), got \(1, 6\)$"):
        rms_norm_gated(x, gain, gain[None])


def test_negative_rows_are_nothing():
    """One head negative: its slice is 0. All heads: the output before W_o is 0. Gradients stay finite."""
    q, k, v, gain, gate = inputs()
    q, k = np.abs(q), np.abs(k)
    q[:, 1] *= -1
    out = fast(q, k, v, gain, gate)
    np.testing.assert_array_equal(out[..., 4:8], 0)
    assert np.abs(out[..., :4]).min() > 0
    q[:, :, 3] = -np.abs(q[:, :, 3])
    leaves = [Tensor(x, requires_grad=True) for x in (q, k, v, gain, gate)]
    out = fast(*leaves)
    np.testing.assert_array_equal(out.data[:, 3], 0)
    for slope in grad(out, leaves, np.ones(out.shape)):
        assert np.isfinite(slope.data).all()
    np.testing.assert_array_equal(grad(fast(*leaves), leaves[:1], np.ones(out.shape))[0].data[:, :, 3], 0)


def test_sums_of_rows():
    z = np.random.default_rng(3).standard_normal((40, 9))
    np.testing.assert_allclose(sparsemax(z, -1).sum(-1), 1, atol=1e-14)
    assert np.ptp(np.maximum(z, 0).sum(-1)) > 1


@pytest.mark.parametrize("variant", ["g", "i", "none"])
@pytest.mark.parametrize("mask", [None, causal, padding(np.array([3, 5]))])
def test_the_layer_is_the_loops_and_a_projection(variant, mask):
    made, x = layer(variant)
    w = made.state_dict()
    q, k, v = ((x @ w[f"{c}_proj.weight"].T + w[f"{c}_proj.bias"]).reshape(2, 5, 3, 2).transpose(0, 2, 1, 3)
               for c in "qkv")
    if variant == "none":
        heads = side_by_side(attention(q, k, v, normalizer="relu", mask_mod=mask))
    else:
        heads = naive_rela(q, k, v, w["out_proj.gain"], w.get("out_proj.gate"), mask_mod=mask)
    want = heads @ w["out_proj.weight"].T + w["out_proj.bias"]
    np.testing.assert_allclose(made(x, mask_mod=mask).data, want, atol=1e-12)


@pytest.mark.parametrize("variant", ["g", "i"])
def test_causal_and_the_same_in_pieces(variant):
    made, x = layer(variant)
    check_causal(lambda t: made(t, mask_mod=causal), x)
    with no_grad():
        whole, cache = made(x, mask_mod=causal).data, AppendCache()
        parts = [made(x[:, s:t], mask_mod=causal, cache=cache).data for s, t in ((0, 1), (1, 4), (4, 5))]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-12)
    assert cache.length == 5


def test_cross_attention():
    made, x = layer()
    memory = np.random.default_rng(4).standard_normal((2, 7, 6))
    out = made(x, memory)
    assert out.shape == (2, 5, 6)
    order = np.random.default_rng(5).permutation(7)
    np.testing.assert_allclose(made(x, memory[:, order]).data, out.data, atol=1e-12)
    assert np.abs(out.data - made(x).data).max() > 1e-2


def test_how_a_layer_starts():
    for variant in ("g", "i", "none"):
        own = ReLAAttention(6, 3, variant=variant, rng=np.random.default_rng(0)).state_dict()
        base = MultiHeadAttention(6, 3, rng=np.random.default_rng(0)).state_dict()
        for name, value in base.items():
            np.testing.assert_array_equal(own.pop(name), value)
        more = {"g": ["out_proj.gain", "out_proj.gate"], "i": ["out_proj.gain"], "none": []}
        assert sorted(own) == more[variant]
        if variant != "none":
            np.testing.assert_array_equal(own["out_proj.gain"], np.float32(1 if variant == "g" else 0.1))
        if variant == "g":
            assert 0 < np.abs(own["out_proj.gate"]).max() <= 6**-0.5
    small = ReLAAttention(6, 3, variant="i", small=0.5, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(small.out_proj.gain.data, np.float32(0.5))
    bare = ReLAAttention(6, 3, bias=False, rng=np.random.default_rng(0))
    assert bare.out_proj.bias is None
    assert NormedLinear(4, 3, variant="i", rng=np.random.default_rng(0)).bias is not None
    loose, x = layer(eps=1.0)
    tight, _ = layer(eps=1e-8)
    assert np.abs(loose(x).data - tight(x).data).max() > 1e-2
    with pytest.raises(ValueError, match=r"^variant: expected 'g', 'i' or 'none', got 'h'$"):
        ReLAAttention(6, 3, variant="h", rng=np.random.default_rng(0))


def test_every_weight_has_a_gradient():
    made, x = layer()
    out = made(x)
    g = np.random.default_rng(6).standard_normal(out.shape)
    for name, p in made.named_parameters():
        (slope,) = grad(out, [p], g, retain_graph=True)
        assert np.abs(slope.data).max() > 1e-6, name


def test_rates():
    weights = np.array([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]]])
    assert zero_rate(weights) == 8 / 12
    assert zero_rate(weights, np.array([True, True, False])) == 5 / 8
    assert null_rate(weights) == 1 / 4
    assert null_rate(weights, np.array([[True, False], [True, False]])) == 0
    assert null_rate(weights, np.array([False, True])) == 1 / 2


def test_head_diversity():
    same = np.random.default_rng(7).random((2, 1, 3, 5)) * np.ones((2, 4, 1, 1))
    assert head_diversity(same) == pytest.approx(0, abs=1e-15)
    apart = np.zeros((1, 3, 2, 3))
    apart[:, [0, 1, 2], :, [0, 1, 2]] = np.array([1.0, 5.0, 2.0]).reshape(3, 1, 1)  # rows are divided by sums
    assert head_diversity(apart) == pytest.approx(math.log(3), rel=1e-14)
    apart[:, 0, 1] = 0  # a null head does not count
    assert head_diversity(apart) == pytest.approx((math.log(3) + math.log(2)) / 2, rel=1e-14)
    apart[:, 1, 1] = 0  # nor does a query with one head left
    assert head_diversity(apart) == pytest.approx(math.log(3), rel=1e-14)
    assert head_diversity(0 * apart) == 0
    half = np.array([[1.0, 1.0], [1.0, 0.0]]).reshape(1, 2, 1, 2)
    mixed = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - math.log(2) / 2
    assert head_diversity(half) == pytest.approx(mixed, rel=1e-14)


def test_alignment_error_rate():
    found, sure = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    assert alignment_error_rate(found, sure) == 1 - 2 / 4
    assert alignment_error_rate(found, sure, np.array([1, 1, 1, 0])) == 1 - 3 / 4
    assert alignment_error_rate(found, sure, np.array([0, 1, 0, 0])) == 1 - 3 / 4  # what is sure is possible
    assert alignment_error_rate(sure, sure) == 0
    with pytest.raises(ValueError, match=r"^found, sure, possible: expected equal shapes, got \(4,\), \(3"):
        alignment_error_rate(found, sure[:3])
    with pytest.raises(ValueError, match=r"^found, sure: expected at least one link, got none$"):
        alignment_error_rate(0 * found, 0 * sure)


def test_entmax_by_bisection_and_by_sorting():
    z = 2 * np.random.default_rng(8).standard_normal((30, 7))
    np.testing.assert_allclose(entmax_bisection(z), entmax15(z, -1), atol=1e-12)
    np.testing.assert_allclose(entmax_bisection(z, 2.0), sparsemax(z, -1), atol=1e-12)
    soft = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    np.testing.assert_allclose(entmax_bisection(z, 1.0001), soft, atol=1e-3)
    np.testing.assert_allclose(entmax_bisection(z, steps=1).sum(-1), 1, atol=1e-14)
    assert (entmax_bisection(z) == 0).any()
    with pytest.raises(ValueError, match=r"^alpha: expected a number above 1, got 1$"):
        entmax_bisection(z, 1)
