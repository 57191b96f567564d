"""Random graphs of a few operations, differentiated twice, equal PyTorch's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor, grad

torch = pytest.importorskip("torch")

UNARY = {
    "sin": lambda x: x.sin(),
    "tanh": lambda x: x.tanh(),
    "transpose": lambda x: x.T,
    "mean": lambda x: x.mean(0, keepdim=True).expand(3, 3),
    "softmax": lambda x: x.softmax(-1),
}
BINARY = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "sub": lambda x, y: x - y,
    "matmul": lambda x, y: x @ y,
}


@st.composite
def programs(draw):
    """Steps of a straight-line program over 3×3 matrices; each names an operation and earlier results."""
    steps = []
    for k in range(draw(st.integers(1, 12))):
        name = draw(st.sampled_from([*UNARY, *BINARY]))
        operands = [draw(st.integers(0, k + 2)) for _ in range(2 if name in BINARY else 1)]
        steps.append((name, operands))
    outputs = draw(st.lists(st.integers(3, len(steps) + 2), min_size=1, max_size=3))
    return steps, outputs


def run(steps, leaves):
    values = list(leaves)
    for name, operands in steps:
        values.append((UNARY | BINARY)[name](*[values[i] for i in operands]))
    return values


@settings(max_examples=80, deadline=None, derandomize=True)
@given(programs(), st.integers(0, 2**32 - 1))
def test_random_graphs_equal_torch(program, seed):
    steps, chosen = program
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((3, 3)) for _ in range(3)]
    ours = run(steps, [Tensor(a, requires_grad=True) for a in arrays])
    theirs = run(steps, [torch.tensor(a, requires_grad=True) for a in arrays])
    us = [rng.standard_normal((3, 3)) for _ in chosen]
    got = grad([ours[i] for i in chosen], ours[:3], us, allow_unused=True, create_graph=True)
    want = torch.autograd.grad(
        [theirs[i] for i in chosen],
        theirs[:3],
        [torch.tensor(u) for u in us],
        allow_unused=True,
        create_graph=True,
    )
    assert [g is None for g in got] == [w is None for w in want]
    for g, w in zip(got, want, strict=True):
        if g is not None:
            np.testing.assert_allclose(g.data, w.detach(), rtol=1e-9, atol=1e-9)
    pairs = [(g, w) for g, w in zip(got, want, strict=True) if g is not None]
    vs = [rng.standard_normal((3, 3)) for _ in pairs]
    if not any(g.requires_grad for g, _ in pairs):
        return
    pairs, vs = zip(*[(p, v) for p, v in zip(pairs, vs, strict=True) if p[0].requires_grad], strict=True)
    got = grad([g for g, _ in pairs], ours[:3], vs, allow_unused=True)
    want = torch.autograd.grad(
        [w for _, w in pairs], theirs[:3], [torch.tensor(v) for v in vs], allow_unused=True
    )
    for g, w in zip(got, want, strict=True):
        g, w = np.zeros((3, 3)) if g is None else g.data, np.zeros((3, 3)) if w is None else w.numpy()
        np.testing.assert_allclose(g, w, rtol=1e-8, atol=1e-8)
