"""Programs are stopped as Docker and systemd do it: SIGTERM, and SIGKILL after ten seconds.

Each ends with status 0 in less than eight, also with a long task under way, and leaves no process and no
socket. The task is given back, and the stop is not held against it. SIGHUP ends nothing.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from faults.grid import FaultGrid, pause
from grids import procfs
from grids.server import BIN
from lamagrid.client import Task
from stock.processes import Processes

pytestmark = pytest.mark.timeout(3_600)

KILL_AFTER_S = 10.0
LIMIT_S = 8.0
LONG_MS = 600_000
HANGUP = "SIGHUP: reload is not available yet"


class Program(ABC):
    """One of the grid's programs, in a grid that has a long task for its nodes.

    Attributes:
        grid: The grid that it belongs to.
        process: The one that runs now.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, grid: FaultGrid) -> None:
        self.grid = grid

    @abstractmethod
    def start(self) -> None:
        """Start it again; it need not be ready."""

    def is_working(self) -> bool:
        """Whether the long task is under way."""
        return any(node["running"] for node in self.grid.survey())

    def sockets(self, runtime: Path) -> list[Path]:
        """Sockets that it must not leave behind."""
        return []

    def heard_hangup(self) -> bool:
        """Whether its log tells of SIGHUP."""
        return HANGUP in self.grid.processes.log(self.process)


class Scheduler(Program):
    """`lamagrid scheduler`, with a node."""

    def __init__(self, grid: FaultGrid) -> None:
        super().__init__(grid)
        grid.start_node("n0")
        self.process = grid.schedulers[-1]

    def start(self) -> None:
        self.grid.start_scheduler()
        self.process = self.grid.schedulers[-1]

    def sockets(self, runtime: Path) -> list[Path]:
        return [path for path in runtime.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]


class Node(Program):
    """`lamagrid-node`: a supervisor and its worker."""

    def __init__(self, grid: FaultGrid) -> None:
        super().__init__(grid)
        self.start()

    def start(self) -> None:
        self.grid.start_node("n0")
        self.process = self.grid.nodes["n0"]


class PythonNode(Program):
    """`lamagrid pynode`."""

    def __init__(self, grid: FaultGrid) -> None:
        super().__init__(grid)
        self.start()

    def start(self) -> None:
        flags = ["--model", "cv2", "--name", "p0", "--data-dir", self.grid.data_dir]
        self.process = self.grid.processes.start("p0", [BIN / "lamagrid", "pynode", *flags])


PROGRAMS: dict[str, type[Program]] = {"scheduler": Scheduler, "node": Node, "pynode": PythonNode}


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of this test's sockets; their paths are short."""
    with tempfile.TemporaryDirectory(prefix="lg") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture(params=sorted(PROGRAMS))
def program(
    request: pytest.FixtureRequest, new_grid: Callable[..., FaultGrid], runtime: Path
) -> Iterator[Program]:
    """Each program, in a grid of its own."""
    grid = new_grid(nodes=0)
    yield PROGRAMS[request.param](grid)
    grid.stop()


def long_task(program: Program) -> Task:
    """Submit a task that no node finishes in time."""
    client = program.grid.client()
    if isinstance(program, PythonNode):
        # All of a large picture is a hole: for Telea's method minutes of one call.
        pixels = np.random.default_rng(1).integers(0, 255, (3_000, 3_000, 3), np.uint8)
        mask = np.full((3_000, 3_000), 255, np.uint8)
        mask[0, 0] = 0
        params = {"cv2_flag": "INPAINT_TELEA", "cv2_radius": 100, "hd_strategy": "Original"}
        return client.submit(pixels, mask, model="cv2", timeout=60, **params)
    pixels, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    return client.submit(pixels, mask, echo_ms=LONG_MS, timeout=60)


def wait_working(program: Program, processes: Processes) -> None:
    processes.wait_until(program.is_working, 60, "a running task", [program.process])


def check_hangup(program: Program, processes: Processes) -> None:
    """A terminal that closes, or an operator who expects a reload: SIGHUP ends no process."""
    everyone = [program.process.pid, *procfs.descendants(program.process.pid)]
    before = {pid: procfs.started_at(pid) for pid in everyone}
    for pid in everyone:
        os.kill(pid, signal.SIGHUP)
    processes.wait_until(program.heard_hangup, 10, "a line about SIGHUP", [program.process])
    assert program.is_working()
    assert {pid: procfs.started_at(pid) for pid in everyone} == before


def check_stop(program: Program, processes: Processes, runtime: Path) -> float:
    """SIGTERM, and SIGKILL after ten seconds. Returns how long it took."""
    children = {pid: procfs.started_at(pid) for pid in procfs.descendants(program.process.pid)}
    began = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    try:
        code = program.process.wait(KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        program.process.kill()
        raise AssertionError(f"it did not end within {KILL_AFTER_S:g} s\n{processes.tails()}") from None
    took = time.monotonic() - began
    assert (code, took < LIMIT_S) == (0, True), f"status {code} after {took:.2f} s\n{processes.tails()}"
    left = [procfs.command(pid) for pid, start in children.items() if procfs.started_at(pid) == start]
    assert left == []
    assert program.sockets(runtime) == []
    return took


def check_second_signal(program: Program, processes: Processes) -> None:
    """A person who insists is not kept waiting for the task."""
    began = time.monotonic()

    def ended() -> bool:
        # The first second's are one signal: a process group and a parent tell of the same end twice.
        program.process.send_signal(signal.SIGTERM)
        return program.process.poll() is not None

    processes.wait_until(ended, KILL_AFTER_S, "the end")
    assert program.process.returncode == 0
    assert time.monotonic() - began < 4.0


def test_stops_as_docker_does_them(
    program: Program,
    processes: Processes,
    runtime: Path,
    times: Callable[[str], int],
    rng: random.Random,
) -> None:
    """R4.4: exit 0 in less than eight seconds, nothing left behind, and no task charged."""
    task = long_task(program)
    wait_working(program, processes)
    check_hangup(program, processes)
    assert task.status(timeout=30)["counters"]["attempts"] == 1
    slowest = 0.0
    for _ in range(times("stops")):
        pause(rng, 1.0)
        slowest = max(slowest, check_stop(program, processes, runtime))
        program.start()
        wait_working(program, processes)
    counters = task.status(timeout=30)["counters"]
    assert (counters["crashes"], counters["failures"]) == (0, 0)
    check_second_signal(program, processes)
    print(f"{type(program).__name__}: {times('stops')} stops, the slowest took {slowest:.2f} s")
