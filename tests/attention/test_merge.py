"""Attention over parts of the keys, put together, is attention over all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import attention, merge, naive_attention, naive_merge
from minattn.autograd import Tensor, grad, stack
from minattn.testing import check_grads


def inputs(seed, M):
    rng = np.random.default_rng(seed)
    return rng, *(rng.standard_normal(s) for s in ((2, 4, 5, 3), (2, 2, M, 3), (2, 2, M, 4)))


def parts(q, k, v, groups, bias=None):
    """Output and log-sum-exp over each group of keys."""
    found = [
        attention(q, k[:, :, g], v[:, :, g], bias=None if bias is None else bias[..., g], return_lse=True)
        for g in groups
    ]
    return [o for o, _ in found], [lse for _, lse in found]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_any_split_of_the_keys_merges_to_the_whole(seed, M, n):
    rng, q, k, v = inputs(seed, M)
    owner = rng.integers(0, n, M)  # some parts may be empty
    bias = np.where(rng.random((2, 4, 5, M)) < 0.3, -np.inf, 0.0)
    bias[0, 0, 0] = -np.inf  # a query that sees nothing anywhere
    outs, lses = parts(q, k, v, [np.flatnonzero(owner == p) for p in range(n)], bias)
    out, lse = merge(outs, lses)
    whole, whole_lse = attention(q, k, v, bias=bias, return_lse=True)
    assert np.abs(out - whole).max() < 1e-13
    assert np.array_equal(np.isinf(lse), np.isinf(whole_lse)) and lse[0, 0, 0] == -np.inf
    assert np.abs(np.where(np.isinf(lse), 0, lse) - np.where(np.isinf(whole_lse), 0, whole_lse)).max() < 1e-13
    with np.errstate(divide="ignore"):
        want, want_lse = naive_merge(outs, lses)
    assert np.abs(out - want).max() < 1e-13
    assert np.allclose(lse, want_lse, rtol=0, atol=1e-13)


def test_naive_by_hand():
    outs = [np.array([[[[4.0]]]]), np.array([[[[1.0]]]])]
    out, lse = naive_merge(outs, [np.log([[[1.0]]]), np.log([[[2.0]]])])
    assert out.shape == (1, 1, 1, 1) and out.item() == pytest.approx((1 * 4 + 2 * 1) / 3)
    assert lse.shape == (1, 1, 1) and lse.item() == pytest.approx(np.log(3))


def test_equals_the_loops():
    _, q, k, v = inputs(0, 9)
    out, _ = merge(*parts(q, k, v, [[0, 8, 3], [1, 2], [4, 5, 6, 7]]))
    assert np.abs(out - naive_attention(q, k, v)).max() < 1e-13
    wrong, _ = merge(*parts(q, k, v, [[0, 8, 3], [1, 2], [4, 5, 6]]))
    assert np.abs(out - wrong).max() > 0.1


def test_associative_and_in_any_order():
    _, q, k, v = inputs(1, 9)
    (a, b, c), (x, y, z) = parts(q, k, v, [[0, 1, 2], [3], [4, 5, 6, 7, 8]])
    whole = merge([a, b, c], [x, y, z])
    left_out, left_lse = merge([a, b], [x, y])
    right_out, right_lse = merge([b, c], [y, z])
    for found in (
        merge([left_out, c], [left_lse, z]),
        merge([a, right_out], [x, right_lse]),
        merge([c, a, b], [z, x, y]),
    ):
        assert all(np.abs(f - w).max() < 1e-13 for f, w in zip(found, whole, strict=True))


def test_an_empty_part_changes_nothing():
    _, q, k, v = inputs(2, 6)
    out, lse = attention(q, k, v, return_lse=True)
    empty, minus = attention(q, k[:, :, :0], v[:, :, :0], return_lse=True)
    assert (minus == -np.inf).all() and not empty.any()
    with np.errstate(all="raise", under="ignore"):
        for found in (
            merge([out, empty], [lse, minus]),
            merge([empty, out], [minus, lse]),
            merge([out], [lse]),
        ):
            assert np.abs(found[0] - out).max() < 1e-15 and np.abs(found[1] - lse).max() < 1e-15
        nothing, still_minus = merge([empty, empty], [minus, minus])
    assert not nothing.any() and (still_minus == -np.inf).all()


@pytest.mark.parametrize("size", [50, 1e4])
def test_large_scores(size):
    _, q, k, v = inputs(3, 8)
    q = q * size
    with np.errstate(all="raise", under="ignore"):
        out, lse = merge(*parts(q, k, v, [range(3), range(3, 8)]))
    whole, whole_lse = attention(q, k, v, return_lse=True)
    assert np.abs(out - whole).max() < 1e-9 and np.abs(lse - whole_lse).max() < 1e-9 * size


def test_gradients():
    _, q, k, v = inputs(4, 5)

    def f(q, k, v):
        out, lse = merge(
            *zip(
                *(attention(q, k[:, :, g], v[:, :, g], return_lse=True) for g in (slice(0, 2), slice(2, 5))),
                strict=True,
            )
        )
        return out * lse[..., None]

    def whole(q, k, v):
        out, lse = attention(q, k, v, return_lse=True)
        return out * lse[..., None]

    check_grads(f, q, k, v)
    g = np.random.default_rng(0).standard_normal((2, 4, 5, 4))
    ts = [Tensor(x, requires_grad=True) for x in (q, k, v)]
    for a, b in zip(grad(f(*ts), ts, g), grad(whole(*ts), ts, g), strict=True):
        assert np.abs(a.data - b.data).max() < 1e-12


def test_gradients_past_an_empty_part_are_finite():
    _, q, k, v = inputs(5, 5)
    ts = [Tensor(x, requires_grad=True) for x in (q, k, v)]

    def nothing(b, h, i, j):
        return j < 0

    found = [attention(*ts, return_lse=True), attention(*ts, return_lse=True, mask_mod=nothing)]
    out, lse = merge(*zip(*found, strict=True))
    g = np.random.default_rng(0).standard_normal(out.shape)
    h = np.random.default_rng(1).standard_normal(lse.shape)
    got = grad([out, lse], ts, [g, h])
    want = grad([*attention(*ts, return_lse=True)], ts, [g, h])
    assert all(np.abs(a.data - b.data).max() < 1e-13 for a, b in zip(got, want, strict=True))


def test_precision_stays():
    _, *xs = inputs(6, 5)
    out, lse = merge(*parts(*(x.astype(np.float32) for x in xs), [range(2), range(2, 5)]))
    assert out.dtype == lse.dtype == np.float32


def test_mistakes():
    out, lse = np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3))

    def refused(message, *args):
        with pytest.raises(ValueError) as e:
            merge(*args)
        assert str(e.value) == message

    refused("lses: expected one for each of outs, and at least one, got 0 for 0", [], [])
    refused("lses: expected one for each of outs, and at least one, got 1 for 2", [out, out], [lse])
    refused(
        "lses[0]: expected shape (1, 2, 3) for an output of shape (1, 2, 3, 4), got (1, 2, 3, 1)",
        [out],
        [lse[..., None]],
    )
    refused(
        "lses[1]: expected shape (1, 2, 3) for an output of shape (1, 2, 3, 4), got (1, 2)",
        [out, out],
        [lse, lse[..., 0]],
    )


def test_tensors_come_back_as_tensors():
    _, q, k, v = inputs(7, 4)
    outs, lses = parts(q, k, v, [range(2), range(2, 4)])
    out, lse = merge([Tensor(o) for o in outs], [Tensor(x) for x in lses])
    assert isinstance(out, Tensor) and isinstance(lse, Tensor)
    assert np.array_equal(out.data, merge(outs, lses)[0])
    assert stack([out]).shape == (1, 2, 4, 5, 4)
