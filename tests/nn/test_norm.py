import numpy as np
import pytest
import torch

from minattn import nn
from minattn.autograd import Tensor

from .twin import follow, pair


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_layer_norm_is_pytorchs(rng, shape, bias):
    follow(nn.LayerNorm(6, bias=bias), torch.nn.LayerNorm(6, bias=bias), rng, shape)


def test_layer_norm_without_parameters(rng):
    follow(nn.LayerNorm(6, affine=False), torch.nn.LayerNorm(6, elementwise_affine=False), rng, (3, 6))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_rms_norm_is_pytorchs(rng, shape, affine):
    follow(nn.RMSNorm(6, affine=affine), torch.nn.RMSNorm(6, eps=1e-6, elementwise_affine=affine), rng, shape)


@pytest.mark.parametrize("ours, theirs, features", [
    (nn.LayerNorm(6, eps=0.3), torch.nn.LayerNorm(6, eps=0.3), 6),
    (nn.RMSNorm(6, eps=0.3), torch.nn.RMSNorm(6, eps=0.3), 6),
    (nn.BatchNorm1d(6, eps=0.3), torch.nn.BatchNorm1d(6, eps=0.3), 6),
])
def test_eps_is_used(rng, ours, theirs, features):
    follow(ours, theirs, rng, (4, features), steps=2)


def test_norms_refuse_other_sizes():
    for norm in (nn.LayerNorm(6), nn.RMSNorm(6), nn.LayerNorm(6, affine=False)):
        with pytest.raises(ValueError, match=r"x: expected 6 features in the last axis, got shape \(2, 5\)"):
            norm(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (1, 3, 2)])
def test_batch_norm_1d_is_pytorchs(rng, shape, affine, momentum):
    options = {"momentum": momentum, "affine": affine}
    follow(nn.BatchNorm1d(3, **options), torch.nn.BatchNorm1d(3, **options), rng, shape)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 2, 1)])
def test_batch_norm_2d_is_pytorchs(rng, shape):
    follow(nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3), rng, shape)


def test_batch_norm_after_eval_uses_what_it_has_seen(rng):
    ours, theirs = pair(nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3))
    for _ in range(5):
        x = 2 + 3 * rng.standard_normal((4, 3))
        ours(x), theirs(torch.from_numpy(x))
    ours.eval(), theirs.eval()
    before = ours.state_dict()
    x, u = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    a, b = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out, want = ours(a), theirs(b)
    np.testing.assert_allclose(out.data, want.detach().numpy(), rtol=1e-10, atol=1e-10)
    out.backward(u)
    want.backward(torch.from_numpy(u))
    np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=1e-10, atol=1e-10)
    assert all(np.array_equal(before[name], value) for name, value in ours.state_dict().items())
    one = ours(x[:1])  # a single sample has no variance, but needs none now
    np.testing.assert_allclose(one.data, want.detach().numpy()[:1], rtol=1e-10, atol=1e-10)


def test_batch_norm_takes_pytorchs_state(rng):
    theirs = torch.nn.BatchNorm2d(3)
    theirs(torch.randn(2, 3, 4, 4))
    ours = nn.BatchNorm2d(3)
    ours.load_state_dict(theirs.state_dict())
    assert ours.num_batches_tracked == 1 and ours.num_batches_tracked.shape == ()
    np.testing.assert_array_equal(ours.running_mean, theirs.running_mean.numpy())


def test_batch_norm_errors():
    with pytest.raises(ValueError, match="a variance needs more than one value of each channel"):
        nn.BatchNorm1d(3)(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match=r"x: expected \(B, 3, …\) with 4 axes, got shape \(2, 3\)"):
        nn.BatchNorm2d(3)(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"with 2 or 3 axes, got shape \(2, 4\)"):
        nn.BatchNorm1d(3)(np.zeros((2, 4), np.float32))
