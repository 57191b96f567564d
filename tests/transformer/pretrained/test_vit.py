"""ViT's folders against transformers."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minattn.autograd import no_grad
from minattn.transformer import ViT
from minattn.transformer.pretrained import CheckpointError, load
from minattn.transformer.pretrained.checkpoint import Settings
from minattn.transformer.pretrained.vit import vit_config

torch = pytest.importorskip("torch", reason="PyTorch is the judge: pip install -e '.[compare]'")
transformers = pytest.importorskip("transformers", reason="the judge: pip install -e '.[compare]'")

SHAPES = {
    "square": {},
    "one layer, one channel, no biases of q, k, v":
        {"num_hidden_layers": 1, "num_channels": 1, "qkv_bias": False},
    "wide, large epsilon": {"image_size": [8, 16], "layer_norm_eps": 0.05, "num_attention_heads": 1},
    "tanh form of gelu": {"hidden_act": "gelu_new"},
}


def theirs(kind="ViTForImageClassification", **changes):
    config = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 44,
              "image_size": 16, "patch_size": 4, "num_labels": 7}
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.ViTConfig(**{**config, **changes}))


def images(model):
    size, c = model.config.image_size, model.config.num_channels
    H, W = size if isinstance(size, list) else (size, size)
    return np.random.default_rng(1).standard_normal((2, c, H, W)).astype(np.float32)


def compare(model, ours):
    x = images(model)
    with torch.no_grad(), no_grad():
        want = model.eval()(torch.tensor(x)).logits.numpy()
        got = ours(x).data
    assert want.std() > 0.1 and np.abs(want[0] - want[1]).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(shape, saved):
    model = theirs(**SHAPES[shape])
    ours = load(saved(model))
    assert isinstance(ours, ViT) and not ours.training and ours.config.vocab == 7
    compare(model, ours)


def test_several_files(saved):
    model = theirs()
    folder = saved(model, max_shard_size="12KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    compare(model, load(folder))


def test_settings_that_are_not_written_down(saved, edited):
    model = theirs(image_size=224, patch_size=16, num_hidden_layers=1)
    folder = edited(saved(model), image_size=None, patch_size=None, num_channels=None, qkv_bias=None,
                    layer_norm_eps=None, hidden_act=None)
    compare(model, load(folder))


@pytest.mark.parametrize("side, patch", [(3, 1), (4, 4)])
def test_a_pixel_is_a_patch_and_a_patch_is_an_image(saved, side, patch):
    model = theirs(image_size=side, patch_size=patch, num_hidden_layers=1)
    compare(model, load(saved(model)))


def test_a_trunk_gives_the_class_token_s_features(saved):
    model = theirs("ViTModel", num_hidden_layers=2)
    ours, x = load(saved(model)), images(model)
    with torch.no_grad(), no_grad():
        want = model.eval()(torch.tensor(x)).last_hidden_state.numpy()
        np.testing.assert_allclose(ours.hidden(x).data, want, rtol=0, atol=1e-4)
        np.testing.assert_allclose(ours(x).data, want[:, 0], rtol=0, atol=1e-4)
    assert ours.head is None and ours.config.vocab == 32


def test_defaults_are_those_of_transformers(tmp_path):
    config = transformers.ViTConfig()
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}')
    ours = vit_config(Settings(tmp_path / "config.json"), 5)
    assert (ours.norm_eps, ours.activation) == (config.layer_norm_eps, config.hidden_act)
    assert ours.context == (config.image_size // config.patch_size) ** 2 + 1 == 197
    assert (ours.vocab, ours.pre_norm, ours.norm, ours.bias, ours.d_hidden) == (5, True, "layer", True, 12)


@pytest.mark.parametrize("changes, message", [
    ({"image_size": 3}, "image_size: expected pixels of at least a patch of 4, .* got 3"),
    ({"image_size": [16, 16, 16]}, "image_size"),
    ({"image_size": "big"}, "image_size"),
    ({"patch_size": 0}, "image_size"),
    ({"patch_size": [4, 4]}, "patch_size: expected int, got "),
    ({"patch_size": 8}, "projection.weight of shape"),
    ({"image_size": 20}, "position_embeddings of shape"),
    ({"hidden_act": "tanh"}, "hidden_act: expected one of"),
    ({"num_channels": 1}, "projection.weight of shape"),
    ({"qkv_bias": False}, "has also encoder.layer.0.attention.attention.key.bias"),
])
def test_other_settings_than_the_weights_are_refused(saved, edited, changes, message):
    folder = edited(saved(theirs()), **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("shape", [(), (0, 32)])
def test_a_head_of_no_classes_is_refused(saved, shape):
    folder = saved(theirs())
    arrays = load_file(folder / "model.safetensors") | {"classifier.weight": np.zeros(shape, np.float32)}
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.weight of shape|vocab: expected at least 1"):
        load(folder)
