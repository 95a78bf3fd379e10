"""Draws the graph of imports between the source files of the product, and finds the circles in it.

A file needs another one if it names something that is defined there; names that a third file re-exports are
followed to their definition. In Rust a child module may use the types, traits and constants of its parents; a
parent may declare a child and re-export its names: neither counts. A parent and a child are a circle if the
parent uses the child and the child calls a function of the parent. Tests and code for tests alone are left
out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Graph = dict[str, set[str]]
Module = tuple[str, ...]

QUIET = re.compile(r'\br(#*)".*?"\1|"(?:\\.|[^"\\])*"|\'(?:\\[^\']+|[^\\\'])\'|//[^\n]*|/\*.*?\*/', re.DOTALL)
"""Strings, characters and comments of Rust."""
TEST_ONLY = re.compile(r"#\[cfg\((?:test|any\(test\b[^\]]*)\)\]\s*(?:#\[[^\]]*\]\s*)*")
USE = re.compile(r"^[ \t]*(?:pub(?:\([^)]*\))?\s+)?use\s+([^;]+);", re.MULTILINE)
PATH = re.compile(r"(?<![\w:])(?:crate|self|super)(?:::\w+)+")
VISIBILITY = re.compile(r"\bpub\(in [^)]*\)")
"""The path says who may use an item; it needs nothing there."""
INLINE_MODULE = re.compile(r"\bmod\s+\w+\s*\{")
SUPER = re.compile(r"(?<![\w:])((?:self::)*)super::")
MOST_HOPS = 20


def quiet(source: str) -> str:
    """Rust source whose strings, characters and comments are blank; line numbers stay."""
    return QUIET.sub(lambda match: "\n" * match[0].count("\n") or " ", source)


def without_tests(source: str) -> tuple[str, set[str]]:
    """Quiet Rust source without items for tests alone, and the names of test modules that are files."""
    files = set()
    while match := TEST_ONLY.search(source):
        end = _end_of_item(source, match.end())
        declared = re.match(
            r"\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;", source[match.end() : end]
        )
        if declared:
            files.add(declared[1])
        source = source[: match.start()] + "\n" * source[match.start() : end].count("\n") + source[end:]
    return source, files


def as_paths_of_the_file(source: str) -> str:
    """Quiet Rust source in which ``super`` inside ``mod inner { }`` is relative to the file instead."""
    for match in reversed(list(INLINE_MODULE.finditer(source))):
        end = _end_of_item(source, match.end() - 1)
        source = source[: match.end()] + SUPER.sub(r"\1self::", source[match.end() : end]) + source[end:]
    return source


def _end_of_item(source: str, start: int) -> int:
    """Behind the brace, semicolon or comma that ends the item."""
    depth = 0
    for at in range(start, len(source)):
        char = source[at]
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth < 0:
                return at
            if depth == 0 and char == "}":
                return at + 1
        elif depth == 0 and char in ";,":
            return at + 1
    return len(source)


def use_tree(text: str) -> Iterator[tuple[list[str], str]]:
    """The paths of a ``use`` declaration, each with the name that it binds; ``*`` for all names."""
    text = re.sub(r"\s+", " ", text).strip()
    before, brace, rest = text.partition("{")
    if not brace:
        path, _, alias = text.partition(" as ")
        parts = path.strip().split("::")
        yield parts, alias.strip() or parts[-1]
        return
    prefix = [part for part in before.strip().split("::") if part]
    depth, piece = 0, ""
    for char in rest[: rest.rindex("}")] + ",":
        if char == "," and depth == 0:
            if piece.strip():
                for path, name in use_tree(piece):
                    if path == ["self"]:
                        yield prefix, prefix[-1] if name == "self" else name
                    else:
                        yield prefix + path, name
            piece = ""
            continue
        depth += (char == "{") - (char == "}")
        piece += char


@dataclass
class RustFile:
    """A module of a Rust crate that is a file of its own."""

    path: str
    module: Module
    text: str = ""
    uses: list[tuple[list[str], str]] = field(default_factory=list)


def names_type(path: list[str]) -> bool:
    """Whether a path leads to a type, trait or constant, or into one, by the spelling of its parts."""
    return any(part[:1].isupper() for part in path)


class RustCrate:
    """The modules of one crate, without those for tests."""

    def __init__(self, root: Path, folder: Path, skip: set[Path]) -> None:
        self.files: dict[Module, RustFile] = {}
        hidden: set[Module] = set()
        for path in sorted(folder.rglob("*.rs")):
            if any(path.is_relative_to(other) for other in skip):
                continue
            module = self._module(path.relative_to(folder))
            text, test_files = without_tests(quiet(path.read_text()))
            # With a `path` attribute the file of a test module lies beside its parent's folder.
            hidden |= {(*above, name) for name in test_files for above in (module, module[:-1])}
            text = as_paths_of_the_file(VISIBILITY.sub("pub", text))
            self.files[module] = RustFile(path.relative_to(root).as_posix(), module, text)
        for module in list(self.files):
            is_hidden = any(module[: len(other)] == other for other in hidden)
            if is_hidden or (module and re.fullmatch(r"(?:.*_)?tests", module[-1])):
                del self.files[module]
        self.exports: dict[Module, dict[str, list[str]]] = {}
        self.globs: dict[Module, list[list[str]]] = {}
        for file in self.files.values():
            for match in USE.finditer(file.text):
                file.uses += list(use_tree(match[1]))
            file.text = USE.sub("", file.text)
            inside = [(name, self.absolute(file, path)) for path, name in file.uses]
            self.exports[file.module] = {
                name: path for name, path in inside if path and name != "*" and path != [*file.module, name]
            }
            self.globs[file.module] = [path[:-1] for name, path in inside if path and name == "*"]

    @staticmethod
    def _module(path: Path) -> Module:
        parts = [*path.parts[:-1], path.stem]
        if parts[-1] in ("lib", "mod", "main"):
            parts.pop()
        return tuple(parts)

    def absolute(self, file: RustFile, path: list[str]) -> list[str] | None:
        """A path from the crate's root; None if it leads out of the crate."""
        at = list(file.module)
        if path[0] == "crate":
            return path[1:]
        if path[0] in ("self", "super"):
            rest = list(path)
            while rest and rest[0] in ("self", "super"):
                if rest.pop(0) == "super" and at:
                    at.pop()
            return at + rest
        return [*at, *path] if (*file.module, path[0]) in self.files else None

    def home(self, path: list[str], hops: int = 0) -> Module:
        """The module in which the item of an absolute path is defined."""
        at: Module = ()
        for number, part in enumerate(path):
            if (*at, part) in self.files:
                at = (*at, part)
                continue
            known = self.exports.get(at, {}).get(part)
            if known is not None and hops < MOST_HOPS:
                return self.home([*known, *path[number + 1 :]], hops + 1)
            for glob in self.globs.get(at, []):
                place = self.home(glob, hops + 1) if hops < MOST_HOPS else at
                if place in self.files and re.search(
                    rf"\b(?:struct|enum|fn|trait|type|const|static)\s+{part}\b", self.files[place].text
                ):
                    return place
            break
        return at

    def graph(self) -> Graph:
        """Which file needs which."""
        found: Graph = {}
        for file in self.files.values():
            needs = found.setdefault(file.path, set())
            paths = [path for path, name in file.uses if name == "*" or re.search(rf"\b{name}\b", file.text)]
            paths += [match[0].split("::") for match in PATH.finditer(file.text)]
            children = [module[-1] for module in self.files if module and module[:-1] == file.module]
            if children:
                named = rf"(?<![\w:])(?:{'|'.join(children)})(?:::\w+)+"
                paths += [match[0].split("::") for match in re.finditer(named, file.text)]
            for path in paths:
                absolute = self.absolute(file, path)
                other = self.files.get(self.home(absolute)) if absolute is not None else None
                if other is None or other is file:
                    continue
                is_parent = file.module[: len(other.module)] == other.module
                if not (is_parent and names_type(path)):
                    needs.add(other.path)
        return found


def rust_graph(root: Path) -> Graph:
    """The graph of all crates; between crates cargo allows no circle."""
    found: Graph = {}
    for folder in sorted((root / "src").glob("*/src")):
        programs = {path.parent for path in folder.rglob("main.rs")} - {folder}
        for each in (folder, *programs):
            found |= RustCrate(root, each, programs - {each}).graph()
    return found


def python_graph(root: Path) -> Graph:
    """The graph of the Python package, with imports inside functions and those for types alone."""
    package = root / "python"
    paths = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py*"))
        if path.suffix in (".py", ".pyi")
    }
    trees = {name: ast.parse(path.read_text()) for name, path in paths.items()}

    def imports(name: str) -> Iterator[tuple[str, str, str]]:
        """Module, name in it ("" for the module), and the name that is bound."""
        for node in ast.walk(trees[name]):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "", alias.asname or alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    own = name.split(".") if paths[name].stem == "__init__" else name.split(".")[:-1]
                    own = own[: len(own) - node.level + 1]
                    base = ".".join([*own, *([base] if base else [])])
                yield from ((base, alias.name, alias.asname or alias.name) for alias in node.names)

    exports = {name: {bound: (module, item) for module, item, bound in imports(name)} for name in trees}

    def home(module: str, item: str, hops: int = 0) -> str:
        if item and f"{module}.{item}" in trees:
            return f"{module}.{item}"
        known = exports.get(module, {}).get(item)
        if known is not None and known[0] in trees and hops < MOST_HOPS:
            return home(*known, hops + 1)
        return module

    found: Graph = {}
    for name, path in paths.items():
        homes = {home(module, item) for module, item, _ in imports(name)} & set(trees)
        found[path.relative_to(root).as_posix()] = {
            paths[other].relative_to(root).as_posix() for other in homes - {name}
        }
    return found


def circles(graph: Graph) -> list[list[str]]:
    """The sets of files that need each other, directly or by way of others."""
    reach = {name: _reachable(graph, name) for name in graph}
    found, seen = [], set[str]()
    for name in sorted(graph):
        if name in seen or name not in reach[name]:
            continue
        circle = sorted(other for other in reach[name] if name in reach.get(other, ()))
        seen.update(circle)
        if len(circle) > 1:
            found.append(circle)
    return found


def _reachable(graph: Graph, start: str) -> set[str]:
    found, left = set[str](), [start]
    while left:
        for other in graph.get(left.pop(), ()):
            if other not in found:
                found.add(other)
                left.append(other)
    return found


def edges_within(graph: Graph, circle: list[str]) -> list[tuple[str, str]]:
    """Which file of a circle needs which."""
    return sorted((name, other) for name in circle for other in graph[name] & set(circle))
