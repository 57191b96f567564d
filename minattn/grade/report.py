"""A class at a glance: a gradebook as CSV, one HTML page that needs no network, and JUnit for other
programs."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ chapter }}</title>
<style>body{font:16px/1.5 sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
table{border-collapse:collapse}td,th{border:1px solid #999;padding:.2rem .6rem;text-align:left}</style>
<h1>{{ chapter }}</h1>
<p>{{ results|length }} submissions, mean {{ '%.1f'|format(mean) }} of {{ '%g'|format(of) }}.</p>
<h2>What was hard</h2>
<table><tr><th>task</th><th>mean</th><th>likely causes (students)</th></tr>
{% for t in tasks %}
<tr><td>{{ t.number }}. {{ t.function }}</td><td>{{ '%.1f'|format(t.mean) }} of {{ t.of }}</td>
<td>{% for cause, n in t.causes %}{{ cause }} ({{ n }})<br>{% endfor %}</td></tr>
{% endfor %}</table>
<h2>Students</h2>
{% for r in results %}
<details><summary>{{ r.student }}: {{ '%g'|format(r.points) }} {{ r.problem }}</summary>
<p>Seed {{ r.seed }}. Kept apart by: {{ r.protection }}.</p>
{% for t in r.tasks %}
<h4>{{ t.number }}. {{ t.function }}: {{ '%g'|format(t.points) }} of {{ t.of }}</h4>
<p>{{ t.problem }}</p>
<ul>{% for x in t.layers %}
<li>{{ x.name }} {{ '%g'|format(x.points) }} of {{ x.of }}
{% for m in x.told[:3] %}<br>{{ m }}{% endfor %}</li>
{% endfor %}
{% for c in t.causes %}<li>Likely cause: {{ c }}</li>{% endfor %}</ul>
{% endfor %}</details>
{% endfor %}</html>
"""


def write_reports(results: list[dict[str, Any]], out: Path) -> list[Path]:
    """gradebook.csv, report.html and junit.xml beside the results."""
    files = {"gradebook.csv": gradebook(results), "report.html": page(results), "junit.xml": junit(results)}
    for name, content in files.items():
        (out / name).write_text(content, encoding="utf-8", errors="backslashreplace")
    return [out / name for name in files]


def gradebook(results: list[dict[str, Any]]) -> str:
    """Student × task; a cell that a spreadsheet would take for a formula begins with an apostrophe."""
    names = list(dict.fromkeys(t["function"] for r in results for t in r["tasks"]))
    told = io.StringIO()
    table = csv.writer(told, lineterminator="\n")
    table.writerow(["student", *names, "points", "of", "problem"])
    for r in results:
        points = {t["function"]: t["points"] for t in r["tasks"]}
        row = [r["student"], *(points.get(n, 0) for n in names), r["points"], r["of"], r["problem"]]
        table.writerow([f"'{c}" if isinstance(c, str) and c[:1] in tuple("=+-@\t\r") else c for c in row])
    return told.getvalue()


def page(results: list[dict[str, Any]]) -> str:
    """The page for the teacher; everything that a student wrote is escaped."""
    import jinja2

    tasks: dict[str, dict[str, Any]] = {}
    for t in (t for r in results for t in r["tasks"]):
        entry = tasks.setdefault(t["function"], {**t, "all": [], "counted": Counter()})
        entry["all"].append(t["points"])
        entry["counted"].update(c.split(":")[0] for c in t["causes"])
    for entry in tasks.values():
        entry["mean"], entry["causes"] = sum(entry["all"]) / len(results), entry["counted"].most_common(5)
    n = max(len(results), 1)
    return (
        jinja2.Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            results=results,
            tasks=list(tasks.values()),
            mean=sum(r["points"] for r in results) / n,
            of=max((r["of"] for r in results), default=0),
            chapter=results[0]["chapter"] if results else "",
        )
    )


def junit(results: list[dict[str, Any]]) -> str:
    """A suite a student and a case a task, failed unless it has all its points."""
    suites = ET.Element("testsuites")
    for r in results:
        suite = ET.SubElement(suites, "testsuite", name=_xml(r["student"]), tests=str(len(r["tasks"])))
        for t in r["tasks"]:
            case = ET.SubElement(
                suite,
                "testcase",
                classname=_xml(r["chapter"]),
                name=t["function"],
                time=f"{t['seconds']:.3f}",
            )
            if t["points"] < t["of"]:
                told = [t["problem"], *(m for x in t["layers"] for m in x["told"]), *t["causes"]]
                lost = ET.SubElement(case, "failure", message=f"{t['points']:g} of {t['of']:g}")
                lost.text = _xml("\n".join(filter(None, told)))
    return ET.tostring(suites, encoding="unicode")


def _xml(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff") else "?" for c in text)
