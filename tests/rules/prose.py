"""Finds wording that a reader has to puzzle out, in comments, docstrings, texts of the product and its pages.

Names in code are not looked at, nor are the texts that tests compare. ``make measure PROSE=1`` lists all.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PUZZLES = {
    "nobody, somebody, whoever": re.compile(r"\b(?:nobody|somebody|whoever|whomever)\b", re.IGNORECASE),
    "so long, so many": re.compile(r"\bso (?:long|many)\b(?! that\b)", re.IGNORECASE),
    "is none": re.compile(r"\b(?:is|are|was|were) none\b(?! of\b)"),
    "What as a noun": re.compile(r"(?:^|(?<=[.!:;] )|(?<=[.!] {2}))What\b(?![^.!]*\?)"),
}
FOLDERS = ("src", "python", "lama_cleaner_patch", "tests", "bench", "fuzz", "tools", "docs")
FORMS = {".rs", ".py", ".pyi", ".md", ".toml", ".sh"}
RUST = re.compile(
    r'(?P<comment>//[/!]? ?[^\n]*)|(?P<raw>\br(?P<hash>#*)"(?P<inner>.*?)"(?P=hash))'
    r'|"(?P<text>(?:\\.|[^"\\])*)"|\'(?:\\[^\']+|[^\\\'])\'',
    re.DOTALL,
)


@dataclass(frozen=True)
class Finding:
    """Wording of the list, and where it is."""

    path: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind}: {self.text}"


def rust_texts(source: str) -> Iterator[tuple[int, str]]:
    """Comments and strings; comments on lines that follow each other are one text."""
    block: list[str] = []
    first = last = 0
    for match in RUST.finditer(source):
        line = source.count("\n", 0, match.start()) + 1
        if match["comment"] is not None:
            if block and line == last + 1:
                block.append(match["comment"].lstrip("/!").strip())
            else:
                yield first, "\n".join(block)
                block, first = [match["comment"].lstrip("/!").strip()], line
            last = line
        elif (text := match["text"] or match["inner"]) and " " in text:
            yield line, re.sub(r"\\\n\s*", "\n", text)
    yield first, "\n".join(block)


def python_texts(source: str, is_test: bool) -> Iterator[tuple[int, str]]:
    """Comments and docstrings, and where it is no test all other strings."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
    tree = ast.parse(source)
    docs = {
        id(node.value)
        for parent in ast.walk(tree)
        if isinstance(parent, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        for node in parent.body
        if isinstance(node, ast.Expr)
    }
    strings = (
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    for node in strings:
        if id(node) in docs or (not is_test and " " in node.value):
            yield node.lineno, re.sub(r"\n +", "\n", str(node.value))


def texts(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file, each with the line in which it begins."""
    source = path.read_text()
    if path.suffix == ".rs":
        yield from rust_texts(source)
    elif path.suffix in (".py", ".pyi"):
        yield from python_texts(source, path.relative_to(root).parts[0] in ("tests", "bench", "fuzz"))
    elif path.suffix == ".md":
        yield from ((number, line) for number, line in enumerate(source.splitlines(), 1))
    else:
        lines = enumerate(source.splitlines(), 1)
        yield from ((number, line.partition("#")[2].strip()) for number, line in lines if "#" in line)


def files(root: Path) -> Iterator[Path]:
    """Source files and pages; not this list itself."""
    yield from (path for path in sorted(root.glob("*")) if path.suffix in FORMS or path.name == "Makefile")
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in FORMS and path.is_file() and path.name != "prose.py":
                yield path


def findings(root: Path) -> list[Finding]:
    """Everything that is on the list."""
    found = []
    for path in files(root):
        name = path.relative_to(root).as_posix()
        for line, text in texts(path, root):
            flat = text.replace("\n", " ")
            for kind, puzzle in PUZZLES.items():
                for match in puzzle.finditer(flat):
                    at = line + text.count("\n", 0, match.start())
                    found.append(Finding(name, at, kind, flat[max(0, match.start() - 40) : match.end() + 50]))
    return sorted(found, key=lambda one: (one.path, one.line))
