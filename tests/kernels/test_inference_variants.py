"""Models with other heads, rounded, smoothed and pruned: what they equal, and that the original stays."""

import numpy as np
import pytest

from minattn.autograd import no_grad
from minattn.inference.compression import Int8Linear, naive_quantize_int8, naive_wanda
from minattn.inference.variants import (
    calibrate,
    convert_kv_heads,
    prune_model,
    quantize_model,
    smooth_model,
)
from minattn.transformer import GPT, Config, generate
from minattn.transformer.pretrained.packing import pack_model

from .decoders import VOCAB, gpt, llama

pytestmark = pytest.mark.paper(162)
IDS = np.random.default_rng(0).integers(0, VOCAB, (2, 9))


def logits(model, ids=IDS):
    with no_grad():
        return np.asarray(model(ids).data)


def weights(model):
    return {name: p.data.copy() for name, p in model.named_parameters(unique=False)}


@pytest.fixture(params=[llama, gpt])
def model(request):
    """A model that must be what it was when the test is over."""
    made = request.param()
    before = weights(made)
    yield made
    assert all(np.array_equal(before[name], p.data) for name, p in made.named_parameters(unique=False))


def test_repeated_heads_compute_the_same():
    model = llama(heads=8, kv_heads=2)
    for kv_heads in (2, 4, 8):
        more = convert_kv_heads(model, kv_heads)
        assert more.config.n_kv_heads == kv_heads == more.blocks[1].attn.n_kv_heads
        np.testing.assert_allclose(logits(more), logits(model), rtol=1e-12, atol=1e-12)
        with no_grad():
            caches = more.new_caches()
            more(IDS, caches=caches)
        assert caches[0].memory == kv_heads * 2 * 9 * 2 * 4 * 8


def test_pooled_heads_are_means(model):
    H = model.config.n_kv_heads
    one = convert_kv_heads(model, 1)
    for part in ("k_proj", "v_proj"):
        w = getattr(model.blocks[1].attn, part).weight.data
        rows = [[np.mean([w[h * 4 + r, c] for h in range(H)]) for c in range(w.shape[1])] for r in range(4)]
        np.testing.assert_allclose(getattr(one.blocks[1].attn, part).weight.data, rows, rtol=1e-13)
    assert np.abs(logits(one) - logits(model)).max() > 0.05
    assert one.head.weight is one.embed.token.weight or not model.config.tied


def test_pooling_undoes_repeating():
    model = llama(heads=8, kv_heads=4)
    back = convert_kv_heads(convert_kv_heads(model, 8), 4)
    for name, w in weights(model).items():
        np.testing.assert_allclose(weights(back)[name], w, rtol=1e-13)
    two = convert_kv_heads(model, 2)  # neighbours, in order
    w = model.blocks[0].attn.k_proj.weight.data.reshape(4, 4, -1)
    np.testing.assert_allclose(two.blocks[0].attn.k_proj.weight.data, np.concatenate(
        [(w[0] + w[1]) / 2, (w[2] + w[3]) / 2]), rtol=1e-13)


def test_int8_models_have_rounded_matrices(model):
    small = quantize_model(model)
    rounded = GPT(model.config, rng=np.random.default_rng(0)).to(np.float64).eval()
    rounded.load_state_dict(model.state_dict())
    for name, w in weights(model).items():
        if name.endswith("proj.weight") or (".mlp." in name and name.endswith("weight")):
            numbers, scales = naive_quantize_int8(w)
            owner = rounded.get_submodule(name.removesuffix(".weight"))
            owner.weight.data = np.array(numbers) * np.array(scales)[:, None]
            assert isinstance(small.get_submodule(name.removesuffix(".weight")), Int8Linear)
    assert isinstance(small.head, Int8Linear)
    with no_grad():
        numbers, scales = naive_quantize_int8(model.head.weight.data)
        want = rounded.hidden(IDS).data @ (np.array(numbers) * np.array(scales)[:, None]).T
    np.testing.assert_allclose(logits(small), want, rtol=1e-10, atol=1e-10)
    assert 0 < np.abs(want - logits(model)).max() < 0.3
    assert generate(small, IDS, 3).shape == (2, 12)


def test_int8_generation_in_float32():
    small = quantize_model(llama(d_head=8, dtype=np.float32))  # 32 features: the kernel of bytes
    with no_grad():
        whole, caches = small(IDS).data, small.new_caches()
        parts = np.concatenate([small(IDS[:, i : i + 1], caches=caches).data for i in range(9)], 1)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-4)


def test_calibration_sees_what_the_matrices_read(model):
    found = calibrate(model, IDS)
    assert len(found) == (7 if model.config.gated else 6) * 2
    with no_grad():
        _, seen = model.run_with_cache(IDS, names=("blocks.1.norm1", "blocks.1.norm2"))
    for norm, name in (("norm1", "attn.k_proj"), ("norm2", "mlp.up")):
        rows = seen[f"blocks.1.{norm}"].reshape(18, -1)
        norms, largest = found[f"blocks.1.{name}"]
        np.testing.assert_allclose(norms, [sum(x**2 for x in column) ** 0.5 for column in rows.T], rtol=1e-12)
        np.testing.assert_allclose(largest, [max(map(abs, column)) for column in rows.T], rtol=1e-14)
    assert not model.blocks[0].attn.q_proj._forward_hooks


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_smoothing_changes_no_logit(model, alpha):
    even = smooth_model(model, calibrate(model, IDS), alpha)
    np.testing.assert_allclose(logits(even), logits(model), rtol=1e-10, atol=1e-10)
    gain, old = even.blocks[0].norm1.weight.data, model.blocks[0].norm1.weight.data
    assert np.abs(gain - old).max() > 0.05
    largest = calibrate(even, IDS)["blocks.0.attn.q_proj"].largest
    if alpha == 1:
        np.testing.assert_allclose(largest, 1, rtol=1e-10)
    if alpha == 0.5:
        readers = [even.blocks[0].attn.get_submodule(f"{c}_proj").weight.data for c in "qkv"]
        most = np.abs(np.concatenate(readers)).max(0)
        np.testing.assert_allclose(largest, most, rtol=1e-10)


def test_smoothing_helps_when_inputs_are_rounded():
    model = llama(seed=1)
    for block in model.blocks:  # norms with an outlier, as trained models have them
        block.norm1.weight.data[3] *= 100
        for c in "qkv":
            getattr(block.attn, f"{c}_proj").weight.data[:, 3] /= 100

    def error(m):
        return np.abs(logits(quantize_model(m, round_inputs=True)) - logits(model)).mean()

    assert error(smooth_model(model, calibrate(model, IDS))) < 0.7 * error(model)


def test_pruned_models(model):
    inputs = calibrate(model, IDS)
    wanda, size = prune_model(model, 0.5, inputs), prune_model(model, 0.5)
    for name, found in inputs.items():
        w = weights(model)[f"{name}.weight"]
        np.testing.assert_array_equal(wanda.get_submodule(name).weight.data, naive_wanda(w, found.norms, 0.5))
        kept = size.get_submodule(name).weight.data
        assert (kept == 0).sum() == w.size // 2
        assert np.abs(w[kept == 0]).max() <= np.abs(kept[kept != 0]).min()
    np.testing.assert_array_equal(wanda.head.weight.data, model.head.weight.data)
    np.testing.assert_array_equal(logits(prune_model(model, 0.0)), logits(model))
    assert np.abs(logits(wanda) - logits(size)).max() > 1e-3


def test_bad_input():
    model = llama(heads=4, kv_heads=2)
    for kv_heads in (3, 8):
        with pytest.raises(ValueError, match=r"^kv_heads: expected a divisor of 2, or a multiple"):
            convert_kv_heads(model, kv_heads)
    with pytest.raises(ValueError, match=r"^kv_heads: expected a whole number ≥ 1, got 0"):
        convert_kv_heads(model, 0)
    packed = pack_model(llama(dtype=np.float32), "float16")
    for change in (quantize_model, lambda m: convert_kv_heads(m, 1), lambda m: prune_model(m, 0.5)):
        with pytest.raises(ValueError, match=r"^model: expected a GPT with its matrices as floating numbers"):
            change(packed)
    post = GPT(Config(vocab=5, context=8, layers=1, heads=1, d_model=4, pre_norm=False),
               rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^model: expected pre-norm blocks"):
        smooth_model(post, {})


def test_inputs_are_rounded_in_the_blocks_alone():
    model = llama()
    model.tokenizer = object()
    for wanted in (False, True):
        small = quantize_model(model, round_inputs=wanted)
        rounded = [m.round_inputs for name, m in small.named_modules() if isinstance(m, Int8Linear)]
        assert small.head.round_inputs is False and rounded.count(wanted) >= 14
        assert small.blocks[1].mlp.down.round_inputs is wanted and small.tokenizer is model.tokenizer
    with no_grad():
        h = small.hidden(IDS)
        np.testing.assert_allclose(small(IDS).data, small.head(h).data, rtol=1e-12)


def test_float32_models_stay_in_float32():
    model = llama(dtype=np.float32)
    for changed in (convert_kv_heads(model, 1), smooth_model(model, calibrate(model, IDS)),
                    prune_model(model, 0.5)):
        assert all(p.dtype == np.float32 for p in changed.parameters())
        assert logits(changed).dtype == np.float32
