"""API pages from docstrings: a line ``{api}`minattn.autograd``` in ``book/api/*.md`` becomes its reference.

Every public name of every module of the package gets an autodoc entry under the shortest path it can be
imported from.  Entries are written out one by one, since autodoc's own search passes over functions that a
factory made.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer

MARK = re.compile(r"(?P<code>`[^`]*`)|(?<!\\)(?P<mark>[|*]|(?<=\w)_(?!\w))")
LINE = re.compile(r"^\{api\}`([\w.]+)`$", re.M)


def modules_of(package: ModuleType) -> list[ModuleType]:
    """The package itself, then its public modules in alphabetical order."""
    inside = sorted(info.name for info in pkgutil.iter_modules(getattr(package, "__path__", [])))
    names = [f"{package.__name__}.{name}" for name in inside if not name.startswith("_")]
    return [package, *map(importlib.import_module, names)]


def home(obj: Any) -> str | None:
    """The module that an object was written in; for what a factory made, that of the function inside."""
    return getattr(inspect.unwrap(obj), "__module__", None) if callable(obj) else None


def public_names(module: ModuleType) -> list[str]:
    """Documented classes and functions that `module` defines: those in ``__all__``, or all without _."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    return [
        name
        for name in names
        if callable(obj := getattr(module, name)) and home(obj) == module.__name__ and inspect.getdoc(obj)
    ]


def entries(package: ModuleType, module: ModuleType) -> list[str]:
    """The autodoc lines of a module: what its package exports, or else what its ``__all__`` lists."""
    exported = getattr(package, "__all__", ())
    path = package.__name__
    names = [name for name, obj in vars(module).items() if name in exported and home(obj) == module.__name__]
    if not names and (hasattr(module, "__all__") or not exported):
        path, names = module.__name__, public_names(module)
    lines = []
    for name in names:
        if inspect.isclass(getattr(module, name)):
            lines.append(f".. autoclass:: {path}.{name}\n   :members:\n")
        else:
            lines.append(f".. autofunction:: {path}.{name}\n")
    return lines


def reference(package_name: str) -> str:
    """The MyST Markdown of a package's reference."""
    package = importlib.import_module(package_name)
    parts = []
    for module in modules_of(package):
        lines = "\n".join(entries(package, module))
        if not lines:
            continue
        heading = f"## {module.__name__.rpartition('.')[2]}\n\n" if module is not package else ""
        parts.append(f"{heading}```{{eval-rst}}\n{about(module)}\n\n{lines}\n```\n")
    return "\n".join(parts)


def plain(lines: list[str]) -> list[str]:
    """A docstring in which bars, stars and trailing underscores are just that, as they are in formulas.

    Code between backticks, in doctests and in literal blocks stays as it is.
    """

    def escape(match: re.Match[str]) -> str:
        return match["code"] or f"\\{match['mark']}"

    out, literal, last = [], None, ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None and not line.lstrip().startswith((">>>", ".. ")):
            out.append(MARK.sub(escape, line))
        else:
            out.append(line)
        if line.strip():
            last = line
        if literal is None and last.rstrip().endswith("::"):
            literal = len(last) - len(last.lstrip())
    return out


def process_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = plain(lines)


def about(module: ModuleType) -> str:
    """A module's docstring as reStructuredText: paragraphs as prose, anything indented as it stands."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", inspect.getdoc(module) or ""):
        lines = paragraph.splitlines()
        if any(line.startswith(" ") for line in lines):
            parts.append("::\n\n" + "\n".join(f"    {line}" for line in lines))
        else:
            parts.append("\n".join(plain(lines)))
    return "\n\n".join(parts)


def find_source(app: Sphinx, module_name: str) -> tuple[str, dict[str, tuple[str, int, int]]] | None:
    """For the source pages: a module's code and where its names begin, those that a factory made included."""
    try:
        analyser = ModuleAnalyzer.for_module(module_name)
    except PycodeError:
        return None
    analyser.find_tags()
    tags = dict(analyser.tags)
    for name, obj in vars(importlib.import_module(module_name)).items():
        if name not in tags and callable(obj) and home(obj) == module_name:
            inner = getattr(inspect.unwrap(obj), "__qualname__", None)
            if inner in analyser.tags:
                tags[name] = analyser.tags[inner]
    return analyser.code, tags


def expand(app: Sphinx, name: str, source: list[str]) -> None:
    """Write the reference in place of its line, and let the page depend on the package's files."""
    if not name.startswith("book/api/"):
        return
    for package_name in LINE.findall(source[0]):
        package = importlib.import_module(package_name)
        for module in modules_of(package):
            app.env.note_dependency(module.__file__)
    source[0] = LINE.sub(lambda match: reference(match.group(1)), source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", expand)
    app.connect("viewcode-find-source", find_source)
    app.connect("autodoc-process-docstring", process_docstring, priority=100)
