"""Caches of keys and values: what generation has computed once and need not compute again.

A `KVCache` belongs to one attention layer. Each step appends the keys and values of the new positions and
gets back all those to attend to, with the position of each. A softmax does not care in which order its keys
come, so a cache may hold them in any order as long as it says where each one stands.

`AppendCache` keeps everything; `WindowCache` the last w positions (and, if asked, the first few), joined and
cut at every step; `RingCache` the same in fixed memory, a new entry overwriting the oldest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minattn.autograd import namespace
from minattn.autograd.engine import Array, Operand, Tensor, raw

from .masks import MaskMod, either, sliding_window, whole


class Cached(NamedTuple):
    """What there is to attend to: keys (B, Hk, M, D), values (B, Hk, M, Dv), position of each (M,)."""

    keys: Array
    values: Array
    positions: np.ndarray


class KVCache:
    """The interface: a subclass defines `append`, and `held`, the number of entries it holds.

    Attributes
    ----------
    length : int
        Positions seen since the start; the next one appended stands at this position.
    mask_mod : callable or None
        Which of the keys handed out a query may see, besides the caller's own mask; of absolute positions.
    """

    mask_mod: MaskMod | None = None

    def __init__(self) -> None:
        self.reset()

    def append(self, k: Operand, v: Operand) -> Cached:
        """Take over k (B, Hk, n, D) and v (B, Hk, n, Dv) of the next n positions.

        Returns all that any of these n queries may look at: what was held before, and the new ones. They may
        be views, which the next call overwrites.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define append")

    @property
    def held(self) -> int:
        """Number of entries in use."""
        return self.length

    def read(self) -> Cached:
        """All that is held, without adding to it."""
        if self._k is None:
            raise RuntimeError("read: nothing has been appended to this cache")
        n = self.held
        return Cached(self._k[:, :, :n], self._v[:, :, :n], self._positions[:n])

    def reset(self) -> None:
        """Forget everything."""
        self.length = 0
        self._k: Any = None  # buffers (B, Hk, size, D or Dv) of which the first `held` entries are in use
        self._v: Any = None
        self._positions = np.zeros(0, dtype=np.intp)

    def reorder(self, index: Array) -> None:
        """Batch entry b becomes what index[b] was: a beam search drops some beams and repeats others."""
        if self._k is not None:
            self._k, self._v = self._k[index], self._v[index]

    @property
    def memory(self) -> int:
        """Bytes allocated for keys and values."""
        return 0 if self._k is None else self._k.nbytes + self._v.nbytes

    def _taken(self, k: Operand, v: Operand) -> tuple[Array, Array]:
        """k and v as plain arrays, once they are known to fit each other and what is held."""
        for name, x, buffer in (("k", k, self._k), ("v", v, self._v)):
            if isinstance(x, Tensor) and x.requires_grad:
                raise RuntimeError(f"{name}: a cache keeps no gradients; call it inside no_grad()")
            if x.ndim != 4 or x.shape[:3] != k.shape[:3]:
                raise ValueError(f"{name}: expected shape (batch, heads, positions, features), "
                                 f"all but the last as in k, got {x.shape}")
            if buffer is not None and (*x.shape[:2], x.shape[3]) != (*buffer.shape[:2], buffer.shape[3]):
                B, H, _, D = buffer.shape
                raise ValueError(f"{name}: expected shape ({B}, {H}, n, {D}) as before, got {x.shape}")
        return raw(k), raw(v)

    def _resize(self, k: Array, v: Array, size: int) -> None:
        """Make the buffers hold `size` entries, of the shapes and dtypes of k and v."""
        self._k, self._v = _grown(self._k, k, size), _grown(self._v, v, size)


class AppendCache(KVCache):
    """Keeps every position. A full buffer doubles, so that n single steps copy O(n) entries, not O(n²).

    Parameters
    ----------
    reserve : int
        Room for so many positions from the start: whoever knows the length in advance needs no copies.
    """

    def __init__(self, reserve: int = 0) -> None:
        self.reserve = whole("reserve", reserve, 0)
        super().__init__()

    def append(self, k: Operand, v: Operand) -> Cached:
        k, v = self._taken(k, v)
        start, self.length = self.length, self.length + k.shape[2]
        if self._k is None or self.length > self._k.shape[2]:
            self._resize(k, v, max(self.length, 2 * start, self.reserve))
            self._positions = np.arange(self._k.shape[2])
        self._k[:, :, start : self.length], self._v[:, :, start : self.length] = k, v
        return self.read()


class _Bounded(KVCache):
    """What the two caches of bounded size have in common: which positions stay."""

    def __init__(self, w: int, sinks: int = 0) -> None:
        self.w, self.sinks = whole("w", w), whole("sinks", sinks, 0)
        self.mask_mod = sliding_window(self.w)
        if sinks:
            self.mask_mod = either(self.mask_mod, lambda b, h, i, j: (j < sinks) & (j <= i))
        super().__init__()

    def _visible(self, positions: np.ndarray, i: int) -> np.ndarray:
        """Which of the positions up to i a query at i may see."""
        return (positions < self.sinks) | (positions > i - self.w)

    def _seen_with(self, k: Array, v: Array) -> Cached:
        """What the first new query sees of the old entries, and the new ones after it."""
        new = np.arange(self.length, self.length + k.shape[2])
        if self._k is None:
            return Cached(k, v, new)
        old, join = self.read(), namespace(k).concatenate
        see = self._visible(old.positions, self.length)
        return Cached(join([old.keys[:, :, see], k], 2), join([old.values[:, :, see], v], 2),
                      np.concatenate([old.positions[see], new]))


class WindowCache(_Bounded):
    """Keeps the last `w` positions, and the first `sinks` for good: joined with the new ones, then cut.

    Parameters
    ----------
    w : int
        Size of the window, the query's own position included.
    sinks : int
        How many first positions stay visible (attention sinks, Xiao et al. 2023, arXiv 2309.17453).
    """

    @property
    def held(self) -> int:
        return len(self._positions)

    def append(self, k: Operand, v: Operand) -> Cached:
        k, v = self._taken(k, v)
        seen = self._seen_with(k, v)
        self.length += k.shape[2]
        stay = self._visible(seen.positions, self.length - 1)
        self._k, self._v = seen.keys[:, :, stay], seen.values[:, :, stay]
        self._positions = seen.positions[stay]
        return seen


class RingCache(_Bounded):
    """`WindowCache` in fixed memory: position p ≥ sinks lives in slot sinks + (p − sinks) mod w.

    A single step writes one entry and copies nothing; the keys it hands out are in the order of their slots.
    """

    @property
    def held(self) -> int:
        return min(self.length, self.sinks + self.w)

    def append(self, k: Operand, v: Operand) -> Cached:
        k, v = self._taken(k, v)
        # the first of several queries still see what the last of them overwrites
        seen = self._seen_with(k, v) if k.shape[2] != 1 else None
        if self._k is None:
            self._resize(k, v, self.sinks + self.w)
            self._positions = np.zeros(self.sinks + self.w, dtype=np.intp)
        new = np.arange(self.length, self.length + k.shape[2])
        self.length += k.shape[2]
        stay = self._visible(new, self.length - 1)
        slots = np.where(new < self.sinks, new, self.sinks + (new - self.sinks) % self.w)[stay]
        self._k[:, :, slots], self._v[:, :, slots] = k[:, :, stay], v[:, :, stay]
        self._positions[slots] = new[stay]
        return self.read() if seen is None else seen


def _grown(buffer: Array | None, like: Array, size: int) -> Array:
    """Zeros for `size` entries of the shape of `like`, those of `buffer` at the front."""
    out = namespace(like).zeros((*like.shape[:2], size, like.shape[3]), dtype=like.dtype)
    if buffer is not None:
        out[:, :, : buffer.shape[2]] = buffer
    return out
