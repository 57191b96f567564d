"""Tokenizers in folders: the vocabulary, named tokens, and the template of chats."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from minattn.transformer.pretrained import CheckpointError
from minattn.transformer.pretrained.checkpoint import Settings
from minattn.transformer.pretrained.tokenizer_files import read_tokenizer

WORDS = ["<s>", "</s>", "<pad>", "to", "be", "or", "not", "[UNK]"]


@pytest.fixture
def folder(tmp_path):
    backend = Backend(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def read(folder, beside=None, **config):
    (folder / "config.json").write_text(json.dumps(config))
    if beside is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(beside))
    return read_tokenizer(folder, Settings(folder / "config.json"))


def test_the_vocabulary_alone(folder):
    got = read(folder)
    assert got.encode("to be or not") == [3, 4, 5, 6] and len(got) == 8
    assert (got.eos, got.pad, got.template, got.special) == (None, 0, None, {})


@pytest.mark.parametrize("config, eos, pad", [
    ({"eos_token_id": 5}, 5, 5), ({"eos_token_id": [6, 7], "pad_token_id": 2}, 6, 2),
    ({"pad_token_id": 1}, None, 1), ({"eos_token_id": [], "pad_token_id": "x"}, None, 0),
    ({"eos_token_id": True}, None, 0)])
def test_ids_from_the_model_s_settings(folder, config, eos, pad):
    got = read(folder, **config)
    assert (got.eos, got.pad) == (eos, pad)


def test_named_tokens_go_before_them(folder):
    beside = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None,
              "unk_token": "[UNK]", "mask_token": "<none of ours>", "cls_token": {"special": True},
              "sep_token": ""}
    got = read(folder, beside, eos_token_id=5, pad_token_id=2)
    assert (got.eos, got.pad) == (1, 2)
    assert got.special == {"bos_token": 0, "eos_token": 1, "unk_token": 7}
    assert read(folder, {"pad_token": "<pad>"}, pad_token_id=4).pad == 2


def test_templates(folder):
    chat = [{"role": "user", "content": "to be"}]
    assert read(folder, {"chat_template": "{{ messages[0].content }} not"}).chat(chat) == [3, 4, 6]
    several = [{"name": "tools", "template": "no"},
               {"name": "default", "template": "or {{ messages[0].content }}"}]
    assert read(folder, {"chat_template": several}).chat(chat) == [5, 3, 4]
    assert read(folder, {"chat_template": several[:1]}).template is None
    (folder / "chat_template.jinja").write_text("not {{ messages[0].content }} é", encoding="utf-8")
    got = read(folder, {"chat_template": "never"})
    assert got.template == "not {{ messages[0].content }} é" and got.chat(chat) == [6, 3, 4, 7]


def test_damaged_and_missing_files(folder):
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: damaged or no JSON"):
        read(folder)
    whole = (folder / "tokenizer.json").read_text()
    for damaged in (whole[: len(whole) // 2], "", "{}", whole.replace("WordLevel", "WordLeveL")):
        (folder / "tokenizer.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged or no tokenizer \(") as caught:
            read(folder)
        assert str(folder) in str(caught.value)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read \(no such file\)$"):
        read(folder)
