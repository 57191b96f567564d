"""Tensor's operators and methods: PyTorch's names, each one of our functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import elementwise, index, linalg, reduce, shape
from .engine import Operand, Tensor, as_array


def to(x: Tensor, target: Any) -> Tensor:
    """x with another dtype, or on ``"cpu"`` or ``"gpu"``; differentiable where the result is floating."""
    if isinstance(target, str) and target in ("cpu", "gpu"):
        return transfer(x, target)
    dtype = np.dtype(target)
    if dtype == x.dtype:
        return x
    return elementwise.astype(x, dtype=dtype) if dtype.kind in "fc" else Tensor(x.data.astype(dtype))


def transfer(x: Tensor, device: str) -> Tensor:
    """A leaf's values on the CPU (NumPy) or the GPU (CuPy).

    Raises
    ------
    RuntimeError
        For a tensor made by a primitive (move the leaves, then compute), or when CuPy finds no GPU.
    """
    on_gpu = type(x.data) is not np.ndarray
    if (device == "gpu") == on_gpu:
        return x
    if not x.is_leaf:
        raise RuntimeError(f"to: move leaf tensors to the {device}, then compute; got a primitive's result")
    if device == "cpu":
        return Tensor(x.data.get(), x.requires_grad)
    try:
        import cupy

        return Tensor(cupy.asarray(x.data), x.requires_grad)
    except Exception as e:
        raise RuntimeError(f"to: no GPU can be used here ({type(e).__name__}: {e})") from e


def _reflected(op: Any) -> Any:
    def apply(x: Tensor, other: Operand) -> Tensor:
        return op(other, x)

    return apply


def _comparison(name: str) -> Any:
    """Comparisons are constants: a plain boolean array."""

    def compare(x: Tensor, other: Operand) -> Any:
        return getattr(x.data, name)(other.data if isinstance(other, Tensor) else other)

    return compare


def _matmul(x: Operand, y: Operand) -> Operand:
    """x @ y, where lists become arrays and numbers are refused by their shape."""
    x, y = (x if isinstance(x, Tensor) else as_array(x)), (y if isinstance(y, Tensor) else as_array(y))
    return linalg.matmul(x, y)


_BINARY: dict[str, Any] = {"add": elementwise.add, "sub": elementwise.sub, "mul": elementwise.mul,
                           "truediv": elementwise.div, "pow": elementwise.pow, "matmul": _matmul}
for _name, _op in _BINARY.items():
    setattr(Tensor, f"__{_name}__", _op)
    setattr(Tensor, f"__r{_name}__", _reflected(_op))
for _name in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
    setattr(Tensor, _name, _comparison(_name))

_METHODS = {
    elementwise: "abs clip erf exp log log1p sqrt sign sin cos tanh sigmoid softplus relu gelu silu maximum "
                 "minimum",
    reduce: "sum mean var std amax amin max min argmax argmin logsumexp norm softmax log_softmax cumsum",
    shape: "reshape permute transpose expand unsqueeze squeeze split chunk pad roll flip tril triu "
           "repeat_interleave",
    index: "gather scatter_add sort topk",
    linalg: "matmul inverse",
}
for _module, _names in _METHODS.items():
    for _name in _names.split():
        setattr(Tensor, _name, getattr(_module, _name))

_OTHERS: dict[str, Any] = {
    "__neg__": elementwise.neg,
    "__abs__": elementwise.abs,
    "__getitem__": index.getitem,
    "__hash__": object.__hash__,  # identity, as in PyTorch, although == is elementwise
    "swapaxes": shape.transpose,
    "to": to,
    "float": lambda x: to(x, np.float32),
    "double": lambda x: to(x, np.float64),
    "T": property(lambda x: shape.permute(x, *reversed(range(x.ndim))), doc="All axes in reverse order."),
    "mT": property(lambda x: shape.transpose(x, -1, -2), doc="The last two axes exchanged."),
}
for _name, _op in _OTHERS.items():
    setattr(Tensor, _name, _op)
