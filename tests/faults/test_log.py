"""The scheduler's log has each event of tasks and nodes once, with its cause."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable

import numpy as np
import pytest

from faults.grid import FaultGrid
from grids.server import BIN
from stock.processes import Processes

pytestmark = pytest.mark.timeout(180)


def test_the_schedulers_log_has_the_history_of_tasks_nodes_and_orders(
    new_grid: Callable[..., FaultGrid], processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6.1: accepted, assigned, requeued and why; sessions opened, lost and ended; who paused and drained."""
    monkeypatch.setenv("USER", "anna")
    monkeypatch.delenv("SUDO_USER", raising=False)
    grid = new_grid(nodes=1, slots=2)
    client = grid.client()
    pixels, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    log = grid.data_dir / "logs" / "scheduler.log"

    def lines(*words: str) -> list[str]:
        """The log's lines that have all of these."""
        return [line for line in log.read_text().splitlines() if all(word in line for word in words)]

    def wait_line(*words: str) -> str:
        return processes.wait_until(lambda: lines(*words), 20, f"a line with {words}")[0]

    def order(*words: str) -> None:
        subprocess.run([BIN / "lamagrid", *words, "--data-dir", grid.data_dir], check=True, timeout=30)

    assert re.search(
        r"session opened .*session=1 .*queues=\[\"gpu\"\]", wait_line("session opened", "node=n0")
    )

    tasks = [client.submit(pixels, mask, echo_ms=600_000, timeout=30) for _ in range(2)]
    ids = [task.id for task in tasks]
    for task_id in ids:
        assert "queue=gpu" in wait_line("task accepted", task_id)
        assert len(lines("task accepted", task_id)) == 1
        assert "attempt=1 node=n0 session=1 queue=gpu" in wait_line("task assigned", task_id)
    processes.wait_until(lambda: grid.survey()[0]["running"] == 2, 20, "two running tasks")

    grid.kill_worker("n0")
    assert "its connection was closed" in wait_line("session lost", "node=n0", "kept=2")
    assert wait_line("its tasks wait again", "node=n0", "tasks=2", "charged=0", "isolated=2")
    for task_id in ids:
        line = wait_line("task requeued", task_id, "attempt=1", "node=", "n0")
        assert "each is tried again alone" in line

    order("queue", "pause", "gpu")
    assert re.search(r"queue=gpu by=\"anna \(lamagrid, pid \d+\)\"", wait_line("queue is paused"))
    order("queue", "resume", "gpu")
    wait_line("queue goes on", "anna")

    order("node", "drain", "n0")
    wait_line("node is drained", "node=n0", "anna")
    for task in tasks:
        task.cancel(timeout=30)
    assert "the node said goodbye" in wait_line("session ended", "node=n0")
    for task_id in ids:
        wait_line("task finished", task_id, "cancelled")

    # A node whose queues are all unknown is refused by name, and leaves.
    command = [*grid.nodes["n0"].args][:-1]  # type: ignore[arg-type,misc]
    strange = processes.start(
        "strange",
        [*command, grid.data_dir],
        {
            **grid.env,
            "LAMAGRID__MODELS__LAMA__PATH": "/nowhere",
            "LAMAGRID__MODELS__LAMA__QUEUE": "tpu",
            "LAMAGRID__QUEUES__TPU__MAX_TASKS": "5",
        },
    )
    assert strange.wait(30) == 65
    line = wait_line("node refused", "node=n0")
    assert "its models are for tpu, and the scheduler's configuration has cpu, gpu" in line
    assert "its models are for tpu" in processes.log(strange)
    assert grid.survey() == []
    grid.schedulers[-1].send_signal(signal.SIGTERM)
    assert grid.schedulers[-1].wait(10) == 0
    wait_line("scheduler ended", "SIGTERM")
