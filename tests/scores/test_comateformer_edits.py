"""Paper 134: edits of a sentence, each with what it must leave alone."""

import numpy as np
import pytest

from minattn.scores.comateformer_edits import VERBS, change_number, insert_synonym, negate, swap_two_words

pytestmark = pytest.mark.paper(134)


def test_edits():
    rng, words = np.random.default_rng(0), "the bus is not late at 10".split()
    seen = {tuple(swap_two_words("a b a".split(), rng)) for _ in range(20)}
    assert seen == {("b", "a", "a"), ("a", "a", "b")}
    assert swap_two_words(["a", "a"], rng) is None
    assert negate(words) == "the bus is late at 10".split()
    assert negate(negate(words)) == words
    assert negate(["it", "Is"]) == ["it", "Is", "not"]
    assert negate(["birds", "sing"]) is None
    numbers = {change_number(words, rng)[-1] for _ in range(300)}
    assert "10" not in numbers and len(numbers) > 80 and all(len(n) == 2 and n.isdigit() for n in numbers)
    assert change_number(words, rng)[:-1] == words[:-1]
    assert change_number(["ten"], rng) is None
    assert {tuple(change_number(["1", "x", "2"], rng)).index("x") for _ in range(5)} == {1}
    synonyms = {"bus": ["coach", "omnibus"], "late": []}
    assert {insert_synonym(words, synonyms, rng)[1] for _ in range(20)} == {"coach", "omnibus"}
    assert insert_synonym(words, synonyms, rng)[2:] == words[2:]
    assert insert_synonym(["x"], synonyms, rng) is None


def test_every_auxiliary_is_negated():
    for verb in VERBS:
        assert negate(["it", verb, "so"]) == ["it", verb, "not", "so"]
    assert negate(["is", "it", "what", "was"]) == ["is", "not", "it", "what", "was"]
    assert len(set(VERBS)) == len(VERBS) == 19
    for verb in ("is", "are", "was", "were", "can", "will", "do", "does", "did", "has", "have", "had"):
        assert verb in VERBS


def test_numbers_keep_their_width():
    rng = np.random.default_rng(1)
    seen = {change_number(["007"], rng)[0] for _ in range(20_000)}
    assert seen == {f"{n:03}" for n in range(1000)} - {"007"}
    assert {change_number(["3"], rng)[0] for _ in range(200)} == set("012456789")
    assert change_number(["3.5", "²"], rng) is None
