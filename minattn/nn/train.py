"""The training loop, with nothing hidden in it: schedule, loss, gradient, clipping, step.

Around it stands what a long run needs: progress, validation, and a checkpoint from which it goes on as if it
had never stopped.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minattn.autograd import Tensor, no_grad

from . import checkpoint as checkpoints
from .module import Module
from .optim import EMA, Optimizer, clip_grad_norm_
from .progress import Progress

__all__ = ["History", "train", "training_step"]


@dataclass
class History:
    """What a run recorded, entry t being of step t.

    Attributes
    ----------
    losses, rates, norms : list of float
        Loss, learning rate, and norm of the gradient before clipping (empty if nothing was clipped).
    validation : list of (int, float)
        Steps done and value of `evaluate` then.
    seconds : float
        Time spent in the loop, all parts of the run together.
    """

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    def __len__(self) -> int:
        """Steps done."""
        return len(self.losses)

    def recent(self, steps: int = 20) -> float:
        """Mean loss of the last steps; NaN before the first."""
        return float(np.mean(self.losses[-steps:])) if self.losses else math.nan

    def line(self) -> str:
        """The run in one line."""
        text = f"{len(self):,} steps in {self.seconds:.1f} s: loss {self.recent():.4f}"
        return f"{text}, validation {self.validation[-1][1]:.4f}" if self.validation else text

    def plot(self, smooth: int = 20, log: bool = False) -> Any:
        """A figure of the losses, as they were and averaged over `smooth` steps, and of the validation."""
        from minattn.plots.figures import COLOURS, new_figure

        with new_figure(5.6, 3.2) as (figure, (axes,)):
            axes.plot(range(1, len(self) + 1), self.losses, color=COLOURS[0], alpha=0.3, lw=0.8)
            n = min(smooth, len(self))
            if n > 1:
                mean = np.convolve(self.losses, np.ones(n) / n, "valid")
                axes.plot(range(n, len(self) + 1), mean, color=COLOURS[0], label=f"training, mean of {n}")
            if self.validation:
                axes.plot(*zip(*self.validation, strict=True), "o-", color=COLOURS[1], label="validation")
            axes.set(xlabel="step", ylabel="loss", yscale="log" if log else "linear")
            if len(axes.lines) > 1:
                axes.legend()
        return figure


def training_step(model: Module, loss: Callable[[Any, Any], Tensor], batch: Any, optimizer: Optimizer,
                  clip: float | None = None) -> tuple[float, float | None]:
    """One step on one batch; returns the loss and, if gradients are clipped, their norm before."""
    optimizer.zero_grad()
    value = loss(model, batch)
    if not math.isfinite(value.item()):
        raise FloatingPointError(f"the loss is {value.item()}")
    value.backward()
    norm = None if clip is None else clip_grad_norm_(optimizer.parameters(), clip)
    optimizer.step()
    return value.item(), norm


def train(model: Module, loss: Callable[[Any, Any], Tensor], batches: Callable[[np.random.Generator], Any],
          optimizer: Optimizer, steps: int, *, rng: np.random.Generator,
          schedule: Callable[[int], float] | None = None, clip: float | None = None, ema: EMA | None = None,
          evaluate: Callable[[Any], float] | None = None, eval_every: int | None = None,
          checkpoint: str | os.PathLike | None = None, checkpoint_every: int = 100,
          config: Mapping[str, Any] | None = None, callback: Callable[[int, History], None] | None = None,
          title: str = "training", progress: bool = True) -> History:
    """Train until `steps` steps are done, counting those of the checkpoint.

    Parameters
    ----------
    loss : callable
        ``loss(model, batch)``, a scalar Tensor.
    batches : callable
        ``batches(rng)`` draws a batch. All its randomness must come from `rng`, whose state is saved.
    schedule : callable, optional
        Step (from 0) ↦ learning rate of all groups; see `minattn.nn.schedule`. Without one the rates stay.
    clip : float, optional
        Largest joint norm of the gradients.
    ema : EMA, optional
        Updated after each step; `evaluate` sees its mean of the parameters.
    evaluate : callable, optional
        ``evaluate(model)``, a number, called in evaluation mode every `eval_every` steps and at the end. It
        must not draw from `rng`.
    checkpoint : path, optional
        Written every `checkpoint_every` steps and at the end. If the file exists, the run goes on from it:
        losses, parameters and every random number are then those of a run that was never interrupted.
    config : mapping, optional
        Saved with the checkpoint; a run with another one refuses to go on from it.
    callback : callable, optional
        ``callback(done, history)`` after every step.
    title : str
        What the progress bar says. It is shown only where somebody can watch it; `progress` turns it off.

    Raises
    ------
    FloatingPointError
        If a loss or the norm of gradients is not finite; parameters stay as they were before that step.
    ValueError
        If the checkpoint belongs to another model, optimiser or config, or is damaged.
    """
    _check(model, batches, steps, evaluate, eval_every, checkpoint_every)
    history = History()
    state = _State(model, optimizer, ema, rng, history, json.loads(json.dumps(dict(config or {}))))
    if checkpoint is not None:
        state.resume(Path(checkpoint))
    before, started = history.seconds, time.perf_counter()
    with _training(model), Progress(title, steps, history, progress) as bar:
        for step in range(len(history), steps):
            if schedule is not None:
                optimizer.set_lr(schedule(step))
            value, norm = training_step(model, loss, batches(rng), optimizer, clip)
            if ema is not None:
                ema.update()
            done = step + 1
            history.losses.append(value)
            history.rates.append(optimizer.param_groups[0]["lr"])
            history.norms += [] if norm is None else [norm]
            if evaluate is not None and (done == steps or done % (eval_every or steps) == 0):
                history.validation.append((done, _evaluate(model, evaluate, ema)))
            history.seconds = before + time.perf_counter() - started
            if callback is not None:
                callback(done, history)
            if checkpoint is not None and (done == steps or done % checkpoint_every == 0):
                state.save(Path(checkpoint))
            bar.update()
    return history


def _check(model: Any, batches: Any, steps: int, evaluate: Any, eval_every: int | None,
           checkpoint_every: int) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a Module, got {type(model).__name__}")
    if not callable(batches):
        raise TypeError(f"batches: expected a function of a generator, got {type(batches).__name__}")
    counts = {"steps": steps, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if eval_every is not None and evaluate is None:
        raise ValueError("eval_every: needs evaluate, which is missing")


@contextmanager
def _training(model: Module, mode: bool = True) -> Iterator[None]:
    """Context in which modules train, or are evaluated; then each goes back to the mode in which it was."""
    before = [(module, module.training) for module in model.modules()]
    model.train(mode)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


def _evaluate(model: Module, evaluate: Callable[[Any], float], ema: EMA | None) -> float:
    with _training(model, False), no_grad(), nullcontext() if ema is None else ema.applied():
        return float(evaluate(model))


@dataclass
class _State:
    """Everything that decides how a run goes on."""

    model: Module
    optimizer: Optimizer
    ema: EMA | None
    rng: np.random.Generator
    history: History
    config: dict[str, Any]

    def generators(self) -> list[np.random.Generator]:
        return [self.rng, *checkpoints.generators(self.model)]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {name: np.array(value) if name in ("losses", "rates", "norms") else value
                  for name, value in asdict(self.history).items()}
        checkpoints.save(path, {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "generators": [rng.bit_generator.state for rng in self.generators()],
            "history": record,
            "config": self.config,
        })

    def resume(self, path: Path) -> None:
        """Go back to the checkpoint, if there is one."""
        for draft in path.parent.glob(f".{path.name}.*.tmp"):
            draft.unlink(missing_ok=True)  # left by a run that was killed while it wrote
        if not path.exists():
            return
        saved = checkpoints.load(path)
        if saved["config"] != self.config:
            keys = {*saved["config"], *self.config}
            other = sorted(k for k in keys if saved["config"].get(k) != self.config.get(k))
            raise ValueError(f"config: {path} was made with another {', '.join(other)}: "
                             f"{ {k: saved['config'].get(k) for k in other} }, now "
                             f"{ {k: self.config.get(k) for k in other} }; delete it or name another file")
        if (saved["ema"] is None) != (self.ema is None) or len(saved["generators"]) != len(self.generators()):
            raise ValueError(f"checkpoint: {path} has another number of generators or running means")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        for rng, state in zip(self.generators(), saved["generators"], strict=True):
            rng.bit_generator.state = state
        record = saved["history"]
        for name in ("losses", "rates", "norms"):
            setattr(self.history, name, record[name].tolist())
        self.history.validation = [tuple(v) for v in record["validation"]]
        self.history.seconds = record["seconds"]
