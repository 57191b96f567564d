"""State: tasks that ask for a running value: a bit to remember, a count, a sum modulo m."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._check import at_least, generator, probability

__all__ = ["counting", "flip_flop", "modular_arithmetic"]

Tokens = NDArray[np.int64]
Mask = NDArray[np.bool_]


def flip_flop(
    rng: np.random.Generator, batch: int, length: int, ignore: float = 0.8
) -> tuple[Tokens, Tokens, Mask]:
    """Instruction, bit, instruction, bit, ...: after 'read' the bit is the last one that was written.

    Tokens: the bits 0 and 1, write 2, ignore 3, read 4. The first instruction is write and the last is read;
    between them ignore has probability `ignore` and the other two share the rest. Written w, i, r::

        tokens   w 1 i 0 r 1 i 0 r 1
        targets  1 . 0 . 1 . 0 . 1 .      (dots: the next instruction, known only in distribution)
        mask     . . . . x . . . x .

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of instructions and bits.
    batch, length : int
        `length` is even and at least 4.
    ignore : float
        Probability of ignore: near 1 the last write lies far back.

    Returns
    -------
    tokens, targets : int64 array (batch, length)
        targets[:, t] = tokens[:, t+1]; the last is 0.
    mask : bool array (batch, length)
        True at read.

    Notes
    -----
    Flip-flop language modelling of Liu et al., Exposing attention glitches (2023).
    """
    generator(rng)
    at_least(1, batch=batch)
    at_least(4, length=length)
    if length % 2:
        raise ValueError(f"length must be even, got {length}")
    probability(ignore=ignore)
    pairs = length // 2
    u = rng.random((batch, pairs))
    order = np.where(u < ignore, 3, np.where(u < (1 + ignore) / 2, 2, 4))
    order[:, 0], order[:, -1] = 2, 4
    bits = rng.integers(2, size=(batch, pairs))
    last_write = np.maximum.accumulate(np.where(order == 2, np.arange(pairs), 0), axis=1)
    bits = np.where(order == 4, np.take_along_axis(bits, last_write, axis=1), bits)
    tokens = np.stack([order, bits], axis=2).reshape(batch, length)
    targets = np.concatenate([tokens[:, 1:], np.zeros((batch, 1), dtype=np.int64)], axis=1)
    return tokens, targets, tokens == 4


def counting(
    rng: np.random.Generator, batch: int, length: int, variables: int = 1, limit: int = 10, idle: float = 0.5
) -> tuple[Tokens, Tokens, Mask]:
    """Commands to counters: reset, add one, print; print asks how many were added since the last reset.

    Token 0 does nothing; counter v (from 0) has reset 1+3v, add 2+3v, print 3+3v. Counters start at 0 and
    stay at `limit` once there. With one counter, written - 0 + ?::

        tokens   + - + ? 0 - + - ?
        targets  . . . 2 . . . . 1
        mask     . . . x . . . . x

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of commands.
    batch, length, variables, limit : int
        `limit` is the largest count, so targets are 0..limit.
    idle : float
        Probability of token 0; the other commands share the rest.  The last command is always a print.

    Returns
    -------
    tokens, targets : int64 array (batch, length)
    mask : bool array (batch, length)
        True at print.
    """
    generator(rng)
    at_least(1, batch=batch, length=length, variables=variables, limit=limit)
    probability(idle=idle)
    shape = (batch, length)
    tokens = np.where(rng.random(shape) < idle, 0, rng.integers(1, 1 + 3 * variables, size=shape))
    tokens[:, -1] = 3 + 3 * rng.integers(variables, size=batch)
    targets = np.zeros(shape, dtype=np.int64)
    for v in range(variables):
        added = np.cumsum(tokens == 2 + 3 * v, axis=1)
        at_reset = np.maximum.accumulate(np.where(tokens == 1 + 3 * v, added, 0), axis=1)
        targets += np.where(tokens == 3 + 3 * v, np.minimum(added - at_reset, limit), 0)
    return tokens, targets, (tokens > 0) & (tokens % 3 == 0)


def modular_arithmetic(
    rng: np.random.Generator, batch: int, length: int, modulus: int = 5, operations: str = "+-*"
) -> tuple[Tokens, Tokens]:
    """Number, operation, number, ...: the value of the expression modulo m, multiplication first.

    Numbers are tokens 0..m-1; + is m, - is m+1, * is m+2.  With m = 5::

        tokens   2 + 3 * 4 - 1      (as text)
        tokens   2 5 3 7 4 6 1
        result   3                  (2 + 12 - 1 = 13)

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of numbers and operations.
    batch, length, modulus : int
        `length` is odd: (length+1)/2 numbers.
    operations : str
        Those to draw from, out of "+-*".

    Returns
    -------
    tokens : int64 array (batch, length)
    result : int64 array (batch,)
    """
    generator(rng)
    at_least(1, batch=batch, length=length)
    at_least(2, modulus=modulus)
    if length % 2 == 0:
        raise ValueError(f"length must be odd, got {length}")
    if not operations or not set(operations) <= set("+-*"):
        raise ValueError(f"operations must be a non-empty part of '+-*', got {operations!r}")
    numbers = rng.integers(modulus, size=(batch, length // 2 + 1))
    kinds = np.array(["+-*".index(o) for o in sorted(set(operations))])
    chosen = rng.choice(kinds, size=(batch, length // 2))
    tokens = np.empty((batch, length), dtype=np.int64)
    tokens[:, ::2], tokens[:, 1::2] = numbers, modulus + chosen
    total, term = np.zeros(batch, dtype=np.int64), numbers[:, 0]
    for op, n in zip(chosen.T, numbers.T[1:], strict=True):
        times = op == 2  # otherwise the term is finished and the next one begins, with its sign
        total = np.where(times, total, total + term)
        term = np.where(times, term * n, np.where(op == 0, n, -n)) % modulus
    return tokens, (total + term) % modulus
