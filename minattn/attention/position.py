"""Positions: attention alone does not know the order of its keys; these say where each one stands.

Added to the embeddings: `Sinusoidal`, `Learned`. Inside attention: `RoPE` turns queries and keys by an angle
that grows with position, so that their product depends on the distance alone; `ALiBi` lowers a score in
proportion to the distance. The latter two are a `PositionEncoding`, which `MultiHeadAttention` takes as
``position=``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minattn.autograd import embedding, getitem, namespace, primitive
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels.mods import like
from minattn.nn.module import Module, Parameter

PAIRINGS = ("interleaved", "half")


class PositionEncoding:
    """What attention itself can do with positions; this one does nothing.

    A subclass overrides `rotate`, or sets `score_mod`, or both.
    """

    score_mod: Any = None
    """``score_mod(score, b, h, i, j)`` of positions i and j, or None."""

    def rotate(self, x: Operand, positions: Array) -> Operand:
        """Queries or keys x (B, H, N, D) that stand at `positions`, (N,) or broadcasting to (B, H, N)."""
        return x


# ---- added to the embeddings


def sinusoidal(positions: Array, D: int, base: float = 10000.0, dtype: Any = np.float32) -> Array:
    """Entry 2m of position p is sin(p · base^(−2m/D)), entry 2m + 1 the cosine of that angle; shape (…, D).

    Vaswani et al. 2017, section 3.5.
    """
    _even("D", D)
    positions = np.asarray(positions)
    angles = positions[..., None] * _frequencies(D, base)
    out = np.empty((*positions.shape, D))
    out[..., 0::2], out[..., 1::2] = np.sin(angles), np.cos(angles)
    return out.astype(dtype)


def _following(offset: int | Array, N: int) -> Array:
    """N positions from `offset` on: (N,), or (B, N) if each row of a batch has an offset of its own."""
    return np.asarray(offset)[..., None] + np.arange(N)


class Sinusoidal(Module):
    """x + `sinusoidal` for x (B, N, D) whose first entry stands at position `offset`, a number or (B,)."""

    def __init__(self, D: int, base: float = 10000.0) -> None:
        self.D, self.base = _even("D", D), base

    def forward(self, x: Operand, offset: int | Array = 0) -> Operand:
        table = sinusoidal(_following(offset, x.shape[1]), self.D, self.base, raw(x).dtype)
        return x + namespace(x).asarray(table)


class Learned(Module):
    """x + one trained vector for each position, for x (B, N, D) whose first entry stands at `offset`.

    An offset for each row (B,) may be negative, where padding comes first: it gets the vector of position 0.

    Parameters
    ----------
    length : int
        Number of positions; a later one raises a ValueError.
    D : int
        Features.
    rng : numpy.random.Generator
        Source of the initial values, normal with standard deviation 0.02.
    """

    def __init__(self, length: int, D: int, *, rng: np.random.Generator) -> None:
        self.weight = Parameter(0.02 * rng.standard_normal((length, D), dtype=np.float32))

    def forward(self, x: Operand, offset: int | Array = 0) -> Operand:
        end = int(np.max(offset)) + x.shape[1]
        if end > len(self.weight):
            raise ValueError(f"x: expected positions below {len(self.weight)}, as many as were learned, "
                             f"got {end - 1}")
        if np.ndim(offset) == 0:
            return x + getitem(self.weight, slice(offset, end))
        return x + embedding(self.weight, np.maximum(_following(offset, x.shape[1]), 0))


# ---- inside attention


def naive_rope(x: Array, positions: Array, base: float = 10000.0, pairing: str = "interleaved") -> Array:
    """Each pair of features as a complex number, times e^(i p θ), one pair at a time."""
    D = x.shape[-1]
    out = np.array(x, dtype=np.float64)
    for n, p in enumerate(positions):
        for m in range(D // 2):
            first, second = (2 * m, 2 * m + 1) if pairing == "interleaved" else (m, m + D // 2)
            turn = complex(math.cos(p * base ** (-2 * m / D)), math.sin(p * base ** (-2 * m / D)))
            turned = (out[..., n, first] + 1j * out[..., n, second]) * turn
            out[..., n, first], out[..., n, second] = turned.real, turned.imag
    return out


def _rotated(x: Array, /, cos: Array, sin: Array, interleaved: bool) -> Array:
    """The first features of x, as pairs, turned by angles with these cosines and sines; the rest as is."""
    out = namespace(x).array(x)
    half = cos.shape[-1]
    first, second = ((slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved
                     else (slice(0, half), slice(half, 2 * half)))
    a, b = x[..., first], x[..., second]
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out

def _d_rotated(g, out, x, cos, sin, interleaved):
    return rotated(g, cos=cos, sin=-sin, interleaved=interleaved)  # the transpose of a rotation turns back


rotated = primitive(_rotated, _d_rotated)


def _start_of_run(positions: Array) -> int | None:
    """p if `positions` are p, p + 1, p + 2, …, as they are in most calls."""
    positions = np.asarray(positions)
    if positions.ndim != 1 or len(positions) == 0 or (np.diff(positions) != 1).any():
        return None
    return positions[0].item()


@lru_cache(maxsize=4)
def _turns(theta: bytes, start: int, count: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (count, D/2) of the angles from position `start` on: the same in every layer."""
    angles = np.arange(start, start + count)[:, None] * np.frombuffer(theta)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


class RoPEScaling(NamedTuple):
    """Slower angles, for texts longer than those of the first training.

    Attributes
    ----------
    factor : float
        By how much: an angle that is wholly stretched becomes θ / factor.
    context : int, optional
        Positions L of the first training. A wave of w = 2π/θ positions then keeps its angle to the share
        s = (L/w − low) / (high − low), cut to [0, 1]: θ ← s θ + (1 − s) θ / factor, as in Llama 3. Without,
        every angle is stretched, as in Chen et al. 2023, arXiv 2306.15595.
    low, high : float
        Waves that fit fewer than `low` times into L are wholly stretched, more than `high` times not at all.
    """

    factor: float
    context: int | None = None
    low: float = 1.0
    high: float = 4.0

    def stretched(self, theta: np.ndarray) -> np.ndarray:
        """The angles `theta` of one position, slowed down."""
        if self.context is None:
            return theta / self.factor
        turns = self.context * theta / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return kept * theta + (1 - kept) * theta / self.factor


class RoPE(PositionEncoding):
    """Rotary position encoding: feature pair m of position p is turned by the angle p · base^(−2m/dim).

    The product of a query at i and a key at j then depends on i − j alone.

    Parameters
    ----------
    dim : int
        Number of features that are turned, even; the others, if a head has more, carry no position.
    base : float
        Sets the slowest angle.
    pairing : {"interleaved", "half"}
        Which features form a pair: 2m with 2m + 1, as in the paper, or m with m + dim/2, as in GPT-NeoX and
        Llama. Weights trained with one do not fit the other.
    scaling : RoPEScaling, optional
        How the angles are slowed down.

    Attributes
    ----------
    theta : array (dim / 2)
        Angle of each pair at position 1.

    References
    ----------
    Su et al., RoFormer, arXiv 2104.09864.
    """

    def __init__(self, dim: int, base: float = 10000.0, pairing: str = "interleaved",
                 scaling: RoPEScaling | None = None) -> None:
        if pairing not in PAIRINGS:
            raise ValueError(f"pairing: expected one of {PAIRINGS}, got {pairing!r}")
        self.dim, self.base, self.interleaved = _even("dim", dim), base, pairing == "interleaved"
        self.theta = _frequencies(dim, base)
        if scaling is not None:
            self.theta = scaling.stretched(self.theta)

    def rotate(self, x: Operand, positions: Array) -> Operand:
        """x (B, H, N, D), its first `dim` features turned; `positions` (N,) or broadcasting to (B, H, N)."""
        if x.shape[-1] < self.dim:
            raise ValueError(f"x: expected at least dim={self.dim} features, got shape {x.shape}")
        xp = namespace(x)
        if xp is np and (start := _start_of_run(positions)) is not None:
            cos, sin = _turns(self.theta.tobytes(), start, len(positions), x.dtype.str)
        else:
            angles = xp.asarray(positions)[..., None] * xp.asarray(self.theta)
            cos, sin = xp.cos(angles).astype(x.dtype), xp.sin(angles).astype(x.dtype)
        return rotated(x, cos=cos, sin=sin, interleaved=self.interleaved)


def alibi_slopes(H: int) -> np.ndarray:
    """Slopes of H heads: 2^(−8/H), its square, its cube, … if H is a power of two.

    Otherwise those of the next lower power of two P, then every other one of 2P, as in the authors' code.
    """
    if H < 1:
        raise ValueError(f"H: expected at least one head, got {H}")
    P = 2 ** int(math.log2(H))
    slopes = 2.0 ** (-8 / P * np.arange(1, P + 1))
    between = 2.0 ** (-4 / P * np.arange(1, 2 * P + 1, 2))
    return np.concatenate([slopes, between[: H - P]])


class ALiBi(PositionEncoding):
    """Attention with linear biases: a score loses slope_h · |i − j|.

    References
    ----------
    Press, Smith, Lewis, arXiv 2108.12409.
    """

    def __init__(self, n_heads: int) -> None:
        self.slopes = slopes = alibi_slopes(n_heads)
        self.score_mod = lambda score, b, h, i, j: score - like(slopes[h] * abs(i - j), score)


def _frequencies(D: int, base: float) -> np.ndarray:
    """θ_m = base^(−2m/D) for m = 0 … D/2 − 1."""
    return base ** (-np.arange(0, D, 2) / D)


def _even(name: str, n: int) -> int:
    if n < 2 or n % 2:
        raise ValueError(f"{name}: expected an even number of features, got {n}")
    return n
