import numpy as np
import pytest
import torch

import minattn as mn
from minattn import nn
from minattn.autograd import Tensor

from .twin import follow, pair


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 5), (2, 3, 5), (2, 1, 3, 5)])
def test_linear_is_pytorchs(rng, shape, bias):
    follow(nn.Linear(5, 4, bias, rng=rng), torch.nn.Linear(5, 4, bias), rng, shape)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 3, 4)])
def test_embedding_is_pytorchs(rng, shape):
    ours, theirs = pair(nn.Embedding(5, 3, rng=rng), torch.nn.Embedding(5, 3))
    for _ in range(10):
        ids = rng.integers(0, 5, shape)
        u = rng.standard_normal((*shape, 3))
        out, want = ours(ids), theirs(torch.tensor(ids))
        np.testing.assert_allclose(out.data, want.detach().numpy(), rtol=1e-10, atol=1e-10)
        ours.zero_grad()
        theirs.zero_grad()
        out.backward(u)
        want.backward(torch.from_numpy(u))
        np.testing.assert_allclose(ours.weight.grad, theirs.weight.grad.numpy(), rtol=1e-10, atol=1e-10)
        ours.weight.data = ours.weight.data - 0.1 * ours.weight.grad
        theirs.weight.data -= 0.1 * theirs.weight.grad
    np.testing.assert_allclose(ours.weight.data, theirs.weight.detach().numpy(), rtol=1e-10, atol=1e-10)


def test_embedding_refuses_ids_outside_the_table(rng):
    table = nn.Embedding(5, 3, rng=rng)
    with pytest.raises(ValueError, match=r"ids: expected values in \[0, 5\), got \[1, 5\]"):
        table(np.array([1, 5]))
    with pytest.raises(TypeError, match="ids: expected integers"):
        table(np.array([1.0]))


@pytest.mark.parametrize("name, theirs", [
    ("relu", torch.relu), ("gelu", torch.nn.functional.gelu), ("silu", torch.nn.functional.silu),
    ("gelu_tanh", lambda x: torch.nn.functional.gelu(x, approximate="tanh")), ("tanh", torch.tanh),
    ("sigmoid", torch.sigmoid), ("softplus", torch.nn.functional.softplus), ("identity", lambda x: x),
])
def test_activations_are_pytorchs(rng, name, theirs):
    x = 3 * rng.standard_normal((4, 5))
    a, b = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    u = rng.standard_normal((4, 5))
    out, want = nn.Activation(name)(a), theirs(b)
    np.testing.assert_allclose(out.data, want.detach().numpy(), rtol=1e-10, atol=1e-10)
    (out * u).sum().backward()
    (want * torch.from_numpy(u)).sum().backward()
    np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=1e-10, atol=1e-10)


def test_every_activation_has_a_test():
    (mark,) = (m for m in test_activations_are_pytorchs.pytestmark if m.name == "parametrize")
    assert {name for name, _ in mark.args[1]} == set(nn.ACTIVATIONS)


def test_unknown_activation_is_named():
    with pytest.raises(ValueError, match=r"activation: expected one of relu, gelu, .*, got 'swish'"):
        nn.Activation("swish")


def test_sequential_is_pytorchs(rng):
    ours = nn.Sequential(nn.Linear(3, 8, rng=rng), nn.Activation("tanh"), nn.LayerNorm(8),
                         nn.Linear(8, 2, rng=rng))
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.LayerNorm(8),
                                 torch.nn.Linear(8, 2))
    follow(ours, theirs, rng, (5, 3))


def test_sequential_slices_and_counts(rng):
    layers = nn.Sequential(*(nn.Linear(3, 3, rng=rng) for _ in range(4)))
    assert len(layers) == 4 and layers[1:3][0] is layers[1]


class TestDropout:
    def test_while_training_it_drops_about_p_and_keeps_the_mean(self, rng):
        x = np.full((400, 500), 2.0)
        out = nn.Dropout(0.3, rng)(x)
        kept = out != 0
        np.testing.assert_allclose(out[kept], 2 / 0.7, rtol=1e-12)
        n = x.size
        assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / n)  # five standard deviations of a binomial

    def test_gradient_passes_where_values_do(self, rng):
        x, u = Tensor(rng.standard_normal((20, 30)), requires_grad=True), rng.standard_normal((20, 30))
        out = nn.Dropout(0.5, rng)(x)
        out.backward(u)
        np.testing.assert_allclose(x.grad, np.where(out.data == 0, 0, 2 * u), rtol=1e-12)
        assert 0 < (x.grad == 0).mean() < 1

    def test_evaluation_is_the_identity(self, rng):
        x = rng.standard_normal((20, 30))
        layer = nn.Dropout(0.5, rng)
        assert not np.array_equal(layer(x), x)
        assert layer.eval()(x) is x
        assert not np.array_equal(layer.train()(x), x)

    def test_only_the_generator_decides(self):
        x = np.ones((20, 30))
        once, again = (nn.Dropout(0.5, np.random.default_rng(3)) for _ in range(2))
        first = once(x)
        np.testing.assert_array_equal(first, again(x))
        assert not np.array_equal(first, once(x))

    def test_errors(self, rng):
        with pytest.raises(TypeError, match=r"rng: expected a numpy.random.Generator .*, got None"):
            nn.Dropout(0.1)
        for p in (-0.1, 1.0, 2):
            with pytest.raises(ValueError, match=r"p: expected a probability in \[0, 1\)"):
                nn.Dropout(p, rng)
        assert nn.Dropout(0.0)(3) == 3


@pytest.mark.parametrize("make", [
    lambda rng: nn.Linear(2, 3, rng=rng), lambda rng: nn.Embedding(2, 3, rng=rng),
    lambda rng: nn.Conv1d(2, 3, 1, rng=rng), lambda rng: nn.GRU(2, 3, rng=rng),
    lambda rng: nn.MLP(2, rng=rng), lambda rng: nn.SwiGLU(2, rng=rng), lambda rng: nn.LSTMCell(2, 3, rng=rng),
])
@pytest.mark.parametrize("rng", [None, 0, np.random.RandomState(0), np.random])
def test_whatever_needs_randomness_wants_a_generator(make, rng):
    with pytest.raises(TypeError, match=r"rng: expected a numpy.random.Generator such as"):
        make(rng)


def test_rng_cannot_be_forgotten():
    with pytest.raises(TypeError, match="'rng'"):
        nn.Linear(2, 3)


def test_sizes_are_checked(rng):
    with pytest.raises(ValueError, match="d_out: expected at least 1, got 0"):
        nn.Linear(2, 0, rng=rng)
    with pytest.raises(TypeError, match=r"d_in: expected an integer, got 2\.0"):
        nn.Linear(2.0, 3, rng=rng)
    with pytest.raises(ValueError, match=r"expected .*\(2, 3\)"):
        nn.Linear(2, 3, rng=rng)(np.zeros((2, 3), np.float32))
    with pytest.raises(TypeError, match=r"float32.*float64"):
        nn.Linear(2, 3, rng=rng)(np.zeros((2, 2)))


LAYERS = {  # a layer and an input for it, for the tests of precision
    "linear": (lambda r: nn.Linear(4, 3, rng=r), (2, 4)),
    "layer norm": (lambda r: nn.LayerNorm(4), (2, 4)),
    "rms norm": (lambda r: nn.RMSNorm(4), (2, 4)),
    "batch norm 1d": (lambda r: nn.BatchNorm1d(4), (5, 4)),
    "batch norm 2d": (lambda r: nn.BatchNorm2d(2), (2, 2, 3, 3)),
    "dropout": (lambda r: nn.Sequential(nn.Linear(4, 3, rng=r), nn.Dropout(0.5, r)), (2, 4)),
    "mlp": (lambda r: nn.MLP(4, rng=r), (2, 4)),
    "glu": (lambda r: nn.GLU(4, rng=r), (2, 4)),
    "swiglu": (lambda r: nn.SwiGLU(4, rng=r), (2, 4)),
    "geglu": (lambda r: nn.GEGLU(4, rng=r), (2, 4)),
    "conv 1d": (lambda r: nn.Conv1d(4, 2, 3, rng=r), (2, 4, 5)),
    "conv 2d": (lambda r: nn.Conv2d(2, 2, 3, padding=1, rng=r), (2, 2, 3, 3)),
    "gru": (lambda r: nn.GRU(4, 3, 2, True, rng=r), (2, 5, 4)),
    "lstm": (lambda r: nn.LSTM(4, 3, 2, True, rng=r), (2, 5, 4)),
    "gru cell": (lambda r: nn.GRUCell(4, 3, rng=r), (2, 4)),
    "lstm cell": (lambda r: nn.LSTMCell(4, 3, rng=r), (2, 4)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_precision_stays(rng, name, dtype):
    make, shape = LAYERS[name]
    layer = make(rng).to(dtype)
    for _ in range(2):
        x = Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)
        out = layer(x)
        out = out if isinstance(out, Tensor) else out[0]
        assert out.dtype == dtype
        out.backward(rng.standard_normal(out.shape))
        assert x.grad.dtype == dtype
        for key, p in layer.named_parameters():
            assert p.grad.dtype == dtype, key
            p.data = p.data - 0.1 * p.grad
        assert {v.dtype for v in layer.state_dict().values()} <= {np.dtype(dtype), np.dtype(np.int64)}


@pytest.mark.parametrize("name", LAYERS)
def test_arrays_in_arrays_out_of_the_gradient_free(rng, name):
    """Under no_grad a layer records nothing, so what it returns holds no graph."""
    make, shape = LAYERS[name]
    with mn.no_grad():
        out = make(rng)(rng.standard_normal(shape).astype(np.float32))
    out = out if isinstance(out, Tensor) else out[0]
    assert not out.requires_grad
