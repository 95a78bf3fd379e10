"""Measures how the code is built: `make measure`, or `python -m rules.measure [--prose] [ROOT]` in tests/.

ROOT is another checkout to measure. ``--prose`` lists wording that a reader has to puzzle out, file by file.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rules import prose
from rules.imports import circles, edges_within, python_graph, quiet, rust_graph, without_tests

ROOT = Path(__file__).resolve().parents[2]
CORE = "src/scheduler/src/core"
STRUCT = re.compile(r"\bstruct (\w+)(?:<[^{;(]*>)?\s*\{")
FUNCTION = re.compile(r"\bfn (\w+)\s*(?:<[^(]*>)?\s*\(")
UNTYPED = {"Any", "ModuleType", "Flask", "flask.Flask", "types.ModuleType"}
"""Annotations of names that hold objects of other packages."""
OF_ONE_REQUEST = {"config", "plugin"}
"""Names of upstream's objects that hold one request's data: setting it replaces no code."""


@dataclass(frozen=True)
class Widest:
    """The largest number of its kind, and where it is."""

    count: int
    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.count} ({self.name}, {self.path})"


def rust_files(root: Path, below: str = "src") -> Iterator[tuple[str, str]]:
    """Path and quiet source of the product's Rust files, without code for tests alone."""
    for path in sorted((root / below).rglob("*.rs")):
        parts = path.relative_to(root).parts
        if {"tests", "simulation", "examples"} & set(parts) or re.fullmatch(r"(?:.*_)?tests\.rs", path.name):
            continue
        yield "/".join(parts), without_tests(quiet(path.read_text()))[0]


def python_files(root: Path) -> Iterator[tuple[str, str]]:
    """Path and source of the Python package's files."""
    for path in sorted((root / "python").rglob("*.py")):
        yield path.relative_to(root).as_posix(), path.read_text()


def pieces(source: str, start: int) -> list[str]:
    """The parts between commas from ``start`` to the bracket that closes; generics and calls count as one."""
    parts, depth, piece = [], 0, ""
    for at in range(start, len(source)):
        char = source[at]
        if char in ")]}" or (char == ">" and source[at - 1] not in "-="):
            depth -= 1
        if depth < 0:
            break
        if char == "," and depth == 0:
            parts.append(piece)
            piece = ""
            continue
        depth += char in "([{<"
        piece += char
    return [part.strip() for part in [*parts, piece] if part.strip()]


def largest_struct(root: Path) -> Widest:
    """The struct of the core with the most fields."""
    found = [
        Widest(len(pieces(source, match.end())), match[1], path)
        for path, source in rust_files(root, CORE)
        for match in STRUCT.finditer(source)
    ]
    return max(found, key=lambda one: one.count)


def core_impl_blocks(root: Path) -> list[str]:
    """The `impl Core` blocks outside core/mod.rs and core/handlers/."""
    found = []
    for path, source in rust_files(root, CORE):
        if path != f"{CORE}/mod.rs" and not path.startswith(f"{CORE}/handlers/"):
            found += [path] * len(re.findall(r"\bimpl Core\b", source))
    return found


def largest_file(root: Path) -> Widest:
    """The longest source file of the product, tests aside."""
    paths = [path for path, _ in (*rust_files(root), *python_files(root))]
    return max(
        (Widest(len((root / path).read_text().splitlines()), "lines", path) for path in paths),
        key=lambda one: one.count,
    )


def widest_rust_function(root: Path) -> Widest:
    """The Rust function with the most parameters besides `self`; declarations of C functions aside."""
    found = []
    for path, whole in rust_files(root):
        source = re.sub(r"\bextern\b[^{};]*\{.*?\n\}", "", whole, flags=re.DOTALL)
        for match in FUNCTION.finditer(source):
            parameters = [
                each for each in pieces(source, match.end()) if not re.search(r"(?:^|\s|&)self$", each)
            ]
            found.append(Widest(len(parameters), match[1], path))
    return max(found, key=lambda one: one.count)


def widest_python_function(root: Path) -> Widest:
    """The Python function with the most parameters besides ``self`` and ``cls``."""
    found = []
    for path, source in python_files(root):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                of = node.args
                names = [each.arg for each in (*of.posonlyargs, *of.args, *of.kwonlyargs)]
                extra = (of.vararg is not None) + (of.kwarg is not None)
                count = len([name for name in names if name not in ("self", "cls")]) + extra
                found.append(Widest(count, node.name, path))
    return max(found, key=lambda one: one.count)


def upstream_patches(root: Path) -> list[str]:
    """Where attributes of other packages' objects are replaced, or a module is put in place of theirs."""
    found = []
    for path, source in python_files(root):
        tree = ast.parse(source)
        foreign = foreign_names(tree)
        for node in ast.walk(tree):
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
                targets = [ast.Attribute(node.args[0], "")]
            for target in targets:
                text = ast.unparse(target)
                is_module = text.startswith("sys.modules[")
                if is_module or (isinstance(target, ast.Attribute) and root_name(target) in foreign):
                    found.append(f"{path}:{node.lineno}: {text}")
    return sorted(found)


def foreign_names(tree: ast.AST) -> set[str]:
    """Names in a module that are bound to objects of other packages than ours and Python's own."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                (alias.asname or alias.name).split(".")[0] for alias in node.names if is_foreign(alias.name)
            }
        elif isinstance(node, ast.ImportFrom) and is_foreign(node.module or "lamagrid"):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.arg) and node.annotation is not None:
            found |= {node.arg} if ast.unparse(node.annotation).strip("'\"") in UNTYPED else set()
    makers = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.returns is not None
        and ast.unparse(node.returns) in UNTYPED
    }
    for node in sorted((n for n in ast.walk(tree) if isinstance(n, ast.Assign)), key=lambda n: n.lineno):
        value = node.value
        is_made = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in {
            "import_module",
            *makers,
        }
        if is_made or (isinstance(value, ast.Attribute) and root_name(value) in found):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found - {"self"} - OF_ONE_REQUEST


def is_foreign(module: str) -> bool:
    """Whether a module is of another package than ours and Python's own."""
    return module.split(".")[0] not in {"lamagrid", *sys.stdlib_module_names}


def root_name(node: ast.expr) -> str:
    """``a`` of ``a.b.c``; "" for anything else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def show(root: Path) -> None:
    """Print all figures, and the places that count where a figure should be 0."""
    graphs = (rust_graph(root), python_graph(root))
    found = [(graph, circle) for graph in graphs for circle in circles(graph)]
    blocks, patches = core_impl_blocks(root), upstream_patches(root)
    places = {line.partition(":")[0] for line in patches}
    print(f"fields of the largest struct in the core: {largest_struct(root)}")
    print(f"impl Core outside core/mod.rs and core/handlers: {len(blocks)}")
    print(f"largest source file: {largest_file(root)}")
    print(f"circles between source files: {len(found)}, of {sum(len(circle) for _, circle in found)} files")
    print(f"places that replace upstream's code: {len(patches)} in {len(places)} files")
    print(f"parameters of the widest function: Rust {widest_rust_function(root)}")
    print(f"parameters of the widest function: Python {widest_python_function(root)}")
    print(f"wording of the list: {len(prose.findings(root))} places")
    for title, lines in (("impl Core", blocks), ("replaces upstream's code", patches)):
        print(*(f"  {title}: {line}" for line in lines), sep="\n")
    for graph, circle in found:
        print(f"  circle of {len(circle)}: {' '.join(circle)}")
        print(*(f"    {name} needs {other}" for name, other in edges_within(graph, circle)), sep="\n")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--prose"]
    checkout = Path(words[0]).resolve() if words else ROOT
    if "--prose" in sys.argv[1:]:
        print(*prose.findings(checkout), sep="\n")
    else:
        show(checkout)
