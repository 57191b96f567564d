"""Convolution and pooling, from one pair of primitives.

`windows` lays every window of an image beside the others and `overlap_add` puts windows back where they came
from, adding where they overlap. Each is the other's derivative; the rest is a product, a maximum or a mean.
"""

from __future__ import annotations

import math
from itertools import product as every

from minattn.autograd import matmul, mean, namespace, pad, primitive, reshape
from minattn.autograd import max as max_along
from minattn.autograd.engine import Array, Operand

Sizes = tuple[int, ...]


def _out_sizes(sizes: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Sizes:
    return tuple(
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)
    )


def _slices(offset: Sizes, out: Sizes, stride: Sizes, dilation: Sizes) -> tuple:
    """Where the entry `offset` of every window lies in the image."""
    starts = [o * d for o, d in zip(offset, dilation, strict=True)]
    return (..., *(slice(a, a + (m - 1) * s + 1, s) for a, m, s in zip(starts, out, stride, strict=True)))


def _windows(x: Array, /, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Array:
    n = len(kernel)
    out = _out_sizes(x.shape[-n:], kernel, stride, dilation)
    cols = namespace(x).empty(x.shape[:-n] + kernel + out, dtype=x.dtype)
    lead = (slice(None),) * (x.ndim - n)
    for offset in every(*map(range, kernel)):
        cols[(*lead, *offset)] = x[_slices(offset, out, stride, dilation)]
    return cols

def _d_windows(g, out, x, kernel, stride, dilation):
    return overlap_add(g, sizes=x.shape[-len(kernel) :], kernel=kernel, stride=stride, dilation=dilation)


def _overlap_add(cols: Array, /, sizes: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Array:
    n = len(kernel)
    out = cols.shape[-n:]
    x = namespace(cols).zeros(cols.shape[: -2 * n] + tuple(sizes), dtype=cols.dtype)
    lead = (slice(None),) * (cols.ndim - 2 * n)
    for offset in every(*map(range, kernel)):
        x[_slices(offset, out, stride, dilation)] += cols[(*lead, *offset)]
    return x

def _d_overlap_add(g, out, cols, sizes, kernel, stride, dilation):
    return windows(g, kernel=kernel, stride=stride, dilation=dilation)


def _sizes(name: str, value: int | Sizes, n: int, least: int = 1) -> Sizes:
    value = (value,) * n if isinstance(value, int) else tuple(value)
    if len(value) != n or any(v < least for v in value):
        raise ValueError(f"{name}: expected {n} integers of at least {least}, got {value}")
    return value


def unfold(x: Operand, kernel: int | Sizes, stride: int | Sizes = 1, dilation: int | Sizes = 1,
           n: int = 1) -> Operand:
    """All windows of the last n axes: (…, L₁ … Lₙ) → (…, k₁ … kₙ, m₁ … mₙ), m counting the windows.

    Raises
    ------
    ValueError
        If a window is larger than the image.
    """
    if not 1 <= n <= x.ndim:
        raise ValueError(f"n: expected between 1 and {x.ndim}, the axes of x, got {n}")
    kernel = _sizes("kernel", kernel, n)
    stride, dilation = _sizes("stride", stride, n), _sizes("dilation", dilation, n)
    if min(_out_sizes(x.shape[-n:], kernel, stride, dilation)) < 1:
        raise ValueError(f"kernel: windows of {kernel}, dilation {dilation}, do not fit sizes {x.shape[-n:]}")
    return windows(x, kernel=kernel, stride=stride, dilation=dilation)


def _conv(x: Operand, weight: Operand, bias: Operand | None, stride: Sizes, dilation: Sizes,
          groups: int) -> Operand:
    n = weight.ndim - 2
    B, C = x.shape[:2]
    O, Cg = weight.shape[:2]
    if C != Cg * groups or O % groups:
        raise ValueError(
            f"weight: expected (out, in/groups, …) with in={C}, groups={groups} and out divisible by it, "
            f"got {weight.shape}"
        )
    if bias is not None and bias.shape != (O,):
        raise ValueError(f"bias: expected shape {(O,)}, one for each output, got {bias.shape}")
    cols = unfold(x, weight.shape[2:], stride, dilation, n)  # (B, C, k…, m…)
    out_sizes = cols.shape[-n:]
    patch = Cg * math.prod(weight.shape[2:])
    cols = reshape(cols, (B, groups, patch, math.prod(out_sizes)))
    out = matmul(reshape(weight, (groups, O // groups, patch)), cols)  # (B, groups, O/groups, m)
    out = reshape(out, (B, O, *out_sizes))
    return out if bias is None else out + reshape(bias, (O,) + (1,) * n)


def conv1d(x: Operand, weight: Operand, bias: Operand | None = None, stride: int = 1, padding: int | str = 0,
           dilation: int = 1, groups: int = 1) -> Operand:
    """Cross-correlation of x (B, C, L) with weight (O, C/groups, K); ``groups=C`` is depthwise.

    ``padding="causal"`` puts all (K − 1)·dilation zeros before the start: output t sees inputs ≤ t alone.
    """
    _check_image(x, weight, 1)
    if padding == "causal":
        x = pad(x, ((0, 0), (0, 0), ((weight.shape[2] - 1) * dilation, 0)))
    elif isinstance(padding, str):
        raise ValueError(f'padding: expected an integer or "causal", got {padding!r}')
    else:
        x = _pad_image(x, _sizes("padding", padding, 1, least=0))
    return _conv(x, weight, bias, _sizes("stride", stride, 1), _sizes("dilation", dilation, 1), groups)


def conv2d(x: Operand, weight: Operand, bias: Operand | None = None, stride: int | Sizes = 1,
           padding: int | Sizes = 0, dilation: int | Sizes = 1, groups: int = 1) -> Operand:
    """Cross-correlation of x (B, C, H, W) with weight (O, C/groups, Kₕ, K_w); ``groups=C`` is depthwise."""
    _check_image(x, weight, 2)
    x = _pad_image(x, _sizes("padding", padding, 2, least=0))
    return _conv(x, weight, bias, _sizes("stride", stride, 2), _sizes("dilation", dilation, 2), groups)


def _check_image(x: Operand, weight: Operand, n: int) -> None:
    if x.ndim != n + 2 or weight.ndim != n + 2:
        found = f"{x.shape} and {weight.shape}"
        raise ValueError(f"conv{n}d: expected x and weight with {n + 2} axes, got {found}")


def _pad_image(x: Operand, padding: Sizes, value: float = 0.0) -> Operand:
    return pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)), value) if any(padding) else x


def _pool_windows(x: Operand, kernel: Sizes, stride: int | Sizes | None, padding: Sizes,
                  value: float) -> Operand:
    if x.ndim != 4:
        raise ValueError(f"x: expected (B, C, H, W), got shape {x.shape}")
    return unfold(_pad_image(x, padding, value), kernel, kernel if stride is None else stride, 1, 2)


def max_pool2d(x: Operand, kernel: int | Sizes, stride: int | Sizes | None = None,
               padding: int | Sizes = 0) -> Operand:
    """Largest entry of every window of x (B, C, H, W); the gradient goes to the first of equals.

    Padding is at most half a window, so that every window holds an entry of x.
    """
    kernel, padding = _sizes("kernel", kernel, 2), _sizes("padding", padding, 2, least=0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding: expected at most half of the kernel {kernel}, got {padding}")
    cols = _pool_windows(x, kernel, stride, padding, -math.inf)
    flat = reshape(cols, (*cols.shape[:2], math.prod(kernel), *cols.shape[4:]))
    return max_along(flat, 2).values


def avg_pool2d(x: Operand, kernel: int | Sizes, stride: int | Sizes | None = None,
               padding: int | Sizes = 0) -> Operand:
    """Mean of every window of x (B, C, H, W), zeros of the padding counted."""
    kernel, padding = _sizes("kernel", kernel, 2), _sizes("padding", padding, 2, least=0)
    return mean(_pool_windows(x, kernel, stride, padding, 0.0), (2, 3))


windows = primitive(_windows, _d_windows, "unfold")
overlap_add = primitive(_overlap_add, _d_overlap_add)
