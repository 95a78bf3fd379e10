"""R1.4, R7.2, X6: whenever the scheduler dies, each accepted task has one end, and its caller is told."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from faults.checker import History, Verdict
from faults.grid import FaultGrid, Load, pause

pytestmark = pytest.mark.timeout(3_600)


def test_the_scheduler_is_killed_under_load(
    new_grid: Callable[..., FaultGrid],
    judge: Callable[[FaultGrid], Verdict],
    history: History,
    times: Callable[[str], int],
    rng: random.Random,
) -> None:
    grid = new_grid()
    load = Load(grid, history, seed=rng.randrange(1_000))
    in_flight = []
    for _ in range(times("scheduler_kills")):
        in_flight.append(load.wait_busy())
        pause(rng)
        grid.kill_scheduler()
        history.fault()
    load.finish()
    verdict = judge(grid)
    assert min(in_flight) >= 20
    assert verdict.tasks >= 20 + times("scheduler_kills"), "hardly anything was done between the kills"
