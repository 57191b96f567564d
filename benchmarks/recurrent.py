"""GRU and LSTM forwards and backwards: ours, PyTorch's, and the ratio.

    python benchmarks/recurrent.py [--json FILE] [--repeats 15] [--threads 1]

One layer, float32, batch 32, 50 positions, sizes 64 and 256. The runs alternate in one process, so that
whatever else the machine does falls on both; outputs and gradients of the weights are compared first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from report import report

from minattn import nn

BATCH, LENGTH = 32, 50


def build(name: str, size: int) -> dict[str, Callable]:
    """A call forwards and backwards of each library, with the same weights, inputs and cotangent."""
    rng = np.random.default_rng(0)
    ours = getattr(nn, name)(size, size, rng=rng)
    theirs = getattr(torch.nn, name)(size, size, batch_first=True)
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    x, g = (rng.standard_normal((BATCH, LENGTH, size)).astype(np.float32) for _ in range(2))
    x_torch, g_torch = torch.from_numpy(x), torch.from_numpy(g)

    def our_call() -> None:
        ours.zero_grad()
        ours(x)[0].backward(g)

    def their_call() -> None:
        theirs.zero_grad()
        theirs(x_torch)[0].backward(g_torch)

    our_call(), their_call()
    np.testing.assert_allclose(ours(x)[0].data, theirs(x_torch)[0].detach().numpy(), atol=1e-5)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-3, atol=1e-3, err_msg=key)
    return {"ours": our_call, "torch": their_call}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in ("GRU", "LSTM"):
        for size in (64, 256):
            calls = build(name, size)
            times: dict[str, list[float]] = {key: [] for key in calls}
            for repeat in range(-2, args.repeats):  # the first rounds warm up
                for key, call in calls.items():
                    start = time.perf_counter()
                    call()
                    if repeat >= 0:
                        times[key].append(time.perf_counter() - start)
            report(f"{name}, {BATCH} sequences of {LENGTH} positions, sizes {size}", times, ours="ours",
                   json=args.json)


if __name__ == "__main__":
    main()
