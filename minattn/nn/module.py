"""Module: a function with parameters that have names.

Nothing is registered behind the scenes. A module's parameters are those of its attributes that are `Parameter`,
its sub-modules are those that are `Module`, in the order in which they were first assigned, and a parameter's name
is the path of attributes that leads to it, as in ``blocks.0.attn.q.weight``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from minattn.autograd import Tensor
from minattn.autograd.engine import Array, Operand, namespace, raw
from minattn.autograd.tensor import transfer

from .hooks import HookHandle, attached, recorded
from .storage import load_arrays, save_arrays


class Parameter(Tensor):
    """A Tensor that is trained: as an attribute of a `Module` it is one of its parameters."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


class Place(NamedTuple):
    """Where an entry of a state lives: its name, the module that owns it and the attribute there."""

    name: str
    module: Module
    attribute: str

    def value(self) -> Array:
        """The array itself."""
        return raw(getattr(self.module, self.attribute))

    def put(self, array: Array) -> None:
        """Give the parameter or buffer a new array."""
        held = getattr(self.module, self.attribute)
        if isinstance(held, Tensor):
            held.data = array  # the Parameter stays the same object: optimisers and tied modules hold it
        else:
            setattr(self.module, self.attribute, array)


class LoadReport(NamedTuple):
    """Names that `load_state_dict` did not find, and names that it had no place for."""

    missing: list[str]
    unexpected: list[str]


class Module:
    """Base of everything with parameters; a subclass defines ``forward`` and is called like a function.

    Attributes
    ----------
    training : bool
        True while training (dropout drops, batch norm measures), False after `eval`.
    """

    training = True
    _forward_hooks: dict[int, Callable] = {}  # empty for the class; an instance with hooks has its own
    _buffers: Mapping[str, bool] = {}  # name -> whether it is saved

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The function this module computes."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        return self._hook(args, output) if self._forward_hooks else output

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and not isinstance(value, Parameter) and isinstance(
                self.__dict__.get(name), Parameter):
            raise TypeError(f"{name}: is a Parameter and would no longer be trained; assign a Parameter, "
                            f"or new values with .{name}.data = array")
        object.__setattr__(self, name, value)

    # ---- what it consists of

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Sub-modules one level down, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple, dict)) and not name.startswith("_"):
                _refuse_hidden(f"{type(self).__name__}.{name}", value)

    def named_modules(self, prefix: str = "", unique: bool = True, _seen: set | None = None
                      ) -> Iterator[tuple[str, Module]]:
        """This module and all below it, parents first; with `unique` a shared one comes once, under its first name."""
        seen = set() if _seen is None else _seen
        if unique and id(self) in seen:
            return
        seen.add(id(self))
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(_join(prefix, name), unique, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all below it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self, unique: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Parameters with their names, in a fixed order; with `unique` a tied one comes once, under its first name."""
        seen = set()
        for prefix, module in self.named_modules(unique=unique):
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and not (unique and id(value) in seen):
                    seen.add(id(value))
                    yield _join(prefix, name), value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        return (p for _, p in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Arrays that belong to the state but are not trained (running means, fixed masks)."""
        for prefix, module in self.named_modules():
            for name in module._buffers:
                yield _join(prefix, name), getattr(module, name)

    def register_buffer(self, name: str, value: Operand, persistent: bool = True) -> None:
        """Make the array `value` the attribute `name`: moved by `to` and, if persistent, saved with the parameters."""
        self._buffers = {**self._buffers, name: persistent}
        setattr(self, name, raw(value))

    def get_submodule(self, path: str) -> Module:
        """The module that a path such as ``"blocks.0.attn"`` leads to; the empty path is this module."""
        module = self
        for name in path.split(".") if path else []:
            children = dict(module.named_children())
            if name not in children:
                raise ValueError(f"path: {path!r} has no part {name!r}; {type(module).__name__} has "
                                 f"{', '.join(children) or 'no sub-modules'}")
            module = children[name]
        return module

    def num_parameters(self, trainable: bool = False) -> int:
        """Number of entries of all parameters, tied ones counted once; if `trainable`, of those that are trained."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable)

    # ---- what changes it

    def train(self, mode: bool = True) -> Any:
        """Set training mode here and below; returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Any:
        """Set evaluation mode here and below; returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def requires_grad_(self, on: bool = True) -> Any:
        """Train all parameters, or freeze them; returns the module."""
        for p in self.parameters():
            p.requires_grad = on
        return self

    def to(self, target: Any) -> Any:
        """Convert floating parameters and buffers to a dtype, or move all to ``"cpu"`` or ``"gpu"``; returns the module.

        Raises
        ------
        TypeError
            For a dtype that is not floating.
        RuntimeError
            If no GPU can be used.
        """
        for p in self.parameters():
            p.data, p.grad = _converted(p.data, target), _converted(p.grad, target)
        for module in self.modules():
            for name in module._buffers:
                setattr(module, name, _converted(getattr(module, name), target))
        return self

    # ---- its state

    def _places(self) -> Iterator[Place]:
        """All places of the state, tied ones under each of their names."""
        for prefix, module in self.named_modules(unique=False):
            own = [name for name, value in vars(module).items() if isinstance(value, Parameter)]
            for name in own + [name for name, saved in module._buffers.items() if saved]:
                yield Place(_join(prefix, name), module, name)

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of all parameters and saved buffers as NumPy arrays, under PyTorch's names."""
        return {place.name: _on_cpu(place.value()) for place in self._places()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadReport:
        """Take over the values in `state`. It is checked as a whole first: on an error nothing has changed.

        A tied parameter may come under any of its names.

        Parameters
        ----------
        state : mapping of name to array_like
            Values in the shape of ours, in a dtype that converts to ours without loss.
        strict : bool
            Whether missing and unexpected names are errors; if not, they are returned.

        Raises
        ------
        ValueError
            Naming every entry that is missing, unexpected, of another shape, or tied and contradictory.
        TypeError
            If a value would lose precision in our dtype.
        """
        tied: dict[int, list[Place]] = {}
        for place in self._places():
            tied.setdefault(id(getattr(place.module, place.attribute)), []).append(place)
        known = {place.name for places in tied.values() for place in places}
        found = {key: [p for p in places if p.name in state] for key, places in tied.items()}
        report = LoadReport([tied[key][0].name for key, places in found.items() if not places],
                            [name for name in state if name not in known])
        problems = [_problem(places, state) for places in found.values() if places]
        if strict:
            problems += [f"missing: {', '.join(report.missing)}" if report.missing else "",
                         f"unexpected: {', '.join(report.unexpected)}" if report.unexpected else ""]
        if any(problems):
            raise ValueError(f"state: does not fit this {type(self).__name__}: " + "; ".join(filter(None, problems)))
        fitted = [(places[0], _fitted(places[0], state[places[0].name])) for places in found.values() if places]
        for place, array in fitted:
            place.put(array)
        return report

    def save(self, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
        """Write the state as a safetensors file, tied parameters once; a kill leaves the old file or the new one."""
        once = {id(getattr(p.module, p.attribute)): p for p in reversed(list(self._places()))}
        save_arrays(path, {p.name: _on_cpu(p.value()) for p in reversed(list(once.values()))}, metadata)

    def load(self, path: str | os.PathLike, strict: bool = True) -> LoadReport:
        """Take over the state in a safetensors file; see `load_state_dict`."""
        return self.load_state_dict(load_arrays(path), strict)

    # ---- hooks

    def register_forward_hook(self, hook: Callable[[Module, tuple, Any], Any]) -> HookHandle:
        """Call ``hook(module, args, output)`` after every forward pass; what it returns, if not None, is the output.

        Hooks run in the order of registration, each on the output of the one before. ``remove()`` on the handle,
        or leaving it as a context, takes the hook off again.
        """
        if not callable(hook):
            raise TypeError(f"hook: expected a function of (module, args, output), got {hook!r}")
        if not self._forward_hooks:
            self._forward_hooks = {}
        return HookHandle(self._forward_hooks, hook)

    def _hook(self, args: tuple, output: Any) -> Any:
        for hook in tuple(self._forward_hooks.values()):
            replacement = hook(self, args, output)
            output = output if replacement is None else replacement
        return output

    def hooked(self, hooks: Mapping[str, Callable[[Any], Any]]) -> AbstractContextManager:
        """Context in which ``hooks[name](output)`` sees, and may replace, what the module `name` returns.

        ``with model.hooked({"blocks.0.hook_resid": lambda h: 0.5 * h}): ...``. Names are paths of sub-modules;
        a function that returns None only reads.
        """
        return attached(self, hooks)

    def run_with_hooks(self, *args: Any, hooks: Mapping[str, Callable[[Any], Any]], **kwargs: Any) -> Any:
        """``model(*args)`` inside `hooked`."""
        with attached(self, hooks):
            return self(*args, **kwargs)

    def run_with_cache(self, *args: Any, names: str | tuple[str, ...] | None = None, **kwargs: Any
                       ) -> tuple[Any, dict[str, Any]]:
        """``model(*args)`` and a dictionary of what passed: name of module -> plain array (a tuple of them for a tuple).

        By default all `HookPoint` modules are recorded, else those whose name matches one of the patterns `names`,
        as in ``"blocks.*.attn"``. A module that runs again in the same pass is recorded as ``name:1``, ``name:2``, …
        """
        cache: dict[str, Any] = {}
        with recorded(self, names, cache):
            return self(*args, **kwargs), cache

    # ---- how it looks

    def extra_repr(self) -> str:
        """What `repr` shows in the brackets."""
        return ""

    def __repr__(self) -> str:
        children = _collapsed([(name, repr(child)) for name, child in self.named_children()])
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = [line for text in filter(None, [self.extra_repr(), *children]) for line in text.split("\n")]
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


class HookPoint(Module):
    """The identity, a name for the value that passes; without a hook it costs one function call."""

    is_hook_point = True

    def forward(self, x: Any) -> Any:
        return x

    def __call__(self, x: Any) -> Any:
        return self._hook((x,), x) if self._forward_hooks else x


class ModuleList(Module):
    """A list of modules whose parameters are found; their names are "0", "1", …"""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self._items: list[Module] = []
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> ModuleList:
        """Add a module at the end; returns the list."""
        if not isinstance(module, Module):
            raise TypeError(f"module: expected a Module, got {type(module).__name__}")
        self._items.append(module)
        return self

    def named_children(self) -> Iterator[tuple[str, Module]]:
        yield from ((str(i), module) for i, module in enumerate(self._items))

    def __getitem__(self, index: int | slice) -> Any:
        return type(self)(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _refuse_hidden(name: str, values: Any) -> None:
    """A plain list of modules would leave them untrained without a word."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (Module, Parameter)):
            raise TypeError(f"{name}: a plain {type(values).__name__} hides the {type(value).__name__} in it; use "
                            "ModuleList or attributes (or a name that begins with _ for references not to be trained)")


def _converted(x: Any, target: Any) -> Any:
    if x is None or (isinstance(target, str) and target in ("cpu", "gpu")):
        return x if x is None else transfer(Tensor(raw(x)), target).data
    dtype = np.dtype(target)
    if dtype.kind != "f":
        raise TypeError(f'target: expected a floating dtype, "cpu" or "gpu", got {target!r}')
    if x.dtype.kind not in "fc":
        return x
    return raw(x).astype(dtype if x.dtype.kind == "f" else np.result_type(dtype, np.complex64), copy=False)


def _on_cpu(x: Array) -> np.ndarray:
    return np.array(x.get() if hasattr(x, "get") else x)


def _problem(places: list[Place], state: Mapping[str, Any]) -> str:
    """What is wrong with the values given for one parameter under its names; empty if nothing."""
    first = np.asarray(state[places[0].name])
    if first.shape != places[0].value().shape:
        return f"{places[0].name}: expected shape {places[0].value().shape}, got {first.shape}"
    for place in places[1:]:
        if not np.array_equal(first, np.asarray(state[place.name])):
            return f"{place.name}: is tied to {places[0].name} here, but their values differ"
    return ""


def _fitted(place: Place, value: Any) -> Array:
    ours, value = place.value(), np.asarray(value)
    if not np.can_cast(value.dtype, ours.dtype, "safe"):
        raise TypeError(f"{place.name}: {value.dtype} would lose precision as {ours.dtype}; convert the state, "
                        f"or the module with .to({value.dtype})")
    return namespace(ours).array(value, dtype=ours.dtype)


def _collapsed(children: list[tuple[str, str]]) -> list[str]:
    return [f"({name}): {text}" for name, text in children]
