"""Grammars: sentences are parsed again by an independent chart parser; frequencies match probabilities."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.data import ENGLISH, Grammar, random_grammar, sentences, spans, words


def rules_of(grammar):
    """The grammar as a dictionary from (symbol, right side) to its probability."""
    n = len(grammar.symbols)
    found = {}
    for a, name in enumerate(grammar.symbols):
        for w, word in enumerate(grammar.vocabulary):
            if grammar.lexical[a, w] > 0:
                found[name, (word,)] = grammar.lexical[a, w]
        for b, c in product(range(n), repeat=2):
            if grammar.binary[a, b, c] > 0:
                found[name, (grammar.symbols[b], grammar.symbols[c])] = grammar.binary[a, b, c]
    return found


def cky(rules, sentence):
    """The chart {(start, end): {symbol: probability of that span, summed over trees}} of a sentence."""
    chart = {}
    for i, word in enumerate(sentence):
        chart[i, i + 1] = {a: p for (a, right), p in rules.items() if right == (word,)}
    for size in range(2, len(sentence) + 1):
        for i in range(len(sentence) - size + 1):
            cell = Counter()
            for k in range(i + 1, i + size):
                for (a, right), p in rules.items():
                    if len(right) == 2 and right[0] in chart[i, k] and right[1] in chart[k, i + size]:
                        cell[a] += p * chart[i, k][right[0]] * chart[k, i + size][right[1]]
            chart[i, i + size] = dict(cell)
    return chart


def probability(rules, tree):
    if len(tree) == 2:
        return rules[tree[0], (tree[1],)]
    left, right = tree[1], tree[2]
    return rules[tree[0], (left[0], right[0])] * probability(rules, left) * probability(rules, right)


@given(
    seed=st.integers(0, 999), symbols=st.integers(1, 4), vocabulary=st.integers(1, 4), english=st.booleans()
)
def test_gold_tree_is_a_parse_of_the_sentence(seed, symbols, vocabulary, english):
    rng = np.random.default_rng(seed)
    grammar = ENGLISH if english else random_grammar(rng, symbols, vocabulary, lexical=0.7)
    if not english and symbols == 1:
        return  # the start symbol alone never becomes a word
    rules = rules_of(grammar)
    tokens, lengths, trees = sentences(rng, 3, grammar, max_length=8)
    for row, n, tree in zip(tokens, lengths, trees, strict=True):
        sentence = [grammar.vocabulary[w] for w in row[:n]]
        assert (row[n:] == -1).all() and words(tree) == sentence and 1 <= n <= 8
        chart = cky(rules, sentence)
        start = grammar.symbols[0]
        assert tree[0] == start and 0 < probability(rules, tree) <= chart[0, n][start] * (1 + 1e-9)
        nodes = spans(tree)
        assert len(nodes) == 2 * n - 1 and nodes[0] == (0, n, start)
        for i, j, symbol in nodes:
            assert symbol in chart[i, j]
        for i, j, _ in nodes:  # proper nesting
            assert all(not (i < k < j < m) and not (k < i < m < j) for k, m, _ in nodes)


def test_trees_have_the_probabilities_of_the_grammar():
    """All trees of up to four words, enumerated; conditioned on the length, drawn ones match."""
    grammar = Grammar.parse("S -> S S 2 | A S 1 | a 4\nA -> S A 1 | b 2")
    rules = rules_of(grammar)

    def trees(symbol, n):
        if n == 1:
            return [(symbol, right[0]) for (a, right) in rules if a == symbol and len(right) == 1]
        return [
            (symbol, left, right)
            for (a, side) in rules
            if a == symbol and len(side) == 2
            for k in range(1, n)
            for left in trees(side[0], k)
            for right in trees(side[1], n - k)
        ]

    every = {t: probability(rules, t) for n in (2, 3, 4) for t in trees("S", n)}
    total, count = sum(every.values()), 20_000
    drawn = Counter(sentences(np.random.default_rng(0), count, grammar, 4, 2).trees)
    assert set(drawn) <= set(every)
    for tree, p in every.items():
        expected = count * p / total
        assert abs(drawn[tree] - expected) <= 5 * np.sqrt(expected)


def test_parse():
    g = Grammar.parse("S -> A B 3 | x\n\n A -> y 1 | z 1.5 | A A 2.5\nB -> x")
    assert g.symbols == ("S", "A", "B") and g.vocabulary == ("x", "y", "z")
    assert g.binary[0, 1, 2] == 0.75 and g.lexical[0].tolist() == [0.25, 0, 0]
    assert g.lexical[1].tolist() == [0, 0.2, 0.3] and g.binary[1, 1, 1] == 0.5
    assert g.lexical[2].tolist() == [1, 0, 0]


@given(seed=st.integers(0, 99), symbols=st.integers(1, 6), vocabulary=st.integers(1, 6))
def test_random_grammars_are_grammars(seed, symbols, vocabulary):
    g = random_grammar(np.random.default_rng(seed), symbols, vocabulary, lexical=0.6)
    assert g.binary.shape == (symbols,) * 3 and g.lexical.shape == (symbols, vocabulary)
    assert np.allclose(g.binary.sum(axis=(1, 2)) + g.lexical.sum(axis=1), 1)
    assert np.allclose(g.lexical[1:].sum(axis=1), 0.6) and not g.lexical[0].any()
    assert len(set(g.symbols)) == symbols and len(set(g.vocabulary)) == vocabulary


def test_length_range():
    _, lengths, _ = sentences(np.random.default_rng(0), 500, ENGLISH, max_length=7, min_length=4)
    assert set(lengths) == {4, 5, 6, 7}
    tokens, lengths, _ = sentences(np.random.default_rng(0), 5, Grammar.parse("S -> a"), max_length=1)
    assert tokens.tolist() == [[0]] * 5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda r: Grammar.parse(""), "lines"),
        (lambda r: Grammar.parse("S A B"), "lines"),
        (lambda r: Grammar.parse("S -> S"), "two symbols or one word"),
        (lambda r: Grammar.parse("S -> a b"), "two symbols or one word"),
        (lambda r: Grammar.parse("S -> S S S"), "two symbols or one word"),
        (lambda r: Grammar.parse("S -> a | "), "two symbols or one word"),
        (lambda r: Grammar.parse("S -> a 0"), "weight"),
        (lambda r: Grammar.parse("S -> a -1"), "weight"),
        (lambda r: Grammar.parse("S -> a nan"), "weight"),
        (lambda r: random_grammar(r, 0, 1), "symbols"),
        (lambda r: random_grammar(r, 1, 1, lexical=1), "lexical"),
        (lambda r: random_grammar(r, 1, 1, concentration=0), "concentration"),
        (lambda r: sentences(r, 1, ENGLISH, max_length=0), "max_length"),
        (lambda r: sentences(r, 1, ENGLISH, max_length=3, min_length=4), "max_length"),
        (lambda r: sentences(r, 1, Grammar.parse("S -> S S"), max_length=3), "too few sentences"),
        (lambda r: sentences(r, 0), "batch"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call(np.random.default_rng(0))
    with pytest.raises(TypeError, match="rng"):
        sentences(0, 1)
