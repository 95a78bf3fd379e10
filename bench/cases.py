"""The rows of `make bench`: each one's name, unit and bound."""

from __future__ import annotations

from dataclasses import dataclass

from stats import Spread

CLIENTS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: As it is chosen on the command line and found in bench.json.
        unit: Of both values.
        bound: The highest ratio of grid to stock that is acceptable, None where none was set.
    """

    name: str
    unit: str
    bound: float | None = None


@dataclass(frozen=True)
class Request:
    """A request that is sent again and again to both servers.

    Attributes:
        full: The whole picture is the hole, strategy Original; else one brush stroke and the page's own Crop.
    """

    width: int
    height: int
    form: str
    full: bool = False

    @property
    def strategy(self) -> str:
        """The HD strategy of the form."""
        return "Original" if self.full else "Crop"


OUTSIDE: dict[str, tuple[Row, Request]] = {
    row.name: (row, request)
    for row, request in (
        (Row("inpaint_512_png", "ms", 0.5), Request(512, 512, "PNG")),
        (Row("inpaint_512_jpeg", "ms", 0.6), Request(512, 512, "JPEG")),
        (Row("inpaint_12mp_jpeg", "ms", 0.5), Request(4000, 3000, "JPEG")),
        (Row("inpaint_12mp_png", "ms", 0.25), Request(4000, 3000, "PNG")),
        (Row("inpaint_12mp_jpeg_full", "ms", 0.5), Request(4000, 3000, "JPEG", full=True)),
        (Row("inpaint_12mp_png_full", "ms", 0.5), Request(4000, 3000, "PNG", full=True)),
    )
}
"""Measured as request time less the time of the network's forward calls."""

WEB_CPU = Row("web_cpu_12mp_png", "s", 0.1)
WEB_CPU_REQUEST = "inpaint_12mp_png"
PNG_SIZE = Row("png_size", "KiB", 1.1)
FULL_SIZE = Row("lama_full_512", "ms", 1.03)
FULL_SIZE_REQUEST = Request(512, 512, "JPEG")


def concurrency(clients: int) -> tuple[Row, Row, Row]:
    """The rows of one number of clients: requests per second, median and worst of a hundred."""
    name = f"concurrency_{clients}"
    return Row(f"{name}_rate", "1/s"), Row(f"{name}_p50", "ms"), Row(f"{name}_p99", "ms")


CONCURRENCY = {row.name: clients for clients in CLIENTS for row in concurrency(clients)}
NAMES = [*OUTSIDE, WEB_CPU.name, PNG_SIZE.name, FULL_SIZE.name, *CONCURRENCY]


def chosen(words: list[str]) -> list[str]:
    """The rows that words name: whole names, or beginnings up to an underscore. No words: all.

    Raises:
        ValueError: A word names nothing.
    """
    if not words:
        return list(NAMES)
    for word in words:
        if not any(_names(word, name) for name in NAMES):
            raise ValueError(f"no row is called {word}; there are: {', '.join(NAMES)}")
    return [name for name in NAMES if any(_names(word, name) for word in words)]


def _names(word: str, name: str) -> bool:
    return name == word or name.startswith(f"{word}_")


@dataclass(frozen=True)
class Result:
    """A row with its values."""

    row: Row
    stock: Spread
    grid: Spread

    @property
    def ratio(self) -> float:
        """Grid to stock."""
        return self.grid.median / self.stock.median

    @property
    def verdict(self) -> str:
        """``ok``, ``MISS``, or ``-`` without a bound."""
        if self.row.bound is None:
            return "-"
        return "ok" if self.ratio <= self.row.bound else "MISS"

    def item(self) -> dict[str, object]:
        """As it stands in bench.json."""
        return {
            "name": self.row.name,
            "stock": round(self.stock.median, 4),
            "grid": round(self.grid.median, 4),
            "ratio": round(self.ratio, 4),
            "unit": self.row.unit,
            "stock_p10_p90": [round(self.stock.p10, 4), round(self.stock.p90, 4)],
            "grid_p10_p90": [round(self.grid.p10, 4), round(self.grid.p90, 4)],
        }
