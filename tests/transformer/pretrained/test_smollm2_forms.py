"""SmolLM2 with its weights in other forms, the short ways of inference, and files that are not it."""

import numpy as np
import pytest

from minattn.attention import AppendCache, dot_product
from minattn.autograd import no_grad
from minattn.transformer import block
from minattn.transformer.one_step import one_step
from minattn.transformer.pretrained import CheckpointError, load
from minattn.transformer.pretrained.smollm2 import from_gguf, path

from .conftest import fetched

PROMPTS = ["The capital of France is", "def fibonacci(n):", "Once upon a time, there was", "2 + 2 =",
           "The three primary colours are", "Dear Sir or Madam,", "Water boils at", "import numpy as np\n",
           "To be, or not to be,", "Le chat est"]


@pytest.fixture(scope="module")
def q4():
    return fetched(load, "smollm2", "q4")


@pytest.fixture
def plainly(monkeypatch):
    """Neither the tiled attention nor the single step in two calls."""
    monkeypatch.setattr(block, "one_step", lambda *args: None)
    monkeypatch.setattr(dot_product, "TILED", np.inf)


def continued(model, prompt, n):
    """Greedy continuation with caches, and the logits it was chosen by."""
    ids, caches, logits = list(model.tokenizer.encode(prompt)), [AppendCache(128) for _ in model.blocks], []
    with no_grad():
        out = model.next_logits(np.array([ids]), caches=caches).data[0]
        for _ in range(n):
            logits.append(out)
            ids.append(int(out.argmax()))
            out = model.next_logits(np.array([ids[-1:]]), caches=caches).data[0]
    return ids, np.array(logits)


@pytest.fixture(scope="module")
def continuations(smollm2, q4):
    """What both forms write, step by step, the short way."""
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "one_step", lambda *args: taken.append(one_step(*args)) or taken[-1])
        found = {"float32": [continued(smollm2, p, 48) for p in PROMPTS],
                 "q4": [continued(q4, p, 48) for p in PROMPTS[:3]]}
    assert sum(t is not None for t in taken) == (10 + 3) * 48 * 30
    return found


def test_48_tokens_of_ten_prompts_are_those_of_the_readable_form(smollm2, continuations, plainly):
    """All positions at once, without a cache, must choose what each step chose."""
    worst = 0.0
    for prompt, (ids, logits) in zip(PROMPTS, continuations["float32"], strict=True):
        start = len(ids) - 48
        with no_grad():
            want = smollm2(np.array([ids[:-1]])).data[0, start - 1 :]
        assert ids[start:] == want.argmax(-1).tolist(), prompt
        worst = max(worst, np.abs(logits - want).max())
    print(f"largest difference of logits over 480 tokens: {worst:.1e}")
    assert worst < 5e-4
    assert len({tuple(ids[-20:]) for ids, _ in continuations["float32"]}) == 10


def test_the_packed_form_computes_the_same_from_the_same_weights(continuations):
    for (ids, logits), (others, packed) in zip(continuations["float32"], continuations["q4"], strict=False):
        assert ids == others
        np.testing.assert_allclose(packed, logits, rtol=0, atol=5e-4)


def test_prompts_read_at_once(smollm2, q4, verse):
    """Tiles of attention and tiles of unpacked weights, against neither."""
    ids = np.array([smollm2.tokenizer.encode(verse)[:300]])
    with no_grad():
        fast, packed = smollm2(ids).data, q4(ids).data
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dot_product, "TILED", np.inf)
            want = smollm2(ids).data
    for got in (fast, packed):
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-4)


def test_the_packed_form_holds_the_weights_of_the_other(smollm2, q4):
    for module in ("embed.token", "blocks.0.attn.q_proj", "blocks.7.attn.k_proj", "blocks.29.mlp.down"):
        np.testing.assert_array_equal(q4.get_submodule(module).weight.dense(),
                                      smollm2.get_submodule(module).weight.data)
    np.testing.assert_array_equal(q4.norm.weight.data, smollm2.norm.weight.data)
    assert q4.head.packed is q4.embed.token.packed and q4.embed.token.kind == "q8_0"
    assert sum(a.nbytes for _, a in q4.named_buffers()) == 66_355_200 + 2 * 30_081_024
    owner = q4.blocks[3].mlp.up.packed
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert not owner.flags.owndata  # the file in memory


def test_half_precision(smollm2, verse):
    half = load("smollm2", "float16")
    ids = np.array([smollm2.tokenizer.encode(verse)[:40]])
    with no_grad():
        want, got = smollm2(ids).data, half(ids).data
    assert 0 < np.abs(got - want).max() < 0.2 and (got.argmax(-1) == want.argmax(-1)).mean() > 0.9
    assert half.blocks[0].attn.q_proj.kind == "float16"


def test_the_tokenizer_knows_the_files_special_tokens(q4):
    tokenizer = q4.tokenizer
    assert tokenizer.eos == tokenizer.pad == 2 and tokenizer.token(1) == "<|im_start|>"
    assert tokenizer.special == {"bos_token": 1, "eos_token": 2, "unk_token": 0, "pad_token": 2}
    assert tokenizer.template.startswith("{% for message") and len(tokenizer) == 49152


# ---- other files


def damaged(tmp_path, old, new):
    """The file's header and nothing else of it, with one text replaced by another as long."""
    whole = fetched(path).read_bytes()
    assert len(old) == len(new) and whole.count(old) >= 1
    file = tmp_path / "other.gguf"
    file.write_bytes(whole.replace(old, new))
    return file


@pytest.mark.parametrize(("old", "new", "message"), [
    (b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0qwen2", "expected the architecture llama, got 'qwen2'"),
    (b"llama.rope.freq_base", b"llama.rope.freq_bass", "lacks the metadata 'llama.rope.freq_base'"),
    (b"blk.3.attn_norm", b"blk.3.attn_nrom", "tensor blk.3.attn_nrom.weight is of no Llama known here"),
    (b"blk.3.attn_norm", b"blk.2.attn_norm", "not the Llama .*: missing blocks.3.norm1.weight; left over $"),
    (b"blk.3.attn_v.", b"blk.2.attn_v.", "not the Llama .*: missing blocks.3.attn.v_proj.weight; "),
    (b"blk.3.attn_v.", b"blk.3.attn_q.", r"blocks.3.attn.q_proj: expected a matrix of shape \(576, 576\)"),
    (b"blk.3.ffn_norm", b"blk.31.fn_norm", "tensor blk.31.fn_norm.weight is of no Llama"),
    (b"tokenizer.ggml.merges", b"tokenizer.ggml.mergez", "lacks the metadata 'tokenizer.ggml.merges'"),
])
def test_another_file_is_refused(tmp_path, old, new, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        from_gguf(damaged(tmp_path, old, new), "q4")
    assert "other.gguf" in str(caught.value)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    file = tmp_path / "short.gguf"
    file.write_bytes(fetched(path).read_bytes()[:50_000_000])
    with pytest.raises(CheckpointError, match=r"short.gguf: .*it ends before the tensor blk"):
        from_gguf(file)
