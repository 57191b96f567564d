"""The state of a module: where each entry lives, and whether given values fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minattn.autograd import Tensor
from minattn.autograd.engine import Array, namespace, raw
from minattn.autograd.tensor import transfer


class Place(NamedTuple):
    """Where an entry of a state lives: its name, the module that owns it and the attribute there."""

    name: str
    module: Any
    attribute: str

    def held(self) -> Any:
        """The Parameter or the buffer."""
        return getattr(self.module, self.attribute)

    def array(self) -> Array:
        """Its values."""
        return raw(self.held())

    def put(self, array: Array) -> None:
        """Give it new values. A Parameter stays the same object: optimisers and tied modules hold it."""
        if isinstance(self.held(), Tensor):
            self.held().data = array
        else:
            setattr(self.module, self.attribute, array)


class LoadReport(NamedTuple):
    """Names that `load_state_dict` did not find, and names that it had no place for."""

    missing: list[str]
    unexpected: list[str]


def tied(places: Iterable[Place]) -> list[list[Place]]:
    """Places grouped by the parameter or buffer that they hold, in order of first appearance."""
    groups: dict[int, list[Place]] = {}
    for place in places:
        groups.setdefault(id(place.held()), []).append(place)
    return list(groups.values())


def load(places: Iterable[Place], state: Mapping[str, Any], strict: bool, owner: str, assign: bool = False
         ) -> LoadReport:
    """Put the values of `state` into their places, once all of them are known to fit."""
    groups = tied(places)
    known = {place.name for group in groups for place in group}
    given = [[place for place in group if place.name in state] for group in groups]
    report = LoadReport([group[0].name for group, found in zip(groups, given, strict=True) if not found],
                        [name for name in state if name not in known])
    filled = [(group, found) for group, found in zip(groups, given, strict=True) if found]
    problems = [_problem(found, state) for _, found in filled]
    if strict:
        problems += [f"{what}: {', '.join(names)}" for what, names in report._asdict().items() if names]
    if any(problems):
        raise ValueError(f"state: does not fit this {owner}: " + "; ".join(filter(None, problems)))
    for group, array in [(group, _fitted(found[0], state[found[0].name], assign)) for group, found in filled]:
        for place in group:  # a tied buffer is an attribute of each of its modules
            place.put(array)
    return report


def _problem(places: list[Place], state: Mapping[str, Any]) -> str:
    """What is wrong with the values given for one parameter under its names; empty if nothing."""
    first = np.asarray(state[places[0].name])
    if first.shape != places[0].array().shape:
        return f"{places[0].name}: expected shape {places[0].array().shape}, got {first.shape}"
    for place in places[1:]:
        if not np.array_equal(first, np.asarray(state[place.name])):
            return f"{place.name}: is tied to {places[0].name} here, but their values differ"
    return ""


def _fitted(place: Place, value: Any, assign: bool) -> Array:
    ours, value = place.array(), np.asarray(value)
    if not np.can_cast(value.dtype, ours.dtype, "safe"):
        raise TypeError(f"{place.name}: {value.dtype} would lose precision as {ours.dtype}; "
                        f"convert the values, or the module with .to({value.dtype.name!r})")
    xp = namespace(ours)
    return xp.asarray(value, dtype=ours.dtype) if assign else xp.array(value, dtype=ours.dtype)


def on_cpu(x: Array) -> np.ndarray:
    """A copy as a NumPy array."""
    return np.array(x.get() if hasattr(x, "get") else x)


def converted(x: Any, target: Any) -> Any:
    """An array in another floating dtype (integers and None stay as they are), or on another device."""
    if isinstance(target, str) and target in ("cpu", "gpu"):
        return None if x is None else transfer(Tensor(x), target).data
    dtype = np.dtype(target)
    if dtype.kind != "f":
        raise TypeError(f'target: expected a floating dtype, "cpu" or "gpu", got {target!r}')
    if x is None or x.dtype.kind not in "fc":
        return x
    return x.astype(dtype if x.dtype.kind == "f" else np.result_type(dtype, np.complex64), copy=False)
