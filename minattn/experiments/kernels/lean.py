"""How evenly can the decoding of sequences of unequal length be divided?

Counted in tiles, without a clock, so exact: the busiest worker of a stream-K division has ⌈S/G⌉ tiles, and
nothing can have fewer. Against it stand FlashDecoding in one wave (the same number of parts for every head)
and one worker a head, for a processor of 108 workers and tiles of 256 keys.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from minattn.findings import Finding
from minattn.kernels.lean import (
    Piece,
    fixed_split_schedule,
    makespan,
    occupancy,
    one_worker_schedule,
    stream_k_schedule,
)

PAPERS = (197,)
WORKERS, TILE, BATCHES = 108, 256, 200
ONE_LONG = [65536] + [1024] * 7
EIGHT_LONG = [65536] * 8


def tiles(lengths: Sequence[int]) -> list[int]:
    """Tiles of each head."""
    return [-(-n // TILE) for n in lengths]


def ragged(rng: np.random.Generator) -> list[int]:
    """2 to 8 contexts of 256 to 64k keys, uniform in the logarithm."""
    return np.exp(rng.uniform(np.log(256), np.log(65536), rng.integers(2, 9))).astype(int).tolist()


def loads(pieces: Sequence[Piece], workers: int) -> list[int]:
    """Tiles of each worker."""
    found = [0] * workers
    for p in pieces:
        found[p.worker] += p.last - p.first
    return found


def greedy_makespan(parts: Sequence[int], workers: int) -> int:
    """Tiles of the busiest worker when each part, the largest first, goes to whoever is free first."""
    busy = [0] * workers
    for part in sorted(parts, reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + part)
    return max(busy)


def best_free_split(counts: Sequence[int], most: int = 128) -> tuple[int, int]:
    """The number of parts a head, the same for all, with the least greedy makespan, and that makespan."""
    found = []
    for splits in range(1, most + 1):
        parts = [p.last - p.first for p in fixed_split_schedule(counts, splits * len(counts))]
        found.append((greedy_makespan(parts, WORKERS), splits))
    span, splits = min(found)
    return splits, span


def spans(lengths: Sequence[int]) -> dict[str, int]:
    """The makespan of each way to divide these contexts."""
    ways: dict[str, Callable] = {"lean": stream_k_schedule, "split": fixed_split_schedule,
                                 "single": one_worker_schedule}
    return {name: makespan(way(tiles(lengths), WORKERS)) for name, way in ways.items()}


def bounds(rng: np.random.Generator, seed: int) -> Finding:
    """What holds of every division, counted on random batches."""
    worst_gap, worst_occupancy, above = 0, np.inf, 0
    for _ in range(BATCHES):
        counts, workers = tiles(ragged(rng)), int(rng.integers(1, 200))
        pieces, total = stream_k_schedule(counts, workers), sum(counts)
        shares = loads(pieces, workers)
        worst_gap = max(worst_gap, max(shares) - min(shares))
        worst_occupancy = min(worst_occupancy, occupancy(pieces, workers) / (total / (total + workers)))
        above += makespan(pieces) - -(-total // workers)
    numbers = {"gap": worst_gap, "occupancy": float(worst_occupancy), "above": above}
    return Finding(197, "A stream-K division is as even as whole tiles allow: loads differ by one tile at "
                   "most, the makespan is ⌈S/G⌉, the occupancy at least S/(S + G).", numbers,
                   [("gap", "<=", 1), ("occupancy", ">=", 1), ("above", "==", 0)], seed)


def against_others(rng: np.random.Generator, seed: int) -> Finding:
    """Makespans beside those of the other two ways."""
    long, equal = spans(ONE_LONG), spans(EIGHT_LONG)
    ratios = [s["split"] / s["lean"] for s in (spans(ragged(rng)) for _ in range(BATCHES))]
    splits, free = best_free_split(tiles(ONE_LONG))
    numbers = {"lean_long": long["lean"], "split_long": long["split"], "median_ratio": median(ratios),
               "lean_equal": equal["lean"], "single_equal": equal["single"], "free_long": free,
               "free_splits": splits}
    return Finding(197, "The one-wave fixed split takes over 5 times as long with one long context among "
                   "short ones, 1.5 times in the median of random batches; one worker a head takes over 10 "
                   "times as long on 8 long heads.", numbers,
                   [("split_long / lean_long", ">=", 5), ("median_ratio", ">=", 1.5),
                    ("single_equal / lean_equal", ">=", 10)], seed)


def run(seed: int) -> list[Finding]:
    """Both findings, on batches drawn from `seed`."""
    rng = np.random.default_rng(seed)
    return [bounds(rng, seed), against_others(rng, seed)]
