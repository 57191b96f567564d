"""Execute the pages whose stored results no longer hold, several at a time, and store the new results."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

from .pages import Page, code_cells, code_hash, file_hash, tracked, versions, write_atomically

CELL_TIMEOUT = 120
"""Seconds that one cell may take."""

# Runs in the page's kernel before its first cell: remembers every file that is opened.
WATCH = """
def _watch():
    import os, sys, types
    seen = sys.modules["_minattn_seen"] = types.ModuleType("_minattn_seen")
    seen.opened, seen.written = set(), set()
    def hook(event, args):
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            path, mode, flags = args
            writes = set(mode) & set("wax") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
            (seen.written if writes else seen.opened).add(os.path.abspath(os.fsdecode(path)))
    sys.addaudithook(hook)
_watch(); del _watch
"""

# Runs after the last cell: prints which files the run read (loaded modules among them) and wrote.
REPORT = """
def _report():
    import json, sys
    files = {getattr(m, "__file__", None) for m in list(sys.modules.values())}
    seen = sys.modules["_minattn_seen"]
    print(json.dumps([sorted({f for f in files if f} | seen.opened), sorted(seen.written)]))
_report(); del _report
"""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def kernel_environment(page: Page) -> dict[str, str]:
    """One thread a kernel, since several run at once, and this repository first on the path."""
    path = os.pathsep.join(filter(None, [str(page.root), os.environ.get("PYTHONPATH")]))
    threads = dict.fromkeys(THREADS, "1")
    return {**os.environ, **threads, "PYTHONPATH": path, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def execute(page: Page) -> dict[str, Any]:
    """Run the code cells of `page` in a fresh kernel; store and return the results."""
    notebook, began = page.notebook(), time.time()
    code, cells = code_hash(notebook), code_cells(notebook)
    first, last = nbformat.v4.new_code_cell(WATCH), nbformat.v4.new_code_cell(REPORT)
    notebook.cells = [first, *cells, last]
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(page.path.parent)}},
    )
    error, files = None, {}
    with client.setup_kernel(env=kernel_environment(page)):
        client.execute_cell(first, 0, store_history=False)
        start = time.perf_counter()
        try:
            for index, cell in enumerate(cells, 1):
                client.execute_cell(cell, index)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
            error = str(failure)
        seconds = time.perf_counter() - start
        if error is None:
            client.execute_cell(last, len(cells) + 1, store_history=False)
            files = hash_files(*json.loads(last.outputs[0].text), page.root, began)
    result = {
        "code": code,
        "versions": versions(),
        "files": files,
        "seconds": round(seconds, 2),
        "error": error,
        "outputs": [cell.outputs for cell in cells],
    }
    write_atomically(page.store, json.dumps(result, indent=1))
    return result


def hash_files(read: list[str], written: list[str], root: Path, began: float) -> dict[str, str | None]:
    """Hashes of the files of this repository that a run used.

    A file that somebody else changed after the run `began` may have been used in either state, so its entry
    can never match: the page will be executed again.
    """
    found: dict[str, str | None] = {}
    for path in read:
        name = tracked(path, root)
        if name is not None:
            moved = os.path.exists(path) and os.path.getmtime(path) > began and path not in written
            found[name] = "changed during the run" if moved else file_hash(root / name)
    return found


def attempt(page: Page) -> dict[str, Any]:
    """`execute`, with anything that goes wrong outside of the cells reported like a failing cell."""
    try:
        return execute(page)
    except Exception:
        return {"seconds": 0.0, "error": traceback.format_exc()}


def stale(pages: list[Page]) -> dict[Page, str]:
    """The pages that have to be executed, each with the reason."""
    now = versions()
    reasons = {page: page.why_stale(page.stored(), now) for page in pages if page.is_notebook}
    return {page: reason for page, reason in reasons.items() if reason}


def execute_stale(pages: list[Page], jobs: int | None = None) -> list[Page]:
    """Execute what is stale among `pages`, `jobs` at a time; print a table; return the pages that failed."""
    todo = stale(pages)
    if not todo:
        print("Pages: all stored results still hold; nothing to execute.")
        return []
    print(f"Pages: executing {len(todo)} of {sum(page.is_notebook for page in pages)}:")
    for page, reason in todo.items():
        print(f"  {page.name}: {reason}")
    results: dict[Page, dict[str, Any]] = {}
    with ThreadPoolExecutor(jobs or min(2, os.cpu_count() or 1)) as pool:
        futures = {pool.submit(attempt, page): page for page in todo}
        with tqdm(total=len(todo), unit="page", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
            for future in as_completed(futures):
                page = futures[future]
                results[page] = future.result()
                bar.set_postfix_str(page.name)
                bar.update()
    return summarise(results)


def summarise(results: dict[Page, dict[str, Any]]) -> list[Page]:
    """Print seconds and verdict a page, then the tracebacks; return the pages that failed."""
    failed = [page for page, result in results.items() if result["error"]]
    width = max(len(page.name) for page in results)
    for page in sorted(results, key=lambda page: -results[page]["seconds"]):
        verdict = "FAILED" if page in failed else "ok"
        print(f"  {page.name:<{width}}  {results[page]['seconds']:7.2f} s  {verdict}")
    for page in failed:
        print(f"\n{page.path} failed:\n{results[page]['error']}", file=sys.stderr)
    return failed
