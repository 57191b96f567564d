
import numpy as np
import pytest
import torch

import minattn as mn
from minattn import nn


@pytest.fixture
def rng():
    return np.random.default_rng(19)


@pytest.fixture
def x(rng):
    return rng.standard_normal((2, 3)).astype(np.float32)


class Twice(nn.Module):
    """A layer applied twice, a named value between, and a part that returns a pair."""

    def __init__(self, rng):
        self.layer = nn.Linear(3, 3, rng=rng)
        self.hook_mid = nn.HookPoint()
        self.halves = Halves()

    def forward(self, x):
        for _ in range(2):
            x = self.hook_mid(mn.tanh(self.layer(x)))
        return self.halves(x)[0]


class Halves(nn.Module):
    def forward(self, x):
        return x * 2, x * 3


class TestForwardHook:
    def test_it_sees_module_arguments_and_output(self, rng, x):
        layer, seen = nn.Linear(3, 2, rng=rng), []
        layer.register_forward_hook(lambda *given: seen.append(given))
        out = layer(x)
        ((module, args, output),) = seen
        assert module is layer and args[0] is x and output is out

    def test_what_it_returns_replaces_the_output(self, rng, x):
        layer = nn.Linear(3, 2, rng=rng)
        plain = layer(x)
        handle = layer.register_forward_hook(lambda module, args, output: output * 2)
        np.testing.assert_allclose(layer(x).data, 2 * plain.data)
        handle.remove()
        np.testing.assert_array_equal(layer(x).data, plain.data)
        handle.remove()  # a second time is no error

    def test_several_run_in_order_each_on_the_output_of_the_one_before(self, rng, x):
        layer = nn.Linear(3, 2, rng=rng)
        plain = layer(x).data
        first = layer.register_forward_hook(lambda m, a, out: out + 1)
        layer.register_forward_hook(lambda m, a, out: out * 10)
        np.testing.assert_allclose(layer(x).data, (plain + 1) * 10, rtol=1e-6)
        first.remove()
        np.testing.assert_allclose(layer(x).data, plain * 10, rtol=1e-6)

    def test_a_hook_may_remove_itself(self, rng, x):
        layer, calls = nn.Linear(3, 2, rng=rng), []

        def once(module, args, output):
            calls.append(1)
            handle.remove()

        handle = layer.register_forward_hook(once)
        layer(x), layer(x)
        assert len(calls) == 1

    def test_hooks_belong_to_one_module(self, rng, x):
        a, b = nn.Linear(3, 2, rng=rng), nn.Linear(3, 2, rng=rng)
        with a.register_forward_hook(lambda m, args, out: out * 0):
            assert (a(x).data == 0).all() and (b(x).data != 0).any()
        assert (a(x).data != 0).any()

    def test_the_gradient_goes_through_the_replacement_as_in_pytorch(self, rng, x):
        ours = nn.Sequential(nn.Linear(3, 4, rng=rng), nn.Linear(4, 2, rng=rng)).to(np.float64)
        theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
        theirs.load_state_dict({n: torch.from_numpy(v) for n, v in ours.state_dict().items()})
        ours[0].register_forward_hook(lambda m, args, out: out * out)
        theirs[0].register_forward_hook(lambda m, args, out: out * out)
        x, u = x.astype(np.float64), rng.standard_normal((2, 2))
        ours(x).backward(u)
        theirs(torch.from_numpy(x)).backward(torch.from_numpy(u))
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-10, atol=1e-10, err_msg=name)

    def test_it_must_be_a_function(self, rng):
        with pytest.raises(TypeError, match=r"hook: expected a function of \(module, args, output\), got 3"):
            nn.HookPoint().register_forward_hook(3)


class TestHooked:
    def test_read_replace_and_scale(self, rng, x):
        model, seen = Twice(rng), []
        plain = model(x).data
        with model.hooked({"hook_mid": seen.append}) as inside:
            assert inside is model
            np.testing.assert_array_equal(model(x).data, plain)
        assert len(seen) == 2
        scaled = model.run_with_hooks(x, hooks={"halves": lambda pair: (pair[0] * 0.5, pair[1])})
        np.testing.assert_allclose(scaled.data, plain / 2, rtol=1e-6)
        replaced = model.run_with_hooks(x, hooks={"hook_mid": lambda h: mn.Tensor(np.ones_like(h.data))})
        np.testing.assert_array_equal(replaced.data, np.full((2, 3), 2))
        np.testing.assert_array_equal(model(x).data, plain)

    def test_hooks_come_off_after_an_error(self, rng, x):
        model = Twice(rng)
        plain = model(x).data

        def fail(h):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            model.run_with_hooks(x, hooks={"hook_mid": fail})
        with pytest.raises(ValueError, match="path: 'nowhere'"):
            model.run_with_hooks(x, hooks={"hook_mid": fail, "nowhere": fail})
        np.testing.assert_array_equal(model(x).data, plain)


class TestCache:
    def test_hook_points_by_default_and_every_run_of_them(self, rng, x):
        model = Twice(rng)
        out, cache = model.run_with_cache(x)
        assert list(cache) == ["hook_mid", "hook_mid:1"]
        assert all(type(value) is np.ndarray for value in cache.values())
        first = np.tanh(x @ model.layer.weight.data.T + model.layer.bias.data)
        np.testing.assert_allclose(cache["hook_mid"], first, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(2 * cache["hook_mid:1"], out.data)
        assert out.requires_grad
        assert len(model.run_with_cache(x)[1]) == 2  # nothing was left behind

    def test_by_pattern_and_tuples(self, rng, x):
        model = Twice(rng)
        _, cache = model.run_with_cache(x, names=("lay*", "halves"))
        assert list(cache) == ["layer", "layer:1", "halves"]
        a, b = cache["halves"]
        np.testing.assert_allclose(b, 1.5 * a, rtol=1e-6)
        with pytest.raises(ValueError, match="nothing matches 'hok'; the modules are layer, hook_mid, h"):
            model.run_with_cache(x, names="hok")

    def test_it_sees_what_earlier_hooks_made_of_a_value(self, rng, x):
        model = Twice(rng)
        with model.hooked({"hook_mid": lambda h: h * 0}):
            _, cache = model.run_with_cache(x)
        assert (cache["hook_mid"] == 0).all()


def test_a_hook_point_without_hooks_hands_on_the_very_object():
    value = object()
    assert nn.HookPoint()(value) is value
