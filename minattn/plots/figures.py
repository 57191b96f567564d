"""Matplotlib figures that can be read on a light and on a dark page.

Every function returns a `Figure` that is closed for pyplot: as the last line of a cell it is shown once,
and it can be given a caption by ``glue`` or by the cell's options.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .page import as_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "curves", "heatmap", "ratios", "style"]

GREY = "#7a7a7a"
"""Contrast above 4:1 with a white page and with the theme's dark one."""

COLOURS = ("#3a86c8", "#e07b00", "#159a76", "#c2609c", "#8b6fd0", "#b0892b", "#d1495b")
"""Told apart by readers of every colour vision, in this order, and legible on white and on near-black."""


def style() -> dict[str, Any]:
    """Matplotlib settings of the book; for a figure of one's own: ``plt.rcParams.update(style())``."""
    from cycler import cycler

    grey = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        GREY,
    )
    clear = dict.fromkeys(
        ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"
    )
    return {
        **grey,
        **clear,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.grid": False,
        "grid.color": GREY,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "font.size": 10.5,
        "lines.linewidth": 1.8,
        "figure.dpi": 110,
        "image.cmap": "viridis",
    }


@contextlib.contextmanager
def new_figure(
    width: float, height: float, panels: int = 1, **options: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure with a row of axes, drawn in the book's style, and closed for pyplot at the end."""
    import matplotlib.pyplot as plt

    with plt.rc_context(style()):
        size = (width, height)
        figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False, **options)
        yield figure, axes[0]
    plt.close(figure)


def heatmap(
    weights: Any,
    *,
    queries: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    limits: tuple[float, float] | None = None,
    label: str = "weight",
    size: float = 3.2,
) -> Figure:
    """Draw attention maps: row i is a query, column j a key, one panel a head, all panels on one scale.

    Parameters
    ----------
    weights : array or Tensor
        Shape (N, M), or (H, N, M) for one panel a head. Entries that are not finite are left blank.
    queries, keys : sequence of str, optional
        Words for the N rows and M columns; without them, positions.
    titles : sequence of str, optional
        A title a panel; without it, ``head 0``, ``head 1``, ... if there are several.
    limits : (float, float), optional
        The values at the ends of the colour scale; without it, 0 and the largest weight.
    label : str
        What the colours mean.
    size : float
        Width of a panel in inches.

    Raises
    ------
    ValueError
        If a shape or a number of labels does not fit.
    """
    maps = as_numpy(weights)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or not maps.size:
        raise ValueError(f"weights must have shape (N, M) or (H, N, M), got {np.shape(as_numpy(weights))}")
    panels, rows, columns = maps.shape
    for name, words, count in (
        ("queries", queries, rows),
        ("keys", keys, columns),
        ("titles", titles, panels),
    ):
        if words is not None and len(words) != count:
            raise ValueError(f"{name} must hold {count} labels, got {len(words)}")
    low, high = limits if limits is not None else (min(0.0, float(np.nanmin(maps))), float(np.nanmax(maps)))
    width = min(size, 7.2 / panels)
    height = min(8.0, max(1.6, (width - 0.7) * rows / columns + 0.9))
    names = titles or ([f"head {h}" for h in range(panels)] if panels > 1 else [""])
    with new_figure(width * panels + 0.6, height, panels, sharey=True) as (figure, axes):
        for h, axis in enumerate(axes):
            shown = np.ma.masked_invalid(maps[h])
            image = axis.imshow(shown, vmin=low, vmax=high, aspect="equal", interpolation="nearest")
            axis.set(title=names[h], xlabel="key j", ylabel="query i" if h == 0 else "")
            axis.spines[:].set_visible(False)
            if keys is not None:
                axis.set_xticks(range(columns), keys, rotation=45, ha="right", rotation_mode="anchor")
            if queries is not None:
                axis.set_yticks(range(rows), queries)
            if rows * columns * panels <= 64:
                write_values(axis, maps[h], low, high)
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.02, label=label)
        bar.outline.set_visible(False)
    return figure


def write_values(axis: Any, values: np.ndarray, low: float, high: float) -> None:
    """Write each number into its cell, dark on the light end of the scale and light on the dark end."""
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = high > low and (value - low) / (high - low) > 0.6
            axis.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="#111" if dark else "#f4f4f4",
            )


def curves(
    lines: Mapping[str, Any],
    x: Any = None,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: str = "",
    size: tuple[float, float] = (5.8, 3.2),
) -> Figure:
    """Draw named curves, each with its own colour and dash, so that neither alone has to tell them apart.

    Parameters
    ----------
    lines : mapping of str to array
        The curves: name and values.
    x : array, optional
        The common horizontal positions; without it 0, 1, 2, ...
    xlabel, ylabel, title : str
        What the axes and the figure show, with units.
    log : str
        Axes with a logarithmic scale: "", "x", "y" or "xy".
    size : (float, float)
        Width and height in inches.
    """
    if not lines:
        raise ValueError("lines must name at least one curve, got none")
    if not set(log) <= set("xy"):
        raise ValueError(f"log must be '', 'x', 'y' or 'xy', got {log!r}")
    dashes = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))
    with new_figure(*size) as (figure, (axis,)):
        for index, (name, values) in enumerate(lines.items()):
            y = as_numpy(values)
            positions = np.arange(len(y)) if x is None else as_numpy(x)
            if positions.shape != y.shape:
                raise ValueError(
                    f"lines[{name!r}] must have the shape of x, {positions.shape}, got {y.shape}"
                )
            axis.plot(positions, y, label=name, linestyle=dashes[index % len(dashes)])
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axis.grid(True)
        for letter in log:
            getattr(axis, f"set_{letter}scale")("log")
        if len(lines) > 1:
            axis.legend()
    return figure


def ratios(values: Mapping[str, float], *, label: str, title: str = "") -> Figure:
    """Draw positive ratios as bars from the line at 1, on a log scale: 2 and ½ are equally far from it.

    Parameters
    ----------
    values : mapping of str to float
        Names and ratios, first at the top.
    label : str
        What is divided by what, such as "time / time of PyTorch".
    title : str
        What the figure shows.
    """
    numbers = np.array(list(values.values()), dtype=float)
    if not numbers.size or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(f"values must be positive and finite, got {dict(values)}")
    colours = [COLOURS[2] if n <= 1 else COLOURS[1] for n in numbers]
    with new_figure(5.8, 0.38 * len(values) + 1.1) as (figure, (axis,)):
        axis.barh(list(values), numbers - 1, left=1, color=colours)
        axis.axvline(1, color=GREY, linewidth=1)
        for row, n in enumerate(numbers):
            side, align = (4, "left") if n > 1 else (-4, "right")
            axis.annotate(f"{n:.2f}×", (n, row), (side, 0), textcoords="offset points", va="center", ha=align)
        low, high = min(0.5, numbers.min() / 2.4), max(2.0, numbers.max() * 1.6)
        axis.set(xscale="log", xlabel=label, title=title, xlim=(low, high))
        ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
        axis.invert_yaxis()
    return figure
