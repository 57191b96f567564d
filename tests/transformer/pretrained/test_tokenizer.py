"""The tokenizer on a vocabulary small enough to follow by hand."""

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.transformer.pretrained.tokenizer import Tokenizer, byte_level_bpe, padded

tokenizers = pytest.importorskip("tokenizers")
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<end>", "<user>", *ALPHABET, "lo", "Ġlo", "ĠĠ", "low", "Ġ1", "17"]
MERGES = ["l o", "Ġ lo", "Ġ Ġ", "lo w", "Ġ 1", "1 7"]
TEMPLATE = ("{% for m in messages %}{{ start_token }}{{ m.role }}:{{ m.content }}{{ end_token }}{% endfor %}"
            "{% if add_generation_prompt %}{{ start_token }}me:{% endif %}")


@pytest.fixture
def tokenizer():
    return make()


def make(**options):
    options = {"template": TEMPLATE, "special": {"end_token": 0, "start_token": 1}, "pad": 1} | options
    return Tokenizer(byte_level_bpe(TOKENS, MERGES, [0, 1]), options.pop("eos", 0), **options)


def names(tokenizer, text):
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text)]


@pytest.mark.parametrize("text, want", [
    ("low lo", ["low", "Ġlo"]),  # merges in their order: Ġlo before low
    ("lower", ["low", "e", "r"]),
    ("  lo", ["Ġ", "Ġlo"]),  # the last space belongs to the word
    ("  7", ["ĠĠ", "7"]),  # but not to a digit: digits are cut out first
    ("x 1", ["x", "Ġ", "1"]),
    ("170", ["1", "7", "0"]),  # whatever the merges say
    ("é", ["Ã", "©"]),
    ("<end>lo<end", ["<end>", "lo", "<", "e", "n", "d"]),
    ("", []),
])
def test_pieces_of_a_text(tokenizer, text, want):
    assert names(tokenizer, text) == want
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_keeps_special_tokens_and_takes_any_integers(tokenizer):
    ids = np.array([1, *tokenizer.encode("lo"), 0])
    assert tokenizer.decode(ids) == "<user>lo<end>"
    assert tokenizer.backend.decode(ids.tolist(), skip_special_tokens=True) == "lo"
    assert tokenizer.token(np.int64(0)) == "<end>" and tokenizer.token(TOKENS.index("Ġlo")) == " lo"
    assert len(tokenizer) == len(TOKENS)


def test_the_padding_token_is_the_given_one_or_the_end_or_the_first():
    backend = byte_level_bpe(TOKENS, MERGES, [0, 1])
    assert Tokenizer(backend, 7, pad=3).pad == 3 and Tokenizer(backend, 7, pad=0).pad == 0
    assert Tokenizer(backend, 7).pad == 7 and Tokenizer(backend).pad == 0 and Tokenizer(backend).eos is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches(tokenizer, side):
    texts = ["low lo lo", "x", "ab"]
    ids, lengths = tokenizer.batch(texts, side)
    assert ids.shape == (3, 3) and ids.dtype == lengths.dtype == np.int64
    assert lengths.tolist() == [3, 1, 2]
    for row, text, n in zip(ids.tolist(), texts, lengths, strict=True):
        filling = [1] * (3 - n)
        own = tokenizer.encode(text)
        assert row == (filling + own if side == "left" else own + filling)


def test_batches_are_filled_on_the_left_with_zeros_unless_said_otherwise(tokenizer):
    assert padded([[5], [6, 7]]).ids.tolist() == [[0, 5], [6, 7]]
    assert padded([[5], [6, 7]], 9).ids.tolist() == [[9, 5], [6, 7]]
    np.testing.assert_array_equal(tokenizer.batch(["x", "xy"]).ids, tokenizer.batch(["x", "xy"], "left").ids)


@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=12))
def test_pieces_together_are_the_decoded_text(ids):
    tokenizer = make()
    parts = list(tokenizer.pieces(ids))
    assert "".join(parts) == tokenizer.decode(ids)
    assert len(parts) in (len(ids), len(ids) + 1)
    assert not any(part.endswith("\ufffd") for part in parts[: len(ids)])


def test_a_character_comes_when_it_is_complete(tokenizer):
    smile = tokenizer.encode("a😀b")
    assert list(tokenizer.pieces(smile)) == ["a", "", "", "", "😀", "b"]
    assert list(tokenizer.pieces(iter(smile[:3]))) == ["a", "", "", "\ufffd"]


# ---- chats


CHAT = [{"role": "you", "content": "lo"}, {"role": "me", "content": "low"}]


def test_a_chat_is_rendered_and_encoded(tokenizer):
    assert tokenizer.render(CHAT) == "<user>you:lo<end><user>me:low<end><user>me:"
    assert tokenizer.render(CHAT, reply=False) == "<user>you:lo<end><user>me:low<end>"
    assert tokenizer.chat(CHAT) == tokenizer.encode(tokenizer.render(CHAT))
    assert tokenizer.chat(CHAT, False) == tokenizer.encode(tokenizer.render(CHAT, False))
    assert make(template="{{ extra }}").chat(CHAT, extra="low") == tokenizer.encode("low")


def test_a_chat_gets_no_tokens_but_those_of_its_template():
    tokenizer = make()
    tokenizer.backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<user> $A <end>", special_tokens=[("<user>", 1), ("<end>", 0)])
    assert tokenizer.encode("lo")[0] == 1 and tokenizer.encode("lo")[-1] == 0
    assert tokenizer.chat(CHAT[:1], reply=False) == tokenizer.encode(tokenizer.render(CHAT[:1], False))[1:-1]


def rendered(template, messages=CHAT, **variables):
    return make(template=template).render(messages, **variables)


def test_what_a_template_has_at_hand():
    assert rendered("{{ tools is none }}{{ documents is none }}") == "TrueTrue"
    assert rendered("{{ tools }}{{ extra }}", tools="T", extra="E") == "TE"
    assert rendered("{{ end_token }}", end_token="mine") == "mine"
    loop = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}"
    assert rendered(loop) == "me"
    assert rendered("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"  # blocks leave no blank lines
    assert rendered("{{ {'b': 'é<', 'a': 1} | tojson }}") == '{"b": "é<", "a": 1}'
    assert rendered("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"
    assert rendered("{{ 'é' | tojson(ensure_ascii=true) }}") == '"\\u00e9"'
    assert rendered("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}") == '{"a": 2, "b": 1}'
    assert rendered("{{ strftime_now('%Y') }}") in {str(datetime.datetime.now().year + d) for d in (0, -1)}


def test_a_template_changes_nothing_outside():
    messages = [dict(CHAT[0])]
    with pytest.raises(ValueError, match=r"^messages: the model's template refuses them: .*append"):
        rendered("{{ messages.append(1) }}", messages)
    assert messages == [CHAT[0]]


@pytest.mark.parametrize("template, message", [
    ("{{ raise_exception('roles must alternate') }}", "refuses them: roles must alternate"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ messages.__init__.__globals__ }}", "unsafe"),
    ("{% for %}", "refuses them: "),
])
def test_a_template_can_refuse_and_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        rendered(template)


@pytest.mark.parametrize("call, message", [
    (lambda t: t.batch(["a"], "top"), "^side: expected left or right, got 'top'"),
    (lambda t: t.batch([]), r"^sequences: expected at least one.*got lengths \[\]"),
    (lambda t: t.batch(["a", ""]), r"^sequences: .*none without tokens, got lengths \[1, 0\]"),
    (lambda t: make(template=None).render(CHAT), "^template: this tokenizer has none"),
    (lambda t: t.render(["hello"]), "^messages: expected mappings .*got 'hello'"),
    (lambda t: t.render([{"content": "hello"}]), "^messages: expected mappings with a role"),
])
def test_bad_input_is_named(tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        call(tokenizer)
