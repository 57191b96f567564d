"""A small book of its own: two modules, three pages, and the real machinery."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TOC = """
format: jb-book
root: book/intro
parts:
  - caption: All
    chapters:
      - file: chapters/one/uses_a
      - file: chapters/one/uses_both
      - file: chapters/one/uses_none
"""
NOTEBOOK = """---
file_format: mystnb
kernelspec: {{name: python3}}
---
# {title}

```{{code-cell}} ipython3
{code}
```
"""
CODE = {
    "uses_a": "from minattn import a\nprint('a is', a.VALUE)",
    "uses_both": (
        "from minattn import b\ntext = open('../../data.txt').read()\nprint('sum is', b.total(), text)"
    ),
    "uses_none": "print('nothing')",
}


@pytest.fixture
def small_book(tmp_path):
    """The root of a book whose pages import `a`; `a` through `b`, with data.txt; and nothing."""
    write = {
        "minattn/__init__.py": "",
        "minattn/a.py": "VALUE = 1\n",
        "minattn/b.py": "from . import a\n\n\ndef total():\n    return a.VALUE + 1\n",
        "data.txt": "some data",
        "book/_toc.yml": TOC,
        "book/intro.md": "# A small book\n\n```{chapter-map}\n```\n",
        "book/references.bib": "",
        **{
            f"chapters/one/{name}.md": NOTEBOOK.format(title=name.replace("_", " "), code=code)
            for name, code in CODE.items()
        },
    }
    for name, text in write.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    ignore = shutil.ignore_patterns("__pycache__", "mathjax")
    shutil.copytree(ROOT / "book" / "_ext", tmp_path / "book" / "_ext", ignore=ignore)
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "book" / "_static", ignore=ignore)
    shutil.copy(ROOT / "_config.yml", tmp_path)
    return tmp_path
