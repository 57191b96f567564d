"""Positions: tables, rotations and slopes against their definitions and against what they are for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention import (
    ALiBi,
    Learned,
    PositionEncoding,
    RoPE,
    RoPEScaling,
    Sinusoidal,
    alibi_slopes,
    attention,
    attention_scores,
    causal,
    like,
    naive_attention,
    naive_rope,
    sinusoidal,
)
from minattn.autograd import Tensor, grad
from minattn.testing import check_grads

# ---- added to the embeddings


def test_sinusoidal_follows_the_formula():
    table = sinusoidal(np.array([0, 1, 7, 500]), 6, dtype=np.float64)
    assert table.shape == (4, 6)
    for n, p in enumerate((0, 1, 7, 500)):
        for m in range(3):
            angle = p / 10000 ** (2 * m / 6)
            assert table[n, 2 * m] == pytest.approx(math.sin(angle), abs=1e-13)
            assert table[n, 2 * m + 1] == pytest.approx(math.cos(angle), abs=1e-13)
    assert sinusoidal(np.arange(3), 4).dtype == np.float32
    assert np.allclose(sinusoidal([[2, 3]], 2, base=7.0)[0, 1], [math.sin(3), math.cos(3)])
    other = sinusoidal(np.arange(3), 4, base=100.0, dtype=np.float64)
    assert other[2, 2] == pytest.approx(math.sin(2 / 10))


def test_sinusoidal_products_depend_on_the_distance():
    table = sinusoidal(np.arange(40), 8, dtype=np.float64)
    product = table @ table.T
    for distance in range(40):
        assert np.ptp(np.diagonal(product, distance)) < 1e-13
    assert np.ptp(product[0]) > 1


@pytest.mark.parametrize("offset", [0, 5])
def test_modules_add_the_table(offset):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    want = x + sinusoidal(np.arange(offset, offset + 3), 4)
    assert np.array_equal(Sinusoidal(4)(x, offset), want) and Sinusoidal(4)(x, offset).dtype == np.float32
    wider = Sinusoidal(4, base=100.0)(x.astype(np.float64), offset)
    assert wider.dtype == np.float64
    assert np.allclose(wider - x, sinusoidal(np.arange(offset, offset + 3), 4, 100.0, np.float64))
    learned = Learned(8, 4, rng=rng)
    assert np.array_equal(learned(x, offset).data, x + learned.weight.data[offset : offset + 3])
    assert np.array_equal(learned(x).data, learned(x, 0).data)
    assert np.array_equal(Sinusoidal(4)(x), Sinusoidal(4)(x, 0))


def test_learned_positions():
    learned = Learned(500, 64, rng=np.random.default_rng(0))
    assert learned.weight.shape == (500, 64) and learned.weight.dtype == np.float32
    assert learned.weight.data.std() == pytest.approx(0.02, rel=0.02)
    assert [n for n, _ in learned.named_parameters()] == ["weight"]
    x = np.zeros((1, 3, 64), dtype=np.float32)
    g = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    (d,) = grad(learned(x, 2), [learned.weight], g)
    assert np.array_equal(d.data[2:5], g[0]) and np.count_nonzero(d.data) == g.size
    assert learned(x, 497).shape == x.shape
    with pytest.raises(ValueError) as e:
        learned(x, 498)
    assert str(e.value) == "x: expected positions below 500, as many as were learned, got 500"


# ---- rotations


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize("D", [2, 4, 10])
def test_rope_equals_complex_multiplication(pairing, D):
    rng = np.random.default_rng(0)
    x, positions = rng.standard_normal((2, 3, 5, D)), np.array([0, 1, 2, 30, 1000])
    got = RoPE(D, pairing=pairing).rotate(x, positions)
    assert np.abs(got - naive_rope(x, positions, pairing=pairing)).max() < 1e-12
    assert np.array_equal(got[:, :, 0], x[:, :, 0]) and np.abs(got - x)[:, :, 1:].max() > 0.5
    got = RoPE(D, base=50.0, pairing=pairing).rotate(x, positions)
    assert np.abs(got - naive_rope(x, positions, 50.0, pairing)).max() < 1e-12


def test_naive_rope_by_hand():
    x = np.array([[[[1.0, 0.0, 0.0, 2.0]]]])
    a, b = 3.0, 3.0 / 100  # position 3, θ = 1 and 10000^(−1/2)
    assert np.allclose(
        naive_rope(x, [3])[0, 0, 0], [math.cos(a), math.sin(a), -2 * math.sin(b), 2 * math.cos(b)]
    )
    assert np.allclose(
        naive_rope(x, [3], pairing="half")[0, 0, 0],
        [math.cos(a), -2 * math.sin(b), math.sin(a), 2 * math.cos(b)],
    )


def test_the_paper_s_pairing_is_the_default():
    x = np.random.default_rng(0).standard_normal((1, 1, 3, 8))
    got = RoPE(8).rotate(x, np.arange(3))
    assert np.array_equal(got, RoPE(8, pairing="interleaved").rotate(x, np.arange(3)))
    assert np.abs(got - RoPE(8, pairing="half").rotate(x, np.arange(3))).max() > 0.1


def test_pairings_differ_by_the_order_of_features():
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 8))
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    half = RoPE(8, pairing="half").rotate(x[..., order], np.arange(5))
    assert np.abs(half - RoPE(8).rotate(x, np.arange(5))[..., order]).max() < 1e-15


def test_stretched_rope_turns_as_slowly_as_its_scaling_says():
    x, positions = np.random.default_rng(0).standard_normal((1, 2, 4, 8)), np.array([0, 1, 7, 40])
    got = RoPE(8, pairing="half", scaling=RoPEScaling(4.0)).rotate(x, positions)
    assert np.abs(got - naive_rope(x, positions / 4, pairing="half")).max() < 1e-12
    theta = RoPE(8, 100.0, scaling=RoPEScaling(8.0, context=12, low=1.0, high=1.5)).theta
    for got, m in zip(theta, range(4), strict=True):  # wave by wave: 6.3, 19.9, 62.8 and 199 positions
        angle = 100.0 ** (-2 * m / 8)
        fits = 12 / (2 * math.pi / angle)
        share = (fits - 1.0) / (1.5 - 1.0)
        want = angle if fits > 1.5 else angle / 8 if fits < 1 else share * angle + (1 - share) * angle / 8
        assert got == pytest.approx(want, rel=1e-14)
    middle = RoPE(2, scaling=RoPEScaling(8.0, context=8, low=1.0, high=1.5)).theta[0]
    assert middle == pytest.approx(0.546479 + 0.453521 / 8, abs=1e-6)  # 8/2π = 1.27 waves: share 0.546
    assert RoPEScaling(2.0) == (2.0, None, 1.0, 4.0)


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_partial_rotation(pairing):
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 7))
    got = RoPE(4, pairing=pairing).rotate(x, np.arange(5))
    assert np.array_equal(got[..., 4:], x[..., 4:])
    assert np.abs(got[..., :4] - naive_rope(x[..., :4], np.arange(5), pairing=pairing)).max() < 1e-13


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@given(st.integers(0, 2**32 - 1), st.integers(-500, 500))
@settings(max_examples=25, deadline=None)
def test_scores_depend_on_the_distance_alone(pairing, seed, shift):
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 2, 6, 8))
    rope, i = RoPE(8, pairing=pairing), rng.integers(0, 50, 6)
    here = attention_scores(rope.rotate(q[None], i), rope.rotate(k[None], i))
    there = attention_scores(rope.rotate(q[None], i + shift), rope.rotate(k[None], i + shift))
    assert np.abs(here - there).max() < 1e-11


def test_rotation_keeps_lengths():
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 8))
    got = RoPE(8).rotate(x, np.arange(5))
    assert np.abs((got**2).sum(-1) - (x**2).sum(-1)).max() < 1e-13


def test_positions_may_differ_by_batch_and_head():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6))
    positions = np.random.default_rng(1).integers(0, 99, (2, 3, 4))
    got = RoPE(6).rotate(x, positions)
    for b in range(2):
        for h in range(3):
            assert np.abs(got[b, h] - naive_rope(x[b, h], positions[b, h])).max() < 1e-12
    shared = RoPE(6).rotate(x, positions[:, :1])
    assert np.abs(shared[1, 2] - naive_rope(x[1, 2], positions[1, 0])).max() < 1e-12


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_rope_gradients(pairing):
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 6))
    check_grads(lambda x: RoPE(4, pairing=pairing).rotate(x, np.arange(3)), x)
    t, g = Tensor(x, requires_grad=True), np.random.default_rng(1).standard_normal(x.shape)
    out = RoPE(6, pairing=pairing).rotate(t, np.arange(3))
    # a rotation: turning g back is the same as turning by the opposite angle
    want = naive_rope(g, -np.arange(3), pairing=pairing)
    assert np.abs(grad(out, t, g)[0].data - want).max() < 1e-13


def test_rope_leaves_its_input_and_dtype_alone():
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 6)).astype(np.float32)
    before = x.copy()
    got = RoPE(6).rotate(x, np.arange(3) + 10**6)
    assert got.dtype == np.float32 and np.array_equal(x, before)
    # angles are computed in float64: at position 10⁶, float32 ones would be wrong in the second decimal
    assert np.abs(got - naive_rope(x, np.arange(3) + 10**6)).max() < 1e-6


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_rope_equals_pytorch(pairing):
    """An independent form: complex tensors for pairs, or x cos + rotate_half(x) sin."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 8))
    t = torch.from_numpy(x)
    theta = 1.0 / (10000.0 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8))
    angle = torch.outer(torch.arange(5, dtype=torch.float64), theta)
    if pairing == "interleaved":
        z = torch.view_as_complex(t.reshape(2, 3, 5, 4, 2)) * torch.polar(torch.ones_like(angle), angle)
        want = torch.view_as_real(z).flatten(-2)
    else:
        cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
        want = t * cos + torch.cat([-t[..., 4:], t[..., :4]], -1) * sin
    assert np.abs(RoPE(8, pairing=pairing).rotate(x, np.arange(5)) - want.numpy()).max() < 1e-13


# ---- slopes


def slopes_by_the_authors(n):
    """The recursive definition in the authors' repository, in other words."""
    if math.log2(n).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]
    lower = 2 ** math.floor(math.log2(n))
    return slopes_by_the_authors(lower) + slopes_by_the_authors(2 * lower)[0::2][: n - lower]


@pytest.mark.parametrize("H", [*range(1, 26), 32, 48])
def test_alibi_slopes(H):
    assert np.allclose(alibi_slopes(H), slopes_by_the_authors(H), rtol=1e-12)
    assert alibi_slopes(H).shape == (H,)


def test_alibi_slopes_of_the_paper():
    assert np.array_equal(alibi_slopes(8), [2.0**-n for n in range(1, 9)])
    assert alibi_slopes(16)[0] == pytest.approx(2**-0.5)


@pytest.mark.parametrize("H", [3, 4])
def test_alibi_equals_loops(H):
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.standard_normal((2, H, 5, 4)),
        rng.standard_normal((2, H, 7, 4)),
        rng.standard_normal((2, H, 7, 2)),
    )
    slopes = slopes_by_the_authors(H)
    want = naive_attention(q, k, v, score_mod=lambda s, b, h, i, j: s - slopes[h] * max(i - j, j - i))
    alibi = ALiBi(H)
    assert np.abs(attention(q, k, v, score_mod=alibi.score_mod) - want).max() < 1e-13
    assert np.abs(naive_attention(q, k, v, score_mod=alibi.score_mod) - want).max() < 1e-13
    assert np.abs(want - naive_attention(q, k, v)).max() > 0.05
    # under a causal mask it is the paper's form, a bias that grows with j
    paper = attention(q, k, v, bias=np.array(slopes)[:, None, None] * np.arange(7), mask_mod=causal)
    assert np.abs(attention(q, k, v, score_mod=alibi.score_mod, mask_mod=causal) - paper).max() < 1e-13


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_alibi_keeps_the_precision(dtype):
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(dtype)
    assert attention(x, x, x, score_mod=ALiBi(3).score_mod).dtype == dtype
    check = attention(Tensor(x, requires_grad=True), x, x, score_mod=ALiBi(3).score_mod)
    assert check.dtype == dtype and check.requires_grad


def test_alibi_gradients():
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4))
    check_grads(lambda q, k: attention(q, k, x, score_mod=ALiBi(3).score_mod), x[:, :, ::-1], x)


def test_like():
    assert like(0.5, 2.0) == 0.5 and type(like(0.5, 2.0)) is float
    for score in (np.zeros(3, np.float32), Tensor(np.zeros(3, np.float32))):
        got = like(np.array([0.1, 0.2]), score)
        assert type(got) is np.ndarray and got.dtype == np.float32 and np.allclose(got, [0.1, 0.2])


def test_no_encoding():
    x = np.ones((1, 1, 2, 3))
    assert PositionEncoding().rotate(x, np.arange(2)) is x and PositionEncoding().score_mod is None
    assert ALiBi(2).rotate(x, np.arange(2)) is x and RoPE(2).score_mod is None


def refused(message, f, *args, **how):
    with pytest.raises(ValueError) as e:
        f(*args, **how)
    assert str(e.value) == message


def test_mistakes():
    refused("D: expected an even number of features, got 3", sinusoidal, np.arange(2), 3)
    refused("D: expected an even number of features, got 0", Sinusoidal, 0)
    refused("dim: expected an even number of features, got 5", RoPE, 5)
    refused("pairing: expected one of ('interleaved', 'half'), got 'neox'", RoPE, 4, pairing="neox")
    refused(
        "x: expected at least dim=4 features, got shape (1, 1, 2, 3)",
        RoPE(4).rotate,
        np.zeros((1, 1, 2, 3)),
        np.arange(2),
    )
    refused("H: expected at least one head, got 0", alibi_slopes, 0)


@pytest.mark.parametrize("positions", [
    [0, 1, 2, 3], [7, 8, 9, 10], [7], [3, 2, 1, 0], [0, 1, 3, 4], [5, 5, 5, 5], [-2, -1, 0, 1],
    [0.5, 1.5, 2.5, 3.5]])
def test_rope_of_runs_and_of_scattered_positions(positions):
    """Angles of neighbouring positions are kept from call to call; they are those of any positions."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, len(positions), 8))
    for base, dim in ((10000.0, 8), (100.0, 6), (100.0, 8)):
        for dtype in (np.float64, np.float32, np.float64):
            got = RoPE(dim, base).rotate(x.astype(dtype), np.array(positions))
            want = np.concatenate([naive_rope(x[..., :dim], positions, base), x[..., dim:]], -1)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-12)
