"""Exercises graded: `check` one file, or prove with `selftest` that the grader itself can be trusted."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from . import chapters, grade, tasks_of
from .feedback import text
from .selftest import selftest
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


def prove(options: argparse.Namespace) -> int:
    """Run the self-test of one chapter or all."""
    failed = 0
    for chapter in [options.chapter] if options.chapter else chapters():
        for name, wrong in selftest(chapter):
            failed += bool(wrong)
            print(f"{'FAILED' if wrong else 'ok':6}  {chapter}: {name}{': ' + wrong if wrong else ''}", flush=True)
    print(f"{failed} failed." if failed else "Everything holds.  Next: python -m minattn.grade check attention")
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
    proof = commands.add_parser("selftest", help="blanks get 0, references everything, mistakes are named")
    proof.add_argument("chapter", nargs="?", choices=chapters())
    proof.set_defaults(run=prove)
    options = parser.parse_args(argv)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
