"""One token against a long cache: bytes of keys and values a second, beside those that the machine can read.

    python benchmarks/decode_cpu.py [--json FILE] [--repeats 9] [--threads 2]

32 query heads, 8 key heads, 32,768 keys, D = 128, float32: 268 MB. "reading" adds up the same bytes, divided
among the threads; nothing that needs all of them can be faster. PyTorch is scaled_dot_product_attention with
grouped heads. All alternate in one process.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from numba import njit, prange
from report import report

from minattn.kernels.lean import lean_attention_decode, split_kv_decode

HEADS, KEY_HEADS, KEYS, D = 32, 8, 32768, 128
PARTS = 64


@njit(fastmath=True)
def added(x: np.ndarray) -> np.float32:
    """The sum of one part."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i]
    return total


@njit(parallel=True)
def reading(x: np.ndarray) -> float:
    """The sum of all parts."""
    totals = np.zeros(PARTS)
    for p in prange(PARTS):
        totals[p] = added(x[p * x.size // PARTS : (p + 1) * x.size // PARTS])
    return totals.sum()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the result here")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import numba

    numba.set_num_threads(min(args.threads, numba.config.NUMBA_NUM_THREADS))
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, HEADS, 1, D), dtype=np.float32)
    kv = rng.standard_normal((2, 1, KEY_HEADS, KEYS, D), dtype=np.float32)
    k, v = kv
    theirs = [torch.from_numpy(x) for x in (q, k, v)]

    def sdpa() -> np.ndarray:
        with torch.no_grad():
            return torch.nn.functional.scaled_dot_product_attention(*theirs, enable_gqa=True).numpy()

    calls = {"lean": lambda: lean_attention_decode(q, k, v), "split": lambda: split_kv_decode(q, k, v),
             "torch": sdpa, "reading": lambda: reading(kv.reshape(-1))}
    np.testing.assert_allclose(calls["lean"](), sdpa(), rtol=1e-3, atol=1e-5)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-1, args.repeats):  # the first round warms up
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat >= 0:
                times[name].append(time.perf_counter() - start)
    found = report(f"decoding, {HEADS} query heads, {KEY_HEADS} key heads, {KEYS} keys, D = {D}", times,
                   ours="lean", json=args.json)
    for name, row in found["results"].items():
        print(f"  {name:8} {kv.nbytes / row['median'] / 1e9:5.1f} GB/s")
    print(f"  share of the machine's reading speed: {1 / found['results']['reading']['ours / this']:.2f}")


if __name__ == "__main__":
    main()
