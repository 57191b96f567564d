"""Calls timed in turn."""

from __future__ import annotations

import time

import pytest

from minattn.plots import Timings, seconds, timings


def test_each_call_is_timed_in_turn_after_a_warm_up():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    table = timings(calls, title="t", budget=0, least=3)
    assert order == ["a", "b"] * 4 and table.rounds == 3 and list(table.seconds) == ["a", "b"]


def test_the_budget_is_spent():
    table = timings({"nap": lambda: time.sleep(0.01)}, title="t", budget=0.1, least=1)
    assert 2 <= table.rounds <= 11 and table.seconds["nap"] >= 0.01


def test_ratios_are_to_the_first():
    table = Timings("N = 4", {"attention": 0.002, "mine <b>": 0.003}, 7)
    assert table.ratio("mine <b>") == pytest.approx(1.5) and table.ratio("attention") == 1
    assert repr(table).splitlines() == ["N = 4 (median of 7)", "attention        2 ms    1.00 ×",
                                        "mine <b>         3 ms    1.50 ×"]
    assert "<td>3 ms</td><td>1.50 ×</td>" in table._repr_html_() and "<b>" not in table._repr_html_()


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match="calls"):
        timings({}, title="t")


def test_seconds_is_the_shortest_time():
    naps = iter([0.0, 0.03, 0.01, 0.02])
    assert 0.01 <= seconds(lambda: time.sleep(next(naps)), budget=0, least=3) < 0.02
