"""Llama's folders against transformers."""

import json

import numpy as np
import pytest

from minattn.autograd import no_grad
from minattn.transformer import GPT
from minattn.transformer.pretrained import CheckpointError, load
from minattn.transformer.pretrained.llama import llama_config

torch = pytest.importorskip("torch", reason="PyTorch is the judge: pip install -e '.[compare]'")
transformers = pytest.importorskip("transformers", reason="the judge: pip install -e '.[compare]'")

LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 20}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
SHAPES = {
    "grouped heads": {},
    "one layer, wide heads, tied": {"num_hidden_layers": 1, "head_dim": 10, "num_key_value_heads": 4,
                                    "tie_word_embeddings": True, "rms_norm_eps": 0.05, "hidden_act": "gelu"},
    "all biases, one key head": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    "biases in attention": {"attention_bias": True, "hidden_act": "relu"},
    "biases in the mlp": {"mlp_bias": True},
    "slowed down": {"rope_parameters": LINEAR},
    "slowed down as Llama 3": {"rope_parameters": LLAMA3},
}


def theirs(**changes):
    config = {"vocab_size": 41, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
              "rope_parameters": {"rope_type": "default", "rope_theta": 30.0}}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **changes}))


def compare(model, folder):
    """Our logits and theirs, for two sequences of 40 ids."""
    ids = np.random.default_rng(1).integers(0, 41, (2, 40))
    ours = load(folder)
    assert isinstance(ours, GPT) and not ours.training and not hasattr(ours, "tokenizer")
    with no_grad():
        got = ours(ids).data
    with torch.no_grad():
        want = model.eval()(torch.tensor(ids)).logits.numpy()
    assert want.std() > 0.2
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    return ours


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(shape, saved):
    model = theirs(**SHAPES[shape])
    compare(model, saved(model))


def test_several_files(saved):
    model = theirs()
    folder = saved(model, max_shard_size="12KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3 and not (folder / "model.safetensors").exists()
    compare(model, folder)


@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3])
@pytest.mark.parametrize("word", ["rope_type", "type"])
def test_rotary_settings_as_older_versions_write_them(saved, edited, scaling, word):
    new = dict(scaling or {"rope_type": "default", "rope_theta": 30.0})
    model = theirs(rope_parameters=dict(new))
    old = {**new, word: new["rope_type"]}
    base = old.pop("rope_theta")
    if word == "type":
        del old["rope_type"]
    folder = edited(saved(model), rope_parameters=None, rope_theta=base, rope_scaling=scaling and old)
    ours = compare(model, folder)
    assert ours.config.rope_base == base


def test_nothing_is_copied_and_the_file_stays_as_it_was(saved):
    folder = saved(theirs())
    before = (folder / "model.safetensors").read_bytes()
    for name, p in load(folder).named_parameters():
        assert isinstance(np.asarray(p.data).base.base, np.memmap) or not p.data.flags.owndata, name
        assert not p.data.flags.writeable
    assert (folder / "model.safetensors").read_bytes() == before


def test_angles_and_a_tied_output_that_were_saved_too_are_left_out(saved):
    from safetensors.numpy import load_file, save_file

    model = theirs(tie_word_embeddings=True)
    folder = saved(model)
    arrays = load_file(folder / "model.safetensors")
    arrays |= {"lm_head.weight": np.zeros((41, 32), np.float32),
               "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    save_file(arrays, folder / "model.safetensors")
    compare(model, folder)


def test_settings_that_are_not_written_down(saved, edited):
    model = theirs()
    ours = compare(model, edited(saved(model), attention_bias=None, mlp_bias=None, hidden_act=None))
    assert ours.config.context == 64 and not ours.config.bias


def test_a_tied_output_excuses_nothing_else_that_is_left_over(saved):
    from safetensors.numpy import load_file, save_file

    folder = saved(theirs(tie_word_embeddings=True))
    arrays = load_file(folder / "model.safetensors") | {"model.norm2.weight": np.zeros(3, np.float32)}
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has also norm2\.weight$"):
        load(folder)


def test_defaults_are_those_of_transformers(tmp_path):
    from minattn.transformer.pretrained.checkpoint import Settings

    config = transformers.LlamaConfig()
    said = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size, "num_hidden_layers": 2, "num_attention_heads": 32}
    (tmp_path / "config.json").write_text(json.dumps(said))
    ours = llama_config(Settings(tmp_path / "config.json"), bias=False)
    assert (ours.context, ours.n_kv_heads, ours.d_head, ours.norm_eps, ours.activation, ours.rope_base) == (
        config.max_position_embeddings, config.num_key_value_heads, config.head_dim, config.rms_norm_eps,
        "swiglu", 10000.0)
    assert (ours.norm, ours.position, ours.rope_scaling, ours.tied, ours.bias, ours.pre_norm) == (
        "rms", "rope", None, config.tie_word_embeddings, False, True)


@pytest.mark.parametrize("changes, message", [
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5.0}}, "only default, linear, l"),
    ({"rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.5}}, "each of all features"),
    ({"rope_parameters": {"rope_type": "linear"}}, "positive numbers as rope_theta, factor, got"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "positive numbers"),
    ({"rope_parameters": {**LLAMA3, "low_freq_factor": "x"}},
     "rope_theta, factor, original_max_position_embeddings, low_freq_factor, high_freq_factor"),
    ({"rope_parameters": {"rope_theta": True}}, "positive numbers as rope_theta, got"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: only 1.0"),
    ({"hidden_act": "tanh"}, "hidden_act: expected one of silu, gelu, relu, got 'tanh'"),
    ({"num_key_value_heads": 3}, "kv_heads: expected a divisor of heads=4, got 3"),
    ({"num_hidden_layers": 2}, "has also model.*layers.2.* and 6 more|has also layers.2.* and 6 more"),
    ({"num_hidden_layers": 4}, "lacks layers.3.* and 6 more"),
    ({"attention_bias": True}, "lacks layers.0.self_attn.k_proj.bias"),
    ({"tie_word_embeddings": True, "vocab_size": 40}, "embed_tokens.weight of shape"),
])
def test_other_settings_than_the_weights_are_refused(saved, edited, changes, message):
    folder = edited(saved(theirs()), **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 500
