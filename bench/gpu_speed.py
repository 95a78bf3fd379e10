"""Pictures per second on one device: a plain loop, and the grid with some clients waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpu_grid import GridError
from stats import Spread, figure, quantile

CLIENTS = (1, 4, 16)
ANSWER_LIMIT_S = 120.0
PLAIN = "plain loop"

Files = tuple[bytes, bytes]
"""A picture and its mask."""


@dataclass
class Run:
    """The results of one stretch of work.

    Attributes:
        rate: Pictures per second.
        seconds: The time of each picture, as the one who waits sees it.
        share: The device's share of the time, by the tasks' own clocks; None where it was not measured.
    """

    rate: float
    seconds: list[float]
    share: float | None = None


@dataclass
class Speed:
    """The turns of one way to work on one format."""

    form: str
    way: str
    runs: list[Run] = field(default_factory=list)

    @property
    def rate(self) -> Spread:
        """Pictures per second."""
        return Spread.of([run.rate for run in self.runs])

    @property
    def share(self) -> float | None:
        """The device's share of the time."""
        shares = [run.share for run in self.runs if run.share is not None]
        return quantile(shares, 0.5) if shares else None

    def percentile(self, share: float) -> float:
        """Milliseconds that this share of all pictures took at most."""
        return 1e3 * quantile([each for run in self.runs for each in run.seconds], share)


def waiting(clients: int) -> str:
    """The name of the grid with this number of clients."""
    return f"grid, {clients} waiting"


def loop(work: Callable[[Files], object], files: Files, wall_s: float) -> Run:
    """Do the work again and again in this thread."""
    took: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < wall_s:
        start = time.perf_counter()
        work(files)
        took.append(time.perf_counter() - start)
    return Run(len(took) / (time.perf_counter() - began), took)


def load(client: Any, files: Files, output: str, clients: int, wall_s: float) -> Run:
    """Let threads hand in one task after the other, each waiting for its picture.

    Raises:
        GridError: A task failed.
    """
    guard = threading.Lock()  # of all that the threads write
    took: list[float] = []
    failed: list[Exception] = []
    in_time = 0
    infer_s = 0.0
    began = time.perf_counter()

    def one() -> None:
        nonlocal in_time, infer_s
        try:
            while time.perf_counter() - began < wall_s and not failed:
                start = time.perf_counter()
                task = client.submit(*files, output=output, durability="process", hd_strategy="Original")
                outcome = task.outcome(ANSWER_LIMIT_S)
                end = time.perf_counter()
                task.release()
                with guard:
                    took.append(end - start)
                    if end - began <= wall_s:
                        in_time += 1
                        infer_s += outcome.task["stages"]["infer_ms"] / 1e3
        except Exception as error:  # of a thread: told by the one that waits for it
            with guard:
                failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise GridError(f"a task failed: {failed[0]}")
    return Run(in_time / wall_s, took, infer_s / wall_s)


def compare(
    client: Any,
    plain: Callable[[Files], object] | None,
    requests: dict[str, Files],
    wall_s: float,
    turns: int,
    tell: Callable[[str], None],
) -> list[Speed]:
    """The plain loop, if there is one, and the grid by turns, for each format."""
    table: list[Speed] = []
    for form, files in requests.items():
        ways = ([] if plain is None else [PLAIN]) + [waiting(clients) for clients in CLIENTS]
        lines = {way: Speed(form, way) for way in ways}
        for turn in range(turns):
            runs: dict[str, Run] = {}
            if plain is not None:
                runs[PLAIN] = loop(plain, files, wall_s)
            for clients in CLIENTS:
                runs[waiting(clients)] = load(client, files, form.lower(), clients, wall_s)
            for way, run in runs.items():
                lines[way].runs.append(run)
            rates = ", ".join(f"{way} {figure(run.rate)}/s" for way, run in runs.items())
            tell(f"{form}, turn {turn + 1} of {turns}: {rates}")
        table += lines.values()
    return table
