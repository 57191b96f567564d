"""The table of kernels beside PyTorch's; see `tests/autograd/cases.py`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minattn import kernels
from tests.autograd.case import Case, torch
from tests.autograd.inputs import Rng, Sample, distinct, laid_out, normal, shapes, unary

ELSEWHERE = {"BlockMask": "test_blocks", "dropout": "test_dropout", "embedding": "test_embedding",
             "gated_linear_attention": "test_gated_linear_attention", "topk": "test_topk",
             "flash_attention": "test_flash",
             "Packed": "test_packed",
             "delta_rule": "test_linear_attention", "linear_attention": "test_linear_attention",
             "linear_scan": "test_scan", "long_conv": "test_long_conv", "pack": "test_packed",
             "packed_linear": "test_packed", "selective_scan": "test_scan", "short_conv": "test_long_conv"}


def paired(rng: Rng) -> Iterator[Sample]:
    """Two arrays of one shape."""
    for shape in shapes(rng):
        yield (laid_out(rng, normal(rng, shape)), laid_out(rng, normal(rng, shape))), {}


def F() -> object:
    return torch.nn.functional


# ---- conv.py ----
def convolutions(n: int, bias: bool):
    """Images with n axes and weights that fit them: groups, strides, dilations, paddings, an empty batch."""

    def samples(rng: Rng) -> Iterator[Sample]:
        for k in range(24):
            groups, stride, dilation = (
                int(rng.integers(1, 3)),
                int(rng.integers(1, 3)),
                int(rng.integers(1, 3)),
            )
            B, C, O = k % 3, groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))
            kernel = tuple(int(v) for v in rng.integers(1, 4, n))
            padding = int(rng.integers(0, 3))
            if n == 1 and k % 4 == 0:
                padding = "causal"
            sizes = tuple((w - 1) * dilation + int(rng.integers(1, 4)) for w in kernel)
            x = normal(rng, (B, C, *sizes))
            weight = normal(rng, (O, C // groups, *kernel))
            options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            arrays = (x, weight, normal(rng, (O,))) if bias else (x, weight)
            yield tuple(laid_out(rng, a) for a in arrays), options

    return samples


def conv(f):
    def theirs(x, weight, bias=None, *, stride, padding, dilation, groups):
        if padding == "causal":
            x, padding = F().pad(x, ((weight.shape[2] - 1) * dilation, 0)), 0
        return f()(x, weight, bias, stride, padding, dilation, groups)

    return theirs


def windowed(n: int):
    def samples(rng: Rng) -> Iterator[Sample]:
        for shape in shapes(rng, 0, 2):
            kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, 3, n)) for _ in range(3))
            sizes = [(k - 1) * d + int(rng.integers(1, 4)) for k, d in zip(kernel, dilation, strict=True)]
            options = {"kernel": kernel, "stride": stride, "dilation": dilation, "n": n}
            yield (laid_out(rng, normal(rng, (*shape, *sizes))),), options

    return samples


def unfolded(x, kernel, stride, dilation, n):
    """Entry o of window m stands at m · stride + o · dilation."""
    sizes = x.shape[x.ndim - n :]
    places = []
    for k, s, d, size in zip(kernel, stride, dilation, sizes, strict=True):
        m = torch.arange(0, size - (k - 1) * d, s)
        places.append(torch.arange(k)[:, None] * d + m)  # (k, m)
    if n == 1:
        return x[..., places[0]]
    return x[..., places[0][:, None, :, None], places[1][None, :, None, :]]


def pooled(values):
    def samples(rng: Rng) -> Iterator[Sample]:
        for k in range(24):
            kernel = tuple(int(v) for v in rng.integers(1, 4, 2)) if k % 2 else int(rng.integers(1, 4))
            sizes = [int(v) for v in np.broadcast_to(kernel, 2) + rng.integers(0, 4, 2)]
            options = {"kernel": kernel, "padding": int(rng.integers(0, np.min(kernel) // 2 + 1))}
            if k % 3:
                options["stride"] = int(rng.integers(1, 4))
            yield (laid_out(rng, values(rng, (k % 4, 1 + k % 2, *sizes))),), options

    return samples


# ---- cross_entropy.py ----
def labelled(rng: Rng) -> Iterator[Sample]:
    for k, shape in enumerate(shapes(rng, 0, 3, count=27)):
        C = int(rng.integers(1, 5))
        reduction = ["mean", "sum", "none"][k % 3]
        target = rng.integers(0, C, shape)
        if k % 2 and target.size > 1:
            target.flat[0] = [-100, 1][k % 4 // 2]
        if not np.any(target != [-100, 1][k % 4 // 2]) and reduction == "mean":
            reduction = "sum"
        yield (
            (laid_out(rng, normal(rng, (*shape, C))),),
            {
                "target": target.clip(None, C - 1),
                "ignore_index": [-100, 1][k % 4 // 2],
                "label_smoothing": [0.0, 0.3][k % 2],
                "reduction": reduction,
            },
        )


def entropy(logits, target, ignore_index, label_smoothing, reduction):
    out = F().cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        target.reshape(-1),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return out.reshape(target.shape) if reduction == "none" else out


# ---- norms.py ----
def normed(parameters: int):
    def samples(rng: Rng) -> Iterator[Sample]:
        for shape in shapes(rng, 1):
            if shape[-1]:
                arrays = [normal(rng, shape), *(normal(rng, shape[-1:]) for _ in range(parameters))]
                yield tuple(laid_out(rng, a) for a in arrays), {"eps": float(rng.choice([1e-5, 0.1]))}

    return samples


def layer_norm(x, weight=None, bias=None, eps=1e-5):
    return F().layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x, weight=None, eps=1e-6):
    return F().rms_norm(x, x.shape[-1:], weight, eps)


CONV = [
    Case("conv1d", kernels.conv1d, conv(lambda: F().conv1d), convolutions(1, True)),
    Case("conv1d without-bias", kernels.conv1d, conv(lambda: F().conv1d), convolutions(1, False)),
    Case("conv2d", kernels.conv2d, conv(lambda: F().conv2d), convolutions(2, True)),
    Case("conv2d without-bias", kernels.conv2d, conv(lambda: F().conv2d), convolutions(2, False)),
    Case("unfold", kernels.unfold, unfolded, windowed(1)),
    Case("unfold images", kernels.unfold, unfolded, windowed(2)),
    Case(
        "max_pool2d",
        kernels.max_pool2d,
        lambda x, kernel, stride=None, padding=0: (
            F().max_pool2d(x, kernel, stride, padding)
            if x.numel()
            else F().avg_pool2d(x, kernel, stride, padding)
        ),
        pooled(distinct),
    ),
    Case(
        "avg_pool2d",
        kernels.avg_pool2d,
        lambda x, kernel, stride=None, padding=0: F().avg_pool2d(x, kernel, stride, padding),
        pooled(normal),
    ),
]
CROSS_ENTROPY = [Case("cross_entropy", kernels.cross_entropy, entropy, labelled)]
GELU = [
    Case("gelu", kernels.gelu, lambda x: F().gelu(x), unary()),
    Case("gelu tanh", lambda x: kernels.gelu(x, "tanh"), lambda x: F().gelu(x, approximate="tanh"), unary()),
]
NORMS = [
    Case("layer_norm", kernels.layer_norm, layer_norm, normed(2)),
    Case("layer_norm weight", kernels.layer_norm, layer_norm, normed(1)),
    Case("layer_norm plain", kernels.layer_norm, layer_norm, normed(0)),
    Case("rms_norm", kernels.rms_norm, rms_norm, normed(1)),
    Case("rms_norm plain", kernels.rms_norm, rms_norm, normed(0)),
]
SWIGLU = [Case("swiglu", kernels.swiglu, lambda gate, up: F().silu(gate) * up, paired)]
SILU = [Case("silu", kernels.silu, lambda x: F().silu(x), unary())]
CASES = [*CONV, *CROSS_ENTROPY, *GELU, *NORMS, *SILU, *SWIGLU]
