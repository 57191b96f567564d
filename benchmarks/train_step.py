"""A training step of nanoGPT's CPU configuration: ours, PyTorch eager's, and the ratio.

    python benchmarks/train_step.py [--json FILE] [--repeats 9] [--threads 2] [--size nanogpt|larger]

4 layers, 4 heads, D = 128, N = 64, batch 12 (larger: 6 layers, 6 heads, D = 384, N = 256, batch 8); no
biases, AdamW, gradients clipped at 1, float32. Both start from the same weights and see the same batches; the
steps alternate in one process, so that whatever else the machine is doing falls on both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from report import report
from torch_gpt import TorchGPT

from minattn.nn import AdamW, clip_grad_norm_, decay_groups
from minattn.transformer import GPT, Config

SIZES = {  # configuration, batch, steps of a run
    "nanogpt": (Config(vocab=65, context=64, layers=4, heads=4, d_model=128, bias=False), 12, 20),
    "larger": (Config(vocab=65, context=256, layers=6, heads=6, d_model=384, bias=False), 8, 2),
}


def our_step(model: GPT) -> Callable:
    """One step of training of our model."""
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), lr=1e-3, betas=(0.9, 0.99))

    def step(x: np.ndarray, y: np.ndarray) -> float:
        optimizer.zero_grad()
        loss = model.loss(x, y)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def their_step(model: TorchGPT) -> Callable:
    """One step of training of PyTorch's."""
    params = list(model.parameters())
    groups = [{"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.1},
              {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    def step(x: np.ndarray, y: np.ndarray) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=SIZES, default="nanogpt")
    args = parser.parse_args()
    config, batch, count = SIZES[args.size]
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    ours = GPT(config, rng=rng)
    steps = {"ours": our_step(ours), "torch eager": their_step(TorchGPT(config, ours.state_dict()))}
    batches = [rng.integers(0, config.vocab, (2, batch, config.context)) for _ in range(count)]
    times: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-1, args.repeats):  # the first round warms up
        for name, step in steps.items():
            start = time.perf_counter()
            found = [step(x, y) for x, y in batches]
            if repeat >= 0:
                times[name].append((time.perf_counter() - start) / count)
            losses[name] += found
    apart = max(abs(a / b - 1) for a, b in list(zip(*losses.values(), strict=True))[:count])
    print(f"losses of the first {count} steps agree to {apart:.1e}")
    report(f"training step, {args.size}", times, ours="ours", unit="ms", json=args.json)


if __name__ == "__main__":
    main()
