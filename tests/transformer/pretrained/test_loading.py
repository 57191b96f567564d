"""`load`: names, folders, and what it says of everything else."""

import numpy as np
import pytest

from minattn.autograd import no_grad
from minattn.transformer import MaskedLM
from minattn.transformer.pretrained import PACKAGED, CheckpointError, load
from minattn.transformer.pretrained.loading import FAMILIES

torch = pytest.importorskip("torch", reason="PyTorch is the judge: pip install -e '.[compare]'")
transformers = pytest.importorskip("transformers", reason="the judge: pip install -e '.[compare]'")


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=41, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=7))


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=41, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16))


IDS = np.random.default_rng(0).integers(0, 41, (2, 9))


def test_every_architecture_that_is_listed_exists_in_transformers():
    assert all(hasattr(transformers, name) for name in FAMILIES) and len(FAMILIES) == 7
    assert list(PACKAGED) == ["smollm2", "minilm"]


def test_a_name_is_looked_up_with_its_weights(monkeypatch):
    monkeypatch.setitem(PACKAGED, "mine", lambda weights: ("made", weights))
    assert load("mine", weights="q4") == ("made", "q4") and load("mine") == ("made", "float32")


def test_a_list_of_modules_makes_a_folder_a_sentence_encoder(saved):
    folder = saved(bert())
    (folder / "modules.json").write_text("[]")
    with pytest.raises(CheckpointError, match=rf"^{folder}/modules\.json: expected Transformer, Pooling"):
        load(folder)


def test_a_folder_with_a_tokenizer(saved):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    folder = saved(gpt2())
    assert not hasattr(load(folder), "tokenizer")
    Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
    model = load(str(folder))
    assert model.tokenizer.encode("b") == [1] and model.tokenizer.eos == 7


@pytest.mark.parametrize("weights, tol", [("float16", 1e-3), ("q4", 0.25)])
@pytest.mark.parametrize("make", [gpt2, bert])
def test_packed_weights_compute_about_the_same(saved, make, weights, tol):
    folder = saved(make())
    full, kept = load(folder), load(folder, weights=weights)
    with no_grad():
        want, got = full(IDS).data, kept(IDS).data
    assert want.std() > 0.3 and got.dtype == np.float32
    error = np.sqrt(np.square(got - want).mean()) / want.std()
    assert 0 < error < tol
    assert "Packed" in repr(kept) and "Packed" not in repr(full)
    assert isinstance(kept, MaskedLM) == (make is bert) and not kept.training


@pytest.mark.parametrize("source", ["gpt5", "/no/such/folder"])
def test_other_sources_are_refused(source):
    known = "one of smollm2, minilm, or a folder with a checkpoint"
    with pytest.raises(ValueError, match=f"^source: expected {known}, got '{source}'$"):
        load(source)


def test_a_file_is_no_folder(saved):
    with pytest.raises(ValueError, match="source: expected one of"):
        load(saved(gpt2()) / "model.safetensors")


@pytest.mark.parametrize("weights", ["q5", "", None])
def test_other_forms_of_weights_are_refused_before_anything_is_read(weights):
    with pytest.raises(ValueError, match=f"^weights: expected one of float32, float16, q4, got {weights!r}$"):
        load("smollm2", weights=weights)


@pytest.mark.parametrize("changes, message", [
    ({"architectures": ["MambaForCausalLM"]}, r"one of LlamaForCausalLM, GPT2.* got \['MambaForCausalLM'\]$"),
    ({"architectures": []}, r"architectures: expected one of .*, got \[\]$"),
    ({"architectures": None}, r"architectures: expected one of .*, got \[\]$"),
    ({"architectures": "GPT2LMHeadModel"}, r"architectures: expected list, got 'GPT2LMHeadModel'"),
    ({"architectures": ["LlamaForCausalLM"]}, r"config\.json: num_hidden_layers: expected int, got noth"),
    ({"n_head": 3}, r"config\.json: d_model: expected a multiple of heads=3, got 32$"),
])
def test_another_architecture_is_one_clear_error_and_the_folder_stays(saved, edited, changes, message):
    folder = edited(saved(gpt2()), **changes)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert str(folder / "config.json") in str(caught.value) and "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_first_architecture_that_is_known_counts(saved, edited):
    folder = edited(saved(gpt2()), architectures=["SomethingNew", "GPT2LMHeadModel", "BertModel"])
    assert load(folder)(IDS).shape == (2, 9, 41)
