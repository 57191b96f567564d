"""Co-attention, hierarchical and multi-dimensional attention and meta-embeddings against their loops."""

from __future__ import annotations

import numpy as np
import pytest

from minattn.attention import (
    CoAttention,
    HierarchicalAttention,
    MetaEmbedding,
    MultiDimAttention,
    Step,
    attend,
    attention,
    naive_attention,
)
from minattn.attention.cells import naive_co_attention, naive_hierarchical, naive_multi_dim
from minattn.autograd import Tensor, tensor
from minattn.testing import check_grads

pytestmark = pytest.mark.paper(1)

RTOL, ATOL = 1e-12, 1e-14


def made(kind, *args, seed=0, size=3.0, **options):
    """A module in float64 with weights large enough that its attention is far from uniform."""
    module = kind(*args, rng=np.random.default_rng(seed), **options).to(np.float64)
    for p in module.parameters():
        p.data = size * p.data
    return module


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


def with_parameters(module, f):
    """f as a function of the module's parameters after its own arguments, for gradient checks."""
    params = list(module.parameters())
    values = [p.data.copy() for p in params]

    def called(*args):
        inputs, new = args[: -len(params)], args[-len(params) :]
        owners = [
            (owner, name)
            for q in params
            for owner in module.modules()
            for name, value in vars(owner).items()
            if value is q
        ]
        for (owner, name), value in zip(owners, new, strict=True):
            owner.__dict__[name] = value
        try:
            return f(*inputs)
        finally:
            for (owner, name), value in zip(owners, params, strict=True):
                owner.__dict__[name] = value

    return called, values


# ---- co-attention


@pytest.mark.parametrize("pool", ["hidden", "max"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 4, 5, 3, 2), (1, 3, 1, 2, 4), (3, 1, 4, 2, 2)])
def test_co_attention_is_its_loops(sizes, pool):
    B, N, M, dx, dy = sizes
    net = made(CoAttention, dx, dy, d_hidden=3, pool=pool)
    x, y = normal(B, N, dx), normal(B, M, dy, seed=2)
    got, want = net(x, y), naive_co_attention(x, y, net.state_dict(), pool)
    for g, w, s in zip(got, want, (x, y), strict=True):
        assert g.shape == w.shape and isinstance(g, Tensor)
        np.testing.assert_allclose(g.data, w, rtol=RTOL, atol=ATOL)
        assert s.shape[1] == 1 or np.abs(w - s.mean(1)).max() > 1e-3


@pytest.mark.parametrize("pool", ["hidden", "max"])
def test_gradients_of_co_attention(pool):
    net = made(CoAttention, 3, 2, d_hidden=4, pool=pool, size=1.5)
    for side in (0, 1):
        f, values = with_parameters(net, lambda x, y, side=side: net(x, y)[side])
        check_grads(f, normal(2, 4, 3), normal(2, 5, 2, seed=2), *values, order=1, rtol=1e-6, atol=1e-6)


def test_exchanging_the_sequences_exchanges_the_summaries():
    net, other = made(CoAttention, 3, 2), made(CoAttention, 2, 3)
    state = net.state_dict()
    other.load_state_dict(
        {
            "affinity.weight": state["affinity.weight"].T,
            **{
                f"{part}_{a}.weight": state[f"{part}_{b}.weight"]
                for part in ("hidden", "score")
                for a, b in ("xy", "yx")
            },
        }
    )
    x, y = normal(2, 4, 3), normal(2, 5, 2, seed=2)
    (x_hat, y_hat), (y_too, x_too) = net(x, y), other(y, x)
    np.testing.assert_allclose(x_hat.data, x_too.data, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(y_hat.data, y_too.data, rtol=RTOL, atol=ATOL)


def test_without_affinity_each_side_is_on_its_own():
    """W_b = 0: C = 0, and the weights of x no longer depend on y."""
    net = made(CoAttention, 3, 2)
    x, y = normal(2, 4, 3), normal(2, 5, 2, seed=2)
    before = net(x, y)[0].data, net(x, 2 * y)[0].data
    net.affinity.weight.data = np.zeros((3, 2))
    after = net(x, y)[0].data, net(x, 2 * y)[0].data
    assert np.abs(before[0] - before[1]).max() > 1e-3
    np.testing.assert_array_equal(*after)


# ---- hierarchical attention


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 3), (1, 4, 1, 2), (2, 1, 5, 3)])
def test_two_levels_are_the_recursion(shape):
    net = made(HierarchicalAttention, shape[-1], d_hidden=5)
    x = normal(*shape)
    got, want = net(x).data, naive_hierarchical(x, net.state_dict())
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=ATOL)
    assert got.shape == (shape[0], shape[-1])
    assert shape[1] * shape[2] == 1 or np.abs(want - x.mean((1, 2))).max() > 1e-3


@pytest.mark.parametrize("levels", [1, 3])
def test_other_depths_are_the_recursion(levels):
    net = made(HierarchicalAttention, 2, levels=levels)
    x = normal(2, *(3, 2, 4)[:levels], 2)
    np.testing.assert_allclose(net(x).data, naive_hierarchical(x, net.state_dict()), rtol=RTOL, atol=ATOL)


def test_padding_is_as_if_it_were_not_there():
    """A sentence of padding takes no part in its document, and a document of padding is zero."""
    net = made(HierarchicalAttention, 3)
    x = normal(3, 3, 4, 3)
    mask = np.ones((3, 3, 4), dtype=bool)
    mask[0, 0, 2:], mask[0, 2], mask[1] = False, False, False
    got = net(x, mask).data
    np.testing.assert_allclose(got, naive_hierarchical(x, net.state_dict(), mask), rtol=RTOL, atol=ATOL)
    np.testing.assert_array_equal(got[1], 0)
    np.testing.assert_array_equal(net(np.where(mask[..., None], x, 99.0), mask).data, got)
    np.testing.assert_array_equal(got[2], net(x).data[2])
    assert np.abs(got[0] - net(x).data[0]).max() > 1e-3


def test_gradients_of_hierarchical_attention():
    net = made(HierarchicalAttention, 3, d_hidden=4, size=1.5)
    mask = np.ones((2, 2, 3), dtype=bool)
    mask[0, 1, 1:] = False
    f, values = with_parameters(net, lambda x: net(x, mask))
    check_grads(f, normal(2, 2, 3, 3), *values, order=1, rtol=1e-6, atol=1e-6)


# ---- multi-dimensional attention


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 1, 1), (2, 3, 4, 5, 3, 2, 4), (1, 2, 3, 7, 2, 3, 1)])
def test_multi_dim_is_its_loops(shape):
    B, H, N, M, dq, dk, dv = shape
    net = made(MultiDimAttention, dq, dk, dv, d_hidden=5)
    q, k, v = normal(B, H, N, dq), normal(B, H, M, dk, seed=2), normal(B, H, M, dv, seed=3)
    got, want = net(q, k, v).data, naive_multi_dim(q, k, v, net.state_dict())
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=ATOL)
    weights = net.weights(q, k).data
    assert weights.shape == (B, H, N, M, dv)
    np.testing.assert_allclose(weights.sum(3), 1, rtol=1e-12)
    assert M == 1 or dv == 1 or np.ptp(weights, axis=-1).max() > 0.1


def test_tied_features_are_additive_attention():
    net = made(MultiDimAttention, 3, 2, 4)
    w = normal(8)
    net.scores.weight.data = np.tile(w, (4, 1))
    q, k, v = normal(2, 3, 4, 3), normal(2, 3, 5, 2, seed=2), normal(2, 3, 5, 4, seed=3)
    want = attend(
        q, k, v, "additive", w=w, W1=net.from_q.weight.data, W2=net.from_k.weight.data, b=net.from_k.bias.data
    )
    np.testing.assert_allclose(net(q, k, v).data, want, rtol=RTOL, atol=ATOL)


def test_gradients_of_multi_dim():
    net = made(MultiDimAttention, 3, 2, 4, d_hidden=3, size=1.5)
    f, values = with_parameters(net, net.forward)
    check_grads(
        f,
        normal(2, 1, 3, 3),
        normal(2, 1, 4, 2, seed=2),
        normal(2, 1, 4, 4, seed=3),
        *values,
        order=1,
        rtol=1e-6,
        atol=1e-6,
    )


# ---- several representations


@pytest.mark.parametrize("distribution", ["softmax", "sigmoid"])
def test_meta_embedding_is_a_weighted_sum_at_every_position(distribution):
    net = made(MetaEmbedding, (2, 3), 4, distribution=distribution)
    a, b = normal(2, 3, 2), normal(2, 3, 3, seed=2)
    state, got = net.state_dict(), net(a, b).data
    assert got.shape == (2, 3, 4)
    for n, i in np.ndindex(2, 3):
        e = [
            state[f"projections.{r}.weight"] @ x[n, i] + state[f"projections.{r}.bias"]
            for r, x in ((0, a), (1, b))
        ]
        s = [float(state["query.weight"][0] @ x) for x in e]
        p = [1 / (1 + np.exp(-x)) for x in s] if distribution == "sigmoid" else np.exp(s) / np.exp(s).sum()
        np.testing.assert_allclose(got[n, i], p[0] * e[0] + p[1] * e[1], rtol=RTOL, atol=ATOL)


def test_gradients_of_meta_embedding():
    net = made(MetaEmbedding, (2, 3), 4, size=1.5)
    f, values = with_parameters(net, net.forward)
    check_grads(f, normal(2, 3, 2), normal(2, 3, 3, seed=2), *values, order=1, rtol=1e-6, atol=1e-6)


# ---- steps and bad input


def test_a_step_computes_its_output_once():
    calls = []

    def mechanism(q, k, v):
        calls.append(1)
        return attention(q, k, v)

    q = normal(1, 1, 3, 2)
    step = Step(mechanism, q, q + 1, q + 2)
    np.testing.assert_allclose(step.output, naive_attention(q, q + 1, q + 2), rtol=RTOL)
    assert step.output is step.output and calls == [1]


def test_defaults_and_gradients_reach_every_parameter():
    x = tensor(normal(2, 3, 4, 3), requires_grad=True)
    y = normal(2, 5, 2)
    for net, run in (
        (made(HierarchicalAttention, 3), lambda net: net(x)),
        (made(CoAttention, 3, 2), lambda net: net(x[:, 0], y)[0]),
        (made(MetaEmbedding, (3, 2), 2), lambda net: net(x[:, 0, :2], y[:, :2])),
    ):
        out = run(net)
        out.backward(normal(*out.shape, seed=5))
        reached = [
            name for name, p in net.named_parameters() if p.grad is not None and np.abs(p.grad).max() > 0
        ]
        unread = {"score_y.weight"} if isinstance(net, CoAttention) else set()
        assert {name for name, _ in net.named_parameters()} - set(reached) == unread
    assert (
        made(HierarchicalAttention, 3).hidden[0].d_out == 8
        and len(made(HierarchicalAttention, 3).hidden) == 2
    )
    assert made(CoAttention, 3, 2).hidden_x.d_out == 8 and made(CoAttention, 3, 2).pool == "hidden"
    assert made(MultiDimAttention, 3, 2, 2).from_q.d_out == 8
    assert made(MetaEmbedding, (3, 2), 2).distribution == "softmax"
    assert made(CoAttention, 3, 2, pool="max").num_parameters() == 6
    assert all(
        getattr(made(CoAttention, 3, 2), n).bias is None
        for n in ("affinity", "hidden_x", "hidden_y", "score_x", "score_y")
    )
    assert made(HierarchicalAttention, 3).query[0].bias is None
    assert made(MetaEmbedding, (3, 2), 2).query.bias is None
    assert (
        made(MultiDimAttention, 3, 2, 2).from_q.bias is None
        and made(MultiDimAttention, 3, 2, 2).scores.bias is None
    )


def test_bad_input_is_named():
    co, tree, multi, meta = (
        made(CoAttention, 3, 2),
        made(HierarchicalAttention, 3),
        made(MultiDimAttention, 3, 2, 4),
        made(MetaEmbedding, (2, 3), 4),
    )
    one = np.ones
    rng = np.random.default_rng(0)
    cases = [
        (
            lambda: co(one((2, 4, 2)), one((2, 5, 2))),
            "x: expected shape (batch, positions, 3), got (2, 4, 2)",
        ),
        (lambda: co(one((4, 3)), one((2, 5, 2))), "x: expected shape (batch, positions, 3), got (4, 3)"),
        (
            lambda: co(one((2, 4, 3)), one((2, 5, 3))),
            "y: expected shape (batch, positions, 2), got (2, 5, 3)",
        ),
        (
            lambda: co(one((2, 4, 3)), one((1, 5, 2))),
            "y: expected shape (batch, positions, 2), got (1, 5, 2)",
        ),
        (lambda: CoAttention(3, 2, pool="sum", rng=rng), "pool: expected 'hidden' or 'max', got 'sum'"),
        (lambda: HierarchicalAttention(3, 0, rng=rng), "levels: expected at least 1, got 0"),
        (
            lambda: tree(one((2, 4, 3))),
            "x: expected 4 axes (batch, 2 of units, features), got shape (2, 4, 3)",
        ),
        (
            lambda: tree(one((2, 4, 5, 3)), one((2, 4, 4), dtype=bool)),
            "mask: expected booleans of shape (2, 4, 5), got bool of (2, 4, 4)",
        ),
        (
            lambda: tree(one((2, 4, 5, 3)), one((2, 4, 5))),
            "mask: expected booleans of shape (2, 4, 5), got float64 of (2, 4, 5)",
        ),
        (
            lambda: multi(one((4, 3)), one((1, 1, 5, 2)), one((1, 1, 5, 4))),
            "q: expected 4 axes (batch, heads, positions, features), the first two as in q, got shape (4, 3)",
        ),
        (
            lambda: multi(one((1, 1, 4, 3)), one((2, 1, 5, 2)), one((1, 1, 5, 4))),
            "k: expected 4 axes (batch, heads, positions, features), the first two as in q, "
            "got shape (2, 1, 5, 2)",
        ),
        (
            lambda: multi(one((1, 1, 4, 3)), one((1, 1, 5, 2)), one((1, 2, 5, 4))),
            "v: expected 4 axes (batch, heads, positions, features), the first two as in q, "
            "got shape (1, 2, 5, 4)",
        ),
        (
            lambda: multi(one((1, 1, 4, 3)), one((1, 1, 5, 2)), one((1, 1, 5, 3))),
            "v: expected 5 positions of 4 features, got shape (1, 1, 5, 3)",
        ),
        (lambda: meta(one((2, 3, 2))), "xs: expected 2 representations, got 1"),
    ]
    for call, text in cases:
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == text
