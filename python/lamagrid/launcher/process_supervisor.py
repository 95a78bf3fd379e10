"""Starts the scheduler and the nodes of one host as child processes, and keeps them running.

Each child's stdin is a pipe whose only write end is held here. Children started with ``--lifeline`` end when
that pipe closes, so they end with this process, however it ends.

Does not: know when a child is ready; the launcher asks the scheduler.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lamagrid.launcher.errors import LaunchError

FIRST_BACKOFF_S = 0.5
BACKOFF_CAP_S = 30.0
HEALTHY_AFTER_S = 60.0  # a child that ran this long starts again with the first back-off
NODES_GRACE_S = 4.5  # a node may finish a short task, and says goodbye to a scheduler that still answers
STOP_LIMIT_S = 6.0  # from the first SIGTERM to SIGKILL: `docker stop` waits 10 s for everything
START_TRIES = 3  # a child that ends this often before it was ready does not start at all
TAIL_LINES = 15  # of a child's output, shown when it does not start
TAIL_LINE_CHARS = 500


def say(text: str) -> None:
    """Print one line for the person who started this, at once, also into a pipe.

    A reader that went away (``| head``) must not end the thread that watches over a child.
    """
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


@dataclass(frozen=True)
class ProcessSpec:
    """A program to run.

    Attributes:
        name: For people, unique among the children: ``scheduler``, ``node torch-0``.
        command: The program and its arguments.
        env: The whole environment.
        may_leave: Once it was ready, an end with status 0 is deliberate, and it is not started again.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    may_leave: bool = False


class SupervisedProcess:
    """Runs one program and restarts it whenever it ends, until :meth:`start_no_more`."""

    def __init__(self, program: ProcessSpec, report: Callable[[str], None] = say) -> None:
        self.program = program
        self._report = report
        self._lock = threading.Lock()  # guards _process and _stopping: no start after a stop
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._gave_up = threading.Event()
        self._ready = False
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._exit = ""
        self._thread = threading.Thread(target=self._run, name=f"child {program.name}", daemon=True)

    @property
    def pid(self) -> int:
        """Process id of the current run, 0 between two runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    def start(self) -> None:
        """Start the program, and restart it when it ends."""
        self._thread.start()

    def set_ready(self) -> None:
        """Mark the program as working: from now on it is restarted without a limit."""
        self._ready = True

    def check(self) -> None:
        """Raise LaunchError if the program ended too often before it was ready."""
        if self._gave_up.is_set():
            lines = "\n".join(f"  | {line}" for line in self._tail)
            raise LaunchError(
                f"{self.program.name} did not start: {self._exit}" + (f"\n{lines}" if lines else "")
            )

    def start_no_more(self) -> None:
        """Do not restart it any more."""
        with self._lock:
            self._stopping.set()

    def ask_to_end(self) -> None:
        """Send SIGTERM; after :meth:`start_no_more`."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)

    def wait_until(self, deadline: float) -> None:
        """Wait for its end, until the monotonic time ``deadline`` at most."""
        process = self._process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

    def kill_after(self, deadline: float) -> None:
        """Wait until the monotonic time ``deadline``, then send SIGKILL. The child is gone on return."""
        process = self._process
        if process is not None:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._report(f"{self.program.name} (pid {process.pid}) did not end in time: killing it")
                # It leads a process group: kills its children too.
                with contextlib.suppress(ProcessLookupError):  # it ended just now
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        failures = 0
        for start in itertools.count():
            began = time.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                try:
                    self._process = self._spawn()
                except OSError as error:
                    self._process = None
                    self._exit = f"cannot run {self.program.command[0]}: {error.strerror or error}"
            if self._process is not None:
                if start > 0:
                    self._report(f"{self.program.name} started again (pid {self._process.pid})")
                self._exit = self._watch(self._process)
            if self._stopping.is_set():
                return
            process = self._process
            if self.program.may_leave and self._ready and process is not None and process.returncode == 0:
                self._report(f"{self.program.name} left as it was told; it is not started again")
                return
            if time.monotonic() - began >= HEALTHY_AFTER_S:
                failures = 0
            failures += 1
            if not self._ready and failures >= START_TRIES:
                self._gave_up.set()
                return
            wait = backoff(failures)
            self._report(f"{self.program.name} ended ({self._exit}): starting it again in {wait:.1f} s")
            if self._stopping.wait(wait):
                return

    def _spawn(self) -> subprocess.Popen[bytes]:
        # close_fds (the default) keeps the pipes of the other children out of this one: their EOF needs it.
        # An own session keeps a terminal's Ctrl-C for the launcher, which then ends its children in order.
        return subprocess.Popen(
            list(self.program.command),
            env=dict(self.program.env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _watch(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for the end of a run. Returns its exit status or signal as text."""
        reader = threading.Thread(target=self._forward, args=(process,), daemon=True)
        reader.start()
        status = process.wait()
        if process.stdin is not None:
            process.stdin.close()
        # Its own children may keep the output open; the last lines have arrived by then.
        reader.join(timeout=1.0)
        return _how_it_ended(status)

    def _forward(self, process: subprocess.Popen[bytes]) -> None:
        """Pass the child's output on, line by line, until it closes it."""
        self._tail.clear()
        assert process.stdout is not None
        with process.stdout as out:
            for line in _lines(out.fileno()):
                self._tail.append(line[:TAIL_LINE_CHARS])
                try:
                    sys.stderr.write(f"[{self.program.name}] {line}\n")
                    sys.stderr.flush()
                except (OSError, ValueError):
                    continue  # our own stderr is closed, but the pipe must be drained


class ProcessSupervisor:
    """All child processes of the launcher, in the order of their start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both below
        self._children: list[SupervisedProcess] = []
        self._is_stopping = False

    def __iter__(self) -> Iterator[SupervisedProcess]:
        return iter(self._children)

    def start(self, program: ProcessSpec) -> SupervisedProcess:
        """Start one more program; during :meth:`stop` it is not run."""
        child = SupervisedProcess(program)
        with self._lock:
            self._children.append(child)
            if self._is_stopping:
                child.start_no_more()
        child.start()
        return child

    def check(self) -> None:
        """Raise LaunchError if one of them does not start."""
        for child in self._children:
            child.check()

    def stop(self) -> None:
        """End all children: the first one, which the others talk to, after the others or their grace."""
        began = time.monotonic()
        with self._lock:
            self._is_stopping = True
            first, others = self._children[:1], self._children[1:]
        for child in (*first, *others):
            child.start_no_more()
        for child in others:
            child.ask_to_end()
        for child in others:
            child.wait_until(began + NODES_GRACE_S)
        for child in first:
            child.ask_to_end()
        for child in (*others, *first):
            child.kill_after(began + STOP_LIMIT_S)


def backoff(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Seconds before the start after ``failures`` ends in a row (at least 1): doubling, capped, jittered.

    The jitter takes up to half away, so that children which died together do not come back together.
    """
    whole = min(BACKOFF_CAP_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 16))
    return whole * (1.0 - jitter() / 2)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _lines(fd: int) -> Iterator[str]:
    """The lines that come out of ``fd``; a carriage return ends one too, for progress bars."""
    rest = b""
    while chunk := os.read(fd, 65536):
        *whole, rest = re.split(rb"[\r\n]+", rest + chunk)
        yield from (line.decode(errors="replace") for line in whole if line)
        if len(rest) > 65536:  # a longer line is not text for people
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")
