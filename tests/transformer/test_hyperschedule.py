"""Schedules move by move and in closed form; masks pair by pair and as functions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import attention, causal, mask_array, naive_attention
from minattn.transformer import hyperschedule as hs
from minattn.transformer.hyperschedule import Hyperschedule, hyperschedule_mask, training_mask

pytestmark = pytest.mark.paper(196)

SIZES = [(1, 1, 1), (1, 3, 2), (2, 4, 2), (5, 2, 3), (6, 3, 3), (7, 4, 2), (8, 4, 8), (9, 5, 4), (5, 7, 3)]


def of(kind, N, width, T):
    return getattr(Hyperschedule, kind)(N, width, T)


def full(mask, N, M=None):
    return np.broadcast_to(mask_array(mask, 1, 1, N, M or N)[0, 0], (N, M or N))


def schedules():
    found = [of(kind, *size) for kind, size in KINDS]
    return [
        *found,
        Hyperschedule.autoregressive(5),
        Hyperschedule.flat(6, 4),
        of("block", 7, 3, 2).after(2),
        of("sliding", 6, 3, 3).after(1),
    ]


KINDS = [
    (kind, size)
    for kind in ("block", "sliding", "hybrid")
    for size in SIZES
    if kind != "hybrid" or size[2] > 1
]


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_closed_forms_are_the_schedules_played_move_by_move(kind, size):
    schedule = of(kind, *size)
    assert schedule.levels.tolist() == hs.naive_levels(kind, *size)
    assert (schedule.N, schedule.width, schedule.T, schedule.given) == (*size, 0)
    assert schedule.steps == len(schedule.levels) - 1


def test_the_schedules_of_the_paper():
    assert Hyperschedule.block(4, 2, 2).levels.tolist() == [
        [2, 2, 2, 2],
        [1, 1, 2, 2],
        [0, 0, 2, 2],
        [0, 0, 1, 1],
        [0, 0, 0, 0],
    ]
    assert Hyperschedule.sliding(4, 3, 3).levels.tolist() == [
        [3, 3, 3, 3],
        [2, 3, 3, 3],
        [1, 2, 3, 3],
        [0, 1, 2, 3],
        [0, 0, 1, 2],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
    ]
    assert Hyperschedule.sliding(5, 4, 8).levels[4].tolist() == [0, 2, 5, 7, 8]
    assert Hyperschedule.sliding(6, 4, 2).levels.tolist() == [
        [2] * 6,
        [1, 2, 2, 2, 2, 2],
        [1, 1, 2, 2, 2, 2],
        [0, 1, 1, 2, 2, 2],
        [0, 0, 1, 1, 2, 2],
        [0, 0, 0, 0, 1, 1],
        [0] * 6,
    ]
    assert Hyperschedule.hybrid(3, 2, 3).levels.tolist() == [
        [3, 3, 3],
        [2, 2, 3],
        [1, 2, 3],
        [0, 1, 3],
        [0, 0, 3],
        [0, 0, 2],
        [0, 0, 1],
        [0, 0, 0],
    ]


def test_autoregressive_and_flat_are_blocks():
    assert Hyperschedule.autoregressive(4).levels.tolist() == [
        [1, 1, 1, 1],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
    ]
    assert (Hyperschedule.autoregressive(4).width, Hyperschedule.autoregressive(4).T) == (1, 1)
    np.testing.assert_array_equal(Hyperschedule.flat(3, 4).levels, np.repeat(np.arange(5)[::-1, None], 3, 1))
    assert Hyperschedule.flat(3, 4).width == 3
    np.testing.assert_array_equal(
        Hyperschedule.autoregressive(5).levels, Hyperschedule.sliding(5, 1, 1).levels
    )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["block", "sliding", "hybrid"]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(2, 9),
    st.integers(0, 3),
)
def test_every_move_has_something_to_do_and_nothing_rises(kind, N, width, T, before):
    schedule = of(kind, N, width, T).after(before)
    assert schedule.given == before and schedule.N == N + before
    reached = before
    for step in range(schedule.steps):
        a, b = schedule.span(step)
        t, s = schedule.times(step)
        assert reached <= a < b <= schedule.N
        assert (t[a:b] > 0).all() and (s <= t).all() and (s[b:] == 1).all() and (t[:a] == 0).all()
        reached = a
    assert (schedule.levels[-1] == 0).all()


@pytest.mark.parametrize("context", hs.CONTEXTS)
@pytest.mark.parametrize("active", hs.ACTIVE)
def test_masks_are_the_predicate_asked_of_every_pair(context, active):
    for schedule in schedules():
        for step in range(schedule.steps):
            now, then = schedule.levels[step].tolist(), schedule.levels[step + 1].tolist()
            want = hs.naive_hyperschedule_mask(
                now,
                then,
                schedule.T,
                context=context,
                active=active,
                width=schedule.width,
                given=schedule.given,
            )
            got = full(hyperschedule_mask(schedule, step, context=context, active=active), schedule.N)
            np.testing.assert_array_equal(got, want)


def test_a_mask_drawn_by_hand():
    schedule = Hyperschedule.block(6, 2, 1)  # move 1: two settled, two active, two noise
    drawn = {
        ("causal", "full"): ["X.....", "XX....", "XXXX..", "XXXX..", "......", "......"],
        ("full", "causal"): ["XX....", "XX....", "XXX...", "XXXX..", "......", "......"],
    }
    for (context, active), rows in drawn.items():
        got = full(hyperschedule_mask(schedule, 1, context=context, active=active), 6)
        assert ["".join(".X"[int(x)] for x in row) for row in got] == rows
    default = full(hyperschedule_mask(schedule, 1), 6)
    np.testing.assert_array_equal(
        default, full(hyperschedule_mask(schedule, 1, context="causal", active="full"), 6)
    )


def test_block_causal_counts_blocks_from_the_end_of_what_is_given():
    got = full(hyperschedule_mask(Hyperschedule.block(5, 2, 1).after(1), 2, context="block_causal"), 6)
    assert ["".join(".X"[int(x)] for x in row) for row in got] == [
        "X.....",
        "XXX...",
        "XXX...",
        "XXXXX.",
        "XXXXX.",
        "XXXXXX",
    ]


@pytest.mark.parametrize("context", hs.CONTEXTS)
@pytest.mark.parametrize("active", hs.ACTIVE)
@pytest.mark.parametrize(("N", "width"), [(1, 1), (4, 1), (4, 2), (5, 2), (6, 3), (4, 4), (3, 5)])
def test_training_mask_is_the_move_of_every_block(context, active, N, width):
    """Rows of the noised half see what they see in their own block's move; clean rows their context."""
    got = full(training_mask(N, width, context=context, active=active), 2 * N)
    schedule = Hyperschedule.block(N, width, 1)
    for step in range(schedule.steps):
        a, b = schedule.span(step)
        own = full(hyperschedule_mask(schedule, step, context=context, active=active), N)
        np.testing.assert_array_equal(got[N + a : N + b, :a], own[a:b, :a])
        np.testing.assert_array_equal(got[N + a : N + b, N + a : N + b], own[a:b, a:b])
        outside = np.ones((b - a, 2 * N), bool)
        outside[:, :a] = outside[:, N + a : N + b] = False
        assert not got[N + a : N + b][outside].any()
    clean = {
        "full": np.ones((N, N), bool),
        "causal": np.tril(np.ones((N, N), bool)),
        "block_causal": np.arange(N)[None] // width <= np.arange(N)[:, None] // width,
    }[context]
    np.testing.assert_array_equal(got[:N, :N], clean)
    assert not got[:N, N:].any()
    np.testing.assert_array_equal(
        full(training_mask(N, width), 2 * N),
        full(training_mask(N, width, context="causal", active="full"), 2 * N),
    )


def test_masks_answer_for_numbers_as_for_arrays():
    """The reference attention asks for one pair at a time; both forms of attention agree under every mask."""
    rng = np.random.default_rng(0)
    schedule = Hyperschedule.sliding(5, 3, 3)
    q, k, v = (rng.standard_normal((2, 1, 5, 3)) for _ in range(3))
    for context in hs.CONTEXTS:
        mask = hyperschedule_mask(schedule, 3, context=context)
        want = naive_attention(q, k, v, mask_mod=mask)
        np.testing.assert_allclose(attention(q, k, v, mask_mod=mask), want, rtol=1e-12, atol=1e-14)
        assert np.abs(want[:, :, :4]).min() > 0 and (want[:, :, 4:] == 0).all()  # noise sees nothing
        mask = training_mask(5, 2, context=context)
        q2, k2, v2 = (np.concatenate([x, x], 2) for x in (q, k, v))
        np.testing.assert_allclose(
            attention(q2, k2, v2, mask_mod=mask),
            naive_attention(q2, k2, v2, mask_mod=mask),
            rtol=1e-12,
            atol=1e-14,
        )


def test_autoregressive_masks_are_causal():
    schedule = Hyperschedule.autoregressive(6)
    for step in range(6):
        seen = full(hyperschedule_mask(schedule, step), 6)
        np.testing.assert_array_equal(seen[: step + 1], full(causal, 6)[: step + 1])
        assert not seen[step + 1 :].any()
    seen = full(hyperschedule_mask(Hyperschedule.flat(6, 3), 1), 6)
    assert seen.all()  # diffusion: everything sees everything


@pytest.mark.parametrize("context", hs.CONTEXTS)
def test_cacheable_rows_are_those_that_never_change(context):
    """A row stays if it is settled, sees the same from now on, and so do all the rows that it sees."""
    for schedule in schedules():
        seen = [
            full(hyperschedule_mask(schedule, step, context=context), schedule.N)
            for step in range(schedule.steps)
        ]
        settled = [0] * schedule.N  # once more when everything is settled
        seen.append(
            hs.naive_hyperschedule_mask(
                settled, settled, schedule.T, context=context, width=schedule.width, given=schedule.given
            )
        )
        for step in range(schedule.steps):
            settled = schedule.levels[step] == 0
            fixed = [
                i
                for i in range(schedule.N)
                if settled[i] and all((now[i] == seen[step][i]).all() for now in seen[step:])
            ]
            want = [i for i in fixed if all(j in fixed for j in np.flatnonzero(seen[step][i]))]
            got = schedule.cacheable(step, context)
            if context == "full":
                assert got == 0 and not want
            else:
                assert list(range(got)) == want
    assert Hyperschedule.autoregressive(4).cacheable(3) == 3


def test_given_positions_are_settled_from_the_start():
    schedule = Hyperschedule.block(4, 2, 3).after(3)
    assert (schedule.given, schedule.N, schedule.steps, schedule.T, schedule.width) == (3, 7, 6, 3, 2)
    assert schedule.span(0) == (3, 5) and schedule.span(3) == (5, 7)
    np.testing.assert_array_equal(schedule.levels[:, 3:], Hyperschedule.block(4, 2, 3).levels)
    assert not schedule.levels[:, :3].any()
    np.testing.assert_array_equal(schedule.after(0).levels, schedule.levels)
    t, s = schedule.times(1)
    np.testing.assert_allclose(t, [0, 0, 0, 2 / 3, 2 / 3, 1, 1])
    np.testing.assert_allclose(s, [0, 0, 0, 1 / 3, 1 / 3, 1, 1])


def test_levels_are_copied_and_shown():
    levels = np.array([[1, 1], [0, 1], [0, 0]])
    schedule = Hyperschedule(levels)
    levels[:] = 7
    assert schedule.levels.tolist() == [[1, 1], [0, 1], [0, 0]] and schedule.width == 1
    assert repr(Hyperschedule.block(6, 3, 2)) == "Hyperschedule(N=6, T=2, steps=4, width=3)"


BAD = [
    (
        lambda: Hyperschedule([1, 0]),
        "levels: expected integers (steps + 1, N) with at least one move and one "
        "position, got int64 of shape (2,)",
    ),
    (lambda: Hyperschedule([[0.5], [0.0]]), "got float64 of shape (2, 1)"),
    (lambda: Hyperschedule([[1]]), "got int64 of shape (1, 1)"),
    (lambda: Hyperschedule(np.zeros((2, 0), int)), "got int64 of shape (2, 0)"),
    (
        lambda: Hyperschedule([[2, 1], [0, 0]]),
        "levels: expected T (0 where given) in row 0, 0 in the last row",
    ),
    (lambda: Hyperschedule([[1, 1], [0, 1]]), "got rows [1, 1] and [0, 1]"),
    (lambda: Hyperschedule([[1, 1], [-1, 1], [0, 0]]), "nothing outside 0..T"),
    (lambda: Hyperschedule([[1, 1], [0, 2], [0, 0]]), "nothing outside 0..T"),
    (
        lambda: Hyperschedule([[2, 2], [1, 2], [2, 2], [0, 0]]),
        "every move to lower a level and to raise none",
    ),
    (lambda: Hyperschedule([[1, 1], [1, 1], [0, 0]]), "every move to lower a level and to raise none"),
    (lambda: Hyperschedule([[1, 1], [1, 0], [0, 0]]), "levels: expected no level to fall from left to right"),
    (lambda: Hyperschedule([[1], [0]], 0), "width: expected a whole number ≥ 1, got 0"),
    (lambda: Hyperschedule.block(0, 1, 1), "N: expected a whole number ≥ 1, got 0"),
    (lambda: Hyperschedule.block(2, 0, 1), "width: expected a whole number ≥ 1, got 0"),
    (lambda: Hyperschedule.block(2, 1, 0), "T: expected a whole number ≥ 1, got 0"),
    (lambda: Hyperschedule.sliding(0, 1, 1), "N: expected a whole number ≥ 1, got 0"),
    (lambda: Hyperschedule.sliding(2, 0, 1), "width: expected a whole number ≥ 1, got 0"),
    (lambda: Hyperschedule.sliding(2, 1, 0), "T: expected a whole number ≥ 1, got 0"),
    (lambda: Hyperschedule.hybrid(0, 1, 2), "N: expected a whole number ≥ 1, got 0"),
    (lambda: Hyperschedule.hybrid(2, 0, 2), "width: expected a whole number ≥ 1, got 0"),
    (lambda: Hyperschedule.hybrid(2, 1, 1), "T: expected a whole number ≥ 2, got 1"),
    (lambda: Hyperschedule.flat(2, 1).after(-1), "n: expected a whole number ≥ 0, got -1"),
    (lambda: Hyperschedule.flat(2, 1).span(1), "step: expected a move in [0, 1), got 1"),
    (lambda: Hyperschedule.flat(2, 1).times(-1), "step: expected a whole number ≥ 0, got -1"),
    (lambda: Hyperschedule.flat(2, 1).times(1), "step: expected a move in [0, 1), got 1"),
    (
        lambda: Hyperschedule.flat(2, 1).cacheable(0, "all"),
        "context: expected one of causal, block_causal, full, got 'all'",
    ),
    (
        lambda: hyperschedule_mask(Hyperschedule.flat(2, 1), 0, context="none"),
        "context: expected one of causal",
    ),
    (
        lambda: hyperschedule_mask(Hyperschedule.flat(2, 1), 0, active="none"),
        "active: expected one of full, causal, got 'none'",
    ),
    (lambda: hyperschedule_mask(Hyperschedule.flat(2, 1), 1), "step: expected a move in [0, 1), got 1"),
    (lambda: training_mask(0, 1), "N: expected a whole number ≥ 1, got 0"),
    (lambda: training_mask(1, 0), "width: expected a whole number ≥ 1, got 0"),
    (
        lambda: training_mask(1, 1, context="x"),
        "context: expected one of causal, block_causal, full, got 'x'",
    ),
    (lambda: training_mask(1, 1, active="x"), "active: expected one of full, causal, got 'x'"),
]


@pytest.mark.parametrize(("call", "text"), BAD)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError) as caught:
        call()
    assert text in str(caught.value)
