"""The launcher is told to end at random moments, as `docker stop` does it.

R7.4: exit status 0 in less than 8 seconds, nothing started again, nothing left behind.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from grids import procfs
from grids.pictures import encoded, hole, plain
from grids.server import ORIGINAL, GridServer, start_grid
from stock.processes import Processes

pytestmark = pytest.mark.timeout(1800)

STOP_S = 8.0
READY_S = 10.0
"""The random moments lie between the start and this long after it."""
LONG = encoded(plain(64, 96, 255))
HOLE = encoded(hole(64, 96, 20, 30, 16))


def stop(grid: GridServer, number: signal.Signals) -> float:
    """End it, and check what is left. Returns how long it took."""
    children = {pid: procfs.started_at(pid) for pid in procfs.descendants(grid.process.pid)}
    began = time.monotonic()
    grid.process.send_signal(number)
    status = grid.process.wait(60)
    took = time.monotonic() - began
    assert status == 0, grid.log
    assert took < STOP_S, f"{took:.1f} s\n{grid.log}"
    assert [pid for pid, started in children.items() if started and procfs.started_at(pid) == started] == []
    assert "started again" not in grid.log
    assert "starting it again" not in grid.log
    assert "Traceback" not in grid.log
    assert not (grid.data_dir / "sockets").exists()
    return took


def test_sigterm_with_a_long_task_and_a_request_that_waits(
    processes: Processes, tmp_path: Path, slow_flags: list[str], background: Callable[..., Future[Any]]
) -> None:
    grid = start_grid(processes, tmp_path / "data", *slow_flags).wait_ready()
    processes.wait_until(grid.nodes, 60, "the node", [grid.process])
    answer = background(grid.inpaint, LONG, HOLE, **ORIGINAL)
    processes.wait_until(
        lambda: any(node["running"] for node in grid.nodes()), 60, "a running task", [grid.process]
    )
    grid.process.send_signal(signal.SIGHUP)
    processes.wait_until(lambda: "SIGHUP" in grid.log, 20, "a line about SIGHUP", [grid.process])
    assert grid.get("/model").status_code == 200
    print(f"stopped in {stop(grid, signal.SIGTERM):.1f} s")
    reported = answer.result(30)
    assert reported.status_code == 503, reported.text
    assert "The server is being stopped" in reported.text


def test_sigterm_at_random_moments(
    processes: Processes, tmp_path: Path, slow_flags: list[str], request: pytest.FixtureRequest
) -> None:
    stops = request.config.getoption("--stops")
    for turn in range(stops):
        grid = start_grid(processes, tmp_path / f"data-{turn}", *slow_flags, name=f"server-{turn}")
        # From its first line on it hears signals; before that it is a Python that starts.
        processes.wait_until(lambda grid=grid: grid.log, 60, "its first line", [grid.process])  # type: ignore[misc]
        moment = random.uniform(0.0, READY_S)
        time.sleep(moment)  # a moment, not a state
        number = random.choice([signal.SIGTERM, signal.SIGINT])
        took = stop(grid, number)
        print(f"{turn}: {number.name} after {moment:.1f} s: ended in {took:.1f} s")
