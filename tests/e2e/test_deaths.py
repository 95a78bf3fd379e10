"""Whatever dies while a browser waits: it gets its picture, once; and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grids import procfs
from grids.pictures import Pixels, decoded, encoded, hole, plain
from grids.server import ORIGINAL, GridServer, lamagrid_json, start_grid
from stock.processes import Processes

pytestmark = pytest.mark.timeout(180)

WORK = 255  # some seconds of work
HOLE = hole(64, 96, 20, 30, 16)
Background = Callable[..., Future[Any]]
Stack = tuple[Processes, GridServer]


def expected(photo: Pixels) -> Pixels:
    """The slow model's answer to a picture."""
    result = photo.copy()
    result[HOLE > 0] = 127
    return result


def running(grid: GridServer) -> dict[str, Any] | None:
    """The node that works on a task now, None if none does."""
    return next((node for node in grid.nodes() if node["running"]), None)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, slow_flags: list[str]) -> Iterator[Stack]:
    """A stack with one torch node, which is as good as new after each death but the last."""
    folder = tmp_path_factory.mktemp("deaths")
    processes = Processes(folder / "logs")
    try:
        yield processes, start_grid(processes, folder / "grid", *slow_flags).wait_ready()
    finally:
        processes.close()


def test_deaths_under_a_waiting_request(stack: Stack, background: Background) -> None:
    """R7.1, R7.2, R1.4: worker, supervisor and scheduler are killed under a waiting request each."""
    processes, grid = stack
    photo = plain(64, 96, WORK)

    def submit() -> Future[Any]:
        return background(grid.inpaint, encoded(photo), encoded(HOLE), **ORIGINAL)

    def wait_running() -> dict[str, Any]:
        node: dict[str, Any] | None = processes.wait_until(
            lambda: running(grid), 30, "a running task", [grid.process]
        )
        assert node is not None
        return node

    def assert_answered(waiting: Future[Any]) -> dict[str, Any]:
        answer = waiting.result(100)
        assert answer.status_code == 200, answer.text
        assert np.array_equal(decoded(answer.content), expected(photo))
        task = grid.task(answer)
        assert task["state"] == "completed"
        return task

    # The worker that computes.
    waiting = submit()
    first = wait_running()
    os.kill(first["pid"], signal.SIGKILL)
    task = assert_answered(waiting)
    assert (task["attempts"], task["crashes"], task["failures"]) == (2, 1, 0)

    # Its supervisor, which the launcher starts again.
    waiting = submit()
    second = wait_running()
    assert second["pid"] != first["pid"]
    supervisor = procfs.parents()[second["pid"]]
    assert "lamagrid-node" in procfs.command(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    task = assert_answered(waiting)
    assert task["failures"] == 0
    assert "node torch-0 ended (signal SIGKILL): starting it again" in grid.log

    # The scheduler: the node works on, and what it made is taken when the scheduler is back.
    waiting = submit()
    third = wait_running()
    scheduler = next(pid for pid in procfs.descendants(grid.process.pid) if is_scheduler(pid))
    assert scheduler == grid.scheduler_pid
    os.kill(scheduler, signal.SIGKILL)
    task = assert_answered(waiting)
    assert (task["attempts"], task["crashes"], task["failures"]) == (1, 0, 0)
    assert running(grid) is None
    assert [node["pid"] for node in grid.nodes()] == [third["pid"]]
    assert "scheduler ended (signal SIGKILL): starting it again" in grid.log


def is_scheduler(pid: int) -> bool:
    """Whether a process is one."""
    return "lamagrid scheduler" in procfs.command(pid)


def test_a_second_instance_is_refused_and_the_first_serves_on(stack: Stack, slow_flags: list[str]) -> None:
    processes, grid = stack
    second = start_grid(processes, grid.data_dir, *slow_flags, name="second")
    assert second.process.wait(60) == 1
    assert re.search(rf"\b{grid.scheduler_pid}\b", second.log), second.log
    assert "Traceback" not in second.log
    answer = grid.inpaint(encoded(plain(64, 96)), encoded(HOLE), **ORIGINAL)
    assert answer.status_code == 200, answer.text
    assert np.array_equal(decoded(answer.content), expected(plain(64, 96)))


def test_every_process_has_a_log_file_of_its_own(stack: Stack) -> None:
    """R6.1: one line per finished task with its stages, in a file that stays."""
    _, grid = stack
    answer = grid.inpaint(encoded(plain(50, 50)), encoded(hole(50, 50, 5, 5, 5)), **ORIGINAL)
    assert answer.status_code == 200, answer.text
    logs = grid.data_dir / "logs"
    kinds = {re.split(r"[-.]", path.name)[0] for path in logs.glob("*.log")}
    assert kinds >= {"scheduler", "node", "worker", "web"}
    line = re.search(
        rf"task\.id={answer.headers['X-Lamagrid-Task']}.*outcome=\"completed\".*infer_ms=.*total_ms=.*",
        (logs / "scheduler.log").read_text(),
    )
    assert line is not None


def test_a_node_that_was_drained_stays_away(stack: Stack) -> None:
    """R4.4: the launcher does not start it again; later tasks wait."""
    processes, grid = stack
    name = grid.nodes()[0]["name"]
    reported = lamagrid_json("node", "drain", name, data_dir=grid.data_dir)
    assert reported == {"node": name, "running": 0}
    processes.wait_until(
        lambda: f"node {name} left as it was told; it is not started again" in grid.log, 20, "the node's end"
    )
    assert grid.nodes() == []
    assert grid.get("/model").status_code == 200


def test_a_killed_web_process_leaves_nothing_behind(
    processes: Processes, tmp_path: Path, slow_flags: list[str], background: Background
) -> None:
    """The children end at the end of their lifelines, also in the middle of their work."""
    grid = start_grid(processes, tmp_path / "grid", *slow_flags).wait_ready()
    waiting = background(grid.inpaint, encoded(plain(64, 96, WORK)), encoded(HOLE), **ORIGINAL)
    processes.wait_until(lambda: running(grid), 30, "a running task", [grid.process])
    children = {pid: procfs.started_at(pid) for pid in procfs.descendants(grid.process.pid)}
    names = [procfs.command(pid) for pid in children]
    assert any("scheduler" in name for name in names)
    assert len(children) >= 3  # scheduler, node, the node's worker

    grid.process.kill()
    grid.process.wait()

    def left() -> list[str]:
        return [procfs.command(pid) for pid, start in children.items() if procfs.started_at(pid) == start]

    processes.wait_until(lambda: not left(), 5.0, f"the end of {len(children)} children")
    assert waiting.exception(10) is not None

    # Their data directory is free again, and the abandoned task does no harm.
    again = start_grid(
        processes,
        grid.data_dir,
        "--model",
        "lama",
        "--grid-demo-model",
        "--grid-python-models",
        "",
        name="again",
    ).wait_ready()
    answer = again.inpaint(encoded(plain(64, 96)), encoded(HOLE))
    assert answer.status_code == 200, answer.text

    # Ended politely, the next one ends its children in order, and says that all is well.
    children = procfs.descendants(again.process.pid)
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(20) == 0
    assert not any(procfs.started_at(pid) for pid in children)
