"""Pairs of short English and German or French sentences: messages of two programs."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from .fetch import fetch

__all__ = ["read_mo", "translation_pairs"]

_DJANGO = ("Django", "5.2.8", "37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f")
_SPHINX = ("sphinx", "7.4.7", "c2419e2135d11f1951cd994d6eb18a1835bd8fdd8429f9ca375dc1f3281bd239")
_APPS = "admin admindocs auth contenttypes flatpages gis humanize postgres redirects sessions sites".split()

# What marks a message as a template or markup and not as a sentence: %s, %(name)d, {name}, <b>, a line break,
# \x04 ...
_TEMPLATE = re.compile(r"%[(\w%]|[{}<>\n\r\t`|\\]|&\w+;|https?:")


def translation_pairs(language: str) -> list[tuple[str, str]]:
    """English messages of Django 5.2.8 and Sphinx 7.4.7 with their German or French translations.

    Both are published by their authors as gettext catalogues, under BSD licences. Left out are messages with
    placeholders or markup, untranslated ones, those without a letter, and repetitions of an English message
    (the first counts); shortcut marks and surplus spaces are removed. The order is that of the English,
    alphabetically, so a split must shuffle first.

    Parameters
    ----------
    language : str
        `"de"` or `"fr"`.

    Returns
    -------
    list of (str, str)
        (English, translation).

    Raises
    ------
    minattn.data.FetchError
        If a catalogue is neither cached nor to be had through pip.
    """
    if language not in ("de", "fr"):
        raise ValueError(f"language must be 'de' or 'fr', got {language!r}")
    place = f"locale/{language}/LC_MESSAGES"
    django = [f"django/conf/{place}/django.mo"] + [f"django/contrib/{app}/{place}/django.mo" for app in _APPS]
    sphinx = [f"sphinx/{place}/sphinx.mo"]
    files = [fetch(*_DJANGO, members=django, size=8_289_692) / name for name in django]
    files += [fetch(*_SPHINX, members=sphinx, size=3_401_624) / name for name in sphinx]
    pairs: dict[str, str] = {}
    for file in files:
        for english, other in read_mo(file):
            english, other = _plain(english), _plain(other)
            if _is_sentence(english, other):
                pairs.setdefault(english, other)
    return sorted(pairs.items())


def read_mo(path: Path) -> list[tuple[str, str]]:
    """The (message, translation) pairs of a compiled gettext catalogue, header and plural forms left out.

    The format: seven 32-bit numbers (a magic one that tells the byte order, revision, n, and where the two
    tables begin), then twice n entries (length, offset), for messages and for translations. In a message with
    a context the two are separated by \\x04, and plural forms by \\0.
    """
    data = Path(path).read_bytes()
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
    if order is None:
        raise ValueError(f"path must be a compiled gettext catalogue, got {path}")
    n, ids, strings = struct.unpack_from(order + "3I", data, 8)

    def text(table: int, k: int) -> str:
        length, offset = struct.unpack_from(order + "2I", data, table + 8 * k)
        return data[offset : offset + length].decode("utf-8")

    pairs = [(text(ids, k).rpartition("\x04")[2], text(strings, k)) for k in range(n)]
    return [(message, other) for message, other in pairs if message and "\0" not in message]


def _plain(text: str) -> str:
    return " ".join(text.replace("\u00a0", " ").replace("\u202f", " ").split())


def _is_sentence(english: str, other: str) -> bool:
    if not other or english == other or _TEMPLATE.search(english) or _TEMPLATE.search(other):
        return False
    return any(c.isalpha() for c in english) and any(c.isalpha() for c in other)
