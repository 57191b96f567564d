import numpy as np
import pytest
import torch

from minattn import nn

from .twin import follow


@pytest.fixture
def rng():
    return np.random.default_rng(17)


@pytest.mark.parametrize("options", [
    {}, {"stride": 2}, {"padding": 2}, {"dilation": 2}, {"groups": 2}, {"groups": 4}, {"bias": False},
    {"stride": 3, "padding": 1, "dilation": 2, "groups": 2, "bias": False},
])
@pytest.mark.parametrize("kernel, N", [(1, 6), (3, 7), (2, 9)])
def test_conv1d_is_pytorchs(rng, kernel, N, options):
    theirs = torch.nn.Conv1d(4, 8, kernel, **options)
    follow(nn.Conv1d(4, 8, kernel, rng=rng, **options), theirs, rng, (2, 4, N), lr=0.02)


@pytest.mark.parametrize("dilation", [1, 2])
def test_causal_conv1d_is_pytorchs_on_a_padded_signal(rng, dilation):
    theirs = torch.nn.Conv1d(4, 8, 3, dilation=dilation)

    def padded(x):
        return theirs(torch.nn.functional.pad(x, (2 * dilation, 0)))

    ours = nn.Conv1d(4, 8, 3, padding="causal", dilation=dilation, rng=rng)
    follow(ours, theirs, rng, (2, 4, 7), call_theirs=padded)


def test_causal_conv1d_sees_the_past_alone(rng):
    conv = nn.Conv1d(2, 3, 3, padding="causal", dilation=2, rng=rng)
    x = rng.standard_normal((1, 2, 9)).astype(np.float32)
    changed = x.copy()
    changed[:, :, 5] += 1
    differs = (conv(x).data != conv(changed).data).any((0, 1))
    np.testing.assert_array_equal(np.flatnonzero(differs), [5, 7])
    assert conv(x).shape == (1, 3, 9)


@pytest.mark.parametrize("options", [
    {}, {"stride": (2, 1)}, {"padding": (0, 2)}, {"dilation": 2}, {"groups": 2}, {"groups": 4},
    {"bias": False},
    {"stride": 2, "padding": 1, "dilation": (1, 2), "groups": 2, "bias": False},
])
@pytest.mark.parametrize("kernel", [1, (3, 2)])
def test_conv2d_is_pytorchs(rng, kernel, options):
    theirs = torch.nn.Conv2d(4, 8, kernel, **options)
    follow(nn.Conv2d(4, 8, kernel, rng=rng, **options), theirs, rng, (2, 4, 6, 7), lr=0.02)


@pytest.mark.parametrize("shape", [(300, 20, 5), (100, 20, 3, 5)])
def test_initial_weights_are_uniform_up_to_the_root_of_fan_in(rng, shape):
    make, kernel = (nn.Conv1d, shape[2]) if len(shape) == 3 else (nn.Conv2d, shape[2:])
    conv = make(40, shape[0], kernel, groups=2, rng=rng)
    assert conv.weight.shape == shape
    bound = 1 / np.sqrt(np.prod(shape[1:]))
    for values in (conv.weight.data, conv.bias.data):
        assert 0.95 * bound < np.abs(values).max() <= bound * (1 + 1e-6)


def test_errors(rng):
    with pytest.raises(ValueError, match="groups: expected a divisor of d_in=4 and d_out=6, got 4"):
        nn.Conv1d(4, 6, 3, groups=4, rng=rng)
    with pytest.raises(ValueError, match='padding: expected an integer of at least 0 or "causal"'):
        nn.Conv1d(4, 6, 3, padding="same", rng=rng)
    with pytest.raises(ValueError, match="kernel: expected one or two integers of at least 1"):
        nn.Conv2d(4, 6, (3, 0), rng=rng)
    with pytest.raises(ValueError, match="kernel: expected at least 1"):
        nn.Conv1d(4, 6, 0, rng=rng)
    with pytest.raises(ValueError, match="conv1d: expected x and weight with 3 axes"):
        nn.Conv1d(4, 6, 3, rng=rng)(np.zeros((4, 9), np.float32))
    with pytest.raises(ValueError, match="in=3"):
        nn.Conv1d(4, 6, 3, rng=rng)(np.zeros((1, 3, 9), np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        nn.Conv1d(4, 6, 3, rng=rng)(np.zeros((1, 4, 2), np.float32))


def test_what_it_shows(rng):
    assert repr(nn.Conv1d(4, 8, 3, padding="causal", groups=2, rng=rng)) == (
        "Conv1d(4, 8, kernel=3, stride=1, padding='causal', groups=2)")
    assert repr(nn.Conv2d(4, 8, 3, dilation=2, bias=False, rng=rng)) == (
        "Conv2d(4, 8, kernel=(3, 3), stride=(1, 1), dilation=(2, 2), bias=False)")
