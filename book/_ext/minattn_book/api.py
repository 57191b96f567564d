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

BAR = re.compile(r"(`[^`]*`)|(?<!\\)\|(?=\S)")
LINE = re.compile(r"^\{api\}`([\w.]+)`$", re.M)


def modules_of(package: ModuleType) -> list[ModuleType]:
    """The package's public modules in alphabetical order, or the module itself if it is no package."""
    if not hasattr(package, "__path__"):
        return [package]
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    return [
        importlib.import_module(f"{package.__name__}.{name}") for name in names if not name.startswith("_")
    ]


def home(obj: Any) -> str | None:
    """The module that an object was written in; for what a factory made, that of the function inside."""
    return getattr(inspect.unwrap(obj), "__module__", None) if callable(obj) else None


def public_names(module: ModuleType) -> list[str]:
    """Documented classes and functions that `module` defines, in the order of the file."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    objects = {name: getattr(module, name) for name in names}
    mine = {module.__name__}
    return [
        name for name, obj in objects.items() if callable(obj) and home(obj) in mine and inspect.getdoc(obj)
    ]


def entry(package: ModuleType, module: ModuleType, name: str) -> str:
    """The autodoc lines of one public name."""
    obj = getattr(module, name)
    path = package.__name__ if getattr(package, name, None) is obj else module.__name__
    if inspect.isclass(obj):
        return f".. autoclass:: {path}.{name}\n   :members:\n"
    return f".. autofunction:: {path}.{name}\n"


def reference(package_name: str) -> str:
    """The MyST Markdown of a package's reference."""
    package = importlib.import_module(package_name)
    parts = []
    for module in modules_of(package):
        names = public_names(module)
        if not names:
            continue
        lines = "\n".join(entry(package, module, name) for name in names)
        about = "\n".join(plain_bars((inspect.getdoc(module) or "").splitlines()))
        heading = f"## {module.__name__.rpartition('.')[2]}\n\n" if module is not package else ""
        parts.append(f"{heading}```{{eval-rst}}\n{about}\n\n{lines}\n```\n")
    return "\n".join(parts)


def plain_bars(lines: list[str]) -> list[str]:
    """Let the bars of |x| be bars: reStructuredText would look for a substitution between them."""

    def escape(match: re.Match[str]) -> str:
        return match.group(1) or "\\|"

    return [line if line.startswith("    ") else BAR.sub(escape, line) for line in lines]


def process_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = plain_bars(lines)


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
    app.connect("autodoc-process-docstring", process_docstring, priority=900)
