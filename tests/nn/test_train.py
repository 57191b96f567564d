"""The training loop: against steps written out and PyTorch; resuming bit for bit, killing; bad input."""

import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minattn import nn
from minattn.autograd import Tensor
from minattn.nn import checkpoint, optim, schedule
from minattn.nn.losses import mse_loss
from minattn.nn.train import History, train, training_step

STEPS = 24


class Net(nn.Module):
    """A small network with dropout in two places, one generator of its own and one shared with nobody."""

    def __init__(self, rng, dropout):
        self.first = nn.Linear(5, 8, rng=rng)
        self.drop = nn.Dropout(0.3, dropout)
        self.second = nn.Linear(8, 2, rng=rng)
        self.again = nn.Dropout(0.2, np.random.default_rng(99))

    def forward(self, x):
        return self.again(self.second(self.drop(self.first(x).tanh())))


def loss(model, batch):
    x, y = batch
    return mse_loss(model(x), y)


def batches(rng):
    x = rng.standard_normal((6, 5)).astype(np.float32)
    return x, np.stack([x.sum(1), x[:, 0] * x[:, 1]], 1)


def validation(model):
    return float(loss(model, batches(np.random.default_rng(1234))).data)


def parts(dropout=7):
    """A model, its optimiser, running mean and data generator, always the same."""
    model = Net(np.random.default_rng(3), np.random.default_rng(dropout))
    optimizer = optim.AdamW(optim.decay_groups(model.parameters(), 0.1), lr=0.05)
    return model, optimizer, optim.EMA(model.parameters(), 0.9), np.random.default_rng(5)


def run(steps=STEPS, dropout=7, **options):
    model, optimizer, ema, rng = parts(dropout)
    history = train(model, loss, batches, optimizer, steps, rng=rng, ema=ema, clip=2.0, evaluate=validation,
                    eval_every=5, schedule=schedule.cosine(0.05, steps=STEPS, warmup=4), **options)
    return history, model, ema


def assert_same_run(a, b):
    (first, model, ema), (second, other, mean) = a, b
    for name in ("losses", "rates", "norms", "validation"):
        assert getattr(first, name) == getattr(second, name), name
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)
    for s, t in zip(ema.means, mean.means, strict=True):
        np.testing.assert_array_equal(s, t)


def test_the_loop_is_the_steps_written_out():
    history, trained, mean = run()
    model, optimizer, ema, rng = parts()
    rate = schedule.cosine(0.05, steps=STEPS, warmup=4)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for p in model.parameters():
            p.grad = None
        value = loss(model, batches(rng))
        value.backward()
        norm = optim.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        ema.update()
        got = history.losses[step], history.rates[step], history.norms[step]
        assert got == (value.item(), rate(step), norm)
    for p, q in zip(trained.parameters(), model.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)
    model.eval()
    with ema.applied():
        assert history.validation[-1] == (STEPS, validation(model))
    assert [step for step, _ in history.validation] == [5, 10, 15, 20, 24]
    assert all(np.array_equal(s, t) for s, t in zip(mean.means, ema.means, strict=True))
    assert min(history.norms) < 2.0 < max(history.norms), "the test must see clipped and unclipped steps"
    assert np.mean(history.losses[-6:]) < np.mean(history.losses[:6])


def test_the_loop_is_pytorchs():
    torch = pytest.importorskip("torch")
    data, drawn = np.random.default_rng(0), np.random.default_rng(0)
    ours = nn.Sequential(nn.Linear(5, 8, rng=data), nn.Linear(8, 2, rng=data)).to(np.float64)
    theirs = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Linear(8, 2)).double()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        q.data = torch.tensor(p.data)
    drawn.bit_generator.state = data.bit_generator.state

    def wide(rng):
        return tuple(a.astype(np.float64) for a in batches(rng))

    history = train(ours, loss, wide, optim.AdamW(ours.parameters(), lr=0.01), 30, rng=drawn, clip=1.0)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    for step in range(30):
        x, y = map(torch.tensor, wide(data))
        optimizer.zero_grad()
        value = torch.nn.functional.mse_loss(theirs(x), y)
        value.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        assert history.losses[step] == pytest.approx(value.item(), rel=1e-10)


@pytest.mark.parametrize("stops", [[1], [7], [23], [3, 4, 5, 6], [10, 20]])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, stops):
    whole = run()
    for stop in stops:
        run(stop, checkpoint=tmp_path / "run")
    resumed = run(checkpoint=tmp_path / "run")
    for stop in stops:  # a run that ends at `stop` also evaluates there
        if stop % 5:
            resumed[0].validation.remove(next(v for v in resumed[0].validation if v[0] == stop))
    assert_same_run(whole, resumed)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("every", [1, 4, 100])
def test_going_on_after_an_interruption(tmp_path, every):
    """An exception at any step loses the steps since the last checkpoint and nothing else."""
    whole = run()
    for stop in (2, 9, 17):
        def stopping(done, history, stop=stop):
            if done == stop:
                raise Interrupted

        with pytest.raises(Interrupted):
            run(checkpoint=tmp_path / "run", checkpoint_every=every, callback=stopping)
    done = []
    resumed = run(checkpoint=tmp_path / "run", checkpoint_every=every, callback=lambda n, _: done.append(n))
    assert done[0] == {1: 17, 4: 17, 100: 1}[every]
    assert_same_run(whole, resumed)


def test_the_generators_of_dropout_matter(tmp_path):
    """What the resume test relies on: without the dropout generators' state the losses would differ."""
    assert run()[0].losses != run(dropout=8)[0].losses
    run(10, checkpoint=tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run")
    assert len(saved["generators"]) == 3  # of the data and of two dropouts
    saved["generators"][1] = np.random.default_rng(1).bit_generator.state
    checkpoint.save(tmp_path / "run", saved)
    assert run(checkpoint=tmp_path / "run")[0].losses != run()[0].losses


def test_a_finished_run_does_nothing_more(tmp_path):
    path = tmp_path / "very" / "deep" / "run"
    first = run(checkpoint=path)
    before = path.read_bytes()
    again = run(checkpoint=path)
    assert_same_run(first, again)
    assert path.read_bytes() == before


def test_the_time_of_all_parts_counts(tmp_path):
    began = time.perf_counter()
    first, seen = run(10, checkpoint=tmp_path / "run")[0].seconds, []
    history = run(checkpoint=tmp_path / "run", callback=lambda done, history: seen.append(history))[0]
    assert 0 < first < history.seconds < time.perf_counter() - began
    assert all(h is history for h in seen) and len(seen) == STEPS - 10


def test_without_a_mean_and_without_clipping(tmp_path):
    ends = []
    for stops in ([STEPS], [9, STEPS]):
        for stop in stops:
            model, optimizer, _, rng = parts()
            history = train(model, loss, batches, optimizer, stop, rng=rng,
                            checkpoint=tmp_path / f"run{len(stops)}")
        ends.append((history, model))
    assert ends[0][0].losses == ends[1][0].losses and ends[1][0].norms == []


def test_another_config_is_refused(tmp_path):
    run(5, checkpoint=tmp_path / "run", config={"width": 8, "shape": (1, 2)})
    run(6, checkpoint=tmp_path / "run", config={"width": 8, "shape": (1, 2)})  # a tuple is saved as a list
    differs = r"config: .* depth, width: {'depth': None, 'width': 8}, now {'depth': 3, 'width': 9}; delete"
    with pytest.raises(ValueError, match=differs):
        run(7, checkpoint=tmp_path / "run", config={"width": 9, "shape": (1, 2), "depth": 3})


def test_another_model_is_refused(tmp_path):
    run(5, checkpoint=tmp_path / "run")
    linear = nn.Linear(5, 2, rng=np.random.default_rng(0))
    net = parts()[0]
    for model, ema in ((net, None), (linear, optim.EMA(linear.parameters()))):
        with pytest.raises(ValueError, match=r"^checkpoint: .*another number of generators or running means"):
            train(model, loss, batches, optim.SGD(model.parameters()), 9, rng=np.random.default_rng(0),
                  ema=ema, checkpoint=tmp_path / "run")


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / ".run.123.tmp").write_bytes(b"half")
    (tmp_path / ".other.123.tmp").write_bytes(b"somebody else's")
    run(2, checkpoint=tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == [".other.123.tmp", "run"]


def test_modes_are_given_back():
    model, optimizer, _, rng = parts()
    model.eval()
    model.drop.train()
    seen = []

    def evaluate(model):
        seen.append([m.training for m in model.modules()])
        return 0.0

    def watched(model, batch):
        seen.append([m.training for m in model.modules()])
        return loss(model, batch)

    train(model, watched, batches, optimizer, 1, rng=rng, evaluate=evaluate)
    assert [all(seen[0]), any(seen[1])] == [True, False]
    assert [m.training for m in model.modules()] == [False, False, True, False, False]


def test_a_loss_that_is_not_finite_stops_the_run():
    model, optimizer, _, rng = parts()
    before = model.state_dict()

    def broken(model, batch):
        return loss(model, batch) * np.float32(np.nan)

    with pytest.raises(FloatingPointError, match="the loss is nan"):
        train(model, broken, batches, optimizer, 3, rng=rng)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


def test_training_step_without_clipping():
    model, optimizer, _, rng = parts()
    value, norm = training_step(model, loss, batches(rng), optimizer)
    assert norm is None and value > 0
    history = train(model, loss, batches, optimizer, 2, rng=rng)
    assert history.norms == [] and len(history) == 2 and history.rates == [0.05, 0.05]


def test_history():
    h = History(losses=[4.0, 2.0, 1.0], seconds=2.0)
    assert len(h) == 3 and h.recent(2) == 1.5 and math.isnan(History().recent())
    assert h.line() == "3 steps in 2.0 s: loss 2.3333"
    h.validation.append((3, 0.5))
    assert h.line().endswith(", validation 0.5000")


def test_history_plots():
    pytest.importorskip("matplotlib")
    h = History(losses=list(np.linspace(3, 1, 50)), validation=[(25, 2.0), (50, 1.0)])
    (axes,) = h.plot(smooth=10).axes
    raw, mean, validation = (line.get_xydata() for line in axes.lines)
    np.testing.assert_allclose(raw[:, 1], h.losses)
    assert mean[0, 0] == 10 and mean[0, 1] == pytest.approx(np.mean(h.losses[:10])) and len(mean) == 41
    np.testing.assert_allclose(validation, h.validation)
    assert axes.get_yscale() == "linear" and (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["training, mean of 10", "validation"]
    assert raw[0, 0] == 1 and len({line.get_color() for line in axes.lines}) == 2
    short = History(losses=[2.0, 1.0]).plot().axes[0]
    assert [len(line.get_xydata()) for line in short.lines] == [2, 1]
    one = History(losses=[1.0]).plot(log=True).axes[0]
    assert one.get_yscale() == "log" and len(one.lines) == 1 and one.get_legend() is None


# ---- progress

CHILD = """
import sys, numpy as np
sys.path.insert(0, {root!r})
from tests.nn.test_train import run
run(progress={progress})
"""


def child(progress=True):
    return CHILD.format(root=os.getcwd(), progress=progress)


def test_it_is_silent_where_nobody_watches():
    done = subprocess.run([sys.executable, "-c", child()], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""


@pytest.mark.parametrize("progress", [True, False])
def test_a_terminal_shows_a_bar_on_stderr(progress):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", child(progress)], stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1000):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.communicate()[0] == b"" and process.returncode == 0
    assert bool(re.search(rb"training: 100%.* 24/24 .*loss \d\.\d{4}", shown)) == progress
    assert progress or not shown


def test_a_notebook_keeps_one_line():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cell = nbformat.v4.new_code_cell(child() + "\nrun();")
    nbclient.NotebookClient(nbformat.v4.new_notebook(cells=[cell]), kernel_name="python3").execute()
    texts = [output["data"]["text/plain"] for output in cell.outputs]
    assert len(texts) == 2, cell.outputs
    for text in texts:
        assert re.fullmatch(r"training: 24 steps in \d+\.\d s: loss \d\.\d{4}, validation \d\.\d{4}", text)


# ---- killing

KILLED = """
import sys, time, json
sys.path.insert(0, {root!r})
from tests.nn.test_train import run
def tell(done, history):
    print(done, flush=True)
    time.sleep(0.002)
history, model, ema = run(checkpoint=sys.argv[1], checkpoint_every=2, callback=tell)
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_twenty_times_it_ends_the_same(tmp_path):
    """SIGKILL at random moments, before, between and in the middle of steps and writes."""
    rng, path, kills, first = np.random.default_rng(17), tmp_path / "run", 0, []
    script = KILLED.format(root=os.getcwd())
    while kills < 20:
        command = [sys.executable, "-c", script, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        heard = [process.stdout.readline() for _ in range(rng.integers(0, 4))]
        time.sleep(rng.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        process.stdout.close()
        first += heard[:1]
        kills += 1
        if "done" in rest or "done\n" in heard:
            break
    assert kills == 20, "the run must not end before it was killed often"
    assert len(set(first)) > 3, "the runs must have begun at several places"
    assert_same_run(run(), run(checkpoint=path))


# ---- bad input


@pytest.mark.parametrize("change, error, message", [
    ({"model": 3}, TypeError, "model: expected a Module, got int"),
    ({"batches": [1, 2]}, TypeError, "batches: expected a function of a generator, got list"),
    ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
    ({"checkpoint_every": 0}, ValueError, "checkpoint_every: expected at least 1, got 0"),
    ({"eval_every": 0, "evaluate": validation}, ValueError, "eval_every: expected at least 1, got 0"),
    ({"eval_every": 5}, ValueError, "^eval_every: needs evaluate"),
    ({"clip": -1.0}, ValueError, "max_norm: .*got -1.0"),
])
def test_bad_input_is_named(change, error, message):
    model, optimizer, _, rng = parts()
    given = dict(model=model, loss=loss, batches=batches, optimizer=optimizer, steps=2, rng=rng)
    with pytest.raises(error, match=message):
        train(**(given | change))


def test_a_loss_that_is_no_number_is_refused():
    model, optimizer, _, rng = parts()
    with pytest.raises((ValueError, RuntimeError)):
        train(model, lambda m, b: Tensor(np.zeros(3), True), batches, optimizer, 1, rng=rng)
