"""Child processes of a test: started with a log each, awaited, ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")


class Processes:
    """Owns child processes; :meth:`close` ends those that still run, by their process id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._running: list[tuple[str, subprocess.Popen[bytes], Path]] = []

    def start(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command; stdout and stderr go to ``<name>.log``. ``env`` is added to this process's."""
        log = self.folder / f"{name}-{len(self._running)}.log"
        with log.open("wb") as sink:
            child = subprocess.Popen(
                [os.fspath(part) for part in command],
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self._running.append((name, child, log))
        return child

    def log(self, child: subprocess.Popen[bytes]) -> str:
        """The output of a child so far."""
        return next(log for _, known, log in self._running if known is child).read_text(errors="replace")

    def tails(self, lines: int = 40) -> str:
        """The ends of all logs."""
        parts = []
        for name, child, log in self._running:
            state = "running" if child.poll() is None else f"ended with {child.returncode}"
            end = "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
            parts.append(f"--- {name} (pid {child.pid}, {state})\n{end}")
        return "\n".join(parts)

    def wait_until(
        self,
        predicate: Callable[[], Value],
        timeout: float,
        what: str = "the condition",
        alive: Sequence[subprocess.Popen[bytes]] = (),
    ) -> Value:
        """Wait for a true value and return it.

        ``AssertionError`` with the ends of the logs after ``timeout`` seconds, or when one of ``alive`` ends.
        ``OSError`` (nothing listens yet) counts as not yet.
        """
        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError):
                value = predicate()
                if value:
                    return value
            for child in alive:
                if child.poll() is not None:
                    raise AssertionError(f"process {child.pid} ended before {what}\n{self.tails()}")
            if time.monotonic() >= end:
                raise AssertionError(f"{what} did not come within {timeout:g} s\n{self.tails()}")
            time.sleep(0.05)

    def stop(self, child: subprocess.Popen[bytes], timeout: float = 20.0) -> int:
        """SIGTERM, wait, SIGKILL if need be; returns the exit status."""
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(timeout)
            except subprocess.TimeoutExpired:
                child.kill()
        return child.wait()

    def close(self, keep: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        """End all that is left, the last one first, except those to keep."""
        for _, child, _ in reversed(self._running):
            if child not in keep:
                self.stop(child, timeout=10.0)
