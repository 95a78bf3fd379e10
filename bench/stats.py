"""Medians with the spread around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile ``share`` of the values, interpolated between the two nearest; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Spread:
    """The middle of repeated measurements, and where eight of ten lie."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(quantile(values, 0.5), quantile(values, 0.1), quantile(values, 0.9))

    def __str__(self) -> str:
        return f"{figure(self.median)} ({figure(self.p10)}..{figure(self.p90)})"


def figure(value: float) -> str:
    """A number of three digits, more only before the point."""
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3}f}"
