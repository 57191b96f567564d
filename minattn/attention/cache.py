"""Caches of keys and values: what generation has computed once and need not compute again.

A `KVCache` belongs to one attention layer. Each step appends the keys and values of the new positions and gets back
all those to attend to, with the position of each. A softmax does not care in which order its keys come, so a cache
may hold them in any order as long as it says where each one stands.

`AppendCache` keeps everything; `WindowCache` the last w positions (and, if asked, the first few), moving them along;
`RingCache` the same in fixed memory, a new entry overwriting the oldest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minattn.autograd import namespace
from minattn.autograd.engine import Array, Operand, Tensor

from .masks import MaskMod, either, sliding_window


class Cached(NamedTuple):
    """What there is to attend to: keys (B, Hk, M, D), values (B, Hk, M, Dv), position of each (M,)."""

    keys: Array
    values: Array
    positions: np.ndarray


class KVCache:
    """The interface. A subclass defines `append`, `read` and, if it keeps more than two arrays, `reorder`.

    Attributes
    ----------
    length : int
        Positions seen since the start; the next one appended stands at this position.
    mask_mod : callable or None
        What a query may see of what is held, besides the caller's own mask: a mask of absolute positions.
    """

    mask_mod: MaskMod | None = None

    def __init__(self) -> None:
        self.reset()

    def append(self, k: Operand, v: Operand) -> Cached:
        """Take over k (B, Hk, n, D) and v (B, Hk, n, Dv) of the next n positions.

        Returns all that any of these n queries may look at: what was held before, and the new ones.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define append")

    def read(self) -> Cached:
        """All that is held, without adding to it."""
        raise NotImplementedError(f"{type(self).__name__} does not define read")

    def reset(self) -> None:
        """Forget everything."""
        self.length = 0
        self._k: Any = None
        self._v: Any = None

    def reorder(self, index: Array) -> None:
        """Batch entry b becomes what entry index[b] was: a beam search keeps some beams and repeats others."""
        if self._k is not None:
            self._k, self._v = self._k[index], self._v[index]

    @property
    def memory(self) -> int:
        """Bytes held."""
        return 0 if self._k is None else self._k.nbytes + self._v.nbytes

    def _taken(self, k: Operand, v: Operand) -> tuple[Array, Array]:
        """k and v as plain arrays, once they are known to fit what is held."""
        for name, x, held in (("k", k, self._k), ("v", v, self._v)):
            if isinstance(x, Tensor) and x.requires_grad:
                raise RuntimeError(f"{name}: a cache holds values without their gradients; call it inside no_grad()")
            if x.ndim != 4 or x.shape[:3] != k.shape[:3]:
                raise ValueError(f"{name}: expected shape (batch, heads, positions, features) as k, got {x.shape}")
            if held is not None and (x.shape[:2], x.shape[3]) != (held.shape[:2], held.shape[3]):
                B, H, _, D = held.shape
                raise ValueError(f"{name}: expected shape ({B}, {H}, n, {D}) as what is held, got {x.shape}")
        return (x.data if isinstance(x, Tensor) else x for x in (k, v))  # type: ignore[return-value]


class AppendCache(KVCache):
    """Keeps every position. The buffer doubles when it is full, so that n single steps copy O(n), not O(n²)."""

    def append(self, k: Operand, v: Operand) -> Cached:
        k, v = self._taken(k, v)
        end = self.length + k.shape[2]
        if self._k is None or end > self._k.shape[2]:
            size = max(end, 2 * self.length)
            self._k, self._v = _grown(self._k, k, size, self.length), _grown(self._v, v, size, self.length)
        self._k[:, :, self.length : end], self._v[:, :, self.length : end] = k, v
        self.length = end
        return self.read()

    def read(self) -> Cached:
        return Cached(self._k[:, :, : self.length], self._v[:, :, : self.length], np.arange(self.length))


class _Bounded(KVCache):
    """What the two caches of bounded size have in common: which positions stay."""

    def __init__(self, w: int, sinks: int = 0) -> None:
        self.w, self.sinks = w, sinks
        self.mask_mod = sliding_window(w)
        if sinks:
            self.mask_mod = either(self.mask_mod, lambda b, h, i, j: (j < sinks) & (j <= i))
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._positions = np.zeros(0, dtype=np.intp)

    def read(self) -> Cached:
        return Cached(self._k, self._v, self._positions)


class WindowCache(_Bounded):
    """Keeps the last `w` positions, and the first `sinks` for good: joined, then cut, at every step.

    Parameters
    ----------
    w : int
        Size of the window, the query's own position included.
    sinks : int
        How many first positions stay visible (attention sinks, Xiao et al. 2023, arXiv 2309.17453).
    """

    def append(self, k: Operand, v: Operand) -> Cached:
        k, v = self._taken(k, v)
        new = np.arange(self.length, self.length + k.shape[2])
        seen = Cached(_joined(self._k, k), _joined(self._v, v), np.concatenate([self._positions, new]))
        self.length += k.shape[2]
        stay = (seen.positions < self.sinks) | (seen.positions >= self.length - self.w)
        self._k, self._v, self._positions = seen.keys[:, :, stay], seen.values[:, :, stay], seen.positions[stay]
        return seen


class RingCache(_Bounded):
    """`WindowCache` in fixed memory: position p ≥ sinks lives in slot sinks + (p − sinks) mod w.

    A single step writes one entry and copies nothing; the keys it returns are in the order of their slots.
    """

    def append(self, k: Operand, v: Operand) -> Cached:
        k, v = self._taken(k, v)
        n = k.shape[2]
        new = np.arange(self.length, self.length + n)
        seen = None
        if n != 1:  # the first of several queries still see what the last of them overwrites
            old = self.read() if self._k is not None else Cached(None, None, self._positions)
            seen = Cached(_joined(old.keys, k), _joined(old.values, v), np.concatenate([old.positions, new]))
        if self._k is None:
            size = self.sinks + self.w
            self._k, self._v = _grown(None, k, size, 0), _grown(None, v, size, 0)
            self._positions = np.zeros(size, dtype=np.intp)
        self.length += n
        stay = (new < self.sinks) | (new >= self.length - self.w)
        slots = np.where(new < self.sinks, new, self.sinks + (new - self.sinks) % self.w)[stay]
        self._k[:, :, slots], self._v[:, :, slots] = k[:, :, stay], v[:, :, stay]
        self._positions[slots] = new[stay]
        return self.read() if seen is None else seen

    def read(self) -> Cached:
        filled = min(self.length, self.sinks + self.w)
        return Cached(self._k[:, :, :filled], self._v[:, :, :filled], self._positions[:filled])


def _grown(held: Array | None, new: Array, size: int, used: int) -> Array:
    """A buffer for `size` positions that begins with the `used` ones held."""
    out = namespace(new).zeros((*new.shape[:2], size, new.shape[3]), dtype=new.dtype)
    if held is not None:
        out[:, :, :used] = held[:, :, :used]
    return out


def _joined(held: Array | None, new: Array) -> Array:
    return new if held is None else namespace(new).concatenate([held, new], axis=2)
