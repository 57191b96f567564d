"""ViT's patches, and the counters against the models and PyTorch's own counting."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minattn.autograd import no_grad
from minattn.transformer import GPT, Config, ViT, count, patches

torch = pytest.importorskip("torch", reason="PyTorch is the judge: pip install -e '.[compare]'")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from torch_gpt import TorchGPT  # noqa: E402

VIT = Config(vocab=5, context=7, layers=2, heads=2, d_model=8)


def test_patches_are_read_row_by_row():
    image = np.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    rows = patches(image, 2)
    assert rows.shape == (2, 6, 12)
    for b in range(2):
        for p in range(6):
            top, left = 2 * (p // 3), 2 * (p % 3)
            np.testing.assert_array_equal(rows[b, p], image[b, :, top : top + 2, left : left + 2].ravel())


def test_patch_projection_equals_a_strided_convolution():
    model = ViT(VIT, patch=2, channels=3, rng=np.random.default_rng(0)).to(np.float64)
    image = np.random.default_rng(1).standard_normal((2, 3, 4, 6))
    kernel = torch.tensor(model.project.weight.data.reshape(8, 3, 2, 2))
    bias = torch.tensor(model.project.bias.data)
    want = torch.nn.functional.conv2d(torch.tensor(image), kernel, bias, stride=2)
    got = model.project(patches(image, 2)).data
    np.testing.assert_allclose(got, want.flatten(2).transpose(1, 2).numpy(), atol=1e-12)


def test_without_a_head_the_class_token_s_features_come_out():
    whole, bare = (ViT(VIT, patch=2, channels=3, head=head, rng=np.random.default_rng(0)).to(np.float64)
                   for head in (True, False))
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if "head" not in k})
    image = np.random.default_rng(1).standard_normal((2, 3, 4, 6))
    np.testing.assert_array_equal(bare(image).data, whole.hidden(image).data[:, 0])
    np.testing.assert_array_equal(whole.head(bare(image)).data, whole(image).data)


def test_the_class_token_reads_every_patch_and_positions_matter():
    model = ViT(VIT, patch=2, channels=3, rng=np.random.default_rng(0)).to(np.float64)
    for p in model.parameters():
        p.data = p.data + 0.3 * np.random.default_rng(p.size).standard_normal(p.shape)
    image = np.random.default_rng(2).standard_normal((2, 3, 4, 6))
    base = model(image).data
    assert base.shape == (2, 5)
    for top in (0, 2):
        for left in (0, 2, 4):
            changed = image.copy()
            changed[:, :, top, left] += 1
            assert np.abs(model(changed).data - base).max() > 1e-5
    assert np.abs(model(image[:, :, :, ::-1].copy()).data - base).max() > 1e-3


@pytest.mark.parametrize("what, message", [
    (lambda m: m(np.zeros((2, 3, 5, 6))), "size: expected a divisor"),
    (lambda m: m(np.zeros((2, 3, 4, 4))), "images: expected 6 patches"),
    (lambda m: m(np.zeros((3, 4, 4))), "images: expected shape"),
])
def test_bad_images_are_named(what, message):
    with pytest.raises(ValueError, match=message):
        what(ViT(VIT, patch=2, channels=3, rng=np.random.default_rng(0)).to(np.float64))


CONFIGS = [
    Config(vocab=65, context=16, layers=4, heads=4, d_model=32, bias=False),
    Config(vocab=30, context=8, layers=2, heads=4, d_model=32, kv_heads=2, tied=False),
    Config(vocab=30, context=8, layers=3, heads=2, d_model=24, activation="swiglu", norm="rms",
           position="rope"),
    Config(vocab=30, context=8, layers=1, heads=2, d_model=24, pre_norm=False, d_mlp=40),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_counted_parameters_are_those_of_the_model(config):
    model = GPT(config, rng=np.random.default_rng(0))
    assert sum(count(config).parameters.values()) == model.num_parameters()


@pytest.mark.parametrize("N, B", [(16, 1), (9, 3)])
def test_counted_operations_are_those_that_pytorch_counts(N, B):
    from torch.utils.flop_counter import FlopCounterMode

    config = CONFIGS[0]
    twin = TorchGPT(config, GPT(config, rng=np.random.default_rng(0)).state_dict())
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, plain:
        twin(torch.zeros((B, N), dtype=torch.long))
    assert counter.get_total_flops() == sum(count(config, N, B).flops.values())


@pytest.mark.parametrize("config", CONFIGS)
def test_counted_cache_is_what_the_caches_hold(config):
    model = GPT(config, rng=np.random.default_rng(0)).eval()
    caches = model.new_caches()
    with no_grad():
        model(np.zeros((2, 8), int), caches=caches)
    assert count(config, 8, 2).bytes["KV cache"] == sum(c.memory for c in caches)
    half = count(replace(config), 8, 2, np.float16).bytes
    assert 2 * half["KV cache"] == count(config, 8, 2).bytes["KV cache"]
