"""Speculative decoding: the law that comes out is the target's, for one token and for whole texts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import no_grad
from minattn.inference.paging import BlockPool, PagedKVCache
from minattn.inference.speculative import (
    Pass,
    Round,
    Speculated,
    acceptance_rate,
    naive_speculative_law,
    residual_law,
    speculative_decode,
    speculative_law,
    tokens_per_pass,
    verify,
)
from minattn.transformer import GPT, Config, generate

from .decoders import VOCAB, gpt, llama

pytestmark = pytest.mark.paper(162)


def laws(rng, V, sharp=2.0, zeros=0):
    """Two random laws on V tokens, the first `zeros` of each impossible (others for each)."""
    p, q = np.exp(sharp * rng.standard_normal((2, V)))
    p[:zeros], q[V - zeros :] = 0, 0
    return p / p.sum(), q / q.sum()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 40), st.floats(0, 6), st.integers(0, 1))
def test_the_law_over_all_cases_is_the_target(seed, V, sharp, zeros):
    p, q = laws(np.random.default_rng(seed), V, sharp, zeros)
    np.testing.assert_allclose(naive_speculative_law(p.tolist(), q.tolist()), p, rtol=0, atol=1e-12)
    np.testing.assert_allclose(speculative_law(p, q), p, rtol=0, atol=1e-12)
    alpha = acceptance_rate(p, q)
    assert 0 <= alpha <= 1 + 1e-12
    assert alpha == pytest.approx(1 - abs(p - q).sum() / 2, abs=1e-12)
    assert alpha == pytest.approx(sum(min(1, p[y] / q[y]) * q[y] for y in range(V) if q[y]), abs=1e-12)


def test_equal_and_disjoint_laws():
    p = np.array([0.25, 0.75])
    assert naive_speculative_law(p, p) == [0.25, 0.75] and speculative_law(p, p).tolist() == [0.25, 0.75]
    assert residual_law(p, p).tolist() == [0.25, 0.75] and acceptance_rate(p, p) == 1
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert naive_speculative_law(one, other) == [1, 0] and speculative_law(one, other).tolist() == [1, 0]
    assert acceptance_rate(one, other) == 0 and residual_law(one, other).tolist() == [1, 0]
    # by hand: guesses of law (1/2, 1/2); the first is accepted half the time
    assert naive_speculative_law([0.25, 0.75], [0.5, 0.5]) == [0.25, 0.75]
    assert residual_law(p, np.array([0.5, 0.5])).tolist() == [0, 1]


def test_a_wrong_rule_has_another_law():
    """Drawing anew from p after a rejection, not from what is left of it, is not p."""
    p, q = laws(np.random.default_rng(0), 5)
    wrong = np.minimum(p, q) + (1 - acceptance_rate(p, q)) * p
    assert abs(wrong - p).max() > 0.01


def test_verify_draws_what_it_should():
    rng = np.random.default_rng(3)
    p, q = laws(rng, 4, sharp=1.0)
    n, counts, accepted = 10_000, np.zeros(4), 0
    for y in rng.choice(4, n, p=q):
        ok, x = verify(p, q, int(y), rng)
        counts[x] += 1
        accepted += ok
        assert not ok or x == y
    spread = np.sqrt(p * (1 - p) / n)
    assert (abs(counts / n - p) < 4.5 * spread).all()
    assert abs(accepted / n - acceptance_rate(p, q)) < 4.5 * 0.5 / np.sqrt(n)
    assert abs(q - p).max() > 5 * spread.max()  # the draft's own law would be found out


def test_certain_laws_need_no_chance():
    a, b = np.eye(3)[1], np.eye(3)[2]
    assert verify(a, a, 1, None) == (True, 1) and verify(b, a, 1, None) == (False, 2)


@pytest.mark.parametrize("lookahead", [1, 2, 5, 30])
@pytest.mark.parametrize("make", [llama, gpt])
def test_greedy_texts_are_the_targets_whatever_the_draft(make, lookahead):
    target = make(seed=0)
    for seed, n in itertools.product((0, 1, 2), (1, 5)):
        draft, prompt = make(seed=seed), np.random.default_rng(seed).integers(0, VOCAB, n).tolist()
        found = speculative_decode(target, draft, prompt, 20, lookahead=lookahead)
        np.testing.assert_array_equal(found.ids, generate(target, [prompt], 20)[0])
        assert sum(r.accepted + 1 for r in found.rounds) == 20
        if seed == 0:  # the draft is the target: nothing is ever rejected
            assert found.acceptance == (1.0 if lookahead else 0)
            assert len(found.rounds) == -(-20 // (lookahead + 1))


def test_rounds_and_passes():
    target = llama(seed=0)
    found = speculative_decode(target, target, [1, 2], 7, lookahead=3)
    assert found.rounds == [Round(3, 3), Round(2, 2)]
    assert found.target == [Pass(5, 5, 4), Pass(8, 3, 3)]
    assert found.draft == [Pass(2, 2, 1), Pass(3, 1, 1), Pass(4, 1, 1), Pass(6, 2, 1), Pass(7, 1, 1)]
    one = speculative_decode(target, target, [1, 2], 1)
    assert one.rounds == [Round(0, 0)] and one.target == [Pass(2, 2, 1)] and one.draft == []
    assert one.acceptance == 0
    nothing = speculative_decode(target, target, [1, 2], 0)
    assert nothing.ids.tolist() == [1, 2] and nothing.rounds == []
    assert Speculated(np.zeros(1), [Round(4, 1), Round(4, 2)], [], []).acceptance == 3 / 8


def near(model, size, seed=9):
    """A copy of a model with weights a little off: a draft that is right at times."""
    other = GPT(model.config, rng=np.random.default_rng(0)).to(np.float64).eval()
    rng = np.random.default_rng(seed)
    other.load_state_dict({name: w + size * rng.standard_normal(w.shape)
                           for name, w in model.state_dict().items() if name != "head.weight"})
    return other


def test_a_draft_that_is_near_is_accepted_more_often():
    target = llama(seed=2)
    rates = []
    for size in (0.0, 0.02, 0.3):
        found = speculative_decode(target, near(target, size), [1, 2, 3], 28)
        np.testing.assert_array_equal(found.ids, generate(target, [[1, 2, 3]], 28)[0])
        rates.append(found.acceptance)
    assert 1 == rates[0] >= rates[1] > rates[2]


def test_sampled_texts_have_the_law_of_the_target():
    """Pairs of tokens against the exact law of pairs, over many short texts."""
    config = Config(vocab=3, context=8, layers=1, heads=1, d_model=4)
    target = GPT(config, rng=np.random.default_rng(0)).to(np.float64).eval()
    rng = np.random.default_rng(1)
    for p in target.parameters():
        p.data = p.data + 0.6 * rng.standard_normal(p.shape)
    draft = near(target, 0.8)
    temperature, n, counts = 0.9, 1000, np.zeros((3, 3))
    rates = []
    for _ in range(n):
        found = speculative_decode(target, draft, [0], 2, lookahead=2, rng=rng, temperature=temperature)
        counts[tuple(found.ids[1:])] += 1
        rates.append(found.acceptance)

    def law(ids):
        with no_grad():
            z = target([ids]).data[0, -1] / temperature
        return np.exp(z) / np.exp(z).sum()

    want = np.array([law([0])[a] * law([0, a]) for a in range(3)])
    spread = np.sqrt(want * (1 - want) / n)
    assert (abs(counts / n - want) < 4.5 * spread).all()
    assert 0.2 < np.mean(rates) < 0.95
    assert abs(want - 1 / 9).max() > 5 * spread.max()


def test_the_same_generator_gives_the_same_text():
    target, draft = llama(seed=0), llama(seed=1)
    texts = [speculative_decode(target, draft, [1], 12, rng=np.random.default_rng(s)).ids for s in (5, 5, 6)]
    assert (texts[0] == texts[1]).all() and (texts[0] != texts[2]).any()


def test_low_temperature_is_greedy():
    target = llama(seed=0)
    rng = np.random.default_rng(0)
    cold = speculative_decode(target, llama(seed=1), [1, 2], 15, rng=rng, temperature=1e-4)
    np.testing.assert_array_equal(cold.ids, generate(target, [[1, 2]], 15)[0])


def test_paged_caches_are_rewound():
    target, pool, made = llama(seed=0, context=64), BlockPool(), []

    def paged():
        made.extend(PagedKVCache(pool) for _ in target.blocks)
        return made

    found = speculative_decode(target, llama(seed=1), [1, 2, 3], 40, lookahead=6, new_caches=paged)
    np.testing.assert_array_equal(found.ids, generate(target, [[1, 2, 3]], 40)[0])
    assert found.acceptance < 1
    assert [c.length for c in made] == [42] * 2 and (pool.counts > 0).sum() == 2 * 3


def test_tokens_per_pass():
    assert tokens_per_pass(0.5, 2) == 1.75 and tokens_per_pass(1, 4) == 5 and tokens_per_pass(0, 4) == 1
    assert tokens_per_pass(0.8, 5) == pytest.approx((1 - 0.8**6) / 0.2, rel=1e-14)
    assert tokens_per_pass(0.8, 0) == 1
    rng = np.random.default_rng(0)
    lucky = np.minimum((rng.random((100_000, 5)) >= 0.7).argmax(1) + 1, 5)  # the 5th always ends it
    runs = rng.random((100_000, 4)) < 0.7
    produced = 1 + np.cumprod(runs, 1).sum(1)
    assert lucky.min() == 1
    assert produced.mean() == pytest.approx(tokens_per_pass(0.7, 4), abs=0.02)


def test_bad_input():
    target = llama()
    other = GPT(Config(vocab=5, context=8, layers=1, heads=1, d_model=4), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^draft: expected 11 tokens as the target has, got 5$"):
        speculative_decode(target, other, [1], 2)
    for ids in ([], [[1]]):
        with pytest.raises(ValueError, match=r"^ids: expected one sequence of at least one integer"):
            speculative_decode(target, target, ids, 2)
    for temperature in (0, -1.0, np.inf):
        with pytest.raises(ValueError, match=r"^temperature: expected a number above 0"):
            speculative_decode(target, target, [1], 2, temperature=temperature)
    with pytest.raises(ValueError, match=r"^lookahead: expected a whole number ≥ 1, got 0"):
        speculative_decode(target, target, [1], 2, lookahead=0)
    with pytest.raises(ValueError, match=r"^max_new: expected a whole number ≥ 0"):
        speculative_decode(target, target, [1], -2)
    for p in ([0.5, 0.4], [[1.0]], [], [1.5, -0.5]):
        with pytest.raises(ValueError, match=r"^p: expected probabilities \(V,\) that sum to 1"):
            speculative_law(p, [1.0])
    with pytest.raises(ValueError, match=r"^q: expected probabilities"):
        acceptance_rate([1.0], [0.9])
    with pytest.raises(ValueError, match=r"^q: expected 1 probabilities as in p, got 2"):
        speculative_law([1.0], [0.5, 0.5])
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"^alpha: expected a probability in \[0, 1\]"):
            tokens_per_pass(alpha, 3)
    with pytest.raises(ValueError, match=r"^lookahead: expected a whole number ≥ 0"):
        tokens_per_pass(0.5, -1)
