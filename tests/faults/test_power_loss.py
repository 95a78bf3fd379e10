"""R1.3: what was acknowledged at durability full holds over power loss: only what was fsynced is left."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faults.checker import History
from faults.grid import FaultGrid
from grids import procfs
from lamagrid import TaskClient, new_task_id
from lamagrid.errors import LamaGridError, UnknownTaskError

pytestmark = pytest.mark.timeout(3_600)

TASKS = 8


def rebuild(shadow: Path, directory: Path, inode: int) -> None:
    """Make a directory hold what was durable of it, and nothing else."""
    directory.mkdir(mode=0o700, exist_ok=True)
    listing = shadow / "dirs" / str(inode)
    for line in listing.read_text().splitlines() if listing.exists() else ():
        kind, number, name = line.split(" ", 2)
        if kind == "d":
            rebuild(shadow, directory / name, int(number))
        else:
            content = shadow / "files" / number
            data = content.read_bytes() if content.exists() else b""  # created, and never fsynced itself
            (directory / name).write_bytes(data)


def lose_power(grid: FaultGrid, shadow: Path) -> None:
    """Kill everything, and leave of the data directory what was fsynced."""
    pids = [pid for node in grid.nodes.values() for pid in (node.pid, *procfs.descendants(node.pid))]
    for pid in (grid.schedulers[-1].pid, *pids):
        os.kill(pid, signal.SIGKILL)
    for process in (grid.schedulers[-1], *grid.nodes.values()):
        process.wait()
    inode = grid.data_dir.stat().st_ino
    lost = grid.data_dir.with_name("lost")
    grid.data_dir.rename(lost)
    rebuild(shadow, grid.data_dir, inode)
    shutil.rmtree(lost)


def losses(
    new_grid: Callable[..., FaultGrid],
    shim: Path,
    folder: Path,
    rng: random.Random,
    durability: str,
    monkeypatch: pytest.MonkeyPatch,
) -> History:
    """One loss of power under tasks that were just acknowledged, and what came of them."""
    history, shadow = History(), folder / "shadow"
    for part in ("files", "dirs"):
        (shadow / part).mkdir(parents=True)
    monkeypatch.setenv("FAULT_DIR", str(folder / "data"))
    monkeypatch.setenv("FAULT_SHADOW", str(shadow))
    grid = new_grid(nodes=1, slots=2, preload=shim, folder=folder)
    client: TaskClient | None = grid.client()
    assert client is not None
    images = {}
    for number in range(TASKS):
        shape = (300, 400) if number % 4 == 0 else (8, 8)
        image = np.frombuffer(secrets.token_bytes(shape[0] * shape[1] * 3), np.uint8).reshape(*shape, 3)
        task_id = new_task_id()
        history.note(task_id, "submitted")
        client.submit(image, np.zeros(shape, np.uint8), task_id=task_id, echo_ms=50, durability=durability)  # type: ignore[arg-type]
        history.note(task_id, "accepted")
        images[task_id] = image
    time.sleep(rng.random() * 0.3)  # at a random moment of their lives
    client = None  # who submitted is gone as well, and submits nothing again
    lose_power(grid, shadow)
    history.fault()
    monkeypatch.delenv("FAULT_SHADOW")
    grid.start_scheduler()
    for name in grid.nodes:
        grid.start_node(name)
    grid.wait_ready()
    after = grid.client()
    for task_id, image in images.items():
        try:
            outcome = after.task(task_id).outcome(60)
        except UnknownTaskError as error:
            history.note(task_id, "status", "unknown", str(error))
            continue
        except LamaGridError as error:
            history.note(task_id, "outcome", "failed", f"{error.kind}: {error}")
            continue
        history.note(task_id, "outcome", "completed")
        if not np.array_equal(outcome.rgb(), image):
            history.note(task_id, "wrong")
    grid.stop()
    return history


def test_power_goes_at_random_moments(
    new_grid: Callable[..., FaultGrid],
    judge_all: Callable[[list[History]], None],
    times: Callable[[str], int],
    rng: random.Random,
    shim: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = [tmp_path / str(number) for number in range(times("power_losses"))]
    judge_all([losses(new_grid, shim, folder, rng, "full", monkeypatch) for folder in folders])


def test_the_loss_of_power_is_a_real_one(
    new_grid: Callable[..., FaultGrid],
    rng: random.Random,
    shim: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Durability against the death of processes alone loses tasks here: the test above can see losses."""
    history = losses(new_grid, shim, tmp_path, rng, "process", monkeypatch)
    assert history.verdict().lost >= 1
