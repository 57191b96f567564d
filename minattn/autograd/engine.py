"""The tape: a Tensor, what a primitive is, and the reverse sweep.

A `Tensor` is an array that remembers how it was made. Each primitive (a pair of a forward function
and its derivative) records on its output the arguments it was given; a backward pass visits the
recorded tensors from the youngest to the oldest and asks every primitive to carry the gradient of its
output over to its inputs.

Two ideas keep it small:

* **Array in, array out.** A primitive that is given no Tensor computes on plain arrays and returns one.
  Derivatives are written with the same primitives and operators, so the backward pass runs at NumPy's
  speed on plain arrays, and with ``create_graph=True`` the very same lines run on Tensors, are recorded
  themselves, and can be differentiated again.
* **Birth order is a topological order.** Nothing is changed in place, so an input is always older than
  the output: sorting the reachable tensors by birth replaces a recursive graph search.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter
from typing import Any

import numpy as np

Array = Any  # a NumPy or CuPy array
Operand = Any  # a Tensor, an array or a number

_ndarray = np.ndarray
_births = itertools.count()
_birth_of = operator.attrgetter("_birth")
_NUMBERS = (int, float, complex, bool)


class _Mode(threading.local):
    recording = True


_mode = _Mode()


def namespace(x: Operand) -> Any:
    """The module, NumPy or CuPy, whose functions work on `x`."""
    x = raw(x)
    if type(x) is _ndarray:
        return np
    if type(x).__module__.startswith("cupy"):
        import cupy

        return cupy
    return np


def raw(x: Operand) -> Operand:
    """The array behind a Tensor; anything else as it is."""
    return x.data if isinstance(x, Tensor) else x


class Tensor:
    """An array with a gradient.

    Parameters
    ----------
    data : array_like
        Kept as it is when it is a NumPy or CuPy array (no copy); anything else becomes a NumPy array.
    requires_grad : bool
        Whether `backward` should leave a gradient in `grad`.

    Attributes
    ----------
    data : array
        The value.
    grad : array or None
        ∂(the differentiated scalar)/∂(this tensor), summed over calls of `backward`. Gradients are values:
        assign a new one rather than writing into it, since several tensors may share it.
    """

    __slots__ = ("__weakref__", "_args", "_birth", "_op", "_options", "_saved", "data", "grad",
                 "requires_grad")
    __array_ufunc__ = None  # ndarray + Tensor asks Tensor.__radd__; np.exp(Tensor) raises, detaching nothing
    data: Any
    _args: Any
    _options: Any
    _saved: Any
    __getitem__: Any  # defined in tensor.py, like the other operators
    to: Any  # and the other methods

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            data = data.data
        if type(data) is not _ndarray:
            data = as_array(data)
        if requires_grad and data.dtype.kind not in "fc":
            raise TypeError(f"requires_grad: only floats and complex numbers have them, got {data.dtype}")
        self.data = data
        self.grad: Any = None
        self.requires_grad = requires_grad
        self._op: Any = None
        self._birth = next(_births)

    shape = property(lambda self: self.data.shape, doc="Sizes of the axes.")
    ndim = property(lambda self: self.data.ndim, doc="Number of axes.")
    size = property(lambda self: self.data.size, doc="Number of entries.")
    dtype = property(lambda self: self.data.dtype, doc="Type of an entry.")
    is_leaf = property(lambda self: self._op is None, doc="True when no primitive made it.")

    def detach(self) -> Tensor:
        """The same values, cut off from the graph."""
        return Tensor(self.data)

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array (copied from the GPU if need be).

        Raises
        ------
        RuntimeError
            For a tensor that requires a gradient: call `detach()` first, lest a gradient be lost unawares.
        """
        if self.requires_grad:
            raise RuntimeError("numpy: this tensor requires a gradient; call .detach().numpy()")
        return self.data if type(self.data) is _ndarray else self.data.get()

    def item(self) -> Any:
        """The only entry, as a Python number."""
        return self.data.item()

    def backward(self, gradient: Operand = None, *, retain_graph: bool = False,
                 create_graph: bool = False) -> None:
        """Add to the `grad` of every leaf the derivative of ``sum(gradient * self)`` with respect to it.

        `gradient` may be left out for a tensor with one entry. The graph is freed on the way unless
        `retain_graph` or `create_graph` is set; with `create_graph` the gradients are Tensors that can be
        differentiated again.
        """
        _sweep([self], [gradient], None, create_graph, retain_graph or create_graph)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = func.__name__
        raise TypeError(f"numpy.{name} would lose the gradient: use minattn.{name} or .detach().numpy()")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "a Tensor is not changed in place: use where(mask, a, b), index_put(x, index, values) "
            "or scatter_add(x, dim, index, src), which return a new Tensor"
        )

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self.data)))

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return self.data.__index__()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __repr__(self) -> str:
        values = np.array2string(self.detach().numpy(), separator=", ", prefix="tensor(", precision=4)
        origin = f", made by {self._op.__name__}" if self._op else ", requires_grad=True" * self.requires_grad
        return f"tensor({values}{origin})"


def as_array(x: Any) -> Array:
    """`x` as an array: CuPy arrays stay on the GPU, Python floats become float32, PyTorch's default."""
    if type(x).__module__.startswith("cupy"):
        return x
    array = np.asarray(x)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"data: expected numbers, got {type(x).__name__} of dtype {array.dtype}")
    if not hasattr(x, "dtype") and array.dtype.char in "dD":
        return array.astype(np.float32 if array.dtype.char == "d" else np.complex64)
    return array


def tensor(data: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A Tensor with a copy of `data`; lists of Python floats become float32, arrays keep their dtype."""
    data = raw(data)
    array = as_array(data) if dtype is None else namespace(data).asarray(data, dtype=dtype)
    return Tensor(array.copy(), requires_grad)


def primitive(forward: Callable, derivative: Callable, name: str | None = None, saves: bool = False,
              real: bool = False) -> Callable:
    """Make a differentiable function out of a forward function on arrays and its derivative.

    Parameters
    ----------
    forward : callable
        ``forward(x, y, /, options)``: arguments before the slash are differentiable, those after it are not.
    derivative : callable
        ``derivative(g, out, x, y, options)`` returns ``gᵀ ∂out/∂argument`` for each differentiable argument:
        a value, or a function of no arguments that computes it, called only if that gradient is wanted. A
        single argument needs no tuple; None stands for zero. Written with operators and our functions, it can
        be differentiated again. Broadcasting need not be undone: the sweep sums over the axes it added.
    name : str, optional
        Name in messages; by default that of `forward` without a leading underscore.
    saves : bool
        If true, `forward` returns ``(out, saved)`` and `derivative` receives the option ``saved=``: what the
        forward pass computed on the way, or None when the derivative is itself being recorded and has to
        recompute it from the arguments.
    real : bool
        If true, complex arguments are refused.

    Returns
    -------
    callable
        Array in, array out; if any argument is a Tensor, Tensor out. Its attribute ``derivative`` is looked
        up when the backward pass runs, so it can be replaced (see `override_derivative`).
    """

    signature = inspect.signature(forward)
    kinds = [p.kind for p in signature.parameters.values()]
    limit = sys.maxsize if Parameter.VAR_POSITIONAL in kinds else kinds.count(Parameter.POSITIONAL_ONLY)
    names = list(signature.parameters)[limit:]
    if limit == 0:
        raise ValueError(f"forward: expected a slash after differentiable arguments, (x, /), got {signature}")

    def apply(*args: Any, **options: Any) -> Any:
        if len(args) > limit:
            if len(args) > limit + len(names):
                raise TypeError(f"{apply.__name__}{signature}: got {len(args)} arguments")
            options = dict(**dict(zip(names, args[limit:], strict=False)), **options)
            args = args[:limit]
        arrays = []
        dtype, mixed, wrap, record, exact = None, False, False, False, True
        for a in args:
            if isinstance(a, Tensor):
                wrap = True
                record = record or a.requires_grad
                a = a.data
            elif type(a) is not _ndarray:
                if type(a) in _NUMBERS:
                    arrays.append(a)
                    continue
                a = as_array(a)
                exact = False
            if a.dtype is not dtype:
                mixed = dtype is not None
                dtype = a.dtype
                if real and dtype.kind == "c":
                    raise TypeError(f"{apply.__name__}: expected real numbers, got {dtype}")
            arrays.append(a)
        if mixed:
            arrays = _agree(apply.__name__, arrays)
            exact = False
        out = forward(*arrays, **options)
        saved = None
        if saves:
            out, saved = out
        if not wrap:
            return out
        result = Tensor(out)
        if record and _mode.recording:
            if not exact:  # the derivative needs constants as the forward pass saw them, in its dtype
                args = tuple(a if isinstance(a, Tensor) and a.requires_grad else b
                             for a, b in zip(args, arrays, strict=True))
            result.requires_grad = True
            result._op, result._args, result._options, result._saved = apply, args, options, saved
        return result

    functools.update_wrapper(apply, forward)
    apply.__name__ = apply.__qualname__ = name or forward.__name__.removeprefix("_")
    apply.__signature__ = signature  # type: ignore[attr-defined]
    apply.derivative = derivative  # type: ignore[attr-defined]
    apply.saves = saves  # type: ignore[attr-defined]
    return apply


def _agree(name: str, arrays: list) -> list:
    """Give operands of unequal dtype one: integers and booleans follow the floats, which must agree."""
    dtypes = {a.dtype for a in arrays if hasattr(a, "dtype")}
    floats = {np.dtype(d.char.lower()) for d in dtypes if d.kind in "fc"}  # complex64: float32
    if len(floats) > 1:
        found = ", ".join(sorted(str(d) for d in dtypes))
        raise TypeError(f"{name}: operands must share one floating dtype, got {found}; see .to(dtype)")
    if not floats:
        return arrays  # integers and booleans only: NumPy's own promotion
    (dtype,) = floats
    return [a.astype(dtype) if hasattr(a, "dtype") and a.dtype.kind in "biu" else a for a in arrays]


@contextmanager
def _recording(on: bool) -> Iterator[None]:
    before, _mode.recording = _mode.recording, on
    try:
        yield
    finally:
        _mode.recording = before


def no_grad() -> Any:
    """Context in which nothing is recorded (also usable as a decorator)."""
    return _recording(False)


def enable_grad() -> Any:
    """Context in which operations are recorded again, inside `no_grad`."""
    return _recording(True)


def is_grad_enabled() -> bool:
    """Whether operations are recorded now: false inside `no_grad`."""
    return _mode.recording


@contextmanager
def override_derivative(op: Callable, rule: Callable) -> Iterator[None]:
    """Within the context, backward passes use `rule` as the derivative of the primitive `op`.

    Such rules are attribution methods; ``rule(g, out, *args, **options)`` is called as any derivative.
    """
    if not hasattr(op, "derivative"):
        raise TypeError(f"op: expected a primitive, got {getattr(op, '__name__', op)!r}")
    before = op.derivative
    op.derivative = rule
    try:
        yield
    finally:
        op.derivative = before


def _ancestors(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Every recorded tensor the outputs depend on, oldest first."""
    seen = {id(t): t for t in outputs}
    stack = list(outputs)
    while stack:
        t = stack.pop()
        if t._op is None:
            continue
        if t._args is None:
            raise RuntimeError(
                f"backward: the graph behind this {t._op.__name__} was freed by an earlier backward pass; "
                "pass retain_graph=True to the first one"
            )
        for a in t._args:
            if isinstance(a, Tensor) and a.requires_grad and id(a) not in seen:
                seen[id(a)] = a
                stack.append(a)
    return sorted(seen.values(), key=_birth_of)


def _made_from(order: list[Tensor], inputs: set[int]) -> set[int]:
    """The tensors of `order` that depend on one of `inputs`."""
    made: set[int] = set()
    for t in order:
        if t._op is not None and any(id(a) in inputs or id(a) in made for a in t._args):
            made.add(id(t))
    return made


def _seed(t: Tensor, gradient: Operand, create_graph: bool) -> Operand:
    """The gradient a sweep starts with: given, or one for a single entry."""
    if not t.requires_grad:
        raise RuntimeError("backward: the output does not require a gradient (nothing it was made from does)")
    if gradient is None:
        if t.size != 1:
            raise RuntimeError(f"gradient: must be given for an output of shape {t.shape}; a scalar's is 1")
        gradient = 1
    elif np.shape(raw(gradient)) != t.shape:
        raise ValueError(f"gradient: expected shape {t.shape}, got {np.shape(raw(gradient))}")
    if create_graph and isinstance(gradient, Tensor):
        return gradient.to(t.dtype)
    gradient = namespace(t.data).asarray(raw(gradient), dtype=t.dtype).reshape(t.shape)
    return Tensor(gradient) if create_graph else gradient


def _pull_back(t: Tensor, g: Operand, create_graph: bool) -> tuple:
    """Ask the primitive that made `t` for the gradients of its arguments."""
    options = {**t._options, "saved": None if create_graph else t._saved} if t._op.saves else t._options
    if create_graph:
        grads = t._op.derivative(g, t, *t._args, **options)
    else:
        arrays = [a.data if isinstance(a, Tensor) else a for a in t._args]
        grads = t._op.derivative(g, t.data, *arrays, **options)
    grads = grads if type(grads) is tuple else (grads,)
    if len(grads) != len(t._args):
        raise ValueError(f"derivative of {t._op.__name__}: expected {len(t._args)} values, got {len(grads)}")
    return grads


def _sweep(outputs: Sequence[Tensor], gradients: Sequence[Operand], inputs: Sequence[Tensor] | None,
           create_graph: bool, retain_graph: bool) -> dict[int, Operand]:
    """Reverse sweep. With `inputs`, return their gradients by id; without, add them to the leaves' `grad`."""
    order = _ancestors(outputs)
    wanted = {id(t) for t in inputs or ()}
    made = None if inputs is None else _made_from(order, wanted)
    reach = None if made is None else made | wanted
    pending: dict[int, Operand] = {}
    found: dict[int, Operand] = {}
    recording, _mode.recording = _mode.recording, create_graph
    try:
        for t, gradient in zip(outputs, gradients, strict=True):
            g = _seed(t, gradient, create_graph)
            pending[id(t)] = pending[id(t)] + g if id(t) in pending else g
        while order:
            t = order.pop()  # popped, so that activations are released as the sweep passes them
            g = pending.pop(id(t), None)
            if g is None:
                continue
            if id(t) in wanted:
                found[id(t)] = g
            if t._op is None:
                if inputs is None:
                    t.grad = g if t.grad is None else t.grad + g
                continue
            if made is not None and id(t) not in made:
                continue
            for a, part in zip(t._args, _pull_back(t, g, create_graph), strict=True):
                if not isinstance(a, Tensor) or not a.requires_grad:
                    continue
                if reach is not None and id(a) not in reach:
                    continue
                if callable(part):
                    part = part()
                if part is None:
                    continue
                if part.shape != a.data.shape or part.dtype is not a.data.dtype:
                    from .reduce import fitted  # which needs this module

                    part = fitted(part, a.data)
                key = id(a)
                pending[key] = pending[key] + part if key in pending else part
            if not retain_graph:
                t._args = t._options = t._saved = None
    finally:
        _mode.recording = recording
    return found


def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *, retain_graph: bool | None = None,
         create_graph: bool = False, allow_unused: bool = False) -> tuple:
    """Gradients of ``sum(grad_outputs * outputs)`` with respect to `inputs`, without touching any `grad`.

    Parameters
    ----------
    outputs, inputs : Tensor or sequence of Tensor
        `inputs` may be any tensors of the graph, not only leaves.
    grad_outputs : array, Tensor or sequence of them, optional
        Cotangents; may be left out for outputs with one entry.
    retain_graph : bool, optional
        Keep the graph for another pass; by default only if `create_graph`.
    create_graph : bool
        Record the backward pass, so that the results can be differentiated again.
    allow_unused : bool
        Give None for an input that the outputs do not depend on, instead of raising.

    Returns
    -------
    tuple of Tensor
        One gradient for each input, in its shape.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for i, t in enumerate(inputs):
        if not isinstance(t, Tensor) or not t.requires_grad:
            raise ValueError(f"inputs[{i}]: expected a Tensor that requires a gradient")
    if not isinstance(grad_outputs, (list, tuple)):
        grad_outputs = [grad_outputs] * (1 if grad_outputs is not None else len(outputs))
    if len(grad_outputs) != len(outputs):
        raise ValueError(f"grad_outputs: expected {len(outputs)}, one per output, got {len(grad_outputs)}")
    retain = create_graph if retain_graph is None else retain_graph
    found = _sweep(outputs, grad_outputs, inputs, create_graph, retain)
    for i, t in enumerate(inputs):
        if id(t) not in found and not allow_unused:
            raise RuntimeError(f"inputs[{i}]: the outputs do not depend on it (allow_unused=True gives None)")
    results = [found.get(id(t)) for t in inputs]
    return tuple(g if g is None or isinstance(g, Tensor) else Tensor(g) for g in results)
