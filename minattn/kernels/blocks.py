"""Masks by tiles: which tiles of an attention map are hidden, visible throughout, or visible in part.

        keys →
    ┌────┬────┬────┬────┐
    │ ▞  │    │    │    │      hidden     never computed
    ├────┼────┼────┼────┤      ██ visible  computed without a look at the mask
    │ ██ │ ▞  │    │    │      ▞  partial  computed, then masked by a tile of booleans that is kept
    ├────┼────┼────┼────┤
    │    │ ██ │ ▞  │    │      a sliding window
    └────┴────┴────┴────┘
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minattn.autograd.engine import Array

__all__ = ["BlockMask"]

Visible = Callable[[int, int], Array]

TILE = 128
HIDDEN, VISIBLE = -1, -2


class BlockMask:
    """A mask of N queries and M keys, as a table of tiles; see the picture above.

    Parameters
    ----------
    visible : callable
        ``visible(start, stop)`` says which keys the queries from `start` to `stop` see: booleans that
        broadcast to (B, H, stop − start, M), of 4 axes. It is asked strip by strip, so that the whole map
        never exists.
    N, M : int
        Queries and keys.
    tile : int, optional
        Queries and keys of a tile; `TILE` by default.

    Attributes
    ----------
    table : (B or 1, H or 1, ⌈N / tile⌉, ⌈M / tile⌉) of int32
        HIDDEN, VISIBLE, or the number of a tile in `partial`.
    partial : (tiles, tile, tile) of bool
        Queries by keys; they lie in memory the other way round, as the loops read them.
    runs : (B or 1, H or 1, 2, N) of int32, or None
        If every query sees one run of keys (a window, a document, the past): where it begins and where it
        has ended; (M, 0) for none. Two numbers then say what a partial tile says, and tiles are cut to fit.
    """

    def __init__(self, visible: Visible, N: int, M: int, tile: int | None = None) -> None:
        tile = TILE if tile is None else tile
        self.N, self.M, self.tile = N, M, tile
        parts: list[Array] = []
        strips, runs = [], []
        for start in range(0, N, tile):
            stop = min(start + tile, N)
            seen = visible(start, stop)
            shape = (*seen.shape[:2], stop - start, M)
            seen = np.broadcast_to(seen, shape)
            strips.append(self._strip(seen, parts))
            runs.append(_runs(seen))
        self.table = np.stack(strips, 2) if strips else np.empty((1, 1, 0, -(-M // tile)), np.int32)
        self.partial = (np.stack(parts) if parts else np.empty((0, tile, tile), bool)).swapaxes(1, 2)
        self.runs = None if any(r is None for r in runs) else np.concatenate(
            [np.empty((*self.table.shape[:2], 2, 0), np.int32), *runs], 3)

    def _strip(self, seen: Array, parts: list[Array]) -> np.ndarray:
        """The states (B, H, tiles) of one row of tiles; what is partial goes to `parts`."""
        starts = np.arange(0, self.M, self.tile)
        if len(starts) == 0:
            return np.empty((*seen.shape[:2], 0), np.int32)
        some = np.logical_or.reduceat(seen.any(2), starts, -1)
        every = np.logical_and.reduceat(seen.all(2), starts, -1)
        states = np.where(every, VISIBLE, HIDDEN).astype(np.int32)
        for b, h, t in np.argwhere(some & ~every):
            states[b, h, t] = len(parts)
            parts.append(self._padded(seen[b, h, :, t * self.tile: (t + 1) * self.tile]))
        return states

    def _padded(self, seen: Array) -> np.ndarray:
        """A tile, keys by queries, with nothing visible beyond the last of them."""
        out = np.zeros((self.tile, self.tile), bool)
        out[: seen.shape[1], : seen.shape[0]] = seen.T
        return out

    @property
    def density(self) -> float:
        """The share of tiles that are computed."""
        return float((self.table != HIDDEN).mean()) if self.table.size else 0.0

    def array(self) -> np.ndarray:
        """The mask as booleans (B or 1, H or 1, N, M)."""
        tiles = np.stack([np.zeros((self.tile,) * 2, bool), np.ones((self.tile,) * 2, bool), *self.partial])
        places = np.where(self.table == HIDDEN, 0, np.where(self.table == VISIBLE, 1, self.table + 2))
        B, H, n, m = self.table.shape
        full = tiles[places].swapaxes(3, 4).reshape(B, H, n * self.tile, m * self.tile)
        return full[:, :, : self.N, : self.M]


def _runs(seen: Array) -> np.ndarray | None:
    """(B, H, 2, queries): begin and end of the run of keys that each query sees; None if one sees several."""
    M = seen.shape[3]
    counts = np.count_nonzero(seen, 3)
    begin = np.where(counts > 0, seen.argmax(3), M) if M else counts
    end = np.where(counts > 0, M - seen[..., ::-1].argmax(3), 0) if M else counts
    if (counts != np.maximum(end - begin, 0)).any():
        return None
    return np.stack([begin, end], 2).astype(np.int32)
