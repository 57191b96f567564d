"""A class: every file gets a result, whatever its name; a killed worker costs nothing."""

import csv
import json
import os
import signal
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from minattn.grade import submit
from minattn.grade.report import gradebook, junit, page, write_reports

HERE: list[Path] = []


@pytest.fixture
def folder(tmp_path):
    for name in ("ada", "bob", "cyd", "=SUM(1)", "a,b\nc", "<b>"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    (tmp_path / "dan").mkdir()
    (tmp_path / "dan" / "exercises.py").write_text("y = 2\n")
    os.symlink("/etc/passwd", tmp_path / "link.py")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / os.fsdecode(b"\xff\xfe.py")).write_text("z = 3\n")
    (tmp_path / "large.py").write_bytes(b"#" * (submit.LARGEST + 1))
    return tmp_path


def fake(submission, chapter, seed, out):
    """Grades nothing; at bob the worker is killed, once or always."""
    marks = Path(os.environ["MARKS"])
    if submission.student == "bob" and (os.environ["ALWAYS"] or not (marks / "killed").exists()):
        (marks / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    with open(marks / submission.result, "a") as f:
        f.write("x")
    try:
        source = submit.read(submission.file)
    except OSError:
        source = b""
    submit._write(
        out / submission.result,
        {**submit._lost(submission, chapter, seed), "problem": "", "sha256": submit._digest(source)},
    )


@pytest.mark.parametrize("always", ["", "1"])
def test_a_killed_worker_loses_nothing(folder, tmp_path_factory, monkeypatch, always):
    out, marks = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("marks")
    monkeypatch.setenv("MARKS", str(marks))
    monkeypatch.setenv("ALWAYS", always)
    monkeypatch.setattr(submit, "grade_file", fake)
    lost = submit.grade_class(folder, "attention", out, 1, 2)
    assert lost == (["bob"] if always else [])
    assert len(submit.results(out)) == 11 and (marks / "killed").exists()
    assert not list(out.glob("*.part"))


def test_what_is_done_is_not_done_again(folder, tmp_path_factory, monkeypatch):
    out, marks = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("marks")
    monkeypatch.setenv("MARKS", str(marks))
    monkeypatch.setenv("ALWAYS", "")
    monkeypatch.setattr(submit, "grade_file", fake)
    (marks / "killed").touch()
    submit.grade_class(folder, "attention", out, 1, 1)
    (folder / "ada.py").write_text("x = 2\n")
    submit.grade_class(folder, "attention", out, 1, 1)
    counts = {s.student: len((marks / s.result).read_text()) for s in submit.submissions(folder)}
    assert counts["ada"] == 2 and counts["bob"] == counts["cyd"] == counts["dan"] == 1


def test_names_stay_in_the_folder(folder):
    names = [s.result for s in submit.submissions(folder)]
    assert len(set(names)) == len(names) == 11
    assert all(
        set(n) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") for n in names
    )


def test_only_plain_small_files_are_read(folder):
    for name in ("link.py", "pipe.py", "large.py"):
        with pytest.raises(OSError):
            submit.read(folder / name)
    assert submit.read(folder / "ada.py") == b"x = 1\n"


def test_reports_escape_what_students_wrote(tmp_path):
    task = {
        "number": 1,
        "function": "f",
        "points": 1.0,
        "of": 2,
        "problem": "<script>",
        "layers": [],
        "causes": ["a: b"],
        "hints": [],
        "printed": "",
        "seconds": 0.5,
    }
    found = [
        {
            "student": name,
            "seed": 0,
            "points": 1.0,
            "of": 2,
            "protection": "limits",
            "chapter": "attention",
            "problem": "",
            "sha256": "",
            "tasks": [task],
        }
        for name in ("=SUM(1)", "<b>", "\x00\udcff")
    ]
    rows = list(csv.reader(gradebook(found).splitlines()))
    assert rows[0] == ["student", "f", "points", "of", "problem"] and rows[1][0] == "'=SUM(1)"
    assert "<script>" not in page(found) and "&lt;script&gt;" in page(found) and "<b>:" not in page(found)
    suites = ET.fromstring(junit(found))
    assert len(suites.findall("testsuite/testcase/failure")) == 3
    assert all(f.exists() for f in write_reports(found, tmp_path))
    json.dumps(found)
