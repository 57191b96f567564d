"""`minattn.kernels.scan` against loops, PyTorch's gradients of the recurrence, and itself cut in two."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor, cat, grad, reshape
from minattn.kernels import dispatch, linear_scan, selective_scan
from minattn.kernels.scan import apart, naive_linear_scan, naive_selective_scan, side_by_side
from minattn.testing import check_causal, check_grads

scan = importlib.import_module("minattn.kernels.scan")
SHAPES = [(1, 1, 1), (1, 7, 3), (3, 2, 1), (2, 70, 5), (1, 33, 67)]


@pytest.fixture(params=["compiled", "numpy"])
def form(request, monkeypatch):
    """Both forms."""
    if request.param == "numpy":
        monkeypatch.setattr(dispatch, "have_numba", lambda: False)
        monkeypatch.setattr(scan, "launch", None)
    else:
        pytest.importorskip("numba")
    return request.param


def linear_inputs(B, N, D, dtype=np.float64):
    """Decays a with zeros, ones and a sign among them; x; a state."""
    rng = np.random.default_rng(N + D)
    a = rng.uniform(-0.2, 1.2, (B, N, D)).clip(-0.1, 1)
    return [z.astype(dtype) for z in (a, rng.standard_normal((B, N, D)), rng.standard_normal((B, D)))]


def selective_inputs(B, N, D, S=3, dtype=np.float64):
    rng = np.random.default_rng(N + D)
    dt, A = rng.uniform(0, 1, (B, N, D)), -rng.uniform(0, 2, (D, S))
    dt[:, ::5] = 0
    others = (rng.standard_normal(s) for s in ((B, N, S), (B, N, S), (D,), (B, D, S)))
    return [z.astype(dtype) for z in (rng.standard_normal((B, N, D)), dt, A, *others)]


def all_of(f):
    """f's outputs as one flat tensor."""
    def flat(*args):
        return cat([reshape(part, part.size) for part in f(*args)])
    return flat


def outputs_and_gradients(f, args, g):
    ts = [Tensor(a, requires_grad=True) for a in args]
    out = f(*ts)
    return [out.data, *(d.data for d in grad(out, ts, g))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestLinearScan:
    def test_equals_loops(self, form, shape):
        a, x, state = linear_inputs(*shape)
        np.testing.assert_allclose(linear_scan(a, x, state), naive_linear_scan(a, x, state), atol=1e-12)
        np.testing.assert_allclose(linear_scan(a, x), naive_linear_scan(a, x), atol=1e-12)

    def test_gradients_equal_torch(self, form, shape):
        torch = pytest.importorskip("torch")
        args = linear_inputs(*shape)
        g = np.random.default_rng(1).standard_normal(shape)
        a, x, h = (torch.tensor(z, requires_grad=True) for z in args)
        leaves, out = (a, x, h), []
        for t in range(shape[1]):
            h = a[:, t] * h + x[:, t]
            out.append(h)
        want = torch.autograd.grad(torch.stack(out, 1), leaves, torch.tensor(g))
        for got, w in zip(outputs_and_gradients(linear_scan, args, g)[1:], want, strict=True):
            np.testing.assert_allclose(got, w.numpy(), atol=1e-11)

    def test_derivatives_to_second_order(self, form, shape):
        check_grads(linear_scan, *linear_inputs(*shape))

    def test_single_precision(self, form, shape):
        args = linear_inputs(*shape, np.float32)
        g = np.random.default_rng(1).standard_normal(shape)
        got = outputs_and_gradients(linear_scan, args, g.astype(np.float32))
        want = outputs_and_gradients(linear_scan, [a.astype(np.float64) for a in args], g)
        for y, z in zip(got, want, strict=True):
            assert y.dtype == np.float32
            np.testing.assert_allclose(y, z, rtol=1e-4, atol=1e-4)


def test_complex_decays():
    rng = np.random.default_rng(0)
    shapes = (2, 6, 3), (2, 6, 3), (2, 3)
    a, x, state = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in shapes)
    a /= np.abs(a)
    h, want = linear_scan(a, x, state), state
    for t in range(6):
        want = a[:, t] * want + x[:, t]
        np.testing.assert_allclose(h[:, t], want, atol=1e-12)
    check_grads(linear_scan, a, x, state)


def test_decays_broadcast(form):
    a, x, state = linear_inputs(2, 5, 3)
    for one in ((2, 1, 3), (1, 5, 1), (1, 1, 1)):
        some = a[tuple(slice(n) for n in one)]
        np.testing.assert_allclose(linear_scan(some, x, state),
                                   naive_linear_scan(np.broadcast_to(some, x.shape), x, state), atol=1e-12)
        check_grads(lambda a, x=x: linear_scan(a, x), some, order=1)


def test_known_scans(form):
    x = np.random.default_rng(0).standard_normal((2, 9, 3))
    np.testing.assert_allclose(linear_scan(np.ones_like(x), x), x.cumsum(1), atol=1e-12)
    np.testing.assert_array_equal(linear_scan(np.zeros_like(x), x, np.ones((2, 3))), x)


def test_views_are_read_in_their_order(form):
    a, x, state = linear_inputs(3, 8, 5)
    turned = [np.ascontiguousarray(z.swapaxes(0, 1)).swapaxes(0, 1) for z in (a, x, state)]
    assert not turned[0].flags.c_contiguous
    g = np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    for got, want in zip(outputs_and_gradients(linear_scan, turned, g),
                         outputs_and_gradients(linear_scan, (a, x, state), x), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(N=st.integers(2, 80), data=st.data())
def test_a_sequence_may_be_cut_anywhere(N, data):
    cut = data.draw(st.integers(1, N - 1))
    a, x, state = linear_inputs(2, N, 3)
    whole, first = linear_scan(a, x, state), linear_scan(a[:, :cut], x[:, :cut], state)
    rest = linear_scan(a[:, cut:], x[:, cut:], first[:, -1])
    np.testing.assert_array_equal(np.concatenate([first, rest], 1), whole)
    *args, skip, state = selective_inputs(2, N, 3)

    def part(span, state):
        x, dt, A, B, C = args
        return selective_scan(x[:, span], dt[:, span], A, B[:, span], C[:, span], skip, state,
                              return_state=True)

    y, last = part(slice(None), state)
    y1, between = part(slice(cut), state)
    y2, end = part(slice(cut, None), between)
    np.testing.assert_allclose(np.concatenate([y1, y2], 1), y, atol=1e-12)
    np.testing.assert_allclose(end, last, atol=1e-12)


def test_gradients_flow_through_a_cut(form):
    *args, skip, state = selective_inputs(2, 9, 3)

    def in_two(x, dt, A, B, C, skip, state):
        y1, h = selective_scan(x[:, :4], dt[:, :4], A, B[:, :4], C[:, :4], skip, state, return_state=True)
        y2, h = selective_scan(x[:, 4:], dt[:, 4:], A, B[:, 4:], C[:, 4:], skip, h, return_state=True)
        return cat([y1, y2], 1), h

    def whole(*args):
        return selective_scan(*args, return_state=True)

    args = (*args, skip, state)
    g = np.random.default_rng(2).standard_normal(all_of(whole)(*args).size)
    for got, want in zip(outputs_and_gradients(all_of(in_two), args, g),
                         outputs_and_gradients(all_of(whole), args, g), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestSelectiveScan:
    def test_equals_loops(self, form, shape):
        *args, skip, state = selective_inputs(*shape)
        for more in ((skip, state), (None, state), (skip, None), ()):
            got = selective_scan(*args, *more, return_state=True)
            for y, z in zip(got, naive_selective_scan(*args, *more), strict=True):
                np.testing.assert_allclose(y, z, atol=1e-12)

    def test_gradients_equal_torch(self, form, shape):
        torch = pytest.importorskip("torch")
        args = selective_inputs(*shape)
        leaves = [torch.tensor(z, requires_grad=True) for z in args]
        x, dt, A, B, C, skip, h = leaves
        out = []
        for t in range(shape[1]):
            h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
            out.append((h * C[:, t, None]).sum(-1) + skip * x[:, t])
        flat = torch.cat([torch.stack(out, 1).reshape(-1), h.reshape(-1)])
        g = np.random.default_rng(1).standard_normal(flat.numel())
        want = torch.autograd.grad(flat, leaves, torch.tensor(g))
        got = outputs_and_gradients(all_of(lambda *a: selective_scan(*a, return_state=True)), args, g)
        np.testing.assert_allclose(got[0], flat.detach().numpy(), atol=1e-11)
        for y, w in zip(got[1:], want, strict=True):
            np.testing.assert_allclose(y, w.numpy(), rtol=1e-9, atol=1e-9)

    def test_single_precision(self, form, shape):
        args = selective_inputs(*shape, dtype=np.float32)
        g = np.random.default_rng(1).standard_normal(shape)
        got = outputs_and_gradients(selective_scan, args, g.astype(np.float32))
        want = outputs_and_gradients(selective_scan, [a.astype(np.float64) for a in args], g)
        for y, z in zip(got, want, strict=True):
            assert y.dtype == np.float32
            np.testing.assert_allclose(y, z, rtol=1e-4, atol=2e-5 * (1 + np.abs(z).max()))


def test_selective_scan_to_second_order(form):
    check_grads(all_of(lambda *a: selective_scan(*a, return_state=True)), *selective_inputs(2, 5, 3))


def test_some_arguments_are_constants(form):
    x, dt, A, B, C, *_ = selective_inputs(2, 5, 3)
    check_grads(lambda x, A: selective_scan(x, dt, A, Tensor(B), C), x, A)
    a, x, state = linear_inputs(2, 5, 3)
    check_grads(lambda x: linear_scan(a, x, Tensor(state)), x)


def test_the_last_state_alone(form):
    """C, which only y depends on, has no gradient then; not even in derivatives of derivatives."""
    x, dt, A, B, C, *_ = selective_inputs(2, 5, 3)
    check_grads(lambda x, dt: selective_scan(x, dt, A, B, Tensor(C), return_state=True)[1], x, dt)


def test_defaults_have_the_precision_of_x(form):
    a, x, _ = linear_inputs(2, 5, 3, np.float32)
    assert linear_scan(a, x).dtype == np.float32
    args = selective_inputs(2, 5, 3, dtype=np.float32)[:5]
    assert [z.dtype for z in selective_scan(*args, return_state=True)] == [np.float32] * 2


def test_one_tensor_in_several_places(form):
    x, _, A, *_, state = selective_inputs(2, 4, 3, S=3)
    check_grads(lambda x, A, h: selective_scan(x, x * x, A, x, x, None, h), x, A, state)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_features_divide_into_parts(threads, monkeypatch):
    """As many parts as threads, more than features, and not a divisor of their number."""
    pytest.importorskip("numba")
    cpu = importlib.import_module("minattn.kernels.cpu.scan")
    args, g = selective_inputs(2, 40, 3), np.random.default_rng(0).standard_normal((2, 40, 3))
    monkeypatch.setattr(cpu, "parts", lambda: threads)

    def found():
        return [*outputs_and_gradients(selective_scan, args, g),
                *outputs_and_gradients(linear_scan, linear_inputs(2, 40, 3), g)]

    got = found()
    monkeypatch.setattr(dispatch, "have_numba", lambda: False)
    for y, z in zip(got, found(), strict=True):
        np.testing.assert_allclose(y, z, atol=1e-11)


def test_the_compiled_form_runs_where_it_can(monkeypatch):
    pytest.importorskip("numba")
    launched = []

    def spy(kernel, *args):
        launched.append(kernel.__name__)
        kernel(*args)

    monkeypatch.setattr(scan, "launch", spy)
    outputs_and_gradients(linear_scan, linear_inputs(1, 3, 2), np.ones((1, 3, 2)))
    outputs_and_gradients(selective_scan, selective_inputs(1, 3, 2), np.ones((1, 3, 2)))
    assert launched == ["linear_scan", "linear_scan_backward", "selective_scan", "selective_scan_backward"]
    monkeypatch.setattr(dispatch, "_interpreted", lambda: True)
    monkeypatch.setattr(dispatch, "PATIENCE", 100)
    args = selective_inputs(2, 6, 3, S=3)
    selective_scan(*args)
    assert len(launched) == 4  # each array would do, the product of all sizes is too much for Python
    selective_scan(*(a[..., :1] for a in args[:2]), args[2][:1], *args[3:5])
    assert launched[4:] == ["selective_scan"]


def test_one_precision_inside(monkeypatch):
    """No array of another precision reaches a loop, which would be compiled once more for it."""
    pytest.importorskip("numba")
    seen = []
    monkeypatch.setattr(scan, "launch", lambda kernel, *args: (seen.extend(args), kernel(*args)))
    outputs_and_gradients(linear_scan, linear_inputs(1, 3, 2, np.float32), np.ones((1, 3, 2), np.float32))
    args = selective_inputs(1, 3, 2, 3, np.float32)
    outputs_and_gradients(selective_scan, args, args[0])
    assert {a.dtype for a in seen if isinstance(a, np.ndarray)} == {np.dtype(np.float32)}
    assert all(a.flags.c_contiguous for a in seen if isinstance(a, np.ndarray))


def test_causal(form):
    a, x, state = linear_inputs(2, 6, 3)
    a = np.abs(a) + 0.1
    check_causal(lambda x: linear_scan(a, x, state), x)
    x, dt, A, *rest = selective_inputs(2, 6, 3)
    check_causal(lambda x: selective_scan(x, dt + 0.1, A, *rest), x)


def test_no_positions(form):
    state = np.ones((2, 3, 4))
    y, last = selective_scan(*(np.ones((2, 0, n)) for n in (3, 3)), np.ones((3, 4)),
                             *(np.ones((2, 0, 4)) for _ in range(2)), None, state, return_state=True)
    assert y.shape == (2, 0, 3)
    np.testing.assert_array_equal(last, state)
    x = Tensor(np.ones((2, 0, 3)), requires_grad=True)
    h = Tensor(np.ones((2, 3)), requires_grad=True)
    out = linear_scan(np.ones((2, 0, 3)), x, h)
    assert out.shape == (2, 0, 3)
    dx, dh = grad(out, [x, h], np.ones((2, 0, 3)))
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dh.data, np.zeros((2, 3)))


def test_other_library(other_library):
    """The NumPy form does without NumPy's own arrays; values as from NumPy's."""
    for f, args in ((linear_scan, linear_inputs(2, 5, 3)), (selective_scan, selective_inputs(2, 5, 3))):
        np.testing.assert_allclose(f(*map(other_library, args))._values, f(*args), atol=1e-12)
        few = args[:2] if f is linear_scan else args[:5]  # and no state
        ts = [Tensor(other_library(z), requires_grad=True) for z in few]
        out = f(*ts)
        np.testing.assert_allclose(out.data._values, f(*few), atol=1e-12)
        for got, want in zip(grad(out, ts, other_library(args[0])),
                             outputs_and_gradients(f, few, args[0])[1:], strict=True):
            np.testing.assert_allclose(got.data._values, want, atol=1e-11)


def test_side_by_side():
    flat, (a, b) = side_by_side(np.float32, (2, 3), (4,))
    a[:], b[:] = 1, 2
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat, [1] * 6 + [2] * 4)
    for part, view in zip(apart(flat, (2, 3), (4,)), (a, b), strict=True):
        np.testing.assert_array_equal(part, view)


@pytest.mark.parametrize("call, error, message", [
    (lambda a, x, h: linear_scan(a, x[0], h), ValueError, r"x: expected 3 axes \(B, N, D\), got .*\(4, 3\)"),
    (lambda a, x, h: linear_scan(a[0], x, h), ValueError, r"a: expected 3 axes"),
    (lambda a, x, h: linear_scan(a[:, :2], x, h), ValueError, r"a: expected .*broadcasts to \(2, 4, 3\)"),
    (lambda a, x, h: linear_scan(a, x, h[:1]), ValueError, r"state: expected shape \(2, 3\), got \(1, 3\)"),
    (lambda a, x, h: linear_scan(a.astype("f"), x, h), TypeError, "a: expected float64.* got float32"),
    (lambda a, x, h: linear_scan(a, x, h.astype("f")), TypeError, "state: expected float64.* got float32"),
    (lambda a, x, h: linear_scan(a, x.astype(int)), TypeError, "x: expected floating.* got int64"),
    (lambda a, x, h: linear_scan(a.astype(int), x), TypeError, "a: expected floating.* got int64"),
])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call(*linear_inputs(2, 4, 3))


@pytest.mark.parametrize("place, name, shape", [
    (1, "dt", r"\(2, 4, 5\)"), (2, "A", "2 axes"), (3, "B", r"\(2, 4, 3\)"), (4, "C", r"\(2, 4, 3\)"),
    (5, "skip", r"\(5,\)"), (6, "state", r"\(2, 5, 3\)"),
])
def test_bad_input_of_selective_scan(place, name, shape):
    args = selective_inputs(2, 4, 5)
    args[place] = args[place][1:] if place != 2 else args[2][0]
    with pytest.raises(ValueError, match=f"^{name}: expected .*{shape}"):
        selective_scan(*args)


def test_one_precision():
    args = selective_inputs(2, 4, 5)
    for place in range(1, 7):
        mixed = [a.astype(np.float32) if i == place else a for i, a in enumerate(args)]
        with pytest.raises(TypeError, match=r"expected float64.* got float32"):
            selective_scan(*mixed)
    with pytest.raises(TypeError, match=r"^x: expected floating point numbers, got complex128"):
        selective_scan(args[0] + 0j, *args[1:])
    with pytest.raises(ValueError, match=r"^x: expected 3 axes"):
        selective_scan(args[0][0], *args[1:])
    with pytest.raises(ValueError, match=r"^A: expected shape \(5, 3\), got \(4, 3\)"):
        selective_scan(*args[:2], args[2][1:], *args[3:])
