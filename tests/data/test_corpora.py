"""Shakespeare and Milton: exact bytes, and that they are what the documentation says."""

import hashlib
import re

import pytest

from minattn.data import MILTON, SHAKESPEARE, CharVocabulary, milton, shakespeare, split
from minattn.data.corpora import _capitals, _clean, _first_act

from .conftest import corpus


@pytest.mark.parametrize(
    ("load", "length", "alphabet", "sha256"),
    [
        (shakespeare, 1_142_758, 73, "2b4e6ba95ddb423eeadbd8f811ec4ac784f78b4ffac37030980c56cf15b20b02"),
        (milton, 543_563, 66, "55ac7352b04a3c0b1ac3a5017ae60dd152e1ae6d5997e52bd72a356b1f297bc0"),
    ],
)
def test_bytes_length_and_alphabet(load, length, alphabet, sha256):
    text = corpus(load)
    assert len(text) == length and len(set(text)) == alphabet
    assert f"{length:,} characters over an alphabet of {alphabet}" in load.__doc__
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == sha256
    assert not re.search(r"[^\n -~]|[ \t]\n|\n\n\n|THE END(?! OF)|[<>{}_&]\w+;", text) and text.endswith("\n")


def test_plays_are_whole_and_in_order():
    text = corpus(shakespeare)
    marks = {
        "hamlet": "To be, or not to be,--that is the question:--",
        "julius_caesar": "Friends, Romans, countrymen",
        "lear": "Blow, winds, and crack your cheeks!",
        "macbeth": "Is this a dagger which I see before me",
        "midsummer_nights_dream": "The course of true love never did run smooth",
        "othello": "green-ey'd monster",
        "romeo_and_juliet": "wherefore art thou Romeo?",
        "tempest": "We are such stuff",
        "twelfth_night": "If music be the food of love",
    }
    assert tuple(marks) == SHAKESPEARE
    places = [text.index(mark) for mark in marks.values()]
    assert places == sorted(places)
    assert len(re.findall(r"(?m)^ACT (?:I\.?|1)$", text)) == 9
    assert not re.search(r"(?i)dramatis personae|persons represented|by William Shakespeare|gutenberg", text)


def test_some_plays_are_cut_from_the_whole():
    whole = corpus(shakespeare)
    macbeth, hamlet = (shakespeare([play]) for play in ("macbeth", "hamlet"))
    assert macbeth.rstrip("\n") in whole and whole.startswith(hamlet.rstrip("\n"))
    assert shakespeare(("macbeth", "hamlet")) == f"{macbeth}\n{hamlet}"
    for plays in ((), ["henry_v"], "hamlet"):
        with pytest.raises(ValueError, match=r"plays must be names from hamlet, .* got"):
            shakespeare(plays)


def test_validation_text_is_a_play_of_its_own():
    ids = CharVocabulary(corpus(shakespeare)).encode(corpus(shakespeare))
    _, validation = split(ids)
    text = CharVocabulary(corpus(shakespeare)).decode(validation)
    assert text.index("ACT I.") < 100 and "VIOLA." in text and "PROSPERO." not in text


def test_poems_are_whole_and_without_line_numbers():
    text = corpus(milton)
    assert MILTON == ("paradiselost", "paradiseregained")
    assert text.startswith("PARADISE LOST\nBOOK I.") and text.count("PARADISE REGAINED") == 1
    assert (
        text.index("Of Mans First Disobedience") < text.index("solitarie way") < text.index("I, WHO erewhile")
    )
    assert len(re.findall(r"(?m)^BOOK ", text)) == 10 and len(re.findall(r"(?m)^THE \w+ BOOK$", text)) == 4
    assert not re.search(r"\d", text)


def test_cleaning():
    assert (
        _clean("a  \n\n\n\nb\t\n{x] y/ z & c.\nfix&egrave;d\x1a\n\nTHE END.\n")
        == "a\n\nb\n[x] y, z &c.\nfixed"
    )
    assert _first_act("Title\nACTORS\nACT I.\nx") == 13 and _first_act("ACT 1\n") == 0
    with pytest.raises(ValueError, match="ACT I"):
        _first_act("ACT II.\n")


def test_speakers_are_in_capitals_and_nothing_else_is_touched():
    text = "ACT I.\n\nHam.\nWords.\n\n1 Clown.\nYes.\n\nRos and Guil.\nOh.\n\nAct II.\nx\n\nGive it.\n\nNo."
    assert _capitals(text) == (
        "ACT I.\n\nHAM.\nWords.\n\n1 CLOWN.\nYes.\n\nROS AND GUIL.\nOh.\n\nAct II.\nx\n\nGive it.\n\nNo."
    )
    full = corpus(shakespeare)
    assert full.count("\n\nHAM.\n") == 358 and "\n\nHam.\n" not in full
