"""One request after the other, to stock and grid by turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from forward import Forward
from grids.procfs import cpu_seconds
from pictures import decoded
from servers import Pair
from stats import Spread, figure
from traffic import Upload, send

WARM_UPS = 3
"""Requests before the first that counts: TorchScript compiles for a new size in its first two."""
PAUSE_S = 0.05  # after each measurement: servers clear up, and threads spin, beyond its end
TELL_EVERY_S = 5.0

# A file with losses is encoded by another library build than Pillow's.
LOSSY_MOST, LOSSY_MEAN = 3, 1.0


@dataclass
class Series:
    """The measurements of one request, seconds each; one of each list per round.

    Attributes:
        network: The forward calls, in this process.
        stock_cpu: Of stock's process, which runs the network too.
        grid_cpu: Of the grid's web process.
        stages: Milliseconds per stage of the grid's tasks, and ``web``: what they do not cover.
        sizes: Bytes of stock's and the grid's answer.
    """

    network: list[float] = field(default_factory=list)
    stock: list[float] = field(default_factory=list)
    grid: list[float] = field(default_factory=list)
    stock_cpu: list[float] = field(default_factory=list)
    grid_cpu: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    sizes: tuple[int, int] = (0, 0)

    def outside(self) -> tuple[Spread, Spread]:
        """Milliseconds of stock and grid outside the network, each round less its own forward calls."""
        return (
            Spread.of([1e3 * (whole - inside) for whole, inside in zip(self.stock, self.network)]),
            Spread.of([1e3 * (whole - inside) for whole, inside in zip(self.grid, self.network)]),
        )

    def whole(self) -> tuple[Spread, Spread]:
        """Milliseconds of stock's and the grid's requests."""
        return Spread.of([1e3 * each for each in self.stock]), Spread.of([1e3 * each for each in self.grid])

    def cpu(self) -> tuple[Spread, Spread]:
        """Processor seconds of stock's process and the grid's web process."""
        return Spread.of(self.stock_cpu), Spread.of(self.grid_cpu)

    def stages_line(self) -> str:
        """Where the grid's time goes, medians in milliseconds."""
        return ", ".join(f"{name} {figure(Spread.of(times).median)}" for name, times in self.stages.items())


def alternate(
    pair: Pair,
    request: Upload,
    network: Forward | None,
    rounds: int,
    tell: Callable[[str], None],
) -> Series:
    """Send a request to stock and grid by turns, with the network's forward calls in between.

    Raises:
        RequestError: A request was not answered with a picture.
        ValueError: The two pictures differ.
    """
    series = Series()
    told = time.monotonic()
    for count in range(-WARM_UPS, rounds):  # those below 0 count for nothing
        inside = network.seconds() if network else 0.0
        time.sleep(PAUSE_S)
        spent = {}
        for server in (pair.stock, pair.grid):
            before = cpu_seconds(server.pid)
            answer = send(server.port, request)
            time.sleep(PAUSE_S)
            spent[server.name] = (answer, cpu_seconds(server.pid) - before)
        (stock, stock_cpu), (grid, grid_cpu) = spent["stock"], spent["grid"]
        if count == -WARM_UPS:
            series.sizes = (len(stock.data), len(grid.data))
            compare(stock.data, grid.data)
        if count < 0:
            continue
        series.network.append(inside)
        series.stock.append(stock.seconds)
        series.grid.append(grid.seconds)
        series.stock_cpu.append(stock_cpu)
        series.grid_cpu.append(grid_cpu)
        if grid.task is not None:
            stages = pair.stages(grid.task)
            stages["web"] = 1e3 * grid.seconds - stages.get("total", 0.0)
            for name, ms in stages.items():
                series.stages.setdefault(name, []).append(ms)
        if time.monotonic() - told >= TELL_EVERY_S and count + 1 < rounds:
            told = time.monotonic()
            tell(f"{count + 1} of {rounds}")
    return series


def compare(stock: bytes, grid: bytes) -> None:
    """Check that both gave the same picture: figures about a wrong one are worth nothing.

    Raises:
        ValueError: A PNG differs at all, or a file with losses by more than another encoder's rounding.
    """
    wanted, got = decoded(stock), decoded(grid)
    if wanted.shape != got.shape:
        raise ValueError(f"the grid's picture is {got.shape}, stock's {wanted.shape}")
    apart = np.abs(wanted.astype(np.int16) - got)
    most, mean = int(apart.max()), float(apart.mean())
    lossless = stock.startswith(b"\x89PNG")
    if most > 0 if lossless else most > LOSSY_MOST or mean > LOSSY_MEAN:
        raise ValueError(f"the grid's picture differs from stock's: by at most {most}, on average {mean:.4f}")
