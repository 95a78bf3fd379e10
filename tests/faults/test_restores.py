"""R1.3, R7.2: a copy of the database in its place, of any age or another grid's; strange files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faults.grid import LARGE, FaultGrid
from lamagrid import TaskClient
from lamagrid.errors import InvalidInputError, LamaGridError
from stock.processes import Processes

pytestmark = pytest.mark.timeout(300)


def submit(client: TaskClient, count: int, shape: tuple[int, int] = (8, 8), echo_ms: int = 1) -> list[str]:
    """Submit some, and give their ids."""
    image, mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    return [client.submit(image, mask, echo_ms=echo_ms, timeout=60).id for _ in range(count)]


def finish(client: TaskClient, tasks: list[str]) -> None:
    """Wait for all."""
    for task in tasks:
        client.task(task).outcome(60)


def backup(grid: FaultGrid, to: Path) -> Path:
    """Copy the database of a running scheduler, as `.backup` does."""
    with sqlite3.connect(grid.data_dir / "tasks.db") as source, sqlite3.connect(to) as copy:
        source.backup(copy)
    source.close()
    copy.close()
    return to


def end(grid: FaultGrid, how: int) -> None:
    """End the scheduler, and start no other."""
    grid.schedulers[-1].send_signal(how)
    grid.schedulers[-1].wait(20)


def refusal(grid: FaultGrid) -> str:
    """The text of a refused start."""
    grid.start_scheduler()
    assert grid.schedulers[-1].wait(30) != 0
    return grid.processes.log(grid.schedulers[-1])


@pytest.fixture
def restarted(processes: Processes) -> Callable[..., None]:
    """Starts a scheduler again, and waits for its nodes."""

    def start(grid: FaultGrid) -> None:
        grid.start_scheduler()
        grid.wait_ready()

    return start


def test_a_copy_beside_the_log_of_another_is_refused(
    new_grid: Callable[..., FaultGrid], tmp_path: Path, restarted: Callable[..., None]
) -> None:
    grid = new_grid(nodes=1, slots=4)
    client = grid.client()
    database, log = grid.data_dir / "tasks.db", grid.data_dir / "tasks.db-wal"
    finish(client, submit(client, 10))
    older = backup(grid, tmp_path / "older")
    finish(client, submit(client, 30))
    newer = backup(grid, tmp_path / "newer")
    end(grid, signal.SIGKILL)
    own = {path: path.read_bytes() for path in (database, log)}
    assert own[log], "this is about a log that was left"
    other = new_grid(nodes=0, folder=tmp_path / "other")
    other_copy = backup(other, tmp_path / "another")
    # The end of a log that is lost makes the newest copy newer than it.
    for copy, cut in ((older, 0), (other_copy, 0), (newer, len(own[log]) // 2)):
        shutil.copyfile(copy, database)
        log.write_bytes(own[log][: len(own[log]) - cut])
        text = refusal(grid)
        assert all(words in text for words in (str(database), str(log), "does not belong")), text
        assert database.read_bytes() == copy.read_bytes()
    # As the text says: the copy alone, or all as it was.
    for path, content in own.items():
        path.write_bytes(content)
    restarted(grid)
    assert len(tasks(grid)) == 40
    end(grid, signal.SIGKILL)
    shutil.copyfile(older, database)
    log.unlink()
    restarted(grid)
    assert len(tasks(grid)) == 10
    finish(client, submit(client, 3))


def tasks(grid: FaultGrid) -> list[object]:
    """The tasks on record."""
    with sqlite3.connect(grid.data_dir / "tasks.db") as connection:
        return connection.execute("SELECT id FROM tasks").fetchall()


def test_a_copy_in_a_stopped_scheduler_is_taken(
    new_grid: Callable[..., FaultGrid], tmp_path: Path, restarted: Callable[..., None]
) -> None:
    """One that ended in order leaves no log that could be mixed with it."""
    grid = new_grid(nodes=1, slots=4)
    client = grid.client()
    finish(client, submit(client, 5))
    end(grid, signal.SIGTERM)
    shutil.copyfile(grid.data_dir / "tasks.db", tmp_path / "copy")
    restarted(grid)
    finish(client, submit(client, 5))
    end(grid, signal.SIGTERM)
    assert not (grid.data_dir / "tasks.db-wal").exists()
    shutil.copyfile(tmp_path / "copy", grid.data_dir / "tasks.db")
    restarted(grid)
    assert len(tasks(grid)) == 5
    finish(client, submit(client, 1))


def test_an_older_copy_costs_the_lost_tasks_and_nothing_else(
    new_grid: Callable[..., FaultGrid], tmp_path: Path, restarted: Callable[..., None]
) -> None:
    """Tasks whose inputs are gone end at once, no node is set aside, later pictures are moved aside."""
    grid = new_grid(nodes=1, slots=1)
    client = grid.client()
    busy = submit(client, 1, LARGE, echo_ms=1_000)
    waiting = submit(client, 6, LARGE)
    older = backup(grid, tmp_path / "older")
    finish(client, busy + waiting)
    client.task(waiting[0]).release()
    later = submit(client, 1, LARGE)
    finish(client, later)
    end(grid, signal.SIGTERM)
    shutil.copyfile(older, grid.data_dir / "tasks.db")
    restarted(grid)
    client = grid.client()  # the one before knows how they ended
    for task in waiting:
        with pytest.raises(InvalidInputError, match="gone from the scheduler's disk"):
            client.task(task).outcome(10)
    # The node had the first one when the copy was made.
    assert sum(client.task(task).status(timeout=10)["counters"]["attempts"] for task in waiting) <= 1
    assert [node["state"] for node in grid.survey()] == ["ready"]
    finish(client, submit(client, 4, LARGE))
    [aside] = grid.data_dir.glob("spool.aside-*")
    kept = {path.name for path in aside.glob("*/*")}
    assert kept == {*later, *busy, *waiting[1:]}, "later pictures, and what is left of the lost tasks"
    assert str(aside) in grid.processes.log(grid.schedulers[-1])


def test_inputs_that_vanish_while_it_runs(new_grid: Callable[..., FaultGrid]) -> None:
    """Each task ends at its first attempt, for that reason; the node goes on."""
    grid = new_grid(nodes=1, slots=1)
    client = grid.client()
    busy = submit(client, 1, LARGE, echo_ms=1_500)
    # The node has read the first one's already, to be ready for it.
    ready, *lost = submit(client, 5, LARGE)
    for task in lost:
        shutil.rmtree(grid.data_dir / "spool" / task[:2] / task)
    finish(client, [*busy, ready])
    for task in lost:
        with pytest.raises(LamaGridError, match="gone from the scheduler's disk") as reported:
            client.task(task).outcome(20)
        assert reported.value.kind == "invalid_input"
        assert client.task(task).status(timeout=10)["counters"]["attempts"] == 1
    assert "set aside" not in grid.processes.log(grid.schedulers[0])
    finish(client, submit(client, 2, LARGE))


def test_strange_entries_stop_no_start(
    new_grid: Callable[..., FaultGrid], restarted: Callable[..., None]
) -> None:
    """R7.2: in every directory of ours; each is told once, by its path, and stays."""
    grid = new_grid(nodes=1, slots=2)
    client = grid.client()
    kept = submit(client, 1, LARGE)
    finish(client, kept)
    spool = grid.data_dir / "spool"
    places = [grid.data_dir, spool, spool / kept[0][:2], grid.data_dir / "logs", grid.data_dir / "certs"]
    strange, sockets = [], []
    for place in places:
        place.mkdir(exist_ok=True)
        for name in ("notes.txt", os.fsdecode(b"\xff\xfe"), "aa", f"{kept[0][:-2]}zz"):
            path = place / name
            path.write_text("not ours")
            strange.append(path)
        (place / "lost+found").mkdir(mode=0)
        (place / "link").symlink_to("/")
        (place / "dangling").symlink_to("nowhere")
        (place / "loop").symlink_to("loop")
        os.mkfifo(place / "pipe")
        listener = socket.socket(socket.AF_UNIX)
        os.chdir(place)  # the path of a socket is short
        listener.bind("socket")
        sockets.append(listener)
        names = ("lost+found", "link", "dangling", "loop", "pipe", "socket")
        strange.extend(place / name for name in names)
    for _ in range(2):
        end(grid, signal.SIGKILL)
        restarted(grid)
        finish(client, submit(client, 2, LARGE))
        log = grid.processes.log(grid.schedulers[-1])
        for name in ("notes.txt", "lost+found", "socket"):
            assert log.count(f"path={spool / name} ") + log.count(f"path={spool / name}\n") == 1, log
    assert all(os.path.lexists(path) for path in strange)
    finish(client, kept)
    for listener in sockets:
        listener.close()
