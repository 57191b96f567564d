"""Generation: cached and uncached agree, beams find the optimum, the limit of learned positions."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from minattn.autograd import log_softmax, no_grad
from minattn.nn.decode import beam_search, greedy
from minattn.transformer import GPT, Config, EncoderDecoder, Step, TranslationStep, generate

CONFIG = Config(vocab=5, context=12, layers=2, heads=2, d_model=8)


def in_double(model):
    model = model.to(np.float64)
    for p in model.parameters():
        p.data = p.data + 0.5 * np.random.default_rng(p.size).standard_normal(p.shape)
    return model


@pytest.fixture
def model():
    return in_double(GPT(CONFIG, rng=np.random.default_rng(0)))


@pytest.mark.parametrize("position", ["learned", "rope", "alibi", "sinusoidal"])
@pytest.mark.parametrize("prompt", [1, 5])
def test_cached_generation_equals_recomputation(position, prompt):
    model = in_double(GPT(replace(CONFIG, position=position), rng=np.random.default_rng(0)))
    ids = np.random.default_rng(1).integers(0, 5, (3, prompt))
    for options in ({}, {"temperature": 0.8, "top_k": 4}):
        rngs = [np.random.default_rng(2) if options else None for _ in range(2)]
        cached = generate(model, ids, 7, rng=rngs[0], **options)
        plain = generate(model, ids, 7, rng=rngs[1], cache=False, **options)
        np.testing.assert_array_equal(cached, plain)
        np.testing.assert_array_equal(cached[:, :prompt], ids)
    assert len(np.unique(cached[:, prompt:])) > 1


def test_the_model_is_given_each_token_once(model):
    seen = []
    with model.hooked({"embed": lambda x: seen.append(x.shape[1])}):
        generate(model, np.zeros((2, 4), int), 5)
    assert seen == [4, 1, 1, 1, 1]


def test_greedy_takes_the_argmax_and_restores_training_mode(model):
    model.train()
    out = generate(model, np.array([[1, 2]]), 4)
    assert model.training
    for n in range(2, 6):
        with no_grad():
            assert out[0, n] == model(out[:, :n]).data[0, -1].argmax()


def test_beyond_the_learned_context_only_the_last_tokens_count(model):
    ids = np.random.default_rng(3).integers(0, 5, (1, 20))
    with no_grad():
        want = model(ids[:, -12:]).data[:, -1]
        np.testing.assert_array_equal(Step(model)(ids).data, want)
    assert generate(model, ids[:, :3], 20).shape == (1, 23)


def test_full_beams_with_cache_find_the_most_likely_sequence(model):
    prompt, new = np.array([[3, 1]]), 3
    best = max(product(range(5), repeat=new), key=lambda tail: score(model, prompt, tail))
    found = beam_search(Step(model), prompt, new, beams=5**new, length_penalty=0.0)
    assert tuple(found.ids[0, 0, 2:]) == best
    np.testing.assert_allclose(found.scores[0, 0], score(model, prompt, best), rtol=1e-9)


def score(model, prompt, tail):
    """ln p of `tail` after `prompt`, by one pass over the whole."""
    ids = np.concatenate([prompt, np.array([tail])], 1)
    with no_grad():
        logp = log_softmax(model(ids)).data[0]
    return sum(logp[prompt.shape[1] + n - 1, t] for n, t in enumerate(tail))


@pytest.mark.parametrize("beams", [1, 3])
def test_translating_with_cache_and_beams_equals_recomputation(beams):
    model = in_double(EncoderDecoder(CONFIG, source_vocab=7, rng=np.random.default_rng(0))).eval()
    source, lengths = np.random.default_rng(4).integers(0, 7, (2, 6)), np.array([6, 3])
    start = np.zeros((2, 1), int)
    cached = beam_search(TranslationStep(model, source, lengths), start, 6, beams=beams, eos=4)
    plain = beam_search(TranslationStep(model, source, lengths, cache=False), start, 6, beams=beams, eos=4)
    np.testing.assert_array_equal(cached.ids, plain.ids)
    np.testing.assert_allclose(cached.scores, plain.scores, rtol=1e-9)
    if beams == 1:
        np.testing.assert_array_equal(greedy(TranslationStep(model, source, lengths), start, 6, eos=4)[:, :2],
                                      cached.ids[:, 0, :2])
    alone = beam_search(TranslationStep(model, source[1:, :3]), start[1:], 6, beams=beams, eos=4)
    np.testing.assert_array_equal(alone.ids[0], cached.ids[1, :, : alone.ids.shape[2]])
