"""How long calls take next to one another: what a page says under "What it costs"."""

from __future__ import annotations

import html
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Timings", "seconds", "timings"]


def seconds(call: Callable[[], Any], budget: float = 0.05, least: int = 3) -> float:
    """Shortest time of a call, over as many repetitions as fit the budget; it is called once before."""
    call()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


class Timings:
    """Medians of calls that were timed in turn, and each one's ratio to the first; shown as a table.

    Attributes
    ----------
    title : str
        The caption of the table.
    seconds : dict of str to float
        Median time of each call.
    rounds : int
        How often each was called.
    """

    def __init__(self, title: str, seconds: Mapping[str, float], rounds: int) -> None:
        self.title, self.seconds, self.rounds = title, dict(seconds), rounds

    def ratio(self, name: str) -> float:
        """Time of `name` divided by that of the first call."""
        return self.seconds[name] / next(iter(self.seconds.values()))

    def _rows(self) -> list[tuple[str, str, str]]:
        return [(name, f"{1e3 * s:.3g} ms", f"{self.ratio(name):.2f} ×") for name, s in self.seconds.items()]

    def __repr__(self) -> str:
        width = max(map(len, self.seconds))
        lines = [f"{name:<{width}}  {ms:>10}  {ratio:>8}" for name, ms, ratio in self._rows()]
        return "\n".join([f"{self.title} (median of {self.rounds})", *lines])

    def _repr_html_(self) -> str:
        first = html.escape(next(iter(self.seconds)))
        heads = "".join(f'<th scope="col">{h}</th>' for h in ("Call", "Median", f"Time ÷ {first}"))
        rows = "".join(f'<tr><th scope="row">{html.escape(name)}</th><td>{ms}</td><td>{ratio}</td></tr>'
                       for name, ms, ratio in self._rows())
        caption = f"<caption>{html.escape(self.title)} (median of {self.rounds})</caption>"
        return (f'<div class="minattn-scroll" tabindex="0"><table class="minattn-checks">{caption}'
                f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>")


def timings(calls: Mapping[str, Callable[[], Any]], *, title: str, budget: float = 1.0,
            least: int = 5) -> Timings:
    """Time calls in turn, one of each a round, so that whatever else the machine does slows all alike.

    Parameters
    ----------
    calls : mapping of str to callable without arguments
        The first is what the others are compared with. Each is called once before, to warm up.
    title : str
        What is timed, with its sizes; the caption of the table.
    budget : float
        Seconds to spend on all rounds together.
    least : int
        Rounds at least, however long they take.

    Returns
    -------
    Timings

    Raises
    ------
    ValueError
        If there is nothing to time.
    """
    if not calls:
        raise ValueError("calls: expected at least one call, got none")
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end, rounds = time.perf_counter() + budget, 0
    while rounds < least or time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return Timings(title, {name: statistics.median(t) for name, t in times.items()}, rounds)
