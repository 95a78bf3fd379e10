"""Many requests, and large ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grids import procfs
from grids.pictures import Pixels, decoded, encoded, hole, plain
from grids.server import ORIGINAL, GridServer, start_grid
from stock.processes import Processes

pytestmark = pytest.mark.timeout(180)

SCHEDULER_LIMIT_MB = 200.0
Background = Callable[..., Future[Any]]


def test_twenty_requests_on_two_nodes(
    shared_grid: tuple[Processes, GridServer], background: Background
) -> None:
    """R1.1, P3.2, P4.3, P7.1: R2.3: each waiting browser gets its own picture; both nodes work."""
    _, grid = shared_grid

    def photo_of(number: int) -> Pixels:
        photo = plain(40 + number, 64, 5 + number)
        photo[:, :, 2] = number * 10
        return photo

    def mask_of(number: int) -> Pixels:
        return hole(40 + number, 64, 10, number, 8)

    waiting = [
        background(grid.inpaint, encoded(photo_of(number)), encoded(mask_of(number)), **ORIGINAL)
        for number in range(20)
    ]
    nodes, ids = set(), set()
    for number, future in enumerate(waiting):
        answer = future.result(100)
        assert answer.status_code == 200, answer.text
        wanted = photo_of(number)
        wanted[mask_of(number) > 0] = 127
        assert np.array_equal(decoded(answer.content), wanted)
        task = grid.task(answer)
        events = [entry["event"] for entry in task["history"]]
        given_back = events.count("given_back")  # unbegun, for a node that had become idle
        assert events == ["accepted", *["assigned", "given_back"] * given_back, "assigned", "ended"]
        assert (task["state"], task["attempts"]) == ("completed", 1 + given_back)
        nodes.add(task["node"])
        ids.add(task["id"])
    assert nodes == {"torch-0", "torch-1"}
    assert len(ids) == 20


def peaks(grid: GridServer) -> dict[str, float]:
    """The peak of each process of a stack in MB, by what it is."""
    found = {"web": procfs.peak_megabytes(grid.process.pid)}
    for pid in procfs.descendants(grid.process.pid):
        command = procfs.command(pid)
        for word in ("scheduler", "pynode", "lamagrid-torch-worker", "lamagrid-node"):
            if word in command:
                found[f"{word} {pid}"] = procfs.peak_megabytes(pid)
                break
    return found


def show(title: str, grid: GridServer, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Print the peaks, also when the test passes; returns them."""
    found = peaks(grid)
    with capsys.disabled():
        print(
            f"\npeak memory, {title}: " + ", ".join(f"{name} {peak:.0f} MB" for name, peak in found.items())
        )
    return found


def test_large_pictures(
    processes: Processes,
    tmp_path: Path,
    slow_flags: list[str],
    background: Background,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pixels go by reference: however large they are, the scheduler stays small."""
    grid = start_grid(processes, tmp_path / "grid", *slow_flags).wait_ready()
    show("started", grid, capsys)

    # Ten pictures of 12 megapixels at once: one node works, nine tasks wait with their pixels in the spool.
    photo, mask = encoded(plain(3000, 4000), "JPEG"), encoded(hole(3000, 4000, 700, 900, 64))
    waiting = [background(grid.inpaint, photo, mask) for _ in range(10)]
    for future in waiting:
        answer = future.result(170)
        assert answer.status_code == 200, answer.text
        assert decoded(answer.content).shape == (3000, 4000, 3)
    ten = show("ten of 12 megapixels in flight", grid, capsys)

    for height, width in ((4000, 6000), (10_000, 10_000)):
        photo = encoded(plain(height, width), "JPEG")
        mask = encoded(hole(height, width, 2000, 3000, 200), compress_level=1)
        answer = grid.inpaint(photo, mask)
        assert answer.status_code == 200, answer.text
        result = decoded(answer.content)
        assert result.shape == (height, width, 3)
        assert np.abs(result[2100, 3100].astype(int) - 127).max() < 8  # JPEG
        assert abs(int(result[height // 2, 10, 1]) - 200) < 8
        ten = show(f"{height * width / 1e6:.0f} megapixels", grid, capsys)

    scheduler = [peak for name, peak in ten.items() if name.startswith("scheduler")]
    assert len(scheduler) == 1
    assert scheduler[0] < SCHEDULER_LIMIT_MB

    # One pixel row more than the limit is refused, and the next good request works.
    refused = grid.inpaint(encoded(plain(10_001, 10_000), "JPEG"), encoded(hole(1, 1, 0, 0, 1)))
    assert refused.status_code == 413
    assert "100000000" in refused.text
    assert grid.inpaint(encoded(plain(50, 50)), encoded(hole(50, 50, 5, 5, 5))).status_code == 200
