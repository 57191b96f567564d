"""A stand-in for CuPy: arrays that NumPy cannot read, with a module of functions that takes no others.

It finds lines that would not run on a GPU: NumPy called on an array of another library, an array of NumPy's
mixed in. It stands for CuPy's strictness, not for its arithmetic, which is tested on a GPU (`make gpu-test`).
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

FUNCTIONS = set(
    "abs add arange asarray broadcast_to clip concatenate conj cos divide einsum empty exp expand_dims eye "
    "fft flip full imag linalg log log1p maximum minimum moveaxis multiply ogrid ones pad real "
    "result_type roll sign sin sqrt tanh tri where zeros zeros_like".split()
)
METHODS = set(
    "all any argmax argmin argsort astype conjugate copy cumsum fill item max min reshape sum "
    "transpose".split()
)


class ndarray:
    """An array that is not NumPy's."""

    __module__ = "cupy"
    __array_ufunc__ = None
    __slots__ = ("_values",)

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("an array of this library does not become one of NumPy's unasked")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.shape:  # which only reads an attribute
            return self.shape
        raise TypeError(f"numpy.{func.__name__} called on an array of another library")

    def get(self) -> np.ndarray:
        return self._values

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim", "size", "dtype"):
            return getattr(self._values, name)
        if name in ("T", "mT", "real", "imag"):
            return ndarray(getattr(self._values, name))
        if name in METHODS:
            return wrapped(getattr(self._values, name))
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("real", "imag"):
            setattr(self._values, name, inside(value))
        else:
            object.__setattr__(self, name, value)

    def __getitem__(self, index: Any) -> ndarray:
        return ndarray(np.asarray(self._values[inside(index)]))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._values[inside(index)] = inside(value)

    def __len__(self) -> int:
        return len(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __format__(self, spec: str) -> str:
        return format(self._values, spec)


OPERATORS = "add sub mul truediv pow matmul and or lt le gt ge eq ne"


def operator(name: str) -> Any:
    def apply(self: ndarray, *others: Any) -> Any:
        found = getattr(self._values, name)(*(inside(o) for o in others))
        if found is NotImplemented:
            return found
        return self if name.startswith("__i") and name != "__invert__" else ndarray(np.asarray(found))

    return apply


for _name in OPERATORS.split():
    for _form in ("", "r", "i"):
        if hasattr(np.ndarray, f"__{_form}{_name}__"):
            setattr(ndarray, f"__{_form}{_name}__", operator(f"__{_form}{_name}__"))
for _name in ("__neg__", "__invert__"):
    setattr(ndarray, _name, operator(_name))


def inside(x: Any) -> Any:
    """The values of this library's arrays; NumPy's arrays are refused."""
    if isinstance(x, ndarray):
        return x._values
    if isinstance(x, np.ndarray):
        raise TypeError("an array of NumPy's given to another library")
    if isinstance(x, (tuple, list)):
        return type(x)(inside(v) for v in x)
    return x


def outside(x: Any) -> Any:
    if isinstance(x, (np.ndarray, np.generic)):
        return ndarray(np.asarray(x))
    return type(x)(outside(v) for v in x) if isinstance(x, (tuple, list)) else x


def wrapped(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return outside(function(*inside(args), **{k: inside(v) for k, v in kwargs.items()}))

    return call


class Module(types.ModuleType):
    """NumPy's functions, or those of one of its modules, on this library's arrays."""

    def __init__(self, name: str, source: Any) -> None:
        super().__init__(name)
        self.source = source

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.source is np and name not in FUNCTIONS:
            raise AttributeError(f"cupy.{name}: not among the functions this library is known to need")
        found = getattr(self.source, name)
        if isinstance(found, types.ModuleType):
            return Module(f"cupy.{name}", found)
        if name == "asarray":  # the one door
            return lambda x, dtype=None: ndarray(
                np.asarray(x._values if isinstance(x, ndarray) else x, dtype=dtype)
            )
        if name == "ogrid":
            return Grid()
        call = wrapped(found)
        if isinstance(found, np.ufunc):
            call.at = wrapped(found.at)
        return call


class Grid:
    def __getitem__(self, index: Any) -> Any:
        return outside(np.ogrid[index])


@pytest.fixture
def other_library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install the stand-in under CuPy's name; gives a function that brings arrays over."""
    from scipy import special

    modules = {
        "cupy": Module("cupy", np),
        "cupyx": types.ModuleType("cupyx"),
        "cupyx.scipy": types.ModuleType("cupyx.scipy"),
        "cupyx.scipy.special": Module("special", special),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def bring(x: Any) -> Any:
        if isinstance(x, (np.ndarray, np.generic)):
            return ndarray(np.array(x))
        return tuple(bring(v) for v in x) if isinstance(x, tuple) else x

    return bring
