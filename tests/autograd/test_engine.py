"""The tape: recording, the reverse sweep, what is freed, what is shared, and what is refused."""

import gc
import re
import threading
import weakref

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, enable_grad, grad, no_grad, primitive, tensor


def leaf(*shape, dtype=np.float64):
    return Tensor(np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype), requires_grad=True)


def times():
    """A primitive made afresh."""
    return primitive(lambda x, y, /: x * y, lambda g, out, x, y: (lambda: g * y, lambda: g * x), "times")


# ---- recording ----
def test_only_what_depends_on_a_variable_is_recorded():
    x, c = leaf(2), Tensor(np.ones(2))
    assert (x * 2).requires_grad and (c * x).requires_grad and not (x * 2).is_leaf
    assert not (c * 2).requires_grad and (c * 2).is_leaf
    assert x.is_leaf and not x.detach().requires_grad and x.detach().data is x.data


def test_no_grad_and_enable_grad():
    x, op = leaf(2), times()
    with no_grad():
        assert not op(x, x).requires_grad
        with enable_grad():
            assert op(x, x).requires_grad
        assert not op(x, x).requires_grad
    assert op(x, x).requires_grad
    with pytest.raises(RuntimeError, match="inside"), no_grad():
        raise RuntimeError("inside")
    assert op(x, x).requires_grad

    @no_grad()
    def evaluate():
        return op(x, x)

    assert not evaluate().requires_grad and not evaluate().requires_grad


def test_no_grad_is_of_one_thread():
    x, found = leaf(2), {}
    inside, checked = threading.Event(), threading.Event()

    def quiet():
        with no_grad():
            inside.set()
            checked.wait(10)
            found["quiet"] = (x * 2).requires_grad

    thread = threading.Thread(target=quiet)
    thread.start()
    assert inside.wait(10)
    found["other"] = (x * 2).requires_grad
    checked.set()
    thread.join()
    assert found == {"quiet": False, "other": True}


def test_threads_differentiate_side_by_side():
    results = {}

    def work(k):
        x = Tensor(np.full(50, float(k)), requires_grad=True)
        for _ in range(20):
            x.grad = None
            y = x
            for _ in range(20):
                y = y + x * x
            y.backward(np.ones(50))
        results[k] = x.grad

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(4):
        np.testing.assert_allclose(results[k], np.full(50, 1 + 40.0 * k))


# ---- backward ----
def test_backward_adds_to_the_leaves():
    x, y = leaf(3), leaf(3)
    (x * y).sum().backward()
    np.testing.assert_array_equal(x.grad, y.data)
    first = x.grad
    kept = first.copy()
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad, y.data + 2)
    np.testing.assert_array_equal(first, kept)  # values, never written into
    assert type(x.grad) is np.ndarray and type(y.grad) is np.ndarray


def test_backward_of_a_leaf():
    x = Tensor(2.0, requires_grad=True)
    x.backward()
    assert x.grad == 1
    y = leaf(3)
    y.backward(np.arange(3.0))
    np.testing.assert_array_equal(y.grad, [0, 1, 2])


def test_only_leaves_get_a_grad():
    x = leaf(3)
    y = x * 2
    y.sum().backward()
    assert y.grad is None
    constant = Tensor(np.ones(3))
    (x * constant).sum().backward()
    assert constant.grad is None


def test_leaves_that_share_a_gradient_do_not_corrupt_each_other():
    x, y = leaf(3), leaf(3)
    (x + y).backward(np.ones(3))
    (x * 3).backward(np.ones(3))
    np.testing.assert_array_equal(x.grad, [4, 4, 4])
    np.testing.assert_array_equal(y.grad, [1, 1, 1])


def test_the_cotangent_is_left_as_it_was():
    x, u = leaf(3), np.ones(3)
    (x + x).backward(u)
    x.backward(u)
    np.testing.assert_array_equal(u, np.ones(3))
    np.testing.assert_array_equal(x.grad, [3, 3, 3])


def test_diamond():
    x = leaf(3)
    a = x * x
    b, c = a * 2, a * a
    (b * c).backward(np.ones(3))  # 2 x⁶
    np.testing.assert_allclose(x.grad, 12 * x.data**5)


def test_an_argument_used_twice_in_one_primitive():
    x = leaf(3)
    (g,) = grad(times()(x, x), x, np.ones(3))
    np.testing.assert_allclose(g.data, 2 * x.data)


def test_an_old_tensor_combined_with_young_ones():
    """Birth order is a topological order whatever the order of use."""
    x = leaf(2)
    early = x * 3
    late = (x * x) * x
    later = late * early
    (later + early * x).backward(np.ones(2))
    np.testing.assert_allclose(x.grad, 12 * x.data**3 + 6 * x.data)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_backward_without_gradient_for_one_entry(shape):
    x = Tensor(np.full(shape, 3.0), requires_grad=True)
    (x * x).backward()
    np.testing.assert_array_equal(x.grad, np.full(shape, 6.0))


def test_gradient_is_checked():
    x = leaf(2, 3)
    with pytest.raises(RuntimeError, match=r"gradient: must be given for an output of shape \(2, 3\)"):
        (x * 2).backward()
    for wrong in (np.ones(3), np.ones((3, 2)), 1.0, Tensor(np.ones((1, 3)))):
        found = re.escape(
            str(np.shape(getattr(wrong, "data", wrong)) if not isinstance(wrong, float) else ())
        )
        with pytest.raises(ValueError, match=rf"gradient: expected shape \(2, 3\), got {found}"):
            (x * 2).backward(wrong)
    with pytest.raises(RuntimeError, match=r"^backward: the output does not require a gradient"):
        Tensor(np.ones(2)).backward(np.ones(2))
    with no_grad():
        y = x * 2
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        y.backward(np.ones((2, 3)))
    assert x.grad is None


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "kind", [np.asarray, Tensor, list, lambda u: u.astype(np.float64), lambda u: Tensor(u.astype(np.float64))]
)
def test_gradient_may_be_an_array_a_tensor_or_a_list(kind, create_graph):
    x = leaf(3, dtype=np.float32)
    (g,) = grad(x * 2, x, [kind(np.arange(3, dtype=np.float32))], create_graph=create_graph)
    assert type(g) is Tensor and g.dtype == np.float32
    np.testing.assert_array_equal(g.data, [0, 2, 4])
    (g,) = grad(x, x, [kind(np.arange(3, dtype=np.float32))], create_graph=create_graph)
    assert type(g) is Tensor and g.dtype == np.float32


def test_create_graph_leaves_tensors_behind():
    x = leaf(3)
    (x * x).sum().backward(create_graph=True)
    assert isinstance(x.grad, Tensor) and x.grad.requires_grad
    np.testing.assert_array_equal(grad(x.grad, x, np.ones(3))[0].data, [2, 2, 2])
    y = leaf(3)
    y.backward(np.ones(3), create_graph=True)
    assert isinstance(y.grad, Tensor)


def test_other_library(other_library):
    x = Tensor(other_library(np.arange(3.0)), requires_grad=True)
    (x * x).sum().backward()
    assert type(x.grad).__module__ == "cupy" and x.grad.get().tolist() == [0, 2, 4]
    (x * x).backward(np.ones(3))  # a cotangent goes where its output is
    assert x.grad.get().tolist() == [0, 4, 8]
    assert Tensor(x.data).numpy().tolist() == [0, 1, 2] and np.asarray(x.detach()).tolist() == [0, 1, 2]
    made = tensor([1, 2], dtype=np.float32)
    assert type(made.data) is np.ndarray and type(tensor(x).data).__module__ == "cupy"
    assert type(tensor(x, dtype=np.float32).data).__module__ == "cupy"


def test_backward_through_a_hundred_thousand_nodes():
    x = Tensor(np.ones(1), requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + x
    y.backward()
    assert x.grad[0] == 100_001
    z = x * 1
    for _ in range(100_000):
        z = z * 1
    del z  # a deep graph that is dropped, not swept, must not exhaust the stack either


# ---- freeing ----
def test_the_graph_is_freed_on_the_way_without_the_collector():
    x = leaf(3)
    gc.collect()
    gc.disable()
    try:
        middle = x * 2
        seen = weakref.ref(middle)
        y = (middle * middle).sum()
        del middle
        assert seen() is not None
        y.backward()
        assert seen() is None
    finally:
        gc.enable()


def test_a_dropped_graph_is_freed_without_the_collector():
    gc.collect()
    gc.disable()
    try:
        y = (leaf(3) * 2).sum()
        seen = weakref.ref(y)
        del y
        assert seen() is None
    finally:
        gc.enable()


def test_a_freed_graph_keeps_neither_arguments_nor_options():
    x = leaf(3)
    mask = np.array([True, False, True])
    y = ag.where(mask, x, 0.0)
    seen = weakref.ref(mask)
    del mask
    y.sum().backward()
    assert seen() is None


def test_activations_are_released_while_the_sweep_goes_on():
    alive = []

    def derivative(g, out, x):
        alive.append(seen() is not None)
        return g

    watch = primitive(lambda x, /: x * 1, derivative, "watch")
    x = leaf(3)
    young = watch(x) * 2
    seen = weakref.ref(young)
    y = young * 3
    del young
    y.backward(np.ones(3))
    assert alive == [False]


def test_second_backward_raises_with_advice():
    x = leaf(3)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(
        RuntimeError,
        match=r"^backward: the graph behind this sum was freed by .*retain_graph=True to the first one$",
    ):
        y.backward()
    a = x * x
    b, c = a * 2, a * 3
    b.backward(np.ones(3))
    with pytest.raises(RuntimeError, match="the graph behind this mul was freed"):
        c.backward(np.ones(3))


@pytest.mark.parametrize("options", [{"retain_graph": True}, {"create_graph": True}])
def test_a_retained_graph_serves_again(options):
    x = leaf(3)
    y = (x * x).sum()
    y.backward(**options)
    x.grad = None
    y.backward()
    np.testing.assert_allclose(x.grad, 2 * x.data)
    y = (x * x).sum()
    first = grad(y, x, **options)[0]
    np.testing.assert_array_equal(first.data, grad(y, x)[0].data)
    with pytest.raises(RuntimeError, match="freed"):
        grad(y, x)
    y = (x * x).sum()
    grad(y, x, create_graph=True, retain_graph=False)
    with pytest.raises(RuntimeError, match="freed"):
        grad(y, x)


# ---- grad ----
def test_grad_leaves_every_grad_alone():
    x, y = leaf(3), leaf(3)
    got = grad((x * y).sum(), [x, y])
    assert isinstance(got, tuple) and all(isinstance(g, Tensor) and not g.requires_grad for g in got)
    assert x.grad is None and y.grad is None


def test_grad_with_respect_to_tensors_inside_the_graph():
    x = leaf(3)
    h = x * x
    y = h * h * x
    gh, gx = grad(y, [h, x], np.ones(3))
    np.testing.assert_allclose(gh.data, 2 * h.data * x.data)
    np.testing.assert_allclose(gx.data, 5 * x.data**4)  # through h as well
    (gy,) = grad(x * 2, x, np.ones(3))
    assert np.array_equal(gy.data, [2, 2, 2])
    y = x * 2
    assert np.array_equal(grad(y, y, np.arange(3.0))[0].data, [0, 1, 2])


def test_an_input_inside_the_graph_younger_than_another_input():
    x, w = leaf(3), leaf(3)
    a = x * 2
    h = w * 3
    gh, gx = grad(h * a, [h, x], np.ones(3))
    np.testing.assert_array_equal(gh.data, a.data)
    np.testing.assert_array_equal(gx.data, 2 * h.data)


def test_several_scalar_outputs_need_no_cotangents():
    x = leaf(3)
    (g,) = grad([x.sum(), (x * 2).sum()], x)
    np.testing.assert_array_equal(g.data, [3, 3, 3])


def test_grad_visits_only_what_leads_to_its_inputs():
    visited = []

    def watched(name):
        return primitive(lambda x, /: x * 2, lambda g, out, x: visited.append(name) or g * 2, name)

    x, y = leaf(3), leaf(3)
    h = watched("before")(x)
    out = watched("after")(h) + watched("beside")(y)
    (g,) = grad(out, h, np.ones(3))
    assert visited == ["after"] and np.array_equal(g.data, [2, 2, 2])
    (g,) = grad(h, x, np.ones(3))  # what led to h was neither visited nor freed
    assert visited == ["after", "before"]


def test_repeated_inputs_and_outputs():
    x = leaf(3)
    y = x * x
    a, b = grad([y, y], [x, x], [np.ones(3), np.full(3, 2.0)])
    np.testing.assert_allclose(a.data, 6 * x.data)
    np.testing.assert_allclose(b.data, 6 * x.data)


def test_an_output_that_feeds_another_output():
    x = leaf(3)
    y = x * x
    z = y * x
    (g,) = grad([y, z], x, [np.ones(3), np.ones(3)])
    np.testing.assert_allclose(g.data, 2 * x.data + 3 * x.data**2)


def test_unused_inputs():
    x, y = leaf(3), leaf(3)
    with pytest.raises(
        RuntimeError, match=r"inputs\[1\]: the outputs do not depend on it \(allow_unused=True"
    ):
        grad((x * 2).sum(), [x, y])
    gx, gy = grad((x * 2).sum(), [x, y], allow_unused=True)
    assert gy is None and np.array_equal(gx.data, [2, 2, 2])
    with pytest.raises(ValueError, match=r"inputs\[1\]: expected a Tensor that requires a gradient"):
        grad((x * 2).sum(), [x, Tensor(np.ones(3))])
    with pytest.raises(ValueError, match=r"inputs\[0\]: expected a Tensor"):
        grad((x * 2).sum(), [np.ones(3)])


def test_cotangents_are_counted():
    x = leaf(3)
    with pytest.raises(ValueError, match="grad_outputs: expected 2, one per output, got 1"):
        grad([x * 2, x * 3], x, np.ones(3))
    with pytest.raises(ValueError, match="grad_outputs: expected 1, one per output, got 2"):
        grad(x * 2, x, [np.ones(3), np.ones(3)])
    with pytest.raises(RuntimeError, match="gradient: must be given"):
        grad(x * 2, x)


def test_create_graph_three_times():
    x = leaf(3)
    y = ag.sin(x) * x
    for _ in range(3):
        (y,) = grad(y, x, np.ones(3), create_graph=True)
    np.testing.assert_allclose(y.data, -3 * np.sin(x.data) - x.data * np.cos(x.data))  # (x sin x)‴
    third = grad(y, x, np.ones(3))[0]
    np.testing.assert_allclose(third.data, -4 * np.cos(x.data) + x.data * np.sin(x.data))


def test_grad_inside_no_grad():
    x = leaf(3)
    y = x * x
    with no_grad():
        (g,) = grad(y, x, np.ones(3), create_graph=True)
    assert g.requires_grad
    with no_grad():
        assert not (x * g).requires_grad


def test_a_sweep_that_fails_restores_recording():
    op = primitive(lambda x, /: x, lambda g, out, x: 1 / 0, "broken")
    x = leaf(2)
    with pytest.raises(ZeroDivisionError):
        op(x).backward(np.ones(2))
    assert (x * 2).requires_grad


def test_a_derivative_may_run_a_sweep_of_its_own():
    """Checkpointing: what lies between is not kept, but computed again when the backward pass comes by."""

    def block(x):
        return (x * x).sin() * x

    def derivative(g, out, x):
        with enable_grad():
            point = Tensor(x, requires_grad=True)
            return grad(block(point), point, g)[0].data

    checkpoint = primitive(lambda x, /: block(Tensor(x)).data, derivative, "checkpoint")
    x = leaf(4)
    (checkpoint(checkpoint(x)) * 3).sum().backward()
    np.testing.assert_allclose(x.grad, grad((block(block(x)) * 3).sum(), x)[0].data)
    assert (x * 2).requires_grad
