"""GPT-2's folders against transformers."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minattn.autograd import no_grad
from minattn.transformer import GPT, generate
from minattn.transformer.pretrained import CheckpointError, load
from minattn.transformer.pretrained.checkpoint import Settings
from minattn.transformer.pretrained.gpt2 import gpt2_config

torch = pytest.importorskip("torch", reason="PyTorch is the judge: pip install -e '.[compare]'")
transformers = pytest.importorskip("transformers", reason="the judge: pip install -e '.[compare]'")

SHAPES = {
    "tied": {},
    "one layer, own output, narrow mlp": {"n_layer": 1, "tie_word_embeddings": False, "n_inner": 50},
    "one head, large epsilon": {"n_head": 1, "layer_norm_epsilon": 0.05, "activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
    "gelu by another name": {"activation_function": "gelu_pytorch_tanh"},
}


def theirs(**changes):
    config = {"vocab_size": 41, "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4,
              "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**config, **changes}))


def compare(model, folder):
    ids = np.random.default_rng(1).integers(0, 41, (2, 24))
    ours = load(folder)
    assert isinstance(ours, GPT) and not ours.training
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


def test_several_files_and_greedy_continuations(saved):
    model = theirs()
    folder = saved(model, max_shard_size="12KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    ours = compare(model, folder)
    prompt = [[3, 1, 4, 1, 5]]
    want = model.generate(torch.tensor(prompt), max_new_tokens=12, do_sample=False, eos_token_id=None,
                          pad_token_id=0)
    np.testing.assert_array_equal(generate(ours, np.array(prompt), 12), want.numpy())


def test_names_and_masks_of_the_first_releases(saved):
    model = theirs()
    folder = saved(model)
    arrays = {name.removeprefix("transformer."): a
              for name, a in load_file(folder / "model.safetensors").items()}
    arrays |= {"h.0.attn.bias": np.ones((1, 1, 24, 24), np.float32),
               "h.2.attn.masked_bias": np.array(-1e4, np.float32),
               "lm_head.weight": np.zeros((41, 32), np.float32)}
    save_file(arrays, folder / "model.safetensors")
    compare(model, folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened(saved, dtype):
    model = theirs()
    folder = saved(model.to(getattr(torch, dtype)))
    compare(model.float(), folder)  # the same rounded weights: as near as in float32
    assert all(p.dtype == np.float32 for p in load(folder).parameters())


def test_defaults_are_those_of_transformers(tmp_path):
    config = transformers.GPT2Config()
    (tmp_path / "config.json").write_text(
        '{"vocab_size": 9, "n_positions": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}')
    ours = gpt2_config(Settings(tmp_path / "config.json"))
    assert (ours.norm_eps, ours.activation, ours.tied, ours.d_hidden) == (
        config.layer_norm_epsilon, "gelu_tanh", config.tie_word_embeddings, 32)
    assert (ours.norm, ours.position, ours.bias, ours.pre_norm) == ("layer", "learned", True, True)


@pytest.mark.parametrize("changes, message", [
    ({"scale_attn_weights": False}, "scale_attn_weights: only True is known here, got False"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: only False"),
    ({"add_cross_attention": True}, "add_cross_attention: only False"),
    ({"activation_function": "tanh"}, "activation_function: expected one of gelu_new"),
    ({"n_embd": 36}, "wte.weight of shape"),
    ({"n_head": 5}, "multiple of heads=5"),
    ({"n_layer": 2}, "has also h.2"),
    ({"tie_word_embeddings": False}, "lacks lm_head.weight$"),
])
def test_other_settings_than_the_weights_are_refused(saved, edited, changes, message):
    folder = edited(saved(theirs()), **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("name, shape", [("transformer.h.0.attn.c_attn.weight", (32, 97)),
                                         ("transformer.h.0.mlp.c_fc.weight", (128, 32)),
                                         ("transformer.h.1.attn.c_attn.bias", ())])
def test_arrays_of_another_shape_are_refused(saved, name, shape):
    folder = saved(theirs())
    arrays = load_file(folder / "model.safetensors") | {name: np.zeros(shape, np.float32)}
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name.partition('.')[2]} of shape .* does not fit"):
        load(folder)
