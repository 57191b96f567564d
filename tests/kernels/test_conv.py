"""`minattn.kernels.conv` against PyTorch and finite differences."""

import numpy as np
import pytest

from minattn import kernels
from minattn.autograd import Tensor, grad
from tests.autograd import case as checks
from tests.kernels.cases import CONV


@checks.each(CONV)
def test_samples(case):
    checks.check_samples(case)


@checks.each(CONV)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each(CONV)
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(CONV)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(CONV)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(CONV)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def test_convolution_by_hand():
    x = np.array([[[1.0, 2, 3, 4]]])
    w = np.array([[[1.0, 10, 100]]])
    np.testing.assert_array_equal(kernels.conv1d(x, w), [[[321, 432]]])
    np.testing.assert_array_equal(kernels.conv1d(x, w, padding="causal"), [[[100, 210, 321, 432]]])
    np.testing.assert_array_equal(kernels.conv1d(x, w, stride=2, padding=1), [[[210, 432]]])
    np.testing.assert_array_equal(kernels.conv1d(x, w[..., :2], dilation=2), [[[31, 42]]])
    np.testing.assert_array_equal(kernels.conv1d(x, w, np.array([1.0])), [[[322, 433]]])


@pytest.mark.parametrize("dilation", [1, 2])
def test_causal_convolution_sees_the_past_alone(dilation):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, 9)), rng.standard_normal((3, 2, 3))
    out = kernels.conv1d(x, w, padding="causal", dilation=dilation)
    changed = x.copy()
    changed[..., 5] += 1
    again = kernels.conv1d(changed, w, padding="causal", dilation=dilation)
    assert out.shape == (1, 3, 9)
    np.testing.assert_array_equal(out[..., :5], again[..., :5])
    assert (
        np.abs(out - again)[..., [5, 5 + dilation, 5 + 2 * dilation][: 2 if dilation == 2 else 3]] > 1e-3
    ).all()


def test_depthwise_convolution_is_one_for_each_channel():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 5, 6)), rng.standard_normal((3, 1, 2, 3))
    out = kernels.conv2d(x, w, groups=3)
    for c in range(3):
        np.testing.assert_allclose(out[:, [c]], kernels.conv2d(x[:, [c]], w[[c]]), atol=1e-12)


def test_asymmetric_strides_paddings_and_dilations():
    x, w = np.random.default_rng(0).standard_normal((1, 1, 9, 10)), np.ones((1, 1, 2, 3))
    out = kernels.conv2d(x, w, stride=(2, 3), padding=(1, 0), dilation=(3, 2))
    padded = np.pad(x[0, 0], ((1, 1), (0, 0)))
    for i, j in np.ndindex(*out.shape[2:]):
        want = sum(padded[2 * i + 3 * a, 3 * j + 2 * b] for a in range(2) for b in range(3))
        np.testing.assert_allclose(out[0, 0, i, j], want)
    assert out.shape == (1, 1, 4, 2)


def test_defaults():
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 5))
    w = np.random.default_rng(1).standard_normal((3, 2, 2, 2))
    plain = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    np.testing.assert_array_equal(kernels.conv2d(x, w), kernels.conv2d(x, w, None, **plain))
    line = np.random.default_rng(2).standard_normal((3, 4, 2))
    np.testing.assert_array_equal(kernels.conv1d(x[0], line), kernels.conv1d(x[0], line, None, **plain))
    np.testing.assert_array_equal(kernels.unfold(x, 2), kernels.unfold(x, 2, stride=1, dilation=1, n=1))
    for pool in (kernels.max_pool2d, kernels.avg_pool2d):
        np.testing.assert_array_equal(pool(x, 2), pool(x, (2, 2), stride=2, padding=0))


def test_equal_entries_of_a_pool_send_the_gradient_to_the_first():
    x = Tensor(np.ones((1, 1, 2, 2)), requires_grad=True)
    (g,) = grad(kernels.max_pool2d(x, 2), x, np.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(g.data, [[[[1, 0], [0, 0]]]])


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x, w: kernels.conv1d(x, w, padding="same"),
            r'padding: expected an integer or "causal", got \'same\'',
        ),
        (
            lambda x, w: kernels.conv1d(x[0], w),
            r"conv1d: expected x and weight with 3 axes, got \(2, 5\) and \(4, 2, 3\)",
        ),
        (lambda x, w: kernels.conv1d(x, w[0]), r"conv1d: expected x and weight with 3 axes"),
        (lambda x, w: kernels.conv2d(x, w), r"conv2d: expected x and weight with 4 axes"),
        (
            lambda x, w: kernels.conv1d(x, w[:, :1]),
            r"weight: expected \(out, in/groups, …\) with in=2, groups=1 .*\(4, 1, 3\)",
        ),
        (
            lambda x, w: kernels.conv1d(x, w[:3, :1], groups=2),
            r"weight: expected .* groups=2 and out divisible by it",
        ),
        (
            lambda x, w: kernels.conv1d(x, w, bias=np.ones(3)),
            r"bias: expected shape \(4,\), one for each output, got \(3,\)",
        ),
        (lambda x, w: kernels.conv1d(x, w, stride=0), "stride: expected 1 integers of at least 1, got .0,"),
        (
            lambda x, w: kernels.conv1d(x, w, padding=-1),
            "padding: expected 1 integers of at least 0, got .-1,",
        ),
        (
            lambda x, w: kernels.conv1d(x, w, dilation=(1, 2)),
            r"dilation: expected 1 integers of at least 1, got \(1, 2\)",
        ),
        (
            lambda x, w: kernels.conv1d(x, w, dilation=3),
            r"kernel: windows of \(3,\), dilation \(3,\), do not fit sizes \(5,\)",
        ),
        (lambda x, w: kernels.unfold(x, 6), r"kernel: windows of \(6,\)"),
        (lambda x, w: kernels.unfold(x, 0), "kernel: expected 1 integers of at least 1, got .0,"),
        (lambda x, w: kernels.unfold(x, 2, n=4), r"n: expected between 1 and 3, the axes of x, got 4"),
        (lambda x, w: kernels.unfold(x, 2, n=0), r"n: expected between 1 and 3, the axes of x, got 0"),
        (
            lambda x, w: kernels.avg_pool2d(x[None], 1, padding=(1, -1)),
            r"padding: expected 2 integers of at least 0, got \(1, -1\)",
        ),
        (
            lambda x, w: kernels.max_pool2d(x[None], 2, padding=2),
            r"padding: expected at most half of the kernel \(2, 2\), got \(2, 2\)",
        ),
        (
            lambda x, w: kernels.max_pool2d(x[None], (1, 2, 3)),
            r"kernel: expected 2 integers of at least 1, got \(1, 2, 3\)",
        ),
        (lambda x, w: kernels.max_pool2d(x, 2), r"x: expected \(B, C, H, W\), got shape \(1, 2, 5\)"),
        (lambda x, w: kernels.avg_pool2d(x, 2), r"x: expected \(B, C, H, W\), got shape \(1, 2, 5\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((1, 2, 5)), np.ones((4, 2, 3)))


@pytest.mark.parametrize("name", ["stride", "dilation", "padding", "kernel"])
def test_every_function_names_the_size_that_is_wrong(name):
    image, weight = np.ones((1, 2, 5, 5)), np.ones((4, 2, 3, 3))
    functions = {
        "conv1d": lambda **o: kernels.conv1d(image[0], weight[0], **o),
        "conv2d": lambda **o: kernels.conv2d(image, weight, **o),
        "unfold": lambda **o: kernels.unfold(image, **{"kernel": 2, **o}),
        "max_pool2d": lambda **o: kernels.max_pool2d(image, **{"kernel": 2, **o}),
        "avg_pool2d": lambda **o: kernels.avg_pool2d(image, **{"kernel": 2, **o}),
    }
    lacking = {
        "stride": [],
        "dilation": ["max_pool2d", "avg_pool2d"],
        "padding": ["unfold"],
        "kernel": ["conv1d", "conv2d"],
    }
    for function in set(functions) - set(lacking[name]):
        with pytest.raises(ValueError, match=f"^{name}: expected [12] integers of at least [01], got"):
            functions[function](**{name: -1})
