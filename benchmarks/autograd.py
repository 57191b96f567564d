"""What a graph costs beside PyTorch eager: forward and backward of tiny and of medium graphs, and the ratio.

    python benchmarks/autograd.py [--json FILE] [--repeats 9]

On 4×4 matrices the arithmetic takes next to no time: what is measured is recording, sorting and sweeping.
Both start from the same arrays in float32 on one thread; the runs alternate in one process, so that whatever
else the machine is doing falls on both.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy reads them

import numpy as np
import torch
from report import report

import minattn as mn


def chain(x):
    for _ in range(20):
        x = x * 0.9 + 0.1
    return x.sum()


def mlp(x, w, b, v):
    return ((x @ w + b).tanh() @ v).softmax(-1)[..., 0].sum()


def attention(q, k, v):
    return (((q @ k.mT) * 0.125).softmax(-1) @ v).sum()


GRAPHS: dict[str, tuple[Callable, list[tuple[int, ...]]]] = {
    "((x*x+x)@x).sum(), 4x4": (lambda x: ((x * x + x) @ x).sum(), [(4, 4)]),
    "20 times x*0.9+0.1, 4x4": (chain, [(4, 4)]),
    "perceptron with softmax, batch 4, 8 units": (mlp, [(4, 4), (4, 8), (8,), (8, 3)]),
    "attention, 1 head, N=8, D=4": (attention, [(1, 1, 8, 4)] * 3),
    "((x*x+x)@x).sum(), 256x256": (lambda x: ((x * x + x) @ x).sum(), [(256, 256)]),
    "perceptron with softmax, batch 256, 256 units": (mlp, [(256, 256), (256, 256), (256,), (256, 64)]),
    "attention, 4 heads, N=128, D=64": (attention, [(4, 4, 128, 64)] * 3),
}


def step(f: Callable, leaves: list) -> Callable:
    """Forward and backward, the gradients forgotten first."""

    def run() -> None:
        for x in leaves:
            x.grad = None
        f(*leaves).backward()

    return run


def seconds(run: Callable, number: int) -> float:
    """Mean time of one run."""
    start = time.perf_counter()
    for _ in range(number):
        run()
    return (time.perf_counter() - start) / number


def measure(f: Callable, shapes: list[tuple[int, ...]], repeats: int) -> dict[str, list[float]]:
    """Times of interleaved runs of ours and of PyTorch's, their gradients having been compared first."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    ours = [mn.Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    runs = {"minattn": step(f, ours), "PyTorch": step(f, theirs)}
    for run in runs.values():
        run()
    for x, t in zip(ours, theirs, strict=True):
        scale = np.abs(x.grad).max()
        np.testing.assert_allclose(x.grad / scale, t.grad.numpy() / scale, atol=1e-5)
    number = max(1, int(0.05 / seconds(runs["PyTorch"], 10)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, number))
    return times


def main() -> None:
    """Measure every graph and print ours, PyTorch's and the ratio."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", metavar="FILE", help="write the figures with machine, versions and date")
    options.add_argument("--repeats", type=int, default=9)
    args = options.parse_args()
    torch.set_num_threads(1)
    for title, (f, shapes) in GRAPHS.items():
        report(title, measure(f, shapes, args.repeats), ours="minattn", unit="us", json=args.json)


if __name__ == "__main__":
    main()
