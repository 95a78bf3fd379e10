"""R1.3, P6.1: a disk that is full or fails loses no accepted task; what cannot be recorded is refused."""

from __future__ import annotations

import random
import re
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faults.checker import History, Verdict
from faults.grid import FaultGrid
from lamagrid import TaskClient, new_task_id
from lamagrid.errors import DiskFullError, LamaGridError

pytestmark = pytest.mark.timeout(3_600)


def submit(client: TaskClient, history: History, large: bool, timeout: float = 30) -> str:
    """Submit one task at durability full, and record what is answered."""
    shape = (300, 400) if large else (8, 8)
    image = np.frombuffer(secrets.token_bytes(shape[0] * shape[1] * 3), np.uint8).reshape(*shape, 3)
    task_id = new_task_id()
    history.note(task_id, "submitted")
    try:
        task = client.submit(image, np.zeros(shape, np.uint8), task_id=task_id, echo_ms=10, timeout=timeout)
    except DiskFullError as error:
        history.note(task_id, "refused", detail=str(error))
        if not re.search(r"takes nothing new: .*/data/", str(error)):
            history.strange(f"a refusal that does not say what cannot be written: {error}")
        return task_id
    history.note(task_id, "accepted")
    try:
        outcome = task.outcome(60)
    except LamaGridError as error:
        history.note(task_id, "outcome", "failed", f"{error.kind}: {error}")
        return task_id
    history.note(task_id, "outcome", "completed")
    if not np.array_equal(outcome.rgb(), image):
        history.note(task_id, "wrong")
    return task_id


def test_the_disk_is_full_and_then_has_room_again(
    new_grid: Callable[..., FaultGrid],
    judge: Callable[[FaultGrid], Verdict],
    history: History,
    shim: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = tmp_path / "full"
    monkeypatch.setenv("FAULT_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("FAULT_FULL", str(full))
    grid = new_grid(nodes=1, slots=2, preload=shim)
    client = grid.client()
    submit(client, history, large=False)
    full.touch()
    history.fault()
    # The one that finds out waits until it is on record.
    first = threading.Thread(target=submit, args=(client, history, False))
    first.start()
    grid.processes.wait_until(
        lambda: "commit failed" in grid.processes.log(grid.schedulers[0]), 10, "a commit that fails"
    )
    began = time.monotonic()
    refused = [submit(client, history, large=large) for large in (False, True, False)]
    assert time.monotonic() - began < 5, "a refusal must not wait for the disk"
    full.unlink()
    first.join()
    after = submit(client, history, large=True)
    judge(grid)
    assert len(grid.schedulers) == 1
    assert grid.schedulers[0].poll() is None
    log = grid.processes.log(grid.schedulers[0])
    assert "the store can be written again" in log, log
    reported = [entry.what for task in refused for entry in history.entries(task)]
    assert reported.count("refused") == 3, reported
    assert [entry.status for entry in history.entries(after)][-2:] == ["completed", "completed"]


def test_no_write_or_fsync_that_fails_costs_an_accepted_task(
    new_grid: Callable[..., FaultGrid],
    judge: Callable[..., Verdict],
    history: History,
    times: Callable[[str], int],
    rng: random.Random,
    shim: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The n-th one fails, for n = 1, 2, 3, ... (in `make test` each seventh) until a run has none left."""
    count = tmp_path / "count"
    monkeypatch.setenv("FAULT_COUNT", str(count))
    step = times("disk_step")
    grid, at = None, 1 + rng.randrange(step)
    for _ in range(2_000):
        folder = tmp_path / f"at-{at}"
        monkeypatch.setenv("FAULT_DIR", str(folder / "data"))
        monkeypatch.setenv("FAULT_AT", str(at))
        count.unlink(missing_ok=True)
        grid = new_grid(nodes=1, slots=2, preload=shim, folder=folder, restarts=True)
        client = grid.client()
        run = History()
        run.fault()
        for large in (False, True, False, True):
            submit(client, run, large)
        reached = int(count.read_text())
        judge(grid, run)
        grid.stop()
        history.fault()
        if reached < at:
            break
        at += step
    else:
        raise AssertionError("there is no end to the writes of four tasks")
    assert history.faults >= 3
