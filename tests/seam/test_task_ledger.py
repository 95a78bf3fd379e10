"""Tasks that a web server knows after it was started again.

R8.2, P5.2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamagrid.client import Outcome
from lamagrid.errors import DisconnectedError, InvalidInputError
from lamagrid.web.browser_tasks import UNCLAIMED_LIMIT_S, BrowserTasks
from lamagrid.web.task_ledger import LINES, Entry, TaskLedger, entry_of, hash_of

ONE, TWO = "1" * 32, "2" * 32


def ids(entries: list[Entry]) -> set[str]:
    return {entry.id for entry in entries}


def test_the_next_server_takes_over_unfinished_tasks_once(tmp_path: Path) -> None:
    first = TaskLedger(tmp_path / "web")
    for number in "abc":
        first.add(entry_of(number, "lama", ONE))
    first.add(entry_of("d", "plugin/RemoveBG", None))
    first.remove("b")
    second = TaskLedger(tmp_path / "web")
    assert second.take_over() == [], "the first one lives"
    first.close()
    taken = {entry.id: entry for entry in second.take_over()}
    assert set(taken) == {"a", "c", "d"}
    assert taken["a"].browser == hash_of(ONE)
    assert taken["d"].browser is None
    assert taken["d"].what == "plugin/RemoveBG"
    assert second.take_over() == []
    second.close()
    assert ids(TaskLedger(tmp_path / "web").take_over()) == {"a", "c", "d"}, "no browser asked yet"


def test_files_contain_no_cookies_and_are_private(tmp_path: Path) -> None:
    ledger = TaskLedger(tmp_path / "web")
    ledger.add(entry_of("a", "lama", ONE))
    (file,) = (tmp_path / "web").iterdir()
    assert ONE not in file.read_text()
    assert (tmp_path / "web").stat().st_mode & 0o77 == 0
    assert file.stat().st_mode & 0o77 == 0


def test_a_truncated_file_is_read_up_to_the_cut(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from lamagrid.web.task_ledger import TaskLedger, entry_of\n"
        "ledger = TaskLedger(Path(sys.argv[1]))\n"
        "for number in range(3): ledger.add(entry_of(f'task-{number}', 'lama', '1' * 32))\n"
        'os.write(ledger._file, b\'{"id": "task-1\')\n'
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "web"], check=False, timeout=60)
    (left,) = (tmp_path / "web").iterdir()
    left.with_name("odd.tasks").write_bytes(b"\xff\x00 nothing of ours\n[1, 2]\n{}\n")
    next_one = TaskLedger(tmp_path / "web")
    assert ids(next_one.take_over()) == {"task-0", "task-1", "task-2"}
    assert [path for path in (tmp_path / "web").iterdir() if path != next_one._path] == []


def test_a_file_does_not_grow_with_finished_tasks(tmp_path: Path) -> None:
    ledger = TaskLedger(tmp_path / "web")
    ledger.add(entry_of("kept", "lama", ONE))
    for number in range(LINES):
        ledger.add(entry_of(f"{number}", "lama", ONE))
        ledger.remove(f"{number}")
    (file,) = (tmp_path / "web").iterdir()
    assert len(file.read_text().splitlines()) <= LINES + 10
    ledger.close()
    assert ids(TaskLedger(tmp_path / "web").take_over()) == {"kept"}


def test_a_forked_child_has_its_own_file(tmp_path: Path) -> None:
    ledger = TaskLedger(tmp_path / "web")
    ledger.add(entry_of("parent's", "lama", ONE))
    pid = os.fork()
    if pid == 0:
        ledger.add(entry_of("child's", "lama", ONE))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    other = TaskLedger(tmp_path / "web")
    assert ids(other.take_over()) == {"child's"}, "the parent lives"
    ledger.close()
    assert ids(other.take_over()) == {"parent's"}


def test_an_unwritable_disk_only_loses_the_record(tmp_path: Path) -> None:
    (tmp_path / "web").write_text("no directory")
    ledger = TaskLedger(tmp_path / "web")
    ledger.add(entry_of("a", "lama", ONE))
    ledger.remove("a")
    assert ledger.take_over() == []


class Grid:
    """A scheduler that knows some tasks."""

    def __init__(self, **states: str) -> None:
        self.states = states
        self.is_away = False
        self.cancelled: list[str] = []

    def task(self, task_id: str) -> GridTask:
        return GridTask(self, task_id)


class GridTask:
    def __init__(self, grid: Grid, task_id: str) -> None:
        self.id = task_id
        self._grid = grid

    def _state(self) -> str:
        if self._grid.is_away:
            raise DisconnectedError("no scheduler answered")
        if self.id not in self._grid.states:
            raise InvalidInputError("the scheduler knows no such task")
        return self._grid.states[self.id]

    def status(self, _timeout: float = 1.0) -> dict[str, Any]:
        state = self._state()
        failure = {"kind": "inference", "message": "it broke"} if state == "failed" else None
        return {"status": state, "position": 3, "wait_ms": 2_000, "node": "n", "failure": failure}

    def cancel(self, _timeout: float = 1.0) -> str:
        if self._state() in ("queued", "processing"):
            self._grid.states[self.id] = "cancelled"
            self._grid.cancelled.append(self.id)
        return self._grid.states[self.id]

    def outcome(self, _timeout: float) -> Outcome:
        self._state()
        return Outcome(b"\x89PNG of " + self.id.encode(), None, {})


class _Socketio:
    emit = None


Restart = Callable[[Grid], BrowserTasks]


@pytest.fixture
def restart(tmp_path: Path) -> Restart:
    """A server that starts after one which had tasks of two browsers and of a program without a cookie."""
    before = TaskLedger(tmp_path / "web")
    for task_id, browser in (("a", ONE), ("b", ONE), ("c", TWO), ("d", None), ("never", ONE)):
        before.add(Entry(task_id, "lama", None if browser is None else hash_of(browser), ord(task_id[0])))
    before.close()

    def start(grid: Grid) -> BrowserTasks:
        ledger = TaskLedger(tmp_path / "web")
        return BrowserTasks(_Socketio(), grid, ledger)  # type: ignore[arg-type]

    return start


def test_each_browser_finds_only_its_own_tasks(restart: Restart) -> None:
    grid = Grid(a="completed", b="failed", c="queued", d="queued")
    browsers = restart(grid)
    browsers.cancel_unclaimed(0.0)
    mine = browsers.tasks(ONE)
    reported = [watched.as_event() for watched in mine if browsers.refresh(watched)]
    assert [(each["id"], each["state"], each["has_result"]) for each in reported] == [
        ("b", "failed", False),
        ("a", "completed", True),
    ]
    assert reported[0]["failure"] == "it broke"
    assert [watched.task.id for watched in browsers.tasks(TWO)] == ["c"]
    assert browsers.tasks("3" * 32) == []
    assert browsers.tasks(None) == []
    assert browsers.tasks(hash_of(ONE)) == [], "what is on disk opens nothing"
    assert browsers.find(TWO, "a") is None


def test_tasks_that_no_browser_asks_for_are_cancelled(restart: Restart) -> None:
    grid = Grid(a="queued", b="completed", c="processing", d="queued")
    browsers = restart(grid)
    browsers.cancel_unclaimed(0.0)
    assert grid.cancelled == ["d"], "no browser can ask for it"
    assert browsers.tasks(TWO) != []
    browsers.cancel_unclaimed(UNCLAIMED_LIMIT_S - 1)
    assert grid.cancelled == ["d"]
    browsers.cancel_unclaimed(UNCLAIMED_LIMIT_S)
    assert grid.cancelled == ["d", "a"]
    browsers.cancel_unclaimed(9 * UNCLAIMED_LIMIT_S)
    assert grid.cancelled == ["d", "a"]
    late = {each.task.id: each for each in browsers.tasks(ONE) if browsers.refresh(each)}
    assert {task_id: each.state for task_id, each in late.items()} == {"a": "cancelled", "b": "completed"}


def test_no_task_is_dropped_while_the_scheduler_is_away(restart: Restart) -> None:
    grid = Grid(a="queued", b="queued", c="queued", d="queued")
    grid.is_away = True
    browsers = restart(grid)
    browsers.cancel_unclaimed(0.0)
    browsers.cancel_unclaimed(UNCLAIMED_LIMIT_S)
    grid.is_away = False
    browsers.cancel_unclaimed(UNCLAIMED_LIMIT_S + 1)
    assert sorted(grid.cancelled) == ["a", "b", "c", "d"]


def test_after_a_fork_only_the_child_takes_over_tasks(tmp_path: Path) -> None:
    code = (
        "import os, sys, threading, time\n"
        "from pathlib import Path\n"
        "from lamagrid.web import browser_tasks\n"
        "from lamagrid.web.browser_tasks import BrowserTasks\n"
        "from lamagrid.web.task_ledger import TaskLedger\n"
        "class Io: emit = None\n"
        "made = BrowserTasks(Io(), object(), TaskLedger(Path(sys.argv[1])))\n"
        "looked = []\n"
        "made.look_after_left = lambda now: looked.append(os.getpid())\n"
        "browser_tasks.CHECK_EVERY_S = 0.2\n"
        "made.take_over()\n"
        "pid = os.fork()\n"
        "end = time.monotonic() + 20\n"
        "if pid == 0:\n"
        "    while not looked and time.monotonic() < end: time.sleep(0.01)\n"
        "    os._exit(0 if looked == [os.getpid()] else 3)\n"
        "status = os.waitpid(pid, 0)[1]\n"
        "sys.exit(status or len(looked))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False, timeout=60).returncode == 0
