"""Run the experiments and say which findings hold: `python -m minattn.experiments`, or `make claims`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from minattn.experiments import Experiment, Results, discover, judge, run_all
from minattn.findings import FAILS


def verdict_table(experiments: Sequence[Experiment], results: Mapping[str, Results],
                  errors: Mapping[str, str]) -> tuple[list[str], int]:
    """One line a claim, and how many claims or experiments failed."""
    lines = [f"{'paper':>5}  {'verdict':<13}  {'seeds':<9}  experiment"]
    failed = 0
    for experiment in experiments:
        found = results[str(experiment)]
        seeds = " ".join(map(str, found.seeds))
        for claim in found.claims():
            verdict = judge(claim)
            failed += verdict == FAILS
            lines.append(f"{claim[0].paper:>5}  {verdict:<13}  {seeds:<9}  {experiment}: {claim[0].claim}")
            if verdict == FAILS:
                lines += [f"{'':>7}not cleared: {b}" for b in claim[0].bars
                          if not b.cleared([f.numbers for f in claim])]
        if str(experiment) in errors:
            failed += 1
            lines.append(f"{experiment.papers[0]:>5}  {'error':<13}  {seeds:<9}  {experiment}: "
                         f"{errors[str(experiment)]}")
    return lines, failed


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status is 1 when a claim fails and does not say what was found instead."""
    parser = argparse.ArgumentParser(prog="python -m minattn.experiments", description=__doc__)
    parser.add_argument("--paper", type=int, metavar="NUMBER", help="only this paper's experiments")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run in N processes")
    parser.add_argument("--force", action="store_true", help="run again what has not changed")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    experiments = discover(paper=options.paper)
    if not experiments:
        of = "" if options.paper is None else f" of paper {options.paper}"
        print(f"There is no experiment{of}.\n"
              "Next: add minattn/experiments/<chapter>/<name>.py with PAPERS and run(seed).")
        return int(options.paper is not None)
    kept = {} if options.force else {str(e): e.kept().runs for e in experiments}
    total = sum(s not in kept.get(str(e), {}) for e in experiments for s in options.seeds)

    from tqdm import tqdm

    with tqdm(total=total, unit="run", disable=None, file=sys.stderr) as bar:
        def tick(experiment: Experiment, seed: int) -> None:
            bar.set_postfix_str(f"{experiment} seed {seed}")
            bar.update()
        try:
            results, errors = run_all(experiments, options.seeds, options.jobs, options.force, tick)
        except KeyboardInterrupt:
            print("Stopped. Every finished seed is written; the same command goes on from there.",
                  file=sys.stderr)
            return 130
    lines, failed = verdict_table(experiments, results, errors)
    print("\n".join(lines))
    if failed:
        print(f"\n{failed} failed. Next: make each hold, or state in its finding what was found instead.")
    else:
        print("\nNext: commit minattn/experiments/results; python -m minattn.atlas shows what is missing.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
