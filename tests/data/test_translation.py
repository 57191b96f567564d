"""Translation pairs: the reader of catalogues against the standard library's, and what is kept."""

import gettext
import struct

import pytest

from minattn.data import read_mo, translation_pairs
from minattn.data.translation import _is_sentence, _plain

from .conftest import corpus


def write_mo(path, pairs, order="<"):
    """A compiled catalogue, as msgfmt writes it."""
    n, at = len(pairs), 28 + 16 * len(pairs)
    tables, blob = [], b""
    for side in (0, 1):
        for pair in sorted(pairs):
            data = pair[side].encode()
            tables += [len(data), at + len(blob)]
            blob += data + b"\0"
    head = struct.pack(order + "7I", 0x950412DE, 0, n, 28, 28 + 8 * n, 0, 0)
    path.write_bytes(head + struct.pack(f"{order}{4 * n}I", *tables) + blob)


@pytest.mark.parametrize("order", ["<", ">"])
def test_catalogues_are_read_as_gettext_reads_them(tmp_path, order):
    pairs = [
        ("", "Content-Type: text/plain; charset=UTF-8\n"),
        ("cat", "Katze"),
        ("size\x04large", "groß"),
        ("dog\0dogs", "Hund\0Hunde"),
        ("é", "ü"),
    ]
    write_mo(tmp_path / "x.mo", pairs, order)
    got = dict(read_mo(tmp_path / "x.mo"))
    assert got == {"cat": "Katze", "large": "groß", "é": "ü"}
    with open(tmp_path / "x.mo", "rb") as f:
        theirs = gettext.GNUTranslations(f)
    assert theirs.gettext("cat") == got["cat"] and theirs.pgettext("size", "large") == got["large"]


def test_what_is_no_catalogue_is_refused(tmp_path):
    (tmp_path / "x.mo").write_bytes(b"hello, this is not one")
    with pytest.raises(ValueError, match="catalogue"):
        read_mo(tmp_path / "x.mo")


@pytest.mark.parametrize(("language", "count"), [("de", 650), ("fr", 921)])
def test_pairs(language, count):
    pairs = corpus(translation_pairs, language)
    assert len(pairs) == count and pairs == sorted(pairs) and len({e for e, _ in pairs}) == count
    for english, other in pairs:
        assert english != other and english.isprintable() and other.isprintable()
        assert not set(english + other) & set("{}<>%`|\\")
    known = {"de": ("Enter a whole number.", "Bitte eine ganze Zahl eingeben."), "fr": ("Swedish", "Suédois")}
    assert known[language] in pairs


@pytest.mark.parametrize(
    ("english", "other", "kept"),
    [
        ("Save", "Sichern", True),
        ("100% sure", "100% sicher", True),
        ("Save", "Save", False),
        ("Save", "", False),
        ("Hello %s", "Hallo %s", False),
        ("Hello %(name)s", "Hallo %(name)s", False),
        ("{n} items", "{n} Dinge", False),
        ("a <b>bold</b>", "x", False),
        ("12", "zwölf", False),
        ("Save", "*", False),
        ("see https://x", "siehe https://x", False),
    ],
)
def test_what_counts_as_a_sentence(english, other, kept):
    assert _is_sentence(english, other) == kept


def test_spaces():
    assert _plain("  a\u00a0b \n c\u202f! ") == "a b c !"


def test_bad_language():
    with pytest.raises(ValueError, match="language must be 'de' or 'fr', got 'es'"):
        translation_pairs("es")
