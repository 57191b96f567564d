"""The register and the files of this project itself."""

import re
import time
from pathlib import Path

import pytest

from minattn import atlas
from minattn.atlas import PARTS, contradictions, status
from minattn.register import Paper, papers

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


def test_register_and_files_of_this_project_agree():
    assert contradictions(ROOT) == []


def test_status_of_everything_takes_under_a_second():
    begin = time.perf_counter()
    rows = status(ROOT)
    assert len(rows) == 213 and time.perf_counter() - begin < 1.0


def test_the_bibliography_holds_every_paper_as_the_register_has_it():
    database = pytest.importorskip("pybtex.database")
    entries = database.parse_file(str(ROOT / "book/references.bib")).entries
    numbered = [k for k in entries if re.fullmatch(r"paper\d{3}", k)]
    assert numbered == [p.key for p in papers()]
    for p in papers():
        entry = entries[p.key]
        assert re.sub(r"[{}\\]", "", entry.fields["title"]) == p.title
        assert entry.fields["year"] == str(p.year)
        assert entry.fields.get("eprint", "") == p.arxiv
        assert [re.sub(r"[{}]", "", str(a)) for a in entry.persons["author"]] == list(p.authors)


def test_every_reference_has_author_title_year_and_a_place_to_find_it():
    database = pytest.importorskip("pybtex.database")
    entries = database.parse_file(str(ROOT / "book/references.bib")).entries
    for key, entry in entries.items():
        assert entry.persons.get("author") and entry.fields.get("title") and entry.fields.get("year"), key
        places = {"eprint", "howpublished", "journal", "booktitle", "publisher"}
        assert places & set(entry.fields), key
    eprints = [e.fields["eprint"] for e in entries.values() if "eprint" in e.fields]
    assert len(set(eprints)) == len(eprints)
    classics = {"vaswani2017attention", "bahdanau2015neural", "milakov2018online", "dao2022flashattention"}
    assert classics <= set(entries)


def test_the_docstring_names_every_part_of_a_page():
    text = " ".join((atlas.__doc__ or "").split())
    assert all(part in text for part in PARTS)
