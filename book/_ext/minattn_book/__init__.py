"""The Sphinx extension of the book: stored outputs, page headers, chapter map, API pages, downloads.

Pages are executed before Sphinx runs (``execute.py``); here their stored outputs are put in place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
from myst_nb.core.execute.base import NotebookClientBase
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from . import api, header
from .pages import Page, code_cells, code_hash, file_hash, sha256


def bare_number(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A glued NumPy scalar as a plain number, so that ``{glue:text}`name:.2f``` can format it."""
    if "scrapbook" in output.get("metadata", {}):
        for kind, text in output.data.items():
            if kind.endswith("text/plain"):  # with or without `application/papermill.record/` before it
                output.data[kind] = re.sub(r"^np\.\w+\((.*)\)$", r"\1", text)
    return output


class StoredOutputs(NotebookClientBase):
    """Takes the place of MyST-NB's executing clients: fills in the outputs that ``execute.py`` stored."""

    def start_client(self) -> None:
        if self.path is None:
            return
        root = Path(self._kwargs["root"])
        name = self.path.relative_to(root).with_suffix("").as_posix()
        stored = Page(name, root).stored()
        cells = code_cells(self.notebook)
        if stored is None or stored["code"] != code_hash(self.notebook):
            if cells:
                self.logger.warning(f"no stored results for this page's code: `make page PAGE={name}.md`")
            return
        self.notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
        for count, (cell, outputs) in enumerate(zip(cells, stored["outputs"], strict=True), 1):
            cell.execution_count = count
            cell.outputs = [bare_number(nbformat.from_dict(output)) for output in outputs]
        self.exec_metadata = {
            "mtime": Page(name, root).store.stat().st_mtime,
            "runtime": stored["seconds"],
            "method": "stored",
            "succeeded": stored["error"] is None,
            "error": stored["error"] and stored["error"].strip().splitlines()[-1],
            "traceback": stored["error"],
        }
        if stored["error"]:
            self.logger.warning(f"this page failed: {self.exec_metadata['error']}", subtype="exec")


def use_stored_outputs(app: Sphinx) -> None:
    import myst_nb.sphinx_

    def create_client(notebook: Any, source: str, nb_config: Any, logger: Any, read_fmt: Any = None) -> Any:
        return StoredOutputs(notebook, Path(source), nb_config, logger, root=app.srcdir)

    myst_nb.sphinx_.create_client = create_client


def remember_outputs(app: Sphinx, name: str, source: list[str]) -> None:
    """While a page is read: note which stored outputs it was read with."""
    app.env.metadata[name]["minattn_outputs"] = file_hash(Page(name, Path(app.srcdir)).store)


def outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Pages whose stored outputs changed since Sphinx read them, and those made from the whole repository."""
    root = Path(app.srcdir)
    return [
        name
        for name in env.found_docs
        if name == "book/atlas"
        or env.metadata[name].get("minattn_outputs") != file_hash(Page(name, root).store)
    ]


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Keep Thebe, which loads from elsewhere and is not used, out of every page."""
    context["script_files"] = [
        file
        for file in context.get("script_files", [])
        if "thebe" not in str(getattr(file, "filename", file) or "").lower()
        and "THEBE_JS_URL" not in str(getattr(file, "attributes", {}).get("body", ""))
    ]


def offer_notebook(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Put the executed notebook among the downloads of its page."""
    executed = Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"
    if not executed.exists():
        return
    notebook = nbformat.read(executed, as_version=4)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    target = Path(app.outdir) / "_sources" / f"{page}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    context["ipynb_source"] = f"{page}.ipynb"


def machinery() -> str:
    """A key for this extension: when it changes, Sphinx reads every page anew."""
    return sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("minattn_machinery", machinery(), "env")
    app.connect("builder-inited", use_stored_outputs)
    app.connect("source-read", remember_outputs)
    app.connect("env-get-outdated", outdated)
    app.connect("html-page-context", offer_notebook, priority=100)
    app.connect("html-page-context", drop_thebe, priority=900)
    header.setup(app)
    api.setup(app)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
