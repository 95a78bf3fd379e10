"""Sockets that are removed, directories that differ, and what killed processes leave.

R7.1, R7.3, R8.1: a logout empties ``$XDG_RUNTIME_DIR``; a service, cron and a shell name different ones.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from grids.server import PROGRAMS, free_port, lamagrid_json, start_grid
from lamagrid.client import TaskClient
from stock.processes import Processes

pytestmark = pytest.mark.timeout(240)
SOON_S = 30.0
LAMAGRID = (sys.executable, "-m", "lamagrid")


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short directory, as a login makes it."""
    path = Path(f"/tmp/run-{os.getpid()}")
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def start_scheduler(
    processes: Processes, data_dir: Path, runtime: Path, port: int = 0
) -> subprocess.Popen[bytes]:
    env = {"XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(runtime)}
    if port:
        env["LAMAGRID__HTTP__LISTEN"] = f"127.0.0.1:{port}"
    scheduler = processes.start("scheduler", [*LAMAGRID, "scheduler", "--data-dir", data_dir], env)
    processes.wait_until(lambda: answers(data_dir), SOON_S, "the scheduler", [scheduler])
    return scheduler


def start_node(processes: Processes, data_dir: Path, runtime: str, name: str) -> subprocess.Popen[bytes]:
    """A node that plays one, with another environment than the scheduler's."""
    flags = ["--backend", "echo", "--model", "lama", "--name", name, "--data-dir", data_dir]
    return processes.start(
        name, [PROGRAMS / "lamagrid-node", *flags], {"XDG_RUNTIME_DIR": runtime, "TMPDIR": "/tmp"}
    )


def answers(data_dir: Path) -> bool:
    try:
        lamagrid_json("node", "list", data_dir=data_dir)
    except OSError:
        return False
    return True


def names(data_dir: Path) -> set[str]:
    return {node["name"] for node in lamagrid_json("node", "list", data_dir=data_dir)}


def ready(port: int) -> int:
    return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code


def test_all_find_a_scheduler_whose_runtime_directory_is_another_one_and_goes(
    processes: Processes, tmp_path: Path, runtime: Path
) -> None:
    data_dir, port = tmp_path / "data", free_port()
    start_scheduler(processes, data_dir, runtime, port)
    recorded = Path((data_dir / "sockets").read_text().strip())
    assert recorded.parent == runtime / "lamagrid"
    start_node(processes, data_dir, "", "stays")
    client = TaskClient(data_dir)  # of this process, whose environment is yet another one
    processes.wait_until(lambda: names(data_dir) == {"stays"}, SOON_S, "the node")
    client.survey()
    for lost in (recorded, runtime / "lamagrid"):
        shutil.rmtree(lost)
        client.survey(2.0)  # its connection stays
        processes.wait_until(lambda: answers(data_dir), SOON_S, "new sockets")
        assert Path((data_dir / "sockets").read_text().strip()) == recorded
        assert ready(port) == 200
    # The runtime directory goes for good, as at a logout: another place is used.
    shutil.rmtree(runtime)
    runtime.write_text("no directory")
    processes.wait_until(lambda: ready(port) == 503, SOON_S, "a scheduler that is not ready")
    client.survey(2.0)
    reported = subprocess.run(
        [*LAMAGRID, "doctor", "--data-dir", data_dir], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    assert "it runs (pid" in reported, reported
    assert "which are gone" in reported, reported
    assert "start it with" not in reported, reported
    runtime.unlink()
    runtime.mkdir(mode=0o700)
    processes.wait_until(lambda: ready(port) == 200, SOON_S, "a scheduler that is ready again")
    start_node(processes, data_dir, "", "comes")
    processes.wait_until(lambda: names(data_dir) == {"stays", "comes"}, SOON_S, "both nodes")


def left_in(runtime: Path) -> list[Path]:
    return [path for path in runtime.rglob("*") if path.suffix == ".sock" or path.parent.name == "lamagrid"]


def test_what_killed_processes_leave_is_removed_by_the_next(
    processes: Processes, tmp_path: Path, runtime: Path
) -> None:
    data_dir = tmp_path / "data"
    scheduler = start_scheduler(processes, data_dir, runtime)
    node = start_node(processes, data_dir, str(runtime), "dies")
    processes.wait_until(lambda: names(data_dir) == {"dies"}, SOON_S, "the node")
    assert left_in(runtime)
    for process in (node, scheduler):
        process.kill()
        process.wait()
    assert left_in(runtime)
    # One of another data directory comes, and ends in order.
    other = tmp_path / "other"
    last = start_scheduler(processes, other, runtime)
    assert {path.parent for path in left_in(runtime) if path.suffix == ".sock"} == {
        Path((other / "sockets").read_text().strip())
    }
    last.send_signal(signal.SIGTERM)
    assert last.wait(20) == 0
    assert left_in(runtime) == []
    assert not (other / "sockets").exists()


def test_a_second_server_is_refused_at_once_with_what_its_flags_can_do(
    processes: Processes, tmp_path: Path, runtime: Path
) -> None:
    data_dir = tmp_path / "data"
    scheduler = start_scheduler(processes, data_dir, runtime)
    second = start_grid(processes, data_dir, "--model", "cv2", name="second")
    assert second.process.wait(60) == 1
    refusal = second.log
    assert f"another scheduler (pid {scheduler.pid}) runs on {data_dir}" in refusal
    assert f"--grid-scheduler {data_dir}" in refusal
    assert "--grid-data-dir" in refusal
    assert not re.search(r"(?<!grid)-data-dir|starting it again|did not start", refusal), refusal
