import copy

import numpy as np
import pytest
import torch

import minattn as mn
from minattn import nn
from minattn.autograd import Tensor


@pytest.fixture
def rng():
    return np.random.default_rng(5)


class Tied(nn.Module):
    """A small model with everything: a buffer, a list, a tied parameter and a module used twice."""

    def __init__(self, rng):
        self.embed = nn.Embedding(7, 4, rng=rng)
        self.layers = nn.ModuleList(nn.Linear(4, 4, rng=rng) for _ in range(2))
        self.again = self.layers[0]
        self.register_buffer("shift", np.zeros(4, np.float32))
        self.register_buffer("scratch", np.ones(3, np.float32), persistent=False)
        self.register_buffer("count", np.array(3))
        self.head = nn.Linear(4, 7, bias=False, rng=rng)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids) + self.shift
        for layer in self.layers:
            x = mn.tanh(layer(x))
        return self.head(self.again(x))


class TorchTied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
        self.again = self.layers[0]
        self.register_buffer("shift", torch.zeros(4))
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.register_buffer("count", torch.tensor(3))
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


class TestNames:
    def test_names_and_order_are_pytorchs(self, rng):
        ours, theirs = Tied(rng), TorchTied()
        for unique in (True, False):
            assert [n for n, _ in ours.named_parameters(unique=unique)] == [
                n for n, _ in theirs.named_parameters(remove_duplicate=unique)]
            assert [n for n, _ in ours.named_modules(unique=unique)] == [
                n for n, _ in theirs.named_modules(remove_duplicate=unique)]
        assert [n for n, _ in ours.named_buffers()] == [n for n, _ in theirs.named_buffers()]
        assert sorted(ours.state_dict()) == sorted(theirs.state_dict())

    def test_tied_parameters_count_once(self, rng):
        model = Tied(rng)
        assert model.num_parameters() == 7 * 4 + 2 * (4 * 4 + 4)
        assert len(list(model.parameters())) == 5
        model.layers[1].requires_grad_(False)
        assert model.num_parameters(trainable=True) == 7 * 4 + 4 * 4 + 4
        assert model.num_parameters() == 7 * 4 + 2 * (4 * 4 + 4)

    def test_modules_in_a_plain_list_are_refused(self, rng):
        class Hidden(nn.Module):
            def __init__(self, held):
                self.parts = held

        for held in ([nn.Linear(2, 2, rng=rng)], (nn.Parameter(np.zeros(2)),), {"a": nn.HookPoint()}):
            with pytest.raises(TypeError, match=rf"Hidden.parts: a {type(held).__name__} hides the"):
                list(Hidden(held).parameters())
        assert list(Hidden([1, "two"]).parameters()) == []

    def test_a_list_with_an_underscore_holds_references_only(self, rng):
        class Peeking(nn.Module):
            def __init__(self):
                self._seen = [nn.Linear(2, 2, rng=rng)]

        assert list(Peeking().parameters()) == []

    def test_a_parameter_is_not_replaced_by_a_tensor(self, rng):
        layer = nn.Linear(2, 2, rng=rng)
        with pytest.raises(TypeError, match="weight: is a Parameter, and a Tensor in its place"):
            layer.weight = layer.weight - 1
        layer.weight = nn.Parameter(np.zeros((2, 2), np.float32))
        layer.weight = None
        assert [n for n, _ in layer.named_parameters()] == ["bias"]

    def test_get_submodule(self, rng):
        model = Tied(rng)
        assert model.get_submodule("layers.1") is model.layers[1]
        assert model.get_submodule("") is model
        with pytest.raises(ValueError, match=r"path: 'layers.2' has no part '2'; ModuleList has 0, 1"):
            model.get_submodule("layers.2")
        with pytest.raises(ValueError, match="Linear has no sub-modules"):
            model.get_submodule("head.weight")


class TestModes:
    def test_train_and_eval_reach_everything(self, rng):
        model = Tied(rng)
        assert all(m.training for m in model.modules())
        assert model.eval() is model
        assert not any(m.training for m in model.modules())
        model.train()
        assert all(m.training for m in model.modules())
        assert nn.Linear(2, 2, rng=rng).training  # the class was not touched

    def test_zero_grad(self, rng):
        model = Tied(rng)
        model(np.array([1, 2])).backward(rng.standard_normal((2, 7)))
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()
        assert all(p.grad is None for p in model.parameters())

    def test_frozen_parameters_get_no_gradient(self, rng):
        model = Tied(rng)
        model.layers.requires_grad_(False)
        model(np.array([1, 2])).backward(rng.standard_normal((2, 7)))
        assert {n for n, p in model.named_parameters() if p.grad is not None} == {"embed.weight"}

    def test_a_tied_parameter_gathers_both_gradients(self, rng):
        model = Tied(rng).to(np.float64)
        ids, u = np.array([1, 2]), rng.standard_normal((2, 7))
        model(ids).backward(u)
        tied = model.embed.weight.grad
        model.head.weight = nn.Parameter(model.embed.weight.data.copy())
        model.zero_grad()
        model(ids).backward(u)
        np.testing.assert_allclose(tied, model.embed.weight.grad + model.head.weight.grad, rtol=1e-12)
        assert np.abs(model.head.weight.grad).max() > 1e-3 < np.abs(model.embed.weight.grad).max()

    def test_forward_must_be_defined(self):
        with pytest.raises(NotImplementedError, match="Module does not define forward"):
            nn.Module()(1)


class TestTo:
    def test_dtype(self, rng):
        model = Tied(rng)
        weight = model.embed.weight
        model(np.array([1])).backward(rng.standard_normal((1, 7)))
        assert model.to(np.float64) is model
        assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
        assert {p.grad.dtype for p in model.parameters()} == {np.dtype(np.float64)}
        assert model.shift.dtype == model.scratch.dtype == np.float64
        assert model.count.dtype == np.int64
        assert model.embed.weight is weight and model.head.weight is weight  # optimisers hold the object
        assert model(np.array([1])).dtype == np.float64

    def test_complex_parameters_stay_complex(self):
        layer = nn.Module()
        layer.weight = nn.Parameter(np.ones(2, np.complex64))
        assert layer.to(np.float64).weight.dtype == np.complex128
        assert layer.to("float32").weight.dtype == np.complex64

    def test_errors(self, rng):
        with pytest.raises(TypeError, match="target: expected a floating dtype"):
            nn.Linear(2, 2, rng=rng).to(np.int32)
        with pytest.raises(TypeError):
            nn.Linear(2, 2, rng=rng).to("tpu")

    def test_cpu_is_where_it_is_and_the_gpu_may_be_missing(self, rng):
        layer = nn.Linear(2, 2, rng=rng)
        before = layer.weight.data
        assert layer.to("cpu").weight.data is before
        try:
            import cupy

            cupy.cuda.runtime.getDeviceCount()
        except Exception:
            with pytest.raises(RuntimeError, match="no GPU can be used here"):
                layer.to("gpu")
            assert layer.weight.data is before


class TestState:
    def test_it_is_a_copy(self, rng):
        model = Tied(rng)
        state = model.state_dict()
        kept = {name: value.copy() for name, value in state.items()}
        for p in model.parameters():
            p.data += 1
        model.shift += 1
        assert all(np.array_equal(state[name], kept[name]) for name in kept)

    def test_what_is_loaded_is_a_copy(self, rng):
        model, state = Tied(rng), Tied(rng).state_dict()
        model.load_state_dict(state)
        state["shift"] += 1
        state["layers.0.bias"] += 1
        assert (model.shift == 0).all()
        assert not np.array_equal(model.layers[0].bias.data, state["layers.0.bias"])

    def test_between_us_and_pytorch(self, rng):
        ours, theirs = Tied(rng), TorchTied()
        ours.load_state_dict(theirs.state_dict())
        np.testing.assert_array_equal(ours.embed.weight.data, theirs.embed.weight.detach().numpy())
        again = Tied(rng)
        theirs.load_state_dict({n: torch.from_numpy(v) for n, v in again.state_dict().items()})
        np.testing.assert_array_equal(again.layers[1].bias.data, theirs.layers[1].bias.detach().numpy())

    def test_loading_keeps_ties_and_objects(self, rng):
        model, other = Tied(rng), Tied(rng)
        weight = model.embed.weight
        model.load_state_dict(other.state_dict())
        assert model.embed.weight is weight is model.head.weight
        np.testing.assert_array_equal(weight.data, other.embed.weight.data)

    @pytest.mark.parametrize("left_out", ["head.weight", "embed.weight"])
    def test_a_tied_parameter_may_come_under_one_name(self, rng, left_out):
        model, state = Tied(rng), Tied(rng).state_dict()
        wanted = state.pop(left_out)
        assert model.load_state_dict(state) == ([], [])
        np.testing.assert_array_equal(model.embed.weight.data, wanted)

    def test_on_an_error_nothing_has_changed_and_all_problems_are_named(self, rng):
        model, state = Tied(rng), Tied(rng).state_dict()
        before = model.state_dict()
        del state["layers.1.bias"], state["again.weight"], state["layers.0.weight"]
        state["extra"] = np.zeros(1)
        state["shift"] = np.zeros(5, np.float32)
        state["head.weight"] = state["head.weight"] + 1
        with pytest.raises(ValueError) as e:
            model.load_state_dict(state)
        for part in ("this Tied", "missing: layers.0.weight, layers.1.bias", "unexpected: extra",
                     "shift: expected shape (4,), got (5,)", "head.weight: is tied to embed.weight here"):
            assert part in str(e.value), part
        assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())

    def test_not_strict(self, rng):
        model, state = Tied(rng), Tied(rng).state_dict()
        del state["layers.1.bias"]
        state["extra"] = np.zeros(1)
        old = model.layers[1].bias.data
        report = model.load_state_dict(state, strict=False)
        assert report.missing == ["layers.1.bias"] and report.unexpected == ["extra"]
        assert model.layers[1].bias.data is old
        np.testing.assert_array_equal(model.layers[0].bias.data, state["layers.0.bias"])
        state["shift"] = np.zeros(5, np.float32)
        with pytest.raises(ValueError, match="shift: expected shape"):
            model.load_state_dict(state, strict=False)

    def test_precision_is_never_lost_unasked(self, rng):
        layer = nn.Linear(2, 3, rng=rng)
        exact = {name: value.astype(np.float64) for name, value in layer.state_dict().items()}
        with pytest.raises(TypeError, match="weight: float64 would lose precision as float32"):
            layer.load_state_dict(exact)
        half = {"weight": layer.weight.data + 1, "bias": exact["bias"]}
        before = layer.weight.data
        with pytest.raises(TypeError, match="bias: float64"):
            layer.load_state_dict(half)
        assert layer.weight.data is before
        rough = {name: value.astype(np.float16) for name, value in exact.items()}
        layer.load_state_dict(rough)
        assert layer.weight.dtype == np.float32
        np.testing.assert_array_equal(layer.weight.data, rough["weight"])


class TestCopies:
    def test_deepcopy_keeps_ties_and_shares_nothing(self, rng):
        model = Tied(rng)
        twin = copy.deepcopy(model)
        assert twin.embed.weight is twin.head.weight is not model.embed.weight
        assert isinstance(twin.embed.weight, nn.Parameter) and twin.embed.weight.requires_grad
        for p in twin.parameters():
            p.data += 1
        assert not any(np.array_equal(a.data, b.data)
                       for a, b in zip(model.parameters(), twin.parameters(), strict=True))
        twin(np.array([1])).backward(np.ones((1, 7)))
        assert all(p.grad is None for p in model.parameters())


class TestModuleList:
    def test_it_is_a_list(self, rng):
        layers = nn.ModuleList([nn.Linear(2, 2, rng=rng)])
        layers.append(nn.Linear(2, 3, rng=rng)).append(nn.HookPoint())
        assert len(layers) == 3 and [type(m).__name__ for m in layers] == ["Linear", "Linear", "HookPoint"]
        assert layers[-2].weight.shape == (3, 2)
        assert isinstance(layers[1:], nn.ModuleList) and layers[1:][0] is layers[1]
        with pytest.raises(TypeError, match="module: expected a Module, got function"):
            layers.append(mn.relu)


class TestRepr:
    def test_it_is_pytorchs(self, rng):
        def build(lib, **r):
            inner = lib.Sequential(lib.LayerNorm(4), lib.Linear(4, 3, **r))
            return lib.Sequential(lib.Embedding(5, 4, **r), inner, lib.RMSNorm(3, eps=1e-6))

        assert repr(build(nn, rng=rng)) == repr(build(torch.nn))
        assert repr(nn.Linear(2, 3, False, rng=rng)) == repr(torch.nn.Linear(2, 3, False))

    def test_options_and_parts_are_both_shown(self, rng):
        assert repr(nn.MLP(2, 3, activation="relu", rng=rng)) == (
            "MLP(\n  activation='relu'\n  (up): Linear(in_features=2, out_features=3, bias=True)\n"
            "  (down): Linear(in_features=3, out_features=2, bias=True)\n  (hook_hidden): HookPoint()\n)")


def test_a_parameter_is_a_tensor_that_wants_a_gradient():
    p = nn.Parameter(np.ones(2))
    assert isinstance(p, Tensor) and p.requires_grad and p.is_leaf
    assert not nn.Parameter(np.ones(2), requires_grad=False).requires_grad
