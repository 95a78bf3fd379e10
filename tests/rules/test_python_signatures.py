"""The signatures of the Python package: at most five parameters, no booleans that choose a behaviour."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "lamagrid"
MOST = 5
FOREIGN = {"web/socketio_limits.py put": "overrides queue.Queue.put"}
"""Functions whose signature another package decides."""


def functions() -> Iterator[tuple[str, list[ast.arg]]]:
    """Each function with its parameters, without the method's own object."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                name = f"{path.relative_to(PACKAGE).as_posix()} {node.name}"
                yield name, [each for each in parameters if each.arg not in ("self", "cls")]


def test_no_function_has_more_than_five_parameters() -> None:
    found = {name: len(parameters) for name, parameters in functions()}
    assert len(found) > 300
    assert {name: count for name, count in found.items() if count > MOST} == {}
    print(f"parameters of the widest function: {max(found.values())}")


def test_no_parameter_is_a_boolean_that_chooses_a_behaviour() -> None:
    found = {
        f"{name}({parameter.arg})"
        for name, parameters in functions()
        for parameter in parameters
        if name not in FOREIGN
        and parameter.annotation is not None
        and ast.unparse(parameter.annotation) in ("bool", "bool | None")
    }
    assert found == set(), "name the two behaviours in an enumeration"
