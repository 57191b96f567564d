"""Progress in a terminal, in a notebook and where nobody watches."""

import io
import re
import sys

import numpy as np
import pytest

from minattn import nn
from minattn.nn import progress
from minattn.nn.progress import Progress, in_notebook
from minattn.nn.train import History, train


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Output:
    """What `display` returns: it keeps every text it was given."""

    def __init__(self, data):
        self.texts = [data["text/plain"]]

    def update(self, data, raw):
        assert raw
        self.texts.append(data["text/plain"])


def follow(total, done, show=True):
    """A run of `total` steps that goes on from step `done`, its loss falling by 1 a step."""
    history = History(losses=[100.0 - t for t in range(done)])
    with Progress("learning", total, history, show) as bar:
        for t in range(done, total):
            history.losses.append(100.0 - t)
            history.seconds += 0.5
            bar.update()


@pytest.fixture
def notebook(monkeypatch):
    """The outputs that a notebook would show."""
    shown = []

    def display(data, raw, display_id):
        assert raw and display_id
        shown.append(Output(data))
        return shown[-1]

    ipython = pytest.importorskip("IPython")
    monkeypatch.setattr(ipython, "get_ipython", lambda: type("Shell", (), {"kernel": 1})())
    monkeypatch.setattr("IPython.display.display", display)
    return shown


def test_a_terminal_has_a_bar_on_stderr(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    follow(5, 2)
    text = terminal.getvalue().split("\r")
    assert "2/5" in text[1] and "learning" in text[1]
    assert re.search(r"learning: 100%.* 5/5 .*loss 98\.0000", text[-1])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("show", [True, False])
def test_it_is_silent_elsewhere(monkeypatch, capsys, show):
    if not show:
        monkeypatch.setattr(sys, "stderr", Terminal())
    follow(5, 0, show)
    assert capsys.readouterr() == ("", "")
    assert show or sys.stderr.getvalue() == ""


def test_a_notebook_has_one_output_that_is_rewritten(notebook, monkeypatch):
    clock = iter(np.arange(0.1, 100, 0.15))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    follow(6, 1)
    (output,) = notebook
    assert output.texts == [
        "learning: 1 of 6 steps, loss 100.0000",
        "learning: 3 of 6 steps, loss 99.0000",  # 0.15 s a step, shown every 0.2 s
        "learning: 5 of 6 steps, loss 98.0000",
        "learning: 6 steps in 2.5 s: loss 97.5000"]


def test_a_notebook_may_be_told_to_be_silent(notebook):
    follow(3, 0, show=False)
    assert notebook == []


def test_a_run_that_fails_still_says_how_far_it_came(notebook):
    history = History(losses=[1.0])
    with pytest.raises(KeyboardInterrupt), Progress("learning", 9, history):
        raise KeyboardInterrupt
    assert notebook[0].texts[-1] == "learning: 1 steps in 0.0 s: loss 1.0000"


def test_this_is_no_notebook(monkeypatch):
    assert not in_notebook()
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()


def test_training_tells_its_title_and_steps(notebook):
    model = nn.Linear(2, 1, rng=np.random.default_rng(0))

    def batches(rng):
        return rng.standard_normal((4, 2)).astype(np.float32)

    def loss(model, x):
        return (model(x) ** 2).mean()

    for title, options in (("training", {}), ("a name", {"title": "a name"})):
        rng = np.random.default_rng(1)
        train(model, loss, batches, nn.SGD(model.parameters()), 7, rng=rng, **options)
        assert notebook[-1].texts[0] == f"{title}: 0 of 7 steps"
        assert notebook[-1].texts[-1].startswith(f"{title}: 7 steps in ")
    train(model, loss, batches, nn.SGD(model.parameters()), 7, rng=rng, progress=False)
    assert len(notebook) == 2
