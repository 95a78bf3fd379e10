"""A scheduler with few descriptors, and a stranger that takes them all. X8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from grids.procfs import TICKS_PER_S
from hostile.conftest import Grid, open_descriptors
from hostile.honest import Honest
from hostile.peers import is_dropped, tcp
from stock.processes import Processes

pytestmark = pytest.mark.timeout(120)

DESCRIPTORS = 256
MOST_CPU_S = 1.5


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One that may open little."""
    folder = tmp_path_factory.mktemp("few")
    processes = Processes(folder / "logs")
    try:
        yield Grid(processes, folder, ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"))
    finally:
        processes.close()


def test_more_connections_than_descriptors(grid: Grid, honest: Honest) -> None:
    """Who is connected is served on, the scheduler does not spin, and afterwards there is room again."""
    began = _cpu_s(grid.scheduler.pid)
    crowd = [tcp(grid.address) for _ in range(DESCRIPTORS + 100)]
    honest.wait(50)
    assert _cpu_s(grid.scheduler.pid) - began < MOST_CPU_S
    assert open_descriptors(grid.scheduler.pid) < DESCRIPTORS
    assert all(is_dropped(connection) for connection in crowd)
    late = Honest(grid.bundle("late", role="client"))
    try:
        late.wait(5)
    finally:
        late.close()
    assert not late.wrong
