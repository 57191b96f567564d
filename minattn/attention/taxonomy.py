"""A taxonomy of attention that can be checked: each mechanism declares its labels, and a probe infers them.

The axes are those of Chaudhari et al., "An Attentive Survey of Attention Models", arXiv 1904.02874:

    sequences        distinctive (query and keys from two sequences), self (from one), co (two attend to
                     each other)
    levels           single, multi (what is attended to is itself the result of attention over smaller units)
    positions        soft_global (all), hard (one, drawn), local (a window)
    representations  single, multi_representational (several views of one position), multi_dimensional (a
                     weight for every feature)

and, declared but not probed, the `family` of architectures that a mechanism comes from. A chapter registers a
mechanism beside its definition:

    register_attention(AttentionCard("contextual", lambda x, y, rng: Step(contextual, x, x, x),
                                     sequences="self", page="position/contextual"))
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minattn.autograd import Tensor, grad, tensor
from minattn.autograd.engine import Operand, raw

from .cells import Step

PAPERS = (1,)

Wiring = Callable[[Tensor, Tensor, np.random.Generator], Any]

AXES: dict[str, tuple[str, ...]] = {
    "sequences": ("distinctive", "co", "self"),
    "levels": ("single", "multi"),
    "positions": ("soft_global", "hard", "local"),
    "representations": ("single", "multi_representational", "multi_dimensional"),
}
"""The four axes that are probed, with their values."""

FAMILIES = ("encoder_decoder", "memory_net", "transformer", "graph")
"""Architectures that a mechanism may belong to; a fifth axis, which behaviour does not show.

``encoder_decoder`` is any recurrent or convolutional encoder that attention reads, with a decoder or without.
"""

N, M, D = 12, 9, 4  # positions and features of the probe's inputs; 12 divides into units of 2, 3, 4 and 6


@dataclass(frozen=True)
class AttentionCard:
    """The labels of one mechanism, and how to run it for `probe_taxonomy`.

    Parameters
    ----------
    name : str
        Its name in the registry.
    wiring : callable
        ``wiring(x, y, rng)`` with the query input x (1, 1, N, D), another sequence y (1, 1, M, D), both
        float64 Tensors, and a generator for parameters and draws. Returns the `Step` taken, or a list of
        them in order, computed from x and y by functions of `minattn.autograd`.
    sequences, levels, positions, representations : str
        Labels, one of `AXES` each.
    family : str
        One of `FAMILIES`; declared only.
    page : str
        Its page, without ``chapters/`` and ``.md``.

    Raises
    ------
    ValueError
        If a label is none of its axis, or the name is empty.
    TypeError
        If `wiring` is not a function.
    """

    name: str
    wiring: Wiring = field(repr=False)
    sequences: str = "distinctive"
    levels: str = "single"
    positions: str = "soft_global"
    representations: str = "single"
    family: str = "transformer"
    page: str = "attention/taxonomy"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name: expected a name, got an empty one")
        if not callable(self.wiring):
            raise TypeError(f"wiring: expected a function (x, y, rng), got {type(self.wiring).__name__}")
        for axis, values in {**AXES, "family": FAMILIES}.items():
            if getattr(self, axis) not in values:
                raise ValueError(f"{axis}: expected one of {', '.join(values)}, got {getattr(self, axis)!r}")

    def labels(self) -> dict[str, str]:
        """axis -> declared label, for the four axes that are probed."""
        return {axis: getattr(self, axis) for axis in AXES}


_registry: dict[str, AttentionCard] = {}


def register_attention(card: AttentionCard) -> AttentionCard:
    """Put a card into the registry of mechanisms; returns it.

    Parameters
    ----------
    card : AttentionCard
        Labels and wiring of one mechanism; nothing is run until it is probed.

    Raises
    ------
    TypeError
        If it is not a card.
    ValueError
        If another card has its name.
    """
    if not isinstance(card, AttentionCard):
        raise TypeError(f"card: expected an AttentionCard, got {type(card).__name__}")
    if card.name in _registry:
        raise ValueError(f"card: {card.name!r} is registered already")
    _registry[card.name] = card
    return card


def registered_attention() -> dict[str, AttentionCard]:
    """name -> card of every registered mechanism, in order of registration; a copy."""
    return dict(_registry)


def coverage(cards: Sequence[AttentionCard]) -> dict[str, dict[str, int]]:
    """How many of the cards carry each value: axis -> value -> count, with the family as a fifth axis."""
    return {axis: {value: len([c for c in cards if getattr(c, axis) == value]) for value in values}
            for axis, values in {**AXES, "family": FAMILIES}.items()}


# ---- the probe


def probe_taxonomy(fn: Wiring, seed: int = 0, draws: int = 3) -> dict[str, str]:
    """The four labels of a mechanism, inferred from what it does to random input.

    sequences        self if keys or values depend on the query input x, otherwise distinctive; co if one
                     step attends to x, another to y, and each looks at both
    levels           multi if a step attends to fewer things than an earlier one, and its values depend on the
                     output of that one
    positions        from the weights ∂o/∂v: hard if always one-hot, local if what is seen is always one
                     window of consecutive keys that leaves some out
    representations  multi_dimensional if ∂o_d/∂v_d differs between features d; multi_representational if all
                     values that a query chooses among come from the same part of the input

    A criterion must hold in every draw; if none of an axis does, the label is distinctive, single or
    soft_global.

    Parameters
    ----------
    fn : callable
        ``fn(x, y, rng) -> Step or list of Step``, see `AttentionCard`.
    seed : int
        Of inputs and parameters.
    draws : int
        Number of random inputs.

    Returns
    -------
    dict
        axis -> label.

    Raises
    ------
    TypeError
        If `fn` returns something other than steps.
    ValueError
        If there are no draws, or the output of a step does not depend on its values.

    References
    ----------
    The axes: Chaudhari et al., arXiv 1904.02874, section 3.
    """
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}")
    traces = [_trace(fn, seed, draw) for draw in range(draws)]
    return {"sequences": _sequences(traces), "levels": _levels(traces), "positions": _positions(traces),
            "representations": _representations(traces)}


@dataclass(frozen=True)
class _Trace:
    """What one run showed: the inputs, the steps, and of each step its weights ∂o/∂v (rows, M, Dv)."""

    x: Tensor
    y: Tensor
    steps: list[Step]
    weights: list[np.ndarray]


def _trace(fn: Wiring, seed: int, draw: int) -> _Trace:
    rng = np.random.default_rng([seed, draw])
    x, y = (tensor(rng.standard_normal((1, 1, n, D)), requires_grad=True) for n in (N, M))
    steps = fn(x, y, rng)
    steps = [steps] if isinstance(steps, Step) else list(steps)
    if not steps or not all(isinstance(s, Step) for s in steps):
        raise TypeError(f"fn: expected to return a Step or a list of them, got {steps!r:.60}")
    return _Trace(x, y, steps, [weights_of(s) for s in steps])


def weights_of(step: Step) -> np.ndarray:
    """∂o_id/∂v_jd of every query i, key j and feature d, with q and k held fixed: (B·H·N, M, Dv)."""
    v = tensor(raw(step.v), requires_grad=True)
    out = step.mechanism(raw(step.q), raw(step.k), v)
    if not isinstance(out, Tensor) or not out.requires_grad:
        raise ValueError("fn: the output of a step does not depend on its values")
    rows = []
    for i in range(out.shape[2]):  # all entries of the batch and all heads at once: they do not mix
        u = np.zeros(out.shape)
        u[:, :, i] = 1
        rows.append(raw(grad(out, v, u, retain_graph=True)[0]))
    return np.stack(rows, 2).reshape(-1, *v.shape[2:])


def _slope(of: Operand, by: Tensor, at: Any = ...) -> np.ndarray:
    """Σ |∂(u · of[at])/∂by| over features for random u: which positions of `by` the entries depend on."""
    if not isinstance(of, Tensor) or not of.requires_grad:
        return np.zeros(by.shape[:-1])
    u = np.zeros(of.shape)
    u[at] = np.random.default_rng(0).standard_normal(u[at].shape)
    (g,) = grad(of, by, u, retain_graph=True, allow_unused=True)
    return np.zeros(by.shape[:-1]) if g is None else np.abs(raw(g)).sum(-1)


def _sources(of: Sequence[Operand], trace: _Trace) -> set[str]:
    """Which of the inputs "x" and "y" some of the tensors depend on."""
    inputs = (("x", trace.x), ("y", trace.y))
    return {name for name, source in inputs if any(_slope(t, source).any() for t in of)}


def _sequences(traces: Sequence[_Trace]) -> str:
    if all(_is_co(t) for t in traces):
        return "co"
    own = all(any("x" in _sources([s.k, s.v], t) for s in t.steps) for t in traces)
    return "self" if own else "distinctive"


def _is_co(trace: _Trace) -> bool:
    """One step attends to x, another to y, and each of them looks at both while it chooses."""
    attended = [_sources([s.v], trace) for s in trace.steps]
    return ({"x"} in attended and {"y"} in attended
            and all(_sources([s.q, s.k], trace) == {"x", "y"} for s in trace.steps))


def _levels(traces: Sequence[_Trace]) -> str:
    stacked = all(any(_above(a, b) for a, b in itertools.combinations(t.steps, 2)) for t in traces)
    return "multi" if stacked else "single"


def _above(lower: Step, upper: Step) -> bool:
    """Whether `upper` attends to results of `lower`, and to fewer of them than `lower` attended to."""
    fewer = lower.v.shape[0] * lower.v.shape[2] > upper.v.shape[0] * upper.v.shape[2]
    return fewer and isinstance(lower.output, Tensor) and bool(_slope(upper.v, lower.output).any())


def _positions(traces: Sequence[_Trace]) -> str:
    rows = [row for t in traces for w in t.weights for row in np.abs(w).max(-1)]
    if all(len(row) > 1 and np.count_nonzero(row) == 1 and abs(row.sum() - 1) < 1e-12 for row in rows):
        return "hard"
    return "local" if all(_is_window(row > 0) for row in rows) else "soft_global"


def _is_window(seen: np.ndarray) -> bool:
    """Whether the keys seen are consecutive and not all there are."""
    places = np.flatnonzero(seen)
    return 0 < len(places) == places[-1] - places[0] + 1 < len(seen)


def _representations(traces: Sequence[_Trace]) -> str:
    weights = [w for t in traces for w in t.weights]
    if all(np.ptp(w, axis=-1).max() > 1e-9 for w in weights):
        return "multi_dimensional"
    return "multi_representational" if all(_one_origin(s, t) for t in traces for s in t.steps) else "single"


def _one_origin(step: Step, trace: _Trace) -> bool:
    """Whether all values that a query chooses among come from the same places, not from a whole sequence."""
    B, _, n, _ = step.v.shape
    for b in range(B):
        from_x, from_y = ([_slope(step.v, s, (b, slice(None), j)).ravel() > 0 for j in range(n)]
                          for s in (trace.x, trace.y))
        alike = all(np.array_equal(o, places[0]) for places in (from_x, from_y) for o in places)
        whole, none = from_x[0].all() or from_y[0].all(), not (from_x[0].any() or from_y[0].any())
        if n == 1 or not alike or whole or none:
            return False
    return True


def disagreements(card: AttentionCard, seed: int = 0, draws: int = 3) -> dict[str, tuple[str, str]]:
    """axis -> (declared, probed) wherever card and behaviour differ; empty if they agree."""
    probed = probe_taxonomy(card.wiring, seed, draws)
    return {axis: (label, probed[axis]) for axis, label in card.labels().items() if label != probed[axis]}
