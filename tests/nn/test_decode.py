"""Decoding against enumeration of every sequence, frequencies by chi-square, filters by their definitions."""

import itertools

import numpy as np
import pytest

from minattn.autograd import Tensor
from minattn.nn.decode import beam_search, filter_logits, greedy, sample


@pytest.fixture
def rng():
    return np.random.default_rng(31)


class Toy:
    """A language model without rules: random logits for every prefix, always the same for the same one."""

    def __init__(self, V, seed=0, scale=1.5):
        self.V, self.seed, self.scale = V, seed, scale
        self.calls = 0

    def logits(self, prefix):
        rng = np.random.default_rng([self.seed, len(prefix), *map(int, prefix)])
        return self.scale * rng.standard_normal(self.V)

    def __call__(self, ids):
        self.calls += 1
        return np.array([self.logits(row) for row in ids])

    def logp(self, prompt, tokens):
        """ln P(tokens | prompt), one factor after the other."""
        total, prefix = 0.0, list(prompt)
        for token in tokens:
            z = self.logits(prefix)
            total += z[token] - np.log(np.sum(np.exp(z)))
            prefix.append(token)
        return total


def continuations(V, max_new, eos):
    """Every continuation: those that end with eos, and those of full length without it."""
    for n in range(1, max_new + 1):
        for tokens in itertools.product(range(V), repeat=n):
            early = eos is not None and eos in tokens[:-1]
            ended = eos is not None and tokens[-1] == eos
            if not early and (ended or n == max_new):
                yield tokens


def ranked(toy, prompt, max_new, eos, penalty):
    scored = [(toy.logp(prompt, c) / len(c) ** penalty, c) for c in continuations(toy.V, max_new, eos)]
    return sorted(scored, reverse=True)


PROMPTS = np.array([[2, 1], [0, 2], [1, 1]])


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("eos", [None, 0, 2])
@pytest.mark.parametrize("V, max_new", [(3, 3), (4, 2), (3, 1)])
def test_a_beam_of_full_width_finds_the_best_of_all(V, max_new, eos, penalty):
    toy = Toy(V)
    found = beam_search(toy, PROMPTS, max_new, V**max_new, eos=eos, length_penalty=penalty)
    for b, prompt in enumerate(PROMPTS):
        want = ranked(toy, prompt, max_new, eos, penalty)
        n = len(want)
        np.testing.assert_allclose(found.scores[b, :n], [score for score, _ in want], rtol=1e-12)
        for k, (_, tokens) in enumerate(want):
            length = found.lengths[b, k]
            assert tuple(found.ids[b, k, 2 : 2 + length]) == tokens
            assert (found.ids[b, k, :2] == prompt).all()
            assert (found.ids[b, k, 2 + length :] == (0 if eos is None else eos)).all()
        assert (found.scores[b, n:] == -np.inf).all() and (found.lengths[b, n:] == 0).all()
        assert (found.ids[b, n:, :2] == prompt).all() and (found.ids[b, n:, 2:] == eos).all()


def narrow(toy, prompt, max_new, K, eos, penalty):
    """Beam search over Python lists, without early stopping."""
    alive, done = [(0.0, ())], []
    for _ in range(max_new):
        wider = [(toy.logp(prompt, (*c, t)), (*c, t)) for _, c in alive for t in range(toy.V)]
        done += [(s / len(c) ** penalty, c) for s, c in wider if c[-1] == eos]
        alive = sorted([x for x in wider if x[1][-1] != eos], reverse=True)[:K]
    done += [(s / len(c) ** penalty, c) for s, c in alive]
    return sorted(done, reverse=True)[:K]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("K", [1, 2, 5])
@pytest.mark.parametrize("eos", [None, 1])
def test_a_narrow_beam_step_by_step(eos, K, penalty):
    improved = 0
    for seed in range(8):
        toy = Toy(5, seed)
        found = beam_search(toy, PROMPTS, 6, K, eos=eos, length_penalty=penalty)
        for b, prompt in enumerate(PROMPTS):
            want = narrow(toy, prompt, 6, K, eos, penalty)
            np.testing.assert_allclose(found.scores[b], [s for s, _ in want], rtol=1e-12)
            tokens = [tuple(found.ids[b, k, 2 : 2 + found.lengths[b, k]]) for k in range(K)]
            assert tokens == [c for _, c in want]
            one = greedy(toy, prompt[None], 6, eos=eos)[0, 2:]
            length = len(one) if eos not in one else int(np.argmax(one == eos)) + 1
            improved += found.scores[b, 0] > toy.logp(prompt, one[:length]) / length**penalty + 1e-9
    assert K == 1 or improved > 5, "a wider beam must sometimes beat the greedy choice"


def test_more_beams_than_sequences_without_an_end():
    found = beam_search(Toy(3), PROMPTS, 1, 5)
    assert (found.scores[:, :3] > -np.inf).all() and (found.scores[:, 3:] == -np.inf).all()
    assert (found.lengths == [1, 1, 1, 0, 0]).all() and (found.ids[:, 3:, 2] == 0).all()


def test_the_earlier_of_equals_comes_first_and_the_default_is_per_token():
    found = beam_search(flat, [[1]], 2, 8)
    assert found.ids[0, :, 1:].tolist() == [[a, b] for a in range(2) for b in range(4)]
    np.testing.assert_allclose(found.scores, -np.log(4))
    assert found.scores.dtype == np.float64
    low = beam_search(lambda ids: flat(ids).astype(np.float32), [[1]], 2, 8)
    np.testing.assert_array_equal(low.scores, found.scores)


def test_beam_search_stops_early():
    def certain(ids):  # after three tokens the end is all but certain
        z = np.zeros((len(ids), 4))
        z[:, 3 if ids.shape[1] >= 4 else 1] = 20.0
        return z

    calls = []
    found = beam_search(lambda ids: calls.append(1) or certain(ids), [[0]], 50, 1, eos=3, length_penalty=0.0)
    assert len(calls) < 8 and found.ids[0, 0].tolist()[:5] == [0, 1, 1, 1, 3]


def test_beam_search_reorders_a_cache():
    """A step that keeps what it has seen must be told which beams go on."""

    class Cached(Toy):
        def __call__(self, ids):
            if not hasattr(self, "seen") or len(self.seen) != len(ids):
                self.seen = ids[:, :-1].copy()
            assert ids.shape[1] == self.seen.shape[1] + 1
            self.seen = np.concatenate([self.seen, ids[:, -1:]], 1)  # only the last token is looked at
            return super().__call__(self.seen)

        def reorder(self, rows):
            assert not np.array_equal(rows, np.arange(len(rows))) or self.calls > 1
            self.seen = self.seen[rows]

    plain = beam_search(Toy(5), PROMPTS, 5, 3, eos=1)
    cached = beam_search(Cached(5), PROMPTS, 5, 3, eos=1)
    np.testing.assert_array_equal(plain.ids, cached.ids)
    np.testing.assert_allclose(plain.scores, cached.scores)


def test_greedy_takes_the_most_likely_token():
    toy = Toy(6)
    out = greedy(toy, PROMPTS, 4)
    for row, prompt in zip(out, PROMPTS, strict=True):
        want = list(prompt)
        for _ in range(4):
            want.append(int(np.argmax(toy.logits(want))))
        assert row.tolist() == want
    np.testing.assert_array_equal(greedy(toy, PROMPTS, 0), PROMPTS)


def test_finished_sequences_are_filled_and_decoding_stops():
    def script(ids):  # row b ends after b + 1 tokens
        z = np.zeros((len(ids), 4))
        for b, row in enumerate(ids):
            z[b, 3 if len(row) - 1 >= b else 1 + b % 2] = 9.0
        return z

    out = greedy(script, [[0], [0], [0]], 10, eos=3)
    assert out.tolist() == [[0, 3, 3, 3], [0, 2, 3, 3], [0, 1, 1, 3]]


def test_steps_may_return_tensors_and_nothing_is_recorded():
    weight = Tensor(np.eye(3, dtype=np.float32)[[1, 2, 0]], requires_grad=True)
    seen = []

    def step(ids):
        seen.append(weight[ids[:, -1]] * 2)
        return seen[-1]

    assert greedy(step, [[0]], 4).tolist() == [[0, 1, 2, 0, 1]]
    assert not any(t.requires_grad for t in seen)


# ---- sampling


def chi_square(counts, probabilities):
    """p-value of the counts under the probabilities."""
    stats = pytest.importorskip("scipy.stats")
    kept = probabilities > 0
    assert not counts[~kept].any(), "an impossible token was drawn"
    return stats.chisquare(counts[kept], counts.sum() * probabilities[kept]).pvalue


@pytest.mark.parametrize("options", [
    {}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 4}, {"top_p": 0.7}, {"min_p": 0.4},
    {"top_k": 5, "top_p": 0.9, "min_p": 0.1}])
def test_frequencies(rng, options):
    z = 1.3 * rng.standard_normal(8)
    z[3] = -np.inf
    many = np.zeros((20_000, 1), int)
    out = sample(lambda ids: np.tile(z, (len(ids), 1)), many, 1, rng=rng, **options)
    kept = filter_logits(z, **options)
    p = np.exp(kept - kept.max())
    p /= p.sum()
    counts = np.bincount(out[:, 1], minlength=8)
    assert chi_square(counts, p) > 1e-3
    if options:  # and the filters made a difference that this test can see
        q = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        assert (counts[q > 0] == 0).any() or chi_square(counts, q) < 1e-6


def test_frequencies_of_pairs(rng):
    """Two tokens in a row: the second depends on the first."""
    toy, n = Toy(3), 30_000
    out = sample(tabled(toy), np.ones((n, 1), int), 2, rng=rng)
    counts = np.bincount(out[:, 1] * 3 + out[:, 2], minlength=9)
    p = np.exp([toy.logp([1], pair) for pair in itertools.product(range(3), repeat=2)])
    assert chi_square(counts, p) > 1e-3


def tabled(toy):
    """The toy for many equal prefixes at once."""

    def step(ids):
        prefixes, which = np.unique(ids, axis=0, return_inverse=True)
        return toy(prefixes)[which.reshape(-1)]

    return step


def test_sampling_is_repeatable_and_follows_its_generator():
    toy = Toy(9)
    draws = [sample(toy, PROMPTS, 12, rng=np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_sampling_stops_at_the_end_token(rng):
    out = sample(Toy(3), np.zeros((50, 1), int), 30, rng=rng, eos=1)
    for row in out[:, 1:]:
        if 1 in row:
            assert (row[np.argmax(row == 1) :] == 1).all()
    assert out.shape[1] < 31


class Ends:
    """A generator whose draws are the ends of [0, 1)."""

    def __init__(self, value):
        self.value = value

    def random(self, shape):
        return np.full(shape, self.value)


def test_the_ends_of_the_unit_interval():
    z = np.array([[-np.inf, 0.0, -np.inf, 1.0, -np.inf]])
    for value, token in ((0.0, 1), (1.0, 3), (np.nextafter(1, 0), 3)):
        assert sample(lambda ids: z, [[0]], 1, rng=Ends(value)).tolist() == [[0, token]]


def test_rows_of_very_different_size(rng):
    """Each row is scaled by its own largest logit: nothing overflows, nothing vanishes."""
    z = np.array([[900.0, 900.0 + np.log(3), -np.inf], [-900.0, -np.inf, -900.0 + np.log(3)]])
    out = sample(lambda ids: np.repeat(z, len(ids) // 2, 0), np.zeros((20_000, 1), int), 1, rng=rng)[:, 1]
    for part, p in zip(np.split(out, 2), ([0.25, 0.75, 0], [0.25, 0, 0.75]), strict=True):
        assert chi_square(np.bincount(part, minlength=3), np.array(p)) > 1e-3


def test_filters_of_batches(rng):
    z = 3 * rng.standard_normal((2, 3, 5)) + np.array([0.0, 100.0, -100.0])[:, None]
    for options in ({"top_k": 1}, {"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.3}, {"temperature": 3.0}):
        got = filter_logits(z, **options)
        for i, j in np.ndindex(2, 3):
            np.testing.assert_array_equal(got[i, j], filter_logits(z[i, j], **options))
        if "temperature" not in options:
            assert 0 < np.isfinite(got).sum() < z.size
    assert (np.isfinite(filter_logits(z, top_k=1)).sum(-1) == 1).all()


def test_top_p_takes_no_more_than_it_needs():
    assert np.isfinite(filter_logits(np.zeros(2), top_p=0.5)).tolist() == [True, False]
    assert np.isfinite(filter_logits(np.zeros(64), top_p=0.5)).sum() == 32


def test_filters_by_their_definitions(rng):
    p = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    order = rng.permutation(6)
    z = np.log(p[order]) + 3.0

    def kept(**options):
        return {float(x) for x in p[order][np.isfinite(filter_logits(z, **options))]}

    assert kept() == set(p)
    assert kept(top_k=2) == {0.4, 0.25} and kept(top_k=6) == kept(top_k=60) == set(p)
    assert kept(top_p=0.4 - 1e-9) == {0.4} and kept(top_p=0.4 + 1e-9) == {0.4, 0.25}
    assert kept(top_p=1e-9) == {0.4} and kept(top_p=1.0) == set(p)
    assert kept(min_p=0.1 + 1e-9) == {0.4, 0.25, 0.15, 0.1, 0.06} and kept(min_p=0.6) == {0.4, 0.25}
    assert kept(min_p=1.0) == {0.4}
    assert kept(top_k=4, top_p=0.7) == {0.4, 0.25}  # 0.65/0.9 of what top-k left is above 0.7
    np.testing.assert_allclose(filter_logits(z, temperature=0.25), 4 * z)
    batch = np.stack([z, z[::-1]])
    np.testing.assert_array_equal(filter_logits(batch, top_p=0.7)[1], filter_logits(z, top_p=0.7)[::-1])
    assert np.isfinite(z).all(), "the logits given are not changed"


def flat(ids):
    return np.zeros((len(ids), 4))


@pytest.mark.parametrize("call, message", [
    (lambda r: greedy(flat, [0, 1], 3), r"ids: expected integers \(B, N\).*\(2,\)"),
    (lambda r: greedy(flat, np.zeros((0, 2), int), 3), "ids: "),
    (lambda r: greedy(flat, [[0.5]], 3), "ids: .*float64"),
    (lambda r: greedy(flat, [[0]], -1), "max_new: .*got -1"),
    (lambda r: greedy(lambda ids: np.zeros((1, 2, 3)), [[0]], 1), r"step: expected logits \(1, V\).*2, 3\)"),
    (lambda r: greedy(lambda ids: flat(ids) * np.nan, [[0]], 1), "^step: the logits contain NaN"),
    (lambda r: greedy(lambda ids: flat(ids) - [[0], [np.inf]], [[0], [0]], 1), "^step: the logits"),
    (lambda r: greedy(lambda ids: flat(ids) + np.inf, [[0]], 1), "step: the logits"),
    (lambda r: greedy(lambda ids: flat(ids) - np.inf, [[0]], 1), "leave no token possible"),
    (lambda r: greedy(flat, [[0]], 1, eos=4), r"eos: expected a token in \[0, 4\), got 4"),
    (lambda r: beam_search(flat, [[0]], 2, 2, eos=-1), "eos: .*got -1"),
    (lambda r: beam_search(flat, [[0]], 2, 0), "beams: .*got 0"),
    (lambda r: beam_search(flat, [[0]], 0, 2), "max_new: .*got 0"),
    (lambda r: beam_search(flat, [[0]], 2, 2, length_penalty=-1.0), "length_penalty: .*got -1.0"),
    (lambda r: sample(flat, [[0]], 1, rng=r, temperature=0.0), "temperature: .*greedy"),
    (lambda r: sample(flat, [[0]], 1, rng=r, temperature=np.inf), "temperature: .*got inf"),
    (lambda r: sample(flat, [[0]], 1, rng=r, top_k=0), "top_k: .*got 0"),
    (lambda r: sample(flat, [[0]], 1, rng=r, top_p=0.0), r"top_p: expected a number in \(0, 1\], got 0.0"),
    (lambda r: sample(flat, [[0]], 1, rng=r, min_p=1.5), "min_p: .*got 1.5"),
])
def test_bad_input_is_named(rng, call, message):
    with pytest.raises(ValueError, match=message):
        call(rng)
