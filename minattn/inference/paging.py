"""A cache of keys and values in blocks of 16 positions, handed out from a pool that many sequences share.

A contiguous cache needs room for the longest text that may come, or must be copied when it grows. In blocks,
as an operating system keeps pages, a sequence holds a table of block numbers; position p lies in block
table[p // 16] at offset p mod 16. What is allocated and unused is less than a block a sequence:

    pool    ┌───┬───┬───┬───┬───┬───┬───┬───┐         tables    a: 0 3 5        43 positions
            │ a │ b │ - │ a │ b │ a │ - │ b │                   b: 1 4 7        35 positions
            └───┴───┴───┴───┴───┴───┴───┴───┘         free      2 6

A block that several sequences have in common (the beams of a search, until they part) is counted, not copied;
whoever writes into it first takes a copy.

Kwon et al. 2023 (arXiv 2309.06180); in paper 162 (Park et al. 2024, arXiv 2407.09111). On a GPU the kernel of
the attention looks blocks up as it reads; here `append` gathers them for an attention that knows no tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minattn.attention import AppendCache, Cached, KVCache
from minattn.attention.masks import whole
from minattn.autograd.engine import Array, Operand

PAPERS = (162,)

__all__ = ["BlockPool", "PagedKVCache", "rewind"]

BLOCK = 16
"""Positions of a block."""


class BlockPool:
    """Blocks of keys (Hk, 16, D) and values (Hk, 16, Dv), free or counted by how many tables name them.

    Parameters
    ----------
    blocks : int, optional
        How many there are; by default as many as are asked for, the pool doubling when none is free.
    size : int
        Positions of a block.

    Attributes
    ----------
    counts : array of int (blocks,)
        In how many tables each block stands; 0 if it is free.
    """

    def __init__(self, blocks: int | None = None, size: int = BLOCK) -> None:
        self.bounded = blocks is not None
        self.size = whole("size", size)
        self.counts = np.zeros(1 if blocks is None else whole("blocks", blocks), np.intp)
        self._free = list(range(len(self.counts)))[::-1]
        self.keys: Any = None  # (blocks, Hk, size, D), made when the first key comes
        self.values: Any = None

    @property
    def free(self) -> int:
        """Number of blocks that nobody holds."""
        return len(self._free)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return 0 if self.keys is None else self.keys[0].nbytes + self.values[0].nbytes

    def fit(self, k: Array, v: Array) -> None:
        """Make room for entries like k (B, Hk, n, D) and v (B, Hk, n, Dv), or find that they fit.

        Raises
        ------
        ValueError
            If the blocks hold entries of another shape or dtype.
        """
        if self.keys is None:
            self.keys, self.values = (np.zeros((len(self.counts), x.shape[1], self.size, x.shape[3]), x.dtype)
                                      for x in (k, v))
        for name, x, kept in (("k", k, self.keys), ("v", v, self.values)):
            if (x.shape[1], x.shape[3], x.dtype) != (kept.shape[1], kept.shape[3], kept.dtype):
                raise ValueError(f"{name}: expected {kept.shape[1]} heads of {kept.shape[3]} features in "
                                 f"{kept.dtype}, as in the pool, got {x.shape[1]} of {x.shape[3]} "
                                 f"in {x.dtype}")

    def take(self, n: int) -> np.ndarray:
        """The numbers of n free blocks, which count 1 from now on.

        Raises
        ------
        RuntimeError
            If the pool is bounded and has fewer.
        """
        if n > self.free:
            if self.bounded:
                raise RuntimeError(f"take: expected at most the {self.free} free blocks of "
                                   f"{len(self.counts)}, got {n}; retire a sequence or enlarge the pool")
            self._grow(n - self.free)
        taken = np.array([self._free.pop() for _ in range(n)], np.intp)
        self.counts[taken] = 1
        return taken

    def share(self, blocks: Array) -> None:
        """Count each of these blocks once more, as often as it is named."""
        np.add.at(self.counts, blocks.ravel(), 1)

    def give(self, blocks: Array) -> None:
        """Count each of these blocks once less; those at 0 are free again."""
        np.subtract.at(self.counts, blocks.ravel(), 1)
        for block in dict.fromkeys(blocks.ravel().tolist()):
            if self.counts[block] == 0:
                self._free.append(block)

    def _grow(self, least: int) -> None:
        old = len(self.counts)
        more = max(least, old)
        self._free = [*range(old + more - 1, old - 1, -1), *self._free]
        self.counts = np.concatenate([self.counts, np.zeros(more, np.intp)])
        if self.keys is not None:
            self.keys, self.values = (np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)])
                                      for x in (self.keys, self.values))


class PagedKVCache(KVCache):
    """Keeps every position, in blocks from a pool; what it hands out equals `AppendCache`'s.

    Parameters
    ----------
    pool : BlockPool, optional
        Where the blocks come from, shared with other caches; one of its own by default.

    Attributes
    ----------
    table : array of int (B, blocks a sequence)
        Number of each sequence's n-th block.

    Examples
    --------
    >>> pool = BlockPool()
    >>> generate(model, ids, 20, cache=lambda: PagedKVCache(pool))     # all layers take from one pool

    Notes
    -----
    Paper 162. Not reset, a cache keeps its blocks as long as it lives, and the pool never has them again.
    """

    def __init__(self, pool: BlockPool | None = None) -> None:
        self.pool = BlockPool() if pool is None else pool
        if not isinstance(self.pool, BlockPool):
            raise TypeError(f"pool: expected a BlockPool, got {pool!r}")
        self.table = np.zeros((0, 0), np.intp)
        super().__init__()

    def append(self, k: Operand, v: Operand) -> Cached:
        """Take over k (B, Hk, n, D) and v (B, Hk, n, Dv); all positions, gathered from their blocks.

        Raises
        ------
        RuntimeError
            If the pool has not blocks enough; what is held stays as it was.
        """
        k, v = self._taken(k, v)
        self.pool.fit(k, v)
        if self._k is None:
            self.table = np.zeros((len(k), 0), np.intp)
        start, size = self.length, self.pool.size
        if start % size and k.shape[2]:
            self._own_last_blocks()
        new = -(-(start + k.shape[2]) // size) - self.table.shape[1]
        fresh = self.pool.take(len(k) * new).reshape(len(k), new)
        self.table, self.length = np.concatenate([self.table, fresh], 1), start + k.shape[2]
        at = np.arange(start, self.length)
        where = self.table[:, at // size]
        self.pool.keys[where, :, at % size] = k.swapaxes(1, 2)
        self.pool.values[where, :, at % size] = v.swapaxes(1, 2)
        self._k, self._v = k[:, :, :0], v[:, :, :0]  # empty: they say what shape the entries have
        return self.read()

    def _own_last_blocks(self) -> None:
        """Copy the last block of each row, as long as another row has it too: it is about to be written."""
        pool = self.pool
        for b, old in enumerate(self.table[:, -1].tolist()):
            if pool.counts[old] > 1:
                block = pool.take(1)
                pool.keys[block], pool.values[block] = pool.keys[old], pool.values[old]
                pool.give(self.table[b, -1:])
                self.table[b, -1] = block[0]

    def read(self) -> Cached:
        if self._k is None:
            raise RuntimeError("read: nothing has been appended to this cache")
        keys, values = self._gathered(self.pool.keys), self._gathered(self.pool.values)
        return Cached(keys, values, np.arange(self.length))

    def _gathered(self, kept: Array) -> Array:
        """Blocks (B, n, Hk, size, D) as one row of positions, (B, Hk, length, D)."""
        B, n = self.table.shape
        _, Hk, size, D = kept.shape
        return kept[self.table].swapaxes(1, 2).reshape(B, Hk, n * size, D)[:, :, : self.length]

    def reset(self) -> None:
        """Forget everything; the blocks go back to the pool."""
        self.pool.give(self.table)
        self.table = np.zeros((0, 0), np.intp)
        super().reset()

    def reorder(self, index: Array) -> None:
        """Batch entry b becomes what index[b] was, by tables alone: no key is copied."""
        if self._k is not None:
            table = self.table[np.asarray(index)]
            self.pool.share(table)
            self.pool.give(self.table)
            self.table, self._k, self._v = table, self._k[index], self._v[index]

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on; blocks that hold no other go back to the pool."""
        stay = -(-_within(length, self.length) // self.pool.size)
        self.pool.give(self.table[:, stay:])
        self.table, self.length = self.table[:, :stay], int(length)

    @property
    def memory(self) -> int:
        """Bytes of the blocks in the table, those that occur twice counted once."""
        return len(np.unique(self.table)) * self.pool.block_bytes

    @property
    def waste(self) -> int:
        """Positions allocated and unused, in each sequence: less than a block."""
        return self.table.shape[1] * self.pool.size - self.length


def rewind(caches: Sequence[KVCache], length: int) -> None:
    """Make caches that keep everything forget the positions from `length` on.

    Raises
    ------
    ValueError
        If a cache holds fewer positions.
    TypeError
        If one is neither an `AppendCache` nor a `PagedKVCache`: others have thrown away what would be needed.
    """
    for cache in caches:
        if isinstance(cache, PagedKVCache):
            cache.rewind(length)
        elif isinstance(cache, AppendCache):
            cache.length = _within(length, cache.length)
        else:
            raise TypeError(f"caches: expected an AppendCache or a PagedKVCache, got {type(cache).__name__}")


def _within(length: int, held: int) -> int:
    if whole("length", length, 0) > held:
        raise ValueError(f"length: expected at most the {held} positions that are held, got {length}")
    return int(length)
