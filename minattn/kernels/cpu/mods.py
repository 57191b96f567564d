"""Score functions inside compiled tiles.

`tile_function` compiles ``score_mod(score, b, h, i, j)``, written for single numbers, into a loop over a
tile, with the function's body inside the loop. The attention kernels know it by its address, so they need not
be compiled again for it. The derivative by the score comes from a step along the imaginary axis, which has no
rounding: f(s + iε) = f(s) + iε f'(s) + O(ε²), and ε² vanishes beside 1.
"""

import operator
import threading
import types as python_types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core.errors import NumbaError
from numba.extending import intrinsic, overload

import minattn.autograd as mn
from minattn.kernels.mods import like

from .exp import exp

_WIDTHS = {np.dtype(np.float32): (types.float32, types.complex64, 1e-20),
           np.dtype(np.float64): (types.float64, types.complex128, 1e-100)}


@intrinsic
def _call(typingctx, address, s, slope, n, w, m, b, h, i0, j0):
    """Call the compiled function at `address`."""
    def generate(context, builder, signature, args):
        kinds = [context.get_value_type(t) for t in signature.args[1:]]
        function = ir.FunctionType(ir.VoidType(), kinds).as_pointer()
        builder.call(builder.inttoptr(args[0], function), args[1:])
        return context.get_dummy_value()

    whole = types.intp
    return types.void(whole, types.voidptr, types.voidptr, *[whole] * 7), generate


@njit(error_model="numpy")
def change_tile(address, s, slope, m, b, h, i0, j0):
    """s ← score_mod(s), and the derivative to `slope` if that is another array; nothing if `address` is 0.

    Keys by queries, of which the first m count.
    """
    if address != 0:
        _call(address, s.ctypes, slope.ctypes, s.shape[0], s.shape[1], m, b, h, i0, j0)


def _narrowed(mod, dtype):
    """The function with its captured arrays and all its floats in the precision of the scores."""
    def narrow(x):
        if isinstance(x, np.ndarray) and x.dtype.kind == "f":
            return x.astype(dtype)
        return dtype.type(x) if isinstance(x, float) else x

    cells = tuple(python_types.CellType(narrow(c.cell_contents)) for c in mod.__closure__ or ())
    code = mod.__code__.replace(co_consts=tuple(map(narrow, mod.__code__.co_consts)))
    return python_types.FunctionType(code, mod.__globals__, mod.__name__, mod.__defaults__, cells)


def _compile(mod, dtype, gradient):
    real, complex_, step = _WIDTHS[dtype]
    f = njit(error_model="numpy", fastmath={"contract"})(_narrowed(mod, dtype))
    pointer, whole = types.CPointer(real), types.intp
    tiny, back = dtype.type(step), dtype.type(1 / step)

    def values(at_s, at_slope, n, w, m, b, h, i0, j0):
        s = carray(at_s, (n, w))
        for c in range(n):
            for r in range(m):
                s[c, r] = f(s[c, r], b, h, i0 + r, j0 + c)

    def slopes(at_s, at_slope, n, w, m, b, h, i0, j0):
        s, slope = carray(at_s, (n, w)), carray(at_slope, (n, w))
        for c in range(n):
            for r in range(m):
                moved = complex_(f(complex_(complex(s[c, r], tiny)), b, h, i0 + r, j0 + c))
                s[c, r], slope[c, r] = moved.real, moved.imag * back

    body = slopes if gradient else values
    compiled = cfunc(types.void(pointer, pointer, *[whole] * 7), error_model="numpy")(body)
    return None if gradient and _loses_step(f) else compiled


def _loses_step(f):
    """Whether something in f takes the score without its imaginary part (abs), or mixes the two (powers)."""
    def loses(expression, call, kinds):
        operation, made = getattr(expression, "op", None), call.return_type
        if operation in ("binop", "inplace_binop") and expression.fn in (operator.pow, operator.ipow):
            made = None
        if operation == "call" and getattr(kinds[expression.func.name], "typing_key", None) is like:
            return False
        return not isinstance(made, types.Complex) and any(isinstance(x, types.Complex) for x in call.args)

    return any(loses(expression, call, form.type_annotation.typemap) for form in f.overloads.values()
               for expression, call in form.type_annotation.calltypes.items() if call is not None)


# --- functions of minattn inside a score function: of a number, and of one with a step to its side --------

def _beside(x, value, slope):
    """f(x + iε) to first order, for the derivative by a step along the imaginary axis."""


@overload(_beside, inline="always")
def _beside_of(x, value, slope):
    if isinstance(x, types.Complex):
        return lambda x, value, slope: complex(value, x.imag * slope)
    return lambda x, value, slope: value


def _real(x):
    """The number itself, or what it is a step away from."""


@overload(_real, inline="always")
def _real_of(x):
    if isinstance(x, types.Complex):
        return lambda x: x.real
    return lambda x: x


def _one_like(x):
    """1 in the precision of x: a whole number would turn float32 into float64."""
    return {types.float32: np.float32, types.complex64: np.float32}.get(x, np.float64)(1)


@overload(mn.exp)
def _exp_of(x):
    def f(x):
        y = exp(_real(x))
        return _beside(x, y, y)
    return f


@overload(mn.tanh)
def _tanh_of(x):
    one = _one_like(x)
    two = one + one

    def f(x):
        y = one - two / (one + exp(two * _real(x)))
        return _beside(x, y, one - y * y)
    return f


@overload(mn.sigmoid)
def _sigmoid_of(x):
    one = _one_like(x)

    def f(x):
        y = one / (one + exp(-_real(x)))
        return _beside(x, y, y * (one - y))
    return f


@overload(mn.relu)
def _relu_of(x):
    return lambda x: x if _real(x) > 0 else x * 0


@overload(mn.where)
def _where_of(condition, x, y):
    return lambda condition, x, y: x if condition else y


@overload(like)
def _like_of(x, score):
    return lambda x, score: x


KEPT, LARGEST = 64, 10_000
"""Compiled functions that are kept; entries of an array that a function may capture, which is compiled in."""

_MODULES = ("math", "numpy", "minattn")
_kept: dict[tuple, Any] = {}
_one_at_a_time = threading.Lock()


def tile_function(mod: Callable, dtype: np.dtype, gradient: bool = False) -> Any:
    """The compiled loop, whose `.address` the kernels take, or None if Numba cannot compile `mod`.

    Functions with the same code that refer to equal numbers and arrays are compiled once.
    """
    captured = _captured(mod)
    if captured is None:
        return None
    key = (mod.__code__, captured, dtype, gradient)
    with _one_at_a_time:
        if key not in _kept:
            while len(_kept) >= KEPT:
                _kept.pop(next(iter(_kept)))
            try:
                _kept[key] = _compile(mod, dtype, gradient)
            except NumbaError:
                _kept[key] = None
        return _kept[key]


def _captured(mod: Callable) -> tuple | None:
    """What a function refers to, by value; None if that is more than numbers, small arrays of them, and
    functions and modules that do not change."""
    if not isinstance(mod, python_types.FunctionType):
        return None
    names = {name for code in _codes(mod.__code__) for name in code.co_names}
    found: list[Any] = []
    for x in [c.cell_contents for c in mod.__closure__ or ()] + list(mod.__defaults__ or ()) + [
            mod.__globals__[name] for name in sorted(names & mod.__globals__.keys())]:
        if isinstance(x, np.ndarray) and x.size <= LARGEST and x.dtype.kind in "biuf":
            found.append((x.shape, x.dtype.str, x.tobytes()))
        elif isinstance(x, (bool, int, float, np.number)):
            found.append((type(x), x))
        elif isinstance(x, (python_types.FunctionType, python_types.BuiltinFunctionType, np.ufunc)) or (
                isinstance(x, python_types.ModuleType) and x.__name__.split(".")[0] in _MODULES):
            found.append(x)
        else:
            return None
    return tuple(found)


def _codes(code: python_types.CodeType) -> Iterator[python_types.CodeType]:
    """The code of a function and of those inside it."""
    yield code
    for x in code.co_consts:
        if isinstance(x, python_types.CodeType):
            yield from _codes(x)
