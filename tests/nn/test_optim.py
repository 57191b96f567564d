"""Optimisers against torch.optim over ten steps; clipping, groups, running means, going on; bad input."""

import numpy as np
import pytest

from minattn.autograd import Tensor
from minattn.kernels import adamw as kernel
from minattn.nn import optim

torch = pytest.importorskip("torch")
SHAPES = [(3, 5), (7,), (), (2, 3, 4), (129, 97)]  # the last is large enough for the compiled loop
TOLERANCE = {np.float64: 1e-12, np.float32: 2e-6}

OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.2}),
    ("Adam", {"lr": 0.03}),
    ("Adam", {"lr": 0.03, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.2}),
    ("AdamW", {"lr": 0.03}),
    ("AdamW", {"lr": 0.03, "betas": (0.9, 0.95), "weight_decay": 0.2}),
    ("AdamW", {"lr": 0.03, "betas": (0.0, 0.0), "weight_decay": 0.0}),
]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def parameters(rng, dtype=np.float64, shapes=SHAPES):
    return [Tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for s in shapes]


def twins(params):
    return [torch.nn.Parameter(torch.tensor(p.data)) for p in params]


def give_gradients(rng, ours, theirs=None):
    """Random gradients, of sizes that differ by orders of magnitude; the same ones to both."""
    for i, p in enumerate(ours):
        g = (10.0 ** rng.uniform(-3, 1) * rng.standard_normal(p.shape)).astype(p.dtype)
        p.grad = np.asarray(g)
        if theirs is not None:
            theirs[i].grad = torch.tensor(p.grad)


def assert_equal(ours, theirs, tolerance):
    for p, q in zip(ours, theirs, strict=True):
        want = q.detach().numpy()
        np.testing.assert_allclose(p.data, want, rtol=tolerance, atol=tolerance * max(1, np.abs(want).max()))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name, options", OPTIMIZERS)
def test_ten_steps_of_pytorchs(rng, name, options, dtype):
    ours = parameters(rng, dtype)
    theirs, start = twins(ours), [p.data.copy() for p in ours]
    a, b = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    for step in range(10):
        give_gradients(rng, ours, theirs)
        before = [p.grad.copy() for p in ours]
        if step == 4:
            ours[0].grad = theirs[0].grad = None  # a parameter that was not used in this step
        a.step()
        b.step()
        assert_equal(ours, theirs, TOLERANCE[dtype])
        assert all(p.grad is None or np.array_equal(p.grad, g) for p, g in zip(ours, before, strict=True))
        assert all(p.dtype == dtype for p in ours)
    assert all(np.abs(p.data - s).max() > 1e-3 for p, s in zip(ours, start, strict=True)), "nothing moved"


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_compiled_step_is_the_reference(rng, dtype):
    pytest.importorskip("numba")
    from minattn.kernels.cpu.adamw import adamw_loop

    start = [rng.standard_normal(1001).astype(dtype) for _ in range(3)] + [rng.random(1001).astype(dtype)]
    for decay, l2 in ((0.1, 0.0), (0.0, 0.3)):
        fast, slow = ([a.copy() for a in start] for _ in range(2))
        numbers = dict(rate=0.01, beta1=0.9, beta2=0.95, eps=1e-8, keep=1 - 0.01 * decay, l2=l2, root=0.7)
        p, g, m, v = slow
        kernel.adamw_reference(p, g, m, v, np.empty_like(p), **numbers)
        n = {k: dtype(x) for k, x in numbers.items()}
        adamw_loop(*fast, n["rate"], n["beta1"], dtype(1 - 0.9), n["beta2"], dtype(1 - 0.95), n["eps"],
                   n["keep"], n["l2"], n["root"])
        for a, b in zip(fast, slow, strict=True):
            np.testing.assert_allclose(a, b, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(fast[1], start[1])
        assert all(not np.array_equal(fast[i], start[i]) for i in (0, 2, 3))


def test_large_arrays_take_the_compiled_step(rng, monkeypatch):
    pytest.importorskip("numba")
    large, small = parameters(rng, shapes=[(kernel.SMALL,), (kernel.SMALL - 1,)])
    used = []
    monkeypatch.setattr(kernel, "adamw_reference", lambda p, *rest: used.append(p.size))
    give_gradients(rng, [large, small])
    optim.AdamW([large, small]).step()
    assert used == [kernel.SMALL - 1]


def test_groups_have_their_own_options(rng):
    ours = parameters(rng)
    theirs = twins(ours)
    split = [{"params": [0, 3]}, {"params": [1, 2, 4], "lr": 0.2, "weight_decay": 0.0}]
    a, b = (kind([{**g, "params": [ps[i] for i in g["params"]]} for g in split], lr=0.01, weight_decay=0.5)
            for kind, ps in ((optim.AdamW, ours), (torch.optim.AdamW, theirs)))
    for lr in (None, 0.05):
        if lr is not None:  # a schedule sets all groups
            a.set_lr(lr)
            for group in b.param_groups:
                group["lr"] = lr
        give_gradients(rng, ours, theirs)
        a.step()
        b.step()
        assert_equal(ours, theirs, 1e-12)


def test_matrices_decay_and_vectors_do_not(rng):
    params = parameters(rng)
    groups = optim.decay_groups([*params, params[0]], 0.1)  # one is tied
    assert [[p.shape for p in g["params"]] for g in groups] == [[(3, 5), (2, 3, 4), (129, 97)], [(7,), ()]]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert len(optim.decay_groups(params[:1], 0.1)) == 1
    optimizer = optim.AdamW(groups, lr=0.1)
    before = [p.data.copy() for p in params]
    for p in params:
        p.grad = np.zeros_like(p.data)
    optimizer.step()
    for p, old in zip(params, before, strict=True):
        np.testing.assert_allclose(p.data, old * (0.99 if p.ndim >= 2 else 1.0), rtol=1e-15)


def test_odd_layouts_are_written_to(rng):
    """Parameters in Fortran order, strided or read-only are updated like any other."""
    base = rng.standard_normal((6, 8))
    layouts = [np.asfortranarray(base), np.repeat(base, 2, 1)[:, ::2], base.copy()]
    layouts[2].flags.writeable = False
    for data in layouts:
        p = Tensor(data, requires_grad=True)
        p.grad = np.asfortranarray(rng.standard_normal(base.shape))
        optim.SGD([p], lr=0.5).step()
        np.testing.assert_allclose(p.data, base - 0.5 * p.grad, rtol=1e-15)


@pytest.mark.parametrize("name, options", OPTIMIZERS)
def test_going_on_from_a_state(rng, name, options):
    """Five steps, save, load into a new optimiser, five steps: exactly as ten steps at once."""
    whole, halves = parameters(np.random.default_rng(1)), parameters(np.random.default_rng(1))
    a, b = getattr(optim, name)(whole, **options), getattr(optim, name)(halves, **options)
    for step in range(10):
        if step == 5:
            b.set_lr(0.07)
            a.set_lr(0.07)
            saved = b.state_dict()
            b = getattr(optim, name)(halves, lr=9.0)
            b.load_state_dict(saved)
            for state in saved["state"]:  # the copy must be its own
                for value in state.values():
                    if np.ndim(value):
                        value[...] = 7
        give_gradients(rng, whole)
        for p, q in zip(whole, halves, strict=True):
            q.grad = p.grad
        a.step()
        b.step()
    for p, q in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_defaults_are_pytorchs(name):
    p = Tensor(np.zeros(3), True)
    ours = getattr(optim, name)([p]).param_groups[0]
    theirs = getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(3))]).param_groups[0]
    assert {k: v for k, v in ours.items() if k != "params"} == {k: theirs[k] for k in ours if k != "params"}


def test_a_state_holds_options_and_arrays_only(rng):
    params = parameters(rng, np.float32, [(2, 3), (4,)])
    optimizer = optim.Adam(params)
    give_gradients(rng, params)
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["groups"] == [{"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}]
    wide = {"groups": saved["groups"], "state": [
        {k: v.astype(np.float64) if np.ndim(v) else v for k, v in s.items()} for s in saved["state"]]}
    optimizer.load_state_dict(wide)
    assert all(s["m"].dtype == s["v"].dtype == np.float32 and s["step"] == 1 for s in optimizer.state)
    assert all(p is q for p, q in zip(optimizer.parameters(), params, strict=True))


def test_parameters_of_two_dtypes(rng):
    single, double = parameters(rng, np.float32, [(300,)]), parameters(rng, np.float64, [(200,), (400,)])
    ours = [*single, *double]
    theirs = twins(ours)
    a, b = optim.AdamW(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for _ in range(3):
        give_gradients(rng, ours, theirs)
        a.step()
        b.step()
    assert_equal(double, theirs[1:], 1e-12)
    assert_equal(single, theirs[:1], 2e-6)


def test_zero_grad(rng):
    params = parameters(rng)
    give_gradients(rng, params)
    optim.SGD(params).zero_grad()
    assert all(p.grad is None for p in params)


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e9])
def test_clipping_is_pytorchs(rng, max_norm):
    ours = parameters(rng)
    theirs = twins(ours)
    give_gradients(rng, ours, theirs)
    ours[1].grad = theirs[1].grad = None
    before = [None if p.grad is None else p.grad.copy() for p in ours]
    given = [p.grad for p in ours]
    norm = optim.clip_grad_norm_(ours, max_norm)
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert norm == pytest.approx(want.item(), rel=1e-12)
    for p, q in zip(ours, theirs, strict=True):
        if q.grad is not None:
            np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-12)
    for g, old in zip(given, before, strict=True):
        assert g is None or np.array_equal(g, old), "gradients are values: never written into"
    if max_norm < norm:
        assert optim.clip_grad_norm_(ours, np.inf) == pytest.approx(max_norm, rel=1e-3)


def test_short_gradients_are_left_alone(rng):
    params = parameters(rng)
    give_gradients(rng, params)
    before = [p.grad for p in params]
    norm = optim.clip_grad_norm_(params, np.inf)
    optim.clip_grad_norm_(params, 1.5 * norm)
    assert all(p.grad is g for p, g in zip(params, before, strict=True))


def test_clipping_refuses_nan(rng):
    params = parameters(rng)
    give_gradients(rng, params)
    params[2].grad = np.array(np.nan)
    with pytest.raises(FloatingPointError, match="nan"):
        optim.clip_grad_norm_(params, 1.0)


def test_running_mean(rng):
    params = parameters(rng)
    history = [[p.data.copy() for p in params]]
    ema = optim.EMA(params, decay=0.8)
    for _ in range(4):
        for p in params:
            p.data += rng.standard_normal(p.shape)
        history.append([p.data.copy() for p in params])
        ema.update()
    weights = [0.8**4, *(0.2 * 0.8 ** (4 - t) for t in range(1, 5))]  # unrolled: what each moment counts
    want = [sum(w * h[i] for w, h in zip(weights, history, strict=True)) for i in range(len(params))]
    with ema.applied():
        for p, m in zip(params, want, strict=True):
            np.testing.assert_allclose(p.data, m, rtol=1e-12)
            p.data += 1  # what is done to the parameters meanwhile does not reach the mean
    for p, old, m, s in zip(params, history[-1], want, ema.means, strict=True):
        np.testing.assert_array_equal(p.data, old)
        np.testing.assert_allclose(s, m, rtol=1e-12)
    other = optim.EMA(parameters(rng), decay=0.0)
    other.load_state_dict(ema.state_dict())
    assert all(np.array_equal(s, t) and s is not t for s, t in zip(ema.means, other.means, strict=True))


W, V = Tensor(np.zeros((2, 3)), True), Tensor(np.zeros(3), True)


@pytest.mark.parametrize("call, error, message", [
    (lambda: optim.SGD([]), ValueError, "^params: expected at least one"),
    (lambda: optim.SGD([np.zeros(3)]), TypeError, "params: expected Tensors that require gradients"),
    (lambda: optim.SGD([Tensor(np.zeros(3))]), TypeError, "params: expected Tensors that require gradients"),
    (lambda: optim.SGD([W, V, W]), ValueError, r"params: a parameter of shape \(2, 3\) is given twice"),
    (lambda: optim.SGD([{"params": [W]}, {"params": [W]}]), ValueError, "given twice"),
    (lambda: optim.AdamW([{"params": [W], "weight_dcay": 1}]), ValueError, "unknown option 'weight_dcay'"),
    (lambda: optim.SGD([W], lr=-1), ValueError, "lr: .*got -1"),
    (lambda: optim.SGD([W], lr=np.nan), ValueError, "lr: .*got nan"),
    (lambda: optim.SGD([W], weight_decay=-0.1), ValueError, "weight_decay: .*got -0.1"),
    (lambda: optim.SGD([W], momentum=1.0), ValueError, "momentum: .*got 1.0"),
    (lambda: optim.SGD([W], nesterov=True), ValueError, "^nesterov: needs a momentum"),
    (lambda: optim.Adam([W], betas=(0.9, 1.0)), ValueError, "betas: "),
    (lambda: optim.Adam([W], betas=(0.9,)), ValueError, "betas: "),
    (lambda: optim.Adam([W], eps=-1e-8), ValueError, "eps: "),
    (lambda: optim.SGD([W]).load_state_dict(optim.SGD([W, V]).state_dict()), ValueError, "got 1 and 2"),
    (lambda: optim.EMA([W], decay=1.0), ValueError, "decay: .*got 1.0"),
    (lambda: optim.EMA([W]).load_state_dict(optim.EMA([V]).state_dict()), ValueError,
     r"saved: expected .*\(2, 3\)\], got \[\(3,\)\]"),
    (lambda: optim.clip_grad_norm_([W], 0.0), ValueError, "max_norm: .*got 0.0"),
])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_states_of_another_shape_are_refused(rng):
    w, v = parameters(rng, shapes=[(2, 3), (4,)])
    a = optim.Adam([w, v])
    give_gradients(rng, [w, v])
    a.step()
    other = optim.Adam(parameters(rng, shapes=[(2, 3), (5,)]))
    with pytest.raises(ValueError, match="'m' of parameter 1: expected 5 entries, got 4"):
        other.load_state_dict(a.state_dict())
    assert other.state == [{}, {}], "on an error nothing has changed"


def test_a_gradient_of_another_dtype_is_refused(rng):
    p = Tensor(np.zeros(3), True)
    p.grad = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="grad: expected float64"):
        optim.SGD([p]).step()
