"""R2.5, X6: a node that stands still past its lease loses its tasks; what it brings afterwards is refused."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from faults.checker import History, Verdict
from faults.grid import FaultGrid, Load, attempts

pytestmark = pytest.mark.timeout(3_600)


def test_nodes_stand_still_past_their_lease(
    new_grid: Callable[..., FaultGrid],
    judge: Callable[[FaultGrid], Verdict],
    history: History,
    times: Callable[[str], int],
    rng: random.Random,
) -> None:
    grid = new_grid()
    load = Load(grid, history, seed=rng.randrange(1_000))
    stood_still = 0
    for _ in range(times("freezes")):
        load.wait_busy()
        # One that works: it has something to bring when it wakes up.
        busy = [node for node in grid.survey() if node["running"]]
        node = rng.choice(busy)
        name, pid = node["info"]["name"], node["info"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            grid.processes.wait_until(
                lambda name=name: name not in {n["info"]["name"] for n in grid.survey()},
                grid.lease_ms / 1_000 + 10,
                f"the loss of node {name}",
            )
            time.sleep(rng.random() * 0.3)
        finally:
            os.kill(pid, signal.SIGCONT)
        history.fault()
        stood_still += 1
        grid.wait_ready()
    load.finish()
    judge(grid)
    assert attempts(grid, history) >= 2, "no task was on a node that stood still"
    reported = sum(
        grid.processes.log(node).count("the scheduler ended the session") for node in grid.nodes.values()
    )
    assert reported >= stood_still, (
        f"{reported} of {stood_still} nodes were notified that their lease had ended"
    )
