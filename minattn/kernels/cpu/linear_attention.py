"""The chunks of `kernels/linear_attention.py`, one head after another in each thread.

Threads are Python's: a head is one call that holds no lock. In Numba's parallel loops over heads, LLVM would
optimize all that is inlined into a head again, once for the loop and once for its body, which took more time
than everything else; and to assign one slice to another compiles the message of the error that it might
raise, hence `copy`.

`left` (C, C + 1) holds the products of decays: column 0 is c, the columns after it are L. Two matrices share
this layout in the backward pass: the cotangents `dleft`, and what becomes of them on their way to α.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import get_num_threads, njit

from .gemm import one_blas_thread, product

SUMS = {"contract", "reassoc", "nsz"}
SET, ADD, SUBTRACT = range(3)


@njit(nogil=True, error_model="numpy")
def copy(x, out):
    for i in range(len(x)):
        for d in range(x.shape[1]):
            out[i, d] = x[i, d]


@njit(nogil=True, error_model="numpy")
def decays(alpha, left):
    """left_ij = α_j ⋯ α_i (α_{j+1} ⋯ α_i, counted from 1), 1 where i + 1 = j, 0 above."""
    C = len(alpha)
    left[:] = 0
    left[0, 0] = alpha[0]
    left[0, 1] = 1
    for i in range(1, C):
        for j in range(i + 1):
            left[i, j] = left[i - 1, j] * alpha[i]
        left[i, i + 1] = 1


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def d_decays(alpha, left, dleft, dalpha):
    """dα_t = Σ_{i ≥ t > j} dleft_ij (α_{t+1} ⋯ α_i) left_{t−1, j}; the sum over i builds up in `dleft`."""
    for t in range(len(alpha) - 1, -1, -1):
        total = dleft[t, 0] if t == 0 else alpha.dtype.type(0)
        if t > 0:
            for j in range(t + 1):
                total += dleft[t, j] * left[t - 1, j]
                dleft[t - 1, j] += alpha[t] * dleft[t, j]
        dalpha[t] = total


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def weigh(scores, left):
    """scores ∘ L, in place."""
    for i in range(len(scores)):
        for j in range(len(scores)):
            scores[i, j] *= left[i, j + 1]


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def scale_rows(x, factor, out):
    """out_i = factor_i x_i"""
    for i in range(len(x)):
        for d in range(x.shape[1]):
            out[i, d] = factor[i] * x[i, d]


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def dots_of_rows(x, y, sign, out, step):
    """out_i += sign x_i · y_i, the entries of `out` being `step` apart."""
    for i in range(len(x)):
        total = x.dtype.type(0)
        for d in range(x.shape[1]):
            total += x[i, d] * y[i, d]
        out[i * step] += sign * total


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def substitute(G, beta, E):
    """E_i ← E_i − Σ_{j<i} G_ij β_j E_j, from the first row down."""
    for i in range(1, len(E)):
        for j in range(i):
            w = G[i, j] * beta[j]
            for d in range(E.shape[1]):
                E[i, d] -= w * E[j, d]


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def substitute_back(G, beta, dU, dE):
    """dE_j = β_j dU_j, dU_i ← dU_i − Σ_{j>i} G_ji dE_j, from the last row up."""
    for j in range(len(dU) - 1, -1, -1):
        for d in range(dU.shape[1]):
            dE[j, d] = beta[j] * dU[j, d]
        for i in range(j):
            for d in range(dU.shape[1]):
                dU[i, d] -= G[j, i] * dE[j, d]


@njit(nogil=True, cache=True, error_model="numpy")
def forward_head(q, k, v, alpha, beta, S, states, errors, out, chunk, factors):
    """`forward` of one head."""
    (N, Dv), delta = v.shape, errors.size > 0
    space = np.empty((2, chunk * chunk), q.dtype)
    wide = np.empty((chunk, chunk + 1), q.dtype)
    rows, U = np.empty((chunk, Dv), q.dtype), np.empty((chunk, Dv), q.dtype)
    for n in range(len(states)):
        t0, t1 = n * chunk, min(n * chunk + chunk, N)
        C, part = t1 - t0, slice(t0, t1)
        Q, K, O, left = q[part], k[part], out[part], wide[:C, : C + 1]
        copy(S, states[n])
        decays(alpha[part], left)
        scores = space[0, : C * C].reshape(C, C)
        if delta:
            G, E, V = space[1, : C * C].reshape(C, C), errors[part], v[part]
            product(K, False, S, False, rows[:C], factors[SET])
            scale_rows(rows[:C], left[:, 0], rows[:C])
            for i in range(C):
                for d in range(Dv):
                    E[i, d] = V[i, d] - rows[i, d]
            product(K, False, K, True, G, factors[SET])
            weigh(G, left)
            substitute(G, beta[part], E)
            scale_rows(E, beta[part], U[:C])
        else:
            copy(v[part], U)
        product(Q, False, S, False, O, factors[SET])
        scale_rows(O, left[:, 0], O)
        product(Q, False, K, True, scores, factors[SET])
        weigh(scores, left)
        product(scores, False, U[:C], False, O, factors[ADD])
        scale_rows(U[:C], left[C - 1, 1:], U[:C])
        S *= left[C - 1, 0]
        product(K, True, U[:C], False, S, factors[ADD])


def forward(q, k, v, alpha, beta, S, states, errors, out, chunk, factors):
    """`S` goes from the first state to the last; `states` gets the one before each chunk, `errors` gets E."""
    each_head(len(q), lambda h: forward_head(q[h], k[h], v[h], alpha[h], beta[h], S[h], states[h], errors[h],
                                             out[h], chunk, factors))


@njit(nogil=True, error_model="numpy", fastmath=SUMS)
def pay_scores(scores, dscores, left, dleft, last):
    """Of scores ∘ L: dleft += dscores ∘ scores and dscores ← dscores ∘ L for j ≤ i − last, 0 above."""
    for i in range(len(scores)):
        for j in range(i + 1 - last):
            dleft[i, j + 1] += dscores[i, j] * scores[i, j]
            dscores[i, j] *= left[i, j + 1]
        for j in range(i + 1 - last, len(scores)):
            dscores[i, j] = 0


@njit(nogil=True, error_model="numpy")
def back_through_state(S, K, U, left, dS, dleft, dU, rows, dK, factors):
    """S' = c_C S + Kᵀ (L_C ∘ U): dU, dK and dleft from dS, which becomes c_C dS."""
    C = len(K)
    product(K, False, dS, False, rows, factors[SET])
    dots_of_rows(rows, U, 1, dleft[C - 1, 1:], 1)
    scale_rows(rows, left[C - 1, 1:], dU)
    scale_rows(U, left[C - 1, 1:], rows)
    product(rows, False, dS, True, dK, factors[SET])
    total = S.dtype.type(0)
    for d in range(len(S)):
        for e in range(S.shape[1]):
            total += S[d, e] * dS[d, e]
    dleft[C - 1, 0] += total
    dS *= left[C - 1, 0]


@njit(nogil=True, error_model="numpy")
def back_through_reading(S, Q, K, U, dO, left, dS, dleft, dU, rows, dQ, dK, A, dA, factors):
    """O = c ∘ (Q S) + (Q Kᵀ ∘ L) U"""
    C = len(Q)
    product(Q, False, S, False, rows, factors[SET])
    dots_of_rows(rows, dO, 1, dleft.reshape(-1), C + 1)
    scale_rows(dO, left[:, 0], rows)
    product(rows, False, S, True, dQ, factors[SET])
    product(Q, True, rows, False, dS, factors[ADD])
    product(Q, False, K, True, A, factors[SET])
    product(dO, False, U, True, dA, factors[SET])
    pay_scores(A, dA, left, dleft, 0)
    weigh(A, left)
    product(A, True, dO, False, dU, factors[ADD])
    product(dA, False, K, False, dQ, factors[ADD])
    product(dA, True, Q, False, dK, factors[ADD])


@njit(nogil=True, error_model="numpy")
def back_through_errors(S, K, E, U, beta, left, dS, dleft, dU, dE, rows, dK, dbeta, A, dA, factors):
    """E = V − c ∘ (K S) − G U, U = β ∘ E with G = K Kᵀ ∘ L below the diagonal; dE is the cotangent of V."""
    C = len(K)
    product(K, False, K, True, dA, factors[SET])
    copy(dA, A)
    weigh(A, left)
    substitute_back(A, beta, dU, dE)
    dots_of_rows(dU, E, 1, dbeta, 1)
    copy(dA, A)
    product(dE, False, U, True, dA, factors[SET])
    dA *= -1
    pay_scores(A, dA, left, dleft, 1)
    product(dA, False, K, False, dK, factors[ADD])
    product(dA, True, K, False, dK, factors[ADD])
    product(K, False, S, False, rows, factors[SET])
    dots_of_rows(rows, dE, -1, dleft.reshape(-1), C + 1)
    scale_rows(dE, left[:, 0], rows)
    product(rows, False, S, True, dK, factors[SUBTRACT])
    product(K, True, rows, False, dS, factors[SUBTRACT])


@njit(nogil=True, cache=True, error_model="numpy")
def backward_head(q, k, v, alpha, beta, do, states, errors, chunk, factors, dS, dq, dk, dv, dalpha, dbeta):
    """`backward` of one head."""
    (N, Dv), delta = v.shape, errors.size > 0
    squares = np.empty((4, chunk * (chunk + 1)), q.dtype)
    space = np.empty((3, chunk, Dv), q.dtype)
    for n in range(len(states) - 1, -1, -1):
        t0, t1 = n * chunk, min(n * chunk + chunk, N)
        C, part = t1 - t0, slice(t0, t1)
        Q, K, dO, dQ, dK, S = q[part], k[part], do[part], dq[part], dk[part], states[n]
        left = squares[0, : C * (C + 1)].reshape(C, C + 1)
        dleft = squares[1, : C * (C + 1)].reshape(C, C + 1)
        A, dA = squares[2, : C * C].reshape(C, C), squares[3, : C * C].reshape(C, C)
        U, dU, rows = space[0, :C], space[1, :C], space[2, :C]
        decays(alpha[part], left)
        dleft[:] = 0
        if delta:
            scale_rows(errors[part], beta[part], U)
        else:
            copy(v[part], U)
        back_through_state(S, K, U, left, dS, dleft, dU, rows, dK, factors)
        back_through_reading(S, Q, K, U, dO, left, dS, dleft, dU, rows, dQ, dK, A, dA, factors)
        if delta:
            back_through_errors(S, K, errors[part], U, beta[part], left, dS, dleft, dU, dv[part], rows, dK,
                                dbeta[part], A, dA, factors)
        else:
            copy(dU, dv[part])
        d_decays(alpha[part], left, dleft, dalpha[part])


def backward(q, k, v, alpha, beta, do, states, errors, chunk, factors, dS, dq, dk, dv, dalpha, dbeta):
    """`dS` goes from the cotangent of the last state to that of the first."""
    each_head(len(q), lambda h: backward_head(q[h], k[h], v[h], alpha[h], beta[h], do[h], states[h],
                                              errors[h], chunk, factors, dS[h], dq[h], dk[h], dv[h],
                                              dalpha[h], dbeta[h]))


def each_head(heads: int, work: Callable[[int], None]) -> None:
    """work(h) for each head, on as many threads as Numba's loops have."""
    threads = min(get_num_threads(), heads)
    if threads <= 1:
        for h in range(heads):
            work(h)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, h) for h in range(heads)]:
            done.result()


def run(kernel: Callable, *args: Any) -> None:
    """Call `forward` or `backward`; the loop over heads is divided among threads, BLAS inside it is not."""
    with one_blas_thread():
        kernel(*args)
