"""The signatures of the Rust code: at most five parameters, errors with a type, no public booleans."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rules.measure import FUNCTION, ROOT, pieces, rust_files

MOST = 5
PARTS = {
    "src/scheduler/src/core/check.rs": "compiled for tests only, which print the violated invariant",
    "src/node/src/backend/torch/device.rs": "texts of the dynamic loader, which end in a log line",
}
"""Files or functions that return texts as errors, with the reason."""
FOREIGN = {
    f"src/imaging/src/codec/jpeg/libjpeg.rs lamagrid_jpeg_{name}": "declared as the C function"
    for name in ("decode", "encode")
}
"""Functions whose signature another language decides."""
OWN = re.compile(r"&?\s*(?:'\w+ )?(?:mut )?self")
PUBLIC = re.compile(r"\bpub (?:(?:async|const|unsafe|extern) )*$")


def functions() -> Iterator[tuple[str, bool, list[str], str]]:
    """Each function: its file and name, whether other crates may call it, its parameters, its result."""
    for path, source in rust_files(ROOT):
        for found in FUNCTION.finditer(source):
            parts = [part.strip() for part in pieces(source, found.end())]
            parameters = [part for part in parts if part and not OWN.fullmatch(part)]
            end = min(at for at in (source.find(c, closing(source, found.end())) for c in "{;") if at >= 0)
            result = source[closing(source, found.end()) : end]
            before = source[: found.start()].rpartition("\n")[2]
            yield f"{path} {found[1]}", PUBLIC.search(before) is not None, parameters, result


def closing(source: str, start: int) -> int:
    """The place behind the bracket that closes the one before ``start``."""
    depth = 1
    for at in range(start, len(source)):
        depth += (source[at] in "([{") - (source[at] in ")]}")
        if depth == 0:
            return at + 1
    raise ValueError("a bracket is not closed")


def has_text_as_error(result: str) -> bool:
    """True if a ``Result`` in the type has the error ``String``."""
    for found in re.finditer(r"\bResult<", result):
        arguments = [part.strip() for part in pieces(result, found.end())]
        if len(arguments) > 1 and arguments[1] == "String":
            return True
    return False


def test_no_function_has_more_than_five_parameters() -> None:
    found = {name: len(parameters) for name, _, parameters, _ in functions() if name not in FOREIGN}
    assert len(found) > 1_500
    assert {name: count for name, count in found.items() if count > MOST} == {}


def test_errors_have_a_type() -> None:
    found = {name for name, _, _, result in functions() if has_text_as_error(result)}
    assert {name for name in found if not name.startswith(tuple(PARTS))} == set(), (
        "write an enum of thiserror"
    )


def test_each_exception_is_used() -> None:
    found = {name for name, _, _, result in functions() if has_text_as_error(result)}
    assert [part for part in PARTS if not any(name.startswith(part) for name in found)] == []


def test_no_public_function_takes_a_boolean() -> None:
    found = {
        f"{name}({parameter})"
        for name, is_public, parameters, _ in functions()
        for parameter in parameters
        if is_public and re.search(r":\s*bool$", parameter)
    }
    assert found == set(), "name the two behaviours in an enum"


def test_signatures_are_read() -> None:
    assert has_text_as_error(" -> Result<Vec<u8>, String> ")
    assert has_text_as_error(" -> Option<Result<(), String>>")
    assert not has_text_as_error(" -> io::Result<String>")
    assert not has_text_as_error(" -> Result<String, Error>")
