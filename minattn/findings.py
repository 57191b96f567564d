"""A paper's finding in miniature: measured numbers, the bars they must clear, and the verdict.

An experiment returns a `Finding`. Its verdict is computed from the numbers and the bars each time it is
asked for, so that neither the experiment nor an edited result file can claim one.
"""

from __future__ import annotations

import ast
import html
import json
import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Bar", "Finding", "Results", "evaluate", "judge", "read_results"]

HOLDS, FOUND_INSTEAD, FAILS, OPEN = "holds", "found instead", "fails", "open"

COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
OVER_SEEDS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean, "median": statistics.median, "min": min, "max": max}
ARITHMETIC: dict[type, Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos}
FUNCTIONS: dict[str, Callable[..., float]] = {"abs": abs, "min": min, "max": max}


def evaluate(expression: str | float, numbers: Mapping[str, float]) -> float:
    """The value of an arithmetic expression over named numbers.

    Parameters
    ----------
    expression : a number, or text with names, numbers, + - * / **, brackets, abs, min and max.
    numbers : the named numbers.

    Raises
    ------
    ValueError : an unknown name, anything but arithmetic, a division by zero, or a result not finite.
    """
    if not isinstance(expression, str):
        return float(expression)

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return float(number)
            case ast.Name(id=name) if name in numbers:
                return numbers[name]
            case ast.Name(id=name):
                raise ValueError(f"expression {expression!r} names {name!r}, "
                                 f"which is not among the numbers {sorted(numbers)}")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                return ARITHMETIC[type(op)](value(left), value(right))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in ARITHMETIC:
                return ARITHMETIC[type(op)](value(operand))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS and args:
                return FUNCTIONS[name](*map(value, args))
        raise ValueError(f"expression {expression!r} may hold only names, numbers, + - * / **, abs, min, max")

    try:
        result = value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"expression {expression!r} cannot be computed: {error}") from error
    if not isinstance(result, float) or not math.isfinite(result):
        raise ValueError(f"expression {expression!r} gave {result}, which is not a finite number")
    return result


@dataclass(frozen=True)
class Bar:
    """One requirement: `measure` `relation` `value`, in every seed or over the seeds together.

    Parameters
    ----------
    measure : expression over the finding's numbers, such as "dot_loss - mine".
    relation : one of >=, <=, >, <, ==.
    value : a number, or an expression over the same numbers.
    over : "each" (every seed must clear the bar), or "mean", "median", "min", "max" of `measure - value`
        over the seeds.
    """

    measure: str
    relation: str
    value: float | str
    over: str = "each"

    def __post_init__(self) -> None:
        if self.relation not in COMPARE:
            raise ValueError(f"relation must be one of {list(COMPARE)}, got {self.relation!r}")
        if self.over != "each" and self.over not in OVER_SEEDS:
            raise ValueError(f"over must be one of {['each', *OVER_SEEDS]}, got {self.over!r}")

    def cleared(self, seeds: Sequence[Mapping[str, float]]) -> bool:
        """Whether the numbers of these seeds clear the bar."""
        sides = [(evaluate(self.measure, n), evaluate(self.value, n)) for n in seeds]
        compare = COMPARE[self.relation]
        if self.over == "each":
            return all(compare(left, right) for left, right in sides)
        combine = OVER_SEEDS[self.over]
        if not isinstance(self.value, str):           # no needless rounding: compare with the number itself
            return compare(combine([left for left, _ in sides]), float(self.value))
        return compare(combine([left - right for left, right in sides]), 0.0)

    def __str__(self) -> str:
        over = "" if self.over == "each" else f" ({self.over} over seeds)"
        return f"{self.measure} {self.relation} {self.value}{over}"


@dataclass(frozen=True)
class Finding:
    """What one run of an experiment measured for one paper.

    Parameters
    ----------
    paper : the paper's number.
    claim : the finding in words, without figures that the run should give.
    numbers : name -> measured number; names are Python identifiers, numbers are finite.
    bars : requirements as (measure, relation, value) or (measure, relation, value, over); see `Bar`.
    seed : the seed of the run.
    found : for an honest negative, what was found instead, in words; empty otherwise.
    curves : name -> list of numbers, for the page's figures; not judged.
    seconds : how long the run took; filled in by the runner.

    Raises
    ------
    ValueError : no bar, a bar that cannot be computed from the numbers, or a number that is not finite.
    """

    paper: int
    claim: str
    numbers: Mapping[str, float]
    bars: Sequence[Any]
    seed: int
    found: str = ""
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        numbers = {str(k): float(v) for k, v in self.numbers.items()}
        for name, number in numbers.items():
            if not name.isidentifier():
                raise ValueError(f"numbers: {name!r} is not an identifier, so no bar could name it")
            if not math.isfinite(number):
                raise ValueError(f"numbers[{name!r}] must be finite, got {number}")
        if not self.claim.strip():
            raise ValueError("claim must say in words what is claimed, got an empty text")
        if not self.bars:
            raise ValueError("bars must hold at least one requirement: a finding that cannot fail is none")
        bars = tuple(b if isinstance(b, Bar) else Bar(*b) for b in self.bars)
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "bars", bars)
        object.__setattr__(self, "curves", {k: [float(x) for x in v] for k, v in self.curves.items()})
        for bar in bars:
            bar.cleared([numbers])

    @property
    def verdict(self) -> str:
        """Of this seed alone: "holds", "fails", "found instead", or "open" if all bars are over seeds."""
        own = [b for b in self.bars if b.over == "each"]
        if all(b.cleared([self.numbers]) for b in own):
            return HOLDS if own else OPEN
        return FOUND_INSTEAD if self.found.strip() else FAILS

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the verdict is left out, because it is always computed anew."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """The finding that `as_dict` wrote; unknown keys raise TypeError."""
        return cls(**{**data, "bars": [Bar(**b) for b in data["bars"]]})

    def _rows(self) -> list[list[str]]:
        rows = []
        for bar in self.bars:
            state = "over seeds" if bar.over != "each" else "yes" if bar.cleared([self.numbers]) else "no"
            rows.append([str(bar), f"{evaluate(bar.measure, self.numbers):.4g}", state])
        return rows

    def __str__(self) -> str:
        lines = [f"Paper {self.paper}, seed {self.seed}: {self.claim}"]
        lines += [f"  {bar:<48} measured {got:<10} cleared: {state}" for bar, got, state in self._rows()]
        lines.append(f"  verdict: {self.verdict}" + (f". {self.found}" if self.found else ""))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        caption = f"Paper {self.paper}, seed {self.seed}: {self.claim}"
        numbers = ", ".join(f"{k} = {v:.4g}" for k, v in self.numbers.items())
        return _html_table(caption, ["Requirement", "Measured", "Cleared"], self._rows(),
                           self.verdict, self.found, f"Numbers: {numbers}.")


def judge(findings: Sequence[Finding]) -> str:
    """The verdict on one claim over its seeds: "holds", "fails" or "found instead".

    Raises
    ------
    ValueError : no findings, or findings of different claims or bars.
    """
    if not findings:
        raise ValueError("findings must hold at least one seed, got none")
    first = findings[0]
    for other in findings[1:]:
        if (other.paper, other.claim, other.bars) != (first.paper, first.claim, first.bars):
            raise ValueError(f"paper {first.paper}: seeds {first.seed} and {other.seed} "
                             "state different claims")
    if all(bar.cleared([f.numbers for f in findings]) for bar in first.bars):
        return HOLDS
    return FOUND_INSTEAD if any(f.found.strip() for f in findings) else FAILS


@dataclass(frozen=True)
class Results:
    """The committed runs of one experiment.

    Attributes
    ----------
    experiment : "chapter/name".
    papers : the numbers that the experiment declares.
    source : hash of the experiment and of the mechanisms it exercises, when it ran.
    runs : seed -> {"findings": [...], "seconds": ..., "date": ..., "machine": ..., versions}.
    """

    experiment: str
    papers: tuple[int, ...]
    source: str
    runs: dict[int, dict[str, Any]]

    @property
    def seeds(self) -> list[int]:
        """The seeds that have run, ascending."""
        return sorted(self.runs)

    def claims(self) -> list[list[Finding]]:
        """One list a claim, each with that claim's findings in the order of the seeds."""
        per_seed = [[Finding.from_dict(f) for f in self.runs[s]["findings"]] for s in self.seeds]
        if len({len(findings) for findings in per_seed}) > 1:
            raise ValueError(f"{self.experiment}: the seeds hold different numbers of findings")
        return [list(claim) for claim in zip(*per_seed, strict=True)]

    def numbers(self, name: str, paper: int | None = None) -> list[float]:
        """One measured number over the seeds, of the first claim that has it."""
        for claim in self.claims():
            if name in claim[0].numbers and paper in (None, claim[0].paper):
                return [f.numbers[name] for f in claim]
        raise ValueError(f"{self.experiment}: no claim measured {name!r}")

    def curves(self, name: str, paper: int | None = None) -> list[list[float]]:
        """One recorded curve over the seeds, of the first claim that has it."""
        for claim in self.claims():
            if name in claim[0].curves and paper in (None, claim[0].paper):
                return [list(f.curves[name]) for f in claim]
        raise ValueError(f"{self.experiment}: no claim recorded the curve {name!r}")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"experiment": self.experiment, "papers": list(self.papers), "source": self.source,
                "runs": {str(s): self.runs[s] for s in self.seeds}}

    def __str__(self) -> str:
        lines = [f"{self.experiment}, paper {c[0].paper}, seeds {self.seeds}: {judge(c)}. {c[0].claim}"
                 for c in self.claims()]
        return "\n".join(lines) or f"{self.experiment}: no runs"

    def _repr_html_(self) -> str:
        tables = []
        for claim in self.claims():
            rows = [[str(bar), *(f"{evaluate(bar.measure, f.numbers):.4g}" for f in claim),
                     "yes" if bar.cleared([f.numbers for f in claim]) else "no"] for bar in claim[0].bars]
            heads = ["Requirement", *(f"Seed {f.seed}" for f in claim), "Cleared"]
            where = sorted({f"{r.get('machine', 'unknown machine')}, {r.get('date', '')[:10]}"
                            for r in self.runs.values()})
            found = next((f.found for f in claim if f.found), "")
            tables.append(_html_table(f"Paper {claim[0].paper}: {claim[0].claim}", heads, rows,
                                      judge(claim), found, f"Measured on {'; '.join(where)}."))
        return "\n".join(tables)


def read_results(path: str | Path) -> Results:
    """The results that a file holds.

    Raises
    ------
    FileNotFoundError : there is no such file.
    ValueError : the file is not a result of `python -m minattn.experiments`.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        results = Results(data["experiment"], tuple(data["papers"]), data["source"],
                          {int(seed): run for seed, run in data["runs"].items()})
        results.claims()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a result of `python -m minattn.experiments`: {error!r}") from error
    return results


def _html_table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]],
                verdict: str, found: str, note: str) -> str:
    """An accessible table with its verdict below; every text is escaped."""
    head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in heads)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:]) + "</tr>" for row in rows)
    more = f" {html.escape(found)}" if found else ""
    kind = verdict.replace(" ", "-")
    return (f'<div class="minattn-finding minattn-checks {kind}"><table>'
            f"<caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p><strong>Verdict: {verdict}.</strong>{more}</p><p>{html.escape(note)}</p></div>")
