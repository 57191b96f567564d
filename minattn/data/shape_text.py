"""What can be said about a scene of coloured shapes: captions, and questions with their answers.

Texts are words separated by single spaces, all from `WORDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ._check import generator
from .shapes import COLOURS, SHAPES, Scenes

__all__ = ["KINDS", "WORDS", "Question", "captions", "questions"]

_COLOURS = tuple(COLOURS)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

WORDS = (
    *SHAPES, *_COLOURS, *_NUMBERS, "yes", "no", "colour", "shape", "of", "is", "there", "how", "many", "what",
    "this", "the", "left", "right", "above", "below", "row", "column", "and", "nothing", "?", ".",
)  # fmt: skip
"""Every word that captions, questions and answers are made of."""


class Question(NamedTuple):
    """A question about image `image`, its answer, and the objects (numbers k) that decide it, in order."""

    image: int
    kind: str
    text: str
    answer: str
    objects: tuple[int, ...]


def captions(scenes: Scenes, positions: bool = False) -> list[str]:
    """The objects in reading order: `red square and blue circle .`, an empty scene being `nothing .`

    With `positions`, each with its place: `red square row one column two .` (at most nine rows).
    """
    if positions and scenes.grid > 9:
        raise ValueError(
            f"scenes must have a grid of at most 9 for captions with positions, got {scenes.grid}"
        )
    return [
        " and ".join(_objects(scenes, i, positions)) + " ." if n else "nothing ."
        for i, n in enumerate(_counts(scenes))
    ]


def questions(rng: np.random.Generator, scenes: Scenes, kinds: Sequence[str] | None = None) -> list[Question]:
    """One question about each scene, of a random kind among those that it allows, if any.

    The kinds, each with an example::

        colour colour of square ? red (one square in the scene) shape shape of red ? square (one red object)
        exists is there red square ? yes (half of them yes) count how many square ? two what what is this ?
        red square (a single object) beside colour of the shape left of the red square ? blue (two steps: find
        the anchor, then its neighbour)

    In `beside` the anchor is one of a kind, and the answer is the nearest object in its row or column on that
    side.

    Parameters
    ----------
    rng : numpy.random.Generator
        Chooses kinds and what to ask for.
    scenes : Scenes
        At most nine objects in each.
    kinds : sequence of str, optional
        All of `KINDS` if not given.

    Returns
    -------
    list of Question
        In the order of the images.
    """
    generator(rng)
    chosen = tuple(KINDS) if kinds is None else tuple(kinds)
    if not chosen or not set(chosen) <= set(KINDS):
        raise ValueError(f"kinds must be a non-empty selection of {', '.join(KINDS)}, got {kinds!r}")
    if scenes.shape.shape[1] > 9:
        raise ValueError(f"scenes must have at most 9 objects for questions, got {scenes.shape.shape[1]}")
    found = []
    for image, n in enumerate(_counts(scenes)):
        shape, colour, cell = (a[image, :n].tolist() for a in (scenes.shape, scenes.colour, scenes.cell))
        for k in rng.permutation(len(chosen)):
            asked = KINDS[chosen[k]](rng, shape, colour, cell, scenes.grid)
            if asked is not None:
                found.append(Question(image, chosen[k], *asked))
                break
    return found


_Asked = tuple[str, str, tuple[int, ...]] | None


def _colour(
    rng: np.random.Generator, shape: list[int], colour: list[int], cell: list[int], grid: int
) -> _Asked:
    k = _pick(rng, [k for k, s in enumerate(shape) if shape.count(s) == 1])
    return None if k is None else (f"colour of {SHAPES[shape[k]]} ?", _COLOURS[colour[k]], (k,))


def _shape(
    rng: np.random.Generator, shape: list[int], colour: list[int], cell: list[int], grid: int
) -> _Asked:
    k = _pick(rng, [k for k, c in enumerate(colour) if colour.count(c) == 1])
    return None if k is None else (f"shape of {_COLOURS[colour[k]]} ?", SHAPES[shape[k]], (k,))


def _exists(
    rng: np.random.Generator, shape: list[int], colour: list[int], cell: list[int], grid: int
) -> _Asked:
    """Yes and no are decided first, so that half of the answers are yes; no if the scene is empty."""
    here = list(zip(shape, colour, strict=True))
    if here and rng.random() < 0.5:
        s, c = here[rng.integers(len(here))]
    else:
        absent = [(s, c) for s in range(len(SHAPES)) for c in range(len(_COLOURS)) if (s, c) not in here]
        if not absent:
            return None
        s, c = absent[rng.integers(len(absent))]
    which = tuple(k for k, kind in enumerate(here) if kind == (s, c))
    return f"is there {_COLOURS[c]} {SHAPES[s]} ?", "yes" if which else "no", which


def _count(
    rng: np.random.Generator, shape: list[int], colour: list[int], cell: list[int], grid: int
) -> _Asked:
    s = int(rng.integers(len(SHAPES)))
    which = tuple(k for k, other in enumerate(shape) if other == s)
    return f"how many {SHAPES[s]} ?", _NUMBERS[len(which)], which


def _what(
    rng: np.random.Generator, shape: list[int], colour: list[int], cell: list[int], grid: int
) -> _Asked:
    return ("what is this ?", f"{_COLOURS[colour[0]]} {SHAPES[shape[0]]}", (0,)) if len(shape) == 1 else None


def _beside(
    rng: np.random.Generator, shape: list[int], colour: list[int], cell: list[int], grid: int
) -> _Asked:
    here = list(zip(shape, colour, strict=True))
    options = []
    for a, kind in enumerate(here):
        if here.count(kind) == 1:
            for side, step in (("left", (0, -1)), ("right", (0, 1)), ("above", (-1, 0)), ("below", (1, 0))):
                k = _nearest(cell, a, step, grid)
                if k is not None:
                    options.append((a, side, k))
    chosen = _pick(rng, range(len(options)))
    if chosen is None:
        return None
    a, side, k = options[chosen]
    where = f"{side} of" if side in ("left", "right") else side
    anchor = f"{_COLOURS[colour[a]]} {SHAPES[shape[a]]}"
    return f"colour of the shape {where} the {anchor} ?", _COLOURS[colour[k]], (a, k)


KINDS: dict[str, Callable[[np.random.Generator, list[int], list[int], list[int], int], _Asked]] = {
    "colour": _colour,
    "shape": _shape,
    "exists": _exists,
    "count": _count,
    "what": _what,
    "beside": _beside,
}
"""The kinds of question, with the function that asks each."""


def _nearest(cell: list[int], a: int, step: tuple[int, int], grid: int) -> int | None:
    """The first object met from object a going step by step to the grid's edge."""
    row, column = divmod(cell[a], grid)
    while True:
        row, column = row + step[0], column + step[1]
        if not (0 <= row < grid and 0 <= column < grid):
            return None
        if row * grid + column in cell:
            return cell.index(row * grid + column)


def _pick(rng: np.random.Generator, options: Sequence[int]) -> int | None:
    return options[int(rng.integers(len(options)))] if len(options) else None


def _counts(scenes: Scenes) -> list[int]:
    return (scenes.shape >= 0).sum(axis=1).tolist()


def _objects(scenes: Scenes, image: int, positions: bool) -> list[str]:
    texts = []
    for s, c, cell in zip(scenes.shape[image], scenes.colour[image], scenes.cell[image], strict=True):
        if s >= 0:
            row, column = divmod(int(cell), scenes.grid)
            place = f" row {_NUMBERS[row + 1]} column {_NUMBERS[column + 1]}" if positions else ""
            texts.append(f"{_COLOURS[c]} {SHAPES[s]}{place}")
    return texts
