"""Models that do not all fit a node's memory: loads, waits and resident memory for mixed tasks.

usage: bench/models.py [--quick] [--tasks N] [--mib N] [--limit-mib N]

Three TorchScript networks on one Rust node, and tasks for them in a random order, the same in each run. They
come in blocks, and each block is run three times before the next one begins: its tasks one after the other,
and all at once on each of two grids that differ in `scheduler.warm_first_ms` alone. With its default a node
takes tasks of models in memory first, with 0 it takes all by their arrival.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# The tests' code that starts and asks servers is used here, too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from grids.pictures import hole, plain
from grids.procfs import rss_bytes
from lamagrid import TaskClient
from models.conftest import torch_grid
from stats import figure, quantile
from stock.models import heavy_lama

MIB = 1 << 20
NAMES = ("one", "two", "three")
IMAGE, MASK = plain(64, 80), hole(64, 80, 10, 10, 30)
SEED = 3
BLOCK = 20
READY_S = 120.0
ANSWER_S = 600.0


@dataclass
class Way:
    """One way to run the tasks, and what it cost so far."""

    name: str
    client: TaskClient
    at_once: int
    waits_ms: list[float] = field(default_factory=list)
    loads: int = 0
    highest: int = 0
    took_s: float = 0.0

    def run(self, names: Sequence[str]) -> None:
        """Run one block."""
        (node,) = self.client.survey()["nodes"]
        began = time.monotonic()
        for first in range(0, len(names), self.at_once):
            part = names[first : first + self.at_once]
            tasks = [self.client.submit(IMAGE, MASK, model=name) for name in part]
            for task in tasks:
                task.wait(ANSWER_S)
                self.highest = max(self.highest, rss_bytes(node["info"]["pid"]))
            stages = [task.status()["stages"] for task in tasks]
            self.waits_ms += [each["total_ms"] for each in stages]
            self.loads += sum(each["load_ms"] > 0 for each in stages)
        self.took_s += time.monotonic() - began

    def __str__(self) -> str:
        p50, p99 = (figure(quantile(self.waits_ms, share)) for share in (0.5, 0.99))
        return (
            f"{self.name:36} {len(self.waits_ms):6} {self.loads:6} {p50:>8} {p99:>8} "
            f"{figure(self.took_s):>7} {self.highest // MIB:9}"
        )


@contextlib.contextmanager
def grid(folder: Path, sections: Sequence[str]) -> Iterator[TaskClient]:
    """A grid of this configuration, once its node offers all models."""
    folder.mkdir()
    configuration = folder / "config.toml"
    configuration.write_text("\n".join(sections))
    with torch_grid(folder, NAMES, {"LAMAGRID_CONFIG": str(configuration)}) as client:
        end = time.monotonic() + READY_S
        while {len(node["info"]["models"]) for node in client.survey()["nodes"]} != {len(NAMES)}:
            if time.monotonic() > end:
                raise TimeoutError("the node does not offer all models")
            time.sleep(0.1)
        yield client


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench/models.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small and few: does it work at all")
    parser.add_argument("--tasks", type=int, help="200")
    parser.add_argument("--mib", type=int, help="size of each network: 300")
    parser.add_argument("--limit-mib", type=int, help="memory for models: 800")
    options = parser.parse_args()
    count, mib, limit_mib = (
        given or (quick if options.quick else whole)
        for given, quick, whole in (
            (options.tasks, 40, 200),
            (options.mib, 60, 300),
            (options.limit_mib, 170, 800),
        )
    )
    order = [str(name) for name in np.random.default_rng(SEED).choice(NAMES, count)]
    with tempfile.TemporaryDirectory(prefix="lamagrid-bench-") as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        paths = [heavy_lama(folder / f"{name}.pt", mib, level) for level, name in enumerate(NAMES, 1)]
        models = [f'[models.{name}]\npath = "{path}"' for name, path in zip(NAMES, paths, strict=True)]
        sections = [f"[node]\nmemory_mib = {limit_mib}", *models]
        warm = stack.enter_context(grid(folder / "warm", sections))
        arrival = stack.enter_context(grid(folder / "arrival", [*sections, "[scheduler]\nwarm_first_ms = 0"]))
        ways = [
            Way("one at a time", arrival, 1),
            Way(f"{BLOCK} at once, by their arrival", arrival, BLOCK),
            Way(f"{BLOCK} at once, models in memory first", warm, BLOCK),
        ]
        print(f"three networks of {mib} MiB, {limit_mib} MiB for models and their work\n")
        for number, first in enumerate(range(0, count, BLOCK)):
            for way in ways if number % 2 == 0 else reversed(ways):
                way.run(order[first : first + BLOCK])
        print(
            f"{'':36} {'tasks':>6} {'loads':>6} {'p50, ms':>8} {'p99, ms':>8} {'all, s':>7} {'most MiB':>9}"
        )
        print("\n".join(map(str, ways)))


if __name__ == "__main__":
    main()
