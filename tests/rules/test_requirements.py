"""Every requirement is named by a test, or stands in a list that may only shrink."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNTESTED = Path(__file__).with_name("untested.txt")

NUMBERS = {
    *(f"R{area}.{criterion}" for area in range(1, 9) for criterion in range(1, 6)),
    "P1",
    *(f"P{item}.{part}" for item in range(2, 13) for part in range(1, 5 if item == 4 else 4)),
    *(f"X{number}" for number in range(1, 14)),
    "X18",
}
"""40 criteria of the requirements, the plan's items, and what goes beyond both."""


def named_numbers() -> set[str]:
    """The numbers that stand in a test's source, Rust or Python."""
    sources = [
        path
        for pattern in ("tests/**/*.py", "src/**/tests/**/*.rs", "src/**/*tests.rs", "src/**/simulation/*.rs")
        for path in ROOT.glob(pattern)
        if path.parent != UNTESTED.parent or path.name == "test_structure.py"
    ]
    text = "\n".join(path.read_text() for path in sources)
    return (
        set(re.findall(r"\b(?:R[1-8]\.[1-5]|P1\b(?!\.)|P(?:[2-9]|1[0-2])\.[1-4]|X(?:1[0-38]|[1-9]))\b", text))
        & NUMBERS
    )


def test_every_number_is_tested_or_listed_and_the_list_only_shrinks() -> None:
    listed = set(UNTESTED.read_text().split())
    assert listed <= NUMBERS
    named = named_numbers()
    assert sorted(NUMBERS - named - listed) == [], "named by no test and not listed"
    assert sorted(named & listed) == [], "named by a test now: take it off untested.txt"
