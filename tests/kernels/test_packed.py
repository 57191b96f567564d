"""`minattn.kernels.packed` against GGUF's own code, loops over bits, and products of unpacked matrices."""

import struct

import numpy as np
import pytest

from minattn.autograd import Tensor
from minattn.kernels import dispatch, packed
from minattn.kernels.packed import Packed, pack, packed_linear
from minattn.testing import check_grads

QUANTISED = ("q4_1", "q8_0")
EVERY = ("float16", *QUANTISED)
SHAPES = [(1, 32), (3, 96), (70, 576), (5, 1536)]


@pytest.fixture(params=["compiled", "reference"])
def form(request, monkeypatch):
    """Both forms of the kernels."""
    if request.param == "reference":
        monkeypatch.setattr(packed, "compiled", lambda *arrays, work=0: False)
    else:
        pytest.importorskip("numba")
    return request.param


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def half(two_bytes):
    return struct.unpack("<e", bytes(two_bytes))[0]


def by_bits(weight):
    """A packed matrix unpacked one weight at a time."""
    rows, columns = weight.shape
    out = np.zeros(weight.shape)
    for r in range(rows):
        row = weight.data[r].tobytes()
        for k in range(columns):
            i, j = divmod(k, 32)
            if weight.kind == "float16":
                out[r, k] = half(row[2 * k : 2 * k + 2])
            elif weight.kind == "q8_0":
                block = row[34 * i : 34 * i + 34]
                out[r, k] = half(block[:2]) * struct.unpack("b", block[2 + j : 3 + j])[0]
            else:
                block = row[20 * i : 20 * i + 20]
                nibble = block[4 + j % 16] >> 4 if j >= 16 else block[4 + j] & 15
                out[r, k] = half(block[:2]) * nibble + half(block[2:4])
    return out


# ---- the formats


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_and_values_are_those_of_gguf(kind, shape, form):
    gguf = pytest.importorskip("gguf")
    number = gguf.GGMLQuantizationType[kind.upper()]
    w = 3 * normal(*shape)
    w[0, :32] = 0  # a block without a scale
    theirs = gguf.quants.quantize(w, number)
    ours = pack(w, kind)
    np.testing.assert_array_equal(ours.data.view(np.uint8), theirs)
    np.testing.assert_array_equal(ours.dense(), gguf.quants.dequantize(theirs, number))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_values_by_bits(kind, shape, form):
    weight = pack(normal(*shape), kind)
    np.testing.assert_allclose(weight.dense(), by_bits(weight), rtol=0, atol=5e-7)
    assert weight.dense().dtype == np.float32 and np.ptp(weight.dense()) > 1


@pytest.mark.parametrize("kind", EVERY)
def test_scales_of_every_size(kind, form):
    """Half precision's smallest numbers, its largest, and both signs come out right."""
    w = np.stack([scale * np.linspace(-1, 1, 32) for scale in (6e-8, 1e-6, 6e-5, 1, 3e4)]).astype(np.float32)
    weight = pack(w, kind)
    np.testing.assert_allclose(weight.dense(), by_bits(weight), rtol=1e-6, atol=0)
    assert np.abs(weight.dense()[-1]).max() > 2.9e4


@pytest.mark.parametrize(("kind", "bound"), [("float16", 2**-11), ("q8_0", 0.7 / 127), ("q4_1", 1.2 / 15)])
def test_rounding_is_no_coarser_than_the_format(kind, bound):
    w = normal(50, 64)
    blocks = w.reshape(50, 2, 32)
    size = np.abs(w)
    if kind != "float16":
        size = np.abs(blocks).max(-1, keepdims=True).repeat(32, -1).reshape(50, 64)
    error = np.abs(pack(w, kind).dense() - w)
    assert (error <= bound * size).all() and (error > bound * size / 20).any()


def test_rows_tiles_and_bytes(form):
    for kind, each in (("float16", 16), ("q8_0", 8.5), ("q4_1", 5)):
        weight = pack(normal(9, 64), kind)
        assert weight.nbytes == 9 * 64 * each / 8
        ids = np.array([[3, 0, 3], [8, 1, 2]])
        np.testing.assert_array_equal(weight.rows(ids), weight.dense()[ids])
        assert weight.rows(4).shape == (64,) and weight.rows(np.zeros(0, int)).shape == (0, 64)
        np.testing.assert_array_equal(weight.tile(2, 5), weight.dense()[2:5])


def test_what_does_not_fit_is_refused():
    good = pack(normal(2, 32), "q4_1").data
    with pytest.raises(ValueError, match="kind: expected one of float16, q4_1, q8_0, got 'q5_0'"):
        Packed("q5_0", good, (2, 32))
    with pytest.raises(ValueError, match="shape: q4_1 needs rows of a multiple of 32 weights, got 33"):
        Packed("q4_1", good, (2, 33))
    for data in (good.view(np.int8), good[:, :19], good[:1]):
        with pytest.raises(ValueError, match=r"data: expected uint8 of shape \(2, 20\), got"):
            Packed("q4_1", data, (2, 32))
    with pytest.raises(ValueError, match="kind: expected one of float16, q4_1, q8_0, got 'float32'"):
        pack(normal(2, 32), "float32")
    with pytest.raises(ValueError, match=r"array: expected a matrix .* 32 for q8_0, got shape \(2, 33\)"):
        pack(normal(2, 33), "q8_0")
    with pytest.raises(ValueError, match=r"array: expected a matrix .* for float16, got shape \(3,\)"):
        pack(normal(3), "float16")
    for kind in EVERY:
        for wrong in (np.nan, np.inf, 65520):
            w = normal(2, 32)
            w[1, 3] = wrong
            with pytest.raises(ValueError, match=f"array: expected finite numbers .* ±65504, for {kind}"):
                pack(w, kind)
    w[1, 3] = 65519  # rounds to 65504
    assert pack(w, "float16").dense()[1, 3] == 65504


# ---- products


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lead", [(1,), (4,), (5,), (2, 3), ()])
def test_product_equals_that_of_the_unpacked_matrix(kind, shape, lead, form):
    weight = pack(normal(*shape), kind)
    x = normal(*lead, shape[1], seed=1)
    got = packed_linear(x, weight)
    assert got.shape == (*lead, shape[0]) and got.dtype == np.float32
    w = weight.dense().astype(float)
    bound = 4e-7 * np.sqrt(shape[1]) * (np.abs(x.astype(float)) @ np.abs(w).T + 1)
    assert (np.abs(got - x.astype(float) @ w.T) <= bound / 4).all()
    np.testing.assert_allclose(packed_linear(x.astype(float), weight), x.astype(float) @ w.T, atol=1e-11)


@pytest.mark.parametrize("kind", EVERY)
def test_few_rows_are_unpacked_on_the_way_and_many_in_tiles(kind, monkeypatch):
    """All forms agree, and each is used where it should be."""
    kernels = pytest.importorskip("minattn.kernels.cpu.packed")
    weight, used = pack(normal(40, 64), kind), []
    monkeypatch.setattr(packed, "launch", lambda f, *args: used.append(f) or dispatch.launch(f, *args))
    monkeypatch.setattr(packed, "TILE", 64 * 9)  # tiles of 9 rows: 40 are 5 tiles, the last of 4
    x = normal(packed.FEW + 1, 64, seed=2)
    many = packed_linear(x, weight)
    assert used == [kernels.unpack] * 5
    few = packed_linear(x[:-1], weight)
    monkeypatch.setattr(packed, "WIDE", packed.FEW * 64 * 40 - 1)
    wide = packed_linear(x[:-1], weight)
    assert used[5:] == [kernels.multiply, kernels.multiply_wide]
    np.testing.assert_allclose(few, many[:-1], rtol=0, atol=3e-5)
    np.testing.assert_allclose(few, wide, rtol=0, atol=1e-5)
    monkeypatch.setattr(packed, "WIDE", packed.FEW * 64 * 40)
    packed_linear(x[:-1], weight)
    assert used[-1] is kernels.multiply


def test_the_kernel_multiplies_plain_matrices_too():
    kernels = pytest.importorskip("minattn.kernels.cpu.packed")
    w, x, out = normal(7, 45), normal(3, 45, seed=1), np.full((3, 7), np.nan, np.float32)
    dispatch.launch(kernels.multiply, w, x, out)
    np.testing.assert_allclose(out, x @ w.T, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_gradients_reach_the_vectors_and_the_bias(kind, monkeypatch):
    weight, rng = pack(normal(6, 64), kind), np.random.default_rng(3)
    monkeypatch.setattr(packed, "TILE", 64 * 4)
    x, bias = rng.standard_normal((2, 3, 64)), rng.standard_normal(6)
    check_grads(lambda x, b: packed_linear(x, weight, b), x, bias)
    check_grads(lambda x: packed_linear(x, weight) ** 2, x)


def test_a_row_that_is_not_contiguous_and_no_rows_at_all(form):
    weight = pack(normal(6, 64), "q4_1")
    x = normal(64, 2, seed=4).T
    np.testing.assert_array_equal(packed_linear(x, weight), packed_linear(x.copy(), weight))
    assert packed_linear(x[:0], weight).shape == (0, 6)
    assert isinstance(packed_linear(Tensor(x), weight), Tensor)


def test_bias_is_added():
    weight, bias = pack(normal(6, 64), "q8_0"), normal(6, seed=5)
    x = normal(2, 64, seed=6)
    np.testing.assert_array_equal(packed_linear(x, weight, bias), packed_linear(x, weight) + bias)


def test_bad_vectors_are_refused():
    weight = pack(normal(6, 64), "q4_1")
    with pytest.raises(ValueError, match=r"x: expected 64 features in the last axis, got shape \(2, 63\)"):
        packed_linear(normal(2, 63), weight)
    with pytest.raises(TypeError, match="x: expected floating numbers in NumPy, got int64"):
        packed_linear(np.ones((2, 64), int), weight)
    with pytest.raises(ValueError, match=r"bias: expected shape \(6,\), the rows of weight, got \(7,\)"):
        packed_linear(normal(2, 64), weight, normal(7))
