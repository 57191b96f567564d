"""Captions and questions: answered again here from the list of objects, by other means."""

import re
from collections import Counter

import numpy as np
import pytest

from minattn.data import COLOURS, KINDS, SHAPES, WORDS, captions, questions, scenes

NUMBERS = "zero one two three four five six seven eight nine".split()


@pytest.fixture(scope="module")
def crowd():
    return scenes(np.random.default_rng(0), 600, size=32, grid=4, objects=(0, 6))


def objects(s, image):
    """[(colour, shape, row, column)] in words and numbers."""
    return [
        (list(COLOURS)[c], SHAPES[k], *divmod(int(cell), s.grid))
        for k, c, cell in zip(s.shape[image], s.colour[image], s.cell[image], strict=True)
        if k >= 0
    ]


def answer(text, things):
    """The answer to a question, or None if it has no single one."""
    if m := re.fullmatch(r"colour of (\w+) \?", text):
        found = [c for c, s, *_ in things if s == m[1]]
        return found[0] if len(found) == 1 else None
    if m := re.fullmatch(r"shape of (\w+) \?", text):
        found = [s for c, s, *_ in things if c == m[1]]
        return found[0] if len(found) == 1 else None
    if m := re.fullmatch(r"is there (\w+) (\w+) \?", text):
        return "yes" if any((c, s) == (m[1], m[2]) for c, s, *_ in things) else "no"
    if m := re.fullmatch(r"how many (\w+) \?", text):
        return NUMBERS[sum(s == m[1] for _, s, *_ in things)]
    if text == "what is this ?":
        return " ".join(things[0][:2]) if len(things) == 1 else None
    m = re.fullmatch(r"colour of the shape (left of|right of|above|below) the (\w+) (\w+) \?", text)
    anchors = [t for t in things if t[:2] == (m[2], m[3])]
    if len(anchors) != 1:
        return None
    _, _, row, column = anchors[0]
    line = {
        "left of": [(column - x, c) for c, _, y, x in things if y == row and x < column],
        "right of": [(x - column, c) for c, _, y, x in things if y == row and x > column],
        "above": [(row - y, c) for c, _, y, x in things if x == column and y < row],
        "below": [(y - row, c) for c, _, y, x in things if x == column and y > row],
    }[m[1]]
    return min(line)[1] if line else None


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_answer_is_right_and_decided_by_its_objects(crowd, kind):
    asked = questions(np.random.default_rng(1), crowd, [kind])
    assert len(asked) > 50 and len({q.image for q in asked}) == len(asked)
    for q in asked:
        things = objects(crowd, q.image)
        assert q.kind == kind and answer(q.text, things) == q.answer
        assert set(f"{q.text} {q.answer}".split()) <= set(WORDS)
        names = [things[k] for k in q.objects]
        if kind in ("colour", "beside"):
            assert names[-1][0] == q.answer
        if kind == "shape":
            assert names[-1][1] == q.answer
        if kind == "beside":
            assert f"the {names[0][0]} {names[0][1]} ?" in q.text
        if kind == "count":
            assert NUMBERS[len(names)] == q.answer and len({n[1] for n in names}) <= 1
        if kind == "exists":
            assert bool(names) == (q.answer == "yes")
    images = {q.image for q in asked}
    if kind == "what":
        assert images == {i for i in range(600) if len(objects(crowd, i)) == 1}
    if kind in ("exists", "count"):
        assert len(images) == 600


def test_half_of_the_existence_answers_are_yes():
    s = scenes(np.random.default_rng(0), 2000, objects=(1, 3))
    said = Counter(q.answer for q in questions(np.random.default_rng(0), s, ["exists"]))
    assert abs(said["yes"] - 1000) < 5 * np.sqrt(500)


def test_all_kinds_are_asked_and_empty_scenes_are_counted():
    s = scenes(np.random.default_rng(0), 500, objects=(0, 3))
    asked = questions(np.random.default_rng(0), s)
    assert set(Counter(q.kind for q in asked)) == set(KINDS)
    empty = [q for q in asked if not objects(s, q.image)]
    assert empty and {q.answer for q in empty} <= {"no", "zero"}


def test_captions(crowd):
    for positions in (False, True):
        for i, text in enumerate(captions(crowd, positions)):
            things = objects(crowd, i)
            said = [
                f"{c} {s}" + (f" row {NUMBERS[y + 1]} column {NUMBERS[x + 1]}" if positions else "")
                for c, s, y, x in sorted(things, key=lambda t: t[2:])
            ]
            assert text == (" and ".join(said) or "nothing") + " ."
            assert set(text.split()) <= set(WORDS)


def test_bad_input(crowd):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="kinds"):
        questions(rng, crowd, ["size"])
    with pytest.raises(ValueError, match="kinds"):
        questions(rng, crowd, [])
    many = scenes(rng, 1, size=80, grid=10, objects=(10, 10))
    with pytest.raises(ValueError, match="9 objects"):
        questions(rng, many)
    with pytest.raises(ValueError, match="grid"):
        captions(many, positions=True)
    with pytest.raises(TypeError, match="rng"):
        questions(1, crowd)
