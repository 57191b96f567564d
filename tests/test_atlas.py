"""The register, and each status turning on and off for the right reason in small trees of files."""

import ast
import json
import re
from pathlib import Path

import pytest

from minattn import sources
from minattn.atlas import PARTS, STATES, contradictions, main, status, table
from minattn.findings import Finding, Results
from minattn.register import Paper, chapters, papers
from minattn.sources import Tree

ROOT = Path(__file__).resolve().parents[1]
PAPER = Paper(65, "Contextual Position Encoding", ("Golovneva", "Wang", "others"), 2024, "", "2405.18719",
              "position", ("position",), ("ContextualPositionEncoding", "cope_logits"))
OTHER = Paper(3, "Neural Attention", ("DiGiugno", "Mahmood"), 2025, "", "", "scores", ("mechanism",),
              ("neural",))
REGISTER = (OTHER, PAPER)
DOC = '"""Position of a key counted by gates, shapes (B, H, N, D) to (B, H, N, N)."""'

MECHANISM = f'''"""Contextual positions."""
PAPERS = (65,)
__all__ = ["ContextualPositionEncoding", "cope_logits"]

def cope_logits(q, k):
    {DOC}
    return q

class ContextualPositionEncoding:
    {DOC}
'''
TEST = """import pytest

@pytest.mark.paper(65)
def test_fast_is_naive():
    assert 1 + 1 == 2
"""
EXPERIMENT = '''"""CoPE counts."""
from minattn.position import contextual

PAPERS = (65,)

def run(seed):
    return contextual.measure(seed)
'''
PAGE = "---\ntitle: x\n---\n\n(paper-065)=\n# Contextual positions\n\n" + "".join(
    f"## {part} of it\n\n" for part in PARTS) + "```{code-cell} python\n1\n```\n"


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def finding(seed: int, gain: float = 0.2, found: str = "", number: int = 65) -> Finding:
    return Finding(number, "CoPE beats RoPE at counting", {"rope": 1.0, "cope": 1.0 - gain},
                   [("rope - cope", ">=", 0.1)], seed, found=found)


def write_result(root: Path, findings: list[Finding], source: str | None = None) -> Path:
    tree = Tree(root)
    experiment = root / "minattn/experiments/position/contextual.py"
    runs = {f.seed: {"findings": [f.as_dict()], "seconds": 1.0} for f in findings}
    results = Results("position/contextual", (65,), source or sources.source_hash(tree, experiment), runs)
    return write(root, "minattn/experiments/results/position/contextual.json", json.dumps(results.as_dict()))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree in which paper 65 is done."""
    write(tmp_path, "minattn/position/contextual.py", MECHANISM)
    write(tmp_path, "tests/position/test_contextual.py", TEST)
    write(tmp_path, "minattn/experiments/position/contextual.py", EXPERIMENT)
    write(tmp_path, "chapters/position/contextual.md", PAGE)
    write_result(tmp_path, [finding(s) for s in (0, 1, 2)])
    return tmp_path


def states(root: Path) -> str:
    """The reached states of paper 65, in one line."""
    row = status(root, REGISTER)[1]
    return " ".join(s for s, reached in row.states.items() if reached)


def missing(root: Path, state: str) -> str:
    return "; ".join(status(root, REGISTER)[1].missing[state])


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text(encoding="utf-8")
    assert old in text
    write(root, name, text.replace(old, new))


CODE = "minattn/position/contextual.py"
TESTS = "tests/position/test_contextual.py"
CLAIM = "minattn/experiments/position/contextual.py"
TEXT = "chapters/position/contextual.md"


# --- the register itself ----------------------------------------------------------------------------------

def test_the_register_holds_213_papers_each_once():
    assert [p.number for p in papers()] == list(range(1, 214))
    assert len({p.title for p in papers()}) == 213
    arxiv = [p.arxiv for p in papers() if p.arxiv]
    assert len(set(arxiv)) == len(arxiv)


def test_every_paper_is_well_formed():
    for p in papers():
        assert p.chapter in chapters(), p
        assert p.title == p.title.strip() and p.authors and p.tags and p.names, p
        assert all(n.isidentifier() for n in p.names) and len(set(p.names)) == len(p.names), p
        assert "others" not in p.authors[:-1] and p.authors[0] != "others", p
        assert re.fullmatch(r"(\d{4}\.\d{4,5})?", p.arxiv), p
        assert 2014 <= p.year <= 2026, p
        if p.arxiv:                      # published no earlier than a year before, no later than three after
            assert -1 <= p.year - (2000 + int(p.arxiv[:2])) <= 3, p


def test_the_core_chapters_hold_their_papers_and_no_chapter_is_empty():
    held = {c: [p.number for p in papers() if p.chapter == c] for c in chapters()}
    assert held["attention"] == [1]
    assert held["transformer"] == [79, 100, 154, 180, 196]
    assert len(chapters()) == 32 and all(held.values())


@pytest.mark.parametrize(("authors", "text"), [
    (("Vig",), "Vig"), (("Abnar", "Zuidema"), "Abnar and Zuidema"), (("Clark", "others"), "Clark et al."),
    (("Vinyals", "Fortunato", "Jaitly"), "Vinyals et al.")])
def test_authors_in_short(authors, text):
    paper = Paper(7, "t", authors, 2020, "", "", "maps", ("analysis",), ("x",))
    assert (paper.by, paper.label, paper.key, paper.url) == (text, "paper-007", "paper007", "")


# --- every status, on and off -----------------------------------------------------------------------------

def test_an_empty_tree_has_nothing_and_contradicts_nothing(tmp_path):
    assert states(tmp_path) == ""
    assert all(status(tmp_path, REGISTER)[1].missing[s] for s in STATES)
    assert contradictions(tmp_path, REGISTER) == []


def test_a_complete_tree_is_done_and_agrees(tree):
    assert states(tree) == "built tested claimed page done"
    row = status(tree, REGISTER)[1]
    assert row.done and row.files["page"] == (TEXT,)
    assert not status(tree, REGISTER)[0].done
    assert contradictions(tree, REGISTER) == []


@pytest.mark.parametrize(("old", "new", "why"), [
    ("PAPERS = (65,)", "PAPERS = (64,)", "no file in minattn/position/ declares PAPERS = (65,)"),
    ("PAPERS = (65,)", "PAPERS = 65", "no file in minattn/position/ declares"),
    ("PAPERS = (65,)", "PAPERS = tuple([65])", "no file in minattn/position/ declares"),
    ("def cope_logits", "def logits", "cope_logits is not public"),
    (', "cope_logits"]', "]", "cope_logits is not public"),
    (DOC, '"""Counted."""', "has no docstring"),
    (f"def cope_logits(q, k):\n    {DOC}", "def cope_logits(q, k):", "cope_logits has no docstring"),
    ("class ContextualPositionEncoding:", "class _Hidden:", "ContextualPositionEncoding is not public"),
    ("return q", "return (", "declares"),
])
def test_built_needs_the_declaration_and_every_documented_name(tree, old, new, why):
    edit(tree, CODE, old, new)
    assert "built" not in states(tree)
    assert why in missing(tree, "built")


def test_built_in_another_chapter_does_not_count(tree):
    (tree / CODE).rename(tree / "minattn/elsewhere.py")
    assert "built" not in states(tree)


def test_papers_of_chapter_kernels_may_be_built_in_the_package_above_the_models(tmp_path):
    paper = next(p for p in papers() if p.chapter == "kernels")
    body = f"PAPERS = ({paper.number},)\n" + "".join(f"def {n}():\n    {DOC}\n" for n in paper.names)
    for folder, counts in (("kernels", True), ("inference", True), ("transformer", False)):
        path = tmp_path / folder
        write(path, f"minattn/{folder}/loads.py", body)
        assert status(path, [paper])[0].states["built"] == counts, folder
        assert any("belongs to" in problem for problem in contradictions(path, [paper])) != counts


def test_names_may_be_spread_over_files_and_without_all_every_public_definition_counts(tree):
    first, second = MECHANISM.split("class ")
    write(tree, CODE, first.replace('__all__ = ["ContextualPositionEncoding", "cope_logits"]\n', ""))
    assert missing(tree, "built") == f"ContextualPositionEncoding is not public in {CODE}"
    write(tree, "minattn/position/more.py", "PAPERS = (65,)\nclass " + second)
    assert missing(tree, "built") == ""


def test_a_name_re_exported_from_the_core_counts_and_a_plain_import_does_not(tree):
    body = MECHANISM.replace("def cope_logits", "def _unused")
    write(tree, "minattn/nn/gates.py", f"def logits(q):\n    {DOC}\n")
    write(tree, "minattn/nn/__init__.py", "from .gates import logits as cope_logits\n")
    write(tree, CODE, "from minattn.nn import cope_logits\n" + body)
    assert missing(tree, "built") == ""
    write(tree, CODE, "from ..nn.gates import logits as cope_logits\n" + body)
    assert missing(tree, "built") == ""
    write(tree, CODE, "from numpy import cope_logits\n" + body)
    assert "cope_logits is not public" in missing(tree, "built")
    without_all = body.replace('__all__ = ["ContextualPositionEncoding", "cope_logits"]\n', "")
    write(tree, CODE, "from minattn.nn import cope_logits\n" + without_all)
    assert "cope_logits is not public" in missing(tree, "built")


def test_documented_in_one_file_of_a_paper_is_documented(tree):
    write(tree, "minattn/position/zebra.py", "PAPERS = (65,)\ndef cope_logits(q):\n    return q\n")
    write(tree, "minattn/position/aardvark.py", "PAPERS = (65,)\ndef cope_logits(q):\n    return q\n")
    assert missing(tree, "built") == ""


def test_a_circle_of_imports_ends(tree):
    write(tree, "minattn/position/a.py", "from minattn.position.b import cope_logits\n")
    write(tree, "minattn/position/b.py", "from minattn.position.a import cope_logits\n")
    body = MECHANISM.replace("def cope_", "def _")
    write(tree, CODE, "from minattn.position.a import cope_logits\n" + body)
    assert "cope_logits is not public" in missing(tree, "built")


def test_a_constant_is_documented_by_the_string_below_it(tree):
    body = MECHANISM.replace(f"def cope_logits(q, k):\n    {DOC}\n    return q", "cope_logits = 3")
    write(tree, CODE, body)
    assert missing(tree, "built").startswith("cope_logits has no docstring")
    write(tree, CODE, body.replace("cope_logits = 3", f"cope_logits = 3\n{DOC}"))
    assert missing(tree, "built") == ""


@pytest.mark.parametrize("text", [
    "import pytest\npytestmark = pytest.mark.paper(65)\ndef test_it():\n    assert True\n",
    "import pytest\npytestmark = [pytest.mark.slow, pytest.mark.paper(3, 65)]\n"
    "def test_it():\n    assert True\n",
    "import pytest\n@pytest.mark.paper(65)\nclass TestIt:\n    def test_it(self):\n        assert True\n",
    TEST.replace("assert 1 + 1 == 2", "with pytest.raises(ValueError):\n        int('x')"),
    TEST.replace("assert 1 + 1 == 2", "np.testing.assert_allclose(1, 1)"),
    TEST.replace("assert 1 + 1 == 2", "check_grads(f, x)"),
    "def close(a, b):\n    assert a == b\ndef both(a):\n    close(a, a)\n"
    + TEST.replace("assert 1 + 1 == 2", "both(1)"),
])
def test_tested_accepts_each_way_of_marking_and_asserting(tree, text):
    write(tree, TESTS, text)
    assert missing(tree, "tested") == ""


@pytest.mark.parametrize(("text", "why"), [
    (TEST.replace("paper(65)", "paper(3)"), "is marked"),
    (TEST.replace("mark.paper", "mark.papers"), "is marked"),
    (f"TEXT = {TEST!r}\n", "is marked"),
    (TEST.replace("assert 1 + 1 == 2", "print(1)"), "asserts anything"),
    (TEST.replace("def test_fast", "def fast"), "is marked"),
    ("import pytest\npytestmark = pytest.mark.paper(65)\ndef helper():\n    assert True\n", "asserts"),
    (TEST.replace("assert 1 + 1 == 2", "print(1)") + "\ndef test_unmarked():\n    assert True\n", "asserts"),
])
def test_tested_needs_a_marked_test_that_asserts(tree, text, why):
    write(tree, TESTS, text)
    assert why in missing(tree, "tested")


def test_a_test_in_another_chapter_does_not_count(tree):
    (tree / "tests/scores").mkdir()
    (tree / TESTS).rename(tree / "tests/scores/test_contextual.py")
    assert "tested" not in states(tree)


def test_claimed_needs_three_seeds_of_the_present_source(tree):
    write_result(tree, [finding(s) for s in (0, 1)])
    assert "holds 2 seeds, not 3" in missing(tree, "claimed")
    write_result(tree, [finding(s) for s in (0, 1, 2)], source="0" * 16)
    assert "is stale" in missing(tree, "claimed")
    write_result(tree, [finding(s) for s in (0, 1, 2)])
    assert missing(tree, "claimed") == ""


@pytest.mark.parametrize("name", [CODE, CLAIM])
def test_a_change_of_code_makes_a_claim_stale_and_a_change_of_words_does_not(tree, name):
    text = (tree / name).read_text()
    body = ast.parse(text).body
    assert isinstance(body[0], ast.Expr)
    write(tree, name, '"""Other words\n\non more lines."""\n# a comment\n\n' + text.split("\n", 1)[1])
    assert missing(tree, "claimed") == ""
    write(tree, name, text + "\nEXTRA = 1\n")
    assert "is stale" in missing(tree, "claimed")


def test_a_comment_inside_a_string_is_code(tree):
    source = 'CUDA = """\n#define TILE 32\n"""\n'
    write(tree, CODE, MECHANISM + source)
    write_result(tree, [finding(s) for s in (0, 1, 2)])
    assert missing(tree, "claimed") == ""
    write(tree, CODE, MECHANISM + source.replace("32", "64"))
    assert "is stale" in missing(tree, "claimed")


def test_a_claim_depends_on_the_helpers_it_imports_and_on_nothing_else(tree):
    write(tree, CLAIM, EXPERIMENT + "from ._tasks import task\n")
    helper = write(tree, "minattn/experiments/position/_tasks.py", "from ._deeper import task\n")
    write(tree, "minattn/experiments/position/_deeper.py", "from minattn.position.task import task\n")
    deep = write(tree, "minattn/position/task.py", "def task():\n    return 1\n")
    unrelated = write(tree, "minattn/position/other.py", "x = 1\n")
    files = sources.source_files(Tree(tree), tree / CLAIM)
    assert {helper, deep, tree / CODE, tree / CLAIM} <= set(files) and unrelated not in files
    write_result(tree, [finding(s) for s in (0, 1, 2)])
    write(tree, "minattn/position/other.py", "x = 2\n")
    assert missing(tree, "claimed") == ""
    write(tree, "minattn/position/task.py", "def task():\n    return 2\n")
    assert "is stale" in missing(tree, "claimed")


def test_a_claim_does_not_depend_on_what_else_a_package_lists(tree):
    lists = "from .task import solve\nfrom .other import x\n"
    package = write(tree, "minattn/position/__init__.py", lists)
    deep = write(tree, "minattn/position/task.py", "def solve():\n    return 1\n")
    unrelated = write(tree, "minattn/position/other.py", "x = 1\n")
    write(tree, CLAIM, EXPERIMENT + "from minattn.position import solve\n")
    files = sources.source_files(Tree(tree), tree / CLAIM)
    assert deep in files and package not in files and unrelated not in files
    write_result(tree, [finding(s) for s in (0, 1, 2)])
    write(tree, "minattn/position/__init__.py", lists + "from .more import y\n")
    assert missing(tree, "claimed") == ""
    write(tree, "minattn/position/__init__.py", "def solve():\n    return 3\n")  # now defined there
    assert package in sources.source_files(Tree(tree), tree / CLAIM)
    assert "is stale" in missing(tree, "claimed")
    write(tree, CLAIM, EXPERIMENT + "import minattn.position.task as t\nfrom minattn.position import other\n")
    files = sources.source_files(Tree(tree), tree / CLAIM)
    assert {deep, unrelated} <= set(files) and package not in files


def test_a_claim_depends_on_the_mechanism_of_its_paper_even_when_it_imports_none(tree):
    write(tree, CLAIM, "PAPERS = (65,)\ndef run(seed):\n    pass\n")
    write_result(tree, [finding(s) for s in (0, 1, 2)])
    assert missing(tree, "claimed") == ""
    write(tree, CODE, MECHANISM.replace("return q", "return k"))
    assert "is stale" in missing(tree, "claimed")


def test_a_failed_claim_needs_what_was_found_instead(tree):
    weak = [finding(0), finding(1, gain=0.05), finding(2)]
    write_result(tree, weak)
    assert "a claim fails" in missing(tree, "claimed")
    assert any("fails and nothing says" in p for p in contradictions(tree, REGISTER))
    found = "At this size the gain is 0.05 in one seed of three."
    write_result(tree, [finding(f.seed, 1 - f.numbers["cope"], found) for f in weak])
    assert missing(tree, "claimed") == ""
    assert contradictions(tree, REGISTER) == []


def test_a_verdict_written_into_the_file_is_refused(tree):
    path = write_result(tree, [finding(s, gain=0.0) for s in (0, 1, 2)])
    data = json.loads(path.read_text())
    data["runs"]["0"]["findings"][0]["verdict"] = "holds"
    path.write_text(json.dumps(data))
    assert "is not a result" in missing(tree, "claimed")


@pytest.mark.parametrize("text", [
    "", "{}", "[1]", '{"experiment": 1, "papers": [65], "source": "", "runs": {"a": 1}}'])
def test_unreadable_results_are_reported_not_raised(tree, text):
    write(tree, "minattn/experiments/results/position/contextual.json", text)
    assert "is not a result" in missing(tree, "claimed")
    assert any("is not a result" in p for p in contradictions(tree, REGISTER))


def test_claimed_needs_a_run_of_a_seed_results_and_a_finding_of_this_paper(tree):
    edit(tree, CLAIM, "def run(seed)", "def run(rng)")
    assert "defines no run(seed)" in missing(tree, "claimed")
    write(tree, CLAIM, EXPERIMENT)
    write_result(tree, [finding(s, number=3) for s in (0, 1, 2)])
    assert "holds no finding of paper 65" in missing(tree, "claimed")
    (tree / "minattn/experiments/results/position/contextual.json").unlink()
    assert "has not been run" in missing(tree, "claimed")


def test_a_second_experiment_that_has_not_run_takes_the_claim_away(tree):
    write(tree, "minattn/experiments/position/second.py", EXPERIMENT)
    assert "second.py has not been run" in missing(tree, "claimed")


@pytest.mark.parametrize("part", PARTS)
def test_a_page_needs_every_part(tree, part):
    edit(tree, TEXT, f"## {part} of it", f"{part} of it")
    assert missing(tree, "page") == f'{TEXT} has no heading with "{part}"'


def test_a_heading_or_label_inside_code_is_none(tree):
    edit(tree, TEXT, "## Break it of it", "```text\n## Break it\n```")
    assert "Break it" in missing(tree, "page")
    write(tree, TEXT, PAGE.replace("(paper-065)=", "```\n(paper-065)=\n```"))
    assert "has the label (paper-065)=" in missing(tree, "page")


def test_a_page_needs_its_label_and_a_cell_that_runs(tree):
    edit(tree, TEXT, "{code-cell} python", "python")
    assert missing(tree, "page") == f"{TEXT} runs no code cell"
    edit(tree, TEXT, "paper-065", "paper-064")
    assert "no page in chapters/position/ has the label" in missing(tree, "page")


def test_headings_in_the_words_of_an_author_count(tree):
    words = {"Naive": "The naive form", "Fast": "The fast form", "Exercise": "Exercises and reading",
             "Checks": "Checks: what equals what", "The finding": "The finding in miniature"}
    write(tree, TEXT, PAGE)
    for part, heading in words.items():
        edit(tree, TEXT, f"## {part} of it", f"### {heading}")
    assert missing(tree, "page") == ""


# --- contradictions ---------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "text", "problem"), [
    (CODE, MECHANISM.replace("(65,)", "(65, 999)"), f"{CODE} names paper 999, which does not exist"),
    (TESTS, TEST.replace("(65)", "(65, 999)"), f"{TESTS} names paper 999, which does not exist"),
    (TEXT, PAGE + "\n(paper-999)=\n", f"{TEXT} names paper 999, which does not exist"),
    (CODE, MECHANISM.replace("(65,)", "(65, 3)"), f"{CODE} names paper 3, which belongs to scores"),
    (TESTS, TEST.replace("(65)", "(65, 3)"), f"{TESTS} names paper 3, which belongs to scores"),
    (TEXT, PAGE + "\n(paper-003)=\n", f"{TEXT} names paper 3, which belongs to scores"),
    ("minattn/tool.py", "PAPERS = (65,)\n", "minattn/tool.py names paper 65, which belongs to position"),
    ("chapters/position/again.md", "(paper-065)=\n", "the label (paper-065)= stands 2 times"),
    (CODE, MECHANISM.replace("def cope_logits", "def logits"), "paper 65: cope_logits is not public"),
    (CODE, MECHANISM.replace('"cope_logits"]', '"cope_logits", "gone"]'), "__all__ lists gone, which"),
    (CODE, MECHANISM.replace("(65,)", "65"), "PAPERS must be a tuple of paper numbers"),
    (CODE, MECHANISM.replace("return q", "return ("), f"{CODE}, line"),
    (CODE, MECHANISM + "x = 1\n", "is stale"),
    ("minattn/experiments/results/position/lost.json", "{}", "lost.json belongs to no experiment"),
    (CLAIM, EXPERIMENT.replace("(65,)", "(65, 3)"), "is about papers [65], its experiment is not"),
])
def test_each_contradiction_is_named(tree, name, text, problem):
    assert contradictions(tree, REGISTER) == []
    write(tree, name, text)
    assert any(problem in p for p in contradictions(tree, REGISTER)), contradictions(tree, REGISTER)


def test_tests_outside_the_chapters_may_mark_any_paper(tree):
    write(tree, "tests/experiments/test_experiments.py", TEST)
    write(tree, "tests/test_book.py", TEST)
    assert contradictions(tree, REGISTER) == []


def test_a_file_that_is_not_text_is_a_problem_not_a_crash(tree):
    (tree / "chapters/position/bad.md").write_bytes(b"\xff\xfe(paper-065)=")
    assert any("bad.md: not UTF-8" in p for p in contradictions(tree, REGISTER))


# --- the command and the table ----------------------------------------------------------------------------

def test_check_exits_with_one_only_on_a_contradiction(tree, capsys):
    write(tree, CODE, MECHANISM)
    assert main(["--check"], tree) == 0
    assert "agree" in capsys.readouterr().out
    edit(tree, TEXT, "# Contextual", "(paper-999)=\n# Contextual")
    assert main(["--check"], tree) == 1
    assert "paper 999, which does not exist" in capsys.readouterr().out


def test_json_is_the_whole_register_with_status(tree, capsys):
    assert main(["--json"], tree) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["papers"]) == 213 and data["chapters"] == chapters()
    row = data["papers"][64]
    assert row["number"] == 65 and row["url"] == "https://arxiv.org/abs/2405.18719"
    assert row["status"] == {"built": True, "tested": True, "claimed": True, "page": True, "done": True}
    assert row["files"]["claimed"] == [CLAIM] and row["missing"]["page"] == []
    assert not any(p["status"]["done"] for p in data["papers"] if p["number"] != 65)


def test_the_overview_counts_and_each_view_says_what_is_next(tree, capsys):
    assert main([], tree) == 0
    out = capsys.readouterr().out
    assert re.search(r"^position +13 +1 +1 +1 +1 +1$", out, re.MULTILINE)
    assert re.search(r"^all +213 +1 +1 +1 +1 +1$", out, re.MULTILINE)
    assert main(["--chapter", "position"], tree) == 0
    assert re.search(r"^ +65  built tested claimed page  done", capsys.readouterr().out, re.MULTILINE)
    assert main(["--paper", "16"], tree) == 0
    out = capsys.readouterr().out
    assert "positional_prior" in out and "Next: no file in minattn/position/" in out
    with pytest.raises(SystemExit):
        main(["--paper", "214"], tree)


def test_the_table_is_accessible_and_links_to_paper_page_and_code(tree):
    text = table(tree, "position", code_url="https://example.org/{path}")
    assert text.count("<tr") == 14 and text.count('scope="row"') == 13 and text.count('scope="col"') == 7
    assert "<caption>Position encodings and length generalisation: 1 of 13 done</caption>" in text
    assert f'href="https://example.org/{CODE}"' in text
    assert 'href="../chapters/position/contextual.html#paper-065"' in text
    assert 'href="https://arxiv.org/abs/2405.18719"' in text
    assert text._repr_html_() == str(text)
    assert table(tree).count('<tr class="') == 213 and "Learning to Count What&#x27;s" in table(tree)
    with pytest.raises(ValueError, match="chapter must be one of"):
        table(tree, "nowhere")


def test_nothing_is_imported_to_read_a_file(tree):
    write(tree, CODE, MECHANISM + "raise RuntimeError('imported')\n")
    assert "built" in states(tree)
