"""The register of the 213 papers, with each one's status computed from code, tests, claims and pages.

    python -m minattn.atlas                     how far each chapter is
    python -m minattn.atlas --chapter position  the papers of a chapter
    python -m minattn.atlas --paper 65          what there is of a paper and what is missing
    python -m minattn.atlas --json              everything, for programs
    python -m minattn.atlas --check             exits with 1 when the register contradicts the files

A paper belongs to one chapter and lives in four rooms. Nobody ticks a status: it is read from the files.

built    `minattn/<chapter>/*.py` declares `PAPERS = (65,)`, and every name that the register promises for
         the paper is public there (in `__all__` if the file has one) and has a docstring of 8 words or more;
         a constant has a string below it instead. A re-export from elsewhere in minattn counts.
tested   a test in `tests/<chapter>/` is marked `@pytest.mark.paper(65)`, or its module
         `pytestmark = pytest.mark.paper(65)`, and asserts something.
claimed  `minattn/experiments/<chapter>/<name>.py` declares PAPERS and `run(seed)`, and its committed results
         hold three seeds or more, come from the present source, and hold or say what was found instead.
page     `chapters/<chapter>/<name>.md` has the label `(paper-065)=`, a code cell, and a heading with each of:
         The idea, Naive, Derivation, Fast, Checks, Break it, The finding, What it costs,
         Differs from the paper, Exercise ("The naive form" and "Checks: what equals what" are fine).
done     all four.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minattn import sources
from minattn.findings import FAILS, judge, read_results
from minattn.register import Paper, chapters, papers
from minattn.sources import Tree

__all__ = ["PARTS", "STATES", "Paper", "Row", "Table", "chapters", "contradictions", "papers", "status",
           "table"]

ROOT = Path(__file__).resolve().parents[1]
STATES = ("built", "tested", "claimed", "page")
PARTS = ("The idea", "Naive", "Derivation", "Fast", "Checks", "Break it", "The finding", "What it costs",
         "Differs from the paper", "Exercise")
MIN_SEEDS = 3


# --- status -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Row:
    """A paper, the files that name it, and what is missing for each state (empty when reached)."""

    paper: Paper
    files: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, tuple[str, ...]]

    @property
    def states(self) -> dict[str, bool]:
        """state -> reached, for `built`, `tested`, `claimed`, `page` and `done`."""
        reached = {state: not self.missing[state] for state in STATES}
        return {**reached, "done": all(reached.values())}

    @property
    def done(self) -> bool:
        """Whether all four states are reached."""
        return self.states["done"]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self.paper), "url": self.paper.url, "status": self.states,
                "files": dict(self.files), "missing": dict(self.missing)}


class Evidence:
    """Which files of a tree name which paper: state -> number -> files, over the whole tree."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.files: dict[str, dict[int, list[Path]]] = {state: {} for state in STATES}
        self.asserted: set[tuple[int, Path]] = set()
        experiments = tree.root / "minattn" / "experiments"
        for path in tree.files("minattn"):
            if experiments not in path.parents:
                self.add("built", path, sources.declared_papers(tree, path))
        for path in sources.experiment_files(tree):
            self.add("claimed", path, sources.declared_papers(tree, path))
        for path in tree.files("tests"):
            found = sources.marked_tests(tree, path)
            self.add("tested", path, found)
            self.asserted |= {(n, path) for n, asserts in found.items() if asserts}
        for path in tree.files("chapters", ".md"):
            self.add("page", path, sources.page_labels(tree.text(path)))

    def add(self, state: str, path: Path, numbers: Iterable[int]) -> None:
        """Note that a file names these papers."""
        for n in numbers:
            self.files[state].setdefault(n, []).append(path)

    def of(self, state: str, paper: Paper) -> list[Path]:
        """The files of one state that name a paper and lie in its chapter."""
        folders = {self.tree.root / ROOMS[state] / room for room in _rooms(state, paper.chapter)}
        return [p for p in self.files[state].get(paper.number, []) if folders & set(p.parents)]


ROOMS = {"built": "minattn", "tested": "tests", "claimed": "minattn/experiments", "page": "chapters"}

ABOVE = {"kernels": "inference"}
"""A second package for the mechanisms of a chapter: `kernels` lies below attention, so what runs whole models
cannot live there."""


def _rooms(state: str, chapter: str) -> set[str]:
    """The folders in which the files of a chapter may lie."""
    return {chapter, ABOVE[chapter]} if state == "built" and chapter in ABOVE else {chapter}


def missing_built(evidence: Evidence, paper: Paper) -> list[str]:
    """What is missing for `built`."""
    files = evidence.of("built", paper)
    if not files:
        return [f"no file in minattn/{paper.chapter}/ declares PAPERS = ({paper.number},)"]
    public: dict[str, bool | None] = {}
    for path in files:
        for name, documented in sources.public_definitions(evidence.tree, path).items():
            public[name] = public.get(name) or documented
    absent = [f"{n} is not public in {_names(evidence.tree, files)}" for n in paper.names
              if public.get(n) is None]
    bare = [f"{n} has no docstring of {sources.DOC_WORDS} words or more" for n in paper.names
            if public.get(n) is False]
    return absent + bare


def missing_tested(evidence: Evidence, paper: Paper) -> list[str]:
    """What is missing for `tested`."""
    files = evidence.of("tested", paper)
    if not files:
        return [f"no test in tests/{paper.chapter}/ is marked pytest.mark.paper({paper.number})"]
    if any((paper.number, path) in evidence.asserted for path in files):
        return []
    return [f"no marked test in {_names(evidence.tree, files)} asserts anything"]


def missing_claimed(evidence: Evidence, paper: Paper) -> list[str]:
    """What is missing for `claimed`; a paper with several experiments needs all of them."""
    files = evidence.of("claimed", paper)
    if not files:
        return [f"no file in minattn/experiments/{paper.chapter}/ declares PAPERS = ({paper.number},)"]
    return [problem for path in files for problem in missing_claim(evidence.tree, path, paper.number)]


def missing_claim(tree: Tree, path: Path, number: int) -> list[str]:
    """What is missing of one experiment's claim for one paper."""
    result, name = sources.result_path(tree, path), tree.name(path)
    if not sources.runs_on_a_seed(tree, path):
        return [f"{name} defines no run(seed)"]
    if not result.is_file():
        return [f"{name} has not been run: make claims PAPER={number}"]
    try:
        results = read_results(result)
        claims = [c for c in results.claims() if c and c[0].paper == number]
        verdicts = [judge(c) for c in claims]
    except ValueError as error:
        return [str(error)]
    missing = []
    if results.source != sources.source_hash(tree, path):
        missing.append(f"{tree.name(result)} is stale, its sources have changed: make claims PAPER={number}")
    if len(results.seeds) < MIN_SEEDS:
        missing.append(f"{tree.name(result)} holds {len(results.seeds)} seeds, not {MIN_SEEDS}")
    if not claims:
        missing.append(f"{tree.name(result)} holds no finding of paper {number}")
    if FAILS in verdicts:
        missing.append(f"{tree.name(result)}: a claim fails and nothing says what was found instead")
    return missing


def missing_page(evidence: Evidence, paper: Paper) -> list[str]:
    """What is missing for `page`; the best of several labelled pages counts."""
    files = evidence.of("page", paper)
    if not files:
        return [f"no page in chapters/{paper.chapter}/ has the label ({paper.label})="]
    return min((missing_parts(evidence.tree, path) for path in files), key=len)


def missing_parts(tree: Tree, path: Path) -> list[str]:
    """The parts of a page (`PARTS` and a code cell) that a file lacks."""
    text = tree.text(path)
    headings = " \n ".join(sources.page_headings(text)).lower()
    missing = [f"{tree.name(path)} has no heading with \"{part}\"" for part in PARTS
               if not re.search(rf"\b{part.lower()}", headings)]
    return missing + ([] if sources.has_code_cell(text) else [f"{tree.name(path)} runs no code cell"])


MISSING = {"built": missing_built, "tested": missing_tested, "claimed": missing_claimed, "page": missing_page}


def status(root: str | Path = ROOT, register: Sequence[Paper] | None = None) -> list[Row]:
    """Every paper with its status, computed from the files below `root`.

    Parameters
    ----------
    root : folder with `minattn/`, `tests/` and `chapters/`; what is absent counts as missing.
    register : the papers; by default the project's own.
    """
    with sources.collector_paused():
        evidence = Evidence(Tree(root))
        return [_row(evidence, paper) for paper in (papers() if register is None else register)]


def _row(evidence: Evidence, paper: Paper) -> Row:
    files = {s: tuple(evidence.tree.name(p) for p in evidence.of(s, paper)) for s in STATES}
    return Row(paper, files, {s: tuple(MISSING[s](evidence, paper)) for s in STATES})


def _names(tree: Tree, files: Iterable[Path]) -> str:
    return ", ".join(tree.name(p) for p in files)


# --- contradictions ---------------------------------------------------------------------------------------

def contradictions(root: str | Path = ROOT, register: Sequence[Paper] | None = None) -> list[str]:
    """Sentences saying where the register and the files contradict each other; empty when they agree.

    A paper that is not yet built contradicts nothing; one that claims to be and is not does.
    """
    known = {p.number: p for p in (papers() if register is None else register)}
    with sources.collector_paused():
        evidence = Evidence(Tree(root))
        problems = [*_misplaced(evidence, known), *_repeated_labels(evidence),
                    *_undefined_names(evidence), *_results(evidence.tree)]
        for paper in known.values():
            if evidence.of("built", paper):
                problems += [f"paper {paper.number}: {m}" for m in missing_built(evidence, paper)]
    return sorted({*problems, *evidence.tree.problems})


def _misplaced(evidence: Evidence, known: Mapping[int, Paper]) -> list[str]:
    """Files that name a paper which does not exist or belongs to another chapter."""
    chapter_names = {p.chapter for p in known.values()} | set(chapters())
    problems = []
    for state, numbers in evidence.files.items():
        for n, paths in numbers.items():
            for path in paths:
                name = evidence.tree.name(path)
                if n not in known:
                    problems.append(f"{name} names paper {n}, which does not exist")
                    continue
                room = path.relative_to(evidence.tree.root / ROOMS[state]).parts[0]
                elsewhere = state != "tested" or room in chapter_names    # tests/experiments/ may mark any
                if room not in _rooms(state, known[n].chapter) and elsewhere:
                    problems.append(f"{name} names paper {n}, which belongs to {known[n].chapter}")
    return problems


def _repeated_labels(evidence: Evidence) -> list[str]:
    return [f"the label (paper-{n:03d})= stands {len(paths)} times: {_names(evidence.tree, paths)}"
            for n, paths in evidence.files["page"].items() if len(paths) > 1]


def _undefined_names(evidence: Evidence) -> list[str]:
    """Names in the `__all__` of a mechanism that the file neither defines nor imports from the project."""
    tree = evidence.tree
    return [f"{tree.name(path)}: __all__ lists {name}, which nothing defines"
            for path in {p for paths in evidence.files["built"].values() for p in paths}
            for name, documented in sources.public_definitions(tree, path).items() if documented is None]


def _results(tree: Tree) -> list[str]:
    """Result files without an experiment, unreadable, stale, of other papers, or silent about a failure."""
    expected = {sources.result_path(tree, p): p for p in sources.experiment_files(tree)}
    problems = []
    for result in tree.files("minattn/experiments/results", ".json"):
        name = tree.name(result)
        if result not in expected:
            problems.append(f"{name} belongs to no experiment")
            continue
        experiment = expected[result]
        try:
            results = read_results(result)
            failing = [c[0].paper for c in results.claims() if judge(c) == FAILS]
        except ValueError as error:
            problems.append(str(error))
            continue
        if set(results.papers) != set(sources.declared_papers(tree, experiment)):
            problems.append(f"{name} is about papers {list(results.papers)}, its experiment is not")
        if results.source != sources.source_hash(tree, experiment):
            problems.append(f"{name} is stale: the code that produced it has changed; run make claims")
        problems += [f"{name}: the claim of paper {n} fails and nothing says what was found instead"
                     for n in failing]
    return problems


# --- the table in the book --------------------------------------------------------------------------------

class Table(str):
    """HTML that a notebook shows as a table and `str` shows as text."""

    def _repr_html_(self) -> str:
        return str(self)


def table(root: str | Path = ROOT, chapter: str | None = None, *, base: str = "../",
          code_url: str | None = None, rows: Sequence[Row] | None = None) -> Table:
    """The register as an accessible HTML table, for the book.

    Parameters
    ----------
    root : the checkout.
    chapter : only this chapter's papers; by default all 213.
    base : how the showing page reaches the root of the built book.
    code_url : address of a file with `{path}` in it, for links to code and tests; without it they are text.
    rows : the result of `status(root)`, to save computing it for each of several tables.
    """
    if chapter is not None and chapter not in chapters():
        raise ValueError(f"chapter must be one of {list(chapters())}, got {chapter!r}")
    shown = [r for r in (status(root) if rows is None else rows) if chapter in (None, r.paper.chapter)]
    title = "The papers of all chapters" if chapter is None else chapters()[chapter]
    heads = ("No.", "Paper", "Chapter", "Built", "Tested", "Claimed", "Page")
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    body = "\n".join(_html_row(r, base, code_url) for r in shown)
    done = sum(r.done for r in shown)
    return Table(f'<div class="minattn-atlas" role="region" aria-label="{html.escape(title)}" tabindex="0" '
                 f'style="overflow-x:auto"><table><caption>{html.escape(title)}: {done} of {len(shown)} done'
                 f"</caption><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>")


def _html_row(row: Row, base: str, code_url: str | None) -> str:
    p = row.paper
    title = html.escape(p.title)
    linked = f'<a href="{p.url}">{title}</a>' if p.url else title
    by = html.escape(f"{p.by}, {p.year}" + (f", {p.venue}" if p.venue else ""))
    cells = [_state_cell(row, state, base, code_url) for state in STATES]
    return (f'<tr class="{"done" if row.done else "open"}"><td>{p.number}</td>'
            f'<th scope="row">{linked}<br><small>{by}</small></th>'
            f"<td>{html.escape(p.chapter)}</td>{''.join(cells)}</tr>")


def _state_cell(row: Row, state: str, base: str, code_url: str | None) -> str:
    """"yes" or "no", and where it can be seen."""
    links = []
    for name in row.files[state]:
        stem = html.escape(Path(name).name)
        if state == "page":
            links.append(f'<a href="{base}{name.removesuffix(".md")}.html#{row.paper.label}">{stem}</a>')
        elif code_url:
            links.append(f'<a href="{code_url.format(path=name)}">{stem}</a>')
        else:
            links.append(f"<code>{stem}</code>")
    word = "yes" if row.states[state] else "no"
    return f'<td class="{word}">{" ".join([word, *links])}</td>'


# --- the command ------------------------------------------------------------------------------------------

def overview(rows: Sequence[Row]) -> str:
    """One line a chapter: how many papers, and how many have reached each state."""
    columns = (*STATES, "done")
    lines = [f"{'chapter':<14}{'papers':>7}" + "".join(f"{c:>9}" for c in columns)]
    for name in [*chapters(), "all"]:
        inside = [r for r in rows if name in ("all", r.paper.chapter)]
        counts = "".join(f"{sum(r.states[c] for r in inside):>9}" for c in columns)
        lines.append(f"{name:<14}{len(inside):>7}{counts}")
    return "\n".join([*lines, "", "Next: python -m minattn.atlas --chapter NAME, or --paper NUMBER, "
                                  "shows what is missing."])


def chapter_view(rows: Sequence[Row], chapter: str) -> str:
    """One line a paper: number, states reached, title."""
    lines = [f"{chapter}: {chapters()[chapter]}", ""]
    for r in (r for r in rows if r.paper.chapter == chapter):
        reached = " ".join(s if r.states[s] else "-" * len(s) for s in STATES)
        lines.append(f"{r.paper.number:>4}  {reached}  {'done' if r.done else '    '}  {r.paper.title}")
    return "\n".join([*lines, "", "Next: python -m minattn.atlas --paper NUMBER shows what is missing."])


def paper_view(row: Row) -> str:
    """What there is of one paper, and what is missing."""
    p = row.paper
    lines = [f"{p.number}. {p.title}",
             "    " + ", ".join(filter(None, [p.by, str(p.year), p.venue, p.url])),
             f"    chapter {p.chapter}; promised: {', '.join(p.names)}", ""]
    for state in STATES:
        reached = "yes" if row.states[state] else "no"
        lines.append(f"{state:<8} {reached:<4} {', '.join(row.files[state])}".rstrip())
        lines += [f"           - {m}" for m in row.missing[state]]
    first = next((m for s in STATES for m in row.missing[s]), None)
    return "\n".join([*lines, "", f"Next: {first}" if first else "Done."])


def main(argv: Sequence[str] | None = None, root: str | Path = ROOT) -> int:
    """The command `python -m minattn.atlas`; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m minattn.atlas",
                                     description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--chapter", choices=list(chapters()), metavar="NAME", help="the papers of one chapter")
    what.add_argument("--paper", type=int, metavar="NUMBER", help="one paper: what there is, what is missing")
    what.add_argument("--json", action="store_true", help="the register with every status, as JSON")
    what.add_argument("--check", action="store_true", help="exit with 1 if register and files disagree")
    options = parser.parse_args(argv)
    if options.check:
        problems = contradictions(root)
        print("\n".join(problems) or "The register and the files agree.")
        return int(bool(problems))
    rows = {r.paper.number: r for r in status(root)}
    if options.json:
        print(json.dumps({"chapters": chapters(), "papers": [r.as_dict() for r in rows.values()]},
                         ensure_ascii=False, indent=1))
    elif options.chapter:
        print(chapter_view(list(rows.values()), options.chapter))
    elif options.paper is not None:
        if options.paper not in rows:
            parser.error(f"--paper must be between 1 and {max(rows)}, got {options.paper}")
        print(paper_view(rows[options.paper]))
    else:
        print(overview(list(rows.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
