"""One token against a long cache: bytes of keys and values a second, beside those that the machine can read.

    python benchmarks/decode_cpu.py [--json FILE] [--repeats 9] [--threads 2]

32 query heads, 8 key heads, 32,768 keys, D = 128, float32: 268 MB. "reading" adds up the same bytes, divided
among the threads; nothing that needs all of them can be faster. The same keys and values are also held in
blocks of 16 positions in any order, and in codes of 8 and 4 bits, which are fewer bytes. PyTorch is
scaled_dot_product_attention with grouped heads. All alternate in one process.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from numba import njit, prange
from report import report

from minattn.kernels.decode import paged_decode, quantize_cache, quantized_decode
from minattn.kernels.lean import lean_attention_decode, split_kv_decode

HEADS, KEY_HEADS, KEYS, D = 32, 8, 32768, 128
PARTS = 64
BLOCK = 16


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


def in_blocks(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Keys (1, Hk, M, D) as a pool (blocks, Hk, BLOCK, D), in the order that the table says."""
    pool = np.empty((table.size, KEY_HEADS, BLOCK, D), x.dtype)
    pool[table] = x.reshape(KEY_HEADS, table.size, BLOCK, D).swapaxes(0, 1)
    return pool


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
    table = rng.permutation(KEYS // BLOCK)
    pool = [in_blocks(x, table) for x in kv]
    eight, four = quantize_cache(k, v, 8), quantize_cache(k, v, 4)
    theirs = [torch.from_numpy(x) for x in (q, k, v)]

    def sdpa() -> np.ndarray:
        with torch.no_grad():
            return torch.nn.functional.scaled_dot_product_attention(*theirs, enable_gqa=True).numpy()

    calls = {"lean": lambda: lean_attention_decode(q, k, v), "split": lambda: split_kv_decode(q, k, v),
             "paged": lambda: paged_decode(q, *pool, table[None], [KEYS]),
             "8 bits": lambda: quantized_decode(q, eight), "4 bits": lambda: quantized_decode(q, four),
             "torch": sdpa, "reading": lambda: reading(kv.reshape(-1))}
    sizes = {name: kv.nbytes for name in calls} | {"8 bits": eight.memory, "4 bits": four.memory}
    for name in ("lean", "paged"):
        np.testing.assert_allclose(calls[name](), sdpa(), rtol=1e-3, atol=1e-5)
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
        print(f"  {name:8} {sizes[name] / 1e6:6.0f} MB {sizes[name] / row['median'] / 1e9:6.1f} GB/s")
    print(f"  share of the machine's reading speed: {1 / found['results']['reading']['ours / this']:.2f}")


if __name__ == "__main__":
    main()
