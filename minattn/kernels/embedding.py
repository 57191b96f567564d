"""Rows of a table, and the gradient of the table: each row is the sum of the gradients of its copies.

The gradient in NumPy sorts the ids and adds up runs (`minattn.autograd.segment_sum`), which moves every row
once before it is added; ``np.add.at`` says the same in one line. The compiled form (`cpu/embedding.py`) adds
in the order in which the ids come, each thread to its own columns: no two threads meet, whatever the ids, and
the sum does not depend on their number.
"""

from __future__ import annotations

import numpy as np

from minattn.autograd import namespace, primitive, segment_sum
from minattn.autograd.engine import Array, Operand, raw

from .dispatch import compiled, launch

SMALL = 50_000
"""Gradients of up to so many entries are left to NumPy: a toy model should not wait for a compiler."""


def _embedding(weight: Array, /, ids: Array) -> Array:
    return weight[ids] if namespace(weight) is not np else np.take(weight, ids, axis=0)

def _d_embedding(g, out, weight, ids):
    return added_rows(g, ids=ids, V=weight.shape[0])


def _added_rows(g: Array, /, ids: Array, V: int) -> Array:
    """(V, …): row i is the sum of the rows of g whose id is i."""
    rows = g.reshape(ids.size, *g.shape[ids.ndim:])
    if g.size <= SMALL or not compiled(g):
        return segment_sum(rows, ids.reshape(-1), V)
    from .cpu import embedding as cpu

    table = np.zeros((V, *rows.shape[1:]), g.dtype)
    launch(cpu.add_rows, np.ascontiguousarray(rows).reshape(ids.size, -1),
           np.ascontiguousarray(ids, np.int64).reshape(-1), table.reshape(V, -1), cpu.parts())
    return table

def _d_added_rows(g, out, rows, ids, V):
    return embedded(g, ids=ids)


def embedding(weight: Operand, ids: Array) -> Operand:
    """Rows of `weight` chosen by `ids`, with a gradient that is one scatter-add.

    Parameters
    ----------
    weight : (V, …)
    ids : array of integers (…)
        Each in [0, V).

    Returns
    -------
    out : (…, …)
        The axes of ids, then those of a row; differentiable any number of times.

    Raises
    ------
    ValueError
        If an id is outside [0, V), or `weight` has no axis.
    TypeError
        If ids are no integers.
    """
    xp = namespace(weight)
    if weight.ndim == 0:
        raise ValueError("weight: expected a table of at least one axis, got shape ()")
    ids, V = xp.asarray(raw(ids)), weight.shape[0]
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids: expected integers, got dtype {ids.dtype}")
    if ids.size and not (0 <= int(ids.min()) and int(ids.max()) < V):
        raise ValueError(f"ids: expected values in [0, {V}), got [{ids.min()}, {ids.max()}]")
    return embedded(weight, ids=ids)


embedded = primitive(_embedding, _d_embedding, "embedding")
added_rows = primitive(_added_rows, _d_added_rows)
