"""Optimisers (SGD, Adam, AdamW) with PyTorch's update formulas, gradient clipping, a running mean of weights.

An optimiser writes into the arrays of its parameters (``p.data``), which nothing records. Gradients are only
read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minattn.autograd import Tensor, namespace
from minattn.autograd.engine import Array
from minattn.kernels.adamw import adamw

__all__ = ["EMA", "SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm_", "decay_groups"]


def _flat(p: Tensor) -> Array:
    """The entries of a parameter as a vector that can be written to."""
    if not (p.data.flags.c_contiguous and getattr(p.data.flags, "writeable", True)):
        p.data = p.data.copy(order="C")
    return p.data.reshape(-1)


class Optimizer:
    """What optimisers share: groups of parameters with options of their own, and a state for each parameter.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        All parameters; or groups ``{"params": [...], "lr": ..., ...}``, whose options go before the defaults.

    Attributes
    ----------
    param_groups : list of dict
        The groups; change ``group["lr"]`` at any time.
    state : list of dict
        What the optimiser remembers of each parameter, in order of the groups.

    Raises
    ------
    TypeError, ValueError
        For no parameter, one that is not a trainable Tensor, one given twice, or an unknown option.
    """

    def __init__(self, params: Iterable[Any], **defaults: Any) -> None:
        params = list(params)
        if not params:
            raise ValueError("params: expected at least one parameter, got none")
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        self.param_groups: list[dict[str, Any]] = []
        seen: set[int] = set()
        for group in groups:
            unknown = set(group) - {"params", *defaults}
            if unknown:
                raise ValueError(f"params: unknown option {min(unknown)!r}, expected {sorted(defaults)}")
            members = list(group["params"])
            for p in members:
                if not isinstance(p, Tensor) or not p.requires_grad:
                    raise TypeError(f"params: expected Tensors that require gradients, got {p!r}")
                if id(p) in seen:
                    raise ValueError(f"params: a parameter of shape {p.shape} is given twice")
                seen.add(id(p))
            self.param_groups.append({**defaults, **group, "params": members})
            self._check(self.param_groups[-1])
        self.state: list[dict[str, Any]] = [{} for _ in seen]

    def _check(self, group: dict[str, Any]) -> None:
        """Refuse options that make no sense."""
        for name in ("lr", "weight_decay"):
            if not (math.isfinite(group[name]) and group[name] >= 0):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {group[name]}")

    def _update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change the flat parameters `p` in place, given their gradient."""
        raise NotImplementedError

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        states = iter(self.state)
        for group in self.param_groups:
            for p in group["params"]:
                state = next(states)
                if p.grad is None:
                    continue
                if p.grad.shape != p.shape or p.grad.dtype != p.dtype:
                    raise ValueError(f"grad: expected {p.dtype} {p.shape}, got {p.grad.dtype} {p.grad.shape}")
                self._update(_flat(p), p.grad.reshape(-1), state, group)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters():
            p.grad = None

    def parameters(self) -> list[Tensor]:
        """The parameters of all groups."""
        return [p for group in self.param_groups for p in group["params"]]

    def set_lr(self, lr: float) -> None:
        """Give all groups this learning rate."""
        for group in self.param_groups:
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Options and state, enough to go on later: numbers and arrays (not copies)."""
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"groups": options, "state": [dict(s) for s in self.state]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` of an optimiser of the same parameters gave; arrays are copied.

        Raises
        ------
        ValueError
            If the number of groups or parameters or a shape differs.
        """
        counts = (len(saved["groups"]), len(saved["state"]))
        if counts != (len(self.param_groups), len(self.state)):
            raise ValueError(f"saved: expected {len(self.param_groups)} groups and {len(self.state)} "
                             f"parameters, got {counts[0]} and {counts[1]}")
        params = self.parameters()
        for i, (p, state) in enumerate(zip(params, saved["state"], strict=True)):
            for name, value in state.items():
                if np.ndim(value) and value.size != p.size:
                    raise ValueError(f"saved: {name!r} of parameter {i}: expected {p.size} entries, "
                                     f"got {value.size}")
        for group, options in zip(self.param_groups, saved["groups"], strict=True):
            group.update(options)
        for p, state, new in zip(params, self.state, saved["state"], strict=True):
            xp = namespace(p)
            state.clear()
            state.update({k: xp.array(v, dtype=p.dtype) if np.ndim(v) else v for k, v in new.items()})


class SGD(Optimizer):
    """Gradient descent p ← p − lr · u, with momentum.

        g ← g + weight_decay · p
        b ← momentum · b + g             (b = g at the first step)
        u = g + momentum · b  if nesterov, else b

    Parameters
    ----------
    params, lr, momentum, weight_decay, nesterov
        As in `torch.optim.SGD`, whose updates these are.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0,
                 weight_decay: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {group['momentum']}")
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("nesterov: needs a momentum above 0")

    def _update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        if momentum:
            if "b" in state:
                state["b"] *= momentum
                state["b"] += g
            else:
                state["b"] = g.copy()
            g = g + momentum * state["b"] if group["nesterov"] else state["b"]
        p -= group["lr"] * g


class Adam(Optimizer):
    """Steps of size about lr in every coordinate: the mean of recent gradients over their root mean square.

        m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) g²
        p ← p − lr m̂ / (√v̂ + ε),   m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)

    Weight decay is added to the gradient, g + weight_decay · p, and scaled with it; `AdamW` keeps it apart.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay
        As in `torch.optim.Adam`, whose updates these are.
    """

    decoupled = False

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self._scratch: dict[Any, Array] = {}

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if len(group["betas"]) != 2 or not all(0 <= b < 1 for b in group["betas"]):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {group['betas']}")
        if not group["eps"] >= 0:
            raise ValueError(f"eps: expected a number of at least 0, got {group['eps']}")

    def _room(self, p: Array) -> Array:
        """Space for intermediate results, shared by all parameters of one kind."""
        key = (namespace(p).__name__, p.dtype)
        if key not in self._scratch or self._scratch[key].size < p.size:
            self._scratch[key] = namespace(p).empty_like(p)
        return self._scratch[key]

    def _update(self, p: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            xp = namespace(p)
            state.update(step=0, m=xp.zeros_like(p), v=xp.zeros_like(p))
        state["step"] += 1
        decay = group["weight_decay"]
        adamw(p, g, state["m"], state["v"], self._room(p), step=state["step"], lr=group["lr"],
              betas=group["betas"], eps=group["eps"], **{"decay" if self.decoupled else "l2": decay})


class AdamW(Adam):
    """`Adam` with weight decay as a step of its own, p ← (1 − lr · weight_decay) p, not scaled by gradients.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay
        As in `torch.optim.AdamW`, whose updates these are.
    """

    decoupled = True

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def decay_groups(params: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices (and tensors with more axes) decay, biases and the gains of norms do not."""
    params = list({id(p): p for p in params}.values())
    groups = [{"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
              {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def clip_grad_norm_(params: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients together so that their joint norm is at most `max_norm`; returns the norm before.

        g ← g · min(1, max_norm / (‖g‖ + 10⁻⁶)),   ‖g‖² = Σ over parameters and entries of |g|²

    Raises
    ------
    FloatingPointError
        If the norm is not finite: a NaN or an infinity would otherwise spread to all parameters.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm: expected a number above 0, got {max_norm}")
    params = [p for p in params if p.grad is not None]
    squares = 0.0
    for p in params:
        g = p.grad.reshape(-1)
        squares += float(namespace(g).vdot(g, g).real)
    norm = math.sqrt(squares)
    if not math.isfinite(norm):
        raise FloatingPointError(f"clip_grad_norm_: the norm of the gradients is {norm}")
    scale = max_norm / (norm + 1e-6)
    if scale < 1:
        for p in params:
            p.grad = p.grad * scale
    return norm


class EMA:
    """A running mean of parameters, s ← decay · s + (1 − decay) · p at each `update`.

    Parameters
    ----------
    params : iterable of Tensor
        The parameters to follow; the mean starts at their present values.
    decay : float
        In [0, 1); 0.999 looks back over about a thousand updates.
    """

    def __init__(self, params: Iterable[Tensor], decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
        self.decay = decay
        self.params = list(params)
        self.means = [p.data.copy() for p in self.params]

    def update(self) -> None:
        """Take the present parameters into the mean."""
        for s, p in zip(self.means, self.params, strict=True):
            s += (1 - self.decay) * (p.data - s)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the parameters are the means."""
        own = [p.data for p in self.params]
        try:
            for p, s in zip(self.params, self.means, strict=True):
                p.data = s.copy()
            yield
        finally:
            for p, data in zip(self.params, own, strict=True):
                p.data = data

    def state_dict(self) -> dict[str, Any]:
        """The means (not copies)."""
        return {"means": list(self.means)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; a ValueError if shapes differ."""
        shapes = [s.shape for s in saved["means"]], [s.shape for s in self.means]
        if shapes[0] != shapes[1]:
            raise ValueError(f"saved: expected means of shapes {shapes[1]}, got {shapes[0]}")
        for s, new in zip(self.means, saved["means"], strict=True):
            s[...] = namespace(s).asarray(new)
