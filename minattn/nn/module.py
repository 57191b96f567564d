"""Module: a function with parameters that have names.

Nothing is registered behind the scenes. A module's parameters are those of its attributes that are
`Parameter`, its sub-modules are those that are `Module`, in the order in which they were first assigned, and
a parameter's name is the path of attributes that leads to it, as in ``blocks.0.attn.q.weight``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from minattn.autograd import Tensor
from minattn.autograd.engine import Array, Operand, raw

from .hooks import HookHandle, attached, recorded
from .state import LoadReport, Place, converted, load, on_cpu, tied
from .storage import load_arrays, save_arrays

Self = TypeVar("Self", bound="Module")


class Parameter(Tensor):
    """A Tensor that is trained: as an attribute of a `Module` it is one of its parameters."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


class Module:
    """Base of everything with parameters; a subclass defines ``forward`` and is called like a function.

    Attributes
    ----------
    training : bool
        True while training (dropout drops, batch norm measures), False after `eval`.
    """

    training = True
    _forward_hooks: Any = MappingProxyType({})  # an instance with hooks has a dictionary of its own
    _buffers: Mapping[str, bool] = MappingProxyType({})  # name -> whether it is saved

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The function this module computes."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        return self._hook(args, output) if self._forward_hooks else output

    def __setattr__(self, name: str, value: Any) -> None:
        old = self.__dict__.get(name)
        if isinstance(old, Parameter) and isinstance(value, Tensor) and not isinstance(value, Parameter):
            raise TypeError(f"{name}: is a Parameter, and a Tensor in its place would not be trained; "
                            f"assign a Parameter, or new values with .{name}.data = array")
        object.__setattr__(self, name, value)

    # ---- what it consists of

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Sub-modules one level down, with their names.

        Raises
        ------
        TypeError
            If modules or parameters hide in a plain list, tuple or dictionary: they would not be trained.
        """
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple, dict)) and not name.startswith("_"):
                _refuse_hidden(f"{type(self).__name__}.{name}", value)

    def named_modules(self, prefix: str = "", unique: bool = True,
                      _seen: set | None = None) -> Iterator[tuple[str, Module]]:
        """This and all modules below, parents first; if `unique`, each by its first name."""
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
        """Parameters with their names, in order; if `unique`, each by its first name."""
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
        """Arrays that belong to the module but are not trained (running means, fixed masks)."""
        for prefix, module in self.named_modules():
            for name in module._buffers:
                yield _join(prefix, name), getattr(module, name)

    def register_buffer(self, name: str, value: Operand, persistent: bool = True) -> None:
        """Make the array `value` the attribute `name`, moved by `to` and, if persistent, saved."""
        self._buffers = {**self._buffers, name: persistent}
        setattr(self, name, raw(value))

    def get_submodule(self, path: str) -> Module:
        """The module that a path such as ``"blocks.0.attn"`` leads to; the empty path is this module."""
        module: Module = self
        for name in path.split(".") if path else []:
            children = dict(module.named_children())
            if name not in children:
                raise ValueError(f"path: {path!r} has no part {name!r}; {type(module).__name__} has "
                                 f"{', '.join(children) or 'no sub-modules'}")
            module = children[name]
        return module

    def num_parameters(self, trainable: bool = False) -> int:
        """Number of entries of all parameters, tied ones once; if `trainable`, without frozen ones."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable)

    # ---- what changes it

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode here and below; returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Set evaluation mode here and below; returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def requires_grad_(self: Self, on: bool = True) -> Self:
        """Train all parameters, or freeze them; returns the module."""
        for p in self.parameters():
            p.requires_grad = on
        return self

    def to(self: Self, target: Any) -> Self:
        """Convert floating parameters and buffers to a dtype, or move all to ``"cpu"`` or ``"gpu"``.

        Returns the module, whose parameters stay the same objects.

        Raises
        ------
        TypeError
            For a dtype that is not floating.
        RuntimeError
            If no GPU can be used.
        """
        for p in self.parameters():
            p.data, p.grad = converted(p.data, target), converted(raw(p.grad), target)
        for module in self.modules():
            for name in module._buffers:
                setattr(module, name, converted(getattr(module, name), target))
        return self

    # ---- its state

    def _places(self) -> Iterator[Place]:
        """All places of the state, tied ones under each of their names."""
        for prefix, module in self.named_modules(unique=False):
            own = [name for name, value in vars(module).items() if isinstance(value, Parameter)]
            for name in own + [name for name, saved in module._buffers.items() if saved]:
                yield Place(_join(prefix, name), module, name)

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of all parameters and persistent buffers as NumPy arrays, under PyTorch's names."""
        return {place.name: on_cpu(place.array()) for place in self._places()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False
                        ) -> LoadReport:
        """Take over the values in `state`. It is checked as a whole first: on an error nothing has changed.

        Parameters
        ----------
        state : mapping of name to array_like
            Values in the shape of ours, in a dtype that converts to ours without loss. A tied parameter may
            come under any of its names.
        strict : bool
            Whether missing and unexpected names are errors; if not, they are returned.
        assign : bool
            Take over the arrays themselves where their dtype is ours, not copies: of a memory-mapped file,
            only what is used is then read. Do not train such parameters.

        Raises
        ------
        ValueError
            Naming every entry that is missing, unexpected, of another shape, or tied and contradictory.
        TypeError
            If a value would lose precision in our dtype.
        """
        return load(self._places(), state, strict, type(self).__name__, assign)

    def save(self, path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
        """Write the state as a safetensors file, tied parameters once.

        A kill at any moment leaves the old file or the new one.
        """
        places = [group[0] for group in tied(self._places())]
        save_arrays(path, {place.name: on_cpu(place.array()) for place in places}, metadata)

    def load(self, path: str | os.PathLike, strict: bool = True) -> LoadReport:
        """Take over the state in a safetensors file; see `load_state_dict`."""
        return self.load_state_dict(load_arrays(path), strict)

    # ---- hooks

    def register_forward_hook(self, hook: Callable[[Any, tuple, Any], Any]) -> HookHandle:
        """Call ``hook(module, args, output)`` after every forward pass; what it returns replaces the output.

        A hook that returns None only reads. Hooks run in the order of registration, each on the output of the
        one before. ``remove()`` on the handle, or the end of ``with handle:``, takes the hook off again.
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
        """Context in which ``hooks[name](output)`` sees, and may replace, what the part `name` returns.

        Example: ``with model.hooked({"blocks.0.hook_resid": lambda h: 0.5 * h}): ...``. A function that
        returns None only reads.
        """
        return attached(self, hooks)

    def run_with_hooks(self, *args: Any, hooks: Mapping[str, Callable[[Any], Any]], **kwargs: Any) -> Any:
        """``model(*args)`` inside `hooked`."""
        with attached(self, hooks):
            return self(*args, **kwargs)

    def run_with_cache(self, *args: Any, names: str | tuple[str, ...] | None = None, **kwargs: Any
                       ) -> tuple[Any, dict[str, Any]]:
        """``model(*args)``, and what passed on the way: name of module -> plain array (or tuple of arrays).

        By default every `HookPoint` is recorded, else the modules whose name matches one of the patterns
        `names`, as in ``"blocks.*.attn"``. A module that runs again in the same pass is recorded as
        ``name:1``, ``name:2`` and so on.
        """
        cache: dict[str, Any] = {}
        with recorded(self, names, cache):
            return self(*args, **kwargs), cache

    # ---- how it looks

    def extra_repr(self) -> str:
        """What `repr` shows in the brackets."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}" for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = "\n".join(filter(None, [self.extra_repr(), *children])).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {lines}\n)"


class HookPoint(Module):
    """The identity, a name for the value that passes; without a hook it costs one function call."""

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
        yield from super().named_children()
        yield from ((str(i), module) for i, module in enumerate(self._items))

    def __getitem__(self, index: int | slice) -> Any:
        return ModuleList(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _refuse_hidden(name: str, values: Any) -> None:
    """A plain list of modules would leave them untrained without a word."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (Module, Parameter)):
            raise TypeError(f"{name}: a {type(values).__name__} hides the {type(value).__name__} in it; use "
                            "ModuleList or attributes, or a name with _ first for what is not to be trained")
