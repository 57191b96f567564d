"""Partial selection: a heap of the best k so far, its root the worst of them.

    root                 1  worst: the smallest value, of equal ones the last
                        / \
                       2   3     each no worse than the one above it
                      / \
                     4   5

Once the heap is full, an entry matters only if it beats the root. Most do not, so a row is read in blocks
and a block is looked at entry by entry only if one of its entries does; the test of a block is what vector
units do. At the end the root is taken away again and again, which gives the answer from the last place to
the first.
"""

from numba import njit, prange

BLOCK = 32


@njit(nogil=True, error_model="numpy")
def worse(a, i, b, j):
    """Whether entry i of value a comes after entry j of value b; NaN comes before all numbers."""
    if a == b or (a != a and b != b):
        return i > j
    return b != b or a < b


@njit(nogil=True, error_model="numpy")
def sink(row, heap, size):
    """Move the root down until nothing below it is worse."""
    at, entry = 0, heap[0]
    while 2 * at + 1 < size:
        below = 2 * at + 1
        if below + 1 < size and worse(row[heap[below + 1]], heap[below + 1], row[heap[below]], heap[below]):
            below += 1
        if not worse(row[heap[below]], heap[below], row[entry], entry):
            break
        heap[at] = heap[below]
        at = below
    heap[at] = entry


@njit(nogil=True, error_model="numpy")
def rise(row, heap, at):
    """Move entry `at` up until what is above it is worse."""
    entry = heap[at]
    while at > 0:
        above = heap[(at - 1) // 2]
        if not worse(row[entry], entry, row[above], above):
            break
        heap[at] = above
        at = (at - 1) // 2
    heap[at] = entry


@njit(nogil=True, error_model="numpy")
def beating(block, worst):
    """How many entries of a block are not below or equal to `worst`; NaN is not."""
    count = 0
    for i in range(len(block)):
        count += not block[i] <= worst
    return count


@njit(nogil=True, error_model="numpy")
def one_row(row, heap):
    """`heap` gets the indices of the largest entries, largest first."""
    k, n = len(heap), len(row)
    for i in range(k):
        heap[i] = i
        rise(row, heap, i)
    for start in range(k, n, BLOCK):
        stop = min(start + BLOCK, n)
        if beating(row[start:stop], row[heap[0]]) == 0:
            continue
        for i in range(start, stop):
            if worse(row[heap[0]], heap[0], row[i], i):
                heap[0] = i
                sink(row, heap, k)
    for size in range(k - 1, 0, -1):
        heap[0], heap[size] = heap[size], heap[0]
        sink(row, heap, size)


@njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def topk(rows, found):
    for n in prange(len(rows)):
        one_row(rows[n], found[n])
