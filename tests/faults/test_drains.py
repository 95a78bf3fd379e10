"""R4.4: a node that is told to leave finishes what it has, and nothing counts as a crash."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable

import pytest

from faults.checker import History, Verdict
from faults.grid import FaultGrid, Load, pause

pytestmark = pytest.mark.timeout(3_600)


def test_nodes_drain_under_load(
    new_grid: Callable[..., FaultGrid],
    judge: Callable[[FaultGrid], Verdict],
    history: History,
    times: Callable[[str], int],
    rng: random.Random,
) -> None:
    grid = new_grid()
    load = Load(grid, history, seed=rng.randrange(1_000))
    for _ in range(times("drains")):
        load.wait_busy()
        pause(rng)
        name = rng.choice(sorted(grid.nodes))
        node = grid.nodes[name]
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0, grid.processes.tails()
        history.fault()
        grid.start_node(name)
        grid.wait_ready()
    load.finish()
    judge(grid)
    client = grid.client()
    crashes = [client.task(task).status()["counters"]["crashes"] for task in history.accepted()]
    assert sum(crashes) == 0
