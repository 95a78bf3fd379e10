"""Figures with bounds: a table for people, a file for programs, and whether a floor was missed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stats import figure


@dataclass(frozen=True)
class Row:
    """A figure with the floor that must be kept and the aim. ``more``: more is better."""

    name: str
    unit: str
    floor: float
    aim: float
    more: bool = False

    def verdict(self, value: float) -> str:
        """``aim``, ``floor`` or ``MISS``."""
        reached = (lambda bound: value >= bound) if self.more else (lambda bound: value <= bound)
        return "aim" if reached(self.aim) else "floor" if reached(self.floor) else "MISS"


def show(rows: Sequence[Row], values: Mapping[str, float], out: Path) -> int:
    """Print those rows that have a value, and write them. Returns 1 if a floor was missed."""
    shown = [row for row in rows if row.name in values]
    print(f"\n{'row':22} {'value':>9} {'unit':5} {'floor':>8} {'aim':>8}")
    for row in shown:
        value = values[row.name]
        verdict = row.verdict(value)
        print(f"{row.name:22} {figure(value):>9} {row.unit:5} {row.floor:8g} {row.aim:8g}  {verdict}")
    items = [
        {"name": r.name, "grid": round(values[r.name], 4), "unit": r.unit, "floor": r.floor, "aim": r.aim}
        for r in shown
    ]
    out.write_text(json.dumps(items, indent=1) + "\n", "utf-8")
    print(f"written: {out}")
    return int(any(row.verdict(values[row.name]) == "MISS" for row in shown))
