import math

import numpy as np
import pytest
import torch
from scipy import stats

from minattn import nn
from minattn.autograd.engine import raw
from minattn.nn import init

SHAPE = (240, 20, 3)  # fan-in 60, fan-out 720


@pytest.fixture
def rng():
    return np.random.default_rng(29)


def theirs(fill, shape=SHAPE, **options):
    torch.manual_seed(0)
    return fill(torch.empty(shape), **options).detach().numpy().ravel()


@pytest.mark.parametrize("draw, fill, options", [
    (init.xavier_uniform, torch.nn.init.xavier_uniform_, {"gain": 2.0}),
    (init.xavier_normal, torch.nn.init.xavier_normal_, {"gain": 2.0}),
    (init.normal, torch.nn.init.normal_, {"mean": 1.0, "std": 0.3}),
    (init.trunc_normal, torch.nn.init.trunc_normal_, {"mean": 0.5, "std": 2.0, "a": -1.0, "b": 1.0}),
    (init.trunc_normal, torch.nn.init.trunc_normal_, {}),
])
def test_the_distribution_is_pytorchs(rng, draw, fill, options):
    ours, want = draw(SHAPE, rng=rng, **options), theirs(fill, **options)
    assert ours.shape == SHAPE and ours.dtype == np.float32
    assert stats.ks_2samp(ours.ravel(), want).pvalue > 1e-3
    assert stats.ks_2samp(1.2 * ours.ravel(), want).pvalue < 1e-3  # a test that sees 20 %
    np.testing.assert_allclose(ours.std(), want.std(), rtol=0.05)


@pytest.mark.parametrize("draw, fill", [(init.kaiming_uniform, torch.nn.init.kaiming_uniform_),
                                        (init.kaiming_normal, torch.nn.init.kaiming_normal_)])
def test_kaiming_is_pytorchs_for_relu(rng, draw, fill):
    ours, want = draw(SHAPE, rng=rng), theirs(fill, nonlinearity="relu")
    assert stats.ks_2samp(ours.ravel(), want).pvalue > 1e-3
    assert stats.ks_2samp(1.2 * ours.ravel(), want).pvalue < 1e-3
    np.testing.assert_allclose(ours.std(), math.sqrt(2 / 60), rtol=0.05)
    halved = draw(SHAPE, gain=math.sqrt(2) / 2, rng=np.random.default_rng(29))
    np.testing.assert_allclose(halved, ours / 2, rtol=1e-6)


def test_uniform_bounds(rng):
    x = init.uniform((100, 100), 0.3, rng=rng)
    assert -0.3 <= x.min() < -0.299 and 0.299 < x.max() <= 0.3
    bound = math.sqrt(6 / 780)
    x = init.xavier_uniform(SHAPE, rng=rng)
    assert 0.99 * bound < np.abs(x).max() <= bound * (1 + 1e-6)


def test_trunc_normal_keeps_to_its_interval(rng):
    x = init.trunc_normal((100, 100), std=1.0, a=-0.5, b=0.25, rng=rng)
    assert -0.5 <= x.min() < -0.49 and 0.24 < x.max() <= 0.25
    with pytest.raises(ValueError, match=r"a, b: expected an interval that the normal often hits"):
        init.trunc_normal((2,), a=9.0, b=10.0, rng=rng)
    with pytest.raises(ValueError, match="a, b"):
        init.trunc_normal((2,), a=1.0, b=-1.0, rng=rng)


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (4, 2, 3), (8, 2, 3)])
def test_orthogonal(rng, shape):
    W = init.orthogonal(shape, gain=2.0, rng=rng, dtype=np.float64).reshape(shape[0], -1)
    product = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


def test_orthogonal_draws_all_directions_alike(rng):
    """Without the correction of signs the diagonal of these matrices would be mostly of one sign."""
    signs = [np.sign(np.diag(init.orthogonal((3, 3), rng=rng))) for _ in range(400)]
    assert abs(np.mean(signs)) < 4 / math.sqrt(1200)
    assert 0.4 < np.mean([np.linalg.det(init.orthogonal((3, 3), rng=rng)) > 0 for _ in range(400)]) < 0.6


@pytest.mark.parametrize("name", ["linear", "sigmoid", "tanh", "relu", "selu"])
def test_gains_are_pytorchs(name):
    assert init.gain(name) == pytest.approx(torch.nn.init.calculate_gain(name), rel=1e-12)


def test_errors(rng):
    with pytest.raises(ValueError, match="activation: expected one of linear"):
        init.gain("swish")
    for draw in (init.xavier_uniform, init.xavier_normal, init.kaiming_uniform, init.kaiming_normal,
                 init.orthogonal):
        with pytest.raises(ValueError, match=r"shape: expected \(out, in, …\)"):
            draw((3,), rng=rng)
    for draw in (init.uniform, init.normal, init.xavier_normal, init.orthogonal, init.trunc_normal):
        with pytest.raises(TypeError, match=r"rng: expected a numpy\.random\.Generator"):
            draw((3, 3), rng=0)


def test_dtype_and_seed():
    for draw in (init.uniform, init.normal, init.trunc_normal, init.xavier_uniform, init.xavier_normal,
                 init.kaiming_uniform, init.kaiming_normal, init.orthogonal):
        a, b = (draw((4, 3), rng=np.random.default_rng(1), dtype=np.float64) for _ in range(2))
        assert a.dtype == np.float64
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make, theirs", [
    (lambda r: nn.Linear(100, 25, rng=r), torch.nn.Linear(100, 25)),
    (lambda r: nn.Embedding(50, 40, rng=r), torch.nn.Embedding(50, 40)),
    (lambda r: nn.Conv2d(8, 20, 3, rng=r), torch.nn.Conv2d(8, 20, 3)),
    (lambda r: nn.GRU(20, 25, rng=r), torch.nn.GRU(20, 25)),
    (lambda r: nn.LSTM(20, 25, rng=r), torch.nn.LSTM(20, 25)),
    (lambda r: nn.LayerNorm(5), torch.nn.LayerNorm(5)),
    (lambda r: nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5)),
])
def test_layers_begin_as_pytorchs_do(rng, make, theirs):
    mine = make(rng).named_parameters()
    for (name, ours), (their_name, want) in zip(mine, theirs.named_parameters(), strict=True):
        assert name == their_name and ours.shape == tuple(want.shape)
        want = want.detach().numpy()
        if want.std() == 0:
            np.testing.assert_array_equal(ours.data, want)
        else:
            assert stats.ks_2samp(ours.data.ravel(), want.ravel()).pvalue > 1e-4, name
            np.testing.assert_allclose(np.abs(ours.data).max(), np.abs(want).max(), rtol=0.25, err_msg=name)


def test_a_blank_model_takes_no_memory_until_it_is_loaded():
    layer, table = nn.Linear(4000, 3000, rng=init.Blank()), nn.Embedding(3000, 4000, rng=init.Blank())
    for p in (layer.weight, layer.bias, table.weight):
        assert p.dtype == np.float32 and p.data.strides == (0,) * p.ndim and not p.data.any()
    assert init.Blank().standard_normal((2, 3)).shape == (2, 3)
    values = {"weight": np.ones((3000, 4000), np.float32), "bias": np.arange(3000, dtype=np.float32)}
    layer.load_state_dict(values, assign=True)
    assert np.shares_memory(layer.weight.data, values["weight"])
    assert raw(layer(np.ones((1, 4000), np.float32)))[0, 7] == 4007
    layer.load_state_dict(values)
    assert not np.shares_memory(layer.weight.data, values["weight"])


def test_assigned_arrays_of_another_dtype_are_converted_or_refused():
    layer = nn.Linear(2, 3, bias=False, rng=init.Blank())
    half = np.arange(6, dtype=np.float16).reshape(3, 2)
    layer.load_state_dict({"weight": half}, assign=True)
    assert layer.weight.dtype == np.float32 and (layer.weight.data == half).all()
    with pytest.raises(TypeError, match="float64 would lose precision"):
        layer.load_state_dict({"weight": half.astype(np.float64)}, assign=True)
