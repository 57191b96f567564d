"""`minattn.kernels.linear_attention` against loops, PyTorch's gradients of the recurrence, and itself cut in
two."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor, cat, grad, reshape
from minattn.kernels import delta_rule, dispatch, linear_attention
from minattn.kernels.linear_attention import naive_delta_rule, naive_linear_attention, products_of_decays
from minattn.testing import check_causal, check_grads

module = importlib.import_module("minattn.kernels.linear_attention")
SHAPES = [(1, 1, 1, 1, 1), (1, 1, 9, 5, 3), (2, 3, 13, 4, 1), (1, 2, 32, 1, 4), (2, 1, 19, 3, 6)]
CHUNKS = [1, 3, 8, 64]


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(module, "SMALL", 0)


@pytest.fixture(params=["compiled", "numpy"])
def form(request, monkeypatch):
    """Both forms."""
    if request.param == "numpy":
        monkeypatch.setattr(dispatch, "have_numba", lambda: False)
        monkeypatch.setattr(module, "launch", None)
    else:
        pytest.importorskip("numba")
    return request.param


def inputs(B, H, N, D, Dv, dtype=np.float64):
    """q, k of length 1, v, β and α with zeros and ones among them, a state."""
    rng = np.random.default_rng(N + D)
    q, k = rng.standard_normal((2, B, H, N, D))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta, decay = rng.uniform(-0.3, 1.3, (2, B, H, N)).clip(0, 1)
    v, state = rng.standard_normal((B, H, N, Dv)), rng.standard_normal((B, H, D, Dv))
    return [z.astype(dtype) for z in (q, k, v, beta, decay, state)]


def linear(q, k, v, beta, decay, state, **options):
    """With the arguments of `delta_rule`, of which β plays no part."""
    return linear_attention(q, k, v, decay, state, **options)


def naive_linear(q, k, v, beta, decay, state):
    return naive_linear_attention(q, k, v, decay, state)


PAIRS = [(linear, naive_linear), (delta_rule, naive_delta_rule)]
both = pytest.mark.parametrize("fast, naive", PAIRS, ids=["linear", "delta"])


def all_of(f, **options):
    """Output and last state as one flat tensor."""
    def flat(*args):
        return cat([reshape(part, part.size) for part in f(*args, return_state=True, **options)])
    return flat


def outputs_and_gradients(f, args, g):
    ts = [Tensor(a, requires_grad=True) for a in args]
    out = f(*ts)
    found = grad(out, ts, g, allow_unused=True)
    return [out.data, *(None if d is None else d.data for d in found)]


def torch_recurrence(torch, fast, args):
    """Output and state, flat, by the recurrence over positions, and the leaves."""
    leaves = [torch.tensor(z, requires_grad=True) for z in args]
    q, k, v, beta, decay, S = leaves
    out = []
    for t in range(q.shape[2]):
        u, S = v[:, :, t], decay[:, :, t, None, None] * S
        if fast is delta_rule:
            u = beta[:, :, t, None] * (u - torch.einsum("bhd,bhde->bhe", k[:, :, t], S))
        S = S + k[:, :, t, :, None] * u[:, :, None]
        out.append(torch.einsum("bhd,bhde->bhe", q[:, :, t], S))
    return torch.cat([torch.stack(out, 2).reshape(-1), S.reshape(-1)]), leaves


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestBoth:
    @pytest.mark.parametrize("chunk", CHUNKS)
    def test_equals_loops(self, form, fast, naive, shape, chunk):
        args = inputs(*shape)
        for y, z in zip(fast(*args, chunk=chunk, return_state=True), naive(*args), strict=True):
            np.testing.assert_allclose(y, z, atol=1e-11)

    @pytest.mark.parametrize("chunk", CHUNKS)
    def test_gradients_equal_torch(self, form, fast, naive, shape, chunk):
        torch = pytest.importorskip("torch")
        args = inputs(*shape)
        flat, leaves = torch_recurrence(torch, fast, args)
        g = np.random.default_rng(1).standard_normal(flat.numel())
        want = torch.autograd.grad(flat, leaves, torch.tensor(g), allow_unused=True)
        got = outputs_and_gradients(all_of(fast, chunk=chunk), args, g)
        np.testing.assert_allclose(got[0], flat.detach().numpy(), atol=1e-11)
        for i, (y, w) in enumerate(zip(got[1:], want, strict=True)):
            assert (y is None) == (w is None) == (i == 3 and fast is linear)
            if w is not None:
                np.testing.assert_allclose(y, w.numpy(), rtol=1e-9, atol=1e-10)

    def test_single_precision(self, form, fast, naive, shape):
        args = inputs(*shape, np.float32)
        g = np.random.default_rng(1).standard_normal(naive(*args)[0].shape)
        got = outputs_and_gradients(lambda *a: fast(*a, chunk=8), args, g.astype(np.float32))
        want = outputs_and_gradients(lambda *a: fast(*a, chunk=8), [a.astype(float) for a in args], g)
        for y, z in zip(got, want, strict=True):
            if z is not None:
                assert y.dtype == np.float32
                np.testing.assert_allclose(y, z, rtol=1e-4, atol=3e-6 * (1 + np.abs(z).max()))


@both
def test_without_decay_or_state(form, fast, naive):
    q, k, v, beta, decay, state = inputs(2, 2, 7, 3, 4)
    for with_decay, with_state in ((None, state), (decay, None), (None, None)):
        args = q, k, v, beta, with_decay, with_state
        for y, z in zip(fast(*args, chunk=3, return_state=True), naive(*args), strict=True):
            np.testing.assert_allclose(y, z, atol=1e-12)
    single = [z.astype(np.float32) for z in (q, k, v, beta)]
    assert [z.dtype for z in fast(*single, None, None, return_state=True)] == [np.float32] * 2


@both
def test_derivatives_to_second_order(form, fast, naive):
    args = inputs(1, 2, 5, 3, 2)
    check_grads(all_of(lambda q, k, v, a, s, **o: fast(q, k, v, args[3], a, s, **o), chunk=2),
                *args[:3], *args[4:])
    if fast is delta_rule:
        check_grads(lambda b: fast(*args[:3], b, *args[4:], chunk=3), args[3])


@both
def test_one_tensor_in_three_places(form, fast, naive):
    x, *_, decay, _ = inputs(1, 2, 6, 3, 3)
    x, beta = x / 3, np.full((1, 2, 6), 0.5)
    check_grads(lambda x: fast(x, x, x, beta, decay, None, chunk=4), x)


@both
@settings(max_examples=25, deadline=None)
@given(N=st.integers(2, 40), chunk=st.integers(1, 9), data=st.data())
def test_a_sequence_may_be_cut_anywhere(fast, naive, N, chunk, data):
    cut = data.draw(st.integers(1, N - 1))
    *args, state = inputs(2, 1, N, 3, 2)
    whole, last = fast(*args, state, chunk=chunk, return_state=True)
    first, between = fast(*(a[:, :, :cut] for a in args), state, chunk=chunk, return_state=True)
    rest, end = fast(*(a[:, :, cut:] for a in args), between, chunk=chunk, return_state=True)
    np.testing.assert_allclose(np.concatenate([first, rest], 2), whole, atol=1e-11)
    np.testing.assert_allclose(end, last, atol=1e-11)


@both
def test_gradients_flow_through_a_cut(form, fast, naive):
    args = inputs(2, 2, 11, 3, 4)

    def in_two(*args, **options):
        *args, state = args
        y1, S = fast(*(a[:, :, :5] for a in args), state, chunk=3, return_state=True)
        y2, S = fast(*(a[:, :, 5:] for a in args), S, chunk=4, return_state=True)
        return cat([y1, y2], 2), S

    g = np.random.default_rng(2).standard_normal(all_of(fast)(*args).size)
    for y, z in zip(outputs_and_gradients(all_of(in_two), args, g),
                    outputs_and_gradients(all_of(fast), args, g), strict=True):
        assert y is z is None or np.abs(y - z).max() < 1e-11


def test_linear_attention_is_masked_attention_without_softmax(form):
    q, k, v, *_ = inputs(2, 2, 21, 5, 3)
    want = np.tril(q @ k.swapaxes(-1, -2)) @ v
    np.testing.assert_allclose(linear_attention(q, k, v, chunk=4), want, atol=1e-11)


def test_delta_rule_overwrites(form):
    """With |k| = β = 1 a key finds the last value written for it, though other keys wrote between."""
    rng = np.random.default_rng(0)
    keys, v = rng.standard_normal((3, 8)), rng.standard_normal((1, 1, 12, 4))
    k = (keys / np.linalg.norm(keys, axis=-1, keepdims=True))[np.arange(12) % 3][None, None]
    out = delta_rule(k, k, v, np.ones((1, 1, 12)), chunk=5)
    np.testing.assert_allclose(out, v, atol=1e-12)
    assert np.abs(linear_attention(k, k, v) - v).max() > 1


def test_delta_rule_with_orthonormal_keys_is_linear_attention(form):
    rng = np.random.default_rng(0)
    k = np.linalg.qr(rng.standard_normal((2, 3, 7, 7)))[0]
    q, v = rng.standard_normal((2, 2, 3, 7, 7))
    np.testing.assert_allclose(delta_rule(q, k, v, np.ones((2, 3, 7)), chunk=4), linear_attention(q, k, v),
                               atol=1e-12)


@both
def test_nothing_survives_a_decay_of_zero(form, fast, naive):
    q, k, v, beta, decay, state = inputs(1, 2, 10, 3, 4)
    decay[:, :, 6] = 0
    before = [z.copy() for z in (q, k, v, beta, decay)]
    for z in before[:4]:
        z[:, :, :6] += 1
    for chunk in (4, 10):
        got = fast(*before, state * 0, chunk=chunk)[:, :, 6:]
        np.testing.assert_allclose(got, fast(q, k, v, beta, decay, state, chunk=chunk)[:, :, 6:], atol=1e-12)


@both
def test_small_decays_over_a_long_chunk(form, fast, naive):
    """Their product underflows; nothing is divided by it, so nothing breaks."""
    q, k, v, beta, decay, state = inputs(1, 1, 64, 4, 4, np.float32)
    decay[:] = 1e-3
    args = (q, k, v, beta, decay, state)
    got = outputs_and_gradients(lambda *a: fast(*a, chunk=64), args, v)
    assert all(np.isfinite(z).all() for z in got if z is not None)
    np.testing.assert_allclose(got[0], naive(*args)[0], rtol=1e-4, atol=1e-5)


def test_products_of_decays(form):
    a = np.random.default_rng(0).uniform(0, 1, (2, 3, 5))
    c, L = products_of_decays(a)
    np.testing.assert_allclose(c[..., 0], a.cumprod(-1), atol=1e-14)
    for i, j in np.ndindex(5, 5):
        want = a[..., j + 1 : i + 1].prod(-1) if j <= i else 0
        np.testing.assert_allclose(L[..., i, j], want, atol=1e-14)


@both
def test_causal(form, fast, naive):
    q, k, v, beta, decay, state = inputs(1, 2, 7, 3, 4)
    beta, decay = beta + 0.1, decay + 0.1
    for place in (2, 1):
        args = [q, k, v, beta, decay, state]

        def f(x, args=args, place=place):
            return fast(*args[:place], x, *args[place + 1 :], chunk=3)

        check_causal(f, args[place], dim=2, tol=1e-14)  # LAPACK's solution of the whole system rounds


@both
def test_layouts(form, fast, naive):
    """Heads cut from (B, N, H, D) without a copy give what contiguous heads do."""
    args = inputs(2, 3, 9, 4, 4)
    turned = [np.ascontiguousarray(z.swapaxes(1, 2)).swapaxes(1, 2) for z in args]
    assert not turned[0].flags.c_contiguous
    g = turned[2]
    for y, z in zip(outputs_and_gradients(lambda *a: fast(*a, chunk=4), turned, g),
                    outputs_and_gradients(lambda *a: fast(*a, chunk=4), args, np.array(g, order="C")),
                    strict=True):
        assert y is z is None or np.abs(y - z).max() < 1e-12


def test_the_compiled_form_runs_where_it_can(monkeypatch):
    pytest.importorskip("numba")
    launched = []
    monkeypatch.setattr(module, "launch", lambda run, kernel, *args: launched.append((kernel, args)))
    x, ones = np.ones((1, 1, 100, 2)), np.ones((1, 1, 100))
    linear_attention(x, x, x)
    delta_rule(x, x, x, ones, chunk=7)
    assert len(launched) == 2
    assert [args[-2] for _, args in launched] == [64, 7]  # chunks
    assert linear_attention(x[:, :, :0], x[:, :, :0], x[:, :, :0]).shape == (1, 1, 0, 2)
    linear_attention(x[..., :0], x[..., :0], x)
    linear_attention(x, x, x[..., :0])
    monkeypatch.setattr(module, "SMALL", 400)
    linear_attention(x, x, x)
    assert len(launched) == 2
    monkeypatch.setattr(module, "SMALL", 399)
    linear_attention(x, x, x)
    assert len(launched) == 3
    monkeypatch.setattr(module, "have_blas", lambda: False)
    linear_attention(x, x, x)
    assert len(launched) == 3


def test_one_precision_inside(monkeypatch):
    """No array of another precision reaches a loop, which would be compiled once more for it."""
    pytest.importorskip("numba")
    seen = []

    def spy(run, *args):
        assert run.__name__ == "run"  # which holds BLAS to one thread
        seen.extend(args)
        run(*args)

    monkeypatch.setattr(module, "launch", spy)
    args = inputs(1, 2, 5, 3, 4, np.float32)
    outputs_and_gradients(delta_rule, args, args[2])
    outputs_and_gradients(linear, args, args[2])
    assert {a.dtype for a in seen if isinstance(a, np.ndarray)} == {np.dtype(np.float32)}
    assert all(a.flags.c_contiguous for a in seen if isinstance(a, np.ndarray))


@both
def test_no_positions(form, fast, naive):
    *args, state = inputs(1, 2, 4, 3, 5)
    out, last = fast(*(a[:, :, :0] for a in args), state, return_state=True)
    assert out.shape == (1, 2, 0, 5)
    np.testing.assert_array_equal(last, state)


@both
def test_other_library(other_library, fast, naive):
    args = inputs(1, 2, 5, 3, 4)
    if fast is linear:
        got = linear_attention(*map(other_library, [*args[:3], *args[4:]]), chunk=2)
        np.testing.assert_allclose(got._values, fast(*args), atol=1e-12)
        got = linear_attention(*map(other_library, args[:3]))
        np.testing.assert_allclose(got._values, linear_attention(*args[:3]), atol=1e-12)


@pytest.mark.parametrize("place, name, shape", [
    (1, "k", r"\(2, 3, 4, 5\)"), (2, "v", r"\(2, 3, 4, 6\)"), (3, "beta", r"\(2, 3, 4\)"),
    (4, "decay", r"\(2, 3, 4\)"), (5, "state", r"\(2, 3, 5, 6\)"),
])
def test_bad_input(place, name, shape):
    args = inputs(2, 3, 4, 5, 6)
    wrong = [a[:1] if i == place else a for i, a in enumerate(args)]
    with pytest.raises(ValueError, match=f"^{name}: expected shape {shape}, got"):
        delta_rule(*wrong)
    mixed = [a.astype(np.float32) if i == place else a for i, a in enumerate(args)]
    with pytest.raises(TypeError, match=f"^{name}: expected float64, .* got float32"):
        delta_rule(*mixed)
    if place != 3:
        with pytest.raises(ValueError, match=f"^{name}: expected shape {shape}, got"):
            linear(*wrong)


def test_more_bad_input():
    q, k, v, beta, *_ = inputs(2, 3, 4, 5, 6)
    for f in (lambda q, v=v, **o: delta_rule(q, k, v, beta, **o),
              lambda q, v=v, **o: linear_attention(q, k, v, **o)):
        with pytest.raises(ValueError, match=r"^q: expected 4 axes \(B, H, N, D\), got shape \(3, 4, 5\)"):
            f(q[0])
        with pytest.raises(TypeError, match=r"^q: expected floating point numbers, got int64"):
            f(q.astype(int))
        with pytest.raises(ValueError, match=r"^v: expected 4 axes \(B, H, N, Dv\), got shape \(3, 4, 6\)"):
            f(q, v[0])
        with pytest.raises(TypeError, match=r"^v: expected floating point numbers, got int64"):
            f(q, v.astype(int))
        for chunk in (0, -1, 2.0, True):
            with pytest.raises(ValueError, match=f"^chunk: expected a positive integer, got {chunk}"):
                f(q, chunk=chunk)
