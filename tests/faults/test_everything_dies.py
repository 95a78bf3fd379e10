"""R7.2: scheduler and nodes are killed in one instant; callers stay, and get what they asked for."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import pytest

from faults.checker import History, Verdict
from faults.grid import FaultGrid, Load, pause
from grids import procfs

pytestmark = pytest.mark.timeout(3_600)


def test_everything_is_killed_at_once(
    new_grid: Callable[..., FaultGrid],
    judge: Callable[[FaultGrid], Verdict],
    history: History,
    times: Callable[[str], int],
    rng: random.Random,
) -> None:
    grid = new_grid()
    load = Load(grid, history, seed=rng.randrange(1_000))
    for _ in range(times("everything")):
        load.wait_busy()
        pause(rng)
        pids = [pid for node in grid.nodes.values() for pid in (node.pid, *procfs.descendants(node.pid))]
        for pid in [*rng.sample(pids, len(pids)), grid.schedulers[-1].pid]:
            os.kill(pid, signal.SIGKILL)
        grid.schedulers[-1].wait()
        for name, node in list(grid.nodes.items()):
            node.wait()
            grid.start_node(name)
        grid.start_scheduler()
        history.fault()
        grid.wait_ready()
    load.finish()
    judge(grid)
