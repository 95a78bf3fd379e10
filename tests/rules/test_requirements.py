"""Every requirement is named by a test, or stands in a list that may only shrink; every code has its line."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNTESTED = Path(__file__).with_name("untested.txt")
TABLE = ROOT / "docs" / "requirements.md"
CODE = re.compile(r"\b(?:R[1-9]\.\d|P(?:1\b(?!\.)|\d{1,2}\.\d)|X(?:1\d|[1-9]))(?![\d.]*\w)")


def table() -> dict[str, str]:
    """The requirements, each with its line."""
    rows = re.findall(r"^\| (\w[\w.]*) \| (.+) \|$", TABLE.read_text(), re.MULTILINE)
    return {code: text for code, text in rows if CODE.fullmatch(code)}


def named_codes() -> set[str]:
    """The codes that stand in a test's source, Rust or Python."""
    sources = [
        path
        for pattern in ("tests/**/*.py", "src/**/tests/**/*.rs", "src/**/*tests.rs", "src/**/simulation/*.rs")
        for path in ROOT.glob(pattern)
        if path.parent != UNTESTED.parent or path.name == "test_structure.py"
    ]
    return set(CODE.findall("\n".join(path.read_text() for path in sources)))


def test_every_code_that_a_test_names_stands_in_the_table() -> None:
    assert sorted(named_codes() - set(table())) == []


def test_every_requirement_is_tested_or_listed_and_the_list_only_shrinks() -> None:
    listed, wanted = set(UNTESTED.read_text().split()), set(table())
    assert listed <= wanted
    named = named_codes()
    assert sorted(wanted - named - listed) == [], "named by no test and not listed"
    assert sorted(named & listed) == [], "named by a test now: take it off untested.txt"
