"""A layer beside its PyTorch twin: the same weights, inputs and cotangents, over steps of SGD."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from minattn.autograd import Tensor
from minattn.nn import Module

TOLERANCE = 1e-10


def pair(ours: Module, theirs: torch.nn.Module) -> tuple[Module, torch.nn.Module]:
    """Both in float64, with our weights; PyTorch's own strict check compares names and shapes."""
    ours, theirs = ours.to(np.float64), theirs.double()
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    return ours, theirs


def flat(outputs) -> list:
    return [leaf for part in outputs for leaf in flat(part)] if isinstance(outputs, tuple) else [outputs]


def follow(ours: Module, theirs: torch.nn.Module, rng: np.random.Generator, *shapes: tuple, steps: int = 10,
           lr: float = 0.1, call_ours: Callable | None = None, call_theirs: Callable | None = None,
           still: str = "nothing") -> None:
    """Assert that outputs, gradients of inputs and parameters, and the state agree at each of `steps` steps.

    The inputs are normal, of the given shapes, and new at each step; so are the cotangents of all outputs.
    At the end everything in the state has moved, except what has `still` in its name.
    """
    ours, theirs = pair(ours, theirs)
    start = ours.state_dict()
    for _ in range(steps):
        xs = [rng.standard_normal(shape) for shape in shapes]
        mine = [Tensor(x, requires_grad=True) for x in xs]
        other = [torch.tensor(x, requires_grad=True) for x in xs]
        outputs, wanted = flat((call_ours or ours)(*mine)), flat((call_theirs or theirs)(*other))
        assert len(outputs) == len(wanted)
        loss, their_loss = 0.0, 0.0
        for out, want in zip(outputs, wanted, strict=True):
            close("output", out.data, want)
            assert out.data.std() > 1e-3, "the output is constant: this comparison could not fail"
            u = rng.standard_normal(out.shape)
            loss, their_loss = loss + (out * u).sum(), their_loss + (want * torch.from_numpy(u)).sum()
        ours.zero_grad()
        theirs.zero_grad()
        loss.backward()
        their_loss.backward()
        for x, want in zip(mine, other, strict=True):
            close("gradient of the input", x.grad, want.grad)
            assert np.abs(x.grad).max() > 1e-6
        theirs_by_name = dict(theirs.named_parameters())
        assert list(theirs_by_name) == [name for name, _ in ours.named_parameters()]
        for name, p in ours.named_parameters():
            close(f"gradient of {name}", p.grad, theirs_by_name[name].grad)
            p.data = p.data - lr * p.grad
            theirs_by_name[name].data -= lr * theirs_by_name[name].grad
        for name, value in theirs.state_dict().items():
            close(name, ours.state_dict()[name], value)
    stood = {name for name, value in ours.state_dict().items() if np.array_equal(value, start[name])}
    assert stood == {name for name in start if still in name}, f"never moved: {stood}"


def close(what: str, got: np.ndarray, want: torch.Tensor) -> None:
    want = want.detach().numpy()
    assert got.shape == want.shape, f"{what}: shape {got.shape}, wanted {want.shape}"
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, wanted {want.dtype}"
    np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)
