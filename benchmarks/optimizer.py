"""An AdamW step, clipping, and a CTC loss with its gradient: ours, PyTorch's, and the ratio.

    python benchmarks/optimizer.py [--json FILE] [--repeats 40] [--threads 2]

The parameters are those of nanoGPT's CPU configuration (0.8 million in 27 tensors, float32). Runs alternate
in one process, so that whatever else the machine does falls on both; results are compared first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from report import report

from minattn.autograd import Tensor, log_softmax
from minattn.nn import AdamW, clip_grad_norm_, ctc_loss

D = 128
BLOCK = [(3 * D, D), (D, D), (4 * D, D), (D, 4 * D), (D,), (D,)]
SHAPES = [(65, D), (64, D), *BLOCK * 4, (D,)]


def optimizers() -> tuple[dict[str, Callable], dict[str, Callable]]:
    """A step, and clipping, by each library, on the same parameters and gradients."""
    rng = np.random.default_rng(0)
    ours = [Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True) for shape in SHAPES]
    kinds = {"ours": None, "torch for-loop": {"foreach": False}, "torch foreach": {"foreach": True},
             "torch fused": {"fused": True}}
    theirs = {kind: [torch.nn.Parameter(torch.tensor(p.data)) for p in ours] for kind in list(kinds)[1:]}
    for p, *others in zip(ours, *theirs.values(), strict=True):
        p.grad = rng.standard_normal(p.shape).astype(np.float32)
        for q in others:
            q.grad = torch.tensor(p.grad)
    steps = {"ours": AdamW(ours, lr=1e-3, weight_decay=0.1).step}
    for kind, params in theirs.items():
        steps[kind] = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1, **kinds[kind]).step
    for step in steps.values():
        step()
    for p, *others in zip(ours, *theirs.values(), strict=True):
        for q in others:
            np.testing.assert_allclose(p.data, q.detach().numpy(), atol=1e-6)
    clipped = theirs["torch foreach"]
    clips = {"ours": lambda: clip_grad_norm_(ours, 1.0),
             "torch": lambda: torch.nn.utils.clip_grad_norm_(clipped, 1.0)}
    return steps, clips


def ctc(T: int, L: int) -> dict[str, Callable]:
    """The loss of 16 targets of L labels among 30 classes in T frames, and its gradient."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, 16, 30)).astype(np.float32)
    targets, frames, lengths = rng.integers(1, 30, (16, L)), np.full(16, T), np.full(16, L)

    def our_call() -> np.ndarray:
        leaf = Tensor(x, requires_grad=True)
        ctc_loss(log_softmax(leaf, -1), targets, frames, lengths).backward()
        return leaf.grad

    def their_call() -> np.ndarray:
        leaf = torch.tensor(x, requires_grad=True)
        given = map(torch.tensor, (targets, frames, lengths))
        torch.nn.functional.ctc_loss(leaf.log_softmax(-1), *given).backward()
        return leaf.grad.numpy()

    np.testing.assert_allclose(our_call(), their_call(), atol=1e-5)
    return {"ours": our_call, "torch": their_call}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps, clips = optimizers()
    size = sum(int(np.prod(shape)) for shape in SHAPES)
    jobs = {f"AdamW, {size:,} parameters in {len(SHAPES)} tensors": steps,
            "clipping of their gradients": clips,
            "CTC, 100 frames, 20 labels": ctc(100, 20), "CTC, 400 frames, 60 labels": ctc(400, 60)}
    for title, calls in jobs.items():
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(-3, args.repeats):  # the first rounds warm up
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if repeat >= 0:
                    times[name].append(time.perf_counter() - start)
        report(title, times, ours="ours", json=args.json)


if __name__ == "__main__":
    main()
