"""One step of AdamW: the array form against PyTorch's, the compiled loop against the array form."""

import numpy as np
import pytest

from minattn.kernels import adamw as module
from minattn.kernels import dispatch
from minattn.kernels.adamw import SMALL, adamw


def state(n, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    p, m = (rng.standard_normal(n).astype(dtype) for _ in range(2))
    return p, m, np.abs(rng.standard_normal(n)).astype(dtype)


def gradients(n, dtype=np.float64):
    return [np.random.default_rng(k).standard_normal(n).astype(dtype) for k in range(10)]


OPTIONS = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}


@pytest.mark.parametrize("n", [5, SMALL])
@pytest.mark.parametrize("decay, l2", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.2)])
def test_ten_steps_equal_torch(n, decay, l2):
    torch = pytest.importorskip("torch")
    p = state(n)[0]
    theirs = torch.tensor(p, requires_grad=True)
    kind = torch.optim.Adam if l2 else torch.optim.AdamW
    optimizer = kind([theirs], **OPTIONS, weight_decay=l2 or decay)
    m, v, scratch = np.zeros(n), np.zeros(n), np.empty(n + 3)
    for step, g in enumerate(gradients(n), start=1):
        before = g.copy()
        assert adamw(p, g, m, v, scratch, step=step, **OPTIONS, decay=decay, l2=l2) is None
        np.testing.assert_array_equal(g, before)
        theirs.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p, theirs.detach().numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_compiled_loop_equals_the_array_form(dtype, tolerance, l2, monkeypatch):
    pytest.importorskip("numba")
    found = []
    for numba in (True, False):
        monkeypatch.setattr(dispatch, "have_numba", lambda numba=numba: numba)
        p, m, v = state(SMALL, dtype)
        for step, g in enumerate(gradients(SMALL, dtype), start=3):
            adamw(p, g, m, v, np.empty(SMALL, dtype), step=step, **OPTIONS, decay=0.1, l2=l2)
        assert p.dtype == m.dtype == v.dtype == dtype
        found.append((p, m, v))
    for compiled, reference in zip(*found, strict=True):
        np.testing.assert_allclose(compiled, reference, rtol=tolerance, atol=tolerance)


def test_decay_is_zero_by_default():
    found = []
    for options in ({}, {"decay": 0.0, "l2": 0.0}):
        p, m, v = state(5)
        adamw(p, gradients(5)[0], m, v, np.empty(5), step=1, **OPTIONS, **options)
        found.append(p)
    np.testing.assert_array_equal(*found)


def test_small_arrays_do_not_wait_for_a_compiler(monkeypatch):
    pytest.importorskip("numba")
    ran = []
    monkeypatch.setattr(module, "adamw_reference", lambda p, *rest: ran.append(p.size))
    for n in (SMALL - 1, SMALL):
        adamw(*state(n)[:1], gradients(n)[0], *state(n)[1:], np.empty(n), step=1, **OPTIONS)
    assert ran == [SMALL - 1]
    monkeypatch.setattr(module, "compiled", lambda *arrays: False)
    adamw(*state(SMALL)[:1], gradients(SMALL)[0], *state(SMALL)[1:], np.empty(SMALL), step=1, **OPTIONS)
    assert ran == [SMALL - 1, SMALL]


def test_other_library(other_library):
    here, there = [[f(a) for a in state(5)] for f in (np.copy, other_library)]
    g = gradients(5)[0]
    adamw(here[0], g, *here[1:], np.empty(5), step=2, **OPTIONS, decay=0.1, l2=0.2)
    adamw(
        there[0],
        other_library(g),
        *there[1:],
        other_library(np.empty(5)),
        step=2,
        **OPTIONS,
        decay=0.1,
        l2=0.2,
    )
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b.get())
