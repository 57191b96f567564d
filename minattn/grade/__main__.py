"""Exercises graded: `check` one file, or prove with `selftest` that the grader itself can be trusted."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from . import chapters, grade, tasks_of
from .feedback import text
from .report import write_reports
from .selftest import selftest
from .submit import grade_class, results, submissions
from .task import stubs


def check(options: argparse.Namespace) -> int:
    """Grade one file and say what is right, what is not, and why."""
    tasks = [t for t in tasks_of(options.chapter) if options.task in (None, t.number)]
    if not tasks:
        sys.exit(f"There is no task {options.task} in {options.chapter}.")
    file = options.file or stubs(options.chapter)
    if not file.is_file():
        sys.exit(f"There is no file {file}.  Next: copy {stubs(options.chapter)} there and fill it in.")
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    report = grade(file.read_bytes(), tasks, student=file.stem, seed=seed)
    print(text(report, file, options.hints))
    return int(report.points < report.of)


def submit(options: argparse.Namespace) -> int:
    """Grade a class; the same command goes on where it was stopped."""
    from tqdm import tqdm

    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "seed.txt"
    if not kept.exists():
        kept.write_text(str(secrets.randbelow(2**31)), encoding="ascii")
    total = len(submissions(options.folder))
    with tqdm(total=total, unit="submission", disable=None, file=sys.stderr) as bar:
        try:
            lost = grade_class(
                options.folder, options.chapter, out, int(kept.read_text()), options.jobs, bar.update
            )
        except KeyboardInterrupt:
            print(
                "Stopped. Every finished result is written; the same command goes on from there.",
                file=sys.stderr,
            )
            return 130
    if lost:
        print(f"Look yourself at: {', '.join(map(repr, lost))}.")
    return report(options)


def report(options: argparse.Namespace) -> int:
    """Write the reports anew from the results."""
    found = results(options.out)
    files = write_reports(found, options.out)
    print(f"{len(found)} results in {options.out}.  Next: open {files[1]}")
    return int(not found)


def prove(options: argparse.Namespace) -> int:
    """Run the self-test of one chapter or all."""
    failed = 0
    for chapter in [options.chapter] if options.chapter else chapters():
        for name, wrong in selftest(chapter):
            failed += bool(wrong)
            print(
                f"{'FAILED' if wrong else 'ok':6}  {chapter}: {name}{': ' + wrong if wrong else ''}",
                flush=True,
            )
    print(
        f"{failed} failed." if failed else "Everything holds.  Next: python -m minattn.grade check attention"
    )
    return int(failed > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status is 0 when nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m minattn.grade", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("check", help="grade one file, by default the chapter's own exercises.py")
    one.add_argument("chapter", choices=chapters())
    one.add_argument("--task", type=int, metavar="NUMBER")
    one.add_argument("--file", type=Path, help="your file")
    one.add_argument("--hints", type=int, choices=(1, 2, 3), default=1, help="how many hints to show")
    one.add_argument("--seed", type=int, help="draw the same cases as the run that named this seed")
    one.set_defaults(run=check)
    many = commands.add_parser("submit", help="grade a folder of <student>.py or <student>/exercises.py")
    many.add_argument("folder", type=Path)
    many.add_argument("--chapter", choices=chapters(), required=True)
    many.add_argument("--out", type=Path, required=True)
    many.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    many.set_defaults(run=submit)
    told = commands.add_parser("report", help="write gradebook.csv, report.html and junit.xml from results")
    told.add_argument("out", type=Path)
    told.set_defaults(run=report)
    proof = commands.add_parser("selftest", help="blanks get 0, references everything, mistakes are named")
    proof.add_argument("chapter", nargs="?", choices=chapters())
    proof.set_defaults(run=prove)
    options = parser.parse_args(argv)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
