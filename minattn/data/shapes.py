"""Coloured shapes on a grey ground: images with everything about them known.

A scene is a grid of cells with at most one shape in each. `scenes` draws them with their masks, boxes and
classes; `captions` and `questions` say something about them in a small vocabulary, `WORDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._check import at_least, generator
from ._draw import draw_distinct

__all__ = ["COLOURS", "SHAPES", "Scenes", "scenes"]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.9, 0.15, 0.15),
    "green": (0.15, 0.75, 0.2),
    "blue": (0.2, 0.3, 0.95),
    "yellow": (0.95, 0.85, 0.15),
}


class Scenes(NamedTuple):
    """A batch of scenes; K is the largest number of objects, which stand in reading order of their cells.

    Attributes
    ----------
    images : float array (batch, size, size, 3)
    shape, colour : int64 array (batch, K)
        Numbers into `SHAPES` and `COLOURS`; -1 where there is no k-th object.
    cell : int64 array (batch, K)
        row·grid + column; -1 where there is no object.
    boxes : int64 array (batch, K, 4)
        x0, y0, x1, y1 in pixels, x1 and y1 excluded: image[y0:y1, x0:x1] just holds the object; 0 where there
        is none.
    masks : bool array (batch, K, size, size)
        The object's pixels; no two objects share one.
    grid : int
        Cells along a side.
    """

    images: NDArray[np.floating]
    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    cell: NDArray[np.int64]
    boxes: NDArray[np.int64]
    masks: NDArray[np.bool_]
    grid: int

    def classes(self) -> NDArray[np.int64]:
        """(batch, K) detection classes shape·4 + colour, -1 where there is no object."""
        return np.where(self.shape < 0, -1, self.shape * len(COLOURS) + self.colour)

    def label_map(self) -> NDArray[np.int64]:
        """(batch, size, size) segmentation target: 0 on the ground, 1 + class on an object."""
        return np.einsum("bkyx,bk->byx", self.masks.astype(np.int64), self.classes() + 1)


def scenes(
    rng: np.random.Generator,
    batch: int,
    size: int = 24,
    grid: int = 3,
    objects: tuple[int, int] = (1, 3),
    scale: tuple[float, float] = (0.75, 0.75),
    distinct: bool = False,
    noise: float = 0.08,
    background: ArrayLike = 0.5,
    dtype: DTypeLike = np.float32,
) -> Scenes:
    """Random scenes: a number of objects, their cells, shapes, colours, sizes and places within the cell.

    A scene of a 3 by 3 grid may be, as its caption would say it: `red square and blue circle`.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of everything drawn.
    batch, size, grid : int
        Number of scenes, pixels and cells along a side; size a multiple of grid.
    objects : (int, int)
        Fewest and most objects in a scene, both included; the number is uniform.
    scale : (float, float)
        Range of an object's diameter in cells, at most 1, and at least 6 pixels. A wide range gives detection
        scenes: small objects are placed anywhere within their cell. At the default all are of one size, and
        in the middle.
    distinct : bool
        No two objects of a scene agree in both shape and colour.
    noise : float
        Standard deviation of the pixel noise.
    background : float, (3,) or (batch, 3)
        The ground's colour: of all scenes, or of each.
    dtype
        Of the images.

    Returns
    -------
    Scenes
        Colours vary in brightness by up to a tenth; values are clipped to [0, 1].
    """
    generator(rng)
    _check(batch, size, grid, objects, scale, distinct, noise)
    most = objects[1]
    count = rng.integers(objects[0], most + 1, size=(batch, 1))
    present = np.arange(most) < count
    cell = draw_distinct(rng, batch, grid * grid, most)
    cell = np.sort(np.where(present, cell, grid * grid), axis=1)  # reading order, absent ones last
    kind = _kinds(rng, batch, most, distinct)
    b, k = np.nonzero(present)
    row, column, kind_of = *np.divmod(cell[b, k], grid), kind[b, k]
    patch = _patches(rng, kind_of // len(COLOURS), size // grid, scale)
    tint = np.array(list(COLOURS.values()))[kind_of % len(COLOURS)] * rng.uniform(0.9, 1.1, (len(b), 1))
    # The same pixels seen as (..., row of cells, y in the cell, column of cells, x in the cell).
    cells = (grid, size // grid, grid, size // grid)
    masks = np.zeros((batch, most, size, size), dtype=bool)
    masks.reshape(batch, most, *cells)[b, k, row, :, column] = patch
    images = np.empty((batch, size, size, 3))
    images[:] = _ground(background, batch)[:, None, None]
    view = images.reshape(batch, *cells, 3)
    view[b, row, :, column] = np.where(patch[..., None], tint[:, None, None], view[b, row, :, column])
    images += noise * rng.standard_normal(images.shape, dtype=np.float32)
    images = np.clip(images, 0, 1, out=images).astype(dtype)
    shape, colour, cell = (
        np.where(present, a, -1) for a in (kind // len(COLOURS), kind % len(COLOURS), cell)
    )
    return Scenes(images, shape, colour, cell, _boxes(masks), masks, grid)


def _check(
    batch: int,
    size: int,
    grid: int,
    objects: Sequence[int],
    scale: Sequence[float],
    distinct: bool,
    noise: float,
) -> None:
    at_least(1, batch=batch, size=size, grid=grid)
    if size % grid:
        raise ValueError(f"size must be a multiple of grid, got {size} and {grid}")
    most = min(grid * grid, len(SHAPES) * len(COLOURS)) if distinct else grid * grid
    if not 0 <= objects[0] <= objects[1] <= most or objects[1] < 1:
        raise ValueError(f"objects must be 0 <= fewest <= most <= {most} with most >= 1, got {objects}")
    side = size // grid
    if not 6 <= scale[0] * side or not scale[0] <= scale[1] <= 1:  # smaller ones could not be told apart
        raise ValueError(f"scale must be 6 / {side} pixels of a cell <= low <= high <= 1, got {scale}")
    if not noise >= 0:
        raise ValueError(f"noise must not be negative, got {noise}")


def _ground(background: ArrayLike, batch: int) -> NDArray[np.float64]:
    """(batch, 3) colours from one number, one colour, or one for each scene."""
    ground = np.asarray(background, dtype=np.float64)
    if ground.shape not in ((), (3,), (batch, 3)) or not ((ground >= 0) & (ground <= 1)).all():
        raise ValueError(
            f"background must be in [0, 1] and a number, (3,) or ({batch}, 3), got shape {ground.shape}"
        )
    return np.broadcast_to(ground, (batch, 3))


def _kinds(rng: np.random.Generator, batch: int, most: int, distinct: bool) -> NDArray[np.int64]:
    """(batch, most) numbers shape·4 + colour."""
    kinds = len(SHAPES) * len(COLOURS)
    return draw_distinct(rng, batch, kinds, most) if distinct else rng.integers(kinds, size=(batch, most))


def _patches(
    rng: np.random.Generator, shape: NDArray[np.int64], side: int, scale: tuple[float, float]
) -> NDArray[np.bool_]:
    """(n, side, side): the pixels whose centres lie inside each object, at a random scale and place."""
    radius = rng.uniform(*scale, size=(len(shape), 1)) * side / 2
    # With one scale for all, objects stand in the middle; with a range, anywhere in the room that is left.
    room = (side / 2 - radius) * (scale[0] < scale[1])
    x, y = (side / 2 + room * rng.uniform(-1, 1, size=radius.shape) for _ in range(2))
    pixel = np.arange(side) + 0.5
    u, v = ((pixel - c) / radius for c in (x, y))
    return _inside(shape[:, None, None], u[:, None, :], v[:, :, None])


def _inside(shape: NDArray[np.int64], u: NDArray[np.floating], v: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether the point (u to the right, v down) lies in the shape within [-1, 1]²."""
    a, b = np.abs(u), np.abs(v)
    forms = [
        u * u + v * v <= 0.81,  # circle
        np.maximum(a, b) <= 0.85,  # square
        (b <= 0.95) & (a <= (v + 1) / 2),  # triangle, its point up
        (np.minimum(a, b) <= 1 / 3) & (np.maximum(a, b) <= 1),  # cross
    ]
    return np.select([shape == k for k in range(len(SHAPES))], forms)


def _boxes(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(..., 4) x0, y0, x1, y1 of each mask; 0 for an empty one."""
    edges = []
    for axis in (-2, -1):  # over rows, leaving x; over columns, leaving y
        line = np.asarray(masks.any(axis=axis))
        last = line.shape[-1] - line[..., ::-1].argmax(axis=-1)
        edges.append((line.argmax(axis=-1), np.where(line.any(axis=-1), last, 0)))
    (x0, x1), (y0, y1) = edges
    return np.stack([x0, y0, x1, y1], axis=-1)
