"""A scheduler, echo nodes and clients under faults: real processes, ended by real signals."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
import unittest.mock
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from faults.checker import History
from grids import procfs
from grids.server import BIN, PROGRAMS, lamagrid_json
from lamagrid import TaskClient, new_task_id
from lamagrid.errors import CancelledError, LamaGridError, OverloadedError, UnknownTaskError
from stock.processes import Processes

SETTINGS = {
    "SCHEDULER__LEASE_MS": "1500",
    "SCHEDULER__SUSPECT_AFTER_MS": "700",
    "SCHEDULER__ACCEPT_TIMEOUT_MS": "1000",
    "SCHEDULER__CLOSED_GRACE_MS": "600",
    "SCHEDULER__POLL_MS": "200",
    "CLIENT__PING_MS": "200",
    "CLIENT__SILENCE_MS": "1000",
    # Kills at random meet the same task again and again; a test of its own looks at the limit.
    "SCHEDULER__CRASH_LIMIT": "100",
    "SCHEDULER__NO_NODE_WAIT_MS": "60000",
}
SABOTAGE = os.environ.get("LAMAGRID_SABOTAGED_SCHEDULER", "")
"""A program that breaks a promise on purpose, with its arguments, in place of the scheduler."""
PATIENCE_S = 10 if SABOTAGE else 60
LARGE = (300, 400)
"""Of a picture that travels through the spool: more than 256 KiB."""


class FaultGrid:
    """One data directory with its scheduler and nodes, which are killed and started again."""

    def __init__(
        self,
        processes: Processes,
        folder: Path,
        nodes: int = 4,
        slots: int = 8,
        settings: dict[str, str] | None = None,
        preload: Path | None = None,
        restarts: bool = False,
    ) -> None:
        self.processes = processes
        self.data_dir = folder / "data"
        chosen = {**SETTINGS, "NODE__SLOTS": str(slots), **(settings or {})}
        self.env = {f"LAMAGRID__{key}": value for key, value in chosen.items()}
        self.lease_ms = int(chosen["SCHEDULER__LEASE_MS"])
        self._scheduler_command = SABOTAGE.split() or [str(BIN / "lamagrid"), "scheduler"]
        self._preload = {} if preload is None else {"LD_PRELOAD": str(preload)}
        self._restarts = restarts
        self.schedulers: list[subprocess.Popen[bytes]] = []
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.start_scheduler()
        for index in range(nodes):
            self.start_node(f"n{index}")
        self.wait_ready()

    def client(self) -> TaskClient:
        """A client with a connection of its own, and this grid's patience with silence."""
        with unittest.mock.patch.dict(os.environ, self.env):
            return TaskClient(data_dir=self.data_dir)

    # Processes.

    def start_scheduler(self) -> None:
        """Start one on the data directory; it need not be ready."""
        command = [*self._scheduler_command, "--data-dir", self.data_dir]
        env = {**self.env, **(self._preload if not self.schedulers else {})}
        self.schedulers.append(self.processes.start("scheduler", command, env))

    def start_node(self, name: str) -> None:
        """Start a node; it need not be ready."""
        flags = ["--backend", "echo", "--model", "lama", "--name", name, "--data-dir", self.data_dir]
        self.nodes[name] = self.processes.start(name, [PROGRAMS / "lamagrid-node", *flags], self.env)

    def worker(self, name: str) -> int | None:
        """The process of a node that works; None while it is down."""
        children = procfs.descendants(self.nodes[name].pid)
        return children[0] if children else None

    def is_of_a_lost_attempt(self, task_id: str, infer_ms: float) -> bool:
        """Whether a result that took this long is of an attempt that was over, by the task's history."""
        entries = lamagrid_json("task", "show", task_id, data_dir=self.data_dir)["history"]
        attempt = max(entry["attempt"] for entry in entries)
        ends = {entry["event"] for entry in entries if entry["attempt"] == attempt}
        at = {entry["event"]: datetime.fromisoformat(entry["at"].replace("Z", "+00:00")) for entry in entries}
        had_ms = (at["ended"] - at["assigned"]).total_seconds() * 1_000
        return bool(ends & {"crashed", "node_lost", "given_back"}) or had_ms < infer_ms - 1

    def survey(self) -> list[dict[str, Any]]:
        """The connected nodes."""
        nodes: list[dict[str, Any]] = self._watcher.survey(timeout=10)["nodes"]
        return nodes

    @property
    def _watcher(self) -> TaskClient:
        if not hasattr(self, "_watching"):
            self._watching = self.client()
        return self._watching

    def wait_ready(self, timeout: float = 30) -> None:
        """Wait until every node is connected; where the grid restarts, a scheduler that ended is replaced."""

        def connected() -> bool:
            if self._restarts and self.schedulers[-1].poll() is not None:
                self.start_scheduler()
            try:
                return {node["info"]["name"] for node in self.survey()} >= set(self.nodes)
            except LamaGridError:
                return False

        self.processes.wait_until(connected, timeout, f"the nodes {', '.join(self.nodes)}")

    def stop(self) -> None:
        """End everything that still runs."""
        for process in (*self.nodes.values(), self.schedulers[-1]):
            self.processes.stop(process)

    def kill_scheduler(self) -> None:
        """SIGKILL, and start the next one."""
        self.schedulers[-1].kill()
        self.schedulers[-1].wait()
        self.start_scheduler()

    def kill_worker(self, name: str) -> bool:
        """SIGKILL to the process that works; its supervisor starts the next one."""
        pid = self.worker(name)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def kill_node(self, name: str) -> None:
        """SIGKILL to supervisor and worker, and start the next ones."""
        pids = procfs.descendants(self.nodes[name].pid)
        self.nodes[name].kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes[name].wait()
        self.start_node(name)

    def finished(self) -> list[str]:
        """The tasks that all schedulers' logs call finished, as often as they do."""
        logs = "\n".join(self.processes.log(scheduler) for scheduler in self.schedulers)
        return re.findall(r"task finished.*?task\.id=([0-9a-f]{32})", logs)


class Load:
    """Threads that submit, wait, compare and submit again, until they are told to stop."""

    def __init__(self, grid: FaultGrid, history: History, threads: int = 32, seed: int = 0) -> None:
        self.grid = grid
        self.history = history
        self._stop = threading.Event()
        self._clients = [grid.client() for _ in range(4)]
        self._threads = [
            threading.Thread(target=self._work, args=(random.Random(seed * 1_000 + n), n), daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, rng: random.Random, number: int) -> None:
        client = self._clients[number % len(self._clients)]
        while not self._stop.is_set():
            self.one(client, rng)

    def one(self, client: TaskClient, rng: random.Random) -> None:
        """One task from its submission to its outcome."""
        shape = LARGE if rng.random() < 0.1 else (rng.randrange(1, 20), rng.randrange(1, 20))
        image = np.frombuffer(rng.randbytes(shape[0] * shape[1] * 3), np.uint8).reshape(*shape, 3)
        mask = np.zeros(shape, np.uint8)
        task_id = new_task_id()
        self.history.note(task_id, "submitted")
        durability, echo_ms = rng.choice(("full", "process")), rng.randrange(50, 400)
        try:
            task = client.submit(
                image,
                mask,
                task_id=task_id,
                echo_ms=echo_ms,
                durability=durability,  # type: ignore[arg-type]
                timeout=60,
            )
        except OverloadedError as error:
            self.history.note(task_id, "refused", detail=str(error))
            return
        self.history.note(task_id, "accepted", detail=durability)
        try:
            outcome = task.outcome(PATIENCE_S)
        except LamaGridError as error:
            status = "cancelled" if isinstance(error, CancelledError) else "failed"
            if error.kind in ("disconnected", "deadline_exceeded"):
                self.history.note(task_id, "silence", detail=str(error))  # the caller got no answer
            else:
                self.history.note(task_id, "outcome", status, f"{error.kind}: {error}")
            return
        self.history.note(task_id, "outcome", "completed", str(outcome.task["counters"]))
        infer_ms = outcome.task["stages"]["infer_ms"]
        # An attempt that took a lease longer than it should stood still: was it lost meanwhile?
        if infer_ms > echo_ms + self.grid.lease_ms and self.grid.is_of_a_lost_attempt(task_id, infer_ms):
            self.history.note(task_id, "stale", detail=str(outcome.task["stages"]))
        if not np.array_equal(outcome.rgb(), image):
            self.history.note(task_id, "wrong")

    def wait_busy(self, least: int = 20, timeout: float = 30) -> int:
        """Wait until at least ``least`` tasks are in flight. Returns how many there are."""
        return self.grid.processes.wait_until(
            lambda: count if (count := self.history.in_flight()) >= least else 0,
            timeout,
            f"{least} tasks in flight",
        )

    def finish(self, timeout: float = 120) -> None:
        """Submit nothing more, and wait for what is under way."""
        self._stop.set()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self.history.strange("a caller is still waiting long after the faults")


def settle(grid: FaultGrid, history: History) -> None:
    """Ask the scheduler about every task that was acknowledged, and read its logs."""
    client = grid.client()
    for task_id in history.accepted():
        try:
            task = client.task(task_id).status(timeout=30)
            history.note(task_id, "status", task["status"], str(task["counters"]))
        except UnknownTaskError as error:
            history.note(task_id, "status", "unknown", str(error))
    history.finished(grid.finished())


def attempts(grid: FaultGrid, history: History) -> int:
    """The most attempts that one task needed."""
    client = grid.client()
    counts = (client.task(task).status(timeout=30)["counters"]["attempts"] for task in history.accepted())
    return max(counts, default=0)


def pause(rng: random.Random, longest: float = 0.3) -> None:
    """The moment of the next fault is a random one: this waits for nothing."""
    time.sleep(rng.random() * longest)
