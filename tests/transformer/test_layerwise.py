"""Attention over layers: loops, gradients, modes, and what it becomes in known cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import attention, padding
from minattn.attention.position import ALiBi
from minattn.autograd import Tensor, grad
from minattn.testing import check_causal, check_grads
from minattn.transformer import depth_attention
from minattn.transformer.layerwise import naive_depth_attention, naive_depth_gradients

pytestmark = pytest.mark.paper(154)

MODES = ("context+depth", "depth", "last")
# B, H, N, S, D, Dv
SHAPES = [(1, 1, 1, 1, 1, 1), (1, 1, 1, 3, 2, 3), (2, 2, 5, 3, 4, 4), (1, 3, 7, 2, 3, 5), (3, 1, 4, 5, 2, 2)]


def inputs(B=2, H=2, N=5, S=3, D=4, Dv=4, seed=0, M=None, Hk=None):
    rng = np.random.default_rng([seed, B, H, N, S])
    M, Hk = N if M is None else M, H if Hk is None else Hk
    return (rng.standard_normal((B, H, N, D)), rng.standard_normal((B, Hk, M, S, D)),
            rng.standard_normal((B, Hk, M, S, Dv)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_loops(shape, mode):
    arrays = inputs(*shape)
    g = np.random.default_rng(1).standard_normal((*arrays[0].shape[:3], shape[-1]))
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    out = depth_attention(*tensors, mode=mode)
    want = np.stack([naive_depth_attention(*(x[b] for x in arrays), mode) for b in range(shape[0])])
    np.testing.assert_allclose(out.data, want, rtol=1e-10, atol=1e-10)
    slopes = [naive_depth_gradients(*(x[b] for x in arrays), g[b], mode) for b in range(shape[0])]
    for got, loops in zip(grad(out, tensors, g), zip(*slopes, strict=True), strict=True):
        np.testing.assert_allclose(got.data, np.stack(loops), rtol=1e-10, atol=1e-10)
    if shape == SHAPES[2]:  # not degenerate: the queries differ, and the modes do
        assert np.ptp(want, axis=2).min() > 1e-3
        assert all(np.abs(depth_attention(*arrays, mode=m) - want).max() > 0.1 for m in MODES if m != mode)


def test_the_loops_by_hand():
    """One query of 1 sees layers with keys ln 1 and ln 3: weights 1/4 and 3/4."""
    q, k, v = np.ones((1, 1, 1)), np.log([[[[1.0], [3.0]]]]), np.array([[[[4.0], [8.0]]]])
    assert naive_depth_attention(q, k, v, "depth").item() == pytest.approx(1 + 6, abs=1e-14)
    assert naive_depth_attention(q, k, v, "last").item() == pytest.approx(8, abs=1e-14)
    dq, dk, dv = naive_depth_gradients(q, k, v, np.ones((1, 1, 1)), "context+depth")
    np.testing.assert_allclose(dv.ravel(), [1 / 4, 3 / 4], rtol=1e-14)
    np.testing.assert_allclose(dk.ravel(), [-3 / 4, 3 / 4], rtol=1e-14)  # a (v − o): ¼ (4 − 7), ¾ (8 − 7)
    assert dq.item() == pytest.approx(0.75 * np.log(3), rel=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_second_derivatives(mode):
    check_grads(lambda q, k, v: depth_attention(q, k, v, mode=mode), *inputs(1, 2, 3, 2, 2, 3))


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_those_of_the_output(mode):
    q, k, v = inputs()
    out, weights = depth_attention(q, k, v, mode=mode, return_weights=True)
    assert weights.shape == {"context+depth": (2, 2, 5, 5, 3), "depth": (2, 2, 5, 1, 3),
                             "last": (2, 2, 5, 5, 1)}[mode]
    np.testing.assert_allclose(weights.sum((3, 4)), 1, rtol=1e-14)
    np.testing.assert_allclose(out, depth_attention(q, k, v, mode=mode), rtol=0, atol=1e-14)
    if mode == "depth":
        again = np.einsum("bhims,bhisd->bhid", weights, v)
    else:
        again = np.einsum("bhijs,bhjsd->bhid", weights, v if mode != "last" else v[:, :, :, -1:])
        assert (weights > 0)[0, 0, :, :, 0].tolist() == np.tri(5, dtype=bool).tolist()
    np.testing.assert_allclose(again, out, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_no_query_sees_a_later_position(mode):
    q, k, v = inputs(1, 2, 6, 3)
    for f, x in ((lambda x: depth_attention(q, x, v, mode=mode), k),
                 (lambda x: depth_attention(q, k, x, mode=mode), v)):
        check_causal(f, x, dim=2, change=lambda t: 2 * t)


def test_depth_sees_its_own_position_alone():
    q, k, v = inputs()
    changed = k.copy()
    changed[:, :, 2] *= 2
    moved = np.abs(depth_attention(q, changed, v, mode="depth") - depth_attention(q, k, v, mode="depth"))
    assert (moved.max((0, 1, 3)) > 1e-3).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("mode", MODES)
def test_the_queries_are_the_last_of_the_positions(mode):
    q, k, v = inputs(N=6)
    whole = depth_attention(q, k, v, mode=mode)
    for n in (1, 2, 5):
        part, weights = depth_attention(q[:, :, n:], k, v, mode=mode, return_weights=True)
        np.testing.assert_allclose(part, whole[:, :, n:], atol=1e-14)
        assert weights.shape[2] == 6 - n


@pytest.mark.parametrize("mode", MODES)
def test_grouped_heads_read_shared_keys(mode):
    q, k, v = inputs(H=4, Hk=2)
    repeated = (np.repeat(x, 2, axis=1) for x in (k, v))
    np.testing.assert_allclose(depth_attention(q, k, v, mode=mode), depth_attention(q, *repeated, mode=mode),
                               atol=1e-14)


def test_one_layer_is_ordinary_attention():
    q, k, v = inputs(S=1)
    want = attention(q, k[:, :, :, 0], v[:, :, :, 0], mask_mod=lambda b, h, i, j: j <= i)
    for mode in ("context+depth", "last"):
        np.testing.assert_allclose(depth_attention(q, k, v, mode=mode), want, atol=1e-14)
    np.testing.assert_allclose(depth_attention(q, k, v, mode="depth"), v[:, :, :, 0], atol=1e-14)


def test_equal_layers_are_ordinary_attention():
    """Every key repeated S times: the weights of a key's copies add up to those of the key."""
    q, k, v = inputs(S=1)
    copies = (np.repeat(x, 4, axis=3) for x in (k, v))
    np.testing.assert_allclose(depth_attention(q, *copies), depth_attention(q, k, v), atol=1e-14)


@pytest.mark.parametrize("mode", ["context+depth", "depth"])
def test_a_mask_hides_positions_in_every_layer(mode):
    q, k, v = inputs(3, 2, 4, 3)
    lengths = np.array([4, 2, 1])
    out, weights = depth_attention(q, k, v, mode=mode, mask_mod=padding(lengths), return_weights=True)
    plain = depth_attention(q, k, v, mode=mode)
    for b, n in enumerate(lengths):
        np.testing.assert_allclose(out[b, :, :n], plain[b, :, :n], atol=1e-14)
        if mode == "depth":
            np.testing.assert_array_equal(out[b, :, n:], 0)  # nothing visible: zeros, not NaN
        else:
            assert not weights[b, :, :, n:].any() and weights[b, :, :, :n].sum((2, 3)) == pytest.approx(1)


def test_the_mask_gets_positions_also_of_few_queries():
    q, k, v = inputs(N=5)

    def some(b, h, i, j):
        return (j % 3 > 0) & (i > 0) & ((i - j) % 2 == 0)

    for mode in ("context+depth", "depth"):
        whole = depth_attention(q, k, v, mode=mode, mask_mod=some)
        part = depth_attention(q[:, :, 2:], k, v, mode=mode, mask_mod=some)
        np.testing.assert_allclose(part, whole[:, :, 2:], atol=1e-14)
        assert not whole[:, :, 0].any()


def test_the_mask_knows_batch_and_head():
    q, k, v = inputs(3, 2, 4, 3)
    for mode in ("context+depth", "depth"):
        plain = depth_attention(q, k, v, mode=mode)
        out = depth_attention(q, k, v, mode=mode, mask_mod=lambda b, h, i, j: (b + h + 0 * (i + j)) % 2 == 0)
        for b in range(3):
            for h in range(2):
                np.testing.assert_allclose(out[b, h], plain[b, h] * ((b + h) % 2 == 0), atol=1e-14)


def test_scores_are_changed_by_position():
    """A slope of distance leaves the own position alone and pulls the rest down, alike in all layers."""
    q, k, v = inputs()
    mod = ALiBi(2).score_mod
    np.testing.assert_allclose(depth_attention(q, k, v, mode="depth", score_mod=mod),
                               depth_attention(q, k, v, mode="depth"), atol=1e-14)
    _, weights = depth_attention(q, k, v, score_mod=mod, return_weights=True)
    _, plain = depth_attention(q, k, v, return_weights=True)
    i, j = np.tril_indices(5)
    slopes = np.array([2.0**-4, 2.0**-8])[:, None, None, None]
    want = plain * np.exp(-slopes * np.abs(np.arange(5)[:, None, None] - np.arange(5)[None, :, None]))
    want /= want.sum((3, 4), keepdims=True)
    np.testing.assert_allclose(weights[:, :, i, j], want[:, :, i, j], rtol=1e-12)


def test_the_score_function_gets_the_query_s_own_place():
    q, k, v = inputs(2, 2, 4, 3)

    def mod(s, b, h, i, j):
        return s * (1 + b + 10 * h + 100 * i + 1000 * j)

    _, weights = depth_attention(q, k, v, mode="depth", score_mod=mod, return_weights=True)
    scores = np.einsum("bhid,bhisd->bhis", q, k) / 2
    b, h, i = np.ix_(range(2), range(2), range(4))
    scores = scores * (1 + b + 10 * h + 1100 * i)[..., None]
    want = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(weights[:, :, :, 0], want / want.sum(-1, keepdims=True), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_layers_may_come_in_any_order(B, N, S, seed):
    """A softmax does not ask in which order its keys come; "last" alone names one."""
    q, k, v = inputs(B, 2, N, S, seed=seed)
    order = np.random.default_rng(seed).permutation(S)
    for mode in ("context+depth", "depth"):
        np.testing.assert_allclose(depth_attention(q, k[:, :, :, order], v[:, :, :, order], mode=mode),
                                   depth_attention(q, k, v, mode=mode), atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_large_logits(mode):
    q, k, v = inputs()
    out = depth_attention(50 * q, 50 * k, v, mode=mode)
    assert np.isfinite(out).all()
    want = np.stack([naive_depth_attention(50 * q[b], 50 * k[b], v[b], mode) for b in range(2)])
    np.testing.assert_allclose(out, want, atol=1e-10)


def test_what_computes_the_attention_can_be_exchanged():
    q, k, v = inputs()
    for mode in MODES:
        calls = []

        def spy(*args, calls=calls, **kwargs):
            calls.append(args[1].shape)
            return attention(*args, **kwargs)

        out = depth_attention(q, k, v, mode=mode, attend=spy)
        np.testing.assert_array_equal(out, depth_attention(q, k, v, mode=mode))
        assert calls == [{"context+depth": (2, 2, 15, 4), "depth": (10, 2, 3, 4), "last": (2, 2, 5, 4)}[mode]]


@pytest.mark.parametrize("change, message", [
    ({"mode": "both"}, r"mode: expected one of context\+depth, depth, last, got 'both'"),
    ({"q": inputs()[0][:, 0]}, r"q: expected axes \(batch, heads, positions, features\), got .*5, 4\)"),
    ({"k": inputs()[1][:, :, 0]}, r"k: expected axes \(batch, .*, layers, features\), got .*3, 4\)"),
    ({"v": inputs()[2][:, :, 0]}, r"v: expected axes \(batch, .*, layers, features\), got .*3, 4\)"),
    ({"v": inputs()[2][:, :, :, :2]}, r"v: expected shape \(2, 2, 5, 3\) before the features, .*2, 4"),
    ({"q": inputs(N=6)[0]}, r"q: expected at most the 5 positions of k, got 6"),
    ({"k": inputs()[1][..., :3]}, r"k: expected batch 2 and 4 features"),
])
def test_bad_input_is_named(change, message):
    given = dict(zip("qkv", inputs(), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        depth_attention(**given)
