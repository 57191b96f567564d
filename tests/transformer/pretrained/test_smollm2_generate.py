"""SmolLM2 writes what transformers writes; cached, in chunks, padded or not."""

import numpy as np
import pytest

from minattn.autograd import no_grad
from minattn.transformer import at_head, generate, last_row_attention, stream

PROMPTS = ["To be, or not to be", "The capital of France is", "def fibonacci(n):\n", "Once upon a time",
           "1, 2, 3, 4,", "Water boils at", "Dear Sir or Madam,\n\n", "E = mc", "Die Katze sitzt auf",
           "A list of fruit:\n- apple\n-"]
TOLERANCE = 2e-3
"""Largest difference of two logits in float32 that we allow; they have a standard deviation of about 4."""


@pytest.fixture(scope="module")
def continuations(smollm2):
    """Each prompt with our 48 greedy tokens."""
    ids = [smollm2.tokenizer.encode(prompt) for prompt in PROMPTS]
    return [(len(row), generate(smollm2, [row], 48)) for row in ids]


def test_greedy_continuations_of_ten_prompts_are_transformers_choices(hf_smollm2, continuations):
    """At each position of what we wrote its most likely token is the one that we took."""
    torch = pytest.importorskip("torch")
    for prompt, (n, ours) in zip(PROMPTS, continuations, strict=True):
        assert ours.shape == (1, n + 48)
        with torch.no_grad():
            theirs = hf_smollm2(torch.tensor(ours)).logits.argmax(-1).numpy()
        np.testing.assert_array_equal(theirs[0, n - 1 : -1], ours[0, n:], err_msg=prompt)
    assert len({tuple(ours[0, -48:]) for _, ours in continuations}) == 10


@pytest.mark.parametrize("k", [0, 3])
def test_transformers_generation_writes_the_same(smollm2, hf_smollm2, continuations, k):
    torch = pytest.importorskip("torch")
    n, ours = continuations[k]
    with torch.no_grad():
        theirs = hf_smollm2.generate(torch.tensor(ours[:, :n]), max_new_tokens=48, do_sample=False,
                                     eos_token_id=None, pad_token_id=smollm2.tokenizer.pad).numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_a_chat_is_answered(smollm2):
    own = smollm2.tokenizer
    ids = own.chat([{"role": "user", "content": "What is the capital of France? Answer in one sentence."}])
    pieces = list(stream(smollm2, ids, 40, eos=own.eos))
    assert "Paris" in "".join(p.text for p in pieces) and pieces[-1] == (own.eos, "")
    short = list(stream(smollm2, ids, 40, eos=own.eos, stop="Paris"))
    assert "Paris" not in "".join(p.text for p in short) and len(short) < len(pieces)


def logits(model, ids, cuts):
    """Logits of every position, in pieces through caches; the caches must hold it all."""
    caches = model.new_caches()
    with no_grad():
        parts = [model(piece, caches=caches).data for piece in np.split(ids, cuts, axis=1)]
    assert all(c.length == ids.shape[1] for c in caches)
    return np.concatenate(parts, 1)


def test_cached_and_chunked_equal_uncached(smollm2, verse):
    ids = np.array([smollm2.tokenizer.encode(verse)[:96]])
    with no_grad():
        whole = smollm2(ids).data
    assert whole.std() > 2
    rng = np.random.default_rng(0)
    for cuts in ([1], [95], range(32, 96, 32), np.sort(rng.choice(np.arange(1, 96), 8, replace=False)),
                 [*range(80, 96)]):
        worst = np.abs(logits(smollm2, ids, list(cuts)) - whole).max()
        print(f"cut at {list(cuts)}: {worst:.1e}")
        assert worst < TOLERANCE


def test_prompts_of_different_lengths_in_one_batch(smollm2):
    batch = smollm2.tokenizer.batch(PROMPTS[:4])
    assert len(set(batch.lengths)) > 1
    got = generate(smollm2, batch.ids, 12, lengths=batch.lengths)
    with no_grad():
        pad = batch.ids.shape[1] - batch.lengths
        together = smollm2.next_logits(batch.ids, pad=pad).data
        for row, z, n in zip(got, together, batch.lengths, strict=True):
            prompt = row[None, len(row) - 12 - n : -12]
            assert np.abs(z - smollm2.next_logits(prompt).data[0]).max() < TOLERANCE
            np.testing.assert_array_equal(generate(smollm2, prompt, 12)[0, n:], row[-12:])


def test_last_rows_and_silenced_heads(smollm2, verse):
    ids = np.array([smollm2.tokenizer.encode(verse)[:64]])
    names = tuple(f"blocks.{n}.attn.hook_weights" for n in range(30))
    with no_grad():
        plain, cache = smollm2.run_with_cache(ids, names=names)
        rows = last_row_attention(smollm2, ids, chunk=20)
        want = np.stack([cache[name][:, :, -1] for name in names])
        np.testing.assert_allclose(rows, want, atol=2e-5)
        assert rows.shape == (30, 1, 9, 64) and rows.std() > 0.01
        hook = {"blocks.0.attn.hook_heads": at_head(4, lambda out: 0 * out)}
        assert np.abs(smollm2.run_with_hooks(ids, hooks=hook).data - plain.data).max() > 0.01
