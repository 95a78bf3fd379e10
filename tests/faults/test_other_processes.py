"""R1.3, R7.2: another program on the scheduler's database: a backup tool, a shell, a reader."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from faults.checker import History, Verdict
from faults.grid import FaultGrid, Load
from grids.server import free_port
from lamagrid import TaskClient
from lamagrid.errors import LamaGridError, OverloadedError

pytestmark = pytest.mark.timeout(300)

# A process of its own: its locks are not the test's. It says when it has done what it was told, line by line.
PROGRAM = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
for line in sys.stdin:
    print(connection.execute(line).fetchall(), flush=True)
"""


class Other:
    """A second process with the database open."""

    def __init__(self, database: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, sql: str) -> str:
        """Run one statement, and give its rows as text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(sql, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@contextlib.contextmanager
def other(grid: FaultGrid) -> Iterator[Other]:
    """One that ends with the block."""
    process = Other(grid.data_dir / "tasks.db")
    try:
        yield process
    finally:
        process.close()


def metric(port: int, name: str) -> int:
    """One of the scheduler's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.search(rf"^lamagrid_{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return int(float(found[1]))


def work(client: TaskClient, tasks: int, side: int = 8) -> None:
    """Submit some and wait for all."""
    image, mask = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8)
    sent = [client.submit(image, mask, durability="process", timeout=60) for _ in range(tasks)]
    for task in sent:
        task.outcome(60)


def test_a_start_beside_a_reader_and_a_writer(new_grid: Callable[..., FaultGrid]) -> None:
    grid = new_grid(nodes=1, slots=2)
    work(grid.client(), 20)
    with other(grid) as reader, other(grid) as writer:
        reader.run("BEGIN")
        reader.run("SELECT count(*) FROM tasks")
        writer.run("BEGIN IMMEDIATE")
        grid.kill_scheduler()
        waits = "the start waits for it"
        grid.processes.wait_until(
            lambda: waits in grid.processes.log(grid.schedulers[-1]), 20, "a start that waits"
        )
        writer.run("COMMIT")
        grid.wait_ready()
        work(grid.client(), 20)
        log = grid.processes.log(grid.schedulers[-1])
        assert log.count("another process has the database open") == 1, log
        assert str(grid.data_dir / "tasks.db") in log
        assert grid.schedulers[-1].poll() is None


def test_checkpoints_of_another_process_under_load(
    new_grid: Callable[..., FaultGrid], judge: Callable[[FaultGrid], Verdict], history: History
) -> None:
    grid = new_grid(nodes=2, slots=4)
    load = Load(grid, history, threads=16)
    load.wait_busy(8)
    with other(grid) as process:
        end, count = time.monotonic() + 5, 0
        while time.monotonic() < end:
            for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
                process.run(f"PRAGMA wal_checkpoint({mode})")
                count += 1
    load.finish()
    assert count > 10
    judge(grid)
    log = grid.processes.log(grid.schedulers[0])
    assert grid.schedulers[0].poll() is None
    assert "commit failed" not in log, log
    # And a kill among them: the log is known as the database's.
    with other(grid) as process:
        for mode in ("PASSIVE", "TRUNCATE", "PASSIVE"):
            work(grid.client(), 4)
            process.run(f"PRAGMA wal_checkpoint({mode})")
            grid.kill_scheduler()
            grid.wait_ready()


def test_a_lock_that_is_held_for_long_ends_nothing(new_grid: Callable[..., FaultGrid]) -> None:
    port = free_port()
    settings = {"STORE__GIVE_UP_AFTER_MS": "500", "HTTP__LISTEN": f"127.0.0.1:{port}"}
    grid = new_grid(nodes=1, slots=2, settings=settings)
    client = grid.client()
    image, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    with other(grid) as writer:
        writer.run("BEGIN IMMEDIATE")
        with pytest.raises(LamaGridError, match=r"gave up waiting|silent for"):
            client.submit(image, mask, timeout=1)
        grid.processes.wait_until(lambda: metric(port, "store_locked") == 1, 20, "the metric")
        with pytest.raises(OverloadedError, match=r"keeps the database .*tasks\.db locked"):
            client.submit(image, mask, timeout=8)
        # Well over the time after which a disk that fails ends the process.
        grid.processes.wait_until(
            lambda: "keeps the database" in grid.processes.log(grid.schedulers[0]), 5, "a line in the log"
        )
        assert grid.schedulers[0].poll() is None
        writer.run("ROLLBACK")
    grid.processes.wait_until(lambda: metric(port, "store_locked") == 0, 20, "the end of it")
    work(client, 3)
    assert grid.schedulers[0].poll() is None
    assert "the store can be written again" in grid.processes.log(grid.schedulers[0])


def test_a_long_reader_and_the_log_that_it_leaves(new_grid: Callable[..., FaultGrid]) -> None:
    """The log grows beside it, which is told; it is small again after it. Space of tasks goes back."""
    port = free_port()
    settings = {"HTTP__LISTEN": f"127.0.0.1:{port}", "SCHEDULER__RESULT_RETENTION_S": "1"}
    grid = new_grid(nodes=1, slots=2, settings=settings)
    client = grid.client()
    wal = grid.data_dir / "tasks.db-wal"
    with other(grid) as reader:
        reader.run("BEGIN")
        reader.run("SELECT count(*) FROM tasks")
        # Nearly as large as what still goes into the database.
        while wal.stat().st_size < 140 << 20:
            work(client, 20, side=290)
        grid.processes.wait_until(lambda: metric(port, "store_log_bytes") > 128 << 20, 10, "the metric")
        assert "the database's log grows" in grid.processes.log(grid.schedulers[0])
        # A start beside it takes little memory.
        grid.kill_scheduler()
        grid.wait_ready()
        status = Path(f"/proc/{grid.schedulers[-1].pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        assert int(peak[1]) < 120 << 10, status
        work(client, 2)
    small = 64 << 20
    grid.processes.wait_until(lambda: metric(port, "store_log_bytes") <= small, 20, "a small log")
    assert wal.stat().st_size <= small
    # When the tasks have gone, so has their space, also while others come all the time.
    database = grid.data_dir / "tasks.db"
    load = Load(grid, History(), threads=8)
    grid.processes.wait_until(lambda: metric(port, "store_bytes") < 48 << 20, 60, "a smaller database")
    load.finish()
    grid.processes.wait_until(lambda: metric(port, "store_bytes") < 16 << 20, 30, "a small database")
    grid.processes.wait_until(lambda: database.stat().st_size < 16 << 20, 10, "a small file")


def test_a_backup_of_a_running_store_is_whole(new_grid: Callable[..., FaultGrid], tmp_path: Path) -> None:
    grid = new_grid(nodes=1, slots=2)
    work(grid.client(), 10)
    copy = sqlite3.connect(tmp_path / "copy.db")
    source = sqlite3.connect(grid.data_dir / "tasks.db")
    source.backup(copy)
    source.close()
    assert copy.execute("SELECT count(*) FROM tasks").fetchone() == (10,)
    copy.close()
