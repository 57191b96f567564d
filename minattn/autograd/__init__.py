"""Automatic differentiation over NumPy (and CuPy) arrays; names and semantics follow PyTorch's.

One rule: a function given no Tensor computes on plain arrays and returns one.
"""

# ruff: noqa: F401, I001
from . import tensor as _methods  # gives Tensor its operators and methods
from .elementwise import (
    abs, add, astype, clip, cos, div, erf, exp, gelu, log, log1p, maximum, minimum, mul, neg, pow, relu,
    sigmoid, sign, silu, sin, softplus, sqrt, straight_through, sub, tanh, where,
)
from .engine import Tensor, enable_grad, grad, namespace, no_grad, override_derivative, primitive, tensor
from .functional import hessian, hvp, jacobian, jvp, vjp
from .index import embedding, gather, getitem, index_put, one_hot, scatter_add, segment_sum, sort, topk
from .linalg import einsum, inverse, linear, matmul, outer, pinv, solve
from .reduce import (
    amax, amin, argmax, argmin, cumsum, log_softmax, logsumexp, max, mean, min, norm, scan, softmax, std, sum,
    var,
)
from .shape import (
    cat, chunk, expand, flip, pad, permute, repeat_interleave, reshape, roll, split, squeeze, stack,
    transpose, tril, triu, unsqueeze,
)
from .spectral import complex, conj, fft, ifft, imag, irfft, real, rfft

__all__ = [name for name in dir() if not name.startswith("_") and name not in {
    "elementwise", "engine", "functional", "index", "linalg", "reduce", "shape", "spectral"}]
