"""BERT's folders against transformers."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minattn.autograd import no_grad
from minattn.transformer import Encoder, MaskedLM
from minattn.transformer.pretrained import CheckpointError, load
from minattn.transformer.pretrained.bert import bert_config
from minattn.transformer.pretrained.checkpoint import Settings

torch = pytest.importorskip("torch", reason="PyTorch is the judge: pip install -e '.[compare]'")
transformers = pytest.importorskip("transformers", reason="the judge: pip install -e '.[compare]'")

SHAPES = {
    "two segments": {},
    "one layer, four segments": {"num_hidden_layers": 1, "type_vocab_size": 4, "layer_norm_eps": 0.05},
    "one head, relu": {"num_attention_heads": 1, "hidden_act": "relu"},
    "tanh form of gelu": {"hidden_act": "gelu_new"},
}
IDS = np.random.default_rng(1).integers(0, 41, (3, 20))
LENGTHS = np.array([20, 13, 1])
KINDS = (np.arange(20) >= np.array([[7], [20], [1]])).astype(int)
SEEN = np.arange(20) < LENGTHS[:, None]


def theirs(kind="BertModel", **changes):
    config = {"vocab_size": 41, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
              "intermediate_size": 44, "max_position_embeddings": 24}
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**{**config, **changes}))


def judged(model, name):
    """What transformers says of three padded sequences in two segments."""
    with torch.no_grad():
        out = model.eval()(torch.tensor(IDS), attention_mask=torch.tensor(SEEN),
                           token_type_ids=torch.tensor(KINDS))
    return out[name].numpy()


def compare(ours, want):
    with no_grad():
        got = ours(IDS, LENGTHS, KINDS).data
    assert want.std() > 0.2
    np.testing.assert_allclose(got[SEEN], want[SEEN], rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_equal_transformers(shape, saved):
    model = theirs(**SHAPES[shape])
    ours = load(saved(model))
    assert isinstance(ours, Encoder) and not ours.training
    compare(ours, judged(model, "last_hidden_state"))


def test_without_padding_and_segments(saved):
    model = theirs()
    ours = load(saved(model))
    with torch.no_grad(), no_grad():
        want = model.eval()(torch.tensor(IDS))[0].numpy()
        np.testing.assert_allclose(ours(IDS).data, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind, output", [("BertForMaskedLM", "logits"),
                                          ("BertForPreTraining", "prediction_logits")])
def test_guesses_of_masked_tokens_equal_transformers(kind, output, saved):
    model = theirs(kind, layer_norm_eps=1e-3)
    ours = load(saved(model, max_shard_size="12KB"))
    assert isinstance(ours, MaskedLM) and not ours.training
    compare(ours, judged(model, output))


def test_names_of_the_first_releases(saved):
    model = theirs("BertForPreTraining")
    folder = saved(model)
    arrays = {name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): a
              for name, a in load_file(folder / "model.safetensors").items()}
    assert sum("gamma" in name for name in arrays) == sum("beta" in name for name in arrays) == 8
    arrays |= {"bert.embeddings.position_ids": np.arange(24)[None],
               "cls.predictions.decoder.bias": np.ones(41, np.float32),
               "cls.predictions.decoder.weight": np.ones((41, 32), np.float32)}
    save_file(arrays, folder / "model.safetensors")
    compare(load(folder), judged(model, "prediction_logits"))


def test_the_trunk_of_a_model_with_heads(saved, edited):
    model = theirs("BertForPreTraining")
    folder = edited(saved(model), architectures=["BertModel"])
    compare(load(folder), judged(model.bert, "last_hidden_state"))


def test_defaults_are_those_of_transformers(tmp_path):
    config = transformers.BertConfig()
    (tmp_path / "config.json").write_text(
        '{"vocab_size": 9, "max_position_embeddings": 8, "num_hidden_layers": 1, "num_attention_heads": 2, '
        '"hidden_size": 8, "intermediate_size": 12}')
    ours = bert_config(Settings(tmp_path / "config.json"))
    assert (ours.norm_eps, ours.activation, ours.segments) == (
        config.layer_norm_eps, config.hidden_act, config.type_vocab_size)
    assert (ours.pre_norm, ours.norm, ours.position, ours.bias, ours.d_hidden) == (
        False, "layer", "learned", True, 12)


@pytest.mark.parametrize("kind, changes, message", [
    ("BertModel", {"position_embedding_type": "relative_key"}, "position_embedding_type: only 'absolute'"),
    ("BertModel", {"is_decoder": True}, "is_decoder: only False"),
    ("BertModel", {"add_cross_attention": True}, "add_cross_attention: only False"),
    ("BertModel", {"hidden_act": "tanh"}, "hidden_act: expected one of"),
    ("BertModel", {"type_vocab_size": 3}, "token_type_embeddings.weight of shape"),
    ("BertModel", {"num_hidden_layers": 4}, "lacks encoder.layer.3.* and 13 more"),
    ("BertModel", {"architectures": ["BertForMaskedLM"]}, "no MaskedLM .* lacks cls.predictions.bias"),
    ("BertForMaskedLM", {"hidden_act": "relu"}, "hidden_act: only 'gelu'"),
    ("BertForMaskedLM", {"tie_word_embeddings": False}, "tie_word_embeddings: only True"),
    ("BertForSequenceClassification", {}, r"architectures: expected one of .* got \['BertFor"),
])
def test_what_is_not_known_is_refused(saved, edited, kind, changes, message):
    folder = edited(saved(theirs(kind)), **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)
