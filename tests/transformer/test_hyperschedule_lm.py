"""Training all blocks in one pass, and generating with a cache: each against passes of their own."""

from itertools import pairwise

import numpy as np
import pytest

from minattn.autograd import grad, no_grad
from minattn.autograd.engine import raw
from minattn.testing import check_causal
from minattn.transformer import GPT, Config
from minattn.transformer import hyperschedule_lm as lm
from minattn.transformer.hybrid_noise import Noised, epsilon_hybrid_noise
from minattn.transformer.hyperschedule import ACTIVE, CONTEXTS, Hyperschedule, hyperschedule_mask

pytestmark = pytest.mark.paper(196)

V = 7


def network(seed=0, position="learned", heads=2, context=16, scale=6.0, **options):
    """A small float64 network with weights large enough for its predictions to differ."""
    config = Config(
        vocab=V + 1, context=context, layers=2, heads=heads, d_model=8, position=position, **options
    )
    model = lm.HyperscheduleLM(config, rng=np.random.default_rng(seed)).to(np.float64)
    rng = np.random.default_rng(seed + 1)
    for p in model.parameters():
        p.data = p.data * scale + 0.05 * rng.standard_normal(p.shape)
    return model


def text(rng, B, N, width, T=4, epsilon=0.3):
    ids, t = rng.integers(0, V, (B, N)), lm.block_times(rng, B, N, width, T)
    return ids, epsilon_hybrid_noise(rng, ids, t, epsilon, V), t


def gradients(loss, model):
    return [raw(g) for g in grad(loss, model.parameters())]


@pytest.mark.parametrize(
    ("B", "N", "width"), [(1, 1, 1), (2, 6, 2), (2, 6, 1), (1, 5, 5), (3, 8, 4), (2, 7, 3)]
)
@pytest.mark.parametrize(
    ("context", "active", "position", "heads"),
    [
        ("causal", "full", "learned", 2),
        ("block_causal", "causal", "sinusoidal", 1),
        ("causal", "causal", "none", 2),
        ("causal", "full", "rope", 2),
        ("block_causal", "full", "alibi", 4),
    ],
)
def test_one_pass_of_2n_rows_is_the_mean_over_blocks(B, N, width, context, active, position, heads):
    rng = np.random.default_rng(N + width)
    model = network(position=position, heads=heads)
    ids, noised, t = text(rng, B, N, width)
    options = {"epsilon": 0.3, "lam": 0.7, "context": context, "active": active}
    got = lm.block_loss(model, ids, noised, t, width, **options)
    schedule = Hyperschedule.block(N, width, 1)
    sizes = [np.subtract(*schedule.span(step)[::-1]) for step in range(schedule.steps)]
    want = sum(
        lm.move_loss(model, ids, noised, t, schedule, step, **options) * (size / N)
        for step, size in enumerate(sizes)
    )
    assert raw(got) > 0.3
    np.testing.assert_allclose(raw(got), raw(want), rtol=1e-10)
    for g, w in zip(gradients(got, model), gradients(want, model), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12 * (1 + np.abs(w).max()))


def test_full_context_lets_the_answer_leak_through_the_clean_rows():
    """Why clean rows may not see all: a later block reaches an earlier one through them."""
    model, rng = network(), np.random.default_rng(0)
    ids, noised, _ = text(rng, 1, 6, 2)
    other = ids.copy()
    other[:, 4:] = (other[:, 4:] + 1) % V
    for context, leaks in (("causal", False), ("block_causal", False), ("full", True)):
        a, b = (raw(model.pair(x, noised.ids, lm.training_mask(6, 2, context=context))) for x in (ids, other))
        assert np.abs(a - b)[:, 2:4].max() > 1e-6 if leaks else np.array_equal(a, b)


@pytest.mark.parametrize(("B", "N"), [(1, 2), (2, 7), (3, 5)])
def test_autoregressive_schedule_predicting_the_next_is_a_gpt(B, N):
    rng, model = np.random.default_rng(N), network()
    ids = rng.integers(0, V, (B, N))
    gpt = GPT(Config(**{**model.config.__dict__, "vocab": V}), rng=rng).to(np.float64)
    state = {
        name: p[:V] if "token" in name or "head" in name else p for name, p in model.state_dict().items()
    }
    gpt.load_state_dict(state)
    schedule, t = Hyperschedule.autoregressive(N - 1).after(1), np.ones((B, N))
    noised = epsilon_hybrid_noise(rng, ids, t, 0.0, V)
    losses = [
        lm.move_loss(model, ids, noised, t, schedule, step, epsilon=0.0, predict_next=True)
        for step in range(schedule.steps)
    ]
    got, want = sum(losses) / schedule.steps, gpt.loss(ids[:, :-1], ids[:, 1:])
    np.testing.assert_allclose(raw(got), raw(want), rtol=1e-12)
    np.testing.assert_allclose(raw(model(ids)), raw(gpt(ids)), rtol=1e-12)  # and without a mask it is causal
    for g, w in zip(gradients(got, model), gradients(want, gpt), strict=True):
        np.testing.assert_allclose(g[: len(w)] if g.shape != w.shape else g, w, rtol=1e-9, atol=1e-11)
        assert g.shape == w.shape or not g[len(w) :].any()  # [MASK] plays no part


def test_moves_score_their_active_tokens():
    model, rng = network(), np.random.default_rng(3)
    ids, noised, t = text(rng, 2, 6, 6)
    schedule = Hyperschedule.sliding(6, 3, 3)
    a, b = schedule.span(4)
    loss = raw(lm.move_loss(model, ids, noised, t, schedule, 4, epsilon=0.3))
    other = ids.copy()
    other[:, b:] = (other[:, b:] + 1) % V  # the noise is not looked at
    noise = Noised(np.where(np.arange(6) < b, noised.ids, 0), noised.masked, noised.shuffled)
    assert raw(lm.move_loss(model, other, noise, t, schedule, 4, epsilon=0.3)) == loss
    other[:, a] = (other[:, a] + 1) % V
    assert raw(lm.move_loss(model, other, noise, t, schedule, 4, epsilon=0.3)) != loss
    one = raw(lm.move_loss(model, ids, noised, t[:1], schedule, 4, epsilon=0.3, lam=1.0))
    assert (
        raw(lm.move_loss(model, ids, noised, np.broadcast_to(t[:1], (2, 6)), schedule, 4, epsilon=0.3)) == one
    )


def test_settled_rows_are_causal_and_active_ones_are_not():
    model, rng = network(), np.random.default_rng(5)
    ids = rng.integers(0, V, (1, 6))
    mask = hyperschedule_mask(Hyperschedule.block(6, 3, 2), 2)
    change = lambda x: (x + 1) % V  # noqa: E731
    check_causal(
        lambda x: raw(model(np.concatenate([x, ids[:, 3:]], 1), mask_mod=mask))[:, :3],
        ids[:, :3],
        change=change,
    )
    before, moved = (
        raw(model(x, mask_mod=mask)) for x in (ids, np.where(np.arange(6) == 5, change(ids), ids))
    )
    assert (
        np.array_equal(before[:, :3], moved[:, :3]) and (np.abs(before - moved)[:, 3:].max(-1) > 1e-9).all()
    )


SCHEDULES = [
    Hyperschedule.autoregressive(7),
    Hyperschedule.block(7, 3, 2),
    Hyperschedule.sliding(7, 3, 3),
    Hyperschedule.hybrid(8, 4, 3),
    Hyperschedule.flat(5, 4),
    Hyperschedule.block(6, 2, 3).after(3),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("context", "active"), [(c, a) for c in CONTEXTS for a in ACTIVE])
def test_cached_generation_is_the_one_that_computes_everything(schedule, context, active):
    model = network(position={"causal": "rope", "block_causal": "alibi", "full": "learned"}[context])
    prompt = np.random.default_rng(9).integers(0, V, (2, schedule.given)) if schedule.given else None
    options = {"batch": 2, "prompt": prompt, "eta": 0.6, "context": context, "active": active}
    naive = lm.naive_scheduled_generate(model, schedule, rng=np.random.default_rng(1), **options)
    plain = lm.scheduled_generate(model, schedule, rng=np.random.default_rng(1), cache=False, **options)
    cached = lm.scheduled_generate(model, schedule, rng=np.random.default_rng(1), **options)
    np.testing.assert_array_equal(plain.ids, naive.ids)
    np.testing.assert_array_equal(cached.ids, naive.ids)
    assert (cached.ids < V).all() and cached.ids.shape == (2, schedule.N)
    if prompt is not None:
        np.testing.assert_array_equal(cached.ids[:, : schedule.given], prompt)
    spans = [schedule.span(step) for step in range(schedule.steps)]
    held = [0, *(schedule.cacheable(step, context) for step in range(schedule.steps - 1))]
    assert naive.calls == plain.calls == cached.calls == schedule.steps
    assert naive.rows == schedule.steps * schedule.N and plain.rows == sum(b for _, b in spans)
    assert cached.rows == sum(b - kept for (_, b), kept in zip(spans, held, strict=True))
    assert cached.rows < plain.rows or context == "full" or schedule.span(schedule.steps - 1)[0] == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_logits_from_the_cache_are_those_of_a_full_pass(schedule):
    """Every move's logits, not the tokens alone; and each cache holds what it was told to keep."""
    model, rng = network(), np.random.default_rng(2)
    ids, caches, kept, reused = rng.integers(0, V, (2, schedule.N)), model.new_caches(), 0, 0
    for step in range(schedule.steps):
        a, b = schedule.span(step)
        ids[:, a:] = rng.integers(0, V + 1, (2, schedule.N - a))  # active tokens come and go
        mask = hyperschedule_mask(schedule, step)
        with no_grad():
            got = raw(model(ids[:, kept:b], mask_mod=mask, caches=caches))
            want = raw(model(ids, mask_mod=mask))[:, kept:b]
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-11)
        reused += kept
        kept = schedule.cacheable(step)
        for cache in caches:
            assert cache.length == b
            cache.keep(kept)
            assert cache.length == cache.held == kept
    assert reused > 0 or schedule.steps == 4


def test_generation_takes_draws_from_the_generator_and_leaves_the_mode():
    model, schedule = network(dropout=0.5), Hyperschedule.block(6, 3, 2)
    model.train()
    one, again, other = (
        lm.scheduled_generate(model, schedule, rng=np.random.default_rng(s)).ids for s in (0, 0, 1)
    )
    assert model.training and one.shape == (1, 6)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    model.eval()
    lm.scheduled_generate(model, schedule, rng=np.random.default_rng(0))
    assert not model.training


def test_eta_decides_what_is_drawn_again():
    """With η = 0 a visible active token stays until it settles; with η = 1 some change."""
    schedule, changed = Hyperschedule.flat(6, 5), {}
    for eta in (0.0, 1.0):
        model, seen = network(), []
        inner = model.hidden
        model.hidden = lambda ids, seen=seen, inner=inner, **how: (
            seen.append(ids.copy()),
            inner(ids, **how),
        )[1]
        last = lm.scheduled_generate(model, schedule, rng=np.random.default_rng(0), batch=8, eta=eta).ids
        steps = [*seen, last]
        changed[eta] = sum(((a != V) & (a != b)).sum() for a, b in pairwise(steps))
    assert changed[0.0] == 0 < changed[1.0]
    model, seen = network(), []
    given = lm.scheduled_generate(model, schedule, rng=np.random.default_rng(0), batch=8).ids
    np.testing.assert_array_equal(
        given, lm.scheduled_generate(model, schedule, rng=np.random.default_rng(0), batch=8, eta=0.015).ids
    )


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_positions_fold_for_the_time_of_a_pass(position):
    model, ids = network(position=position), np.random.default_rng(0).integers(0, V, (1, 5))
    before, mask = raw(model(ids)), lm.training_mask(5, 2)
    once = raw(model.pair(ids, ids, mask))
    np.testing.assert_array_equal(raw(model(ids)), before)

    def broken(b, h, i, j):
        raise RuntimeError("no mask")

    with pytest.raises(RuntimeError, match="no mask"):
        model.pair(ids, ids, broken)
    np.testing.assert_array_equal(raw(model(ids)), before)
    model._fold = lambda N: None  # rows that stand at N + p instead of p see otherwise
    assert np.abs(raw(model.pair(ids, ids, mask)) - once).max() > 1e-3


def test_times_of_blocks():
    rng = np.random.default_rng(0)
    t = lm.block_times(rng, 200, 7, 3, 4)
    assert t.shape == (200, 7) and sorted(set(t.ravel())) == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_array_equal(t[:, [0, 3]], t[:, [2, 5]])
    assert (t[:, 2] != t[:, 3]).any() and (t[:, 5] != t[:, 6]).any()
    assert (lm.block_times(rng, 2, 3, 5, 1) == 1).all()


def test_a_settled_cache_forgets_its_end():
    cache, rng = lm.SettledCache(), np.random.default_rng(0)
    k, v = rng.standard_normal((2, 1, 2, 5, 3))
    cache.append(k, v)
    cache.keep(2)
    seen = cache.append(k[:, :, 3:], v[:, :, 3:])
    np.testing.assert_array_equal(seen.keys, k[:, :, [0, 1, 3, 4]])
    np.testing.assert_array_equal(seen.values, v[:, :, [0, 1, 3, 4]])
    np.testing.assert_array_equal(seen.positions, [0, 1, 2, 3])
    cache.keep(0)
    assert cache.length == 0
    for n in (-1, 1):
        with pytest.raises(ValueError, match=f"n: expected a number of positions in .0, 0., got {n}"):
            cache.keep(n)


def test_the_mask_is_never_predicted():
    model = network()
    assert model.mask_id == V and model(np.full((2, 3), V)).shape == (2, 3, V)
    ids = np.zeros((2, 3), int)
    assert model.pair(ids, ids, lm.training_mask(3, 1)).shape == (2, 3, V)
    assert all(isinstance(c, lm.SettledCache) for c in model.new_caches()) and len(model.new_caches()) == 2
    post = network(pre_norm=False)
    assert not hasattr(post, "norm") and np.isfinite(raw(post(ids))).all()


def test_bad_input_is_named():
    config = {"vocab": 8, "context": 4, "layers": 1, "heads": 1, "d_model": 4}
    model, rng, ids = network(), np.random.default_rng(0), np.zeros((1, 4), int)
    schedule = Hyperschedule.block(4, 2, 2)
    noised = Noised(ids, ids > 0, ids > 0)

    def build(**change):
        return lambda: lm.HyperscheduleLM(Config(**{**config, **change}), rng=rng)

    def write(schedule, prompt=None, **options):
        return lambda: lm.scheduled_generate(model, schedule, rng=rng, prompt=prompt, **options)

    cases = [
        (
            lambda: model(ids, pad=np.array([1])),
            "pad: expected none, a schedule's positions are those of the rows",
        ),
        (build(vocab=1), "config: expected a vocab of at least one token and [MASK], got 1"),
        (
            lambda: model.pair(ids, ids[:, 1:], lm.training_mask(4, 2)),
            "noised: expected shape (1, 4) as clean, got (1, 3)",
        ),
        (
            lambda: lm.move_loss(model, ids, noised, 0.5, schedule, 0, epsilon=0.1, predict_next=True),
            "predict_next: needs a settled row before the active ones; use schedule.after(1)",
        ),
        (write(schedule, ids), "prompt: expected tokens for the schedule's 0 given positions, got (1, 4)"),
        (write(schedule.after(2)), "prompt: expected tokens for the schedule's 2 given positions, got none"),
        (write(schedule.after(2), ids), "prompt: expected shape (B, 2), got (1, 4)"),
        (write(schedule.after(2), ids[0, :2]), "prompt: expected shape (B, 2), got (2,)"),
        (write(schedule, batch=0), "batch: expected a whole number ≥ 1, got 0"),
        (write(schedule, context="x"), "context: expected one of causal, block_causal, full, got 'x'"),
        (write(schedule, eta=2), "eta: expected a probability in [0, 1], got 2"),
        (lambda: lm.block_times(rng, 1, 4, 0, 1), "width: expected a whole number ≥ 1, got 0"),
        (lambda: lm.block_times(rng, 1, 4, 1, 0), "T: expected a whole number ≥ 1, got 0"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message
    with pytest.raises(ValueError, match="step"):
        lm.move_loss(model, ids, noised, 0.5, schedule, 4, epsilon=0.1)
    build(vocab=2)()
