"""Exercises of the chapter autograd: fill in the functions, then ``python -m minattn.grade check autograd``.

Only NumPy is at hand where they are graded.  In all of them g is the gradient that arrives at the output.
"""

import numpy as np


def softmax_vjp(y, g):
    """Task 1, warm-up.  The gradient of sum(g * softmax(x)) with respect to x, from y = softmax(x) over the
    last axis.

    y, g: (N, M).  Returns (N, M).

        for each row i and entry j:
            dx[i, j] = sum over l of g[i, l] * y[i, l] * ((1 if l == j else 0) - y[i, j])

    >>> softmax_vjp(np.array([[0.25, 0.75]]), np.array([[1.0, 0.0]])).tolist()
    [[0.1875, -0.1875]]
    """
    raise NotImplementedError("autograd, task 1")


def unbroadcast(g, shape):
    """Task 2, core.  The gradient of an argument that NumPy repeated: g summed over the repeats.

    g: array; shape: tuple, which broadcasts to g.shape.  Returns an array of that shape.

        every entry of g is added to the entry of the argument that it was copied from;
        missing axes stand in front, axes of length 1 were repeated

    >>> unbroadcast(np.ones((2, 3)), (3,)).tolist(), unbroadcast(np.ones((2, 3)), (2, 1)).tolist()
    ([2.0, 2.0, 2.0], [[3.0], [3.0]])
    """
    raise NotImplementedError("autograd, task 2")


def layer_norm_vjp(x, weight, g):
    """Task 3, core.  The gradients of sum(g * layer_norm(x)) with respect to x, weight and bias.

    x, g: (N, D); weight: (D,).  Returns a tuple (dx, dweight, dbias) of shapes (N, D), (D,), (D,).

        for each row: xhat = (x - mean) / sqrt(variance + 1e-5), with the mean and variance of its D numbers
        layer_norm(x) = weight * xhat + bias
        dx takes account of the mean and of the variance, which depend on x, too

    >>> dx, dw, db = layer_norm_vjp(np.array([[1.0, 3.0]]), np.ones(2), np.array([[1.0, 2.0]]))
    >>> bool(abs(dx).max() < 1e-4), dw.round(3).tolist(), db.tolist()
    (True, [-1.0, 2.0], [1.0, 2.0])
    """
    raise NotImplementedError("autograd, task 3")


def backward(kind, left, right, value):
    """Task 4, stretch.  One backward sweep over a tape: the gradient of the last node with respect to every
    node.

    kind, left, right: (K,) integers; value: (K,) floats.  Returns (K,) floats.  Node n is

        kind 0: an input
        kind 1: value[left[n]] + value[right[n]]
        kind 2: value[left[n]] * value[right[n]]
        kind 3: tanh(value[left[n]])            (right[n] is 0 and means nothing)

    Arguments stand before the nodes that use them, may be used several times, and may be the same on both
    sides.

    >>> kind, left, right = np.array([0, 2, 1]), np.array([0, 0, 1]), np.array([0, 0, 0])
    >>> backward(kind, left, right, np.array([3.0, 9.0, 12.0])).tolist()        # x * x + x at x = 3
    [7.0, 1.0, 1.0]
    """
    raise NotImplementedError("autograd, task 4")
