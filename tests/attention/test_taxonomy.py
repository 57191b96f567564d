"""The probe of the taxonomy: right on every registered mechanism, and not to be fooled by a wrong card."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from minattn.attention import (
    AXES,
    FAMILIES,
    AttentionCard,
    HierarchicalAttention,
    MultiDimAttention,
    Step,
    attend,
    attention,
    causal,
    coverage,
    disagreements,
    probe_taxonomy,
    register_attention,
    registered_attention,
    sliding_window,
)
from minattn.attention import taxonomy as tx
from minattn.autograd import Tensor, flip, tensor

pytestmark = pytest.mark.paper(1)

PLAIN = {
    "sequences": "distinctive",
    "levels": "single",
    "positions": "soft_global",
    "representations": "single",
}


def cross(x, y, rng):
    return Step(attention, x, y, y)


def window(w):
    return partial(attention, mask_mod=sliding_window(w))


def dot():
    return partial(attend, alignment="dot")


@pytest.fixture
def registry(monkeypatch):
    """An empty registry, so that a test leaves no card behind."""
    monkeypatch.setattr(tx, "_registry", {})


# ---- cards and the registry


def test_a_card_has_defaults_labels_and_refuses_others():
    card = AttentionCard("a", cross)
    assert card.labels() == PLAIN and card.family == "transformer" and card.page == "attention/taxonomy"
    for axis, values in {**AXES, "family": FAMILIES}.items():
        for value in values:
            assert getattr(replace(card, **{axis: value}), axis) == value
        with pytest.raises(ValueError) as caught:
            replace(card, **{axis: "none"})
        assert str(caught.value) == f"{axis}: expected one of {', '.join(values)}, got 'none'"
    with pytest.raises(ValueError) as caught:
        AttentionCard("", cross)
    assert str(caught.value) == "name: expected a name, got an empty one"
    with pytest.raises(TypeError) as caught:
        AttentionCard("a", attention(*np.ones((3, 1, 1, 1, 1))))
    assert str(caught.value) == "wiring: expected a function (x, y, rng), got ndarray"


def test_registering_is_one_line_and_names_are_unique(registry):
    card = AttentionCard("new", cross)
    assert register_attention(card) is card and registered_attention() == {"new": card}
    with pytest.raises(ValueError) as caught:
        register_attention(AttentionCard("new", cross, "self"))
    assert str(caught.value) == "card: 'new' is registered already"
    with pytest.raises(TypeError) as caught:
        register_attention(cross)
    assert str(caught.value) == "card: expected an AttentionCard, got function"
    registered_attention().clear()
    assert registered_attention() == {"new": card}


def test_coverage_counts_every_value_of_every_axis():
    cards = [AttentionCard("a", cross), AttentionCard("b", cross, "self", family="graph")]
    counts = coverage(cards)
    assert counts["sequences"] == {"distinctive": 1, "co": 0, "self": 1}
    assert counts["family"] == {"encoder_decoder": 0, "memory_net": 0, "transformer": 1, "graph": 1}
    assert counts["levels"] == {"single": 2, "multi": 0} and set(counts) == {*AXES, "family"}
    assert all(
        n >= 2 for values in coverage(list(registered_attention().values())).values() for n in values.values()
    )


# ---- what the probe says of the registered mechanisms


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("card", registered_attention().values(), ids=lambda card: card.name)
def test_behaviour_equals_the_card(card, seed):
    assert probe_taxonomy(card.wiring, seed) == card.labels()
    assert disagreements(card, seed) == {}


@pytest.mark.parametrize("card", registered_attention().values(), ids=lambda card: card.name)
def test_every_wrong_label_is_flagged(card):
    for axis, values in AXES.items():
        for wrong in set(values) - {getattr(card, axis)}:
            assert disagreements(replace(card, **{axis: wrong})) == {axis: (wrong, getattr(card, axis))}


# ---- what it says of mechanisms made up for one criterion


def labels(fn, **changed):
    """Whether the probe gives the plain labels with these changes."""
    found = probe_taxonomy(fn)
    return {axis: value for axis, value in found.items() if value != PLAIN[axis]} == changed


def test_sequences():
    assert labels(cross)
    assert labels(lambda x, y, rng: Step(attention, x, x, x), sequences="self")
    assert labels(lambda x, y, rng: Step(attention, y, x, x), sequences="self")  # learned or foreign query
    assert labels(lambda x, y, rng: Step(attention, x, y, y + x[:, :, :9]), sequences="self")
    assert labels(lambda x, y, rng: Step(attention, x, y + x[:, :, :9], y), sequences="self")
    assert labels(lambda x, y, rng: Step(attention, x, y.detach(), y.detach()))
    assert labels(lambda x, y, rng: Step(attention, x, y.data, y.data))
    one = [lambda x, y: Step(attention, x, y, y), lambda x, y: Step(attention, y, x, x)]
    assert labels(lambda x, y, rng: [f(x, y) for f in one], sequences="co")
    assert labels(lambda x, y, rng: [one[0](x, y), one[0](x, y)])
    assert labels(lambda x, y, rng: [Step(attention, x, x, x), Step(attention, y, y, y)], sequences="self")
    assert labels(lambda x, y, rng: [one[0](x, y), Step(attention, x, x, x)], sequences="self")
    assert labels(lambda x, y, rng: [Step(attention, x, x, x), Step(attention, y, x, x)], sequences="self")
    assert labels(lambda x, y, rng: [*(f(x, y) for f in one), Step(attention, x, x, x)], sequences="self")


def test_levels():
    def tower(x, y, rng, cut=lambda o: o, groups=4):
        parts = y[:, :, :8].reshape(groups, 1, 8 // groups, 4)
        first = Step(attention, tensor(rng.standard_normal((groups, 1, 1, 4))), parts, parts)
        units = cut(first.output.reshape(1, 1, groups, 4))
        return [first, Step(attention, x, units, units)]

    assert labels(tower, levels="multi")
    assert labels(lambda x, y, rng: tower(x, y, rng)[::-1])  # the order counts
    assert labels(partial(tower, cut=lambda o: o.detach()))  # the tie to the lower is cut
    assert labels(partial(tower, cut=lambda o: y_like(o)))
    assert labels(partial(tower, groups=8))  # no fewer than there were
    assert labels(lambda x, y, rng: [tower(x, y, rng)[0], Step(attention, x, y, y)])

    def hops(x, y, rng):
        first = Step(attention, x, y, y)
        return [first, Step(attention, x + first.output, y, y)]

    assert labels(hops)  # a query is no level
    assert labels(lambda x, y, rng: [*hops(x, y, rng), Step(attention, x, y[:, :, :3], y[:, :, :3])])


def y_like(o):
    return Tensor(np.random.default_rng(0).standard_normal(o.shape))


def one_hot_of(kind):
    """Attention to one key: which one is `kind` of query number i."""

    def mechanism(q, k, v):
        w = np.zeros((*q.shape[:3], v.shape[2]))
        for i in range(q.shape[2]):
            w[0, 0, i, kind(i) % v.shape[2]] = 1
        return w @ v

    return lambda x, y, rng: Step(mechanism, x, y, y)


def test_positions():
    assert labels(one_hot_of(lambda i: i * i), positions="hard")
    assert labels(
        lambda x, y, rng: Step(partial(attend, distribution="hard", rng=rng), x, y, y), positions="hard"
    )
    assert labels(
        lambda x, y, rng: Step(
            lambda q, k, v: 2 * one_hot_of(lambda i: i)(x, y, rng).mechanism(q, k, v), x, y, y
        ),
        positions="local",
    )  # not a weight of one
    assert labels(lambda x, y, rng: Step(window(3), x, x, x), sequences="self", positions="local")
    assert labels(lambda x, y, rng: Step(window(11), x, x, x), sequences="self", positions="local")
    assert labels(lambda x, y, rng: Step(window(12), x, x, x), sequences="self")  # the last query sees all
    assert labels(lambda x, y, rng: Step(partial(attention, mask_mod=causal), x, x, x), sequences="self")
    assert labels(
        lambda x, y, rng: Step(partial(attention, mask_mod=lambda b, h, i, j: (i - j) % 3 == 0), x, y, y)
    )
    assert labels(
        lambda x, y, rng: Step(partial(attention, mask_mod=lambda b, h, i, j: (j != 4) & (i >= 0)), x, y, y)
    )
    assert labels(
        lambda x, y, rng: Step(partial(attention, mask_mod=lambda b, h, i, j: (j > 0) & (i >= 0)), x, y, y),
        positions="local",
    )
    # a row that sees nothing is no window; one key to choose from is no choice
    assert labels(
        lambda x, y, rng: Step(
            partial(attention, mask_mod=lambda b, h, i, j: (abs(i - j) < 2) & (i > 0)), x, x, x
        ),
        sequences="self",
    )
    assert labels(lambda x, y, rng: Step(attention, x, y[:, :, :1], y[:, :, :1]))
    # hard in the first draw and soft after: only what always holds counts
    calls = []

    def sometimes(x, y, rng):
        calls.append(1)
        return Step(partial(attend, distribution="hard" if len(calls) < 2 else "softmax", rng=rng), x, y, y)

    assert labels(sometimes)
    # and if one of two steps is hard and the other is not
    assert labels(
        lambda x, y, rng: [Step(partial(attend, distribution="hard", rng=rng), x, y, y), cross(x, y, rng)]
    )


def test_representations():
    def multi(x, y, rng):
        return Step(MultiDimAttention(4, 4, 4, rng=rng).to(np.float64), x, y, y)

    assert labels(multi, representations="multi_dimensional")
    assert labels(lambda x, y, rng: [multi(x, y, rng), cross(x, y, rng)])

    def views(x, y, rng, mix=lambda e: e, n=3):
        """n views of each position, weighted by a fixed query."""
        e = mix((x[:, 0, :, None] * rng.standard_normal((1, 1, n, 4))).reshape(12, 1, n, 4))
        return Step(dot(), tensor(rng.standard_normal((12, 1, 1, 4))), e, e)

    assert labels(views, sequences="self", representations="multi_representational")
    assert labels(partial(views, n=1), sequences="self")  # one view leaves no choice
    # each view from a place of its own: positions, not views
    assert labels(
        partial(views, mix=lambda e: e.reshape(3, 12, 4).permute(1, 0, 2).unsqueeze(1)), sequences="self"
    )
    # every view of all places: nothing tells views from positions
    assert labels(partial(views, mix=lambda e: e + e.sum(0, keepdim=True)), sequences="self")
    assert labels(lambda x, y, rng: [views(x, y, rng), Step(attention, x, x, x)], sequences="self")
    assert labels(lambda x, y, rng: views(x + y.sum(), y, rng), sequences="self")  # all of y plays a part
    assert labels(
        lambda x, y, rng: views(x + y[0, 0, 0, 0], y, rng),
        sequences="self",
        representations="multi_representational",
    )
    assert labels(lambda x, y, rng: Step(attention, x, y + flip(y, 2), y + flip(y, 2)))


def test_weights_are_the_derivative_by_the_values():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, n, 4)) for n in (5, 6, 6))
    want = attention(q, k, v, return_weights=True)[1].reshape(-1, 6)
    got = tx.weights_of(Step(attention, Tensor(q), k, tensor(v, requires_grad=True)))
    assert got.shape == (30, 6, 4)
    np.testing.assert_allclose(got, np.repeat(want[..., None], 4, -1), rtol=1e-12, atol=1e-15)
    net = MultiDimAttention(4, 4, 4, rng=rng).to(np.float64)
    np.testing.assert_allclose(
        tx.weights_of(Step(net, q, k, v)), net.weights(q, k).data.reshape(-1, 6, 4), rtol=1e-12, atol=1e-15
    )


def test_the_probe_shows_the_mechanism_what_it_promises():
    seen = []

    def fn(x, y, rng):
        seen.append((x, y, rng.standard_normal()))
        return cross(x, y, rng)

    probe_taxonomy(fn)
    assert len(seen) == 3 and all(x.shape == (1, 1, 12, 4) and y.shape == (1, 1, 9, 4) for x, y, _ in seen)
    assert all(t.requires_grad and t.dtype == np.float64 for x, y, _ in seen for t in (x, y))
    probe_taxonomy(fn, 0, 2)
    np.testing.assert_array_equal(seen[3][0].data, seen[0][0].data)  # the seed decides
    assert len(seen) == 5 and seen[3][2] == seen[0][2]
    probe_taxonomy(fn, 1, 1)
    assert len({x.data[0, 0, 0, 0] for x, _, _ in seen}) == 4 and len({r for *_, r in seen}) == 4
    disagreements(AttentionCard("a", fn), 1, 1)
    np.testing.assert_array_equal(seen[-1][0].data, seen[5][0].data)
    assert len(seen) == 7
    disagreements(AttentionCard("a", fn))
    assert len(seen) == 10 and seen[7][2] == seen[0][2]


def test_bad_mechanisms_are_named():
    cases = [
        (ValueError, cross, {"draws": 0}, "draws: expected at least 1, got 0"),
        (TypeError, lambda x, y, rng: [], {}, "fn: expected to return a Step or a list of them, got []"),
        (
            TypeError,
            lambda x, y, rng: [cross(x, y, rng), 3][1:],
            {},
            "fn: expected to return a Step or a list of them, got [3]",
        ),
        (
            TypeError,
            lambda x, y, rng: ["a" * 99],
            {},
            "fn: expected to return a Step or a list of them, got " + repr(["a" * 99])[:60],
        ),
        (
            ValueError,
            lambda x, y, rng: Step(lambda q, k, v: q, x, y, y),
            {},
            "fn: the output of a step does not depend on its values",
        ),
        (
            ValueError,
            lambda x, y, rng: Step(lambda q, k, v: v.detach(), x, y, y),
            {},
            "fn: the output of a step does not depend on its values",
        ),
    ]
    for error, fn, options, text in cases:
        with pytest.raises(error) as caught:
            probe_taxonomy(fn, **options)
        assert str(caught.value) == text


# ---- planted mistakes


def test_a_mechanism_that_lost_its_nature_is_flagged():
    """The cards are right and the code is wrong: a dropped mask, soft for hard, a cut tie between levels."""
    cards = registered_attention()

    def cut(x, y, rng):
        net = HierarchicalAttention(4, rng=rng).to(np.float64)
        words, _ = net.steps(x.reshape(1, 3, 4, 4))
        return [words, Step(dot(), words.q[:1, :, :, :4], x[:, :, ::4], x[:, :, ::4])]

    def alone(x, y, rng):
        return [Step(dot(), y[:, :, :1], x, x), Step(dot(), y[:, :, :1], y, y)]

    planted = {
        "sliding-window self-attention": (lambda x, y, rng: Step(attention, x, x, x), "positions"),
        "hard attention": (cross, "positions"),
        "hierarchical attention": (cut, "levels"),
        "co-attention": (alone, "sequences"),
        "multi-dimensional attention": (cross, "representations"),
        "multi-head self-attention": (cross, "sequences"),
    }
    for name, (wiring, axis) in planted.items():
        try:
            found = disagreements(replace(cards[name], wiring=wiring))
        except ValueError as error:
            pytest.fail(f"{name}: {error}")
        assert set(found) == {axis}, name
