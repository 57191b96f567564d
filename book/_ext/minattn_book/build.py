"""``python -m minattn_book.build``: execute the stale pages, then let Jupyter Book turn everything into HTML.

Killing it at any moment is safe.  Pages are stored one by one (``pages.py``).  Sphinx is not so careful, so a
marker stands while it runs: if it still stands at the next start, the HTML is made anew.  So it is after a
warning, which Sphinx would not repeat, and the second build of a bad book would look good.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from .execute import execute_stale
from .pages import ROOT, Page, pages_in_toc

PROGRESS = re.compile(r"(reading sources|writing output)\.\.\. .*\[ *(\d+)%")
WARNING = re.compile("WARNING|ERROR")
BAR = "  {desc}: {percentage:3.0f}%|{bar:30}| {elapsed}"


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Let one build at a time work in ``_build``; a second one waits and says so."""
    (root / "_build").mkdir(exist_ok=True)
    with open(root / "_build" / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another build is running here; waiting for it ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sphinx(root: Path, only: str | None = None) -> int:
    """Build the HTML, in which any warning is a failure; with `only`, one on that page alone."""
    build = root / "_build"
    marker, complained = build / ".unfinished", build / ".complained"
    if marker.exists() or (complained.exists() and not only):
        # half-written files, or warnings that Sphinx would not repeat: start again from the stored pages
        for part in ("html", ".doctrees", "jupyter_execute"):
            shutil.rmtree(build / part, ignore_errors=True)
        complained.unlink(missing_ok=True)
    if only:  # read this page anew, so that its warnings come again
        (build / ".doctrees" / f"{only}.doctree").unlink(missing_ok=True)
    marker.touch()
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", ".", "--toc"]
    command += ["book/_toc.yml", "-n", *([] if only else ["-W", "--keep-going"])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile("w+") as errors:
        streams = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        run = subprocess.Popen(command, cwd=root, env=environment, **streams)
        show_progress(run.stdout)
        code = run.wait()
        errors.seek(0)
        lines = errors.readlines()
    marker.unlink()
    if code or any(WARNING.search(line) for line in lines):
        complained.touch()
    shown = [line for line in lines if not only or only in line or not WARNING.search(line)]
    print("".join(shown), end="", file=sys.stderr)
    return code or int(bool(only) and any(WARNING.search(line) for line in shown))


def show_progress(lines: Iterable[str]) -> None:
    """Turn Sphinx's account of reading and writing into a bar for each."""
    bars: dict[str, tqdm] = {}
    for line in lines:
        if found := PROGRESS.search(line):
            if found[1] not in bars:
                bars[found[1]] = tqdm(desc=found[1], total=100, unit="%", disable=None, bar_format=BAR)
            bars[found[1]].update(int(found[2]) - bars[found[1]].n)
    for bar in bars.values():
        bar.close()


def build_book(root: Path, jobs: int | None, opens: bool) -> int:
    """Execute and build every page; return 0 if nothing failed and nothing warned."""
    start = time.perf_counter()
    pages = pages_in_toc(root)
    if missing := [page.name for page in pages if not page.path.is_file()]:
        print(f"book/_toc.yml lists what is no file: {', '.join(missing)}.  Next: write it or drop the line.")
        return 1
    failed = execute_stale(pages, jobs)
    print("Book: building the HTML (warnings are errors) ...", flush=True)
    with locked(root):
        code = sphinx(root)
    index = root / "_build" / "html" / "index.html"
    print(f"{len(pages)} pages in {time.perf_counter() - start:.0f} s.")
    if failed or code:
        names = ", ".join(page.name for page in failed) or "none; see the warnings above"
        print(f"The book is NOT in order (failed pages: {names}).")
        print("Next: mend it, then `make page PAGE=<page>.md` for one page or `make book` for all.")
        return 1
    has_display = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)
    if opens and has_display:
        webbrowser.open(index.as_uri())
    print(f"Next: open {index} in a browser, or `make serve` and visit http://localhost:8000.")
    return 0


def build_page(root: Path, name: str) -> int:
    """Execute and build one page as fast as possible; print where it is and how long it took."""
    page = Page(name.removesuffix(".md"), root)
    if not page.path.is_file():
        print(f"There is no {page.path}.  Next: create it (CONTRIBUTING.md has the template).")
        return 1
    if page not in pages_in_toc(root):
        print(f"Next: add the line `- file: {page.name}` to book/_toc.yml, then run this again.")
        return 1
    failed = execute_stale([page], 1)
    with locked(root):
        code = sphinx(root, only=page.name)
    stored = page.stored()
    if stored is not None:
        print(f"{page.name}: its cells took {stored['seconds']:.2f} s.")
    if failed or code:
        print("Next: mend what is shown above and run this again.")
        return 1
    print(f"Next: open {root / '_build' / 'html' / page.name}.html")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minattn_book.build", description=__doc__.splitlines()[0])
    parser.add_argument("--page", help="build this page only, e.g. chapters/attention/index.md")
    parser.add_argument("--jobs", type=int, help="pages executed at once (default: 2, or 1 on one core)")
    parser.add_argument("--no-open", action="store_true", help="don't open a browser")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    root = chosen.root.resolve()
    if chosen.page:
        return build_page(root, chosen.page)
    return build_book(root, chosen.jobs, not chosen.no_open)


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:
        print("\nStopped.  Finished pages are kept.  Next: the same command goes on from here.", flush=True)
        os._exit(130)  # don't wait for pages still running: their kernels end with this process
    sys.exit(status)
