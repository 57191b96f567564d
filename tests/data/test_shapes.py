"""Scenes: pixels, masks, boxes and tables tell the same story, pixel by pixel."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.data import COLOURS, SHAPES, scenes


@st.composite
def drawn(draw):
    grid = draw(st.integers(1, 4))
    most = draw(st.integers(1, min(grid * grid, 5)))
    side = draw(st.integers(6, 16))
    low = draw(st.sampled_from([6 / side, 1.0]))
    return scenes(
        np.random.default_rng(draw(st.integers(0, 999))),
        3,
        size=grid * side,
        grid=grid,
        objects=(draw(st.integers(0, most)), most),
        scale=(low, draw(st.sampled_from([low, 1.0]))),
        distinct=draw(st.booleans()),
        noise=0.0,
    )


@given(drawn())
def test_tables_masks_boxes_and_pixels_agree(s):
    batch, size = s.images.shape[:2]
    side = size // s.grid
    for b in range(batch):
        n = int((s.shape[b] >= 0).sum())
        assert (s.shape[b, n:] == -1).all() and (s.colour[b, n:] == -1).all() and (s.cell[b, n:] == -1).all()
        assert not s.masks[b, n:].any() and not s.boxes[b, n:].any()
        assert (np.diff(s.cell[b, :n]) > 0).all()  # reading order, one object a cell
        assert s.masks[b].sum(axis=0).max(initial=0) <= 1
        for k in range(n):
            row, column = divmod(int(s.cell[b, k]), s.grid)
            y, x = np.nonzero(s.masks[b, k])
            assert y.min() >= row * side and y.max() < (row + 1) * side
            assert x.min() >= column * side and x.max() < (column + 1) * side
            assert s.boxes[b, k].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            pixels = s.images[b][s.masks[b, k]]
            assert (pixels == pixels[0]).all()
            tint = np.array(list(COLOURS.values())[s.colour[b, k]])
            bright = pixels[0] / tint
            assert 0.9 - 1e-6 <= bright.min() and (bright.max() <= 1.1 + 1e-6)
        assert (s.images[b][~s.masks[b].any(axis=0)] == 0.5).all()
        label = s.label_map()[b]
        for yy in range(0, size, 5):
            for xx in range(0, size, 5):
                at = [k for k in range(n) if s.masks[b, k, yy, xx]]
                assert label[yy, xx] == (1 + 4 * s.shape[b, at[0]] + s.colour[b, at[0]] if at else 0)


def inside(name, u, v):
    """The four shapes by their geometry, in [-1, 1]² with v downwards."""
    if name == "circle":
        return math.hypot(u, v) <= 0.9
    if name == "square":
        return -0.85 <= u <= 0.85 and -0.85 <= v <= 0.85
    if name == "triangle":  # apex (0, -1), the sides reach (-1, 1) and (1, 1)
        return -0.95 <= v <= 0.95 and 2 * u - v <= 1 and -2 * u - v <= 1
    return (abs(u) <= 1 / 3 and abs(v) <= 1) or (abs(v) <= 1 / 3 and abs(u) <= 1)


@pytest.mark.parametrize("side", [8, 13, 32])
def test_shapes_are_drawn_by_their_geometry(side):
    s = scenes(np.random.default_rng(0), 60, size=side, grid=1, objects=(1, 1), noise=0.0)
    for b in range(60):
        name, radius = SHAPES[s.shape[b, 0]], 0.75 * side / 2
        for y in range(side):
            for x in range(side):
                u, v = ((c + 0.5 - side / 2) / radius for c in (x, y))
                assert s.masks[b, 0, y, x] == inside(name, u, v)
    assert set(s.shape[:, 0]) == {0, 1, 2, 3} and set(s.colour[:, 0]) == {0, 1, 2, 3}


def test_every_shape_looks_different_at_every_size():
    for side in range(8, 33):
        s = scenes(np.random.default_rng(0), 400, size=side, grid=1, objects=(1, 1), scale=(6 / side, 1.0))
        looks = {}
        for k, mask in zip(s.shape[:, 0], s.masks[:, 0], strict=True):
            looks.setdefault(mask.tobytes(), set()).add(int(k))
        assert set.union(*looks.values()) == {0, 1, 2, 3}
        assert all(len(kinds) == 1 for kinds in looks.values())


def test_draws_are_uniform():
    s = scenes(np.random.default_rng(0), 3000, objects=(0, 3))
    counts = np.bincount((s.shape >= 0).sum(axis=1), minlength=4)
    assert (np.abs(counts - 750) < 5 * np.sqrt(750)).all()
    n = (s.cell >= 0).sum()
    for values, kinds in ((s.cell, 9), (s.shape, 4), (s.colour, 4)):
        share = np.bincount(values[values >= 0], minlength=kinds)
        assert (np.abs(share - n / kinds) < 5 * np.sqrt(n / kinds)).all()


def test_distinct_kinds():
    s = scenes(np.random.default_rng(0), 300, objects=(5, 5), distinct=True)
    assert all(len(set(row)) == 5 for row in s.classes().tolist())
    s = scenes(np.random.default_rng(0), 300, objects=(5, 5))
    assert any(len(set(row)) < 5 for row in s.classes().tolist())


def test_a_range_of_scales_moves_objects_and_one_scale_centres_them():
    s = scenes(np.random.default_rng(0), 400, size=32, grid=1, objects=(1, 1), scale=(0.4, 1.0))
    width = s.boxes[:, 0, 2] - s.boxes[:, 0, 0]
    assert width.min() <= 13 and width.max() >= 30
    centre = (s.boxes[:, 0, 0] + s.boxes[:, 0, 2]) / 2
    assert centre.min() < 12 and centre.max() > 20
    s = scenes(np.random.default_rng(0), 50, size=32, grid=1, objects=(1, 1), scale=(0.5, 0.5))
    assert (s.boxes[:, 0, 0] + s.boxes[:, 0, 2] == 32).all()


def test_noise_background_and_dtype():
    ground = np.random.default_rng(1).uniform(0.3, 0.7, (40, 3))
    s = scenes(np.random.default_rng(0), 40, noise=0.05, background=ground, dtype=np.float64)
    assert s.images.dtype == np.float64 and s.images.min() >= 0 and s.images.max() <= 1
    rest = [s.images[b][~s.masks[b].any(axis=0)] - ground[b] for b in range(40)]
    rest = np.concatenate(rest)
    assert abs(rest.mean()) < 0.001 and abs(rest.std() - 0.05) < 0.001
    one = scenes(np.random.default_rng(0), 2, noise=0.0, background=(0.1, 0.2, 0.3))
    assert np.allclose(one.images[~one.masks.any(axis=1)], (0.1, 0.2, 0.3))
    assert one.images.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 25}, "multiple of grid"),
        ({"size": 21}, "6 / 7 pixels"),
        ({"objects": (2, 1)}, "objects"),
        ({"objects": (0, 0)}, "objects"),
        ({"objects": (0, 10)}, "objects"),
        ({"objects": (-1, 1)}, "objects"),
        ({"size": 40, "grid": 5, "objects": (1, 17), "distinct": True}, "objects"),
        ({"scale": (0.7, 1.0)}, "scale"),
        ({"scale": (0.9, 0.8)}, "scale"),
        ({"scale": (0.8, 1.1)}, "scale"),
        ({"noise": -0.1}, "noise"),
        ({"noise": np.nan}, "noise"),
        ({"batch": 0}, "batch"),
        ({"background": np.zeros((3, 3))}, "background"),
        ({"background": np.nan}, "background"),
    ],
)
def test_bad_input(change, words):
    with pytest.raises(ValueError, match=words):
        scenes(np.random.default_rng(0), **{"batch": 2} | change)
    with pytest.raises(TypeError, match="rng"):
        scenes(0, 1)
