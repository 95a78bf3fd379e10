"""A real scheduler and an echo node, in processes of their own."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest
from numpy.typing import NDArray

from lamagrid import LamaGridError, TaskClient
from stock.processes import Processes

ROOT = Path(__file__).resolve().parents[2]
READY_S = 30.0

Pixels = NDArray[np.uint8]


class Grid:
    """One scheduler and its nodes.

    Attributes:
        data_dir: The directory that the processes share.
        client: A client of this process.
    """

    def __init__(self, processes: Processes, data_dir: Path) -> None:
        self.processes = processes
        self.data_dir = data_dir
        self.client = TaskClient(data_dir)
        self.scheduler: Popen[bytes] | None = None

    def start_scheduler(self) -> Popen[bytes]:
        child = self.processes.start(
            "scheduler", [sys.executable, "-m", "lamagrid", "scheduler", "--data-dir", self.data_dir]
        )
        self.processes.wait_until(self._answers, READY_S, "the scheduler", alive=[child])
        self.scheduler = child
        return child

    def kill_scheduler(self) -> None:
        """As ``kill -9``."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    def start_echo(self) -> Popen[bytes]:
        child = self.processes.start(
            "node", [node_program(), "--data-dir", self.data_dir, "--backend", "echo"]
        )
        self.processes.wait_until(lambda: self.client.survey()["nodes"], READY_S, "the node", alive=[child])
        return child

    def _answers(self) -> bool:
        with contextlib.suppress(LamaGridError):
            return bool(self.client.survey(0.5))
        return False


def node_program() -> str:
    """The node that this checkout built, else the one that is installed."""
    built = ROOT / "target" / "release" / "lamagrid-node"
    found = str(built) if built.exists() else shutil.which("lamagrid-node")
    if found is None:
        pytest.skip(
            "lamagrid-node is not built: cargo build --release -p lamagrid-node --no-default-features"
        )
    return found


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory of a short path, below which sockets fit."""
    with tempfile.TemporaryDirectory(prefix="lg-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def lonely(processes: Processes, data_dir: Path) -> Grid:
    """A scheduler without nodes: a task waits in its queue."""
    grid = Grid(processes, data_dir)
    grid.start_scheduler()
    return grid


@pytest.fixture
def grid(lonely: Grid) -> Grid:
    """A scheduler with an echo node, which serves ``lama``."""
    lonely.start_echo()
    return lonely


@pytest.fixture
def picture() -> tuple[Pixels, Pixels]:
    """A small image with no two equal channels, and its mask."""
    rng = np.random.default_rng(1)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:20] = 255
    return rng.integers(0, 256, (40, 60, 3), np.uint8), mask


@pytest.fixture
def script(processes: Processes, data_dir: Path) -> Callable[[str], Popen[bytes]]:
    """Starts a Python program in a process of its own; ``argv[1]`` is the data directory."""

    def start(text: str) -> Popen[bytes]:
        return processes.start("script", [sys.executable, "-c", textwrap.dedent(text), data_dir])

    return start
