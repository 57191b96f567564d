"""A build that is killed at any moment loses no finished page, and the next one goes on."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from minattn_book.pages import Page

PAGES = [f"chapters/one/{name}" for name in ("uses_a", "uses_both", "uses_none")]
KILLS = 20


def start(root):
    command = [sys.executable, "-m", "minattn_book.build", "--root", str(root), "--no-open"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root / "book" / "_ext"), "HOME": str(root)}
    return subprocess.Popen(
        command,
        env=environment,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(root):
    """The pages whose stored results are whole and hold, with their seconds."""
    stored = {name: Page(name, root).stored() for name in PAGES}
    return {name: result["seconds"] for name, result in stored.items() if result and result["error"] is None}


@pytest.mark.slow
def test_twenty_random_kills(small_book):
    clean = start(small_book)
    began = time.monotonic()
    assert clean.wait(timeout=300) == 0, clean.stdout.read()
    whole = time.monotonic() - began

    moment = random.Random(0)
    cut_while_writing = 0
    for _ in range(KILLS):
        # an edit, so that there is something to do: execution in some rounds, HTML in all of them
        chosen = Page(moment.choice(PAGES), small_book)
        chosen.path.write_text(chosen.text + f"\nMore prose {moment.random()}.\n")
        if moment.random() < 0.5:
            chosen.store.unlink(missing_ok=True)
        before = finished(small_book)
        build = start(small_book)
        time.sleep(moment.uniform(0.05, whole))
        os.killpg(build.pid, signal.SIGKILL)
        build.communicate()
        cut_while_writing += (small_book / "_build" / ".unfinished").exists()
        after = finished(small_book)
        assert before.items() <= after.items(), "a finished page was lost or executed again"
    assert cut_while_writing > 0, "no kill fell into the time when Sphinx writes"

    last = start(small_book)
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert set(finished(small_book)) == set(PAGES)
    for name, text in zip(PAGES, ("a is 1", "sum is 2", "nothing"), strict=True):
        page = (small_book / "_build" / "html" / f"{name}.html").read_text()
        assert text in page and page.rstrip().endswith("</html>")
    left = [path.name for path in (small_book / "_build" / "pages").rglob(".*")]
    assert len(left) <= KILLS
