"""R3.4: a cancelled task frees its node, also in the middle of a forward pass that looks at nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from grids.pictures import hole, plain
from grids.server import GridServer, start_grid
from lamagrid import TaskClient
from lamagrid.client import Task
from stock.processes import Processes

pytestmark = pytest.mark.timeout(180)

LONG = 255  # some seconds of work
HOLE = hole(64, 96, 20, 30, 16)


@pytest.fixture
def grid(
    processes: Processes, tmp_path: Path, slow_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> GridServer:
    """One torch node whose patience is short."""
    monkeypatch.setenv("LAMAGRID__NODE__CANCEL_GRACE_MS", "300")
    monkeypatch.setenv("LAMAGRID__NODE__CANCEL_RESTARTS_PER_MINUTE", "1")
    return start_grid(processes, tmp_path / "grid", *slow_flags).wait_ready()


def cancel_when_running(processes: Processes, client: TaskClient, work: int) -> Task:
    """Submit a task, cancel it once it has been in its slot for a moment."""
    task = client.submit(plain(64, 96, work), HOLE, hd_strategy="Original")
    processes.wait_until(lambda: task.status()["status"] == "processing", 30, "a running task")
    time.sleep(0.2)  # into the forward pass; sooner is fine as well
    assert task.cancel() == "cancelled"
    return task


def test_a_cancelled_forward_pass_is_ended_with_its_process_where_that_is_faster(
    grid: GridServer, processes: Processes
) -> None:
    client = TaskClient(data_dir=grid.data_dir)
    began = time.monotonic()
    client.inpaint(plain(64, 96, LONG), HOLE, hd_strategy="Original")
    whole_s = time.monotonic() - began
    before = grid.nodes()[0]["pid"]

    cancel_when_running(processes, client, LONG)
    cancelled = time.monotonic()
    done = client.submit(plain(64, 96), HOLE, hd_strategy="Original")
    assert np.all(done.wait(60)[HOLE > 0] == 127)
    freed_s = time.monotonic() - cancelled
    assert grid.nodes()[0]["pid"] != before
    assert "ended itself to stop a task" in grid.log
    assert freed_s < whole_s, f"the next task was done after {freed_s:.1f} s, the pass takes {whole_s:.1f} s"
    assert done.status()["counters"]["crashes"] == 0

    # Once a minute here: the second time it is waited for.
    after = grid.nodes()[0]["pid"]
    client.inpaint(plain(64, 96, LONG), HOLE, hd_strategy="Original")
    cancel_when_running(processes, client, LONG)
    client.inpaint(plain(64, 96), HOLE, hd_strategy="Original", timeout=60)
    assert grid.nodes()[0]["pid"] == after


def test_a_short_rest_is_waited_for(grid: GridServer, processes: Processes) -> None:
    client = TaskClient(data_dir=grid.data_dir)
    before = grid.nodes()[0]["pid"]
    began = time.monotonic()
    client.inpaint(plain(64, 96, 10), HOLE, hd_strategy="Original")
    # On any machine less than a worker needs to start again, and enough to be cancelled in the middle.
    work = max(1, min(round(10 * 0.8 / (time.monotonic() - began)), 255))
    cancel_when_running(processes, client, work)
    client.inpaint(plain(64, 96), HOLE, hd_strategy="Original")
    assert grid.nodes()[0]["pid"] == before
    assert "ended itself" not in grid.log
