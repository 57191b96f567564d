"""Fewer projections: loops, derivatives, what merges exactly and what does not, counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import AppendCache, MultiHeadAttention, RoPE, causal, padding
from minattn.autograd import Tensor, grad, no_grad
from minattn.scores import pay_better as pb
from minattn.scores.pay_better import (
    EfficientAttention,
    OptimisedAttention,
    SuperAttention,
    attention_flop_count,
    attention_parameter_count,
    merged,
    naive_pay_better,
)
from minattn.testing import check_causal, check_grads

from .complex_step import slopes

pytestmark = pytest.mark.paper(15)

# B, N, D, heads
SHAPES = [(1, 1, 1, 1), (1, 5, 3, 1), (2, 4, 6, 2), (3, 3, 6, 3), (1, 7, 4, 4)]
KINDS = ("optimised", "efficient", "super")


def enlarged(module, seed=0):
    """In float64, with weights large enough for everything to matter."""
    rng = np.random.default_rng(seed)
    for _, p in module.to(np.float64).named_parameters():
        p.data = p.data + 0.6 * rng.standard_normal(p.shape)
    return module


def make(kind, D, heads, N, bias=False, seed=0, **how):
    rng = np.random.default_rng(seed)
    if kind == "optimised":
        module = OptimisedAttention(D, heads, bias=bias, rng=rng, **how)
    elif kind == "efficient":
        module = EfficientAttention(D, heads, bias=bias, rng=rng, **how)
    else:
        module = SuperAttention(D, N, heads, bias=bias, rng=rng, **how)
    return enlarged(module)


def matrices(module, N, triangle=False):
    """W_Q, W_K, W_V, W_A, W_O, with identities for what is missing."""
    state = module.state_dict()
    eye = np.eye(module.q_proj.d_in)
    align = state.get("v_proj.weight", np.eye(N)) if isinstance(module, SuperAttention) else np.eye(N)
    value = eye if isinstance(module, OptimisedAttention) else state["v_proj.weight"]
    return (state["q_proj.weight"], state.get("k_proj.weight", eye), value,
            np.tril(align) if triangle else align, state["out_proj.weight"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_the_loops(shape, kind):
    B, N, D, H = shape
    rng = np.random.default_rng([1, *shape])
    x, g = rng.standard_normal((2, B, N, D))
    module = make(kind, D, H, N)
    leaf = Tensor(x, requires_grad=True)
    out = module(leaf)
    want = np.stack([naive_pay_better(row, *matrices(module, N), H) for row in x])
    np.testing.assert_allclose(out.data, want, rtol=1e-10, atol=1e-10)
    names = [name for name, _ in module.named_parameters()]
    got = grad(out, [leaf, *(p for _, p in module.named_parameters())], g)
    loops = [slopes(lambda *a: naive_pay_better(*a, H), x[b], *matrices(module, N), g=g[b]) for b in range(B)]
    np.testing.assert_allclose(got[0].data, np.stack([s[0] for s in loops]), rtol=1e-9, atol=1e-10)
    place = {"q_proj": 1, "k_proj": 2, "v_proj": 4, "out_proj": 5}
    assert len(names) == {"optimised": 3, "efficient": 2, "super": 3}[kind]
    for name, slope in zip(names, got[1:], strict=True):
        total = sum(s[place[name.split(".")[0]]] for s in loops)
        np.testing.assert_allclose(slope.data, total, rtol=1e-9, atol=1e-10, err_msg=name)
    if N > 3:  # not degenerate
        assert np.ptp(want, axis=1).min() > 1e-3


def test_the_loops_by_hand():
    """Two positions of one feature: scores of 1 against 0 and ln 3 weigh the values 1/4 and 3/4."""
    x, one, eye = np.array([[1.0], [2.0]]), np.eye(1), np.eye(2)
    keys = np.log(3) * one  # W_K: keys ln 3 and 2 ln 3, so the weights of query 1 are 1/4 and 3/4
    out = naive_pay_better(x, one, keys, 4 * one, eye, 2 * one)
    assert out[0, 0] == pytest.approx(2 * (1 / 4 * 4 + 3 / 4 * 8), abs=1e-14)
    flipped = naive_pay_better(x, one, keys, 4 * one, eye[::-1], 2 * one)
    assert flipped[0, 0] == pytest.approx(2 * (1 / 4 * 8 + 3 / 4 * 4), abs=1e-14)
    alone = naive_pay_better(x, one, keys, 4 * one, eye, one, mask_mod=lambda b, h, i, j: j == i)
    np.testing.assert_allclose(alone, 4 * x, rtol=1e-14)
    blind = naive_pay_better(x, one, keys, one, eye, one, mask_mod=lambda b, h, i, j: False)
    np.testing.assert_array_equal(blind, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind):
    x = np.random.default_rng(2).standard_normal((1, 3, 4))
    check_grads(make(kind, 4, 2, 3), x)


def standard(D, H, bias=False, **how):
    return enlarged(MultiHeadAttention(D, H, bias=bias, rng=np.random.default_rng(3), **how), 3)


def test_optimised_is_standard_without_a_value_map():
    """And efficient is standard without a key map either; biases and all."""
    x = np.random.default_rng(4).standard_normal((2, 5, 6))
    twin = standard(6, 3, bias=True)
    twin.v_proj.weight.data, twin.v_proj.bias.data = np.eye(6), np.zeros(6)
    optimised = make("optimised", 6, 3, 5, bias=True)
    for name in ("q_proj", "k_proj", "out_proj"):
        setattr(optimised, name, getattr(twin, name))
    np.testing.assert_allclose(optimised(x).data, twin(x).data, atol=1e-13)
    twin.k_proj.weight.data, twin.k_proj.bias.data = np.eye(6), np.zeros(6)
    efficient = make("efficient", 6, 3, 5, bias=True)
    efficient.q_proj, efficient.out_proj = twin.q_proj, twin.out_proj
    np.testing.assert_allclose(efficient(x).data, twin(x).data, atol=1e-13)
    np.testing.assert_allclose(optimised(x).data, twin(x).data, atol=1e-13)


def test_super_is_efficient_before_training():
    x = np.random.default_rng(5).standard_normal((2, 5, 6)).astype(np.float32)
    rng = np.random.default_rng
    fresh, plain = SuperAttention(6, 5, 2, rng=rng(0)), EfficientAttention(6, 2, rng=rng(0))
    np.testing.assert_array_equal(fresh(x).data, plain(x).data)
    assert fresh.v_proj.weight.data.dtype == np.float32


def test_super_is_standard_with_values_mixed_beforehand():
    x = np.random.default_rng(6).standard_normal((2, 5, 4))
    module, twin = make("super", 4, 2, 5), standard(4, 2)
    twin.q_proj, twin.out_proj = module.q_proj, module.out_proj
    twin.k_proj.weight.data = twin.v_proj.weight.data = np.eye(4)
    mixed = np.einsum("ij,bjd->bid", module.v_proj.weight.data, x)
    np.testing.assert_allclose(module(x).data, twin(x, x, mixed).data, atol=1e-13)
    assert np.abs(module(x).data - twin(x).data).max() > 0.1


@pytest.mark.parametrize("bias", [False, True])
def test_a_single_head_merges_exactly(bias):
    x = np.random.default_rng(7).standard_normal((2, 6, 5))
    one = standard(5, 1, bias)
    twin = merged(one)
    assert type(twin) is EfficientAttention and (twin.q_proj.bias is not None) == bias
    np.testing.assert_allclose(twin(x).data, one(x).data, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(twin(x, mask_mod=causal).data, one(x, mask_mod=causal).data, atol=1e-10)
    optimised = make("optimised", 5, 1, 6, bias=bias)
    optimised.q_proj, optimised.k_proj, optimised.out_proj = one.q_proj, one.k_proj, twin.out_proj
    np.testing.assert_allclose(optimised(x).data, one(x).data, rtol=1e-10, atol=1e-10)


def test_two_heads_do_not_merge():
    """Each head has values of its own in standard attention: no W_O' of the optimised form reaches them all.

    Its outputs are linear in W_O', so the best one is a least-squares problem; what is left is not small.
    """
    rng = np.random.default_rng(8)
    x, two = rng.standard_normal((40, 5, 4)), standard(4, 2)
    want = two(x).data.reshape(-1, 4)

    def left(heads):
        module = make("optimised", 4, heads, 5)
        source = two if heads == 2 else standard(4, 1)
        module.q_proj, module.k_proj = source.q_proj, source.k_proj
        seen = {}
        module.hook_heads.register_forward_hook(lambda m, args, out: seen.update(out=out))
        module(x)
        sides = seen["out"].data.transpose(0, 2, 1, 3).reshape(-1, 4)
        target = want if heads == 2 else source(x).data.reshape(-1, 4)
        best = np.linalg.lstsq(sides, target, rcond=None)[0]
        return np.abs(sides @ best - target).max()

    assert left(1) < 1e-10
    assert left(2) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_rows_that_see_nothing(kind):
    N = 5
    x = np.random.default_rng(9).standard_normal((2, N, 4))
    module = make(kind, 4, 2, N)
    W = matrices(module, N)
    for mask in (causal, padding(np.array([3, 5])), lambda b, h, i, j: (i != 2) & (j <= i)):
        def masked(c, mask=mask):
            return lambda _, h, i, j: mask(c, h, i, j)
        want = np.stack([naive_pay_better(row, *W, 2, masked(c)) for c, row in enumerate(x)])
        np.testing.assert_allclose(module(x, mask_mod=mask).data, want, atol=1e-10)
    leaf = Tensor(x, requires_grad=True)
    out = module(leaf, mask_mod=lambda b, h, i, j: (i != 2) & (j <= i))
    np.testing.assert_array_equal(out.data[:, 2], 0)
    assert np.isfinite(grad(out, [leaf], np.ones_like(x))[0].data).all()


def test_a_triangular_super_attention_does_not_see_the_future():
    module = make("super", 4, 2, 6, causal=True)
    x = np.random.default_rng(10).standard_normal((2, 6, 4))
    check_causal(lambda t: module(t, mask_mod=causal), x)
    whole = module(x, mask_mod=causal).data
    want = np.stack([naive_pay_better(row, *matrices(module, 6, triangle=True), 2,
                                      lambda b, h, i, j: j <= i) for row in x])
    np.testing.assert_allclose(whole, want, atol=1e-10)
    for n in (1, 3, 5):  # and shorter sequences are served
        np.testing.assert_allclose(module(x[:, :n], mask_mod=causal).data, whole[:, :n], atol=1e-13)
    full = make("super", 4, 2, 6)
    with pytest.raises(AssertionError, match="changing position"):
        check_causal(lambda t: full(t, mask_mod=causal), x)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 99))
def test_only_super_attention_depends_on_the_order(N, H, seed):
    rng = np.random.default_rng(seed)
    x, order = rng.standard_normal((1, N, 2 * H)), rng.permutation(N)
    for kind in ("optimised", "efficient"):
        module = make(kind, 2 * H, H, N)
        np.testing.assert_allclose(module(x[:, order]).data, module(x).data[:, order], atol=1e-12)
    if (order != np.arange(N)).any():
        module = make("super", 2 * H, H, N)
        assert np.abs(module(x[:, order]).data - module(x).data[:, order]).max() > 1e-6


@pytest.mark.parametrize("kind", ["optimised", "efficient"])
def test_positions_and_caches_are_those_of_multi_head_attention(kind):
    """A cache cut anywhere gives the same output, and was used."""
    module = make(kind, 8, 2, 6, position=RoPE(4))
    x = np.random.default_rng(11).standard_normal((1, 6, 8))
    whole = module(x, mask_mod=causal).data
    assert np.abs(whole - make(kind, 8, 2, 6)(x, mask_mod=causal).data).max() > 1e-3
    for cut in (1, 4):
        cache = AppendCache()
        with no_grad():
            parts = [module(p, mask_mod=causal, cache=cache).data for p in (x[:, :cut], x[:, cut:])]
        np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-12)
        assert cache.length == 6


@pytest.mark.parametrize("kind", KINDS)
def test_large_logits(kind):
    module = make(kind, 4, 2, 5)
    module.q_proj.weight.data = module.q_proj.weight.data * 1e4
    assert np.isfinite(module(np.random.default_rng(12).standard_normal((1, 5, 4))).data).all()


def test_equal_seeds_give_equal_weights():
    rng = np.random.default_rng
    whole = MultiHeadAttention(6, 2, rng=rng(1)).state_dict()
    for module in (OptimisedAttention(6, 2, rng=rng(1)), EfficientAttention(6, 2, rng=rng(1))):
        for name, value in module.state_dict().items():
            np.testing.assert_array_equal(value, whole[name])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["standard", *KINDS])
def test_counts_are_those_of_the_modules(kind, bias):
    D, N = 6, 5
    module = (MultiHeadAttention(D, 2, bias=bias, rng=np.random.default_rng(0)) if kind == "standard"
              else make(kind, D, 2, N, bias))
    weights = sum(p.data.size for p in module.parameters())
    assert attention_parameter_count(kind, D, N, bias) == weights
    by_formula = {"standard": 4 * D * D, "optimised": 3 * D * D, "efficient": 2 * D * D,
                  "super": 2 * D * D + N * N}[kind]
    assert attention_parameter_count(kind, D, N) == by_formula
    if kind != "super":
        assert attention_parameter_count(kind, D) == by_formula


def test_operations():
    N, D = 8, 32
    flops = {kind: attention_flop_count(kind, D, N) for kind in ("standard", *KINDS)}
    assert flops["standard"] == 2 * N * D * D * 4 + 2 * N * N * D * 2
    assert flops["standard"] - flops["optimised"] == flops["optimised"] - flops["efficient"] == 2 * N * D * D
    assert flops["super"] - flops["efficient"] == 2 * N * N * D
    assert flops["efficient"] < flops["optimised"] < flops["standard"]


def test_mistakes():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^d_model: expected a multiple of n_heads=4 \(or d_head\), got 6"):
        OptimisedAttention(6, 4, rng=rng)
    with pytest.raises(ValueError, match=r"^context: expected a whole number ≥ 1, got 0$"):
        SuperAttention(4, 0, rng=rng)
    module, x = SuperAttention(4, 5, rng=rng), np.zeros((1, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"^value: expected 5 positions, which W_A mixes, got 4$"):
        module(x)
    with pytest.raises(ValueError, match=r"^cache: expected None, as values mix all positions, got a cache$"):
        module(x, cache=AppendCache())
    narrow = SuperAttention(4, 3, causal=True, rng=rng)
    with pytest.raises(ValueError, match=r"^value: expected at most 3 positions, which W_A mixes, got 4$"):
        narrow(x)
    with pytest.raises(ValueError, match=r"^kind: expected one of standard, optimised, .*, got 'fast'$"):
        attention_parameter_count("fast", 4)
    with pytest.raises(ValueError, match=r"^kind: "):
        attention_flop_count("fast", 4, 4)
    with pytest.raises(ValueError, match=r"^context: expected a whole number ≥ 1, got None$"):
        attention_parameter_count("super", 4)
    for wrong, text in ((standard(4, 2), "expected one head, whose matrices can be merged, got 2$"),
                        (standard(4, 1, normalizer="relu"), "no position encoding and the softmax, got "
                         "PositionEncoding and 'relu'$"),
                        (standard(4, 1, position=RoPE(4)), "the softmax, got RoPE and 'softmax'$")):
        with pytest.raises(ValueError, match=r"^standard: .*" + text):
            merged(wrong)


def test_dropout_and_normalizers_arrive():
    rng = np.random.default_rng(0)
    x = np.random.default_rng(13).standard_normal((1, 4, 4)).astype(np.float32)
    relu = EfficientAttention(4, normalizer="relu", rng=rng)
    assert np.abs(relu(x).data - EfficientAttention(4, rng=np.random.default_rng(0))(x).data).max() > 1e-3
    dropped = EfficientAttention(4, dropout=0.5, rng=rng)
    assert np.abs(dropped(x).data - dropped.eval()(x).data).max() > 1e-3
    assert EfficientAttention(4, rng=rng).n_heads == SuperAttention(4, 5, rng=rng).n_heads == 1
    assert EfficientAttention(4, rng=rng).q_proj.bias is not None
    assert pb.Alignment(4).causal is False


def test_super_attention_crosses_sequences():
    """Keys and values from elsewhere: W_A mixes the values' positions, not the queries'."""
    x, y, z = (np.random.default_rng(n).standard_normal((2, m, 4)) for n, m in ((14, 3), (15, 5), (16, 5)))
    module, plain = make("super", 4, 2, 5), make("efficient", 4, 2, 5)
    plain.q_proj, plain.out_proj = module.q_proj, module.out_proj
    mixed = module.v_proj.weight.data @ z
    np.testing.assert_allclose(module(x, y, z).data, plain(x, y, mixed).data, atol=1e-13)
    np.testing.assert_allclose(module(x, y).data, module(x, y, y).data, atol=1e-13)
