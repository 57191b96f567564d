"""Sentences with known trees: probabilistic context-free grammars in Chomsky normal form.

Every node of a tree is either a word under its symbol or a symbol over two subtrees, so a sentence of n words
has n-1 inner nodes. A tree is a nested tuple: `("NP", ("D", "the"), ("N", "cat"))`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._check import at_least, generator

__all__ = ["ENGLISH", "Grammar", "Sentences", "random_grammar", "sentences", "spans", "words"]

Tree = tuple  # (symbol, word) or (symbol, left, right)


class Grammar(NamedTuple):
    """Rules: binary[a, b, c] = P(a -> b c), lexical[a, w] = P(a -> w); symbol 0 is the start.

    For every symbol a the two rows together sum to 1.
    """

    symbols: tuple[str, ...]
    vocabulary: tuple[str, ...]
    binary: NDArray[np.float64]
    lexical: NDArray[np.float64]

    @staticmethod
    def parse(text: str) -> Grammar:
        """A grammar from lines `symbol -> right | right ...`, each right side two symbols or one word.

        A number after a right side is its weight (1 if there is none); weights of a symbol are scaled to sum
        to 1. What has a line of its own is a symbol, everything else a word; the first line's symbol is the
        start::

            S  -> NP VP
            NP -> D N 3 | she
        """
        lines = [line.partition("->") for line in text.splitlines() if line.strip()]
        if not lines or not all(left.strip() and arrow for left, arrow, _ in lines):
            raise ValueError("text must have lines of the form 'symbol -> right side | right side'")
        symbols = tuple(dict.fromkeys(left.strip() for left, _, _ in lines))
        rules = [(left.strip(), *_right_side(side)) for left, _, right in lines for side in right.split("|")]
        vocabulary = tuple(dict.fromkeys(right[0] for _, right, _ in rules if len(right) == 1))
        n, number = len(symbols), {s: k for k, s in enumerate(symbols)}
        binary, lexical = np.zeros((n, n, n)), np.zeros((n, len(vocabulary)))
        for left, right, weight in rules:
            if len(right) == 1 and right[0] not in number:
                lexical[number[left], vocabulary.index(right[0])] += weight
            elif len(right) == 2 and all(r in number for r in right):
                binary[number[left], number[right[0]], number[right[1]]] += weight
            else:
                raise ValueError(
                    f"text: '{left} -> {' '.join(right)}' must have two symbols or one word on the right"
                )
        total = binary.sum(axis=(1, 2)) + lexical.sum(axis=1)
        return Grammar(symbols, vocabulary, binary / total[:, None, None], lexical / total[:, None])


def _right_side(side: str) -> tuple[list[str], float]:
    parts = side.split()
    try:
        weight = float(parts[-1]) if len(parts) > 1 else 1.0
    except ValueError:
        return parts, 1.0
    if len(parts) > 1 and not (np.isfinite(weight) and weight > 0):
        raise ValueError(f"text: a weight must be positive, got '{side.strip()}'")
    return (parts[:-1] if len(parts) > 1 else parts), weight


ENGLISH = Grammar.parse("""
    S   -> NP VP 3 | PRO VP 1
    PRO -> she | he | nobody
    NP  -> D N 5 | D AN 2 | NP PP 1
    AN  -> A N 3 | A AN 1
    VP  -> V NP 4 | VP PP 1 | sleeps | waits
    PP  -> P NP
    D   -> the 2 | a
    N   -> cat | dog | child | garden | house | book
    A   -> old | small | red | quiet
    V   -> sees | follows | likes
    P   -> in | near | with
""")
"""A small English grammar, for pages: `the old cat sees a dog near the house`."""


def random_grammar(
    rng: np.random.Generator, symbols: int, words: int, lexical: float = 0.55, concentration: float = 0.3
) -> Grammar:
    """A grammar with random rules: symbols A, B, ... over words w0, w1, ...

    Each symbol becomes a word with probability `lexical` (above 1/2 sentences are finite with probability 1),
    else a pair of symbols; words and pairs are drawn from Dirichlet(concentration), small values making few
    likely ones. The start symbol always becomes a pair.
    """
    generator(rng)
    at_least(1, symbols=symbols, words=words)
    if not 0 < lexical < 1 or not concentration > 0:
        raise ValueError(
            f"lexical must lie in (0, 1) and concentration be positive, got {lexical}, {concentration}"
        )
    share = np.full(symbols, lexical)
    share[0] = 0
    binary = rng.dirichlet(np.full(symbols**2, concentration), size=symbols) * (1 - share)[:, None]
    names = tuple(chr(65 + k) if k < 26 else f"A{k}" for k in range(symbols))
    leaves = rng.dirichlet(np.full(words, concentration), size=symbols) * share[:, None]
    return Grammar(names, tuple(f"w{k}" for k in range(words)), binary.reshape((symbols,) * 3), leaves)


class Sentences(NamedTuple):
    """Word numbers (batch, max_length) with -1 after the end, lengths (batch,), and each sentence's tree."""

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    trees: list[Tree]


def sentences(
    rng: np.random.Generator,
    batch: int,
    grammar: Grammar = ENGLISH,
    max_length: int = 12,
    min_length: int = 1,
) -> Sentences:
    """Sentences of a grammar with their trees, given that the length lies in min_length..max_length.

    With `ENGLISH`::

        words   the cat sleeps
        tree    (S (NP (D the) (N cat)) (VP sleeps))

    Derivations outside the range are thrown away and drawn again, so the trees keep the grammar's
    proportions.

    Parameters
    ----------
    rng : numpy.random.Generator
        The source of the derivations.
    batch : int
        Number of sentences.
    grammar : Grammar
        `ENGLISH`, a `random_grammar`, or one from `Grammar.parse`.
    max_length, min_length : int
        Range of the number of words, both included.

    Returns
    -------
    Sentences

    Raises
    ------
    ValueError
        If the grammar gives a sentence of such a length less than about once in 10,000 derivations.
    """
    generator(rng)
    at_least(1, batch=batch, min_length=min_length)
    at_least(min_length, max_length=max_length)
    edges, n = _rule_edges(grammar), len(grammar.symbols)
    tokens, lengths = np.full((batch, max_length), -1), np.zeros(batch, dtype=np.int64)
    trees: list[Tree] = []
    failures = 0
    while len(trees) < batch:
        rules = _derivation(rng, edges, n, max_length)
        size = (len(rules) + 1) // 2
        if not rules or size < min_length:
            failures += 1
            if failures >= 10_000 * (len(trees) + 1):
                raise ValueError(
                    f"grammar gave too few sentences with a length in {min_length}..{max_length}"
                )
            continue
        leaves = [r - n * n for _, r in rules if r >= n * n]
        tokens[len(trees), :size], lengths[len(trees)] = leaves, size
        trees.append(_tree(grammar, rules))
    return Sentences(tokens, lengths, trees)


def _rule_edges(grammar: Grammar) -> NDArray[np.float64]:
    """Cumulative probabilities of each symbol's rules: first the pairs b·n + c, then the words n² + w."""
    n = len(grammar.symbols)
    edges = np.cumsum(np.concatenate([grammar.binary.reshape(n, -1), grammar.lexical], axis=1), axis=1)
    return edges / edges[:, -1:]


def _derivation(
    rng: np.random.Generator, edges: NDArray[np.float64], n: int, max_length: int
) -> list[tuple[int, int]]:
    """The leftmost derivation from symbol 0 as (symbol, rule) pairs; empty if it outgrows max_length."""
    rules: list[tuple[int, int]] = []
    todo, leaves = [0], 0
    u = rng.random(2 * max_length)
    while todo:
        if leaves + len(todo) > max_length:
            return []
        a = todo.pop()
        rule = int(edges[a].searchsorted(u[len(rules)], side="right"))
        rules.append((a, rule))
        if rule < n * n:
            todo += [rule % n, rule // n]
        else:
            leaves += 1
    return rules


def _tree(grammar: Grammar, rules: list[tuple[int, int]]) -> Tree:
    """Nested tuples from a preorder list: read backwards, finished subtrees wait on a stack."""
    n, stack = len(grammar.symbols), []  # type: ignore[var-annotated]
    for a, rule in reversed(rules):
        name = grammar.symbols[a]
        stack.append(
            (name, grammar.vocabulary[rule - n * n]) if rule >= n * n else (name, stack.pop(), stack.pop())
        )
    return stack[0]


def words(tree: Tree) -> list[str]:
    """The words under a tree, from left to right."""
    return [tree[1]] if len(tree) == 2 else words(tree[1]) + words(tree[2])


def spans(tree: Tree) -> list[tuple[int, int, str]]:
    """(start, end, symbol) of every node, its words being start..end-1; preorder."""

    def walk(node: Tree, start: int) -> int:
        here = len(found)
        found.append((start, start + 1, node[0]))
        if len(node) == 3:
            end = walk(node[2], walk(node[1], start))
            found[here] = (start, end, node[0])
            return end
        return start + 1

    found: list[tuple[int, int, str]] = []
    walk(tree, 0)
    return found
