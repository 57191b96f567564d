"""`minattn.kernels.gated_linear_attention` against loops, PyTorch's gradients of the recurrence, and itself
cut in two."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.autograd import Tensor, cat, expand, grad, reshape, unsqueeze
from minattn.kernels import dispatch, gated_linear_attention, linear_attention
from minattn.kernels.gated_linear_attention import naive_gated_linear_attention
from minattn.testing import check_causal, check_grads

module = importlib.import_module("minattn.kernels.gated_linear_attention")
SHAPES = [(1, 1, 1, 1, 1), (1, 1, 9, 5, 3), (2, 3, 35, 4, 1), (1, 2, 32, 1, 4), (2, 1, 17, 3, 6)]


@pytest.fixture(params=["compiled", "numpy"])
def form(request, monkeypatch):
    """Both forms, whatever the size."""
    monkeypatch.setattr(module, "SMALL", 0)
    if request.param == "numpy":
        monkeypatch.setattr(dispatch, "have_numba", lambda: False)
        monkeypatch.setattr(module, "launch", None)
    else:
        pytest.importorskip("numba")
    return request.param


def inputs(B, H, N, D, Dv, dtype=np.float64):
    """q, k, v, decays with zeros and ones among them, a state."""
    rng = np.random.default_rng(N + D)
    q, k = rng.standard_normal((2, B, H, N, D))
    decay = rng.uniform(-0.3, 1.3, (B, H, N, D)).clip(0, 1)
    v, state = rng.standard_normal((B, H, N, Dv)), rng.standard_normal((B, H, D, Dv))
    return [z.astype(dtype) for z in (q, k, v, decay, state)]


def flat(*args):
    """Output and last state as one flat tensor."""
    return cat([reshape(part, part.size) for part in gated_linear_attention(*args, return_state=True)])


def outputs_and_gradients(f, args, g):
    ts = [Tensor(a, requires_grad=True) for a in args]
    out = f(*ts)
    return [out.data, *(d.data for d in grad(out, ts, g))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestShapes:
    def test_equals_loops(self, form, shape):
        args = inputs(*shape)
        got = gated_linear_attention(*args, return_state=True)
        for y, z in zip(got, naive_gated_linear_attention(*args), strict=True):
            np.testing.assert_allclose(y, z, atol=1e-11)

    def test_gradients_equal_torch(self, form, shape):
        torch = pytest.importorskip("torch")
        args = inputs(*shape)
        leaves = [torch.tensor(z, requires_grad=True) for z in args]
        q, k, v, decay, S = leaves
        out = []
        for t in range(shape[2]):
            S = decay[:, :, t, :, None] * S + k[:, :, t, :, None] * v[:, :, t, None]
            out.append(torch.einsum("bhd,bhde->bhe", q[:, :, t], S))
        want = torch.cat([torch.stack(out, 2).reshape(-1), S.reshape(-1)])
        g = np.random.default_rng(1).standard_normal(want.numel())
        got = outputs_and_gradients(flat, args, g)
        np.testing.assert_allclose(got[0], want.detach().numpy(), atol=1e-11)
        for y, w in zip(got[1:], torch.autograd.grad(want, leaves, torch.tensor(g)), strict=True):
            np.testing.assert_allclose(y, w.numpy(), rtol=1e-9, atol=1e-10)

    def test_single_precision(self, form, shape):
        args = inputs(*shape, np.float32)
        g = np.random.default_rng(1).standard_normal(args[2].shape)
        got = outputs_and_gradients(gated_linear_attention, args, g.astype(np.float32))
        want = outputs_and_gradients(gated_linear_attention, [a.astype(float) for a in args], g)
        for y, z in zip(got, want, strict=True):
            assert y.dtype == np.float32
            np.testing.assert_allclose(y, z, rtol=1e-4, atol=3e-6 * (1 + np.abs(z).max()))


def test_derivatives_to_second_order(form):
    check_grads(flat, *inputs(1, 2, 4, 2, 3), order=2)
    args = inputs(1, 1, 19, 2, 1)
    check_grads(lambda *a: gated_linear_attention(*a), *args)


def test_recorded_gradients_are_the_compiled_ones():
    args = inputs(2, 1, 37, 3, 4)
    ts = [Tensor(a, requires_grad=True) for a in args]
    g = np.random.default_rng(1).standard_normal(flat(*args).shape)
    want = grad(module._flat_reference(*ts), ts, g)
    recorded = grad(module.gated(*ts), ts, g, create_graph=True)
    compiled = grad(module.gated(*ts), ts, g)
    for w, r, c in zip(want, recorded, compiled, strict=True):
        np.testing.assert_allclose(r.data, w.data, atol=1e-11)
        np.testing.assert_allclose(c.data, w.data, atol=1e-11)


def test_one_tensor_in_three_places(form):
    q, _, _, decay, state = inputs(1, 2, 6, 3, 3)
    x = Tensor(q, requires_grad=True)
    apart = [Tensor(q, requires_grad=True) for _ in range(3)]
    g = np.random.default_rng(2).standard_normal(q.shape)
    one = grad(gated_linear_attention(x, x, x, decay, state), x, g)[0].data
    three = grad(gated_linear_attention(*apart, decay, state), apart, g)
    np.testing.assert_allclose(one, sum(t.data for t in three), atol=1e-11)


def test_state_is_optional(form):
    q, k, v, decay, state = inputs(2, 1, 18, 3, 4)
    out = gated_linear_attention(q, k, v, decay)
    np.testing.assert_array_equal(out, gated_linear_attention(q, k, v, decay, state * 0))
    np.testing.assert_allclose(out, naive_gated_linear_attention(q, k, v, decay)[0], atol=1e-11)


def test_one_decay_for_all_features_is_linear_attention(form):
    q, k, v, decay, state = inputs(2, 2, 33, 3, 4)
    args = [Tensor(z, requires_grad=True) for z in (q, k, v, decay[..., 0], state)]

    def by_feature(q, k, v, decay, state):
        return gated_linear_attention(q, k, v, expand(unsqueeze(decay, -1), q.shape), state)

    g = np.random.default_rng(0).standard_normal(v.shape)
    mine, known = by_feature(*args), linear_attention(*args)
    np.testing.assert_allclose(mine.data, known.data, atol=1e-11)
    for y, z in zip(grad(mine, args, g), grad(known, args, g), strict=True):
        np.testing.assert_allclose(y.data, z.data, atol=1e-10)


def test_features_do_not_meet(form):
    """With a decay of 0 in one feature and 1 in the other, one reads the last value and one their sum."""
    N = 40
    q = k = np.ones((1, 1, N, 2))
    v = np.random.default_rng(0).standard_normal((1, 1, N, 3))
    decay = np.broadcast_to([0.0, 1.0], q.shape)
    np.testing.assert_allclose(gated_linear_attention(q, k, v, decay), v + v.cumsum(2), atol=1e-12)


@pytest.mark.parametrize("strength", [1e-30, 0.0, 1e-3])
def test_strong_decays(form, strength):
    """Products of decays underflow within a chunk; nothing is divided by them."""
    q, k, v, decay, state = inputs(1, 2, 70, 3, 4, np.float32)
    decay = np.where(decay < 0.7, np.float32(strength), decay)
    got = outputs_and_gradients(gated_linear_attention, (q, k, v, decay, state), np.ones(v.shape, np.float32))
    wide = [z.astype(float) for z in (q, k, v, decay, state)]
    np.testing.assert_allclose(got[0], naive_gated_linear_attention(*wide)[0], rtol=1e-4, atol=2e-5)
    assert all(np.isfinite(z).all() for z in got)


@settings(max_examples=25, deadline=None)
@given(N=st.integers(0, 50), data=st.data())
def test_a_sequence_may_be_cut_anywhere(N, data):
    cut = data.draw(st.integers(0, N))
    q, k, v, decay, state = inputs(1, 2, N, 3, 2)
    want, last = gated_linear_attention(q, k, v, decay, state, return_state=True)
    before, after = ([z[:, :, part] for z in (q, k, v, decay)] for part in (slice(cut), slice(cut, None)))
    first, middle = gated_linear_attention(*before, state, return_state=True)
    second, end = gated_linear_attention(*after, middle, return_state=True)
    np.testing.assert_allclose(np.concatenate([first, second], 2), want, atol=1e-11)
    np.testing.assert_allclose(end, last, atol=1e-11)


def test_causal(form):
    q, k, v, decay, state = inputs(1, 2, 20, 3, 4)
    args = [q, k, v, decay + 0.1, state]
    for place in (1, 2):

        def f(x, place=place):
            return gated_linear_attention(*args[:place], x, *args[place + 1 :])

        check_causal(f, args[place], dim=2, tol=1e-14)


def test_layouts(form):
    args = inputs(2, 3, 18, 4, 5)
    g = np.random.default_rng(3).standard_normal(args[2].shape)
    turned = [np.asfortranarray(z) for z in args]
    for y, z in zip(outputs_and_gradients(gated_linear_attention, turned, np.asfortranarray(g)),
                    outputs_and_gradients(gated_linear_attention, args, g), strict=True):
        np.testing.assert_allclose(y, z, atol=1e-12)
    np.testing.assert_array_equal(turned[4], args[4])  # the state given is not written to


def test_no_positions(form):
    q, k, v, decay, state = inputs(2, 1, 0, 3, 4)
    out, last = gated_linear_attention(q, k, v, decay, state, return_state=True)
    assert out.shape == (2, 1, 0, 4)
    np.testing.assert_array_equal(last, state)


def test_the_compiled_form_runs_where_it_pays(monkeypatch):
    pytest.importorskip("numba")
    launched = []
    monkeypatch.setattr(module, "launch", lambda kernel, *a: (launched.append(kernel.__name__), kernel(*a)))
    assert module.SMALL == 1_000_000
    monkeypatch.setattr(module, "SMALL", 2 * 3 * 7 * 4 * 5)
    for N, want in ((7, []), (8, ["forward"])):
        gated_linear_attention(*inputs(2, 3, N, 4, 5))
        assert launched == want
    q, *rest = (z.astype(np.float16) for z in inputs(2, 3, 8, 4, 5))
    assert gated_linear_attention(q, *rest).dtype == np.float16 and launched == want


def test_other_library(other_library):
    args = inputs(1, 2, 20, 3, 4)
    there = gated_linear_attention(*map(other_library, args[:4]))
    np.testing.assert_allclose(there.get(), gated_linear_attention(*args[:4]), atol=1e-12)


@pytest.mark.parametrize("place, name, shape", [
    (1, "k", (1, 2, 4, 2)), (2, "v", (1, 2, 5, 3)), (3, "decay", (1, 2, 4)), (4, "state", (1, 2, 2, 3))])
def test_bad_input(place, name, shape):
    args = inputs(1, 2, 4, 3, 3)
    args[place] = np.ones(shape)
    with pytest.raises(ValueError, match=f"^{name}: expected shape"):
        gated_linear_attention(*args)
    args = inputs(1, 2, 4, 3, 3)
    args[place] = args[place].astype(np.float32)
    with pytest.raises(TypeError, match=f"^{name}: expected float64"):
        gated_linear_attention(*args)


def test_more_bad_input():
    q, k, v, decay, _ = inputs(1, 2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"^q: expected 4 axes \(B, H, N, D\), got shape \(2, 4, 3\)$"):
        gated_linear_attention(q[0], k, v, decay)
    with pytest.raises(ValueError, match=r"^v: expected 4 axes \(B, H, N, Dv\)"):
        gated_linear_attention(q, k, v[0], decay)
    with pytest.raises(TypeError, match=r"^q: expected floating point numbers, got int64"):
        gated_linear_attention(q.astype(int), k, v, decay)
