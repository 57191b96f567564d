"""What makes a page's stored results hold or not, and what its front matter may say."""

import nbformat
import pytest
from minattn_book import api, bare_number, header
from minattn_book.execute import hash_files
from minattn_book.pages import (
    ROOT,
    Page,
    code_hash,
    file_hash,
    front_matter,
    pages_in_toc,
    sha256,
    tracked,
    versions,
    write_atomically,
)


def test_the_table_of_contents_lists_every_page_that_exists_and_no_other():
    listed = [page.name for page in pages_in_toc(ROOT)]
    written = {p.relative_to(ROOT).with_suffix("").as_posix() for p in ROOT.glob("chapters/**/*.md")}
    assert listed[0] == "book/intro"
    assert len(listed) == len(set(listed))
    assert {name for name in listed if name.startswith("chapters/")} == written
    assert all(Page(name).path.exists() for name in listed)


def test_pages_in_toc_follow_the_order_of_reading(small_book):
    names = [page.name for page in pages_in_toc(small_book)]
    assert names == ["book/intro", "chapters/one/uses_a", "chapters/one/uses_both", "chapters/one/uses_none"]


def test_front_matter():
    assert front_matter("---\na: 1\nb: [x]\n---\n# T\n--- not this\n") == {"a": 1, "b": ["x"]}
    assert front_matter("# no front matter\n---\na: 1\n---\n") == {}
    assert front_matter("---\njust text\n---\n") == {}


def test_the_code_key_follows_code_and_tags_and_not_prose(small_book):
    page = Page("chapters/one/uses_a", small_book)
    key, text = code_hash(page.notebook()), page.text

    def changed(old, new):
        assert old in text
        page.path.write_text(text.replace(old, new))
        return code_hash(page.notebook()) != key

    assert not changed("# uses a", "# another title\n\nprose")
    assert changed("a.VALUE", "a.VALUE + 0")
    assert changed("ipython3\n", "ipython3\n:tags: [raises-exception]\n")
    assert not changed("ipython3\n", "ipython3\n")


def test_tracked_files_are_those_of_the_repository_that_can_change_a_page(tmp_path):
    root = tmp_path
    assert tracked(str(root / "minattn" / "a.py"), root) == "minattn/a.py"
    assert tracked(str(root / "_build" / "artefacts" / "w.npz"), root) == "_build/artefacts/w.npz"
    for name in ("minattn/__pycache__/a.pyc", ".venv/lib/x.py", "_build/pages/x.json", ".git/HEAD"):
        assert tracked(str(root / name), root) is None
    assert tracked(str(root) + "-other/a.py", root) is None
    assert tracked("/usr/lib/x.py", root) is None


def stored(page, **changes):
    files = {"minattn/a.py": file_hash(page.root / "minattn/a.py"), "absent.txt": None}
    right = {"code": code_hash(page.notebook()), "versions": versions(), "files": files, "error": None}
    return {**right, **changes}


def test_why_stale_names_the_reason(small_book):
    page = Page("chapters/one/uses_a", small_book)
    now = versions()
    assert page.why_stale(stored(page), now) is None
    assert page.why_stale(None, now) == "never executed"
    assert page.why_stale(stored(page, error="Traceback"), now) == "failed last time"
    assert page.why_stale(stored(page, code="0"), now) == "its code changed"
    assert page.why_stale(stored(page, versions={**now, "numpy": "0"}), now) == "package versions changed"
    before = stored(page)
    (small_book / "absent.txt").write_text("now it is there")
    assert page.why_stale(before, now) == "absent.txt changed"
    (small_book / "absent.txt").unlink()
    (small_book / "minattn/a.py").write_text("VALUE = 2")
    assert page.why_stale(before, now) == "minattn/a.py changed"


def test_a_file_that_changed_during_the_run_can_never_match(tmp_path):
    mine, other = tmp_path / "mine.txt", tmp_path / "other.txt"
    mine.write_text("1")
    other.write_text("2")
    began = other.stat().st_mtime - 1
    found = hash_files([str(mine), str(other)], [str(mine)], tmp_path, began)
    assert found["mine.txt"] == sha256(b"1")
    assert found["other.txt"] != file_hash(other)
    later = other.stat().st_mtime + 1
    assert hash_files([str(other)], [], tmp_path, later) == {"other.txt": sha256(b"2")}


def test_stored_results_that_are_half_written_count_as_none(small_book):
    page = Page("chapters/one/uses_a", small_book)
    assert page.stored() is None
    write_atomically(page.store, '{"code": ')
    assert page.stored() is None
    write_atomically(page.store, '{"code": 1}')
    assert page.stored() == {"code": 1}
    assert [p.name for p in page.store.parent.iterdir()] == ["uses_a.json"]


def test_facts_of_a_page(small_book):
    page = Page("chapters/one/uses_a", small_book)
    body = page.text.split("---\n", 2)[2]
    page.path.write_text(
        f"---\nminattn: {{papers: [3], needs: [one/uses_none]}}\n---\n{body}" + "word " * 720
    )
    assert header.facts(page) == {"papers": [3], "needs": ["chapters/one/uses_none"], "minutes": 4}
    page.path.write_text(f"---\nminattn: {{minutes: 9}}\n---\n{body}")
    assert header.facts(page) == {"needs": [], "minutes": 9}
    page.path.write_text(f"---\nminattn: {{paper: 3}}\n---\n{body}")
    with pytest.raises(ValueError, match=r"may hold \['minutes', 'needs', 'papers'\], got \['paper'\]"):
        header.facts(page)


def link(name, text):
    return f"<{name}|{text}>"


def test_the_card_shows_times_papers_needs_and_what_comes_next(small_book):
    page = Page("chapters/one/uses_a", small_book)
    page.path.write_text("---\nminattn: {papers: [3, 65], needs: [one/uses_none], minutes: 9}\n---\n# T\n")
    assert "to run" not in header.card(page, link, None) and "Next" not in header.card(page, link, None)
    write_atomically(page.store, '{"seconds": 2.345}')
    markup = header.card(page, link, "chapters/one/uses_both")
    for part in (
        "<li>9 min to read</li><li>2.3 s to run</li>",
        "<li>papers <book/atlas#row-003|3>, <book/atlas#row-065|65></li>",
        "<b>What you need first</b> <chapters/one/uses_none|None>",
        "<b>Next</b> <chapters/one/uses_both|None>",
    ):
        assert part in markup


def test_the_map_lists_chapters_in_order_with_what_they_build_on(small_book):
    for name, text in {
        "one/index": "---\nminattn: {minutes: 1}\n---\n# One\n",
        "one/x": "---\nminattn: {minutes: 2}\n---\n# X\n",
        "two/index": "---\nminattn: {minutes: 3, needs: [one/x, two/index]}\n---\n# Two\n",
    }.items():
        page = Page(f"chapters/{name}", small_book)
        page.path.parent.mkdir(exist_ok=True)
        page.path.write_text(text)
    names = ("book/intro", "chapters/one/index", "chapters/one/x", "chapters/two/index")
    markup = header.map_of_chapters([Page(name, small_book) for name in names], link)
    one, two = markup.split("<section")[1:]
    assert "<h3><chapters/one/index|None></h3>" in one and "Builds on" not in one
    assert "<li><chapters/one/x|None> <span>2 min</span></li>" in one
    assert "<h3><chapters/two/index|None></h3>" in two and "Builds on <chapters/one/index|None>" in two


def test_the_reference_holds_what_a_factory_made_under_the_shortest_path():
    text = api.reference("minattn.autograd")
    assert ".. autofunction:: minattn.autograd.exp\n" in text
    assert ".. autoclass:: minattn.autograd.Tensor\n" in text
    assert "## elementwise" in text


def test_source_pages_know_where_made_names_begin():
    code, tags = api.find_source(None, "minattn.autograd.elementwise")
    assert tags["exp"] == tags["_exp"]
    assert code.splitlines()[tags["exp"][1] - 1].startswith("def _exp(")
    assert api.find_source(None, "no.such.module") is None


def test_marks_of_formulas_are_no_markup():
    pairs = {
        "Magnitude |x|.": r"Magnitude \|x\|.",
        "`|a|` and **b": r"`|a|` and \*\*b",
        r"\|c\|": r"\|c\|",
        "clip_grad_norm_ of x_i": r"clip_grad_norm\_ of x_i",
        ">>> a * b": ">>> a * b",
        "    x : a * b": r"    x : a \* b",
    }
    assert api.plain([*pairs]) == [*pairs.values()]
    assert api.plain(["So::", "", "    a * b", "", "    c * d", "e * f"])[2:] == [
        "    a * b",
        "",
        "    c * d",
        r"e \* f",
    ]


def test_a_glued_numpy_number_is_a_bare_number():
    def shown(text, kind="text/plain", **metadata):
        return bare_number(nbformat.from_dict({"data": {kind: text}, "metadata": metadata})).data[kind]

    assert shown("np.float64(1e-05)", scrapbook={"name": "x"}) == "1e-05"
    assert shown("np.float64(1e-05)", "application/papermill.record/text/plain", scrapbook={}) == "1e-05"
    assert shown("0.5", scrapbook={}) == "0.5"
    assert shown("np.float64(1e-05)") == "np.float64(1e-05)"
