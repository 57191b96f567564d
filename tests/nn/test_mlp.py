import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minattn import nn

from .twin import follow


@pytest.fixture
def rng():
    return np.random.default_rng(13)


class TorchMLP(torch.nn.Module):
    def __init__(self, D, d_hidden, d_out, f, bias):
        super().__init__()
        self.up, self.down = torch.nn.Linear(D, d_hidden, bias), torch.nn.Linear(d_hidden, d_out, bias)
        self.f = f

    def forward(self, x):
        return self.down(self.f(self.up(x)))


class TorchGated(torch.nn.Module):
    def __init__(self, D, d_hidden, f, bias):
        super().__init__()
        self.gate, self.up = torch.nn.Linear(D, d_hidden, bias), torch.nn.Linear(D, d_hidden, bias)
        self.down, self.f = torch.nn.Linear(d_hidden, D, bias), f

    def forward(self, x):
        return self.down(self.f(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name, f", [("gelu", F.gelu), ("relu", F.relu), ("silu", F.silu),
                                     ("tanh", torch.tanh)])
def test_mlp_is_pytorchs(rng, name, f, bias):
    follow(nn.MLP(4, 7, 3, activation=name, bias=bias, rng=rng), TorchMLP(4, 7, 3, f, bias), rng, (2, 3, 4))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form, f", [(nn.GLU, torch.sigmoid), (nn.SwiGLU, F.silu), (nn.GEGLU, F.gelu),
                                     (nn.ReGLU, F.relu), (nn.Bilinear, lambda x: x)])
def test_gated_forms_are_pytorchs(rng, form, f, bias):
    follow(form(4, 7, bias=bias, rng=rng), TorchGated(4, 7, f, bias), rng, (2, 3, 4))


def test_glu_is_pytorchs_glu(rng):
    """F.glu halves its input: the first half is the value, the second the gate."""
    layer, x = nn.GLU(4, 7, rng=rng), rng.standard_normal((3, 4)).astype(np.float32)
    both = torch.from_numpy(np.concatenate([layer.up(x).data, layer.gate(x).data], -1))
    hidden = layer.run_with_cache(x)[1]["hook_hidden"]
    np.testing.assert_allclose(hidden, F.glu(both, -1).numpy(), rtol=1e-6, atol=1e-7)


def test_default_sizes(rng):
    assert nn.MLP(6, rng=rng).up.weight.shape == (24, 6)
    assert nn.MLP(6, rng=rng).down.weight.shape == (6, 24)
    assert nn.SwiGLU(6, rng=rng).up.weight.shape == (16, 6)
    assert nn.SwiGLU(7, rng=rng).up.weight.shape == (19, 7)  # 56/3, rounded up


def test_unknown_activation_is_refused_when_the_layer_is_made(rng):
    with pytest.raises(ValueError, match="activation: expected one of"):
        nn.MLP(4, activation="swish", rng=rng)


@pytest.mark.parametrize("make", [lambda r: nn.MLP(4, rng=r), lambda r: nn.SwiGLU(4, rng=r)])
def test_hidden_values_can_be_read_and_replaced(rng, make):
    layer, x = make(rng), rng.standard_normal((3, 4)).astype(np.float32)
    out, cache = layer.run_with_cache(x)
    np.testing.assert_allclose(layer.down(cache["hook_hidden"]).data, out.data, rtol=1e-6)
    silenced = layer.run_with_hooks(x, hooks={"hook_hidden": lambda h: h * 0})
    np.testing.assert_allclose(silenced.data, np.broadcast_to(layer.down.bias.data, (3, 4)), rtol=1e-6)
