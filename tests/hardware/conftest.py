"""A stand-in for the NVIDIA driver, a scheduler, and nodes that see the stand-in's GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from grids.server import PROGRAMS, lamagrid_json
from lamagrid import LamaGridError, TaskClient
from stock.processes import Processes

NODE = PROGRAMS / "lamagrid-node"
SOURCE = Path(__file__).with_name("nvml.c")
READY_S = 60.0


class Driver:
    """A driver's library in a folder of its own; ``nvml.c`` says how its state is written."""

    def __init__(self, folder: Path, *flags: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        library = folder / "libnvidia-ml.so.1"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", *flags, "-o", library, SOURCE, "-ldl"], check=True)
        self.write()

    def write(self, *lines: str) -> None:
        """Replace the state at once: a node may read it now."""
        new = self.folder / "new"
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(self.folder / "state")

    @property
    def env(self) -> dict[str, str]:
        """The variable by which a process finds this driver."""
        return {"LD_LIBRARY_PATH": str(self.folder)}


def gpu(number: int, total_gib: int, state: str = "ok") -> str:
    """A line of a state: a GPU with a recognisable UUID and figures."""
    return f"gpu GPU-{number}0000000-aaaa NVIDIA_H{total_gib} {total_gib << 10} 512 {number} 40 {state}"


def capabilities(driver: Driver, *words: str | Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON of ``lamagrid-node capabilities``; ``words`` come before the command."""
    done = subprocess.run(
        [NODE, *words, "capabilities", "--output", "json"],
        env={**os.environ, **driver.env, **(env or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Grid:
    """A scheduler, and the nodes that a test starts."""

    def __init__(self, processes: Processes, data_dir: Path, env: Mapping[str, str] | None = None) -> None:
        self.processes = processes
        self.data_dir = data_dir
        self.client = TaskClient(data_dir)
        command = [sys.executable, "-m", "lamagrid", "scheduler", "--data-dir", data_dir]
        scheduler = processes.start("scheduler", command, env)
        processes.wait_until(self._answers, READY_S, "the scheduler", [scheduler])

    def _answers(self) -> bool:
        with contextlib.suppress(LamaGridError):
            return self.client.survey(0.5) is not None
        return False

    def echo(
        self, driver: Driver, *flags: str | Path, name: str = "n", **env: str
    ) -> subprocess.Popen[bytes]:
        """Start an echo node under the driver's GPUs."""
        command = [NODE, "--backend", "echo", "--model", "lama", "--name", name, "--data-dir", self.data_dir]
        return self.processes.start("node", [*command, *flags], {**driver.env, **env})

    def nodes(self, names: set[str], child: subprocess.Popen[bytes]) -> dict[str, dict[str, Any]]:
        """The output of `lamagrid node list`, once exactly these nodes are connected."""

        def listed() -> dict[str, dict[str, Any]]:
            found = {node["name"]: node for node in lamagrid_json("node", "list", data_dir=self.data_dir)}
            return found if set(found) == names else {}

        return self.processes.wait_until(listed, READY_S, f"the nodes {names}", [child])


@pytest.fixture(autouse=True)
def all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide no GPU from the programs."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    """A driver without GPUs, until a test writes some."""
    return Driver(tmp_path / "driver")


@pytest.fixture
def grid(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """A running scheduler."""
    return Grid(processes, tmp_path_factory.mktemp("grid"))
