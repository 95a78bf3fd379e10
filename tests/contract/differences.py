"""The answers that differ, as docs/compatibility.md lists them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
HEAD = ("where", "stock", "grid", "`--grid-strict`")


@dataclass(frozen=True)
class Difference:
    """A row of the table."""

    where: str
    stock: str
    grid: str
    strict: str

    @property
    def is_upstreams_when_strict(self) -> bool:
        """Whether ``--grid-strict`` brings upstream's answer back."""
        return self.strict in ("stock's", "none")


def differences() -> dict[str, Difference]:
    """All rows by their first column, which is each row's name."""
    rows = [
        Difference(*(cell.strip() for cell in line.strip().strip("|").split("|")))
        for line in PAGE.read_text("utf-8").splitlines()
        if line.startswith("|") and not line.startswith("| ---")
    ]
    assert (rows[0].where, rows[0].stock, rows[0].grid, rows[0].strict) == HEAD
    named = {row.where: row for row in rows[1:]}
    assert len(named) == len(rows) - 1, "two rows have one name"
    for row in named.values():
        assert row.strict in ("stock's", "none", "as without"), row
    return named
