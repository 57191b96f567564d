"""Fused kernels, forwards and backwards, against PyTorch eager doing the same, at the sizes of a GPT of
width 384: 8 sequences of 256 positions, 6 heads, hidden layers of 1536 (SwiGLU: 1024), 50,257 words.

    python benchmarks/kernels_cpu.py [--json FILE] [--repeats 9] [--threads 1] [--only NAME]

float32. Outputs and gradients are compared first (but for dropout, whose random numbers differ); the runs
alternate in one process, so that whatever else the machine is doing falls on both. Where PyTorch has no such
function it runs the usual form: chunks for linear attention, a loop over positions for scans, `torch.fft`
for the long convolution. A ratio below 1 means that ours takes less time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numba
import numpy as np
import torch
import torch.nn.functional as F
from report import report
from scans_cpu import torch_chunks, torch_linear_scan, torch_long_conv, torch_selective_scan

from minattn import kernels
from minattn.autograd import Tensor, no_grad

B, H, N, D, V = 8, 6, 256, 384, 50_257


def torch_gated(q, k, v, decay):
    """One position after another: exact for any decay, as ours is."""
    S, out = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3]), []
    for a, w, x, r in zip(decay.unbind(2), k.unbind(2), v.unbind(2), q.unbind(2), strict=True):
        S = a[..., None] * S + w[..., None] * x[..., None, :]
        out.append((r[..., None, :] @ S)[..., 0, :])
    return torch.stack(out, 2)


def cases(rng: np.random.Generator) -> dict[str, tuple[Callable, Callable, list[np.ndarray]]]:
    """By title: our function, PyTorch's, and the arguments that have gradients."""
    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    def uniform(low, high, *shape):
        return rng.uniform(low, high, shape).astype(np.float32)

    x, w, b = normal(B, N, D), uniform(0.5, 1.5, D), normal(D)
    ids, chance = rng.integers(0, V, (B, N)), np.random.default_rng(0)
    few = rng.integers(0, 65, (B, N))
    t_ids, t_few = torch.from_numpy(ids), torch.from_numpy(few)
    labels = rng.integers(0, V, 512)
    t_labels = torch.from_numpy(labels)
    q, k, v = (normal(2, H, 512, 64) for _ in range(3))
    k /= 8
    return {
        "layer_norm": (kernels.layer_norm, lambda x, w, b: F.layer_norm(x, (D,), w, b), [x, w, b]),
        "rms_norm": (lambda x, w: kernels.rms_norm(x, w, 1e-6), lambda x, w: F.rms_norm(x, (D,), w, 1e-6),
                     [x, w]),
        "cross_entropy, 512 positions": (lambda z: kernels.cross_entropy(z, labels),
                                         lambda z: F.cross_entropy(z, t_labels), [normal(512, V)]),
        "gelu": (kernels.gelu, F.gelu, [normal(B, N, 4 * D)]),
        "swiglu": (kernels.swiglu, lambda a, b: F.silu(a) * b, [normal(B, N, 1024), normal(B, N, 1024)]),
        "dropout": (lambda x: kernels.dropout(x, 0.1, chance), lambda x: F.dropout(x, 0.1), [x]),
        "embedding, 65 rows": (lambda t: kernels.embedding(t, few), lambda t: F.embedding(t_few, t),
                               [normal(65, D)]),
        "embedding, 50257 rows": (lambda t: kernels.embedding(t, ids), lambda t: F.embedding(t_ids, t),
                                  [normal(V, D)]),
        "topk, 50 of 50257, 64 rows": (lambda x: kernels.topk(x, 50).values, lambda x: x.topk(50).values,
                                       [normal(64, V)]),
        "topk, 64 of 1024, 1536 rows": (lambda x: kernels.topk(x, 64).values, lambda x: x.topk(64).values,
                                        [normal(1536, 1024)]),
        "linear_scan": (kernels.linear_scan, torch_linear_scan, [uniform(0.5, 1, B, N, D), x, normal(B, D)]),
        "selective_scan, S 16": (kernels.selective_scan, torch_selective_scan,
                                 [normal(2, N, D), uniform(0, 0.2, 2, N, D), -uniform(0.5, 4, D, 16),
                                  normal(2, N, 16), normal(2, N, 16)]),
        "linear_attention, B 2, N 512": (kernels.linear_attention, torch_chunks,
                                         [q, k, v, uniform(0.9, 1, 2, H, 512)]),
        "gated_linear_attention, B 2, N 512": (kernels.gated_linear_attention, torch_gated,
                                               [q, k, v, uniform(0.9, 1, 2, H, 512, 64)]),
        "long_conv, K 256": (kernels.long_conv, torch_long_conv, [x, normal(D, N)]),
    }


def calls_of(ours: Callable, theirs: Callable, args: list[np.ndarray]) -> dict[str, dict[str, Callable]]:
    """Forwards, and forwards and backwards, of both; each returns its output and gradients."""
    tensors = [torch.from_numpy(a) for a in args]
    leaves = [t.clone().requires_grad_() for t in tensors]
    shape = np.shape(ours(*args))
    g = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    g_torch = torch.from_numpy(np.asarray(g))

    def train():
        ts = [Tensor(a, requires_grad=True) for a in args]
        out = ours(*ts)
        out.backward(g)
        return [out.data, *(t.grad for t in ts)]

    def forward():
        with no_grad():
            return [np.asarray(ours(*args))]

    def forward_torch():
        with torch.no_grad():
            return [theirs(*tensors).numpy()]

    def train_torch():
        out = theirs(*leaves)
        return [z.detach().numpy() for z in (out, *torch.autograd.grad(out, leaves, g_torch))]

    return {"forwards": {"ours": forward, "torch eager": forward_torch},
            "and backwards": {"ours": train, "torch eager": train_torch}}


def adamw_calls(rng: np.random.Generator) -> dict[str, Callable]:
    """One step for the ten million parameters of the blocks, in one array."""
    p, g = (rng.standard_normal(10_600_000, dtype=np.float32) for _ in range(2))
    m, v, scratch = np.zeros_like(p), np.zeros_like(p), np.empty_like(p)
    q = torch.nn.Parameter(torch.from_numpy(p.copy()))
    q.grad = torch.from_numpy(g)
    fused = torch.optim.AdamW([q], lr=1e-3, weight_decay=0.1, fused=True)
    steps = iter(range(1, 10**9))

    def ours():
        from minattn.kernels.adamw import adamw

        adamw(p, g, m, v, scratch, step=next(steps), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, decay=0.1)
        return [p]

    def theirs():
        fused.step()
        return [q.detach().numpy()]

    return {"ours": ours, "torch fused": theirs}


def measure(calls: dict[str, Callable], repeats: int, same: bool = True) -> dict[str, list[float]]:
    """Seconds of each call, in turn; the first round warms up and compares results."""
    mine, peer = (call() for call in calls.values())
    for y, z in zip(mine, peer, strict=True):
        if same:
            np.testing.assert_allclose(y, z, atol=1e-4 * (1e-6 + np.abs(z).max()))
    del mine, peer
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="part of a title")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    numba.set_num_threads(args.threads)
    rng, after = np.random.default_rng(0), f"{args.threads} thread(s)"
    for title, (ours, theirs, inputs) in cases(rng).items():
        if args.only not in title:
            continue
        for direction, calls in calls_of(ours, theirs, inputs).items():
            report(f"{title}, {direction}, {after}", measure(calls, args.repeats, title != "dropout"),
                   ours="ours", json=args.json)
    if args.only in "adamw":
        report(f"adamw, one step, {after}", measure(adamw_calls(rng), args.repeats), ours="ours",
               json=args.json)


if __name__ == "__main__":
    main()
