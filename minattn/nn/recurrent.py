"""Recurrent layers over batches of sequences: layers above one another, both directions, unequal lengths."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minattn.autograd import cat, flip, linear, namespace, stack, transpose, where
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import dropout

from . import init
from .gru import gru_scan, gru_step
from .lstm import lstm_scan, lstm_step
from .module import Module, Parameter


class _Recurrent(Module):
    """What `GRU` and `LSTM` share: parameters, layers, directions and lengths. States are tuples in here."""

    gates = 0  # blocks of H rows in a weight
    parts = 0  # arrays that make up a state

    def __init__(self, d_in: int, d_hidden: int, layers: int = 1, bidirectional: bool = False,
                 bias: bool = True, dropout: float = 0.0, *, rng: np.random.Generator) -> None:
        self.d_in, self.d_hidden, self.layers = init.check_sizes(d_in=d_in, d_hidden=d_hidden, layers=layers)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        self.bidirectional, self.dropout, self.rng = bidirectional, dropout, init.check_rng(rng)
        self.bias = bias
        self._sides = ("", "_reverse") if bidirectional else ("",)
        for layer in range(layers):
            for side in self._sides:
                d = d_hidden * len(self._sides) if layer else d_in
                _add_weights(self, self.gates, d, d_hidden, bias, f"_l{layer}{side}", rng)

    def _scan(self, from_x: Operand, state: tuple, W: Operand, b: Operand, keep: Array | None
              ) -> tuple[Operand, tuple]:
        """States (N, B, H) of one layer in one direction, and its final state."""
        raise NotImplementedError

    def _run(self, x: Operand, state: Any, lengths: Array | None) -> tuple[Operand, tuple]:
        """x (B, N, D) → all states (B, N, H or 2H) and the parts of the final one (layers · sides, B, H)."""
        if x.ndim != 3 or x.shape[2] != self.d_in or x.shape[1] < 1:
            raise ValueError(f"x: expected shape (B, N, {self.d_in}) with N ≥ 1, got {x.shape}")
        state = self._initial(x, state)
        keep = _before_end(x, lengths)
        x = transpose(x, 0, 1)  # positions first
        x = x if keep is None else where(keep, x, 0)  # what stands past the end, be it NaN, goes nowhere
        finals: list[tuple] = []
        for layer in range(self.layers):
            if layer and self.dropout and self.training:
                x = dropout(x, self.dropout, self.rng)
            outputs = []
            for side in self._sides:
                start = tuple(part[len(finals)] for part in state)
                output, final = self._one_way(x, start, keep, f"_l{layer}{side}", backwards=bool(side))
                outputs.append(output)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else cat(outputs, -1)
        return transpose(x, 0, 1), tuple(stack(part) for part in zip(*finals, strict=True))

    def _one_way(self, x: Operand, start: tuple, keep: Array | None, name: str, backwards: bool
                 ) -> tuple[Operand, tuple]:
        """One layer in one direction. Backwards, the padding comes first and leaves the state as it was."""
        weights = vars(self)
        if backwards:
            x, keep = flip(x, 0), keep if keep is None else keep[::-1]
        W_hh = weights[f"weight_hh{name}"]
        b_hh = weights.get(f"bias_hh{name}")
        if b_hh is None:
            b_hh = namespace(W_hh).zeros(W_hh.shape[0], dtype=W_hh.dtype)
        from_x = linear(x, weights[f"weight_ih{name}"], weights.get(f"bias_ih{name}"))
        states, final = self._scan(from_x, start, W_hh, b_hh, keep)
        states = states if keep is None else where(keep, states, 0)
        return flip(states, 0) if backwards else states, final

    def _initial(self, x: Operand, state: Any) -> tuple:
        """The parts of the initial state, each (layers · sides, B, H); zeros by default."""
        shape = (self.layers * len(self._sides), x.shape[0], self.d_hidden)
        if state is None:
            return (namespace(x).zeros(shape, dtype=x.dtype),) * self.parts
        parts = state if self.parts > 1 else (state,)
        got = [getattr(part, "shape", type(part).__name__) for part in parts]
        if got != [shape] * self.parts:
            raise ValueError(f"state: expected {self.parts} of shape {shape}, got {got}")
        return tuple(parts)

    def extra_repr(self) -> str:
        usual = {"layers": 1, "bidirectional": False, "bias": True, "dropout": 0.0}
        given = [f"{name}={vars(self)[name]}" for name, value in usual.items() if vars(self)[name] != value]
        return ", ".join([f"{self.d_in}, {self.d_hidden}", *given])


class GRU(_Recurrent):
    """Gated recurrent units over sequences; `minattn.nn.gru` has the equations.

    Parameters
    ----------
    d_in, d_hidden : int
        Sizes D of the input and H of the state.
    layers : int
        Each layer reads the states of the one below.
    bidirectional : bool
        Whether a second set of weights reads the sequence from its end; the states of both are joined.
    bias : bool
        Whether b_ih and b_hh are there.
    dropout : float
        Probability with which states are dropped between layers while training.
    rng : numpy.random.Generator
        Source of the initial weights, uniform on ±1/√H as in PyTorch, and of dropout.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, … : Parameter (3H, D), (3H, H), (3H), (3H)
        PyTorch's names and layout; with ``_reverse`` at the end for the second direction.
    """

    gates, parts = 3, 1

    def forward(self, x: Operand, state: Operand | None = None, lengths: Array | None = None
                ) -> tuple[Operand, Operand]:
        """All states and the final ones.

        Parameters
        ----------
        x : (B, N, D)
        state : (layers · sides, B, H), optional
            Initial states; zeros by default.
        lengths : integers (B,), optional
            How many positions of each sequence count. Beyond them states are zero, and the final state is
            that at the last position that counts (for the second direction, at the first).

        Returns
        -------
        (B, N, H) or (B, N, 2H), and (layers · sides, B, H)
        """
        states, (final,) = self._run(x, state, lengths)
        return states, final

    def _scan(self, from_x: Operand, state: tuple, W: Operand, b: Operand, keep: Array | None
              ) -> tuple[Operand, tuple]:
        states = gru_scan(from_x, *state, W, b, keep=keep)
        return states, (states[-1],)


class LSTM(_Recurrent):
    """Long short-term memory over sequences; `minattn.nn.lstm` has the equations.

    Parameters and attributes are those of `GRU`, with weights of 4H rows.
    """

    gates, parts = 4, 2

    def forward(self, x: Operand, state: tuple[Operand, Operand] | None = None, lengths: Array | None = None
                ) -> tuple[Operand, tuple[Operand, Operand]]:
        """All states (B, N, H or 2H), and the final pair (h, c), each (layers · sides, B, H).

        `state` is the initial pair (h, c); for `lengths` see `GRU.forward`.
        """
        states, (h, c) = self._run(x, state, lengths)
        return states, (h, c)

    def _scan(self, from_x: Operand, state: tuple, W: Operand, b: Operand, keep: Array | None
              ) -> tuple[Operand, tuple]:
        both = lstm_scan(from_x, *state, W, b, keep=keep)
        return both[:, :, 0], (both[-1, :, 0], both[-1, :, 1])


class GRUCell(Module):
    """One step of a `GRU`: x (B, D) and h (B, H), zeros by default, to the next h. PyTorch's layout."""

    def __init__(self, d_in: int, d_hidden: int, bias: bool = True, *, rng: np.random.Generator) -> None:
        self.d_in, self.d_hidden = init.check_sizes(d_in=d_in, d_hidden=d_hidden)
        _add_weights(self, 3, d_in, d_hidden, bias, "", rng)

    def forward(self, x: Operand, h: Operand | None = None) -> Operand:
        h = _zeros(x, self.d_hidden) if h is None else h
        return gru_step(x, h, *_weights_of(self))

    def extra_repr(self) -> str:
        return f"{self.d_in}, {self.d_hidden}"


class LSTMCell(Module):
    """One step of an `LSTM`: x (B, D) and (h, c), zeros by default, to the next (h, c). PyTorch's layout."""

    def __init__(self, d_in: int, d_hidden: int, bias: bool = True, *, rng: np.random.Generator) -> None:
        self.d_in, self.d_hidden = init.check_sizes(d_in=d_in, d_hidden=d_hidden)
        _add_weights(self, 4, d_in, d_hidden, bias, "", rng)

    def forward(self, x: Operand, state: tuple[Operand, Operand] | None = None) -> tuple[Operand, Operand]:
        h, c = (_zeros(x, self.d_hidden),) * 2 if state is None else state
        return lstm_step(x, h, c, *_weights_of(self))

    def extra_repr(self) -> str:
        return f"{self.d_in}, {self.d_hidden}"


def _add_weights(module: Module, gates: int, d_in: int, d_hidden: int, bias: bool, name: str,
                 rng: np.random.Generator) -> None:
    """PyTorch's four parameters of a recurrent layer, uniform on ±1/√H."""
    rows = gates * d_hidden
    bound = 1 / math.sqrt(d_hidden)
    for kind, shape in [("weight_ih", (rows, d_in)), ("weight_hh", (rows, d_hidden)),
                        ("bias_ih", (rows,)), ("bias_hh", (rows,))]:
        if bias or kind.startswith("weight"):
            setattr(module, kind + name, Parameter(init.uniform(shape, bound, rng=rng)))


def _weights_of(cell: Module) -> tuple:
    return tuple(vars(cell).get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def _zeros(x: Operand, d: int) -> Array:
    return namespace(x).zeros((x.shape[0], d), dtype=x.dtype)


def _before_end(x: Operand, lengths: Array | None) -> Array | None:
    """Booleans (N, B, 1): whether a position of x (B, N, D) counts; None if all do."""
    if lengths is None:
        return None
    (B, N, _), lengths = x.shape, np.asarray(lengths.get() if hasattr(lengths, "get") else raw(lengths))
    if lengths.shape != (B,) or lengths.dtype.kind not in "iu" or ((lengths < 0) | (lengths > N)).any():
        raise ValueError(f"lengths: expected {B} integers in [0, {N}], got {lengths.tolist()}")
    return namespace(x).asarray((np.arange(N)[:, None] < lengths)[:, :, None])
