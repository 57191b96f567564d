"""The register and the files of this project itself."""

import re
from pathlib import Path

import pytest

from minattn import atlas
from minattn.atlas import PARTS, contradictions, status
from minattn.register import papers

ROOT = Path(__file__).resolve().parents[1]


def test_register_and_files_of_this_project_agree():
    assert contradictions(ROOT) == []


def test_every_paper_has_a_status():
    assert [row.paper for row in status(ROOT)] == list(papers())


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
