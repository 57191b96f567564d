"""The alignment table and the distributions against loops, finite differences and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minattn.attention import (
    ALIGNMENTS,
    DISTRIBUTIONS,
    alignment_score,
    attend,
    attention,
    attention_distribution,
)
from minattn.attention.alignment import naive_alignment_score, naive_attend, naive_distribution
from minattn.autograd import Tensor, exp, grad
from minattn.testing import check_grads

pytestmark = pytest.mark.paper(1)

# (B, H, N, M, Dq, Dk); the last two differ only where the kind allows it
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 3, 4, 5, 3, 3), (1, 2, 5, 3, 2, 4), (2, 1, 1, 7, 3, 2)]
SAME = ("similarity", "dot", "scaled", "kernel")
ARRAYS = [kind for kind in ALIGNMENTS if kind != "kernel"]
RTOL = 1e-12


def drawn(kind, shape, seed=0):
    """q, k and the parameters of a kind, by the shapes that the table promises."""
    rng = np.random.default_rng(seed)
    B, H, N, M, Dq, Dk = shape
    Dk = Dq if kind in SAME else Dk
    q, k = rng.standard_normal((B, H, N, Dq)), rng.standard_normal((B, H, M, Dk))
    E, F, F1, F2 = 5, 4, 2, 3
    W = {
        "general": (Dk, Dq),
        "biased_general": (Dk, Dq),
        "activated_general": (Dk, Dq),
        "concat": (E, Dq + Dk),
        "location": (M, Dq),
    }.get(kind)
    p = {} if W is None else {"W": rng.standard_normal(W)}
    if kind == "biased_general":
        p["b"] = rng.standard_normal(Dk)
    if kind == "activated_general":
        p["b"] = np.array(rng.standard_normal())
    if kind in ("concat", "additive", "feature"):
        p |= {"w": rng.standard_normal(E), "b": rng.standard_normal(E)}
    if kind == "additive":
        p |= {"W1": rng.standard_normal((E, Dq)), "W2": rng.standard_normal((E, Dk))}
    if kind == "feature":
        p |= {
            "W1": rng.standard_normal((E, F1)),
            "W2": rng.standard_normal((E, F2)),
            "f1": rng.standard_normal((B, H, M, F1)),
            "f2": rng.standard_normal((B, H, M, F2)),
        }
    if kind == "deep":
        p |= {
            "w": rng.standard_normal(F),
            "W1": rng.standard_normal((E, Dq + Dk)),
            "b1": rng.standard_normal(E),
            "W2": rng.standard_normal((F, E)),
            "b2": rng.standard_normal(F),
            "b": np.array(rng.standard_normal()),
        }
    if kind == "kernel":
        p["phi"] = lambda x: exp(0.3 * x) + x * x
    return q, k, p


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_every_alignment_is_its_loops(kind, shape):
    q, k, p = drawn(kind, shape)
    got, want = alignment_score(q, k, kind, **p), naive_alignment_score(q, k, kind, **p)
    assert got.shape == (*shape[:4],) and isinstance(got, np.ndarray)
    assert shape[3] == 1 or np.ptp(want, axis=3).min() > 1e-3
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=RTOL * np.abs(want).max())


@pytest.mark.parametrize("shape", SHAPES[1:3])
def test_cosine_similarity_is_its_loops(shape):
    q, k, _ = drawn("similarity", shape)
    want = naive_alignment_score(q, k, "similarity", sim="cosine")
    np.testing.assert_allclose(alignment_score(q, k, "similarity", sim="cosine"), want, rtol=RTOL, atol=RTOL)
    assert np.abs(want).max() <= 1
    np.testing.assert_array_equal(
        alignment_score(q, k, "similarity", sim="euclidean"), alignment_score(q, k, "similarity")
    )


def test_the_default_is_the_scaled_dot_product():
    q, k, _ = drawn("scaled", SHAPES[1])
    np.testing.assert_array_equal(alignment_score(q, k), alignment_score(q, k, "scaled"))
    np.testing.assert_array_equal(naive_alignment_score(q, k), naive_alignment_score(q, k, "scaled"))


@pytest.mark.parametrize("shape", SHAPES[1:3])
@pytest.mark.parametrize("kind", ALIGNMENTS)
def test_gradients_of_every_alignment(kind, shape):
    """Of queries, keys and all parameters, with random cotangents, to second order."""
    q, k, p = drawn(kind, shape)
    phi = {"phi": p.pop("phi")} if kind == "kernel" else {}
    names = list(p)
    reads = {"location": (q,), "feature": ()}.get(kind, (q, k))

    def score(*args):
        inputs = args[: len(reads)]
        first = inputs[0] if inputs else q
        second = inputs[1] if len(inputs) > 1 else k
        return alignment_score(
            first, second, kind, **phi, **dict(zip(names, args[len(reads) :], strict=True))
        )

    check_grads(score, *reads, *p.values(), rng=np.random.default_rng(1), rtol=1e-6, atol=1e-6)


def test_gradient_of_cosine():
    q, k, _ = drawn("similarity", SHAPES[1])
    check_grads(lambda q, k: alignment_score(q, k, "similarity", sim="cosine"), q, k)


def test_general_with_the_identity_is_dot():
    q, k, _ = drawn("dot", SHAPES[1])
    np.testing.assert_allclose(
        alignment_score(q, k, "general", W=np.eye(3)),
        naive_alignment_score(q, k, "dot"),
        rtol=RTOL,
        atol=1e-14,
    )


def test_kernel_with_the_identity_is_dot():
    q, k, _ = drawn("dot", SHAPES[1])
    np.testing.assert_allclose(
        alignment_score(q, k, "kernel", phi=lambda x: x),
        naive_alignment_score(q, k, "dot"),
        rtol=RTOL,
        atol=1e-14,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_concat_with_stacked_matrices_is_additive(shape):
    q, k, p = drawn("additive", shape)
    concat = {"w": p["w"], "W": np.concatenate([p["W1"], p["W2"]], 1), "b": p["b"]}
    want = naive_alignment_score(q, k, "additive", **p)
    for got in (alignment_score(q, k, "concat", **concat), naive_alignment_score(q, k, "concat", **concat)):
        np.testing.assert_allclose(got, want, rtol=RTOL, atol=RTOL)


def test_a_zero_bias_makes_biased_general_general():
    q, k, p = drawn("general", SHAPES[2])
    np.testing.assert_allclose(
        alignment_score(q, k, "biased_general", b=np.zeros(4), **p),
        alignment_score(q, k, "general", **p),
        rtol=RTOL,
    )


def test_location_ignores_the_keys_and_feature_the_queries():
    for kind, moved in (("location", "k"), ("feature", "q")):
        q, k, p = drawn(kind, SHAPES[1])
        other = {"q": q, "k": k} | {moved: {"q": q, "k": k}[moved] + 1}
        np.testing.assert_array_equal(
            alignment_score(q, k, kind, **p), alignment_score(**other, kind=kind, **p)
        )


def test_near_vectors_do_not_cancel():
    q = np.full((1, 1, 1, 3), 1e6, dtype=np.float32)
    k = q + np.float32(1)
    np.testing.assert_array_equal(alignment_score(q, k, "similarity"), np.full((1, 1, 1, 1), -3.0))


# ---- distributions

ROWS = [(1,), (2, 5), (3, 2, 4), (2, 7)]


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("size", [1.0, 50.0])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_every_distribution_is_its_loops(kind, size, shape):
    scores = size * np.random.default_rng(3).standard_normal(shape)
    got = attention_distribution(scores, kind, temperature=1.5, rng=np.random.default_rng(5))
    want = naive_distribution(scores, kind, temperature=1.5, rng=np.random.default_rng(5))
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=1e-14)
    assert got.dtype == np.float64
    if kind != "sigmoid":
        np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-12)


def test_sparsemax_by_enumeration_on_many_rows():
    scores = np.random.default_rng(0).standard_normal((40, 6))
    want = naive_distribution(scores, "sparsemax")
    sizes = np.count_nonzero(want, axis=-1)
    assert len(set(sizes)) >= 3 and sizes.min() < 6
    np.testing.assert_allclose(attention_distribution(scores, "sparsemax"), want, rtol=RTOL, atol=1e-15)


@pytest.mark.parametrize("kind", ["softmax", "sparsemax", "sigmoid"])
def test_gradients_of_distributions(kind):
    """Sparsemax is differentiated where no entry is near the edge of the support."""
    scores = np.random.default_rng(3).standard_normal((3, 5))
    if kind == "sparsemax":
        p = naive_distribution(scores / 0.7, kind)
        tau = np.max(scores / 0.7 - p, axis=-1, where=p > 0, initial=-np.inf)
        assert np.abs(scores / 0.7 - tau[:, None]).min() > 1e-3 and len({*np.count_nonzero(p, axis=1)}) > 1
    check_grads(
        lambda s: attention_distribution(s, kind, temperature=0.7),
        scores,
        order=1 if kind == "sparsemax" else 2,
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(("dtype", "cold"), [(np.float32, 1e-37), (np.float64, 1e-307)])
def test_hard_when_cold_is_argmax(dtype, cold):
    """Even where scores / temperature overflows."""
    scores = (50 * np.random.default_rng(2).standard_normal((4, 3, 7))).astype(dtype)
    scores[1] = 0.01 * scores[1] + 60
    with np.errstate(over="ignore"):
        got = attention_distribution(scores, "hard", temperature=cold, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(got, scores == scores.max(-1, keepdims=True))
    assert got.dtype == dtype


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_without_keys_the_output_is_zero(kind):
    q, k, v = np.ones((1, 2, 3, 4)), np.ones((1, 2, 0, 4)), np.ones((1, 2, 0, 5))
    out, weights = attend(q, k, v, distribution=kind, rng=np.random.default_rng(0), return_weights=True)
    assert weights.shape == (1, 2, 3, 0)
    np.testing.assert_array_equal(out, np.zeros((1, 2, 3, 5)))


def test_hard_draws_with_the_probabilities_of_the_softmax():
    scores = np.array([0.0, 1.0, -0.5, 2.0])
    n = 20000
    got = attention_distribution(
        np.tile(scores, (n, 1)), "hard", temperature=2.0, rng=np.random.default_rng(0)
    )
    want = naive_distribution(scores[None], "softmax", temperature=2.0)[0]
    assert set(np.unique(got)) == {0.0, 1.0} and np.all(got.sum(-1) == 1)
    assert np.all(np.abs(got.mean(0) - want) < 5 * np.sqrt(want * (1 - want) / n))


def test_a_draw_has_no_gradient_but_its_value_has():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, 4, 3)) for _ in range(3))
    q, v = Tensor(q, requires_grad=True), Tensor(v, requires_grad=True)
    out, weights = attend(q, k, v, distribution="hard", rng=rng, return_weights=True)
    assert isinstance(weights, Tensor) and not weights.requires_grad
    u = rng.standard_normal(out.shape)
    gq, gv = grad(out, [q, v], u, allow_unused=True)
    assert gq is None
    np.testing.assert_allclose(gv.data, weights.data.swapaxes(-1, -2) @ u, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_masked_scores_get_no_weight_and_empty_rows_zeros(kind):
    scores = np.array([[1.0, -np.inf, 2.0, 0.5, -np.inf], [-np.inf] * 5])
    for _ in range(5):
        rng = np.random.default_rng(7)
        got = attention_distribution(scores, kind, rng=rng)
        np.testing.assert_allclose(
            got, naive_distribution(scores, kind, rng=np.random.default_rng(7)), rtol=RTOL
        )
        assert np.all(got[0, [1, 4]] == 0) and np.all(got[1] == 0) and got[0].sum() > 0.9


# ---- the general model


def hides_some(b, h, i, j):
    """A mask whose query 2 sees nothing."""
    return ((b + 2 * h + i + 3 * j) % 4 != 0) & (i != 2)


@pytest.mark.parametrize("mask_mod", [None, hides_some])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("alignment", ["scaled", "additive", "location"])
def test_attend_is_its_loops(alignment, distribution, mask_mod):
    q, k, p = drawn(alignment, SHAPES[1])
    v = np.random.default_rng(9).standard_normal((2, 3, 5, 2))
    how = {"mask_mod": mask_mod, "temperature": 0.8}
    got, weights = attend(
        q, k, v, alignment, distribution, rng=np.random.default_rng(1), return_weights=True, **how, **p
    )
    want = naive_attend(q, k, v, alignment, distribution, rng=np.random.default_rng(1), **how, **p)
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=1e-13)
    np.testing.assert_allclose(weights @ v, want, rtol=1e-10, atol=1e-13)
    assert mask_mod is None or np.all(got[:, :, 2] == 0)
    np.testing.assert_array_equal(
        attend(q, k, v, alignment, distribution, rng=np.random.default_rng(1), **how, **p), got
    )


def test_attend_by_default_is_attention():
    q, k, _ = drawn("scaled", SHAPES[1])
    v = np.random.default_rng(9).standard_normal((2, 3, 5, 2))
    np.testing.assert_allclose(attend(q, k, v), attention(q, k, v), rtol=RTOL, atol=1e-14)
    np.testing.assert_allclose(naive_attend(q, k, v), attention(q, k, v), rtol=RTOL, atol=1e-14)
    np.testing.assert_allclose(
        attend(q, k, v, distribution="sparsemax"),
        attention(q, k, v, normalizer="sparsemax"),
        rtol=RTOL,
        atol=1e-14,
    )


@pytest.mark.parametrize("distribution", ["softmax", "sparsemax", "sigmoid"])
@pytest.mark.parametrize("alignment", ["similarity", "deep"])
def test_gradients_of_attend(alignment, distribution):
    q, k, p = drawn(alignment, (1, 2, 3, 4, 2, 2), seed=4)
    v = np.random.default_rng(9).standard_normal((1, 2, 4, 3))
    check_grads(
        lambda q, k, v: attend(q, k, v, alignment, distribution, mask_mod=hides_some, **p),
        q,
        k,
        v,
        order=1,
        rtol=1e-6,
        atol=1e-6,
    )


# ---- bad input


def message(error, call, *args, **options):
    with pytest.raises(error) as caught:
        call(*args, **options)
    return str(caught.value)


def test_bad_input_is_named():
    q, k, v = (np.ones((2, 1, n, d)) for n, d in ((3, 2), (4, 2), (4, 5)))
    known = (
        "similarity, dot, scaled, general, biased_general, activated_general, kernel, concat, additive, "
        "deep, location, feature"
    )
    cases = [
        (alignment_score, (q, k, "cubic"), {}, f"kind: expected one of {known}, got 'cubic'"),
        (
            alignment_score,
            (q[0], k),
            {},
            "q: expected 4 axes (batch, heads, positions, features), got shape (1, 3, 2)",
        ),
        (
            alignment_score,
            (q, k[0]),
            {},
            "k: expected 4 axes (batch, heads, positions, features), got shape (1, 4, 2)",
        ),
        (
            alignment_score,
            (q, v, "dot"),
            {},
            "k: expected batch and heads (2, 1) and 2 features as in q, got shape (2, 1, 4, 5)",
        ),
        (
            alignment_score,
            (q, k[:1], "general"),
            {"W": np.eye(2)},
            "k: expected batch and heads (2, 1) as in q, got shape (1, 1, 4, 2)",
        ),
        (alignment_score, (q, k, "general"), {}, "parameters: general takes W, got none"),
        (alignment_score, (q, k, "dot"), {"W": 1, "b": 2}, "parameters: dot takes none, got W, b"),
        (alignment_score, (q, k, "dot"), {"sim": "cosine"}, "parameters: dot takes none, got sim"),
        (alignment_score, (q, k, "biased_general"), {"c": 1}, "parameters: biased_general takes W, b, got c"),
        (
            alignment_score,
            (q, k, "similarity"),
            {"sim": "L1"},
            "sim: expected 'euclidean' or 'cosine', got 'L1'",
        ),
        (
            alignment_score,
            (q, v, "general"),
            {"W": np.ones((2, 5))},
            "W: expected shape (Dk=5, Dq=2), got (2, 5)",
        ),
        (alignment_score, (q, k, "location"), {"W": np.ones(4)}, "W: expected shape (M=4, Dq=2), got (4,)"),
        (alignment_score, (q, k, "kernel"), {"phi": 3}, "phi: expected a function, got 3"),
        (
            alignment_score,
            (q, k, "additive"),
            {"w": np.ones(3), "W1": np.ones((6, 2)), "W2": 1, "b": 1},
            "W1: expected shape (E=3, Dq=2), got (6, 2)",
        ),
        (
            alignment_score,
            (q, k, "concat"),
            {"w": np.ones((3, 1)), "W": 1, "b": 1},
            "w: expected shape (E), got (3, 1)",
        ),
        (
            alignment_score,
            (q, v, "concat"),
            {"w": np.ones(3), "W": np.ones((3, 4)), "b": 1},
            "W: expected shape (E=3, Dq+Dk=7), got (3, 4)",
        ),
        (
            alignment_score,
            (q, k, "feature"),
            {
                "w": np.ones(3),
                "W1": np.ones((3, 2)),
                "W2": np.ones((3, 2)),
                "b": np.ones(3),
                "f1": np.ones((1, 1, 4, 2)),
                "f2": 1,
            },
            "f1: expected shape (B=2, H=1, M=4, F1=2), got (1, 1, 4, 2)",
        ),
        (
            alignment_score,
            (q, k, "feature"),
            {
                "w": np.ones(3),
                "W1": np.ones((3, 2)),
                "W2": np.ones((3, 2)),
                "b": np.ones(3),
                "f1": np.ones((2, 3, 4, 2)),
                "f2": 1,
            },
            "f1: expected shape (B=2, H=1, M=4, F1=2), got (2, 3, 4, 2)",
        ),
        (
            attention_distribution,
            (q, "softmin"),
            {},
            "kind: expected one of softmax, sparsemax, sigmoid, hard, got 'softmin'",
        ),
        (attention_distribution, (q,), {"temperature": 0}, "temperature: expected a number above 0, got 0"),
        (
            attention_distribution,
            (q,),
            {"temperature": math.inf},
            "temperature: expected a number above 0, got inf",
        ),
        (
            attention_distribution,
            (q, "hard"),
            {},
            "rng: hard attention draws from a numpy.random.Generator, got None",
        ),
        (attend, (q, k, v[0]), {}, "V: expected shape (2, 1, 4) before the features, as in K, got (1, 4, 5)"),
        (
            attend,
            (q, k, v[:, :, :3]),
            {},
            "V: expected shape (2, 1, 4) before the features, as in K, got (2, 1, 3, 5)",
        ),
        (naive_alignment_score, (q, k, "cubic"), {}, "kind: 'cubic' is not in the table"),
    ]
    for call, args, options, text in cases:
        assert message(ValueError, call, *args, **options) == text


@pytest.mark.parametrize("kind", SAME)
def test_widths_must_agree_where_the_line_compares_features(kind):
    q, k = np.ones((2, 1, 3, 2)), np.ones((2, 1, 4, 5))
    parameters = {"phi": lambda x: x} if kind == "kernel" else {}
    text = "k: expected batch and heads (2, 1) and 2 features as in q, got shape (2, 1, 4, 5)"
    assert message(ValueError, alignment_score, q, k, kind, **parameters) == text


def test_float32_stays_float32():
    q, k, p = drawn("additive", SHAPES[1])
    q, k = q.astype(np.float32), k.astype(np.float32)
    p = {name: x.astype(np.float32) for name, x in p.items()}
    v = np.ones((2, 3, 5, 2), dtype=np.float32)
    for distribution in DISTRIBUTIONS:
        out = attend(q, k, v, "additive", distribution, rng=np.random.default_rng(0), **p)
        assert out.dtype == np.float32
