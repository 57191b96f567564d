"""What a page of the book is, and whether the results stored for it still hold.

A page is a MyST Markdown file.  If its front matter says that it is a notebook, its code cells are executed
(``execute.py``) and their outputs are stored beside everything they were computed from:

    _build/pages/<name>.json = {code, versions, files: {path: sha256 or null}, seconds, error, outputs}

The stored outputs hold as long as the code of the page, the versions of the numerical packages, and every
file of this repository that the run imported or opened are what they were.  One file a page, written under a
temporary name and then renamed: a build that is killed leaves either the old results or the new ones, never
half of either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("numpy", "scipy", "numba", "matplotlib", "ipykernel")
IGNORED = (".git", ".venv", "_build/pages", "_build/html", "_build/.doctrees")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` never holds a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a page's numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def front_matter(text: str) -> dict[str, Any]:
    """The YAML block between the two leading ``---`` lines, or an empty dictionary."""
    if not text.startswith("---"):
        return {}
    block = text.split("\n---", 1)[0].removeprefix("---")
    found = yaml.safe_load(block)
    return found if isinstance(found, dict) else {}


@dataclasses.dataclass(frozen=True)
class Page:
    """One Markdown file of the book, by its name without suffix: ``chapters/position/contextual``."""

    name: str
    root: Path = ROOT

    @property
    def path(self) -> Path:
        return self.root / f"{self.name}.md"

    @property
    def store(self) -> Path:
        return self.root / "_build" / "pages" / f"{self.name}.json"

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def meta(self) -> dict[str, Any]:
        return front_matter(self.text)

    @property
    def is_notebook(self) -> bool:
        from myst_nb.core.read import is_myst_markdown_notebook

        return is_myst_markdown_notebook(self.text)

    def notebook(self) -> nbformat.NotebookNode:
        """The page as a notebook without outputs."""
        from myst_nb.core.read import read_myst_markdown_notebook

        return read_myst_markdown_notebook(self.text, path=str(self.path))

    def stored(self) -> dict[str, Any] | None:
        """What was stored for this page, or None if nothing was."""
        try:
            return json.loads(self.store.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def why_stale(self, stored: dict[str, Any] | None, now: dict[str, str]) -> str | None:
        """The first reason why `stored` no longer holds, or None if it does."""
        if stored is None:
            return "never executed"
        if stored["error"] is not None:
            return "failed last time"
        if stored["code"] != code_hash(self.notebook()):
            return "its code changed"
        if stored["versions"] != now:
            return "package versions changed"
        for file, digest in stored["files"].items():
            if file_hash(self.root / file) != digest:
                return f"{file} changed"
        return None


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """A key for what would be executed: sources and tags of the code cells, in order."""
    cells = [[cell.source, sorted(cell.metadata.get("tags", []))] for cell in code_cells(notebook)]
    return sha256(json.dumps(cells).encode())


def file_hash(path: Path) -> str | None:
    """SHA-256 of a file, or None where there is none."""
    try:
        return sha256(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def tracked(path: str, root: Path) -> str | None:
    """`path` relative to `root` if a change of that file should make a page stale, else None."""
    absolute = os.path.abspath(path)
    if not absolute.startswith(f"{root}{os.sep}"):
        return None
    relative = Path(absolute).relative_to(root).as_posix()
    if "__pycache__" in relative or relative.startswith(tuple(f"{part}/" for part in IGNORED)):
        return None
    return relative


def pages_in_toc(root: Path = ROOT) -> list[Page]:
    """Every page that ``book/_toc.yml`` lists, in the order of reading."""
    found: list[Page] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            name = node.get("root") or node.get("file")
            if name is not None:
                found.append(Page(name.removesuffix(".md"), root))
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(yaml.safe_load((root / "book" / "_toc.yml").read_text(encoding="utf-8")))
    return found
