"""R2.5, R4.5, R7.1: whichever node dies, another attempt does its tasks, once; who kills nodes is stopped."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from faults.checker import History, Verdict
from faults.grid import FaultGrid, Load, attempts, pause
from lamagrid import new_task_id
from lamagrid.errors import NodeLostError

pytestmark = pytest.mark.timeout(3_600)


def test_nodes_are_killed_under_load(
    new_grid: Callable[..., FaultGrid],
    judge: Callable[[FaultGrid], Verdict],
    history: History,
    times: Callable[[str], int],
    rng: random.Random,
) -> None:
    grid = new_grid()
    load = Load(grid, history, seed=rng.randrange(1_000))
    supervised = set(grid.nodes)  # their next worker starts without a pause
    in_flight = []
    for _ in range(times("node_kills")):
        in_flight.append(load.wait_busy())
        pause(rng)
        name = rng.choice(sorted(grid.nodes))
        if name in supervised and grid.kill_worker(name):
            supervised.discard(name)
        else:
            grid.kill_node(name)
            supervised.add(name)
        history.fault()
    load.finish()
    judge(grid)
    assert min(in_flight) >= 20
    assert attempts(grid, history) >= 2, "no kill met a task"


def test_a_task_that_kills_its_nodes_is_given_up_and_the_others_are_done(
    new_grid: Callable[..., FaultGrid],
    judge: Callable[[FaultGrid], Verdict],
    history: History,
    rng: random.Random,
) -> None:
    """R7.5, X7: after three nodes it is a dead letter; tasks beside it are not charged."""
    grid = new_grid(nodes=3, slots=2, settings={"SCHEDULER__CRASH_LIMIT": "3"})
    load = Load(grid, history, threads=3, seed=rng.randrange(1_000))
    client = grid.client()
    guilty = new_task_id()
    history.note(guilty, "submitted", may_fail=True)
    pixels, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    task = client.submit(pixels, mask, task_id=guilty, echo_abort=1)
    history.note(guilty, "accepted")
    with pytest.raises(NodeLostError, match="3 nodes were lost"):
        task.wait(60)
    history.note(guilty, "outcome", "failed")
    history.fault()
    reported = task.status()["counters"]
    # Assignments that no node took are attempts, too. The first time it may have had company, which says
    # nothing; from then on it runs alone, and each loss counts.
    assert reported["crashes"] == 3 <= reported["attempts"]
    begun = sum(grid.processes.log(node).count("aborting, as the task asks") for node in grid.nodes.values())
    assert 3 <= begun <= 4
    load.finish()
    judge(grid)
