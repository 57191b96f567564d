"""Tiled attention on the CPU: against PyTorch's, with masks by tiles, and with score functions compiled in.

    python benchmarks/attention_cpu.py [--json FILE] [--repeats 7] [--threads 2] [--only sdpa|masks|mods]

float32. Everything of one comparison alternates in one process, so that whatever else the machine is doing
falls on all. Forward is without a graph; forward + backward ends with the gradients of q, k and v.

sdpa   scaled_dot_product_attention, full and causal
masks  a sliding window of 256 keys and a tenth of all tiles at N = 8192, against our own full attention times
       the share of tiles computed, and against flex_attention, compiled
mods   score functions against our own plain attention, forward + backward
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from report import report
from torch.nn import functional

import minattn as mn
from minattn import Tensor
from minattn.attention import alibi_slopes, sliding_window
from minattn.attention.masks import block_mask
from minattn.kernels import flash_attention
from minattn.kernels.blocks import BlockMask
from minattn.kernels.mods import like

SHAPES = ((1, 8, 1024, 64), (1, 8, 4096, 64), (1, 8, 4096, 128), (4, 12, 256, 64))
LONG = (1, 4, 8192, 64)
Calls = dict[str, Callable[[], object]]


def interleaved(calls: Calls, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, in turn; a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-1, repeats):
        for name, call in calls.items():
            time.sleep(0.02)  # until the idle threads of whoever came before have stopped spinning
            start = time.perf_counter()
            call()
            if repeat >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def arrays(shape: tuple[int, ...]) -> list[np.ndarray]:
    """q, k, v and a cotangent."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]


def ours(inputs: list[np.ndarray], backward: bool, **options: object) -> Callable[[], object]:
    """A call of ours."""
    *qkv, g = inputs

    def forward() -> object:
        return flash_attention(*qkv, **options)

    def both() -> object:
        leaves = [Tensor(x, requires_grad=True) for x in qkv]
        flash_attention(*leaves, **options).backward(g)
        return [x.grad for x in leaves]

    return both if backward else forward


def theirs(inputs: list[np.ndarray], backward: bool, attend: Callable) -> Callable[[], object]:
    """A call of PyTorch."""
    *qkv, g = map(torch.from_numpy, inputs)

    def forward() -> object:
        with torch.no_grad():
            return attend(*qkv)

    def both() -> object:
        leaves = [x.clone().requires_grad_() for x in qkv]
        attend(*leaves).backward(g)
        return [x.grad for x in leaves]

    return both if backward else forward


def agree(a: Callable, b: Callable) -> None:
    """Stop if the two do not compute the same."""
    for x, y in zip(np.atleast_1d(_listed(a())), np.atleast_1d(_listed(b())), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def _listed(found: object) -> list[np.ndarray]:
    return [np.asarray(x) for x in (found if isinstance(found, list) else [found])]


def speed(times: dict[str, list[float]], peer: str) -> float:
    """How many times as fast as `peer` we are: the median over neighbouring runs."""
    return statistics.median(b / a for a, b in zip(times["ours"], times[peer], strict=True))


def sdpa(repeats: int, json: str | None) -> None:
    """Against PyTorch's scaled_dot_product_attention."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for shape in SHAPES:
        for causal in (False, True):
            for backward in (False, True):
                inputs = arrays(shape)
                attend = functools.partial(functional.scaled_dot_product_attention, is_causal=causal)
                calls = {"ours": ours(inputs, backward, causal=causal),
                         "torch": theirs(inputs, backward, attend)}
                agree(*calls.values())
                times = interleaved(calls, repeats)
                kind = f"{'causal' if causal else 'full'}, forward{' + backward' if backward else ''}"
                report(f"attention {shape}, {kind}", times, ours="ours", json=json)
                found[causal].append(speed(times, "torch"))
    every = found[False] + found[True]
    print("\nspeed against PyTorch, geometric mean: "
          f"{statistics.geometric_mean(every):.2f}; causal {statistics.geometric_mean(found[True]):.2f}, "
          f"full {statistics.geometric_mean(found[False]):.2f}; least {min(every):.2f}")


def tenth(N: int) -> np.ndarray:
    """A tenth of all tiles of 128, the diagonal among them."""
    n = N // 128
    return (np.random.default_rng(1).random((n, n)) < 0.1 - 1 / n) | np.eye(n, dtype=bool)


def masks(repeats: int, json: str | None) -> None:
    """Masks by tiles."""
    inputs = arrays(LONG)
    N, tiles = LONG[2], tenth(LONG[2])
    table = torch.from_numpy(tiles)
    cases = {
        "window of 256": (block_mask(sliding_window(256), *LONG[:2], N, N),
                          lambda b, h, i, j: (i - 256 < j) & (j <= i)),
        "a tenth of the tiles": (
            BlockMask(lambda start, stop: np.repeat(tiles[start // 128], 128)[None, None, None], N, N),
            lambda b, h, i, j: table[i // 128, j // 128]),
    }
    for name, (blocks, mask_mod) in cases.items():
        for backward in (False, True):
            calls = {"ours": ours(inputs, backward, block_mask=blocks), "all tiles": ours(inputs, backward)}
            try:
                calls["flex"] = theirs(inputs, backward, flex(mask_mod, N))
                agree(calls["ours"], calls["flex"])
            except Exception as error:  # no compiler, or a pass that PyTorch does not have on the CPU
                calls.pop("flex", None)
                reason = str(error).splitlines()[0]
                print(f"\nflex_attention does not run here: {type(error).__name__}: {reason}")
            times = interleaved(calls, repeats)
            report(f"{name}, {LONG}, {'forward + backward' if backward else 'forward'}", times, ours="ours",
                   json=json)
            print(f"  share of tiles {blocks.density:.4f}; share of the time × speed: "
                  f"{speed(times, 'all tiles') * blocks.density:.2f}")


def flex(mask_mod: Callable, N: int) -> Callable:
    """PyTorch's flex_attention, compiled, with the mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(mask_mod, None, None, N, N, device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def mods(repeats: int, json: str | None) -> None:
    """Score functions."""
    shape = (1, 8, 2048, 64)
    H, _N = shape[1:3]
    slopes = alibi_slopes(H)
    table = np.random.default_rng(2).standard_normal((H, 64)).astype(np.float32)
    variants = {
        "plain": {},
        "ALiBi": {"score_mod": lambda s, b, h, i, j: s - like(slopes[h] * abs(i - j), s)},
        "relative bias": {"score_mod": lambda s, b, h, i, j: s + table[h, (i - j) % 64]},
        "soft-cap": {"score_mod": lambda s, b, h, i, j: 20.0 * mn.tanh(s / 20.0)},
        "sigmoid weights": {"weight": "sigmoid"},
    }
    for backward in (False, True):
        inputs = arrays(shape)
        calls = {name: ours(inputs, backward, **options) for name, options in variants.items()}
        times = interleaved(calls, repeats)
        print(f"\nscore functions {shape}, {'forward + backward' if backward else 'forward'}")
        for name, runs in times.items():
            result = {"ours": runs, "plain": times["plain"]}
            print(f"  {name}: {1 / speed(result, 'plain'):.2f} × plain")
        report(f"score functions {shape}, {'forward + backward' if backward else 'forward'}", times,
               ours="plain", json=json)


PARTS = {"sdpa": sdpa, "masks": masks, "mods": mods}


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the results here")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=PARTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import numba

    numba.set_num_threads(min(args.threads, numba.config.NUMBA_NUM_THREADS))
    for name, part in PARTS.items():
        if args.only in (None, name):
            part(args.repeats, args.json)


if __name__ == "__main__":
    main()
