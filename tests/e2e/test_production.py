"""Upstream's page under gunicorn, beside a scheduler and a node that were started by hand.

R8.4, P7.2: each request waits in a thread of its own; its end, a failure and a leaving browser free it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from engineio.payload import Payload

from e2e.test_callers import leave
from grids import procfs
from grids.browser import Browser
from grids.pictures import decoded, encoded, hole, plain
from grids.server import BIN, ORIGINAL, PROGRAMS, GridServer, free_port, lamagrid_json
from stock.processes import Processes

pytestmark = pytest.mark.timeout(240)

WAITING = 30
MORE_THREADS = 20
"""Threads that the web process may have besides one for each request that waits."""
HOLE = hole(64, 96, 20, 30, 16)


def gunicorn(*words: str | Path) -> list[str | Path]:
    """Its command line; the words are the application's."""
    reported = ", ".join(repr(str(word)) for word in words)
    flags = ["--workers", "1", "--threads", "120", "--no-control-socket"]
    return [BIN / "gunicorn", *flags, f"lama_cleaner_patch:application({reported})"]


@pytest.fixture
def grid(processes: Processes, tmp_path: Path, slow_model: Path) -> GridServer:
    """A page under gunicorn."""
    data_dir, port = tmp_path / "data", free_port()
    lamagrid = [sys.executable, "-m", "lamagrid"]
    processes.start("scheduler", [*lamagrid, "scheduler", "--data-dir", data_dir])
    flags = ["--model", f"lama={slow_model}", "--threads", "1", "--data-dir", data_dir]
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}  # for the Python whose torch it takes
    processes.start("node", [PROGRAMS / "lamagrid-node", *flags], path)
    command = gunicorn("--grid-scheduler", data_dir, "--model", "lama")
    process = processes.start("gunicorn", [*command, "--bind", f"127.0.0.1:{port}"])
    server = GridServer(processes, process, port, data_dir)
    server.wait_ready()
    processes.wait_until(lambda: server.nodes() != [], 60, "the node")
    return server


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_many_wait_in_a_thread_each_and_one_that_leaves_is_cancelled(
    grid: GridServer,
    processes: Processes,
    background: Callable[..., Future[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The client's own limit; browsers have none.
    monkeypatch.setattr(Payload, "max_decode_packets", 2 * WAITING)
    worker = int(Path(f"/proc/{grid.process.pid}/task/{grid.process.pid}/children").read_text().split()[0])
    browser = Browser(grid)

    lamagrid_json("queue", "pause", "gpu", data_dir=grid.data_dir)
    waiting = [
        background(grid.inpaint, encoded(plain(64, 96, 0)), encoded(HOLE), **ORIGINAL) for _ in range(WAITING)
    ]
    processes.wait_until(lambda: grid.queues()["gpu"]["waiting"] == WAITING, 60, "all of them to wait")
    assert threads(worker) <= WAITING + MORE_THREADS
    assert grid.get("/model").text == "lama", "the page answers meanwhile"

    def one_more_waits() -> bool:
        return grid.queues()["gpu"]["waiting"] == WAITING + 1

    leave(grid, "lama", lambda: processes.wait_until(one_more_waits, 30, "one more"))
    processes.wait_until(lambda: grid.queues()["gpu"]["waiting"] == WAITING, 10, "its end")

    lamagrid_json("queue", "resume", "gpu", data_dir=grid.data_dir)
    expected = plain(64, 96, 0)
    expected[HOLE > 0] = 127
    for future in waiting:
        answer = future.result(120)
        assert answer.status_code == 200, answer.text
        assert np.array_equal(decoded(answer.content), expected)
    processes.wait_until(lambda: browser.events.count(("diffusion_finish",)) == WAITING, 20, "the events")
    browser.close()
    bad = grid.inpaint(b"no picture", encoded(HOLE))
    assert bad.status_code == 500
    assert requests.get(f"{grid.base}/grid", timeout=30).status_code == 200


def worker_of(master: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()[0])


def test_a_server_that_forks_after_its_start_logs_and_ends_its_workers_in_order(
    processes: Processes, tmp_path: Path, background: Callable[..., Future[Any]]
) -> None:
    """``--preload``: the application is made in the parent, and torch's threads with it."""
    data_dir, port = tmp_path / "data", free_port()
    command = [sys.executable, "-m", "lamagrid", "scheduler", "--data-dir", data_dir]
    scheduler = processes.start("scheduler", command)
    echo = ["--backend", "echo", "--model", "lama", "--data-dir", data_dir]
    processes.start("node", [PROGRAMS / "lamagrid-node", *echo])
    flags = ["--preload", "--graceful-timeout", "1", "--bind", f"127.0.0.1:{port}"]
    process = processes.start(
        "gunicorn", [*gunicorn("--grid-scheduler", data_dir, "--model", "lama"), *flags]
    )
    server = GridServer(processes, process, port, data_dir)
    server.wait_ready()
    processes.wait_until(lambda: server.nodes() != [], 60, "the node")
    photo = plain(64, 96, 9)
    assert np.array_equal(decoded(server.inpaint(encoded(photo), encoded(HOLE), **ORIGINAL).content), photo)

    lamagrid_json("queue", "pause", "gpu", data_dir=data_dir)
    first = worker_of(process)
    waits = background(server.inpaint, encoded(photo), encoded(HOLE), **ORIGINAL)
    processes.wait_until(lambda: server.queues()["gpu"]["waiting"] == 1, 30, "a task that waits")
    scheduler.kill()
    scheduler.wait()
    log = data_dir / "logs" / "web.log"
    processes.wait_until(lambda: "the scheduler does not answer" in log.read_text(), 30, "a worker's line")
    processes.start("scheduler", command)
    processes.wait_until(lambda: server.queues()["gpu"]["waiting"] == 1, 30, "the task, again")
    process.send_signal(signal.SIGHUP)
    processes.wait_until(lambda: procfs.started_at(first) is None, 30, "the end of the first worker")
    answer = waits.result(30)
    assert answer.status_code == 503, answer.text
    assert "The server is being stopped" in answer.text
    processes.wait_until(lambda: server.get("/model").status_code == 200, 30, "the next worker")
    assert processes.stop(process) == 0
    assert "was sent SIG" not in server.log, server.log
    assert "terminate called" not in server.log, server.log


def test_a_start_without_its_settings_names_them(processes: Processes, tmp_path: Path) -> None:
    started = [
        (processes.start("gunicorn", [*gunicorn(*words), "--bind", f"127.0.0.1:{free_port()}"]), text)
        for words, text in (
            ((), "--grid-scheduler"),
            (("--grid-scheduler", tmp_path / "nobody"), "no scheduler answers"),
            (("--grid-scheduler", tmp_path, "--modle", "lama"), "--modle"),
        )
    ]
    for process, text in started:
        assert process.wait(60) != 0
        assert text in processes.log(process)
        assert "Traceback" not in processes.log(process)
