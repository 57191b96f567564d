"""Options of generation: caches of one's own, chunks, padding, penalties, stop strings, streams."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import AppendCache, RingCache, WindowCache, left_padding, mask_array, sliding_window
from minattn.autograd import no_grad
from minattn.nn.decode import beam_search, penalize_repeats
from minattn.transformer import GPT, Config, EncoderDecoder, Step, TranslationStep, generate, stream

LLAMA = Config(vocab=17, context=24, layers=2, heads=4, kv_heads=2, d_model=16, norm="rms", bias=False,
               activation="swiglu", position="rope", tied=False)
POSITIONS = ["rope", "learned", "alibi", "sinusoidal", "none"]


def make(**changes):
    """A small Llama in float64 whose weights are large enough for its guesses to differ."""
    model = GPT(replace(LLAMA, **changes), rng=np.random.default_rng(0)).to(np.float64)
    for name, p in model.named_parameters():
        scale = 1.0 if "token" in name or "head" in name else 0.5
        p.data = p.data + scale * np.random.default_rng(p.size).standard_normal(p.shape)
    return model.eval()


MODEL = make()


def ids(B, N, seed=1):
    return np.random.default_rng(seed).integers(0, 17, (B, N))


class Letters:
    """Token t is the t-th letter."""

    @staticmethod
    def decode(ids):
        return "".join(chr(97 + i) for i in ids)


class Counting(AppendCache):
    """A cache that notes what it is given."""

    made = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1
        self.pieces = []

    def append(self, k, v):
        self.pieces.append(k.shape[2])
        return super().append(k, v)


# ---- caches and chunks


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(1, 19), max_size=6), st.integers(0, 3))
def test_cached_and_chunked_equal_uncached_at_any_cuts(cuts, seed):
    x = ids(2, 20, seed)
    with no_grad():
        want = MODEL(x).data
        caches, parts = MODEL.new_caches(), []
        for piece in np.split(x, sorted(cuts), axis=1):
            parts.append(MODEL(piece, caches=caches).data)
        assert [c.length for c in caches] == [20, 20]
    assert np.ptp(want) > 1
    np.testing.assert_allclose(np.concatenate(parts, 1), want, rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 23), st.integers(1, 22))
def test_a_prompt_in_chunks_gives_the_same_logits(N, chunk):
    x = ids(2, N, N)
    step = Step(MODEL, Counting, chunk=chunk)
    with no_grad():
        want = MODEL(x).data[:, -1]
        np.testing.assert_allclose(step(x).data, want, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(MODEL.next_logits(x).data, want, rtol=1e-12, atol=1e-12)
    for cache in step.caches:
        assert cache.length == sum(cache.pieces) == N
        assert set(cache.pieces[:-1]) <= {chunk} and 1 <= cache.pieces[-1] <= chunk


def test_a_subclass_of_a_cache_serves_generation():
    Counting.made = 0
    x = ids(2, 5)
    want = generate(MODEL, x, 6, cache=False)
    assert len(np.unique(want[:, 5:])) > 2
    np.testing.assert_array_equal(generate(MODEL, x, 6, cache=Counting), want)
    assert Counting.made == 2
    given_ones = [Counting(), Counting()]
    np.testing.assert_array_equal(generate(MODEL, x, 6, cache=given_ones, chunk=2), want)
    assert [c.pieces for c in given_ones] == [[2, 2, 1, 1, 1, 1, 1, 1]] * 2


def test_given_caches_go_on_where_they_are():
    x, caches = ids(1, 6), [Counting(), Counting()]
    longer = generate(MODEL, x, 3, cache=caches)
    assert caches[0].length == 8  # the last token has not been read yet
    whole = generate(MODEL, longer, 4, cache=caches)
    assert caches[0].pieces == [6] + [1] * 6
    np.testing.assert_array_equal(whole, generate(MODEL, x, 7))


@pytest.mark.parametrize("make_cache", [WindowCache, RingCache])
def test_a_window_of_keys(make_cache):
    """Caches of bounded size: the same as recomputing everything under the window's mask."""
    x = ids(2, 9)
    got = generate(MODEL, x, 8, cache=lambda: make_cache(4), chunk=3)
    want = x
    for _ in range(8):
        with no_grad():
            next_one = MODEL(want, mask_mod=sliding_window(4)).data[:, -1].argmax(-1)
        want = np.concatenate([want, next_one[:, None]], 1)
    np.testing.assert_array_equal(got, want)
    assert (got != generate(MODEL, x, 8)).any()


# ---- prompts of different lengths


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("options", [{}, {"cache": False}, {"chunk": 2}, {"repetition_penalty": 1.5},
                                     {"beams": 3}, {"eos": 3}])
def test_a_batch_with_padding_equals_its_prompts_alone(position, options):
    model = make(position=position)
    lengths, N, new = np.array([7, 1, 4, 7]), 7, 9
    x = ids(4, N, 5)
    got = generate(model, x, new, lengths=lengths, **options)
    other = np.where(np.arange(N) < (N - lengths)[:, None], 2, x)  # other padding, same result
    np.testing.assert_array_equal(generate(model, other, new, lengths=lengths, **options)[:, N:], got[:, N:])
    np.testing.assert_array_equal(got[:, :N], x)
    for row, prompt, n in zip(got, x, lengths, strict=True):
        alone = generate(model, prompt[None, N - n :], new, **options)[0, n:]
        np.testing.assert_array_equal(row[N : N + len(alone)], alone)
        assert (row[N + len(alone) :] == options.get("eos", 0)).all()
    assert len(np.unique(got[:, N:])) > 2


@pytest.mark.parametrize("position", POSITIONS)
def test_logits_after_padding_are_those_without(position):
    model = make(position=position)
    x, pad = ids(3, 8), np.array([0, 3, 7])
    with no_grad():
        got = model(x, pad=pad).data
        caches = model.new_caches()
        parts = [model(piece, pad=pad, caches=caches).data for piece in np.split(x, [2, 5], axis=1)]
        np.testing.assert_allclose(np.concatenate(parts, 1), got, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(model.next_logits(x, pad=pad).data, got[:, -1], rtol=1e-12)
        for row, prompt, n in zip(got, x, pad, strict=True):
            np.testing.assert_allclose(row[n:], model(prompt[None, n:]).data[0], rtol=1e-10, atol=1e-10)
    assert np.isfinite(got).all()


def test_a_batch_longer_than_the_learned_positions():
    """Padding is what falls off first; a prompt that fits whole stays whole."""
    model = make(position="learned", context=6)
    x, lengths = ids(3, 5), np.array([5, 2, 3])
    got = generate(model, x, 8, lengths=lengths)
    for row, prompt, n in zip(got, x, lengths, strict=True):
        np.testing.assert_array_equal(row[5:], generate(model, prompt[None, 5 - n :], 8)[0, n:])


def test_rotary_positions_have_no_limit():
    model, x = make(context=4), ids(1, 9)
    caches = [Counting(), Counting()]
    want = generate(MODEL, x, 5)  # the same weights, a longer context
    np.testing.assert_array_equal(generate(model, x, 5, cache=caches), want)
    assert caches[0].pieces == [9, 1, 1, 1, 1]
    assert (generate(MODEL, x[:, -4:], 5)[0, 4:] != want[0, 9:]).any()


def test_learned_positions_are_cached_up_to_the_last():
    model, caches = make(position="learned", context=8), [Counting(), Counting()]
    generate(model, ids(1, 5), 4, cache=caches)
    assert caches[0].pieces == [5, 1, 1, 1]


def test_filters_reach_the_sampler():
    x = ids(2, 4)
    one = generate(MODEL, x, 6, rng=np.random.default_rng(0), top_k=1)
    np.testing.assert_array_equal(one, generate(MODEL, x, 6))
    assert (generate(MODEL, x, 6, rng=np.random.default_rng(0)) != one).any()
    best = list(stream(MODEL, x[0], 6, rng=np.random.default_rng(0), min_p=1.0))
    assert [p.id for p in best] == one[0, 4:].tolist()


def test_a_step_of_a_translation():
    """Logits of the token after the last, with the sources encoded once and no target token read twice."""
    config = replace(LLAMA, position="learned", kv_heads=None)
    model = EncoderDecoder(config, source_vocab=7, rng=np.random.default_rng(0)).to(np.float64).eval()
    for p in model.parameters():
        p.data = p.data + 0.4 * np.random.default_rng(p.size).standard_normal(p.shape)
    source, lengths, x = np.random.default_rng(2).integers(0, 7, (2, 6)), np.array([6, 3]), ids(2, 5)
    seen, encoded = [], []
    hooks = {"embed": lambda e: seen.append(e.shape[1]), "encoder": lambda e: encoded.append(e.shape)}
    for cache in (True, False):
        for real in (lengths, None):
            seen.clear(), encoded.clear()
            with model.hooked(hooks), no_grad():
                step = TranslationStep(model, source, real, cache=cache)
                got = [step(x[:, :n]).data for n in (3, 4, 5)]
            assert seen == ([3, 1, 1] if cache else [3, 4, 5]) and len(encoded) == 1
            for n, z in zip((3, 4, 5), got, strict=True):
                np.testing.assert_allclose(z, model(source, x[:, :n], real).data[:, -1], rtol=1e-10)
    with no_grad():
        assert np.abs(model(source, x).data - model(source, x, lengths).data).max() > 1e-3
        assert TranslationStep(model, source).caches is not None


def test_left_padding_as_a_mask():
    visible = mask_array(left_padding(np.array([0, 2])), 2, 1, 1, 3)
    assert visible[:, 0, 0].tolist() == [[True, True, True], [False, False, True]]


# ---- penalty


@pytest.mark.parametrize("penalty", [0.7, 1.3, 4.0])
def test_the_penalty_on_repeats_token_by_token(penalty):
    rng = np.random.default_rng(0)
    logits, x, pad = rng.standard_normal((3, 9)), rng.integers(0, 9, (3, 6)), np.array([0, 2, 5])
    got = penalize_repeats(logits, x, penalty, pad)
    for b in range(3):
        said = set(x[b, pad[b] :].tolist())
        assert 0 < len(said) < 9
        for t in range(9):
            z = logits[b, t]
            want = z if t not in said else z / penalty if z > 0 else z * penalty
            assert got[b, t] == want
    np.testing.assert_array_equal(penalize_repeats(logits, x, penalty),
                                  penalize_repeats(logits, x, penalty, np.zeros(3, int)))


def test_the_penalty_in_generation():
    x = ids(2, 6)
    got = generate(MODEL, x, 10, repetition_penalty=3.0)
    row = x
    for _ in range(10):
        with no_grad():
            logits = MODEL(row).data[:, -1]
        row = np.concatenate([row, penalize_repeats(logits, row, 3.0).argmax(-1)[:, None]], 1)
    np.testing.assert_array_equal(got, row)
    plain = generate(MODEL, x, 10)
    assert (got != plain).any()
    np.testing.assert_array_equal(generate(MODEL, x, 10, repetition_penalty=1.0), plain)


def test_penalty_and_sampling_of_transformers():
    torch = pytest.importorskip("torch")
    judge = pytest.importorskip("transformers").generation.logits_process
    rng = np.random.default_rng(4)
    logits, x = 2 * rng.standard_normal((3, 9)), rng.integers(0, 9, (3, 4))
    theirs = judge.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(x), torch.tensor(logits)).numpy()
    np.testing.assert_allclose(penalize_repeats(logits, x, 1.3), theirs, rtol=1e-15)
    from minattn.nn.decode import filter_logits

    for ours, warper in ({"temperature": 0.7}, judge.TemperatureLogitsWarper(0.7)), \
                        ({"top_k": 4}, judge.TopKLogitsWarper(4)), \
                        ({"top_p": 0.7}, judge.TopPLogitsWarper(0.7)), \
                        ({"min_p": 0.2}, judge.MinPLogitsWarper(0.2)):
        want = warper(torch.tensor(x), torch.tensor(logits)).numpy()
        np.testing.assert_allclose(filter_logits(logits, **ours), want, rtol=1e-12)


# ---- beams


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_beams_with_a_cache_read_the_prompts_once_and_equal_beams_without(position):
    model, x = make(position=position), ids(2, 5)
    seen = []
    step = Step(model)
    with model.hooked({"embed": lambda e: seen.append(e.shape[:2])}):
        cached = beam_search(step, x, 6, beams=3, eos=4)
    assert seen[:2] == [(2, 5), (6, 1)] and set(seen[1:]) == {(6, 1)}
    plain = beam_search(Step(model, cache=False), x, 6, beams=3, eos=4)
    np.testing.assert_array_equal(cached.ids, plain.ids)
    np.testing.assert_allclose(cached.scores, plain.scores, rtol=1e-10)
    best = generate(model, x, 6, beams=3, eos=4)
    np.testing.assert_array_equal(best, cached.ids[:, 0])
    long = generate(model, x, 6, beams=3, eos=4, length_penalty=0.0)
    want = beam_search(Step(model), x, 6, 3, eos=4, length_penalty=0.0)
    np.testing.assert_array_equal(long, want.ids[:, 0])


# ---- stop strings and streams


def spoken(x, new, **options):
    return Letters.decode(generate(MODEL, x, new, **options)[0, x.shape[1] :])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_sequence_ends_with_the_token_that_completes_a_stop_string(length):
    x = ids(1, 4)
    text = spoken(x, 14)
    stop = text[5 : 5 + length]
    end = text.index(stop) + length
    assert end < 14
    assert spoken(x, 14, stop=stop, tokenizer=Letters()) == text[:end]
    assert spoken(x, 14, stop=["#", stop], tokenizer=Letters()) == text[:end]
    assert spoken(x, 14, stop=["#"], tokenizer=Letters()) == text


def test_the_prompt_may_hold_a_stop_string_and_finished_rows_are_filled():
    x = ids(3, 6)
    plain = generate(MODEL, x, 12)
    texts = [Letters.decode(row[6:]) for row in plain]
    stops = [Letters.decode(x[0, 4:]), texts[1][2:4]]
    for eos, filling in ((None, 0), (16, 16)):
        got = generate(MODEL, x, 12, stop=stops, tokenizer=Letters(), eos=eos)
        for row, text in zip(got, texts, strict=True):
            ends = [text.index(s) + len(s) for s in stops if s in text]
            n = min([*ends, len(text)])
            ended = text[:n].find("q")  # the letter of eos
            if eos == 16 and ended >= 0:
                n = ended + 1
            assert Letters.decode(row[6 : 6 + n]) == text[:n]
            assert (row[6 + n :] == filling).all()
        assert got.shape[1] > 6 + 2


def test_a_stream_gives_the_tokens_and_texts_of_generate():
    x = ids(1, 5)
    want = generate(MODEL, x, 9)[0, 5:]
    pieces = list(stream(MODEL, x[0], 9, tokenizer=Letters()))
    assert [p.id for p in pieces] == want.tolist()
    assert [p.text for p in pieces] == [chr(97 + t) for t in want]
    assert all(isinstance(p.id, int) for p in pieces)
    assert [p for p in stream(MODEL, list(x[0]), 9)] == [(t, "") for t in want.tolist()]
    options = {"temperature": 1.5, "top_k": 5, "repetition_penalty": 1.2, "chunk": 2}
    want = generate(MODEL, x, 9, rng=np.random.default_rng(3), **options)[0, 5:]
    got = [p.id for p in stream(MODEL, x[0], 9, rng=np.random.default_rng(3), **options)]
    assert got == want.tolist()


def test_a_stream_reads_each_token_once_and_only_when_asked():
    seen = []
    with MODEL.hooked({"embed": lambda e: seen.append(e.shape[1])}):
        running = stream(MODEL, ids(1, 5)[0], 9)
        assert seen == []
        for n, _ in zip(range(3), running, strict=False):
            assert seen == [5] + [1] * n
    caches = [Counting(), Counting()]
    list(stream(MODEL, ids(1, 5)[0], 4, cache=caches, chunk=3))
    assert caches[1].pieces == [3, 2, 1, 1, 1]


def test_a_stream_ends_before_a_stop_string_and_with_the_end_token():
    x = ids(1, 4)
    text = spoken(x, 14)
    for stop in (text[3:5], [text[6:9], "#"]):
        first = stop if isinstance(stop, str) else stop[0]
        pieces = list(stream(MODEL, x[0], 14, stop=stop, tokenizer=Letters()))
        assert "".join(p.text for p in pieces) == text[: text.index(first)]
        assert len(pieces) == text.index(first) + len(first)
    eos = ord(text[4]) - 97
    at = text.index(text[4])
    pieces = list(stream(MODEL, x[0], 14, eos=eos, tokenizer=Letters()))
    assert [p.text for p in pieces] == [*text[:at], ""] and pieces[-1].id == eos


def test_what_a_stream_keeps_back_comes_at_the_end():
    x = ids(1, 4)
    text = spoken(x, 6)
    waiting = text[-2:] + "#"  # never completed
    pieces = list(stream(MODEL, x[0], 6, stop=waiting, tokenizer=Letters()))
    assert "".join(p.text for p in pieces) == text
    assert pieces[-1] == (None, text[-2:]) and [p.text for p in pieces[4:6]] == ["", ""]
    eos = ord(text[-1]) - 97
    at = text.index(text[-1])
    pieces = list(stream(MODEL, x[0], 6, eos=eos, stop=text[at - 1] + "#", tokenizer=Letters()))
    assert "".join(p.text for p in pieces) == text[:at] and pieces[-1] == (eos, text[at - 1])


def test_the_models_own_tokenizer_is_used_and_training_is_restored():
    model = make()
    model.tokenizer = Letters()
    x = ids(1, 4)
    text = spoken(x, 8)
    model.train()
    modes = []
    with model.hooked({"embed": lambda e: modes.append(model.blocks[1].mlp.training)}):
        assert "".join(p.text for p in stream(model, x[0], 8)) == text
        assert model.training and model.blocks[1].mlp.training
        assert generate(model, x, 8, stop=text[2]).shape[1] == 4 + text.index(text[2]) + 1
    assert model.training and model.blocks[1].mlp.training and not any(modes)
    with pytest.raises(ValueError, match="eos"):
        generate(model, x, 8, eos=99)
    assert model.training


X = np.zeros((2, 3), int)


@pytest.mark.parametrize("call, message", [
    (lambda: generate(MODEL, X, 2, temperature=0.5), "^rng: expected a generator to sample with temperature"),
    (lambda: generate(MODEL, X, 2, repetition_penalty=0.0), "^repetition_penalty: .*above 0.*got 0.0"),
    (lambda: generate(MODEL, X, 2, repetition_penalty=np.inf), "^repetition_penalty: .*got inf"),
    (lambda: generate(MODEL, X, 2, lengths=[3]), r"^lengths: expected 2 integers from 1 to 3, got \[3\]"),
    (lambda: generate(MODEL, X, 2, lengths=[0, 3]), r"^lengths: .*got \[0 3\]"),
    (lambda: generate(MODEL, X, 2, lengths=[1, 4]), "^lengths: "),
    (lambda: generate(MODEL, X, 2, lengths=[1.0, 2.0]), "^lengths: "),
    (lambda: generate(MODEL, X, 2, chunk=0), "^chunk: expected a whole number ≥ 1, got 0"),
    (lambda: generate(MODEL, X, 2, chunk=4, cache=False), "^chunk: expected None without a cache"),
    (lambda: generate(MODEL, X, 2, cache=[AppendCache()]), "^cache: expected a KVCache for each of the 2 "),
    (lambda: generate(MODEL, X, 2, cache=[1, 2]), "^cache: expected a KVCache"),
    (lambda: generate(MODEL, X, 2, cache=dict), "^cache: expected a KVCache"),
    (lambda: generate(MODEL, X, 2, stop="a"), "^stop: expected strings that are not empty, and a tokenizer"),
    (lambda: generate(MODEL, X, 2, stop=["a", ""], tokenizer=Letters()), "^stop: expected strings"),
    (lambda: generate(MODEL, X, 2, beams=2, stop="a", tokenizer=Letters()), "^beams: expected None with rng"),
    (lambda: generate(MODEL, X, 2, beams=2, rng=np.random.default_rng(0)), "^beams: expected None"),
    (lambda: generate(MODEL, X[0], 2), r"^ids: expected integers \(B, N\)"),
    (lambda: stream(MODEL, X, 2), r"^ids: expected one sequence of integers \(N,\), got shape \(2, 3\)"),
    (lambda: stream(MODEL, X[0], -1), "^max_new: "),
    (lambda: stream(MODEL, X[0], 2, stop="a"), "^stop: "),
    (lambda: stream(MODEL, X[0], 2, top_k=3), "^rng: expected a generator to sample with top_k"),
])
def test_bad_input_is_named_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_caches_that_hold_the_whole_prompt_are_refused():
    step = Step(MODEL)
    with no_grad():
        step(X)
        with pytest.raises(ValueError, match=r"^ids: expected more than the 3 tokens that .* hold, got 3"):
            step(X)
