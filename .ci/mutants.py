"""Change one file of the library in many small ways, one at a time, and count the changes its tests notice.

    python .ci/mutants.py minattn/attention/masks.py                      # tests/attention/test_masks.py
    python .ci/mutants.py minattn/attention/masks.py tests/attention      # other tests

Prints every change that survived as a difference, then the score; the exit status is 1 below 90 %.  Works in
a copy under _build/mutants, so that several can run at once and nothing in the tree is touched.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BAR = 90.0
KILLED = ("killed", "timeout", "suspicious", "segfault")

CONFIG = """
[tool.mutmut]
source_paths = ["minattn"]
only_mutate = ["{file}"]
also_copy = ["book/_ext"]
pytest_add_cli_args = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
pytest_add_cli_args_test_selection = {tests}
use_git_change_detection = false
"""

SHOW = """
import sys
from mutmut.__main__ import find_mutant, get_diff_for_mutant
for name in sys.argv[1:]:
    print("#", name)
    print(get_diff_for_mutant(name, path=find_mutant(name).path), end="\\n\\n")
"""


def tests_of(file: str) -> list[str]:
    """The test files whose names begin as a library file's; if there are none, all tests of its package."""
    _, *packages, name = Path(file).parts
    folder = ROOT.joinpath("tests", *packages)
    found = sorted(folder.glob(f"test_{Path(name).stem}*.py")) or [folder]
    if not folder.exists():
        mirrored = (folder / f"test_{name}").relative_to(ROOT)
        sys.exit(f"There are no tests for {file}.  Next: write {mirrored}, or say TESTS=...")
    return [path.relative_to(ROOT).as_posix() for path in found]


def prepare(file: str, tests: list[str]) -> Path:
    """A fresh copy of the library and its tests, with mutmut told which file to mutate."""
    work = ROOT / "_build" / "mutants" / re.sub(r"\W+", "-", file)
    shutil.rmtree(work, ignore_errors=True)
    skip = shutil.ignore_patterns("__pycache__", ".*")
    for folder in ("minattn", "tests", "book/_ext"):
        shutil.copytree(ROOT / folder, work / folder, ignore=skip)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = re.sub(r"^\[tool\.mutmut\].*?(?=^\[|\Z)", "", project, flags=re.S | re.M)
    (work / "pyproject.toml").write_text(
        project + CONFIG.format(file=file, tests=json.dumps(tests)), encoding="utf-8"
    )
    return work


def main(arguments: list[str]) -> int:
    if not arguments or not (ROOT / arguments[0]).is_file():
        sys.exit(f"Say which file to mutate, such as minattn/attention/masks.py; got {arguments[:1]}")
    file = Path(arguments[0]).as_posix()
    tests = arguments[1:] or tests_of(file)
    print(f"Mutating {file}; its tests: {' '.join(tests)}", flush=True)
    work = prepare(file, tests)
    mutmut = [sys.executable, "-m", "mutmut"]
    run = subprocess.run([*mutmut, "run", "--max-children", "2"], cwd=work)
    found = subprocess.run([*mutmut, "results", "--all", "true"], cwd=work, capture_output=True, text=True)
    status = dict(re.findall(r"^\s+(\S+): (.+)$", found.stdout, flags=re.M))
    counted = {name: verdict for name, verdict in status.items() if verdict != "skipped"}
    if set(counted.values()) <= {"not checked"}:
        print(
            f"Nothing was checked: no mutant, or tests that fail without one (see above, {run.returncode})."
        )
        return 1
    survivors = [name for name, verdict in counted.items() if verdict not in KILLED]
    subprocess.run([sys.executable, "-c", SHOW, *survivors], cwd=work)
    score = 100 * (1 - len(survivors) / len(counted))
    killed = len(counted) - len(survivors)
    print(f"{file}: {killed} of {len(counted)} mutants killed, {score:.1f} % (bar {BAR:.0f} %).")
    if score < BAR:
        print("Next: for each difference above, write the test that it should have failed.")
        return 1
    print("Next: make test")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
