"""The 213 papers as data: number, title, authors, year, chapter and the names promised for each.

The data stand in `papers.json`, which is edited by hand; `minattn.atlas` computes each paper's status.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Paper", "chapters", "papers"]


@dataclass(frozen=True)
class Paper:
    """One paper of the register.

    Attributes
    ----------
    number : its id everywhere.
    title, year, venue, tags : as published; venue is empty for a preprint.
    authors : family names in order; a last entry "others" stands for the rest.
    arxiv : identifier such as "2405.18719", or empty.
    chapter : the one chapter it belongs to.
    names : the public names that the project promises for it.
    """

    number: int
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    arxiv: str
    chapter: str
    tags: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """The label of its page, such as "paper-065"."""
        return f"paper-{self.number:03d}"

    @property
    def key(self) -> str:
        """Its key in references.bib, such as "paper065"."""
        return f"paper{self.number:03d}"

    @property
    def url(self) -> str:
        """Where the paper can be read, or empty when the register has no identifier."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def by(self) -> str:
        """The authors in short: "Vig", "Abnar and Zuidema", "Golovneva et al."."""
        if len(self.authors) == 2 and self.authors[1] != "others":
            return " and ".join(self.authors)
        return self.authors[0] + (" et al." if len(self.authors) > 1 else "")


@functools.cache
def _register() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "papers.json").read_text(encoding="utf-8"))


@functools.cache
def chapters() -> dict[str, str]:
    """The chapters that hold papers, in reading order: name -> title."""
    return dict(_register()["chapters"])


@functools.cache
def papers() -> tuple[Paper, ...]:
    """The register, in order of number."""
    def entry(data: dict[str, Any]) -> Paper:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return Paper(**fields)

    return tuple(map(entry, _register()["papers"]))
