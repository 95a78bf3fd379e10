"""Two nodes of one name: the second is refused and told so, the first works on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable

import numpy as np
import pytest

from faults.grid import FaultGrid
from grids import procfs
from grids.server import PROGRAMS
from stock.processes import Processes

pytestmark = pytest.mark.timeout(180)

NAME = "twin"
REFUSED = f"a node named {NAME} is connected already"


def start_alone(grid: FaultGrid, processes: Processes) -> subprocess.Popen[bytes]:
    """Start a node as the first process of a pid namespace: its processes have its twin's numbers."""
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    node = [PROGRAMS / "lamagrid-node", "--backend", "echo", "--model", "lama", "--name", NAME]
    return processes.start(NAME, [*alone, *node, "--data-dir", grid.data_dir], grid.env)


def test_two_nodes_of_one_name_and_process_id(
    new_grid: Callable[..., FaultGrid], processes: Processes
) -> None:
    """R2.2: what tells two processes apart is drawn, not their name and number."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no pid namespaces here (they need root)")
    grid = new_grid(nodes=0, slots=1)
    client = grid.client()
    pixels, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)

    def connected() -> list[int]:
        return [node["info"]["pid"] for node in grid.survey() if node["info"]["name"] == NAME]

    def reported(pattern: str) -> list[str]:
        return re.findall(pattern, processes.log(grid.schedulers[-1]))

    first = start_alone(grid, processes)
    [pid] = processes.wait_until(connected, 30, "the first node", [first])
    running = client.submit(pixels, mask, echo_ms=3_000, timeout=30)
    second = start_alone(grid, processes)
    processes.wait_until(lambda: REFUSED in processes.log(second), 30, "the refusal", [first, second])
    # The second one tries again and again meanwhile.
    assert running.outcome(30).task["counters"]["attempts"] == 1
    for _ in range(20):
        task = client.submit(pixels, mask, echo_ms=50, timeout=30)
        assert task.outcome(30).task["counters"]["attempts"] == 1
    assert connected() == [pid]
    assert len(reported(rf"session opened .*node={NAME}\b")) == 1
    assert len(reported(rf"node refused .*node={NAME}\b.*{REFUSED}")) >= 1
    assert reported(r"session lost") == []
    # When the first one leaves, the second one works; it has the same process id there.
    [node] = procfs.descendants(first.pid)[:1]
    os.kill(node, signal.SIGTERM)
    first.wait(20)
    assert len(reported(rf"session ended: .*node={NAME}\b.*the node said goodbye")) == 1
    processes.wait_until(lambda: connected() == [pid], 30, "the second node", [second])
    assert client.submit(pixels, mask, timeout=30).outcome(30).task["counters"]["attempts"] == 1
