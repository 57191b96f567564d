"""Schedules against the formulas written out, and against PyTorch's schedulers where it has them."""

import math

import numpy as np
import pytest

from minattn.nn import schedule


def nanogpt(step, lr, warmup, steps, floor):
    """The schedule of nanoGPT's train.py, as a chain of cases."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if step > steps:
        return floor
    ratio = (step - warmup) / (steps - warmup)
    return floor + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (lr - floor)


@pytest.mark.parametrize("lr, warmup, steps, floor",
                         [(1e-3, 100, 2000, 1e-4), (0.5, 0, 1, 0.0), (1.0, 3, 7, 1.0)])
def test_cosine_is_nanogpts(lr, warmup, steps, floor):
    rate = schedule.cosine(lr, steps=steps, warmup=warmup, floor=floor)
    for step in [*range(0, steps + 3, max(1, steps // 50)), warmup, steps, 10 * steps]:
        assert rate(step) == pytest.approx(nanogpt(step, lr, warmup, steps, floor), rel=1e-12, abs=1e-18)


def test_cosine_is_pytorchs_annealing():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.01)
    ours = schedule.cosine(0.3, steps=20, floor=0.01)
    for step in range(20):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_linear():
    rate = schedule.linear(1.0, steps=14, warmup=4, floor=0.5)
    want = [0.2, 0.4, 0.6, 0.8, *np.linspace(1, 0.5, 11), 0.5, 0.5]
    np.testing.assert_allclose([rate(step) for step in range(17)], want, rtol=1e-12)


def test_inverse_sqrt():
    rate = schedule.inverse_sqrt(2.0, warmup=3)
    want = [0.5, 1.0, 1.5, 2.0, 2 * math.sqrt(4 / 5), 2 * math.sqrt(4 / 6)]
    np.testing.assert_allclose([rate(step) for step in range(6)], want, rtol=1e-12)
    assert rate(399) == pytest.approx(0.2)


def test_constant():
    rate = schedule.constant(2.0, warmup=1)
    assert [rate(step) for step in (0, 1, 2, 10**6)] == [1.0, 2.0, 2.0, 2.0]
    assert schedule.constant(0.1)(0) == 0.1


@pytest.mark.parametrize("make", [
    lambda w: schedule.cosine(1.0, steps=50, warmup=w), lambda w: schedule.linear(1.0, steps=50, warmup=w),
    lambda w: schedule.inverse_sqrt(1.0, warmup=w), lambda w: schedule.constant(1.0, warmup=w)])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_all_rise_and_then_never_rise_again(make, warmup):
    rates = np.array([make(warmup)(step) for step in range(80)])
    assert rates.argmax() == warmup and rates[warmup] == 1.0 and rates[0] > 0
    assert (np.diff(rates[: warmup + 1]) > 0).all() and (np.diff(rates[warmup:]) <= 0).all()


@pytest.mark.parametrize("call, message", [
    (lambda: schedule.cosine(-1.0, steps=10), "lr: .*got -1.0"),
    (lambda: schedule.constant(math.nan), "lr: .*got nan"),
    (lambda: schedule.cosine(1.0, steps=10, warmup=-1), "warmup: .*got -1"),
    (lambda: schedule.cosine(1.0, steps=10, warmup=10), "steps: expected more than the 10 .*got 10"),
    (lambda: schedule.linear(1.0, steps=0), "steps: "),
    (lambda: schedule.linear(1.0, steps=5, floor=1.1), "floor: .*got 1.1"),
    (lambda: schedule.cosine(1.0, steps=5, floor=-0.1), "floor: "),
    (lambda: schedule.inverse_sqrt(math.inf, warmup=1), "lr: "),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
