"""A small disk that fills up: new work is refused, everything else goes on, and no process ends. X14"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hostile.conftest import Grid
from hostile.honest import LARGE, SMALL
from lamagrid import TaskClient
from lamagrid.errors import DiskFullError
from stock.processes import Processes

pytestmark = pytest.mark.timeout(120)

DISK_BYTES = 64 << 20
FLOOR_BYTES = 16 << 20
GIVE_UP_S = 0.5
MASK = np.full(SMALL.shape[:2], 255, np.uint8)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One whose data directory is a file system of its own."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "data").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", folder / "data"]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here")
    processes = Processes(folder / "logs")
    settings = (f"limits.min_free_bytes={FLOOR_BYTES}", f"store.give_up_after_ms={GIVE_UP_S * 1_000:.0f}")
    try:
        yield Grid(processes, folder, settings=settings)
    finally:
        processes.close()
        subprocess.run(["umount", "-l", folder / "data"], check=True)


@pytest.fixture(scope="module", autouse=True)
def flat() -> None:
    """Without an honest client: none is served while the disk is full."""


def fill(ballast: Path, free_bytes: int) -> None:
    """Write until no more than this is free."""
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while (stat := os.statvfs(ballast)).f_bavail * stat.f_frsize > free_bytes:
            file.write(bytes(1 << 12))


def test_a_disk_that_fills_up_stops_new_work_only(grid: Grid) -> None:
    client = TaskClient(join=grid.bundle("web", role="client"))
    assert np.array_equal(client.inpaint(SMALL, MASK), SMALL)
    large_mask = np.full(LARGE.shape[:2], 255, np.uint8)
    # The second one waits for the first.
    accepted = [client.submit(SMALL, MASK, echo_ms=3_000), client.submit(LARGE, large_mask)]
    ballast = grid.data_dir / "ballast"
    fill(ballast, FLOOR_BYTES - (1 << 20))

    def refused() -> str:
        try:
            client.submit(SMALL, MASK, timeout=5)
        except DiskFullError as error:
            return str(error)
        return ""

    text = grid.processes.wait_until(refused, 10, "a refusal", [grid.scheduler])
    assert "limits.min_free_bytes" in text
    # Accepted tasks go on, and their results are stored.
    assert [task.outcome(30).rgb().shape for task in accepted] == [SMALL.shape, LARGE.shape]
    ballast.unlink()
    grid.wait(lambda: not refused(), "room")

    # Without a byte left nothing can be written, and the scheduler waits for room for as long as it takes.
    late = client.submit(SMALL, MASK, echo_ms=2_000)
    fill(ballast, FLOOR_BYTES - (1 << 20))
    grid.wait(refused, "a refusal")
    fill(ballast, 0)
    grid.wait(lambda: "commit failed" in grid.processes.log(grid.scheduler), "a commit that fails")
    end = time.monotonic() + 3 * GIVE_UP_S
    while time.monotonic() < end:
        assert refused()
    assert grid.scheduler.poll() is None, grid.processes.log(grid.scheduler)
    ballast.unlink()
    assert np.array_equal(late.outcome(30).rgb(), SMALL)
    grid.wait(lambda: not refused(), "room")
    assert np.array_equal(client.inpaint(LARGE, large_mask), LARGE)
    assert len(grid.processes.log(grid.scheduler).splitlines()) < 200
