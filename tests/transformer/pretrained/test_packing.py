"""Models with packed matrices."""

import numpy as np
import pytest

from minattn import nn
from minattn.autograd import no_grad
from minattn.kernels.packed import pack
from minattn.nn.packed import PackedEmbedding, PackedLinear
from minattn.transformer import GPT, Config
from minattn.transformer.pretrained.packing import pack_model, replace_layer

SMALL = Config(vocab=40, context=16, layers=2, heads=2, d_model=64, d_mlp=96)


def model(config=SMALL, seed=0):
    return GPT(config, rng=np.random.default_rng(seed)).eval()


def logits(model):
    ids = np.random.default_rng(1).integers(0, 40, (2, 9))
    with no_grad():
        return model(ids).data


@pytest.mark.parametrize(("weights", "kinds", "bound"), [
    ("float16", ("float16", "float16"), 2e-3), ("q4", ("q4_1", "q8_0"), 0.25)])
def test_every_matrix_is_packed(weights, kinds, bound):
    plain, packed = model(), model()
    assert pack_model(packed, weights) is packed
    for name, module in packed.named_modules():
        assert not isinstance(module, (nn.Linear, nn.Embedding)) and not module.training, name
        if isinstance(module, (PackedLinear, PackedEmbedding)):
            table = name in ("embed.token", "head")
            assert module.kind == kinds[table], name
            original = plain.get_submodule(name).weight.data
            np.testing.assert_array_equal(module.weight.data, pack(original, module.kind).data)
            if isinstance(module, PackedLinear):
                assert (module.bias is None) == (name == "head")
    assert packed.head.packed is packed.embed.token.packed  # tied: in memory once
    want, got = logits(plain), logits(packed)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - want).max() < bound * np.abs(want).max()


def test_float32_stays_as_it_is():
    plain = model()
    before = dict(plain.named_modules())
    assert pack_model(plain, "float32") is plain and dict(plain.named_modules()) == before


def test_rows_that_blocks_do_not_fit_are_kept_in_half_precision():
    packed = pack_model(model(Config(vocab=40, context=16, layers=1, heads=2, d_model=48, d_mlp=64)), "q4")
    kinds = {name: m.kind for name, m in packed.named_modules() if hasattr(m, "kind")}
    assert kinds["blocks.0.mlp.down"] == "q4_1" and kinds["blocks.0.mlp.up"] == "float16"
    assert kinds["embed.token"] == kinds["head"] == "float16"
    assert np.isfinite(logits(packed)).all()


def test_untied_models_and_lists_of_layers():
    packed = pack_model(model(Config(vocab=40, context=16, layers=1, heads=2, d_model=64, tied=False)), "q4")
    assert packed.head.kind == "q4_1" and packed.embed.token.kind == "q8_0"
    rng = np.random.default_rng(0)

    class Special(nn.Linear):
        """Not to be touched: nobody knows what it does."""

    layers = nn.Sequential(nn.Linear(32, 64, rng=rng), nn.Activation("relu"), Special(64, 3, rng=rng)).train()
    bias = layers[0].bias
    pack_model(layers, "q4")
    assert isinstance(layers[0], PackedLinear) and layers[0].bias is bias and layers[0].training
    assert type(layers[2]) is Special


def test_a_packed_model_is_saved_and_loaded(tmp_path):
    first, second = (pack_model(model(seed=s), "q4") for s in (0, 5))
    assert np.abs(logits(first) - logits(second)).max() > 0.01
    first.save(tmp_path / "model.safetensors")
    second.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(logits(first), logits(second))


def test_one_layer_is_replaced():
    small = model()
    weight = pack(np.random.default_rng(0).standard_normal((96, 64)), "q8_0")
    replace_layer(small, "blocks.1.mlp.up", weight)
    up = small.blocks[1].mlp.up
    assert isinstance(up, PackedLinear) and up.kind == "q8_0" and not up.training
    assert isinstance(small.blocks[0].mlp.up, nn.Linear)
    with pytest.raises(ValueError, match=r"blocks.0.mlp.up: expected .* shape \(96, 64\), got \(64, 96\)"):
        replace_layer(small, "blocks.0.mlp.up", pack(np.ones((64, 96)), "q8_0"))


def test_other_forms_are_refused():
    small = model()
    with pytest.raises(ValueError, match="weights: expected one of float32, float16, q4, got 'int8'"):
        pack_model(small, "int8")
    small.head.weight.data = small.head.weight.data * np.float32(1e8)
    with pytest.raises(ValueError, match="array: expected finite numbers within float16's range"):
        pack_model(small, "float16")
