"""What a case of the table is, and the checks that every case must pass."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, engine
from minattn.testing import check_grads

from .inputs import Sample, Samples

try:
    import torch
except ImportError:  # the other checks still run
    torch = None

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Case:
    """A function of ours, PyTorch's counterpart, and inputs for both.

    Attributes
    ----------
    covers : str
        Public name, with a remark after a space where several cases share it.
    ours, theirs : callable
        Called as ``f(*arrays, **options)``.
    samples : callable
        From a Generator to the samples.
    order : int
        Order up to which derivatives are checked; 0 for functions without a derivative.
    exact : bool
        Whether the derivative is that of the value (not so for a straight-through estimator).
    empty : bool
        Whether inputs of size 0 make sense.
    """

    covers: str
    ours: Callable
    theirs: Callable
    samples: Samples
    order: int = 2
    exact: bool = True
    empty: bool = True

    @property
    def name(self) -> str:
        return self.covers.split()[0]

    def draw(self) -> list[Sample]:
        return list(self.samples(np.random.default_rng(zlib.crc32(self.covers.encode()))))

    def __str__(self) -> str:
        return self.covers.replace(" ", "-")


def each(cases: list[Case]) -> Any:
    """Run a test on every case."""
    return pytest.mark.parametrize("case", cases, ids=str)


def outputs_of(result: Any) -> list:
    """The outputs of a function that returns one, or several."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


def raw(x: Any) -> np.ndarray:
    return np.asarray(x.data if isinstance(x, Tensor) else x)


def differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad and x.dtype.kind in "fc"


def random_like(rng: np.random.Generator, a: np.ndarray) -> np.ndarray:
    u = rng.standard_normal(a.shape)
    return (u + 1j * rng.standard_normal(a.shape) if a.dtype.kind == "c" else u).astype(a.dtype)


def described(sample: Sample) -> str:
    arrays, options = sample
    return f"shapes {[a.shape for a in arrays]}, strides {[a.strides for a in arrays]}, options {options}"


def to_torch(x: Any, requires_grad: bool = False) -> Any:
    if isinstance(x, (np.ndarray, np.generic)):
        return torch.tensor(np.array(x, order="C").reshape(x.shape), requires_grad=requires_grad)
    return tuple(map(to_torch, x)) if isinstance(x, tuple) else x


def check_against_torch(case: Case) -> None:
    """Values and gradients, with random cotangents, equal PyTorch's on every sample."""
    if torch is None:
        pytest.skip("PyTorch is not installed")
    rng = np.random.default_rng(0)
    for sample in case.draw():
        arrays, options = sample
        where = described(sample)
        xs = [Tensor(a, requires_grad=case.order > 0) for a in arrays]
        ts = [to_torch(a, requires_grad=case.order > 0) for a in arrays]
        ys = outputs_of(case.ours(*xs, **options))
        zs = outputs_of(case.theirs(*ts, **{k: to_torch(v) for k, v in options.items()}))
        assert len(ys) == len(zs), where
        for y, z in zip(ys, zs, strict=True):
            assert raw(y).shape == tuple(z.shape), where
            want = np.asarray(z.detach().resolve_conj())
            assert raw(y).dtype.kind == want.dtype.kind, where
            np.testing.assert_allclose(raw(y), want, rtol=TOLERANCE, atol=TOLERANCE, err_msg=where)
        if not case.order:
            continue
        kept = [(y, z) for y, z in zip(ys, zs, strict=True) if differentiable(y)]
        assert kept, where
        us = [random_like(rng, raw(y)) for y, _ in kept]
        got = ag.grad([y for y, _ in kept], xs, us, allow_unused=True)
        want = torch.autograd.grad([z for _, z in kept], ts, [to_torch(u) for u in us], allow_unused=True)
        for i, (g, w, x) in enumerate(zip(got, want, xs, strict=True)):
            at = f"gradient {i}; {where}"
            g = np.zeros(x.shape) if g is None else g.data
            w = np.zeros(x.shape) if w is None else w.resolve_conj().numpy()
            assert g.shape == x.shape, at
            np.testing.assert_allclose(g, w, rtol=TOLERANCE, atol=TOLERANCE, err_msg=at)


def check_derivatives(case: Case, samples: int = 4, size: int = 24) -> None:
    """Derivatives up to the case's order against finite differences, on some of the smaller samples."""
    rng = np.random.default_rng(1)
    fit = [s for s in case.draw() if all(0 < a.size <= size for a in s[0]) and max(a.size for a in s[0]) > 1]
    assert len(fit) >= samples, "too few small samples"
    for k in rng.choice(len(fit), samples, replace=False):
        arrays, options = fit[k]

        def one_output(*xs: Tensor, options: dict = options) -> Tensor:
            """All differentiable outputs in one vector."""
            ys = [y for y in outputs_of(case.ours(*xs, **options)) if isinstance(y, Tensor)]
            return ag.cat([ag.reshape(y, raw(y).size) for y in ys])

        check_grads(one_output, *map(np.copy, arrays), order=case.order, rng=rng)


def check_array_in_array_out(case: Case) -> None:
    """Plain arrays give plain arrays, of the values that Tensors give; the arguments stay as they were."""
    for sample in case.draw():
        arrays, options = sample
        before = [a.copy() for a in arrays]
        plain = outputs_of(case.ours(*arrays, **options))
        wrapped = outputs_of(case.ours(*map(Tensor, arrays), **options))
        for p, w in zip(plain, wrapped, strict=True):
            assert isinstance(p, (np.ndarray, np.generic)), described(sample)
            np.testing.assert_array_equal(p, raw(w))
        for a, b in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"an argument was changed; {described(sample)}")


def check_single_precision(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 in: float32 out, and every derivative answers in the dtype of its argument, twice over."""
    pull_back = engine._pull_back

    def watched(t: Tensor, g: Any, create_graph: bool) -> tuple:
        parts = pull_back(t, g, create_graph)
        parts = tuple(
            p() if callable(p) and differentiable(a) else p for a, p in zip(t._args, parts, strict=True)
        )
        for a, p in zip(t._args, parts, strict=True):
            if isinstance(a, Tensor) and a.requires_grad and p is not None:
                width = {np.dtype(d.char.lower()) for d in (a.dtype, p.dtype)}
                assert width == {np.dtype(np.float32)}, (
                    f"derivative of {t._op.__name__}: {p.dtype} for {a.dtype}"
                )
        return parts

    monkeypatch.setattr(engine, "_pull_back", watched)
    rng = np.random.default_rng(2)
    for sample in case.draw()[::3]:
        arrays, options = sample
        narrow = [a.astype(np.complex64 if a.dtype.kind == "c" else np.float32) for a in arrays]
        xs = [Tensor(a, requires_grad=case.order > 0) for a in narrow]
        ys = outputs_of(case.ours(*xs, **options))
        for y in ys:
            assert raw(y).dtype in (np.float32, np.complex64) or raw(y).dtype.kind in "iub", described(sample)
        ys = [y for y in ys if differentiable(y)]
        if case.order:
            us = [Tensor(random_like(rng, raw(y)), requires_grad=True) for y in ys]
            ag.grad(ys, xs, us, retain_graph=True, allow_unused=True)
            first = ag.grad(ys, xs, us, create_graph=True, allow_unused=True)
            first = [g for g in first if g is not None and g.requires_grad]
            assert all(raw(g).dtype in (np.float32, np.complex64) for g in first), described(sample)
            again = (
                ag.grad(first, us, [random_like(rng, raw(g)) for g in first], allow_unused=True)
                if first
                else ()
            )
            assert all(raw(g).dtype in (np.float32, np.complex64) for g in again if g is not None), described(
                sample
            )


def check_other_library(case: Case, bring: Any) -> None:
    """The same lines run on arrays of another library (see `elsewhere.py`), with the same results."""
    rng = np.random.default_rng(3)
    for sample in case.draw()[::2]:
        arrays, options = sample
        found = []
        for move in (lambda x: x, bring):
            xs = [Tensor(move(a), requires_grad=case.order > 0) for a in arrays]
            ys = outputs_of(case.ours(*xs, **{k: move(v) for k, v in options.items()}))
            kept = [y for y in ys if differentiable(y)]
            if not found:
                us = [random_like(rng, y.data) for y in kept]
            gs = ag.grad(kept, xs, [move(u) for u in us], allow_unused=True) if case.order else []
            found.append([*ys, *gs])
        for here, there in zip(*found, strict=True):
            if here is None or there is None:
                assert here is there, described(sample)
                continue
            data = there.data if isinstance(there, Tensor) else there
            assert type(data).__module__ == "cupy", f"came back as {type(data)}; {described(sample)}"
            np.testing.assert_allclose(
                data.get(), raw(here), rtol=1e-12, atol=1e-12, err_msg=described(sample)
            )
            assert data.dtype == raw(here).dtype


def check_samples(case: Case) -> None:
    """The inputs are as varied as the table promises."""
    samples = case.draw()
    arrays = [a for s in samples for a in s[0]]
    assert len(samples) >= 20
    assert len({(*(a.shape for a in s[0]), str(s[1])) for s in samples}) >= 12, "too few different inputs"
    assert any(1 in a.shape for a in arrays), "no axis of size 1"
    assert any(a.size == 0 for a in arrays) == case.empty, "arrays of size 0"
    assert any(not a.flags.c_contiguous for a in arrays), "no view that is transposed, strided or backwards"
    assert any(s < 0 for a in arrays for s in a.strides), "no view that runs backwards"
