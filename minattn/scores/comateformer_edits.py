"""Small edits of a sentence that a matching model should notice, or should not.

Swapping two words, negating and changing a number alter what a sentence says; a synonym does not. Each edit
works on a list of words and gives a new list, or None where there is nothing to edit. The kinds are those of
the robustness tests of Li, Liang and Zhang, arXiv 2412.07220 (paper 134); the rules are ours.
"""

# mypy: disable-error-code="call-overload"

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

PAPERS = (134,)

__all__ = ["change_number", "insert_synonym", "negate", "swap_two_words"]

VERBS = ("is", "are", "was", "were", "am", "can", "could", "will", "would", "should", "must", "may", "might",
         "do", "does", "did", "has", "have", "had")


def swap_two_words(words: Sequence[str], rng: np.random.Generator) -> list[str] | None:
    """Exchange two words that differ, chosen at random among all such pairs."""
    pairs = [(i, j) for j in range(len(words)) for i in range(j) if words[i] != words[j]]
    if not pairs:
        return None
    i, j = pairs[rng.integers(len(pairs))]
    out = list(words)
    out[i], out[j] = out[j], out[i]
    return out


def negate(words: Sequence[str]) -> list[str] | None:
    """Put "not" after the first auxiliary verb, or take away the one that stands there."""
    for n, word in enumerate(words):
        if word.lower() in VERBS:
            rest = list(words[n + 1 :])
            rest = rest[1:] if rest and rest[0].lower() == "not" else ["not", *rest]
            return [*words[: n + 1], *rest]
    return None


def change_number(words: Sequence[str], rng: np.random.Generator) -> list[str] | None:
    """Replace one whole number in digits, chosen at random, by another of as many digits."""
    at = [n for n, word in enumerate(words) if word.isascii() and word.isdigit()]
    if not at:
        return None
    n = at[rng.integers(len(at))]
    size = 10 ** len(words[n])
    return [*words[:n], str((int(words[n]) + int(rng.integers(1, size))) % size).zfill(len(words[n])),
            *words[n + 1 :]]


def insert_synonym(words: Sequence[str], synonyms: Mapping[str, Sequence[str]], rng: np.random.Generator
                   ) -> list[str] | None:
    """Say one word, chosen at random among those with a synonym, by one of its synonyms."""
    at = [n for n, word in enumerate(words) if word in synonyms and len(synonyms[word])]
    if not at:
        return None
    n = at[rng.integers(len(at))]
    others = synonyms[words[n]]
    return [*words[:n], others[rng.integers(len(others))], *words[n + 1 :]]
