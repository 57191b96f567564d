"""A small book, built for real: what is executed when, and what a failure does."""

import json
import subprocess
import sys

import pytest
from minattn_book.pages import Page

PAGES = ("uses_a", "uses_both", "uses_none")


def build(root, *options):
    command = [sys.executable, "-m", "minattn_book.build", "--root", str(root), "--no-open", *options]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root / "book" / "_ext"), "HOME": str(root)}
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)


def executed(run):
    return {name for name in PAGES if f"chapters/one/{name}: " in run.stdout}


def html_of(root, name):
    return (root / "_build" / "html" / "chapters" / "one" / f"{name}.html").read_text()


@pytest.fixture
def built(small_book):
    run = build(small_book)
    assert run.returncode == 0, run.stdout + run.stderr
    assert executed(run) == set(PAGES)
    return small_book


@pytest.mark.slow
def test_a_page_is_executed_again_only_when_what_it_used_changed(built):
    assert "a is 1" in html_of(built, "uses_a") and "sum is 2" in html_of(built, "uses_both")
    files = Page("chapters/one/uses_both", built).stored()["files"]
    assert set(files) == {"minattn/__init__.py", "minattn/a.py", "minattn/b.py", "data.txt"}

    again = build(built)
    assert again.returncode == 0 and executed(again) == set()

    (built / "data.txt").write_text("other data")
    run = build(built)
    assert run.returncode == 0 and executed(run) == {"uses_both"}
    assert "other data" in html_of(built, "uses_both")

    (built / "minattn" / "b.py").write_text("def total():\n    return 40\n")
    run = build(built)
    assert run.returncode == 0 and executed(run) == {"uses_both"}
    assert "sum is 40" in html_of(built, "uses_both")

    page = built / "chapters" / "one" / "uses_none.md"
    page.write_text(page.read_text().replace("# uses none", "# Other prose"))
    run = build(built)
    assert run.returncode == 0 and executed(run) == set()
    assert "Other prose" in html_of(built, "uses_none")


@pytest.mark.slow
def test_breaking_the_library_executes_exactly_the_pages_that_import_it_and_fails(built):
    (built / "minattn" / "a.py").write_text("VALUE = 1 / 0\n")
    run = build(built)
    assert run.returncode == 1
    assert executed(run) == {"uses_a", "uses_both"}
    assert "chapters/one/uses_a.md failed:" in run.stderr and "ZeroDivisionError" in run.stderr
    assert "NOT in order" in run.stdout and "Next:" in run.stdout
    assert "ZeroDivisionError" in html_of(built, "uses_a")

    run = build(built)
    assert run.returncode == 1 and executed(run) == {"uses_a", "uses_both"}, (
        "a failure must not become a result"
    )

    (built / "minattn" / "a.py").write_text("VALUE = 3\n")
    run = build(built)
    assert run.returncode == 0 and executed(run) == {"uses_a", "uses_both"}
    assert "a is 3" in html_of(built, "uses_a")


@pytest.mark.slow
def test_one_page_alone(small_book):
    run = build(small_book, "--page", "chapters/one/uses_a.md")
    assert run.returncode == 0, run.stdout + run.stderr
    assert executed(run) == {"uses_a"}
    assert "its cells took" in run.stdout and "uses_a.html" in run.stdout.splitlines()[-1]
    assert "a is 1" in html_of(small_book, "uses_a")
    missing = build(small_book, "--page", "chapters/one/none_such.md")
    assert missing.returncode == 1 and "There is no " in missing.stdout
    (small_book / "chapters" / "one" / "unlisted.md").write_text("# Unlisted\n")
    unlisted = build(small_book, "--page", "chapters/one/unlisted.md")
    assert unlisted.returncode == 1 and "- file: chapters/one/unlisted" in unlisted.stdout


@pytest.mark.slow
def test_the_notebook_that_is_offered_holds_the_outputs(built):
    notebook = json.loads(
        (built / "_build" / "html" / "_sources" / "chapters" / "one" / "uses_a.ipynb").read_text()
    )
    (cell,) = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cell["outputs"][0]["text"] in ("a is 1\n", ["a is 1\n"])
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "_sources/chapters/one/uses_a.ipynb" in html_of(built, "uses_a")


@pytest.mark.slow
def test_a_warning_fails_the_book(built):
    page = built / "chapters" / "one" / "uses_none.md"
    page.write_text(page.read_text() + "\nSee {ref}`no-such-place`.\n")
    run = build(built)
    assert run.returncode == 1 and "no-such-place" in run.stderr
    again = build(built)
    assert again.returncode == 1 and "no-such-place" in again.stderr, "the second build must not look good"


@pytest.mark.slow
def test_building_one_page_tells_its_own_warnings_and_hides_none_from_the_book(built):
    bad = built / "chapters" / "one" / "uses_none.md"
    bad.write_text(bad.read_text() + "\nSee {ref}`no-such-place`.\n")
    run = build(built, "--page", "chapters/one/uses_a.md")
    assert run.returncode == 0 and "no-such-place" not in run.stderr
    for _ in range(2):
        run = build(built, "--page", "chapters/one/uses_none.md")
        assert run.returncode == 1 and "no-such-place" in run.stderr
    run = build(built)
    assert run.returncode == 1 and "no-such-place" in run.stderr
