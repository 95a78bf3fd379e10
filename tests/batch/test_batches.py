"""A run's tasks are one batch of the scheduler, which counts, cancels and retries them together. X9"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from batch.conftest import Folders, ended, fill, interrupt
from faults.grid import FaultGrid
from grids.server import lamagrid_json
from stock.processes import Processes


def batches(grid: FaultGrid) -> list[dict[str, Any]]:
    """As ``lamagrid batch list`` shows them."""
    found: list[dict[str, Any]] = lamagrid_json("batch", "list", data_dir=grid.data_dir)
    return found


def batch_of(grid: FaultGrid, folders: Folders) -> dict[str, Any]:
    """The only batch of this test's runs."""
    [batch] = [batch for batch in batches(grid) if batch["name"] == str(folders.out)]
    return batch


def shown(grid: FaultGrid, batch: str) -> dict[str, Any]:
    """As ``lamagrid batch show`` shows it."""
    found: dict[str, Any] = lamagrid_json("batch", "show", batch, data_dir=grid.data_dir)
    return found


def counts(batch: dict[str, Any]) -> tuple[int, ...]:
    """Waiting, running, completed, failed, cancelled."""
    return tuple(batch[key] for key in ("queued", "processing", "completed", "failed", "cancelled"))


def test_a_run_is_a_batch_that_is_done_with_it(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, 5)
    before = len(batches(grid))
    ran = folders.run()
    batch = shown(grid, ran.summary["batch"])
    assert (counts(batch), batch["closed"], batch["name"]) == ((0, 0, 5, 0, 0), True, str(folders.out))
    assert batch["done"] >= batch["created"]
    log = grid.processes.log(grid.schedulers[-1])
    assert log.count(f"batch={batch['id']}") == 1, "one event when it is done"
    # A run without tasks has no batch.
    assert folders.run().summary["batch"] is None
    assert len(batches(grid)) == before + 1


def test_an_interrupted_run_goes_on_with_its_batch(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, 16)
    slowly = ("--echo-ms", "300", "--in-flight", "4")
    run = folders.start(*slowly)
    folders.wait_done(3, run)
    run.kill()
    ended(run)
    grid.kill_scheduler()
    grid.wait_ready()
    batch = batch_of(grid, folders)
    assert not batch["closed"]
    assert batch["done"] is None
    run = folders.start(*slowly)
    folders.wait_done(8, run)
    interrupt(run)
    assert ended(run) == 130
    grid.kill_scheduler()
    grid.wait_ready()
    ran = folders.run(*slowly)
    assert ran.code == 0, ran.err
    batch = batch_of(grid, folders)
    assert (batch["id"], batch["closed"]) == (ran.summary["batch"], True)
    waiting, running, completed, failed, cancelled = counts(batch)
    assert (waiting, running, completed, failed) == (0, 0, 16, 0)
    assert cancelled == len({line["task"] for line in folders.records()}) - 16
    grid.kill_scheduler()
    grid.wait_ready()
    assert batch_of(grid, folders) == batch


def test_a_batch_is_cancelled_as_a_whole(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, 6)
    run = folders.start("--echo-ms", "60000")
    grid.processes.wait_until(
        lambda: any(sum(counts(batch)[:2]) == 6 for batch in batches(grid)), 20, "the tasks", alive=[run]
    )
    batch = batch_of(grid, folders)
    assert not batch["closed"]
    answer = lamagrid_json("batch", "cancel", batch["id"], data_dir=grid.data_dir)
    assert (answer["tasks"], counts(answer["batch"])) == (6, (0, 0, 0, 0, 6))
    assert ended(run) == 1, "its pictures failed: somebody else cancelled their tasks"
    lines = (folders.out / ".lamagrid-failures.jsonl").read_text().splitlines()
    assert {json.loads(line)["failure"]["kind"] for line in lines} == {"cancelled"}
    assert folders.run().counts() == {"done": 6}


def test_dead_letters_of_a_batch_run_again(processes: Processes, tmp_path: Path) -> None:
    # The echo node dies of each of these tasks, and two deaths end one.
    grid = FaultGrid(processes, tmp_path, nodes=1, slots=1, settings={"SCHEDULER__CRASH_LIMIT": "1"})
    folders = Folders(grid, tmp_path)
    fill(folders.pictures, 2)
    ran = folders.run("--echo-abort", "1")
    assert (ran.code, ran.counts()) == (1, {"failed": 2}), ran.out
    batch = ran.summary["batch"]
    assert counts(shown(grid, batch)) == (0, 0, 0, 2, 0)
    answer = lamagrid_json("batch", "retry", batch, data_dir=grid.data_dir)
    assert answer["tasks"] == 2
    processes.wait_until(lambda: counts(shown(grid, batch)) == (0, 0, 0, 2, 0), 30, "they fail again")
