"""Layers with packed matrices."""

import numpy as np
import pytest

from minattn import nn
from minattn.autograd import Tensor
from minattn.kernels.packed import pack
from minattn.nn.packed import PackedEmbedding, PackedLinear
from minattn.testing import check_grads


def weight(rows=6, columns=64, kind="q4_1"):
    return pack(np.random.default_rng(0).standard_normal((rows, columns)), kind)


def test_linear_is_that_of_the_unpacked_matrix():
    rng, bias = np.random.default_rng(1), nn.Parameter(np.arange(6.0))
    plain = nn.Linear(64, 6, rng=rng).to(np.float64)
    plain.weight.data, plain.bias = weight().dense().astype(float), bias
    layer = PackedLinear(weight(), bias)
    x = Tensor(rng.standard_normal((2, 3, 64)), requires_grad=True)
    np.testing.assert_allclose(layer(x).data, plain(x).data, rtol=0, atol=1e-12)
    check_grads(layer, x.data)
    layer(x).backward(np.ones((2, 3, 6)))
    assert bias.grad.tolist() == [6] * 6
    without = PackedLinear(weight())
    np.testing.assert_allclose(without(x).data, layer(x).data - bias.data, rtol=0, atol=1e-12)


def test_embedding_is_that_of_the_unpacked_table():
    table = weight(9, kind="q8_0")
    layer, ids = PackedEmbedding(table), np.array([[3, 0], [8, 3]])
    found = layer(ids)
    assert isinstance(found, Tensor) and found.dtype == np.float32
    np.testing.assert_array_equal(found.data, table.dense()[ids])
    assert layer(np.zeros((1, 0), int)).shape == (1, 0, 64)


def test_bad_ids_are_refused():
    layer = PackedEmbedding(weight(9))
    with pytest.raises(TypeError, match="ids: expected integers, got dtype float64"):
        layer(np.ones(2))
    for wrong in (9, -1):
        with pytest.raises(ValueError, match=r"ids: expected values in \[0, 9\), got"):
            layer(np.array([0, wrong]))


@pytest.mark.parametrize("kind", ["float16", "q4_1", "q8_0"])
def test_saved_as_it_is_stored(kind, tmp_path):
    layer, other = PackedLinear(weight(kind=kind)), PackedLinear(pack(np.ones((6, 64)), kind))
    assert list(layer.state_dict()) == ["packed"] and not list(layer.parameters())
    layer.save(tmp_path / "layer.safetensors")
    other.load(tmp_path / "layer.safetensors")
    x = np.random.default_rng(2).standard_normal((2, 64)).astype(np.float32)
    np.testing.assert_array_equal(other(x), layer(x))
    np.testing.assert_array_equal(other.weight.dense(), weight(kind=kind).dense())
    layer.to(np.float64)
    np.testing.assert_array_equal(layer.weight.data, other.weight.data)
    assert layer.weight.kind == kind and layer.weight.shape == (6, 64)


def test_how_they_look():
    assert repr(PackedLinear(weight())) == "PackedLinear(6, 64, kind='q4_1')"
