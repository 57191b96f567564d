"""Mistakes are refused with a message that names the argument, and what else a caller may get wrong."""

from __future__ import annotations

import numpy as np
import pytest

from minattn.attention import (
    attention,
    both,
    causal,
    naive_attention,
)
from minattn.attention.dot_product import softmax_attention
from minattn.autograd import Tensor

from .test_dot_product import MAIN, inputs


@pytest.mark.parametrize(
    "name, shapes",
    [
        ("q", ((2, 4, 5), (2, 2, 7, 3), (2, 2, 7, 4))),
        ("k", ((2, 4, 5, 3), (2, 7, 3), (2, 2, 7, 4))),
        ("v", ((2, 4, 5, 3), (2, 2, 7, 3), (2, 7, 4))),
        ("k", ((2, 4, 5, 3), (1, 2, 7, 3), (1, 2, 7, 4))),
        ("k", ((2, 4, 5, 3), (2, 2, 7, 4), (2, 2, 7, 4))),
        ("k", ((2, 4, 5, 3), (2, 3, 7, 3), (2, 3, 7, 4))),
        ("k", ((2, 4, 5, 3), (2, 0, 7, 3), (2, 0, 7, 4))),
        ("k", ((2, 4, 5, 3), (2, 8, 7, 3), (2, 8, 7, 4))),
        ("v", ((2, 4, 5, 3), (2, 2, 7, 3), (2, 2, 6, 4))),
        ("v", ((2, 4, 5, 3), (2, 2, 7, 3), (2, 1, 7, 4))),
    ],
)
def test_shapes_that_do_not_fit(name, shapes):
    xs = [np.zeros(s) for s in shapes]
    bad = xs["qkv".index(name)]
    with pytest.raises(ValueError, match=rf"^{name}: expected .*got (shape )?\({bad.shape[0]}, ") as e:
        attention(*xs)
    assert str(bad.shape) in str(e.value)


def refused(error, message, *xs, **how):
    with pytest.raises(error) as e:
        attention(*xs, **how)
    assert str(e.value).startswith(message)


def test_messages_say_what_would_fit():
    q, k, v = inputs(MAIN)
    refused(ValueError, "k: expected batch 2 and 3 features as in q, got shape (1, 2, 7, 3)", q, k[:1], v)
    refused(
        ValueError,
        "k: expected a number of heads that divides the 4 of q, got shape (2, 3, 7, 3)",
        q,
        np.zeros((2, 3, 7, 3)),
        v,
    )
    refused(
        ValueError,
        "v: expected shape (2, 2, 7) before the features, as in k, got (2, 2, 6, 4)",
        q,
        k,
        v[:, :, :6],
    )
    refused(
        ValueError,
        "q: expected 4 axes (batch, heads, positions, features), got shape (3,)",
        np.zeros(3),
        k,
        v,
    )


def test_other_mistakes():
    q, k, v = inputs(MAIN)
    refused(
        ValueError,
        "bias: expected a shape that broadcasts to (2, 4, 5, 7), got (5, 6)",
        q,
        k,
        v,
        bias=np.zeros((5, 6)),
    )
    refused(ValueError, "bias: expected", q, k, v, bias=np.zeros((1, 2, 4, 5, 7)))
    refused(ValueError, "bias: expected", q, k, v, bias=np.zeros((2, 4, 1, 1, 1)), normalizer="relu")
    refused(
        ValueError,
        "score_mod: expected to return scores of shape (2, 4, 5, 7), got (2, 4, 5, 3)",
        q,
        k,
        v,
        score_mod=lambda s, b, h, i, j: s[..., :3],
    )
    refused(
        ValueError,
        "return_lse: the softmax alone has a log-sum-exp, got normalizer='sigmoid'",
        q,
        k,
        v,
        normalizer="sigmoid",
        return_lse=True,
    )
    refused(
        ValueError, "normalizer: expected a function or one of 'softmax', ", q, k, v, normalizer="softmin"
    )
    refused(TypeError, "mask_mod: expected a function", q, k, v, mask_mod=np.ones((5, 7), dtype=bool))
    refused(
        TypeError,
        "mask_mod: expected booleans, True where visible, got dtype int64",
        q,
        k,
        v,
        mask_mod=lambda b, h, i, j: i - j,
    )
    for x in range(3):
        xs = [q, k, v]
        xs[x] = xs[x].astype(int)
        refused(TypeError, f"{'qkv'[x]}: expected floating numbers, got dtype int64", *xs)
    with pytest.raises(TypeError, match="float32"):
        attention(q, k.astype(np.float32), v)


def test_bias_may_be_a_list_or_a_number():
    q, k, v = inputs((1, 1, 1, 2, 3, 2, 2))
    bias = [1.0, 2.0, 4.0]
    assert np.array_equal(attention(q, k, v, bias=bias), attention(q, k, v, bias=np.array(bias)))
    assert np.abs(attention(q, k, v, bias=3.0) - attention(q, k, v)).max() < 1e-14


def test_mask_may_combine_library_and_other_functions():
    q, k, v = inputs(MAIN)
    mask = both(causal, lambda b, h, i, j: (j != 1) | (h == 0))
    assert np.abs(attention(q, k, v, mask_mod=mask) - naive_attention(q, k, v, mask_mod=mask)).max() < 1e-13


def test_primitive_is_one_node_of_the_graph():
    q, k, v = (Tensor(x, requires_grad=True) for x in inputs(MAIN))
    out = attention(q, k, v, mask_mod=causal, bias=np.zeros(7))
    assert out._op is softmax_attention and out._args[:3] == (q, k, v)
