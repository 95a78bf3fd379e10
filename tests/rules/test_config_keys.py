"""Each key of the configuration is read somewhere, or it is a promise that the product breaks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "src" / "config" / "src" / "default.toml"
DECLARED = "schema.rs"
"""The file of the crate `config` that names each key without reading it."""
HOLDERS = {
    # A value of this section goes by these names, too.
    "scheduler": ("settings", "self"),
    "retry": ("policy",),
    "queues": ("queue",),
    "log": ("config",),
    "models": ("of", "model", "configured"),
    "requires": ("config",),
    "need": ("config",),
    "": ("config", "self"),
}


def keys() -> set[tuple[str, str]]:
    """Section and key of each value; names of queues and models and families of failures are left out."""
    table = tomllib.loads(DEFAULT.read_text())
    found = set()
    section_of_example = ""
    # The examples of [queues.NAME], [models.NAME] and their inner tables.
    line = re.compile(r"^#   (?:\[(\w+)\.NAME(?:\.(\w+))?\]|(\w+) = )", re.M)
    for name, inner, key in line.findall(DEFAULT.read_text()):
        section_of_example = inner or name or section_of_example
        if key:
            found.add((section_of_example, key))

    def walk(section: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(section or key, value)
            else:
                found.add((section, key))

    walk("", table)
    return found


def sources() -> list[str]:
    """The product's own code: no tests, and not the declarations."""
    rust = [
        path
        for path in (ROOT / "src").rglob("*.rs")
        if not {"tests", "simulation", "examples"} & set(path.relative_to(ROOT).parts)
        and path.name != "tests.rs"
    ]
    python = list((ROOT / "python").rglob("*.py"))
    config = ROOT / "src" / "config" / "src"
    return [path.read_text() for path in rust + python if path != config / DECLARED]


def unread(wanted: Iterable[tuple[str, str]], texts: list[str]) -> list[str]:
    """The keys that no text reads: as a field of their section, or by index in Python."""
    missing = []
    for section, key in wanted:
        holders = "|".join((*HOLDERS.get(section, ()), *([section] if section else [])))
        field = rf"\b(?:{holders})(?:\(\))?\s*\.\s*{key}\b"
        index = rf"[\"']{section}[\"']\]\[[\"']{key}[\"']\]"
        read = re.compile(rf"{field}|{index}")
        if not any(read.search(text) for text in texts if key in text):
            missing.append(f"{section}.{key}" if section else key)
    return sorted(missing)


def test_every_key_of_the_configuration_is_read() -> None:
    assert unread(keys(), sources()) == []


def test_a_key_that_nothing_reads_is_found() -> None:
    planted = {("store", "inline_limit_bytes"), ("scheduler", "never_read"), ("", "nor_this")}
    assert unread(keys() | planted, sources()) == [
        "nor_this",
        "scheduler.never_read",
        "store.inline_limit_bytes",
    ]
