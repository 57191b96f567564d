"""Paper 197: states of keys merge in any order, and any division of the keys gives the same attention."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import attention
from minattn.kernels import lean
from minattn.kernels.lean import (
    Piece,
    SoftmaxState,
    fixed_split_schedule,
    lean_attention_decode,
    lean_tile,
    makespan,
    naive_decode,
    occupancy,
    one_worker_schedule,
    softmax_merge,
    split_kv_decode,
    stream_k_schedule,
)

pytestmark = pytest.mark.paper(197)
SCHEDULES = [stream_k_schedule, fixed_split_schedule, one_worker_schedule]
TILES = st.lists(st.integers(0, 40), max_size=9)


@pytest.fixture(params=["compiled", "reference"])
def form(request, monkeypatch):
    """Both forms of the loop over keys."""
    if request.param == "reference":
        monkeypatch.setattr(lean, "compiled", lambda *arrays: False)
    else:
        pytest.importorskip("numba")
    return request.param


def tensors(B, H, Hk, M, D, Dv, dtype=np.float64, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    shapes = ((B, H, 1, D), (B, Hk, M, D), (B, Hk, M, Dv))
    return [(size * rng.standard_normal(s)).astype(dtype) for s in shapes]


def state_of(scores, values):
    """The state by its definition."""
    m = max(scores, default=-np.inf)
    weights = [np.exp(s - m) for s in scores]
    o = sum((w * v for w, v in zip(weights, values, strict=True)), np.zeros(values.shape[1]))
    return m, sum(weights), o


def close(a, b, tol=1e-12):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


# --- states -----------------------------------------------------------------------------------------------

def test_a_state_is_its_definition():
    rng = np.random.default_rng(0)
    for n in (1, 2, 7):
        scores, values = 5 * rng.standard_normal(n), rng.standard_normal((n, 3))
        close(SoftmaxState.of(scores, values), state_of(scores, values))
    empty = SoftmaxState.of(np.empty(0), np.empty((0, 3)))
    assert empty.m == -np.inf and empty.l == 0 and not empty.o.any()
    assert not empty.output().any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_any_tree_of_merges_gives_the_state_of_all_keys(seed, sizes):
    rng = np.random.default_rng(seed)
    scores, values = 30 * rng.standard_normal(sum(sizes)), rng.standard_normal((sum(sizes), 2))
    cuts = np.cumsum(sizes)[:-1]
    pairs = zip(np.split(scores, cuts), np.split(values, cuts), strict=True)
    parts = [SoftmaxState.of(s, v) for s, v in pairs]
    while len(parts) > 1:
        a, b = rng.choice(len(parts), 2, replace=False)
        joined = softmax_merge(parts[a], parts[b])
        parts = [p for n, p in enumerate(parts) if n not in (a, b)] + [joined]
    close(parts[0], state_of(scores, values))


def test_merging_is_commutative_and_has_an_identity():
    rng = np.random.default_rng(1)
    a, b = (SoftmaxState.of(rng.standard_normal((2, 4)), rng.standard_normal((4, 3))) for _ in range(2))
    nothing = SoftmaxState(np.full(2, -np.inf), np.zeros(2), np.zeros((2, 3)))
    close(softmax_merge(a, b), softmax_merge(b, a), 0)
    close(softmax_merge(a, nothing), a, 0)
    close(softmax_merge(nothing, a), a, 0)
    close(softmax_merge(nothing, nothing), nothing, 0)
    far = SoftmaxState(a.m + 5000, a.l, a.o)  # e^5000 is beyond any float
    close(softmax_merge(far, b), far, 1e-15)


def test_states_of_unequal_shape_do_not_merge():
    a, b = (SoftmaxState(np.zeros(n), np.ones(n), np.ones((n, 2))) for n in (2, 3))
    with pytest.raises(ValueError, match=re.escape("b: expected a state of shape (2, 2), as a, got (3, 2)")):
        softmax_merge(a, b)


# --- schedules --------------------------------------------------------------------------------------------

@settings(max_examples=150, deadline=None)
@given(TILES, st.integers(1, 30), st.sampled_from(SCHEDULES))
def test_every_tile_is_taken_once(tiles, workers, schedule):
    taken = [(p.head, t) for p in schedule(tiles, workers) for t in range(p.first, p.last)]
    assert sorted(taken) == [(h, t) for h, n in enumerate(tiles) for t in range(n)]
    assert all(0 <= p.worker < workers and p.first < p.last for p in schedule(tiles, workers))


@settings(max_examples=150, deadline=None)
@given(TILES, st.integers(1, 30))
def test_stream_k_shares_equally_and_in_order(tiles, workers):
    pieces, total = stream_k_schedule(tiles, workers), sum(tiles)
    loads = [sum(p.last - p.first for p in pieces if p.worker == w) for w in range(workers)]
    assert set(loads) <= {total // workers, -(-total // workers)}
    assert makespan(pieces) == -(-total // workers)
    assert [p.worker for p in pieces] == sorted(p.worker for p in pieces)
    assert [(p.head, p.first) for p in pieces] == sorted((p.head, p.first) for p in pieces)
    # what a worker has of one head is one piece, and only its first and last head are shared
    assert len({(p.worker, p.head) for p in pieces}) == len(pieces)
    if total:
        assert occupancy(pieces, workers) >= total / (total + workers)


def test_stream_k_against_an_assignment_tile_by_tile():
    tiles, workers = [4, 6, 1, 5, 3], 4
    line = [(h, t) for h, n in enumerate(tiles) for t in range(n)]
    owner = {place: next(w for w in range(workers) if (w + 1) * 19 // workers > at)
             for at, place in enumerate(line)}
    assert {(p.head, t): p.worker for p in stream_k_schedule(tiles, workers)
            for t in range(p.first, p.last)} == owner
    assert stream_k_schedule(tiles, workers)[:3] == [Piece(0, 0, 0, 4), Piece(1, 1, 0, 5), Piece(2, 1, 5, 6)]


def test_schedules_become_each_other():
    equal = [7] * 6
    assert stream_k_schedule(equal, 6) == one_worker_schedule(equal, 6) == fixed_split_schedule(equal, 6)
    assert stream_k_schedule([8] * 3, 12) == fixed_split_schedule([8] * 3, 12)
    assert one_worker_schedule([2, 0, 5], 2) == [Piece(0, 0, 0, 2), Piece(0, 2, 0, 5)]
    assert fixed_split_schedule([5, 1], 5) == [Piece(0, 0, 0, 3), Piece(1, 0, 3, 5), Piece(2, 1, 0, 1)]
    assert fixed_split_schedule([3, 3, 3], 2) == one_worker_schedule([3, 3, 3], 2)
    assert stream_k_schedule([], 3) == stream_k_schedule([0, 0], 3) == []


def test_makespan_and_occupancy():
    pieces = [Piece(0, 0, 0, 3), Piece(0, 1, 0, 1), Piece(1, 1, 1, 3)]
    assert makespan(pieces) == 4 and occupancy(pieces, 3) == 6 / 12
    assert makespan([]) == 0 and occupancy([], 5) == 1.0


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_a_schedule_needs_workers(workers):
    for schedule in SCHEDULES:
        with pytest.raises(ValueError, match=f"workers: expected a whole number ≥ 1, got {workers}"):
            schedule([1], workers)
    with pytest.raises(ValueError, match="tiles: expected numbers ≥ 0, got -2"):
        stream_k_schedule([1, -2], 2)


# --- attention --------------------------------------------------------------------------------------------

CASES = {
    "ragged": ((3, 4, 2, 23, 5, 3), [23, 1, 14]),
    "one key": ((1, 1, 1, 1, 1, 1), None),
    "one head, no key in one sequence": ((2, 1, 1, 9, 3, 2), [0, 9]),
    "grouped by five": ((1, 5, 1, 17, 7, 6), None),
    "many heads": ((2, 6, 6, 8, 4, 4), [8, 3]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("decode", [lean_attention_decode, split_kv_decode])
def test_any_number_of_workers_gives_attention(name, decode, form):
    (B, H, Hk, M, D, Dv), lengths = CASES[name]
    q, k, v = tensors(B, H, Hk, M, D, Dv)
    want = naive_decode(q, k, v, lengths)
    tiles = sum(-(-n // 4) for n in (lengths or [M] * B)) * Hk
    for workers in range(1, tiles + 4):
        got = decode(q, k, v, lengths, workers=workers, tile=4)
        assert got.shape == (B, H, 1, Dv) and got.dtype == q.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    single = [x.astype(np.float32) for x in (q, k, v)]
    got = decode(*single, lengths, workers=3, tile=5)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_the_loops_are_those_of_attention_and_of_a_dense_product():
    q, k, v = tensors(2, 4, 2, 11, 5, 3)
    np.testing.assert_allclose(naive_decode(q, k, v), attention(q, k, v), rtol=0, atol=1e-13)
    scaled = attention(q, k, v, scale=2.0)
    np.testing.assert_allclose(naive_decode(q, k, v, scale=2.0), scaled, rtol=0, atol=1e-12)
    one = naive_decode(q[1:], k[1:, :, :4], v[1:, :, :4])
    np.testing.assert_allclose(naive_decode(q, k, v, [11, 4])[1:], one, rtol=0, atol=1e-14)
    assert not naive_decode(q, k, v, [0, 4])[0].any()


def test_tile_scale_and_workers_have_defaults(form):
    q, k, v = tensors(1, 4, 2, 700, 8, 8)
    for decode in (lean_attention_decode, split_kv_decode):
        np.testing.assert_allclose(decode(q, k, v), attention(q, k, v), rtol=0, atol=1e-12)
        scaled = attention(q, k, v, scale=0.7)
        np.testing.assert_allclose(decode(q, k, v, scale=0.7), scaled, rtol=0, atol=1e-12)
    assert [lean_tile(D) for D in (1, 64, 65, 128)] == [256, 256, 128, 128]


def test_every_worker_does_its_share(form, monkeypatch):
    """The division into workers is used, not only computed."""
    seen = []
    monkeypatch.setattr(lean, "stream_k_schedule", lambda t, w: seen.append((list(t), w)) or [])
    lean_attention_decode(*tensors(2, 4, 2, 10, 3, 3), [10, 3], workers=5, tile=4)
    assert seen == [([3, 3, 1, 1], 5)]


def test_large_scores_strided_and_poisoned_memory(form):
    q, k, v = tensors(2, 4, 2, 33, 6, 5, size=30.0)
    want = naive_decode(q, k, v, [33, 20])
    k[1, :, 20:], v[1, :, 20:] = np.nan, np.nan  # beyond the length nothing is read
    turned = [np.asfortranarray(x) for x in (q, k, v)]
    for args in ((q, k, v), turned):
        got = lean_attention_decode(*args, [33, 20], workers=3, tile=8)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)
    k[0, 0, 5] = np.nan
    got = lean_attention_decode(q, k, v, [33, 20], workers=3, tile=8)
    assert np.isnan(got[0, :2]).all() and not np.isnan(got[0, 2:]).any()


@pytest.mark.parametrize("sizes", [*itertools.product((1, 3, 4, 5), (1, 15, 16, 17))])
def test_keys_and_features_in_any_number(sizes, form):
    keys, D = sizes
    q, k, v = tensors(1, 3, 1, keys, D, D + 1, seed=keys * D)
    np.testing.assert_allclose(lean_attention_decode(q, k, v, workers=2, tile=5), naive_decode(q, k, v),
                               rtol=0, atol=1e-12)


@pytest.mark.parametrize("change, message", [
    (dict(q=np.zeros((1, 2, 2, 3))), "q: expected one position, got 2"),
    (dict(q=np.zeros((2, 1, 3))), "q: expected 4 axes (batch, heads, positions, features), got (2, 1, 3)"),
    (dict(k=np.zeros((1, 2, 4, 5))),
     "k: expected batch 1, heads that divide 2, and 3 features, got (1, 2, 4, 5)"),
    (dict(k=np.zeros((2, 2, 4, 3))), "k: expected batch 1"),
    (dict(k=np.zeros((1, 0, 4, 3))), "k: expected batch 1"),
    (dict(k=np.zeros((1, 3, 4, 3)), v=np.zeros((1, 3, 4, 3))), "k: expected batch 1, heads that divide 2"),
    (dict(v=np.zeros((1, 2, 5, 3))), "v: expected shape (1, 2, 4) before the features, as in k"),
    (dict(lengths=[5]), "lengths: expected 1 numbers from 0 to 4, got [5]"),
    (dict(lengths=[-1]), "lengths: expected 1 numbers from 0 to 4, got [-1]"),
    (dict(lengths=[1, 1]), "lengths: expected 1 numbers from 0 to 4, got [1, 1]"),
    (dict(tile=0), "tile: expected a whole number ≥ 1, got 0"),
    (dict(tile=2.0), "tile: expected a whole number ≥ 1, got 2.0"),
    (dict(workers=0), "workers: expected a whole number ≥ 1, got 0"),
])
def test_mistakes(change, message):
    good = dict(q=np.zeros((1, 2, 1, 3)), k=np.zeros((1, 2, 4, 3)), v=np.zeros((1, 2, 4, 3)))
    with pytest.raises(ValueError, match=re.escape(message)):
        lean_attention_decode(**{**good, **change})
