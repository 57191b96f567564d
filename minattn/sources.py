"""What the project's files say about papers, read from their text alone.

Nothing here is imported or run: Python files are read through their syntax tree, pages as lines.
`minattn.atlas` builds each paper's status on these readers.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["Tree", "collector_paused", "declared_papers", "experiment_files", "has_code_cell", "marked_tests",
           "page_headings", "page_labels", "public_definitions", "result_path", "runs_on_a_seed",
           "source_files", "source_hash"]

DOC_WORDS = 8          # a docstring of fewer words says nothing that the name does not say
IMPORT_DEPTH = 5       # how many re-exports a public name may pass through

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Tree:
    """The files of one checkout; each is read and parsed at most once.

    Parameters
    ----------
    root : folder that holds `minattn/`, `tests/` and `chapters/`.

    Attributes
    ----------
    problems : what could not be read, as sentences.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.problems: list[str] = []
        self._text: dict[Path, str] = {}
        self._module: dict[Path, ast.Module] = {}

    def files(self, folder: str, suffix: str = ".py") -> list[Path]:
        """Every file with this suffix below a folder, in a fixed order."""
        return sorted(p for p in (self.root / folder).rglob(f"*{suffix}") if "__pycache__" not in p.parts)

    def name(self, path: Path) -> str:
        """The path as written in reports: relative to the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def text(self, path: Path) -> str:
        """The file's text; a file that is not UTF-8 is a problem and reads as empty."""
        if path not in self._text:
            try:
                self._text[path] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                self.problems.append(f"{self.name(path)}: not UTF-8 ({error.reason})")
                self._text[path] = ""
        return self._text[path]

    def module(self, path: Path) -> ast.Module:
        """The file's syntax tree; a file that does not parse is a problem and reads as empty."""
        if path not in self._module:
            try:
                self._module[path] = ast.parse(self.text(path))
            except SyntaxError as error:
                self.problems.append(f"{self.name(path)}, line {error.lineno}: {error.msg}")
                self._module[path] = ast.Module(body=[], type_ignores=[])
        return self._module[path]

    def find_module(self, dotted: str) -> Path | None:
        """The file of a dotted module name, if it lies in this tree."""
        base = self.root.joinpath(*dotted.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
        return None


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Hold the garbage collector: among a million syntax nodes, none of them garbage, it takes 3 s of 4."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, including those in `if` and `try` blocks."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            yield from statements(statement.body)
            yield from statements(statement.orelse)
            for handler in getattr(statement, "handlers", []):
                yield from statements(handler.body)


def assigned_names(statement: ast.stmt) -> list[str]:
    """Plain names that an assignment binds."""
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [t.id for t in flat if isinstance(t, ast.Name)]


def literal(module: ast.Module, name: str) -> object | None:
    """The literal that a module assigns to a name at top level, or None when it assigns nothing.

    Raises
    ------
    ValueError : the name is bound to something that is not a literal.
    """
    for statement in module.body:
        if name in assigned_names(statement):
            return ast.literal_eval(statement.value)  # type: ignore[attr-defined]
    return None


def declared_papers(tree: Tree, path: Path) -> tuple[int, ...]:
    """The numbers in a file's `PAPERS = (65,)`; a malformed declaration is a problem and reads as none."""
    if "PAPERS" not in tree.text(path):
        return ()
    try:
        value = literal(tree.module(path), "PAPERS")
    except ValueError:
        value = "an expression"
    if value is None:
        return ()
    if isinstance(value, (tuple, list)) and value and all(type(n) is int for n in value):
        return tuple(value)
    tree.problems.append(f"{tree.name(path)}: PAPERS must be a tuple of paper numbers, such as (65,)")
    return ()


# --- public names -----------------------------------------------------------------------------------------

def documented(statement: ast.stmt, following: ast.stmt | None) -> bool:
    """Whether a definition has a docstring, or an assignment a string below it, of DOC_WORDS words."""
    if isinstance(statement, DEFINITIONS):
        text = ast.get_docstring(statement, clean=False) or ""
    elif isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        text = following.value.value if isinstance(following.value.value, str) else ""
    else:
        text = ""
    return len(text.split()) >= DOC_WORDS


def imported_from(tree: Tree, path: Path, module: ast.Module) -> dict[str, tuple[str, str]]:
    """Names that a file takes from other modules: local name -> (dotted module, name there)."""
    found: dict[str, tuple[str, str]] = {}
    for statement in statements(module.body):
        if isinstance(statement, ast.ImportFrom):
            dotted = absolute_module(tree, path, statement)
            found.update({(a.asname or a.name): (dotted, a.name) for a in statement.names})
    return found


def absolute_module(tree: Tree, path: Path, statement: ast.ImportFrom) -> str:
    """The dotted name of the module in `from module import ...`, relative imports resolved."""
    if not statement.level:
        return statement.module or ""
    package = path.relative_to(tree.root).parent.parts
    kept = package[: len(package) - statement.level + 1]
    return ".".join([*kept, *([statement.module] if statement.module else [])])


def definition_is_documented(tree: Tree, path: Path, name: str, depth: int = IMPORT_DEPTH) -> bool | None:
    """True or False for a name that the file defines or re-exports from this tree, None when it has none."""
    module = tree.module(path)
    flat = list(statements(module.body))
    for statement, following in zip(flat, [*flat[1:], None], strict=True):
        if isinstance(statement, DEFINITIONS) and statement.name == name:
            return documented(statement, following)
        if name in assigned_names(statement):
            return documented(statement, following)
    origin = imported_from(tree, path, module).get(name)
    source = tree.find_module(origin[0]) if origin else None
    if origin is None or source is None or source == path or depth == 0:
        return None
    return definition_is_documented(tree, source, origin[1], depth - 1)


def public_definitions(tree: Tree, path: Path) -> dict[str, bool | None]:
    """The public names of a file: name -> documented; None for a name in `__all__` that nothing defines.

    Public is what `__all__` lists, or, in a file without it, every function, class and constant
    whose name has no leading underscore.
    """
    module = tree.module(path)
    try:
        listed = literal(module, "__all__")
    except ValueError:
        listed = None
        tree.problems.append(f"{tree.name(path)}: __all__ must be a plain list of strings")
    if listed is None:
        names = [s.name for s in statements(module.body) if isinstance(s, DEFINITIONS)]
        names += [n for s in statements(module.body) for n in assigned_names(s)]
        listed = [n for n in names if not n.startswith("_")]
    return {n: definition_is_documented(tree, path, n) for n in listed}  # type: ignore[attr-defined]


# --- tests ------------------------------------------------------------------------------------------------

def called_name(call: ast.Call) -> str:
    """The last part of the name that is called: `np.testing.assert_allclose` -> `assert_allclose`."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def asserts(function: ast.AST, others: dict[str, ast.AST]) -> bool:
    """Whether a function asserts something, itself or through the functions that it calls.

    An assertion is an `assert` statement, `pytest.raises`, or a call of something named
    `assert...` or `check...`.

    Parameters
    ----------
    function : the definition.
    others : the functions of its module that have not been looked at: name -> definition.
    """
    called: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = called_name(node)
            if name == "raises" or name.startswith(("assert", "check")):
                return True
            called.add(name)
    unseen = {n: f for n, f in others.items() if n not in called}
    return any(asserts(others[n], unseen) for n in called & others.keys())


def marks(node: ast.expr) -> set[int]:
    """Paper numbers in `pytest.mark.paper(65)`, alone or in a list."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return set().union(*(marks(e) for e in node.elts))
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.mark.paper", "mark.paper"):
        return {a.value for a in node.args if isinstance(a, ast.Constant) and type(a.value) is int}
    return set()


def marked_tests(tree: Tree, path: Path) -> dict[int, bool]:
    """The papers that a test file's marks name: number -> whether one of its tests asserts something."""
    if "mark.paper" not in tree.text(path):
        return {}
    module = tree.module(path)
    functions: dict[str, ast.AST] = {s.name: s for s in module.body if isinstance(s, DEFINITIONS)}
    found: dict[int, bool] = {}

    def visit(body: list[ast.stmt], inherited: set[int]) -> None:
        for node in body:
            if not isinstance(node, DEFINITIONS):
                continue
            papers = inherited | set().union(*(marks(d) for d in node.decorator_list))
            if isinstance(node, ast.ClassDef):
                visit(node.body, papers)
            elif node.name.startswith("test"):
                for n in papers:
                    found[n] = found.get(n, False) or asserts(node, functions)

    module_marks = set().union(*(marks(s.value) for s in module.body  # type: ignore[attr-defined]
                                 if "pytestmark" in assigned_names(s)))
    found.update(dict.fromkeys(module_marks, False))
    visit(module.body, module_marks)
    return found


# --- experiments ------------------------------------------------------------------------------------------

def experiment_files(tree: Tree) -> list[Path]:
    """Every `minattn/experiments/<chapter>/<name>.py`; names with a leading underscore are helpers."""
    folder = tree.root / "minattn" / "experiments"
    return [p for p in tree.files("minattn/experiments")
            if p.parent.parent == folder and not p.name.startswith("_")]


def result_path(tree: Tree, path: Path) -> Path:
    """Where the results of an experiment file are kept."""
    return tree.root / "minattn" / "experiments" / "results" / path.parent.name / f"{path.stem}.json"


def runs_on_a_seed(tree: Tree, path: Path) -> bool:
    """Whether a file defines `run` with `seed` as its first argument."""
    for statement in tree.module(path).body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "run":
            arguments = [a.arg for a in [*statement.args.posonlyargs, *statement.args.args]]
            return arguments[:1] == ["seed"]
    return False


def imported_files(tree: Tree, path: Path, package: str) -> set[Path]:
    """Files of one package that a file imports, wherever in the file the import stands.

    A name that a package only passes on counts for the file that defines it: what else the package lists
    changes no result.
    """
    found: set[Path | None] = set()
    for node in ast.walk(tree.module(path)):
        if isinstance(node, ast.Import):
            found |= {tree.find_module(a.name) for a in node.names if _within(a.name, package)}
        elif isinstance(node, ast.ImportFrom) and _within(base := absolute_module(tree, path, node), package):
            found |= {origin(tree, base, a.name) for a in node.names}
    return {p for p in found if p is not None}


def _within(dotted: str, package: str) -> bool:
    return dotted == package or dotted.startswith(package + ".")


def origin(tree: Tree, dotted: str, name: str, depth: int = IMPORT_DEPTH) -> Path | None:
    """The file that defines what `from dotted import name` gives: a module, or where re-exports lead to."""
    module = tree.find_module(f"{dotted}.{name}")
    path = tree.find_module(dotted)
    if module is not None or path is None or path.name != "__init__.py" or depth == 0:
        return module or path
    passed_on = imported_from(tree, path, tree.module(path)).get(name)
    return path if passed_on is None else origin(tree, *passed_on, depth - 1)


def source_files(tree: Tree, path: Path) -> list[Path]:
    """The files that a result depends on: the experiment, the helpers of its chapter that it imports, and
    the mechanisms it exercises (those that declare one of its papers, and those it imports of its chapter).
    """
    chapter = path.parent.name
    found, waiting = {path}, [path]
    while waiting:
        helpers = imported_files(tree, waiting.pop(), f"minattn.experiments.{chapter}") - found
        found |= helpers
        waiting += helpers
    papers = set(declared_papers(tree, path))
    for file in list(found):
        found |= imported_files(tree, file, f"minattn.{chapter}")
    found |= {p for p in tree.files(f"minattn/{chapter}") if papers & set(declared_papers(tree, p))}
    return sorted(found)


def docstring_lines(module: ast.Module) -> tuple[set[int], int]:
    """The line numbers that belong to docstrings, and how many docstrings there are."""
    lines: set[int] = set()
    count, waiting = 0, [module.body]
    while waiting:
        body = waiting.pop()
        first = body[0] if body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(
                first.value.value, str):
            lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
            count += 1
        waiting += [s.body for s in statements(body) if isinstance(s, DEFINITIONS)]
    return lines, count


def string_lines(module: ast.Module) -> set[int]:
    """The line numbers on which a string goes on that began on an earlier line."""
    return {line for node in ast.walk(module) if isinstance(node, (ast.Constant, ast.JoinedStr))
            for line in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)}


def code_lines(tree: Tree, path: Path) -> list[str]:
    """The lines of a file that can change a result: no docstrings, comment lines or blank lines.

    A line inside a longer string is kept whatever it looks like: it may be CUDA source.
    """
    text, module = tree.text(path), tree.module(path)
    docs, count = docstring_lines(module)
    quotes = text.count('"""') + text.count("'''")
    strings = string_lines(module) - docs if quotes > 2 * count else set()     # the walk is slow
    kept = []
    for number, line in enumerate(text.split("\n"), start=1):
        comment = not line.strip() or line.lstrip().startswith("#")
        if number in strings or not (number in docs or comment):
            kept.append(line.rstrip())
    return kept


def source_hash(tree: Tree, path: Path) -> str:
    """SHA-256 (16 hex digits) of the code of an experiment and of the mechanisms it exercises."""
    digest = hashlib.sha256()
    for file in source_files(tree, path):
        digest.update("\n".join([tree.name(file), *code_lines(tree, file), ""]).encode())
    return digest.hexdigest()[:16]


# --- pages ------------------------------------------------------------------------------------------------

def prose_lines(text: str) -> Iterator[str]:
    """The lines of a Markdown page outside fenced code."""
    fence = ""
    for line in text.splitlines():
        opening = re.match(r"\s*(`{3,}|~{3,})", line)
        if opening and not fence:
            fence = opening[1]
        elif fence and line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        elif not fence:
            yield line


def page_labels(text: str) -> list[int]:
    """Paper numbers of the labels `(paper-065)=` in a page."""
    found = (re.fullmatch(r"\(paper-(\d{3,})\)=\s*", line) for line in prose_lines(text))
    return [int(m[1]) for m in found if m]


def page_headings(text: str) -> list[str]:
    """The headings of a page, in order, without their marks."""
    found = (re.fullmatch(r"#{1,6}\s+(.*?)\s*#*", line) for line in prose_lines(text))
    return [m[1] for m in found if m]


def has_code_cell(text: str) -> bool:
    """Whether a page runs anything."""
    return re.search(r"^\s*(`{3,}|~{3,}|:{3,})\s*\{code-cell\}", text, re.MULTILINE) is not None
