"""The web server is started again under its browsers' tasks: each finds its own, none is abandoned.

R8.2, R7.3. ``--restarts 200`` is the whole of it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from grids.pictures import decoded, encoded, hole, plain
from grids.server import ORIGINAL, PROGRAMS, GridServer, lamagrid_json, start_grid
from lamagrid.web.browser_tasks import UNCLAIMED_LIMIT_S
from stock.forms import stock_form
from stock.processes import Processes

pytestmark = pytest.mark.timeout(4 * 3600)

HOLE = hole(64, 96, 20, 30, 16)
MANY = 10
"""From this number of restarts on, those that do not ask are waited for."""


class Visitor:
    """A browser with a cookie of its own and a picture of its own."""

    def __init__(self, turn: int, number: int) -> None:
        self.cookie = f"{turn:016x}{number:016x}"
        self.photo = plain(64, 96, (turn * 7 + number * 50) % 256)

    def get(self, grid: GridServer, path: str) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(grid.base + path, cookies={"lamagrid": self.cookie}, timeout=30)

    def send(self, grid: GridServer) -> None:
        """Ask for the picture, in a thread: the server ends before it answers."""
        files = {"image": ("i", encoded(self.photo)), "mask": ("m", encoded(HOLE))}

        def post() -> None:
            with requests.Session() as session:
                session.trust_env = False
                with contextlib.suppress(requests.ConnectionError):
                    session.post(
                        grid.base + "/inpaint",
                        files=files,
                        data=stock_form(**ORIGINAL),
                        cookies={"lamagrid": self.cookie},
                        timeout=120,
                    )

        threading.Thread(target=post, daemon=True).start()

    def tasks(self, grid: GridServer) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = self.get(grid, "/grid/tasks").json()["tasks"]
        return tasks

    def wait_for(self, processes: Processes, grid: GridServer, state: str) -> dict[str, Any]:
        """Its only task, in that state."""

        def has_come() -> bool:
            return [task["state"] for task in self.tasks(grid)] == [state]

        processes.wait_until(has_come, 60, f"a task that is {state}")
        return self.tasks(grid)[0]


@pytest.fixture
def data_dir(processes: Processes, tmp_path: Path) -> Path:
    """The data directory of a scheduler with a node that gives each picture back."""
    folder = tmp_path / "data"
    processes.start("scheduler", [sys.executable, "-m", "lamagrid", "scheduler", "--data-dir", folder])
    flags = ["--backend", "echo", "--model", "lama", "--data-dir", folder]
    processes.start("node", [PROGRAMS / "lamagrid-node", *flags])
    processes.wait_until(lambda: lamagrid_json("node", "list", data_dir=folder), 60, "the node")
    return folder


def waiting(data_dir: Path) -> int:
    queues = {queue["queue"]: queue for queue in lamagrid_json("queue", "show", data_dir=data_dir)}
    return int(queues["gpu"]["waiting"] + queues["gpu"]["running"])


def wait_for_tasks(processes: Processes, data_dir: Path, number: int) -> None:
    processes.wait_until(lambda: waiting(data_dir) == number, 60, f"{number} tasks that wait")


def test_browsers_find_their_tasks_after_each_restart(
    processes: Processes, data_dir: Path, request: pytest.FixtureRequest
) -> None:
    restarts = request.config.getoption("--restarts")

    def serve(turn: int) -> GridServer:
        flags = ("--grid-scheduler", data_dir, "--model", "lama")
        return start_grid(processes, data_dir, *flags, name=f"web-{turn}").wait_ready()

    grid = serve(0)
    for turn in range(restarts):
        wait_for_tasks(processes, data_dir, 0)
        lamagrid_json("queue", "pause", "gpu", data_dir=data_dir)
        visitors = [Visitor(turn, number) for number in range(4)]
        visitors[3].cookie = ""  # without one no browser can ask for it again
        for visitor in visitors:
            visitor.send(grid)
        wait_for_tasks(processes, data_dir, 4)
        grid.process.send_signal(signal.SIGKILL if turn % 2 == 0 else signal.SIGTERM)
        grid.process.wait(30)
        grid = serve(turn + 1)
        wait_for_tasks(processes, data_dir, 3)
        for visitor in visitors[:2]:  # the third one has gone home
            mine = visitor.wait_for(processes, grid, "queued")
            path = f"/grid/tasks/{mine['id']}/result"
            assert visitor.get(grid, path).status_code == 404, "there is no picture yet"
        lamagrid_json("queue", "resume", "gpu", data_dir=data_dir)
        for visitor in visitors[:2]:
            task = visitor.wait_for(processes, grid, "completed")
            assert task["has_result"]
            path = f"/grid/tasks/{task['id']}/result"
            answer = visitor.get(grid, path)
            assert answer.headers["Content-Type"] == "image/png"
            assert np.array_equal(decoded(answer.content), visitor.photo)
            assert Visitor(turn, 9).get(grid, path).status_code == 404, "it is another browser's"
    if restarts >= MANY:
        wait_for_tasks(processes, data_dir, 0)
        lamagrid_json("queue", "pause", "gpu", data_dir=data_dir)
        late = Visitor(restarts, 1)
        late.send(grid)
        wait_for_tasks(processes, data_dir, 1)
        grid.process.kill()
        grid.process.wait(30)
        grid = serve(restarts + 1)
        processes.wait_until(lambda: waiting(data_dir) == 0, UNCLAIMED_LIMIT_S + 60, "the end of all")
        assert [task["state"] for task in late.tasks(grid)] == ["cancelled"]
    files = list((data_dir / "web").iterdir())
    assert len(files) == 1, files
    print(f"{restarts} restarts, {2 * restarts} tasks found with their pictures")
