"""Findings are judged by their numbers; runs are written after every seed and go on where they stopped."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minattn import experiments
from minattn.experiments import (
    Experiment,
    Finding,
    Results,
    discover,
    judge,
    load_results,
    read_results,
    run_all,
    run_seed,
)
from minattn.experiments.__main__ import main, verdict_table
from minattn.findings import Bar, evaluate

NUMBERS = {"dot": 1.5, "mine": 1.2, "zero": 0.0}


def finding(seed=0, bars=(("dot - mine", ">=", 0.1),), found="", **numbers) -> Finding:
    return Finding(65, "mine beats dot", {**NUMBERS, **numbers}, bars, seed, found=found)


# --- expressions and bars ---------------------------------------------------------------------------------

@pytest.mark.parametrize(("expression", "value"), [
    ("dot", 1.5), ("dot - mine", 1.5 - 1.2), ("-dot + 2 * mine", -1.5 + 2 * 1.2),
    ("(dot + 1) / 2 ** 2", 0.625),
    ("abs(mine - dot)", 1.5 - 1.2), ("max(dot, mine, 7)", 7.0), ("min(dot, mine)", 1.2), (3, 3.0),
    ("+1e-3", 0.001)])
def test_expressions_are_arithmetic_over_the_numbers(expression, value):
    assert evaluate(expression, NUMBERS) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(("expression", "message"), [
    ("dto - mine", "names 'dto', which is not among"), ("dot / zero", "cannot be computed"),
    ("dot -", "cannot be computed"), ("__import__('os')", "names '__import__'|may hold only"),
    ("dot.real", "may hold only"), ("dot > mine", "may hold only"), ("True", "may hold only"),
    ("max()", "may hold only"), ("10.0 ** 400", "cannot be computed"), ("1e999", "not a finite number"),
    ("(-1) ** 0.5", "not a finite number"), ("'text'", "may hold only"), ("[1, 2]", "may hold only")])
def test_anything_else_in_an_expression_is_refused(expression, message):
    with pytest.raises(ValueError, match=message):
        evaluate(expression, NUMBERS)


@pytest.mark.parametrize(("relation", "below", "equal", "above"), [
    (">=", False, True, True), ("<=", True, True, False), (">", False, False, True),
    ("<", True, False, False),
    ("==", False, True, False)])
def test_every_relation(relation, below, equal, above):
    cleared = [Bar("x", relation, 2).cleared([{"x": x}]) for x in (1.0, 2.0, 3.0)]
    assert cleared == [below, equal, above]


def test_a_bar_over_seeds_judges_them_together():
    seeds = [{"x": 0.0, "y": 1.0}, {"x": 1.0, "y": 0.0}, {"x": 5.0, "y": 0.5}]
    assert Bar("x", ">=", 2, "mean").cleared(seeds) and not Bar("x", ">=", 2.01, "mean").cleared(seeds)
    assert Bar("x", "<=", 1, "median").cleared(seeds) and not Bar("x", ">", 1, "median").cleared(seeds)
    assert Bar("x", "==", 0, "min").cleared(seeds) and Bar("x", "==", 5, "max").cleared(seeds)
    assert not Bar("x", ">=", 2).cleared(seeds)
    assert Bar("x", ">=", "y", "mean").cleared(seeds) and not Bar("x", ">=", "y").cleared(seeds)
    assert Bar("x", "<", "y + 3", "mean").cleared(seeds) and not Bar("x", "<", "y + 1", "mean").cleared(seeds)
    assert str(Bar("x", ">=", 2, "mean")) == "x >= 2 (mean over seeds)" and str(Bar("x", "<", "y")) == "x < y"


@pytest.mark.parametrize(("bar", "message"), [
    (("x", "=>", 1), "relation must be one of"), (("x", ">=", 1, "sum"), "over must be one of")])
def test_a_bar_that_cannot_be_read_is_refused(bar, message):
    with pytest.raises(ValueError, match=message):
        Bar(*bar)


# --- findings ---------------------------------------------------------------------------------------------

def test_the_verdict_follows_from_numbers_and_bars():
    assert finding().verdict == "holds"
    assert finding(mine=1.45).verdict == "fails"
    assert finding(mine=1.45, found="only 0.05").verdict == "found instead"
    assert finding(found="not needed").verdict == "holds"
    assert finding(bars=[("dot", ">=", 9, "mean")]).verdict == "open"
    assert finding(bars=[("dot", ">=", 9, "mean"), ("dot", ">", 1)]).verdict == "holds"
    with pytest.raises(TypeError):
        Finding(65, "c", NUMBERS, [("dot", ">", 1)], 0, verdict="holds")
    with pytest.raises(AttributeError):
        finding().verdict = "holds"


@pytest.mark.parametrize(("change", "message"), [
    ({"numbers": {"dot": float("nan")}}, r"numbers\['dot'\] must be finite"),
    ({"numbers": {"dot": float("inf")}}, r"numbers\['dot'\] must be finite"),
    ({"numbers": {"dot loss": 1.0}}, "is not an identifier"),
    ({"bars": []}, "at least one requirement"), ({"claim": " "}, "claim must say"),
    ({"bars": [("lost", ">", 1)]}, "names 'lost'")])
def test_a_finding_that_cannot_be_judged_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Finding(**{"paper": 65, "claim": "c", "numbers": {"dot": 1.0}, "bars": [("dot", ">", 0)], "seed": 0,
                   **change})


def test_a_finding_survives_json_with_numpy_numbers_and_curves():
    made = Finding(65, "c", {"loss": np.float32(0.5), "n": np.int64(3)}, [("loss", "<", 1, "mean")], 4,
                   found="é", curves={"train": np.arange(3.0)}, seconds=1.5)
    again = Finding.from_dict(json.loads(json.dumps(made.as_dict())))
    assert again == made and again.numbers == {"loss": 0.5, "n": 3.0}
    assert again.curves == {"train": [0.0, 1.0, 2.0]}
    assert "verdict" not in made.as_dict()


def test_a_finding_shows_its_bars_numbers_and_verdict():
    shown = finding(mine=1.45, found="A <small> gain.")
    assert "dot - mine >= 0.1" in str(shown) and "verdict: found instead. A <small> gain." in str(shown)
    text = shown._repr_html_()
    assert '<th scope="row">dot - mine &gt;= 0.1</th><td>0.05</td><td>no</td>' in text
    assert "<caption>Paper 65, seed 0: mine beats dot</caption>" in text
    assert "Verdict: found instead." in text and "A &lt;small&gt; gain." in text and "mine = 1.45" in text


def test_judge_takes_all_seeds_and_refuses_to_mix_claims():
    good, bad = [finding(s) for s in (0, 1)], finding(2, mine=1.45)
    assert judge(good) == "holds" and judge([*good, bad]) == "fails"
    assert judge([*good, finding(2, mine=1.45, found="less")]) == "found instead"
    over = (("dot - mine", ">=", 0.2, "mean"),)
    assert judge([finding(s, over, mine=m) for s, m in enumerate((1.0, 1.2, 1.6))]) == "holds"
    assert judge([finding(s, over, mine=m) for s, m in enumerate((1.2, 1.2, 1.6))]) == "fails"
    with pytest.raises(ValueError, match="at least one seed"):
        judge([])
    with pytest.raises(ValueError, match="seeds 0 and 1 state different claims"):
        judge([finding(0), finding(1, [("dot - mine", ">=", 0.01)])])


def test_results_show_every_seed_and_where_it_was_measured():
    runs = {s: {"findings": [finding(s, mine=m).as_dict()], "machine": "A chip", "date": "2026-01-02T03:04"}
            for s, m in ((1, 1.25), (0, 1.0))}
    results = Results("position/contextual", (65,), "f" * 16, runs)
    assert results.seeds == [0, 1] and results.numbers("mine") == [1.0, 1.25]
    text = results._repr_html_()
    assert '<th scope="col">Seed 0</th><th scope="col">Seed 1</th>' in text
    assert "<td>0.5</td><td>0.25</td><td>yes</td>" in text and "Measured on A chip, 2026-01-02." in text
    assert "holds. mine beats dot" in str(results)
    with pytest.raises(ValueError, match="no claim measured 'lost'"):
        results.numbers("lost")


def test_results_give_their_curves():
    runs = {s: {"findings": [replace(finding(s), curves={"loss": [3, 2 - s]}).as_dict()]} for s in (0, 1)}
    results = Results("position/contextual", (65,), "f" * 16, runs)
    assert results.curves("loss") == results.curves("loss", 65) == [[3.0, 2.0], [3.0, 1.0]]
    with pytest.raises(ValueError, match="no claim recorded the curve 'lost'"):
        results.curves("lost")
    with pytest.raises(ValueError, match="no claim recorded the curve 'loss'"):
        results.curves("loss", paper=66)


# --- running, in a tree of its own ------------------------------------------------------------------------

SOURCE = '''
import os
from pathlib import Path
from minattn.findings import Finding
PAPERS = (65,)
def run(seed):
    with open(Path(__file__).with_suffix(".log"), "a") as log:
        log.write(f"{seed}\\n")
    if str(seed) == os.environ.get("MINATTN_TEST_FAIL"):
        raise RuntimeError("out of luck")
    return Finding(65, "grows", {"x": 1.0 + seed}, [("x", ">=", 1)], seed)
'''


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A tree with one experiment, importable beside the project's own (in this process and in new ones)."""
    folder = tmp_path / "minattn" / "experiments" / "probe65"
    folder.mkdir(parents=True)
    (folder / "counting.py").write_text(SOURCE)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(folder.parent)])
    monkeypatch.delenv("MINATTN_TEST_FAIL", raising=False)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("minattn.experiments.probe65")]:
        del sys.modules[name]


def runs_made(root: Path) -> list[int]:
    log = root / "minattn/experiments/probe65/counting.log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def test_discovery_reads_papers_without_importing(root):
    folder = root / "minattn/experiments/probe65"
    (folder / "_helper.py").write_text(SOURCE)
    (folder / "no_run.py").write_text("PAPERS = (65,)\n")
    (folder / "other.py").write_text(SOURCE.replace("(65,)", "(3, 4)") + "raise RuntimeError\n")
    assert [str(e) for e in discover(root)] == ["probe65/counting", "probe65/other"]
    assert [str(e) for e in discover(root, paper=4)] == ["probe65/other"]
    assert discover(root, paper=5) == []
    found = discover(root, paper=65)[0]
    assert found.module == "minattn.experiments.probe65.counting" and found.papers == (65,)


def test_runs_are_written_and_not_repeated_while_the_source_stands(root):
    results, errors = run_all(discover(root), (0, 1))
    assert errors == {} and runs_made(root) == [0, 1]
    stored = load_results("probe65", "counting", root)
    assert stored.claims() == results["probe65/counting"].claims() and stored.numbers("x") == [1.0, 2.0]
    run = stored.runs[1]
    assert run["seconds"] >= 0 and run["findings"][0]["seconds"] == run["seconds"]
    assert "processors" in run["machine"] and run["date"].startswith("20")
    assert run["versions"]["numpy"] == np.__version__
    run_all(discover(root), (0, 1, 2))
    assert runs_made(root) == [0, 1, 2]
    assert load_results("probe65", "counting", root).seeds == [0, 1, 2]
    run_all(discover(root), (1,), force=True)
    assert runs_made(root) == [0, 1, 2, 1] and load_results("probe65", "counting", root).seeds == [1]


def test_a_changed_source_starts_again_and_stale_results_are_not_loaded(root):
    run_all(discover(root), (0, 1))
    with (root / "minattn/experiments/probe65/counting.py").open("a") as file:
        file.write("EXTRA = 1\n")
    with pytest.raises(ValueError, match=r"come from other code .* --paper 65"):
        load_results("probe65", "counting", root)
    run_all(discover(root), (1,))
    assert runs_made(root) == [0, 1, 1] and load_results("probe65", "counting", root).seeds == [1]


def test_results_that_are_absent_say_which_command_makes_them(root):
    with pytest.raises(FileNotFoundError, match=r"run python -m minattn\.experiments --paper 65"):
        load_results("probe65", "counting", root)
    with pytest.raises(FileNotFoundError, match="no experiment probe65/nothing"):
        load_results("probe65", "nothing", root)


def test_an_error_costs_neither_the_other_seeds_nor_the_other_experiments(root, monkeypatch):
    folder = root / "minattn/experiments/probe65"
    (folder / "zebra.py").write_text(SOURCE.replace('os.environ.get("MINATTN_TEST_FAIL")', "None"))
    monkeypatch.setenv("MINATTN_TEST_FAIL", "1")
    ticks = []
    results, errors = run_all(discover(root), (0, 1, 2), tick=lambda e, s: ticks.append((str(e), s)))
    assert errors == {"probe65/counting": "seed 1: RuntimeError: out of luck"}
    assert results["probe65/counting"].seeds == [0, 2] and results["probe65/zebra"].seeds == [0, 1, 2]
    assert len(ticks) == 6
    lines, failed = verdict_table(discover(root), results, errors)
    assert failed == 1 and any("error" in line and "out of luck" in line for line in lines)


def test_an_unreadable_result_file_is_run_again(root):
    run_all(discover(root), (0,))
    discover(root)[0].result.write_text('{"experiment": ')
    run_all(discover(root), (0,))
    assert runs_made(root) == [0, 0] and load_results("probe65", "counting", root).seeds == [0]


def test_a_kill_between_writing_and_renaming_leaves_the_old_file(root, monkeypatch):
    run_all(discover(root), (0,))
    before = discover(root)[0].result.read_bytes()

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run_all(discover(root), (0, 1))
    monkeypatch.undo()
    folder = discover(root)[0].result.parent
    assert discover(root)[0].result.read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["counting.json"]


@pytest.mark.parametrize(("returned", "error", "message"), [
    ("3.0", TypeError, "not iterable"), ("[3.0]", TypeError, "must return findings, got float"),
    ("Finding(65, 'c', {'x': 1}, [('x', '>', 0)], seed + 1)", ValueError, "returned a finding of seed 1"),
    ("Finding(64, 'c', {'x': 1}, [('x', '>', 0)], seed)", ValueError, r"declares papers \[65\]"),
    ("[]", ValueError, r"its findings are of \[\]")])
def test_what_a_run_returns_is_checked(root, returned, error, message):
    name = f"odd{abs(hash(returned))}"
    (root / f"minattn/experiments/probe65/{name}.py").write_text(
        f"from minattn.findings import Finding\nPAPERS = (65,)\ndef run(seed):\n    return {returned}\n")
    with pytest.raises(error, match=message):
        run_seed(f"minattn.experiments.probe65.{name}", 0, (65,))


def test_an_experiment_may_state_several_claims(root):
    (root / "minattn/experiments/probe65/two.py").write_text(
        "from minattn.findings import Finding\nPAPERS = (65, 66)\ndef run(seed):\n"
        "    return [Finding(n, f'claim {n}', {'x': n + seed}, [('x', '<', 68)], seed) for n in PAPERS]\n")
    results, errors = run_all(discover(root, paper=66), (0, 1, 2))
    claims = results["probe65/two"].claims()
    assert errors == {} and [c[0].paper for c in claims] == [65, 66]
    assert [judge(c) for c in claims] == ["holds", "fails"]
    assert results["probe65/two"].numbers("x", paper=66) == [66.0, 67.0, 68.0]
    lines, failed = verdict_table(discover(root, paper=66), results, {})
    assert failed == 1 and lines[-1].strip() == "not cleared: x < 68"


def project_copy(root: Path) -> dict[str, str]:
    """An environment whose `minattn` is this project plus the tree's experiments, for new processes."""
    source = Path(experiments.ROOT)
    for entry in (source / "minattn").iterdir():
        if entry.name not in ("experiments", "__pycache__"):
            (root / "minattn" / entry.name).symlink_to(entry)
    for name in ("__init__.py", "__main__.py"):
        (root / "minattn/experiments" / name).write_text((source / "minattn/experiments" / name).read_text())
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def command(root: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "minattn.experiments", *arguments], cwd=root,
                          env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_in_two_processes_gives_what_one_gives(root):
    environment = project_copy(root)
    ran = command(root, environment, "--paper", "65", "--jobs", "2")
    assert ran.returncode == 0, ran.stderr
    assert "   65  holds          0 1 2      probe65/counting: grows" in ran.stdout and "Next:" in ran.stdout
    assert sorted(runs_made(root)) == [0, 1, 2]
    two = load_results("probe65", "counting", root)
    ran = command(root, environment, "--force")
    one = load_results("probe65", "counting", root)
    assert ran.returncode == 0
    assert one.source == two.source and one.numbers("x") == two.numbers("x") == [1.0, 2.0, 3.0]


def test_the_command_fails_for_a_silent_failure_only(root):
    environment = project_copy(root)
    path = root / "minattn/experiments/probe65/counting.py"
    path.write_text(SOURCE.replace('">=", 1)', '">=", 2)'))
    ran = command(root, environment, "--seeds", "0", "1")
    assert ran.returncode == 1 and "not cleared: x >= 2" in ran.stdout and "1 failed" in ran.stdout
    path.write_text(path.read_text().replace("], seed)", "], seed, found='it starts at 1')"))
    ran = command(root, environment, "--seeds", "0", "1")
    assert ran.returncode == 0 and "found instead" in ran.stdout


def test_killing_the_command_loses_at_most_the_running_seed(root):
    environment = project_copy(root)
    path = root / "minattn/experiments/probe65/counting.py"
    slow = "    import time; time.sleep(seed * 60)\n    return Finding"
    path.write_text(SOURCE.replace("    return Finding", slow))
    process = subprocess.Popen([sys.executable, "-m", "minattn.experiments"], cwd=root, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(runs_made(root)) < 2 and time.monotonic() < deadline:      # seed 1 begun: seed 0 is written
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert runs_made(root) == [0, 1] and load_results("probe65", "counting", root).seeds == [0]
    ran = command(root, environment, "--seeds", "0")
    assert ran.returncode == 0 and runs_made(root) == [0, 1]


def test_the_command_refuses_what_it_cannot_do(capsys):
    with pytest.raises(SystemExit):
        main(["--jobs", "0"])
    assert "--jobs must be at least 1, got 0" in capsys.readouterr().err
    assert main(["--paper", "9999"]) == 1
    assert "There is no experiment of paper 9999" in capsys.readouterr().out


def test_the_committed_results_of_this_project_can_be_read_and_have_an_experiment():
    known = {e.result for e in discover()}
    for path in sorted((experiments.ROOT / "minattn/experiments/results").rglob("*.json")):
        assert path in known and isinstance(read_results(path), Results)
    assert all(isinstance(e, Experiment) for e in discover())
