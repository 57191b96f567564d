"""What front matter says as data, shown: the card under a page's title, and the map of chapters.

A page's front matter may hold

    minattn:
      papers: [65]                 # rows of the atlas that this page covers
      needs: [attention/masks]     # pages to have read first, without `chapters/`
      minutes: 12                  # reading time; without it, counted from the words
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .pages import Page, pages_in_toc

logger = logging.getLogger(__name__)
KEYS = {"papers", "needs", "minutes"}
WORDS_A_MINUTE = 180
FILE_LINE = re.compile(r'(<p class="minattn-file" data-module="([^"]*)" data-name="([^"]*)">)([^<]*)</p>')


class chapter_map(nodes.General, nodes.Element):
    """Stands where the map of chapters will be, until every page has been read."""


class Atlas(SphinxDirective):
    """``{atlas}``: the register of papers as a table; `row-065` is the anchor of paper 65."""

    def run(self) -> list[nodes.Node]:
        from minattn.atlas import table

        rows = re.sub(
            r"<tr([^>]*)><td>(\d+)</td>",
            lambda row: f'<tr{row[1]} id="row-{int(row[2]):03d}"><td>{row[2]}</td>',
            str(table(self.env.srcdir)),
        )
        return [nodes.raw("", rows, format="html")]


class ChapterMap(SphinxDirective):
    """``{chapter-map}``: every chapter with its pages, reading times, and the chapters it builds on."""

    def run(self) -> list[nodes.Node]:
        return [chapter_map()]


def facts(page: Page) -> dict[str, Any]:
    """The ``minattn`` block of the front matter, with reading minutes filled in."""
    found = dict(page.meta.get("minattn") or {})
    if unknown := set(found) - KEYS:
        raise ValueError(
            f"{page.name}: front matter `minattn` may hold {sorted(KEYS)}, got {sorted(unknown)}"
        )
    prose = re.sub(r"^```.*?^```", "", page.text, flags=re.S | re.M)
    found.setdefault("minutes", max(1, round(len(prose.split()) / WORDS_A_MINUTE)))
    found["needs"] = [f"chapters/{name}" for name in found.get("needs", [])]
    return found


def seconds_text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def chapter_of(name: str) -> str:
    return name.split("/")[1]


def card(page: Page, link: Callable[[str, str | None], str], following: str | None) -> str:
    """The HTML under a page's title: times, papers, what is needed first, what comes next."""
    known, stored = facts(page), page.stored()
    items = [f"<li>{known['minutes']} min to read</li>"]
    if stored:
        items.append(f"<li>{seconds_text(stored['seconds'])} to run</li>")
    papers = [link(f"book/atlas#row-{number:03d}", str(number)) for number in known.get("papers", [])]
    if papers:
        items.append(f"<li>{'paper' if len(papers) == 1 else 'papers'} {', '.join(papers)}</li>")
    lines = [f'<ul class="minattn-facts">{"".join(items)}</ul>']
    if known["needs"]:
        needs = ", ".join(link(name, None) for name in known["needs"])
        lines.append(f"<p><b>What you need first</b> {needs}</p>")
    if following:
        lines.append(f"<p><b>Next</b> {link(following, None)}</p>")
    return f'<div class="minattn-card">{"".join(lines)}</div>'


def map_of_chapters(pages: list[Page], link: Callable[[str, str | None], str]) -> str:
    """The HTML of the map: one box a chapter, in the order of reading."""
    chapters: dict[str, list[Page]] = {}
    for page in pages:
        if page.name.startswith("chapters/"):
            chapters.setdefault(chapter_of(page.name), []).append(page)
    indexes = {name: members[0].name for name, members in chapters.items()}
    boxes = []
    for number, (chapter, members) in enumerate(chapters.items(), 1):
        known = {page: facts(page) for page in members}
        below = dict.fromkeys(chapter_of(need) for page in members for need in known[page]["needs"])
        roots = [link(indexes[other], None) for other in below if other != chapter and other in indexes]
        rows = [
            f"<li>{link(page.name, None)} <span>{known[page]['minutes']} min</span></li>"
            for page in members[1:]
        ]
        boxes.append(
            f'<section class="minattn-chapter"><p class="minattn-number">{number}</p>'
            f"<h3>{link(indexes[chapter], None)}</h3>"
            + (f"<ol>{''.join(rows)}</ol>" if rows else "")
            + (f"<p>Builds on {', '.join(roots)}</p>" if roots else "")
            + "</section>"
        )
    return f'<div class="minattn-map">{"".join(boxes)}</div>'


def fill_in(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Before a page is written: insert its card, and replace a map's placeholder."""
    if app.builder.format != "html":
        return
    pages = pages_in_toc(Path(app.srcdir))

    def link(target: str, text: str | None) -> str:
        target, _, fragment = target.partition("#")
        if target not in app.env.titles:
            logger.warning("%s: front matter names the page %r, which is not in the book", name, target)
            return html.escape(text or target)
        address = app.builder.get_relative_uri(name, target) + (f"#{fragment}" if fragment else "")
        return f'<a href="{address}">{html.escape(text or app.env.titles[target].astext())}</a>'

    for node in list(doctree.findall(chapter_map)):
        node.replace_self(nodes.raw("", map_of_chapters(pages, link), format="html"))
    title = next(iter(doctree.findall(nodes.title)), None)
    if name.startswith("chapters/") and title is not None:
        names = [page.name for page in pages]
        following = names[names.index(name) + 1] if name in names[:-1] else None
        if following is not None and not following.startswith("chapters/"):
            following = None
        at = title.parent.index(title) + 1
        title.parent.insert(
            at, nodes.raw("", card(Page(name, Path(app.srcdir)), link, following), format="html")
        )


def link_sources(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Make the file name above a shown source a link to that place in the book's source pages."""
    if app.builder.format != "html":
        return
    modules = getattr(app.env, "_viewcode_modules", {})

    def linked(match: re.Match[str]) -> str:
        start, module, obj, text = match.groups()
        entry = modules.get(module) or None
        if not entry or obj not in entry[2]:
            return match[0]
        address = app.builder.get_relative_uri(name, f"_modules/{module.replace('.', '/')}")
        return f'{start}<a href="{address}#{obj}">{text}</a></p>'

    for node in doctree.findall(nodes.raw):
        if "minattn-file" in node.astext():
            node.children[:] = [nodes.Text(FILE_LINE.sub(linked, node.astext()))]


def rewrite_map(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The map depends on every page."""
    return ["book/intro"] if "book/intro" in env.found_docs else []


def setup(app: Sphinx) -> None:
    app.add_node(chapter_map)
    app.add_directive("chapter-map", ChapterMap)
    app.add_directive("atlas", Atlas)
    app.connect("doctree-resolved", fill_in)
    app.connect("doctree-resolved", link_sources)
    app.connect("env-updated", rewrite_map)
