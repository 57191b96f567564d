"""The papers' findings in miniature, one file an experiment, mirroring the chapters.

An experiment is a file `minattn/experiments/<chapter>/<name>.py` with

    PAPERS = (65,)

    def run(seed: int) -> Finding: ...

`run` may also return a list of findings, one a claim, in the same order for every seed.
`python -m minattn.experiments` (`make claims`) runs them and writes their results after each seed to
`minattn/experiments/results/<chapter>/<name>.json`; a page shows them with `load_results`.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from minattn import sources
from minattn.findings import Bar, Finding, Results, judge, read_results
from minattn.sources import Tree

__all__ = ["Bar", "Experiment", "Finding", "Results", "discover", "judge", "load_results", "read_results",
           "run_all", "run_seed"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("numpy", "scipy", "numba")


@dataclass(frozen=True)
class Experiment:
    """One experiment file.

    Attributes
    ----------
    chapter, name : `minattn/experiments/<chapter>/<name>.py`.
    papers : the numbers that it declares.
    source : hash of its code and of the mechanisms that it exercises.
    result : the file that holds its results.
    """

    chapter: str
    name: str
    papers: tuple[int, ...]
    source: str
    result: Path

    @property
    def module(self) -> str:
        """Its dotted module name."""
        return f"minattn.experiments.{self.chapter}.{self.name}"

    def __str__(self) -> str:
        return f"{self.chapter}/{self.name}"

    def kept(self) -> Results:
        """The results that still count: those on disk, if the present source made them, else none."""
        fresh = Results(str(self), self.papers, self.source, {})
        if not self.result.is_file():
            return fresh
        try:
            old = read_results(self.result)
        except ValueError:
            return fresh
        return old if (old.source, old.papers) == (self.source, self.papers) else fresh


def discover(root: str | Path = ROOT, paper: int | None = None) -> list[Experiment]:
    """The experiments of a checkout that define `run(seed)`, of one paper or of all; nothing is imported."""
    tree = Tree(root)
    found = []
    for path in sources.experiment_files(tree):
        papers = sources.declared_papers(tree, path)
        if papers and (paper is None or paper in papers) and sources.runs_on_a_seed(tree, path):
            found.append(Experiment(path.parent.name, path.stem, papers, sources.source_hash(tree, path),
                                    sources.result_path(tree, path)))
    return found


def load_results(chapter: str, name: str, root: str | Path = ROOT) -> Results:
    """The committed results of an experiment, for its page.

    Raises
    ------
    FileNotFoundError : it has not been run; the message says which command runs it.
    ValueError : the file cannot be read, or other code than the present one produced it.
    """
    tree = Tree(root)
    path = tree.root / "minattn" / "experiments" / chapter / f"{name}.py"
    if not path.is_file():
        raise FileNotFoundError(f"there is no experiment {chapter}/{name}")
    command = f"python -m minattn.experiments --paper {(sources.declared_papers(tree, path) or (0,))[0]}"
    result = sources.result_path(tree, path)
    if not result.is_file():
        raise FileNotFoundError(f"{chapter}/{name} has no results yet; run {command}")
    results = read_results(result)
    if results.source != sources.source_hash(tree, path):
        raise ValueError(f"the results of {chapter}/{name} come from other code than today's; run {command}")
    return results


# --- running ----------------------------------------------------------------------------------------------

def run_seed(module: str, seed: int, papers: Sequence[int]) -> dict[str, Any]:
    """Run an experiment's module on one seed; returns findings, seconds, date, machine and versions.

    Raises
    ------
    TypeError : `run` returned something other than findings.
    ValueError : a finding of a paper or seed that was not asked for, or a paper without a finding.
    """
    begin = time.perf_counter()
    returned = importlib.import_module(module).run(seed)
    seconds = round(time.perf_counter() - begin, 3)
    findings = [returned] if isinstance(returned, Finding) else list(returned)
    for finding in findings:
        if not isinstance(finding, Finding):
            raise TypeError(f"{module}.run must return findings, got {type(finding).__name__}")
        if finding.seed != seed:
            raise ValueError(f"{module}.run({seed}) returned a finding of seed {finding.seed}")
    if {f.paper for f in findings} != set(papers):
        raise ValueError(f"{module} declares papers {list(papers)}, its findings are of "
                         f"{sorted({f.paper for f in findings})}")
    return {"seconds": seconds, **provenance(),
            "findings": [replace(f, seconds=f.seconds or seconds).as_dict() for f in findings]}


def provenance() -> dict[str, Any]:
    """When and where a run was made: date, processor, number of processors, versions."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": f"{_processor()}, {os.cpu_count()} processors", "versions": versions}


def _processor() -> str:
    """The processor's model name; the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def write_results(results: Results, path: Path) -> None:
    """Write results whole or not at all: to a temporary name beside the file, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        text = json.dumps(results.as_dict(), indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run_all(experiments: Iterable[Experiment], seeds: Sequence[int] = (0, 1, 2), jobs: int = 1,
            force: bool = False, tick: Callable[[Experiment, int], None] | None = None,
            ) -> tuple[dict[str, Results], dict[str, str]]:
    """Run what has not been run, and write each experiment's file after every seed.

    Parameters
    ----------
    experiments : from `discover`.
    seeds : the seeds wanted; those already run from unchanged sources are not run again.
    jobs : processes to run in; the results are the same.
    force : run again even where the sources are unchanged.
    tick : called with experiment and seed after each run, for a progress bar.

    Returns
    -------
    results and errors, both by "chapter/name"; an experiment with an error keeps the seeds that ran.
    """
    todo = list(experiments)
    results = {str(e): Results(str(e), e.papers, e.source, {}) if force else e.kept() for e in todo}
    errors: dict[str, str] = {}
    tasks = [(e, s) for e in todo for s in seeds if s not in results[str(e)].runs]
    for experiment, seed, outcome in _outcomes(tasks, jobs):
        name = str(experiment)
        if isinstance(outcome, Exception):
            errors[name] = f"seed {seed}: {type(outcome).__name__}: {outcome}"
        else:
            results[name].runs[seed] = outcome
            write_results(results[name], experiment.result)
        if tick:
            tick(experiment, seed)
    return results, errors


def _outcomes(tasks: Sequence[tuple[Experiment, int]], jobs: int,
              ) -> Iterable[tuple[Experiment, int, dict[str, Any] | Exception]]:
    """The runs as they end: experiment, seed, and what the run returned or raised."""
    if jobs == 1:
        for experiment, seed in tasks:
            try:
                yield experiment, seed, run_seed(experiment.module, seed, experiment.papers)
            except Exception as error:          # one broken experiment must not cost the others their run
                yield experiment, seed, error
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting: dict[Future[dict[str, Any]], tuple[Experiment, int]] = {
            pool.submit(run_seed, e.module, s, e.papers): (e, s) for e, s in tasks}
        try:
            for future in as_completed(waiting):
                failure = future.exception()
                if failure is not None and not isinstance(failure, Exception):
                    raise failure
                yield *waiting[future], failure or future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
