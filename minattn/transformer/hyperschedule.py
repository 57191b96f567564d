"""Hyperschedules: a noise level for every position at every step, and the masks that go with it.

    τ[n, p] ∈ {0 … T}      0: settled, for good       T: pure noise       between: on its way

Move n takes position p from level τ[n, p] to τ[n+1, p]. It divides the sequence into three: settled positions
(level 0 before it), active ones, and pure noise (level T after it), in this order from left to right.

    autoregressive   one position after another, in one move each (GPT)
    flat             all positions together, T → 0 (SEDD, MDLM)
    block            all positions of a block together, then the next block
    sliding          a window of w positions at levels 0 … T − 1 that advances with every move
    hybrid           sliding within a block, one block after another

Settled rows look at settled positions (causally, by blocks, or at all of them), active rows at settled and
active ones, and nothing looks at or from the noise. So a settled row that looks back only never changes, and
its keys and values can be cached.

Fathi, Scholak and Noël, "Unifying Autoregressive and Diffusion-Based Sequence Generation", COLM 2025,
arXiv 2504.06416.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minattn.attention.masks import MaskMod, whole

PAPERS = (196,)

__all__ = ["ACTIVE", "CONTEXTS", "Hyperschedule", "hyperschedule_mask", "naive_hyperschedule_mask",
           "naive_levels", "training_mask"]

CONTEXTS = ("causal", "block_causal", "full")
"""What a settled row may see of the other settled positions."""

ACTIVE = ("full", "causal")
"""What an active row may see of the other active positions; it sees all settled ones."""


# ---- naive: the schedule played move by move, the mask pair by pair


def naive_levels(kind: str, N: int, width: int, T: int) -> list[list[int]]:
    """The rows of a hyperschedule, each made from the one before, as the paper tells it.

    `kind` is "block", "sliding" or "hybrid"; the last row is the first in which all is settled.
    """
    row = [T] * N
    rows = [row]
    if kind == "sliding":
        window = [0] if width == 1 else [round(i * (T - 1) / (width - 1)) for i in range(width)]
        shown, start = 0, 0  # how much of the window has come in, and where it begins
        while any(row):
            if shown < width:
                shown += 1
            else:
                start += window.count(0)
            row = ([0] * start + window[width - shown :] + [T] * N)[:N]
            if row != rows[-1]:  # with w > T neighbours may share a level, and a move lower none
                rows.append(row)
        return rows
    for first in range(0, N, width):
        block, moves = range(first, min(first + width, N)), 0
        while any(row[p] for p in block):
            row = list(row)
            for p in block:
                if kind == "block" or moves == 0 or p - first < moves:
                    row[p] = max(0, row[p] - 1)
            moves += 1
            rows.append(row)
    return rows


def naive_hyperschedule_mask(now: list[int], then: list[int], T: int, *, context: str = "causal",
                             active: str = "full", width: int = 1, given: int = 0) -> np.ndarray:
    """Who sees whom in the move from levels `now` to levels `then`, asked of every pair: booleans (N, N)."""

    def kind(p: int) -> str:
        return "settled" if now[p] == 0 else "noise" if then[p] == T else "active"

    def sees(i: int, j: int) -> bool:
        if "noise" in (kind(i), kind(j)):
            return False
        if kind(i) == "active":
            return kind(j) == "settled" or active == "full" or j <= i
        if kind(j) == "active":
            return False
        if context == "block_causal":
            return (j - given) // width <= (i - given) // width
        return context == "full" or j <= i

    return np.array([[sees(i, j) for j in range(len(now))] for i in range(len(now))])


# ---- fast: levels in closed form, masks from two integers


class Hyperschedule:
    """Noise levels τ[step, position], from pure noise to settled.

    Parameters
    ----------
    levels : array of int (steps + 1, N)
        Row 0 holds T, but for given positions at its start, which hold 0; the last row holds 0. No level
        ever rises, every move lowers one, and levels do not fall from left to right.
    width : int
        Size of the blocks of a block-causal context.

    Attributes
    ----------
    T, steps, N, given : int
        Highest level, number of moves, positions, and how many of them are settled from the start.

    Raises
    ------
    ValueError
        If `levels` are not such a matrix.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.

    Examples
    --------
    >>> Hyperschedule.block(4, width=2, T=2).levels
    array([[2, 2, 2, 2],
           [1, 1, 2, 2],
           [0, 0, 2, 2],
           [0, 0, 1, 1],
           [0, 0, 0, 0]])
    """

    def __init__(self, levels: Any, width: int = 1) -> None:
        levels = np.array(levels)
        _check_levels(levels)
        self.levels, self.width = levels, whole("width", width)
        self.T, self.given = int(levels.max()), int((levels[0] == 0).sum())
        self.steps, self.N = levels.shape[0] - 1, levels.shape[1]

    @classmethod
    def autoregressive(cls, N: int) -> Hyperschedule:
        """One position a move, from noise to settled: width 1, T = 1."""
        return cls.block(N, 1, 1)

    @classmethod
    def flat(cls, N: int, T: int) -> Hyperschedule:
        """All N positions together, one level a move."""
        return cls.block(N, N, T)

    @classmethod
    def block(cls, N: int, width: int, T: int) -> Hyperschedule:
        """Block after block of `width` positions, each from T to 0 in T moves."""
        return cls(_block_levels(whole("N", N), whole("width", width), whole("T", T)), width)

    @classmethod
    def sliding(cls, N: int, width: int, T: int) -> Hyperschedule:
        """A window of `width` positions at round(i (T − 1)/(width − 1)), which comes in from the left.

        Once it is in, it moves on by as many positions as it holds zeros. With w > T neighbours share levels,
        and a move that would lower none is left out.
        """
        return cls(_sliding_levels(whole("N", N), whole("width", width), whole("T", T)), width)

    @classmethod
    def hybrid(cls, N: int, width: int, T: int) -> Hyperschedule:
        """Block after block; in a block all go to T − 1, then position after position begins to descend."""
        return cls(_hybrid_levels(whole("N", N), whole("width", width), whole("T", T, 2)), width)

    def after(self, n: int) -> Hyperschedule:
        """The same schedule behind `n` given positions: a prompt, or a first token."""
        n = whole("n", n, 0)
        before = np.zeros((self.steps + 1, n), self.levels.dtype)
        return Hyperschedule(np.concatenate([before, self.levels], 1), self.width)

    def span(self, step: int) -> tuple[int, int]:
        """(a, b) of a move: positions below a are settled, those from b on pure noise, between is active."""
        self._check_step(step)
        settled = (self.levels[step] == 0).sum()
        return int(settled), self.N - int((self.levels[step + 1] == self.T).sum())

    def times(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(t, s) of a move: τ/T before it and after it, each (N,)."""
        self._check_step(step)
        return self.levels[step] / self.T, self.levels[step + 1] / self.T

    def cacheable(self, step: int, context: str = "causal") -> int:
        """How many rows from the left stay as they are from this move on: keys and values to be kept.

        All settled rows if their context is causal, those of whole blocks if it is block-causal, and none if
        they see all that is settled, since more will be.
        """
        _choice("context", context, CONTEXTS)
        settled, _ = self.span(step)
        if context == "block_causal":
            return settled - (settled - self.given) % self.width
        return settled if context == "causal" else 0

    def _check_step(self, step: int) -> None:
        if not 0 <= whole("step", step, 0) < self.steps:
            raise ValueError(f"step: expected a move in [0, {self.steps}), got {step}")

    def __repr__(self) -> str:
        return f"Hyperschedule(N={self.N}, T={self.T}, steps={self.steps}, width={self.width})"


def hyperschedule_mask(schedule: Hyperschedule, step: int, *, context: str = "causal", active: str = "full"
                       ) -> MaskMod:
    """Who sees whom in one move, as ``mask_mod(b, h, i, j)``.

    With (a, b) = ``schedule.span(step)``:

        i < a:       j < a, and j ≤ i (causal) or block(j) ≤ block(i) (block_causal) or any (full)
        a ≤ i < b:   j < a, or a ≤ j < b (full) or a ≤ j ≤ i (causal)
        otherwise:   nothing

    Parameters
    ----------
    schedule : Hyperschedule
    step : int
        The move, from 0.
    context : {"causal", "block_causal", "full"}
        Of settled rows.
    active : {"full", "causal"}
        Of active rows among themselves.

    Raises
    ------
    ValueError
        For a move or a choice that does not exist.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    settled, end = schedule.span(step)
    behind, beside = _behind(context, schedule.width, schedule.given), _beside(active)

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        old = (i < settled) & (j < settled) & behind(i, j)
        new = (i >= settled) & (i < end) & (j < end) & ((j < settled) | beside(i, j))
        return old | new

    return mask


def training_mask(N: int, width: int, *, context: str = "causal", active: str = "full") -> MaskMod:
    """The mask of size 2N under which one pass trains all blocks: N clean rows, then N noised ones.

        i < N:   j < N, under `context`
        i ≥ N:   clean blocks before its own, block(j) < block(i − N), and the noised of its own block

    Parameters
    ----------
    N, width : int
        Positions, and size of the blocks.
    context : {"causal", "block_causal", "full"}
        Of the clean rows; a model that is to generate with a cache needs one of the first two.
    active : {"full", "causal"}
        Of the noised rows among themselves.

    Raises
    ------
    ValueError
        For a size or a choice that does not exist.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    N, width = whole("N", N), whole("width", width)
    behind, beside = _behind(context, width, 0), _beside(active)

    def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
        noised, mine, its = i >= N, (i - N) // width, (j - N) // width
        clean = (i < N) & (j < N) & behind(i, j)
        return clean | (noised & (j < N) & (j // width < mine)) | (noised & (its == mine) & beside(i, j))

    return mask


def _behind(context: str, width: int, given: int) -> Any:
    """Whether settled row i may see settled column j."""
    _choice("context", context, CONTEXTS)
    if context == "block_causal":
        return lambda i, j: (j - given) // width <= (i - given) // width
    return (lambda i, j: j <= i) if context == "causal" else (lambda i, j: True)


def _beside(active: str) -> Any:
    """Whether active row i may see active column j."""
    _choice("active", active, ACTIVE)
    return (lambda i, j: True) if active == "full" else (lambda i, j: j <= i)


def _block_levels(N: int, width: int, T: int) -> np.ndarray:
    s, p = np.ogrid[: T * -(-N // width) + 1, :N]
    return np.clip(T - (s - T * (p // width)), 0, T)


def _sliding_levels(N: int, width: int, T: int) -> np.ndarray:
    window = np.rint(np.linspace(0, T - 1, width)).astype(int)
    zeros = int((window == 0).sum())
    s, p = np.ogrid[: width + N + 1, :N]
    place = np.where(s <= width, p + width - s, p - zeros * (s - width))  # in the window
    levels = np.concatenate([[0], window, [T]])[np.clip(place + 1, 0, width + 1)]
    return _moving(levels)


def _hybrid_levels(N: int, width: int, T: int) -> np.ndarray:
    moves = T + width - 1  # of a block
    s, p = np.ogrid[: moves * -(-N // width) + 1, :N]
    since = s - moves * (p // width)
    levels = np.clip(T - 1 - np.maximum(0, since - 1 - p % width), 0, T)
    return _moving(np.where(since <= 0, T, levels))


def _moving(levels: np.ndarray) -> np.ndarray:
    """The rows that differ from the one before."""
    return levels[np.concatenate([[True], (levels[1:] < levels[:-1]).any(1)])]


def _check_levels(levels: np.ndarray) -> None:
    if levels.ndim != 2 or levels.dtype.kind not in "iu" or levels.shape[0] < 2 or levels.shape[1] < 1:
        raise ValueError(f"levels: expected integers (steps + 1, N) with at least one move and one position, "
                         f"got {levels.dtype} of shape {levels.shape}")
    first, levels = levels[0], levels.astype(np.int64)
    if levels.min() < 0 or levels[-1].any() or not np.isin(first, (0, levels.max())).all():
        raise ValueError("levels: expected T (0 where given) in row 0, 0 in the last row, and nothing "
                         f"outside 0..T, got rows {first.tolist()} and {levels[-1].tolist()}")
    falls = np.diff(levels, axis=0)
    if (falls > 0).any() or not (falls < 0).any(1).all():
        raise ValueError("levels: expected every move to lower a level and to raise none")
    if (np.diff(levels, axis=1) < 0).any():
        raise ValueError("levels: expected no level to fall from left to right")


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
