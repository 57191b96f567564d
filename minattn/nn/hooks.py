"""Looking into a running model: read, replace or scale what one part hands to the next.

A hook is a function that is called with the output of a module. `HookPoint` gives a name to a value that is
not the output of any other module, such as the attention weights inside a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import count
from typing import Any

from minattn.autograd.engine import raw

_keys = count()


class HookHandle:
    """An attached hook; `remove` takes it off, and so does the end of a ``with`` block."""

    def __init__(self, hooks: dict[int, Callable], hook: Callable) -> None:
        self._hooks, self._key = hooks, next(_keys)
        hooks[self._key] = hook

    def remove(self) -> None:
        """Take the hook off; a second call does nothing."""
        self._hooks.pop(self._key, None)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


@contextmanager
def attached(model: Any, hooks: Mapping[str, Callable[[Any], Any]]) -> Iterator[Any]:
    """Context in which ``hooks[name](output)`` is called on the output of each named part of `model`."""
    handles: list[HookHandle] = []
    try:
        for name, see in hooks.items():
            part = model.get_submodule(name)
            handles.append(part.register_forward_hook(lambda module, args, output, see=see: see(output)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(model: Any, names: str | tuple[str, ...] | None, cache: dict[str, Any]) -> Iterator[None]:
    """Context in which the outputs of the chosen sub-modules of `model` are put into `cache`."""
    runs: dict[str, int] = {}

    def keep(name: str) -> Callable:
        def see(output: Any) -> None:
            times = runs.get(name, 0)
            runs[name] = times + 1
            cache[f"{name}:{times}" if times else name] = _plain(output)

        return see

    with attached(model, {name: keep(name) for name in _chosen(model, names)}):
        yield


def _chosen(model: Any, names: str | tuple[str, ...] | None) -> list[str]:
    """Names of the hook points, or of the modules that match a pattern."""
    from .module import HookPoint

    if names is None:
        return [name for name, module in model.named_modules() if isinstance(module, HookPoint)]
    patterns = (names,) if isinstance(names, str) else tuple(names)
    every = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            known = ", ".join(filter(None, every))
            raise ValueError(f"names: nothing matches {pattern!r}; the modules are {known}")
    return [name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _plain(output: Any) -> Any:
    return tuple(_plain(part) for part in output) if isinstance(output, tuple) else raw(output)
