"""Records on disk which browser sent which task, so that the next web server can show and cancel them.

Each server process appends to a file of its own, which stays locked while the process runs; the next process
takes over the files that are not locked. Only a hash of a browser's cookie is written.

Does not: know the state of a task; the scheduler does.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SUFFIX = ".tasks"
LINES = 4_000
"""A longer file is rewritten, with only the tasks that have not ended."""
ENTRIES = 20_000
"""At most this many tasks are taken over."""

log = logging.getLogger("lamagrid.web")


@dataclass(frozen=True)
class Entry:
    """A task.

    Attributes:
        id: Its id.
        what: The model, or the plugin.
        browser: The hash of its browser's cookie, None without a cookie.
        created: Seconds since the Unix epoch.
    """

    id: str
    what: str
    browser: str | None
    created: float


def hash_of(cookie: str) -> str:
    """The hash by which a browser's tasks are recorded."""
    return hashlib.sha256(cookie.encode()).hexdigest()


class TaskLedger:
    """The tasks that this process has submitted or taken over, and that have not ended.

    If the disk cannot be written, tasks are not found again after a restart; one line in the log says so.

    Args:
        directory: Where the files are; made at the first use.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()  # guards all below
        self._pid = 0
        self._file = -1
        self._path = directory
        self._lines = 0
        self._entries: dict[str, Entry] = {}
        self._has_failed = False

    def add(self, entry: Entry) -> None:
        """Record a task, before it is submitted."""
        with self._lock, self._logging_errors():
            self._open()
            self._entries[entry.id] = entry
            self._append(asdict(entry))

    def remove(self, task_id: str) -> None:
        """Remove a task whose end was reported, or is not needed."""
        with self._lock, self._logging_errors():
            self._open()
            if self._entries.pop(task_id, None) is not None:
                self._append({"id": task_id})

    def take_over(self) -> list[Entry]:
        """Take over the tasks of servers that have ended."""
        taken: dict[str, Entry] = {}
        with self._lock, self._logging_errors():
            if not self._directory.is_dir():
                return []
            self._open()
            for path in sorted(self._directory.glob(f"*{SUFFIX}")):
                if path == self._path or len(taken) >= ENTRIES:
                    continue
                with contextlib.suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    for entry in _read(file.read().splitlines()).values():
                        if entry.id not in self._entries:
                            taken[entry.id] = self._entries[entry.id] = entry
                            self._append(asdict(entry))
                    path.unlink(missing_ok=True)
            for path in self._directory.glob("*.new"):  # of a process that was killed before it renamed it
                with contextlib.suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
        return list(taken.values())

    @contextlib.contextmanager
    def _logging_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                log.warning("browsers' tasks are forgotten at a restart: %s", error)
            self._has_failed = True

    def _open(self) -> None:
        """Open a file for this process; a forked child opens its own."""
        if self._pid == os.getpid():
            return
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._entries = {}
        self._pid = os.getpid()
        self._rewrite()

    def _rewrite(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / f"{secrets.token_hex(8)}{SUFFIX}"
        # The name is one that no other server takes over, until the file is locked.
        temporary = path.with_suffix(".new")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        before, old = self._file, self._path
        self._file, self._path, self._lines = file, path, 0
        for entry in self._entries.values():
            self._append(asdict(entry))
        temporary.rename(path)
        if before >= 0:
            old.unlink(missing_ok=True)
            os.close(before)

    def _append(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
        self._lines += 1
        if self._lines > LINES + 2 * len(self._entries):
            self._rewrite()

    def close(self) -> None:
        """Close the file, which the next server can take over then."""
        with self._lock:
            if self._file >= 0 and self._pid == os.getpid():
                os.close(self._file)
                self._file, self._pid = -1, 0


def _read(lines: list[bytes]) -> dict[str, Entry]:
    """The tasks of a file that had not ended; a line that was cut short is skipped."""
    entries: dict[str, Entry] = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            fields = json.loads(line)
            if "what" not in fields:
                entries.pop(fields["id"], None)
                continue
            browser = fields["browser"]
            entry = Entry(
                str(fields["id"]),
                str(fields["what"]),
                None if browser is None else str(browser),
                float(fields["created"]),
            )
            entries[entry.id] = entry
    return entries


def entry_of(task_id: str, what: str, cookie: str | None) -> Entry:
    """The entry of a task that is submitted now."""
    return Entry(task_id, what, None if cookie is None else hash_of(cookie), time.time())
