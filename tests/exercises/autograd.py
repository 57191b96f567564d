"""What the grader knows of the exercises of the chapter autograd (see `minattn.grade.task`)."""

import numpy as np

import minattn.autograd as ag
from minattn.autograd import Tensor
from minattn.grade.plain import as_tests
from minattn.grade.task import Limit, Task
from minattn.kernels import layer_norm

# --- task 1 -----------------------------------------------------------------------------------------------


def draw_softmax(rng, scale=1.0, M=None):
    N, M = rng.permutation([3, 5, 6])[:2] if M is None else (4, M)
    x = scale * rng.standard_normal((N, M))
    e = np.exp(x - x.max(-1, keepdims=True))
    return {"y": e / e.sum(-1, keepdims=True), "g": rng.standard_normal((N, M))}


def softmax_reference(y, g):
    with np.errstate(divide="ignore"):
        return ag.vjp(lambda x: ag.softmax(x, -1), np.log(y), g)[1][0].numpy()


def softmax_solution(y, g):
    return np.stack([(np.diag(p) - np.outer(p, p)) @ u for p, u in zip(y, g, strict=True)])


def diagonal_only(y, g):
    """An entry of the softmax depends on all entries of x: y * g lacks minus y times the row's sum of y *
    g."""
    return y * g


def like_a_sigmoid(y, g):
    """y * (1 - y) * g is the derivative of a sigmoid, entry by entry; a softmax ties the entries of a row
    together."""
    return y * (1 - y) * g


def over_rows(y, g):
    """The sum of g * y runs over the rows (axis 0); it must run over the axis of the softmax."""
    return y * (g - (g * y).sum(0, keepdims=True))


def unweighted_sum(y, g):
    """What is subtracted from g is its sum weighted by y, not its plain sum."""
    return y * (g - g.sum(-1, keepdims=True))


# --- task 2 -----------------------------------------------------------------------------------------------


def draw_broadcast(rng, shape=None, full=None):
    if shape is None:
        full = tuple(int(n) for n in rng.permutation([2, 3, 4, 5])[:3])
        shape = [(1, *full[1:]), (full[1], 1), (full[0], 1, full[2]), (1, 1, full[2]), (full[2],)][
            rng.integers(5)
        ]
    return {"g": rng.standard_normal(full), "shape": shape}


def unbroadcast_reference(g, shape):
    return ag.vjp(lambda x: ag.expand(x, *g.shape), np.zeros(shape), g)[1][0].numpy()


def unbroadcast_solution(g, shape):
    out = np.zeros(shape)
    for at in np.ndindex(g.shape):
        tail = at[len(at) - len(shape) :]
        out[tuple(i if n > 1 else 0 for i, n in zip(tail, shape, strict=True))] += g[at]
    return out


def mean_of_repeats(g, shape):
    """The repeats are averaged; each of them moves the output, so they are added."""
    out = g
    while out.ndim > len(shape):
        out = out.mean(0)
    return out.mean(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def first_repeat(g, shape):
    """Only the first of the repeats is taken; they must be added."""
    out = g
    while out.ndim > len(shape):
        out = out[0]
    return out[tuple(slice(0, n) for n in shape)].copy()


def keepdims_forgotten(g, shape):
    """An axis of length 1 has disappeared: sum over it with keepdims=True."""
    out = g
    while out.ndim > len(shape):
        out = out.sum(0)
    return out.sum(tuple(i for i, n in enumerate(shape) if n == 1))


def leading_axes_only(g, shape):
    """Axes of length 1 were repeated, too, and are not summed over yet."""
    out = g
    while out.ndim > len(shape):
        out = out.sum(0)
    return out


# --- task 3 -----------------------------------------------------------------------------------------------


def draw_norm(rng, scale=1.0):
    N, D = rng.permutation([3, 4, 6])[:2]
    return {
        "x": scale * rng.standard_normal((N, D)) + 1,
        "weight": 1 + rng.random(D),
        "g": rng.standard_normal((N, D)),
    }


def norm_reference(x, weight, g):
    bias = np.zeros(len(weight))
    return tuple(d.numpy() for d in ag.vjp(lambda *t: layer_norm(*t, eps=1e-5), (x, weight, bias), g)[1])


def norm_forward(x, weight, bias=0.0):
    rows = [(r - r.mean()) / np.sqrt(((r - r.mean()) ** 2).mean() + 1e-5) for r in x]
    return weight * np.stack(rows) + bias


def norm_solution(x, weight, g):
    dx = np.zeros(x.shape)
    N, D = x.shape
    xhat = np.zeros(x.shape)
    for i in range(N):
        c = x[i] - x[i].mean()
        s = np.sqrt((c**2).mean() + 1e-5)
        xhat[i] = c / s
        jacobian = (np.eye(D) - 1 / D) / s - np.outer(c, c) / (D * s**3)
        dx[i] = jacobian.T @ (weight * g[i])
    return dx, (g * xhat).sum(0), g.sum(0)


def statistics_constant(x, weight, g):
    """The mean and the variance depend on x: dx needs their derivatives, not only weight * g / deviation."""
    c = x - x.mean(-1, keepdims=True)
    s = np.sqrt((c**2).mean(-1, keepdims=True) + 1e-5)
    return weight * g / s, (g * c / s).sum(0), g.sum(0)


def variance_constant(x, weight, g):
    """The mean's part of dx is there, the variance's is missing: minus xhat times the row's mean of h *
    xhat."""
    c = x - x.mean(-1, keepdims=True)
    s = np.sqrt((c**2).mean(-1, keepdims=True) + 1e-5)
    h = weight * g
    return (h - h.mean(-1, keepdims=True)) / s, (g * c / s).sum(0), g.sum(0)


def weight_forgotten(x, weight, g):
    """The gradient that reaches xhat is weight * g; here it is g alone."""
    c = x - x.mean(-1, keepdims=True)
    s = np.sqrt((c**2).mean(-1, keepdims=True) + 1e-5)
    y = c / s
    dx = (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True)) / s
    return dx, (g * y).sum(0), g.sum(0)


# --- task 4 -----------------------------------------------------------------------------------------------


def draw_tape(rng, inputs=3, nodes=9):
    kind, left, right = [0] * inputs, [0] * inputs, [0] * inputs
    value = list(rng.uniform(0.5, 1.5, inputs))
    for n in range(inputs, inputs + nodes):
        k = [2, 1, 3, 2][n % 4]
        i, j = n - 1, int(rng.integers(n)) if k != 3 else 0
        i, j = (i, i) if n == inputs else (i, j)
        kind, left, right = [*kind, k], [*left, i], [*right, j]
        value.append({1: value[i] + value[j], 2: value[i] * value[j], 3: np.tanh(value[i])}[k])
    return {
        "kind": np.array(kind),
        "left": np.array(left),
        "right": np.array(right),
        "value": np.array(value),
    }


def tape_reference(kind, left, right, value):
    """The library's engine on the same tape; a zero is added to each node so that it can be asked for."""
    asked = [Tensor(np.array(0.0), requires_grad=True) for _ in kind]
    nodes = []
    for n, (k, i, j) in enumerate(zip(kind, left, right, strict=True)):
        x = (
            value[n]
            if k == 0
            else nodes[i] + nodes[j]
            if k == 1
            else nodes[i] * nodes[j]
            if k == 2
            else nodes[i].tanh()
        )
        nodes.append(x + asked[n])
    grads = ag.grad(nodes[-1], asked, allow_unused=True)
    return np.array([0.0 if d is None else d.item() for d in grads])


def tape_solution(kind, left, right, value):
    grad = np.zeros(len(kind))
    grad[-1] = 1
    for n in range(len(kind) - 1, -1, -1):
        i, j = left[n], right[n]
        if kind[n] == 1:
            grad[i] += grad[n]
            grad[j] += grad[n]
        elif kind[n] == 2:
            a, b = value[j] * grad[n], value[i] * grad[n]
            grad[i] += a
            grad[j] += b
        elif kind[n] == 3:
            grad[i] += (1 - value[n] ** 2) * grad[n]
    return grad


def overwritten(kind, left, right, value):
    """A node that is used twice gets only the last gradient: add to what is there, do not replace it."""
    grad = np.zeros(len(kind))
    grad[-1] = 1
    for n in range(len(kind) - 1, -1, -1):
        i, j = left[n], right[n]
        if kind[n] == 1:
            grad[i] = grad[n]
            grad[j] = grad[n]
        elif kind[n] == 2:
            grad[i] = value[j] * grad[n]
            grad[j] = value[i] * grad[n]
        elif kind[n] == 3:
            grad[i] = (1 - value[n] ** 2) * grad[n]
    return grad


def factors_swapped(kind, left, right, value):
    """In a product the gradient of one factor is the other factor times g; here each gets itself."""
    grad = np.zeros(len(kind))
    grad[-1] = 1
    for n in range(len(kind) - 1, -1, -1):
        i, j = left[n], right[n]
        if kind[n] == 1:
            grad[i] += grad[n]
            grad[j] += grad[n]
        elif kind[n] == 2:
            grad[i] += value[i] * grad[n]
            grad[j] += value[j] * grad[n]
        elif kind[n] == 3:
            grad[i] += (1 - value[n] ** 2) * grad[n]
    return grad


def tanh_of_the_argument(kind, left, right, value):
    """The derivative of tanh is 1 - tanh(x)²; value[n] is that tanh already, value[left[n]] is x."""
    grad = np.zeros(len(kind))
    grad[-1] = 1
    for n in range(len(kind) - 1, -1, -1):
        i, j = left[n], right[n]
        if kind[n] == 1:
            grad[i] += grad[n]
            grad[j] += grad[n]
        elif kind[n] == 2:
            a, b = value[j] * grad[n], value[i] * grad[n]
            grad[i] += a
            grad[j] += b
        elif kind[n] == 3:
            grad[i] += (1 - value[i] ** 2) * grad[n]
    return grad


TASKS = [
    Task(
        1,
        "softmax_vjp",
        "warm-up",
        {"runs": 1, "shapes": 1, "values": 7, "limits": 1},
        draw_softmax,
        softmax_reference,
        softmax_solution,
        (
            "Write the sum over l out as two sums: one has a single term.",
            "The second sum does not depend on j but for the factor y[i, j].",
            "dx = y * (g - s), where s is the row's sum of g * y with keepdims=True.",
        ),
        (diagonal_only, like_a_sigmoid, over_rows, unweighted_sum),
        limits=(
            Limit("rows that are nearly one-hot", lambda rng: draw_softmax(rng, 8.0)),
            Limit("two entries", lambda rng: draw_softmax(rng, M=2)),
        ),
    ),
    Task(
        2,
        "unbroadcast",
        "core",
        {"runs": 1, "shapes": 1, "values": 6, "limits": 2},
        draw_broadcast,
        unbroadcast_reference,
        unbroadcast_solution,
        (
            "Two things happen in broadcasting: axes are put in front, and axes of length 1 are repeated.",
            "Sum over the axes in front until g has as many axes as shape; then over those where "
            "shape has a 1.",
            "g.sum(tuple of axes, keepdims=True) keeps the axes of length 1.",
        ),
        (mean_of_repeats, first_repeat, keepdims_forgotten, leading_axes_only),
        limits=(
            Limit("a single number", lambda rng: draw_broadcast(rng, (), (2, 3))),
            Limit("both kinds at once", lambda rng: draw_broadcast(rng, (1, 4), (2, 3, 4))),
        ),
    ),
    Task(
        3,
        "layer_norm_vjp",
        "core",
        {"runs": 1, "shapes": 1, "values": 5, "gradients": 2, "limits": 1},
        draw_norm,
        norm_reference,
        norm_solution,
        (
            "dbias and dweight need no derivative of the statistics: begin with them.",
            "Let h = weight * g be what reaches xhat. dx loses h's mean, and its part along xhat.",
            "dx = (h - mean(h) - xhat * mean(h * xhat)) / deviation, all means over the row.",
        ),
        (statistics_constant, variance_constant, weight_forgotten),
        outputs=("dx", "dweight", "dbias"),
        limits=(Limit("rows with a large spread", lambda rng: draw_norm(rng, 1e3)),),
        forward=norm_forward,
        wrt=("x", "weight"),
    ),
    Task(
        4,
        "backward",
        "stretch",
        {"runs": 1, "shapes": 1, "values": 6, "limits": 2},
        draw_tape,
        tape_reference,
        tape_solution,
        (
            "Begin with gradient 1 at the last node and go through the tape from its end.",
            "When node n's turn comes its gradient is complete; pass it on to left[n] and "
            "right[n] by the chain rule.",
            "Always `+=`: a node used twice is owed two gradients, and x * x is used twice by one node.",
        ),
        (overwritten, factors_swapped, tanh_of_the_argument),
        limits=(
            Limit("a tape of 500 nodes", lambda rng: long_tape(rng)),
            Limit("inputs that nothing uses", lambda rng: draw_tape(rng, 8, 2)),
        ),
    ),
]


def long_tape(rng):
    """Sums and tanh in turn, so that the numbers stay small."""
    kind = np.array([0] + [1 + 2 * (n % 2) for n in range(499)])
    left = np.maximum(np.arange(500) - 1, 0)
    right = np.where(kind == 1, np.maximum(np.arange(500) - 2, 0), 0)
    value = np.array([0.1] + [0.0] * 499)
    for n in range(1, 500):
        value[n] = value[left[n]] + value[right[n]] if kind[n] == 1 else np.tanh(value[left[n]])
    return {"kind": kind, "left": left, "right": right, "value": value}


test_exercises = as_tests("autograd", TASKS)
