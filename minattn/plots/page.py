"""Sources, differences of sources, and tables of checks, for the pages of the book."""

from __future__ import annotations

import dataclasses
import difflib
import html
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CheckFailed", "Checks", "Shown", "note", "show_diff", "show_source"]

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Shown:
    """Something with a text form for terminals and an HTML form for pages."""

    text: str
    html: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


# ---- sources -------------------------------------------------------------------------------------


def source_of(obj: Any) -> str:
    """The source of a library object, as written; of a primitive, its forward function and its derivative."""
    if not callable(obj) and not inspect.ismodule(obj):
        raise TypeError(f"obj must be a function, class, method or module, got {type(obj).__name__}")
    parts = [inspect.getsource(inspect.unwrap(obj))]
    if inspect.isfunction(derivative := getattr(obj, "derivative", None)):
        parts.append(inspect.getsource(derivative))
    return "\n".join(textwrap.dedent(part).rstrip() + "\n" for part in parts)


def place_of(obj: Any) -> str:
    """File and first line of an object, such as ``minattn/attention/masks.py, line 12``."""
    inner = inspect.unwrap(obj)
    path = Path(inspect.getsourcefile(inner) or "").resolve()
    if path.is_relative_to(REPOSITORY):
        path = path.relative_to(REPOSITORY)
    return f"{path.as_posix()}, line {max(1, inspect.getsourcelines(inner)[1])}"


def highlighted(source: str) -> str:
    """Python source as HTML spans whose colours come from the page's style sheet."""
    try:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer
    except ImportError:
        return html.escape(source)
    return highlight(source, PythonLexer(), HtmlFormatter(nowrap=True))


def file_line(obj: Any) -> str:
    """The caption of a source box; the book turns it into a link to the source page."""
    inner = inspect.unwrap(obj)
    name = html.escape(getattr(inner, "__qualname__", "").removeprefix("_"))
    module = html.escape(str(getattr(inner, "__module__", None) or inner.__name__))
    return (
        f'<p class="minattn-file" data-module="{module}" data-name="{name}">{html.escape(place_of(obj))}</p>'
    )


def show_source(obj: Any) -> Shown:
    """Show the library's own source of `obj`, so that a page can never drift from the code.

    Parameters
    ----------
    obj : function, class, method or module
        What to show. For a primitive, its derivative is shown below it.

    Raises
    ------
    TypeError
        If `obj` has no source of its own.
    """
    source = source_of(obj)
    body = f'<pre class="highlight" tabindex="0">{highlighted(source)}</pre>'
    return Shown(f"# {place_of(obj)}\n{source}", f'<div class="minattn-source">{file_line(obj)}{body}</div>')


def show_diff(old: Any, new: Any) -> Shown:
    """Show how the source of `new` differs from that of `old`: for a variant, the difference is the lesson.

    Parameters
    ----------
    old, new : function, class, method or module
        What to compare. Unchanged lines are kept, so that the whole of `new` can be read.

    Raises
    ------
    ValueError
        If the two sources are equal, so that there is nothing to show.
    """
    before, after = source_of(old).splitlines(), source_of(new).splitlines()
    if before == after:
        raise ValueError("old and new must differ, got two equal sources")
    lines = [line for line in difflib.ndiff(before, after) if not line.startswith("?")]
    body = ""
    for line in lines:
        tag = {"+ ": "ins", "- ": "del", "  ": "span"}[line[:2]]
        body += f'<{tag} class="line">{line[:2]}{highlighted(line[2:]).rstrip()}</{tag}>'
    heading = f"- {place_of(old)}\n+ {place_of(new)}\n"
    boxes = f'{file_line(old)}{file_line(new)}<pre class="highlight" tabindex="0">{body}</pre>'
    return Shown(heading + "\n".join(lines), f'<div class="minattn-source minattn-diff">{boxes}</div>')


# ---- numbers in the text ---------------------------------------------------------------------------


def note(name: str, value: Any) -> None:
    """Keep a number for the page's text, where `` {glue:text}`name:.2f` `` shows it; elsewhere do nothing."""
    try:
        from myst_nb import glue
    except ImportError:  # a page that runs as a notebook without the book's tools
        return
    glue(name, value.item() if hasattr(value, "item") else value, display=False)


# ---- checks --------------------------------------------------------------------------------------


class CheckFailed(AssertionError):
    """A check on a page does not hold."""


@dataclasses.dataclass(frozen=True)
class Check:
    name: str
    kind: str
    error: str
    tolerance: str


def as_numpy(x: Any) -> np.ndarray:
    """`x` as a NumPy array, wherever it lives: a Tensor, a PyTorch tensor, a CuPy array, a list, a number."""
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "detach"):
        x = x.detach()
    for method in ("numpy", "get"):
        if hasattr(x, method):
            return np.asarray(getattr(x, method)())
    return np.asarray(x)


class Checks:
    """A table of checks, computed while the page runs. One that does not hold raises, and no book is built.

    >>> checks = Checks("What equals what")
    >>> checks.close("naive = fast", got=[1.0, 2.0], want=[1.0, 2.0], tol=1e-12)
    >>> checks.true("weights are not negative", True)
    >>> checks
    What equals what
    check                      type     largest error  tolerance  verdict
    naive = fast               float64  0              1e-12      holds
    weights are not negative                                      holds

    Parameters
    ----------
    title : str
        The caption of the table.
    """

    def __init__(self, title: str = "Checks") -> None:
        self.title = title
        self.rows: list[Check] = []

    def close(self, name: str, got: Any, want: Any, tol: float) -> None:
        """Check max|got − want| ≤ tol, with equal shapes and nothing undefined.

        Raises
        ------
        CheckFailed
            If it does not hold.
        ValueError
            If the check could not fail: nothing to compare, or a tolerance as large as the values themselves.
        """
        a, b = as_numpy(got), as_numpy(want)
        if a.shape != b.shape:
            raise CheckFailed(f"{name}: got has shape {a.shape}, want has shape {b.shape}")
        finite = np.abs(b[np.isfinite(b)])
        if not finite.size:
            raise ValueError(f"{name}: want must hold finite numbers to compare with, got shape {b.shape}")
        if not 0 <= tol < finite.max():
            raise ValueError(
                f"{name}: tol must be at least 0 and below the largest entry of want ({finite.max():.3g}), "
                f"got {tol:.3g}; for comparing with zeros there are `equal` and `true`"
            )
        with np.errstate(invalid="ignore"):
            gap = np.where(a == b, 0.0, np.abs(a - b))
        error = float(np.max(gap))
        if not error <= tol:
            at = tuple(int(i) for i in np.unravel_index(np.argmax(np.nan_to_num(gap, nan=np.inf)), gap.shape))
            raise CheckFailed(f"{name}: largest error {error:.3g} at {at} is above the tolerance {tol:.3g}")
        self.rows.append(Check(name, str(np.result_type(a, b)), f"{error:.2g}", f"{tol:.2g}"))

    def equal(self, name: str, got: Any, want: Any) -> None:
        """Check that two arrays are the same in shape and in every entry, to the last bit."""
        a, b = as_numpy(got), as_numpy(want)
        if a.shape != b.shape:
            raise CheckFailed(f"{name}: got has shape {a.shape}, want has shape {b.shape}")
        if not a.size:
            raise ValueError(f"{name}: got must have entries to compare, got shape {a.shape}")
        if not np.array_equal(a, b):
            raise CheckFailed(f"{name}: {np.count_nonzero(a != b)} of {a.size} entries differ")
        self.rows.append(Check(name, str(np.result_type(a, b)), "0", "exact"))

    def true(self, name: str, condition: Any) -> None:
        """Check a condition; an array of conditions must hold everywhere."""
        holds = as_numpy(condition)
        if holds.dtype != np.bool_ or not holds.size:
            raise TypeError(
                f"{name}: condition must be boolean and not empty, got {holds.dtype}, {holds.shape}"
            )
        if not holds.all():
            raise CheckFailed(f"{name}: holds for {np.count_nonzero(holds)} of {holds.size}")
        self.rows.append(Check(name, "", "", ""))

    def raises(
        self, name: str, error: type[Exception], call: Callable[..., Any], *args: Any, **options: Any
    ) -> None:
        """Check that ``call(*args, **options)`` raises `error`: mistakes must be caught, not swallowed."""
        try:
            call(*args, **options)
        except error:
            self.rows.append(Check(name, error.__name__, "", "raises"))
        else:
            raise CheckFailed(f"{name}: {error.__name__} was not raised")

    def _table(self) -> list[tuple[str, ...]]:
        return [(row.name, row.kind, row.error, row.tolerance, "holds") for row in self.rows]

    def __repr__(self) -> str:
        table = [("check", "type", "largest error", "tolerance", "verdict"), *self._table()]
        widths = [max(len(row[column]) for row in table) for column in range(5)]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in table
        ]
        return "\n".join([self.title, *map(str.rstrip, lines)])

    def _repr_html_(self) -> str:
        titles = ("Check", "Type", "Largest error", "Tolerance", "Verdict")
        heads = "".join(f'<th scope="col">{title}</th>' for title in titles)
        rows = "".join(
            f'<tr><th scope="row">{html.escape(name)}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            + f'<td class="holds">✓ {verdict}</td></tr>'
            for name, *cells, verdict in self._table()
        )
        caption = f"<caption>{html.escape(self.title)}</caption>"
        table = f"{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
        return f'<div class="minattn-scroll" tabindex="0"><table class="minattn-checks">{table}</table></div>'
