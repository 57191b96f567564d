"""Scans, chunked linear attention, the delta rule and causal convolutions, forwards and backwards: ours with
Numba and SciPy, ours in NumPy, and PyTorch eager doing the same computation.

    python benchmarks/scans_cpu.py [--json FILE] [--repeats 9] [--threads 1] [--only NAME]

float32. PyTorch's form is a loop over positions for the scans (it has no scan of its own), the same chunks
and products of matrices for linear attention and the delta rule, `torch.fft` for the long convolution and
`conv1d` for the short one. Outputs and gradients are compared first; the runs alternate in one process, so
that whatever else the machine is doing falls on all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

import numba
import numpy as np
import scipy.fft  # noqa: F401  loaded before it is hidden
import torch
from report import report

from minattn import kernels
from minattn.autograd import Tensor
from minattn.kernels import dispatch

CHUNK = 64


def torch_linear_scan(a, x, h):
    out = []
    for a_t, x_t in zip(a.unbind(1), x.unbind(1), strict=True):  # backwards, slices would each fill zeros
        h = a_t * h + x_t
        out.append(h)
    return torch.stack(out, 1)


def torch_selective_scan(x, dt, A, B, C):
    decay = torch.exp(dt[..., None] * A)
    written = (dt * x)[..., None] * B[:, :, None]
    h, out = torch.zeros_like(decay[:, 0]), []
    for a, u, c in zip(decay.unbind(1), written.unbind(1), C.unbind(1), strict=True):
        h = a * h + u
        out.append(torch.einsum("bds,bs->bd", h, c))
    return torch.stack(out, 1)


def torch_chunks(q, k, v, decay, beta=None):
    """The formulas of `minattn/kernels/linear_attention.py`, products of decays by sums of logarithms."""
    S, out = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3]), []
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    parts = [q, k, v, decay] if beta is None else [q, k, v, decay, beta]
    for Q, K, V, a, *b in zip(*(z.split(CHUNK, 2) for z in parts), strict=True):
        log = a.log().cumsum(-1)
        c = log.exp()[..., None]
        L = (log[..., None] - log[..., None, :]).masked_fill(~lower, -torch.inf).exp()
        U = V
        if b:
            b = b[0][..., None]
            G = torch.eye(CHUNK) + b * (K @ K.mT * L).tril(-1)
            U = torch.linalg.solve_triangular(G, b * (V - c * (K @ S)), upper=False, unitriangular=True)
        out.append(c * (Q @ S) + (Q @ K.mT * L) @ U)
        S = c[:, :, -1:] * S + K.mT @ (L[:, :, -1, :, None] * U)
    return torch.cat(out, 2)


def torch_long_conv(x, weight):
    n = 2 * x.shape[1]
    return torch.fft.irfft(torch.fft.rfft(x, n, 1) * torch.fft.rfft(weight.T, n, 0), n, 1)[:, : x.shape[1]]


def torch_short_conv(x, weight):
    padded = torch.nn.functional.pad(x.mT, (weight.shape[1] - 1, 0))
    return torch.nn.functional.conv1d(padded, weight.flip(1)[:, None], groups=len(weight)).mT


def delta_rule(q, k, v, decay, beta):
    return kernels.delta_rule(q, k, v, beta, decay, chunk=CHUNK)


def cases(rng: np.random.Generator) -> dict[str, tuple[Callable, Callable, list[np.ndarray]]]:
    """By title: our function, PyTorch's, and arguments."""
    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def uniform(low, high, *shape):
        return rng.uniform(low, high, shape).astype(np.float32)

    q, k, v = (normal(2, 4, 1024, 64) for _ in range(3))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    decay, beta = uniform(0.9, 1, 2, 4, 1024), uniform(0, 1, 2, 4, 1024)
    return {
        "linear_scan, B 4, N 1024, D 256":
            (kernels.linear_scan, torch_linear_scan,
             [uniform(0.5, 1, 4, 1024, 256), normal(4, 1024, 256), normal(4, 256)]),
        "selective_scan, B 2, N 512, D 256, S 16":
            (kernels.selective_scan, torch_selective_scan,
             [normal(2, 512, 256), uniform(0, 0.2, 2, 512, 256), -uniform(0.5, 4, 256, 16),
              normal(2, 512, 16), normal(2, 512, 16)]),
        "linear_attention, B 2, H 4, N 1024, D 64, chunk 64":
            (kernels.linear_attention, torch_chunks, [q, k, v, decay]),
        "delta_rule, B 2, H 4, N 1024, D 64, chunk 64": (delta_rule, torch_chunks, [q, k, v, decay, beta]),
        "long_conv, B 2, N 2048, D 128, K 2048":
            (kernels.long_conv, torch_long_conv, [normal(2, 2048, 128), normal(128, 2048)]),
        "short_conv, B 4, N 1024, D 256, K 4":
            (kernels.short_conv, torch_short_conv, [normal(4, 1024, 256), normal(256, 4)]),
    }


@contextmanager
def numpy_alone():
    """Our kernels run in NumPy while this lasts."""
    numba_before, scipy_before = dispatch.have_numba, sys.modules.get("scipy.fft")
    dispatch.have_numba, sys.modules["scipy.fft"] = (lambda: False), None
    try:
        yield
    finally:
        dispatch.have_numba, sys.modules["scipy.fft"] = numba_before, scipy_before


def calls_of(ours: Callable, theirs: Callable, args: list[np.ndarray], g: np.ndarray) -> dict[str, Callable]:
    """Forwards, and forwards and backwards, of the three; each returns its output and gradients."""
    tensors = [torch.from_numpy(a) for a in args]
    leaves, g_torch = [t.clone().requires_grad_() for t in tensors], torch.from_numpy(g)

    def train():
        ts = [Tensor(a, requires_grad=True) for a in args]
        out = ours(*ts)
        out.backward(g)
        return [out.data, *(t.grad for t in ts)]

    def train_numpy():
        with numpy_alone():
            return train()

    def forward_numpy():
        with numpy_alone():
            return [ours(*args)]

    def forward_torch():
        with torch.no_grad():
            return [theirs(*tensors).numpy()]

    def train_torch():
        out = theirs(*leaves)
        return [z.detach().numpy() for z in (out, *torch.autograd.grad(out, leaves, g_torch))]

    return {"forwards": {"ours": lambda: [ours(*args)], "ours, NumPy": forward_numpy,
                         "torch eager": forward_torch},
            "and backwards": {"ours": train, "ours, NumPy": train_numpy, "torch eager": train_torch}}


def measure(calls: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, in turn; the first round warms up and compares results."""
    found = {name: call() for name, call in calls.items()}
    for name, got in found.items():
        for y, z in zip(got, found["torch eager"], strict=True):
            np.testing.assert_allclose(y, z, atol=1e-3 * np.abs(z).max(), err_msg=name)
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
    rng = np.random.default_rng(0)
    for title, (ours, theirs, inputs) in cases(rng).items():
        if args.only not in title:
            continue
        g = rng.standard_normal(ours(*inputs).shape).astype(np.float32)
        for direction, calls in calls_of(ours, theirs, inputs, g).items():
            report(f"{title}, {direction}, {args.threads} thread(s)", measure(calls, args.repeats),
                   ours="ours", json=args.json)


if __name__ == "__main__":
    main()
