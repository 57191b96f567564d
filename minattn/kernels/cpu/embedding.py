"""Scatter-add of rows: thread p walks through all ids and adds to the columns that are its own.

          columns of thread 0   columns of thread 1
    id 7  ───────────────────   ───────────────────
    id 2  ───────────────────   ───────────────────
    id 7  ───────────────────   ───────────────────
"""

from numba import njit, prange


@njit(nogil=True, error_model="numpy")
def add(row, total):
    """total += row. The indices count from 0: none is seen that may be negative."""
    for d in range(len(total)):
        total[d] += row[d]


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def add_rows(rows, ids, table, parts):
    """table[ids[n]] += rows[n]"""
    D = rows.shape[1]
    for p in prange(parts):
        own = slice(p * D // parts, (p + 1) * D // parts)
        for n in range(len(ids)):
            add(rows[n, own], table[ids[n], own])


def parts() -> int:
    """Into how many parts the columns are divided: one for each thread."""
    from numba import get_num_threads

    return get_num_threads()
