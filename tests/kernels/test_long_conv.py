"""`minattn.kernels.long_conv`: transforms, bands, loops and PyTorch's conv1d compute the same."""

import importlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor, cat, grad, reshape
from minattn.kernels import dispatch, long_conv, short_conv
from minattn.kernels.long_conv import long_conv_reference, naive_causal_conv, smooth_size
from minattn.testing import check_causal, check_grads

module = importlib.import_module("minattn.kernels.long_conv")
SHAPES = [(1, 1, 1, 1), (1, 1, 3, 4), (2, 17, 5, 4), (3, 9, 1, 9), (1, 8, 3, 20), (2, 33, 7, 1)]
convolutions = pytest.mark.parametrize("conv", [long_conv, short_conv], ids=["long", "short"])


@pytest.fixture(params=["compiled", "numpy"])
def form(request, monkeypatch):
    """With Numba and SciPy, and without either."""
    if request.param == "numpy":
        monkeypatch.setattr(dispatch, "have_numba", lambda: False)
        monkeypatch.setattr(module, "launch", None)
        monkeypatch.setitem(sys.modules, "scipy.fft", None)
    else:
        pytest.importorskip("numba")
    return request.param


def inputs(B, N, D, K, dtype=np.float64):
    rng = np.random.default_rng(N + K)
    return [rng.standard_normal(s).astype(dtype) for s in ((B, N, D), (D, K), (B, K - 1, D))]


def outputs_and_gradients(f, args, g):
    ts = [Tensor(a, requires_grad=True) for a in args]
    out = f(*ts)
    return [out.data, *(d.data for d in grad(out, ts, g))]


@convolutions
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestBoth:
    def test_equals_loops(self, form, conv, shape):
        x, w, _ = inputs(*shape)
        np.testing.assert_allclose(conv(x, w), naive_causal_conv(x, w), atol=1e-12)

    def test_equals_torch(self, form, conv, shape):
        torch = pytest.importorskip("torch")
        x, w, _ = inputs(*shape)
        *_, D, K = shape
        g = np.random.default_rng(1).standard_normal(x.shape)
        tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
        padded = torch.nn.functional.pad(tx.mT, (K - 1, 0))
        out = torch.nn.functional.conv1d(padded, tw.flip(1)[:, None], groups=D).mT
        want = out, *torch.autograd.grad(out, (tx, tw), torch.tensor(g))
        for got, t in zip(outputs_and_gradients(conv, (x, w), g), want, strict=True):
            np.testing.assert_allclose(got, t.detach().numpy(), atol=1e-11)

    def test_derivatives_to_second_order(self, form, conv, shape):
        check_grads(conv, *inputs(*shape)[:2])

    def test_single_precision(self, form, conv, shape):
        x, w, _ = inputs(*shape, np.float32)
        got = outputs_and_gradients(conv, (x, w), x)
        want = outputs_and_gradients(conv, (x.astype(float), w.astype(float)), x.astype(float))
        for y, z in zip(got, want, strict=True):
            assert y.dtype == np.float32
            np.testing.assert_allclose(y, z, atol=2e-6 * (1 + np.abs(z).max()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_came_before(form, shape):
    x, w, state = inputs(*shape)
    y, last = short_conv(x, w, state, return_state=True)
    np.testing.assert_allclose(y, naive_causal_conv(x, w, state), atol=1e-12)
    everything = np.concatenate([state, x], 1)
    np.testing.assert_array_equal(last, everything[:, everything.shape[1] - shape[3] + 1 :])

    def flat(*args):
        return cat([reshape(part, part.size) for part in short_conv(*args, return_state=True)])

    check_grads(flat, x, w, state)


@settings(max_examples=25, deadline=None)
@given(N=st.integers(2, 30), K=st.integers(1, 9), data=st.data())
def test_a_sequence_may_be_cut_anywhere(N, K, data):
    cut = data.draw(st.integers(1, N - 1))
    x, w, state = inputs(2, N, 3, K)
    whole, last = short_conv(x, w, state, return_state=True)
    first, between = short_conv(x[:, :cut], w, state, return_state=True)
    rest, end = short_conv(x[:, cut:], w, between, return_state=True)
    np.testing.assert_allclose(np.concatenate([first, rest], 1), whole, atol=1e-12)
    np.testing.assert_array_equal(end, last)
    np.testing.assert_allclose(long_conv(x, w), short_conv(x, w), atol=1e-12)


@convolutions
def test_known_filters(form, conv):
    x = np.random.default_rng(0).standard_normal((2, 6, 3))
    np.testing.assert_allclose(conv(x, np.ones((3, 6))), x.cumsum(1), atol=1e-12)
    delay = conv(x, np.tile([0.0, 0, 1], (3, 1)))
    np.testing.assert_allclose(delay[:, 2:], x[:, :-2], atol=1e-12)
    np.testing.assert_allclose(delay[:, :2], 0, atol=1e-12)


def test_causal(form):
    x, w, state = inputs(1, 7, 3, 4)
    check_causal(lambda x: short_conv(x, w, state), x)
    check_causal(lambda x: long_conv(x, w), x, tol=1e-12)


@convolutions
def test_layouts(form, conv):
    x, w, _ = inputs(2, 9, 4, 3)
    turned = [np.asfortranarray(x), np.asfortranarray(w)]
    for y, z in zip(outputs_and_gradients(conv, turned, turned[0]), outputs_and_gradients(conv, (x, w), x),
                    strict=True):
        np.testing.assert_allclose(y, z, atol=1e-12)


@convolutions
def test_empty(form, conv):
    for shape in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        x = Tensor(np.ones(shape), requires_grad=True)
        out = conv(x, np.ones((shape[2], 2)))
        assert out.shape == shape
        assert grad(out, x, np.ones(shape))[0].shape == shape


def test_sizes_of_transforms():
    assert [smooth_size(n) for n in (1, 2, 7, 11, 13, 127, 4099)] == [1, 2, 8, 12, 15, 128, 4320]
    fft = pytest.importorskip("scipy.fft")
    for n in range(1, 400):
        m = smooth_size(n)
        assert n <= m <= 1.25 * n + 1 and fft.next_fast_len(m, real=True) == m
        assert all(m % p for p in (7, 11, 13))


def test_transforms_are_long_enough(monkeypatch):
    """N + K − 1 places and no fewer, entries of the filter that meet nothing not counted."""
    asked = []
    monkeypatch.setattr(module, "smooth_size", lambda n: asked.append(n) or n)
    x, w, _ = inputs(1, 6, 2, 20)
    np.testing.assert_allclose(long_conv(x, w), naive_causal_conv(x, w), atol=1e-12)
    long_conv(x, w[:, :3])
    assert asked == [11, 8]


@pytest.mark.parametrize("library", ["numpy.fft", "scipy.fft"])
def test_transforms_are_saved(library, monkeypatch):
    """Two forward transforms and one back, then one forward and two back; the reference is left alone."""
    fft = pytest.importorskip(library)
    monkeypatch.setattr(module, "long_conv_reference", None)
    if library == "numpy.fft":
        monkeypatch.setitem(sys.modules, "scipy.fft", None)
    calls = []
    for name in ("rfft", "irfft"):
        f = getattr(fft, name)
        monkeypatch.setattr(fft, name, lambda *a, f=f, name=name, **k: calls.append(name) or f(*a, **k))
    x, w, _ = inputs(2, 6, 2, 3)
    outputs_and_gradients(long_conv, (x, w), x)
    assert sorted(calls) == ["irfft"] * 3 + ["rfft"] * 3


def test_the_reference_by_itself():
    x, w, _ = inputs(2, 9, 3, 4)
    np.testing.assert_allclose(long_conv_reference(x, w), naive_causal_conv(x, w), atol=1e-12)


def test_the_compiled_form_runs_where_it_can(monkeypatch):
    pytest.importorskip("numba")
    launched = []

    def spy(kernel, *args):
        launched.append(kernel.__name__)
        kernel(*args)

    monkeypatch.setattr(module, "launch", spy)
    x, w, _ = inputs(1, 5, 2, 3)
    outputs_and_gradients(short_conv, (x, w), x)
    assert launched == ["banded", "banded_backward"]


def test_one_precision_inside(monkeypatch):
    """No array of another precision reaches a loop, which would be compiled once more for it."""
    pytest.importorskip("numba")
    seen = []
    monkeypatch.setattr(module, "launch", lambda kernel, *args: (seen.extend(args), kernel(*args)))
    x, w, _ = inputs(2, 5, 2, 3, np.float32)
    outputs_and_gradients(short_conv, (x, w), x)
    assert {a.dtype for a in seen if isinstance(a, np.ndarray)} == {np.dtype(np.float32)}
    assert all(a.flags.c_contiguous for a in seen if isinstance(a, np.ndarray))


def test_other_library(other_library):
    x, w, state = inputs(2, 5, 3, 4)
    np.testing.assert_allclose(long_conv(*map(other_library, (x, w)))._values, long_conv(x, w), atol=1e-12)
    got = short_conv(*map(other_library, (x, w, state)))._values
    np.testing.assert_allclose(got, short_conv(x, w, state), atol=1e-12)
    np.testing.assert_allclose(short_conv(*map(other_library, (x, w)))._values, short_conv(x, w), atol=1e-12)


@convolutions
@pytest.mark.parametrize("call, error, message", [
    (lambda f, x, w: f(x[0], w), ValueError, r"x: expected 3 axes \(B, N, D\), got shape \(4, 3\)"),
    (lambda f, x, w: f(x, w[0]), ValueError, r"weight: expected 2 axes \(D, K\), got shape \(2,\)"),
    (lambda f, x, w: f(x, w[1:]), ValueError, r"weight: expected shape \(3, 2\), got \(2, 2\)"),
    (lambda f, x, w: f(x, w[:, :0]), ValueError, r"weight: expected at least one entry.* got shape \(3, 0\)"),
    (lambda f, x, w: f(x.astype(int), w), TypeError, "x: expected floating point numbers, got int64"),
    (lambda f, x, w: f(x, w.astype(int)), TypeError, "weight: expected floating point numbers, got int64"),
    (lambda f, x, w: f(x, w.astype("f")), TypeError, "weight: expected float64.* got float32"),
])
def test_bad_input(conv, call, error, message):
    x, w, _ = inputs(2, 4, 3, 2)
    with pytest.raises(error, match=f"^{message}"):
        call(conv, x, w)


def test_bad_state():
    x, w, state = inputs(2, 4, 3, 2)
    with pytest.raises(ValueError, match=r"^state: expected shape \(2, 1, 3\), got \(2, 0, 3\)"):
        short_conv(x, w, state[:, 1:])
    with pytest.raises(TypeError, match=r"^state: expected float64.* got float32"):
        short_conv(x, w, state.astype(np.float32))
