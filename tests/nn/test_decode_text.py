"""Decoding step by step, penalties as a step, and text while it is written."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minattn.autograd import Tensor
from minattn.nn.decode import (
    beam_search,
    decode_steps,
    greedy,
    of_rows,
    penalize_repeats,
    penalized,
    sample,
    sampler,
    stop_at,
    text_pieces,
    until_stop,
)


def counting(ids):
    """The next number, modulo 7."""
    z = np.zeros((len(ids), 7))
    z[np.arange(len(ids)), (ids[:, -1] + 1) % 7] = 5.0
    return z


# ---- steps


def test_steps_come_one_at_a_time():
    calls = []
    steps = decode_steps(lambda ids: calls.append(ids.shape) or counting(ids), [[0, 1], [0, 4]], 9)
    assert calls == []
    assert next(steps).tolist() == [2, 5] and calls == [(2, 2)]
    assert next(steps).tolist() == [3, 6] and calls == [(2, 2), (2, 3)]
    assert len(list(steps)) == 7


def test_a_bad_prompt_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"^ids: "):
        decode_steps(counting, [0, 1], 3)
    with pytest.raises(ValueError, match=r"^max_new: "):
        decode_steps(counting, [[0]], -1)


@pytest.mark.parametrize("eos, filling", [(None, 0), (6, 6)])
def test_a_criterion_ends_rows_after_its_token(eos, filling):
    seen = []

    def stop(ids):
        seen.append(ids.shape)
        return ids[:, -1] == 4

    out = greedy(counting, [[0], [2], [4]], 20, eos=eos, stop=stop)
    ends = {None: 7, 6: 4}[eos]
    want = [[0, 1, 2, 3, 4], [2, 3, 4], [4, 5, 6, 0, 1, 2, 3, 4] if eos is None else [4, 5, 6]]
    assert out.tolist() == [row + [filling] * (1 + ends - len(row)) for row in want]
    assert seen[0] == (3, 2) and len(seen) == ends
    same = sample(counting, [[0], [2], [4]], 20, eos=eos, stop=stop, rng=np.random.default_rng(0), top_k=1)
    np.testing.assert_array_equal(same, out)


def test_a_sampler_draws_as_sample_does():
    z = np.random.default_rng(1).standard_normal((4, 6))
    draw = sampler(np.random.default_rng(2), temperature=2.0, top_k=3)
    got = np.stack([draw(z) for _ in range(5)], 1)
    rng = np.random.default_rng(2)
    want = np.concatenate([sample(lambda ids: z, np.zeros((4, 1), int), 1, rng=rng, temperature=2.0, top_k=3)
                           [:, 1:] for _ in range(5)], 1)
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(got)) > 2


# ---- the penalty as a step


def test_a_penalized_step_penalizes_what_is_there_so_far():
    step = penalized(lambda ids: Tensor(counting(ids).astype(np.float32)), 2.0)
    ids = np.array([[1, 2], [3, 3]])
    np.testing.assert_array_equal(step(ids), penalize_repeats(counting(ids), ids, 2.0))
    assert step(ids).dtype == np.float64
    ids = np.array([[1, 2, 3], [4, 3, 3]])
    assert step(ids)[1].tolist() == [0, 0, 0, 0, 2.5, 0, 0]  # 4 has been said
    assert not hasattr(step, "reorder")
    bold = penalized(counting, 0.5)  # below 1 it invites repeats
    np.testing.assert_array_equal(bold(ids), penalize_repeats(counting(ids), ids, 0.5))


def test_a_penalized_step_passes_reordering_on_and_knows_whose_row_is_whose():
    class Noting:
        def __init__(self):
            self.orders = []

        def __call__(self, ids):
            return np.where(np.arange(5) == ids[:, -1:], 3.0, np.arange(5) / 5)

        def reorder(self, rows):
            self.orders.append(rows.tolist())

    prompts, pad = np.array([[4, 1], [4, 2]]), np.array([1, 0])
    noting = Noting()
    found = beam_search(penalized(noting, 9.0, pad), prompts, 2, 2)
    assert noting.orders[0] == [0, 0, 1, 1] and len(noting.orders) == 2
    for b in range(2):  # padding does not count: 4 has been said in the second row alone
        alone = beam_search(penalized(Noting(), 9.0), prompts[b : b + 1, pad[b] :], 2, 2)
        np.testing.assert_array_equal(found.ids[b, :, 2:], alone.ids[0, :, 2 - pad[b] :])
    assert (found.ids[0, :, 2] == 4).any() and not (found.ids[1, :, 2] == 4).any()


def test_rows_of_beams_are_those_of_their_prompts():
    assert of_rows(None, 6) is None
    assert of_rows(np.array([5, 7]), 2).tolist() == [5, 7]
    assert of_rows(np.array([5, 7]), 6).tolist() == [5, 5, 5, 7, 7, 7]
    assert of_rows(np.array([[5], [7]]), 4).tolist() == [[5], [5], [7], [7]]


@pytest.mark.parametrize("penalty", [0.0, -1.0, np.inf, np.nan])
def test_a_senseless_penalty_is_refused(penalty):
    with pytest.raises(ValueError, match=f"^repetition_penalty: expected a number above 0 .*, got {penalty}"):
        penalized(counting, penalty)


def test_impossible_tokens_stay_impossible():
    z = np.array([[-np.inf, -1.0, 0.0, 2.0]])
    got = penalize_repeats(z, np.array([[0, 1, 2, 3]]), 2.0)
    assert got.tolist() == [[-np.inf, -2.0, 0.0, 1.0]]
    assert z.tolist() == [[-np.inf, -1.0, 0.0, 2.0]]


# ---- text


def as_utf8(ids):
    """Token t is byte t, but 0 is the two bytes of é."""
    return b"".join(b"\xc3\xa9" if i == 0 else bytes([i]) for i in ids).decode(errors="replace")


@pytest.mark.parametrize("text, want", [
    ("ab", ["a", "b"]), ("aéb", ["a", "", "é", "b"]), ("😀!", ["", "", "", "😀", "!"]), ("", []),
])
def test_pieces_wait_for_whole_characters(text, want):
    assert list(text_pieces(as_utf8, list(text.encode()))) == want


def test_a_piece_is_given_before_the_next_token_is_asked_for():
    asked = []

    def ids():
        for i in b"a\xc3\xa9":
            asked.append(i)
            yield i

    pieces = text_pieces(as_utf8, ids())
    assert next(pieces) == "a" and len(asked) == 1
    assert next(pieces) == "" and next(pieces) == "é" and len(asked) == 3
    assert list(pieces) == []


def test_what_never_becomes_a_character_comes_at_the_end():
    assert list(text_pieces(as_utf8, [0xC3, 0x41, 0xC3])) == ["", "\ufffdA", "", "\ufffd"]


@given(st.lists(st.sampled_from([0, 0x41, 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80]), max_size=10))
def test_pieces_together_are_the_text(ids):
    parts = list(text_pieces(as_utf8, ids))
    assert "".join(parts) == as_utf8(ids)
    assert len(parts) - len(ids) in (0, 1)


@pytest.mark.parametrize("pieces, stops, want", [
    (["ab", "c"], [], ["ab", "c"]),
    (["ab", "c"], ["b"], ["a"]),
    (["ab", "c"], ["c"], ["ab", ""]),
    (["ab", "c", "d"], ["bc"], ["a", ""]),  # b waits
    (["ab", "x", "d"], ["bc"], ["a", "bx", "d"]),
    (["ab", "b", "c"], ["bc"], ["a", "b", ""]),
    (["a", "b"], ["bc"], ["a", "", "b"]),  # and comes at the end
    (["abab", "c"], ["ababd", "bc"], ["", "aba"]),
    (["xaby"], ["b", "a"], ["x"]),  # the first in the text
    (["aa", "a"], ["aaa"], ["", ""]),
    (["aab", "b"], ["abc"], ["a", "abb"]),
    (["", "a", ""], ["ab"], ["", "", "", "a"]),
])
def test_text_up_to_a_stop_string(pieces, stops, want):
    assert list(until_stop(pieces, stops)) == want


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
       st.lists(st.integers(0, 12), max_size=5))
def test_stop_strings_in_any_pieces(text, stops, cuts):
    """What comes out ends where the first complete stop string begins, whatever the pieces."""
    letters = list(text)
    got = "".join(until_stop(letters, stops))
    for n in range(len(text) + 1):
        found = [text[:n].index(s) for s in stops if s in text[:n]]
        if found:
            assert got == text[: min(found)]
            break
    else:
        assert got == text
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    other = "".join(until_stop(pieces, stops))
    assert text.startswith(other) and not any(s in other for s in stops)


def test_rows_that_hold_a_stop_string():
    stop = stop_at(as_utf8, ["é!", "xyz"], start=2)
    rows = {"ab__xyz": True, "abxyz": True, "axyz_": False, "ab_xy": False, "ab___": False}
    for text, want in rows.items():
        assert stop(np.array([list(text.encode())])).tolist() == [want], text
    assert stop(np.array([[65, 66, 67, 0, 33], [65, 66, 67, 0, 34]])).tolist() == [True, False]
    long = np.array([list(b"ab" + b"_" * 90 + b"\xc3\xa9!")])
    assert stop(long).tolist() == [True] and stop(long[:, :-1]).tolist() == [False]


def test_only_the_end_is_decoded():
    seen = []
    stop = stop_at(lambda ids: seen.append(len(ids)) or "", ["ab", "é!"], start=5)
    for n in (6, 7, 8, 9, 50):
        assert stop(np.zeros((2, n), int)).tolist() == [False, False]
    assert seen == [1, 1, 2, 2, 3, 3, 3, 3, 3, 3]
