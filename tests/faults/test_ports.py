"""R7.2: the address for metrics and health checks is another program's, for a while or for good."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults.grid import FaultGrid
from grids.server import BIN

pytestmark = pytest.mark.timeout(120)


def health(port: int) -> str:
    """The text of /healthz."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        return str(answer.read().decode())


def doctor(grid: FaultGrid, port: int) -> tuple[str, str]:
    """The finding of `lamagrid doctor`: its state and its text."""
    env = {**os.environ, "LAMAGRID__HTTP__LISTEN": f"127.0.0.1:{port}"}
    command = [BIN / "lamagrid", "doctor", "--data-dir", grid.data_dir, "--output", "json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    [(state, what)] = [(each["state"], each["what"]) for each in found if each["check"] == "health"]
    return state, what


def test_a_port_is_served_once_it_is_free(new_grid: Callable[..., FaultGrid], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        grid = new_grid(nodes=0, settings={"HTTP__LISTEN": f"127.0.0.1:{port}"})
        assert "no HTTP for now" in grid.processes.log(grid.schedulers[0])
        state, what = doctor(grid, port)
        assert (state, "another program answers" in what) == ("bad", True), what
    grid.processes.wait_until(lambda: health(port), 15, "health checks")
    assert health(port) == f"ok\ndata directory: {grid.data_dir}\n"
    assert doctor(grid, port)[0] == "good"
    # A second grid with the same address: a probe sees whose answer it gets.
    second = new_grid(nodes=0, folder=tmp_path / "second", settings={"HTTP__LISTEN": f"127.0.0.1:{port}"})
    state, what = doctor(second, port)
    assert (state, f"the scheduler of {grid.data_dir} answers" in what) == ("bad", True), what
    grid.stop()
    grid.processes.wait_until(lambda: str(second.data_dir) in health(port), 20, "the second one")
    assert doctor(second, port)[0] == "good"
