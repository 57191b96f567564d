"""Every page of the built book, read in a real browser: light and dark, wide and narrow.

`make check-book` runs this after `make book`. Pictures of the pages are left in _build/screenshots.
"""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
SCREENSHOTS = ROOT / "_build" / "screenshots"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (HTML / "index.html").exists(), reason="the book is not built: run `make book` first"
    ),
]

# Measured in the page: what a reader would see as broken.
LOOK = """() => {
  const problems = [];
  const hidden = 'details:not([open]), .toggle-hidden, [hidden], .cell:is([class*=tag_remove])';
  const shown = e => !e.closest(hidden);
  if (document.documentElement.scrollWidth > innerWidth)
    problems.push(`scrolls sideways: ${document.documentElement.scrollWidth} > ${innerWidth}`);
  for (const box of document.querySelectorAll('.cell_input, .cell_output, figure, .minattn-source, table'))
    if (shown(box) && (box.textContent.trim() || box.querySelector('img'))) {
      const {width, height} = box.getBoundingClientRect();
      if (width < 1 || height < 1)
        problems.push(`not visible: ${box.className} ${box.textContent.slice(0, 60)}`);
    }
  for (const image of document.querySelectorAll('.bd-article img')) {
    if (!image.complete || !image.naturalWidth) problems.push(`image not loaded: ${image.src}`);
    if (!image.alt || /[.](png|svg)$/.test(image.alt)) problems.push(`image without alt text: ${image.src}`);
  }
  const formulas = document.querySelectorAll('.bd-article .math').length;
  const set = document.querySelectorAll('.bd-article .math mjx-container').length;
  if (set < formulas) problems.push(`${formulas - set} of ${formulas} formulas are not typeset`);
  for (const error of document.querySelectorAll('mjx-merror, [data-mjx-error]'))
    problems.push(`formula: ${error.getAttribute('data-mjx-error') || error.textContent}`);
  return problems;
}"""

CONTRAST = """() => {
  const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const problems = new Set();
  const parts = '.minattn-card, .minattn-card a, .minattn-checks :is(caption, th, td), .minattn-file, ' +
    '.minattn-source pre, .minattn-source pre span, .cell_output pre, .cell_input span, figcaption span, ' +
    '.bd-article p';
  for (const e of document.querySelectorAll(parts)) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.offsetParent) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => x - y);
    const ratio = (b + 0.05) / (a + 0.05);
    const what = `${e.tagName}.${e.className} "${e.textContent.trim().slice(0, 30)}"`;
    if (ratio < 4.5) problems.add(`contrast ${ratio.toFixed(1)}: ${what}`);
  }
  return [...problems];
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Requests are not worth a line each."""


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium here")
    with sync.sync_playwright() as playwright:
        flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        opened = playwright.chromium.launch(executable_path=program, args=flags)
        yield opened
        opened.close()


def pages():
    """Paths of all pages with their own content; the redirect at the root leads to one of them."""
    found = sorted(p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html"))
    return [name for name in found if name != "index.html" and not name.startswith(("_static/", "reports/"))]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_as_a_reader_sees_it(browser, address, theme, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    page.on(
        "request",
        lambda r: None if r.url.startswith((address, "data:")) else problems.append(f"asks {r.url}"),
    )
    page.on("response", lambda r: problems.append(f"{r.status} for {r.url}") if r.status >= 400 else None)
    found = {}
    for name in pages():
        if name.startswith("_modules/") and (theme, width) not in (("light", 1280), ("dark", 390)):
            continue  # source pages are all alike: both themes and both widths once
        problems.clear()
        page.goto(address + name)
        page.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise")
        problems += page.evaluate(LOOK)
        if name.startswith(("chapters/", "book/")):
            problems += page.evaluate(CONTRAST)
            picture = SCREENSHOTS / f"{name.removesuffix('.html').replace('/', '_')}-{theme}-{width}.png"
            page.screenshot(
                path=picture, full_page=not name.startswith(("book/api/", "book/atlas", "book/references"))
            )
        if problems:
            found[name] = list(dict.fromkeys(problems))[:8]
    context.close()
    listed = "\n".join(f"{name}:\n  " + "\n  ".join(what) for name, what in found.items())
    assert not found, f"{theme}, {width} px:\n{listed}"


def test_every_internal_link_leads_somewhere():
    from bs4 import BeautifulSoup

    trees = {
        name: BeautifulSoup((HTML / name).read_text(encoding="utf-8"), "html.parser") for name in pages()
    }
    anchors = {name: {tag["id"] for tag in tree.find_all(id=True)} for name, tree in trees.items()}
    broken, followed = [], 0
    for name, tree in trees.items():
        for tag in tree.find_all(["a", "img", "link", "script"]):
            target = tag.get("href") or tag.get("src")
            if not target or urlsplit(target).scheme or target.startswith("//"):
                continue
            followed += 1
            path, fragment = urldefrag(urljoin(f"/{name}", target))
            path = unquote(path.split("?")[0]).lstrip("/")
            if not (HTML / path).exists():
                broken.append(f"{name}: {target}")
            elif fragment and path in anchors and unquote(fragment) not in anchors[path]:
                broken.append(f"{name}: {target} (no such place on that page)")
    assert followed > 100
    assert not broken, "\n".join(sorted(set(broken))[:40])


def test_search_finds_a_page(browser, address):
    page = browser.new_page()
    page.goto(f"{address}search.html?q=attention")
    page.wait_for_selector("ul.search li", timeout=20000)
    assert page.locator("ul.search li").count() > 0
