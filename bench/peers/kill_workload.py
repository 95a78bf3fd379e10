"""Callers that submit and wait while nodes are killed: the same for every system."""

from __future__ import annotations

import random
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field

NODES = 4
SLOTS = 8
CALLERS = 32
LEAST_IN_FLIGHT = 20
SETTLE_S = 120
"""After the last kill; six times what any of the systems waits before it takes a node for dead."""


@dataclass(frozen=True)
class Run:
    """One start of a task: where and when (wall clock, seconds)."""

    task: str
    node: str
    at: float


@dataclass
class Record:
    """The counts of one system."""

    accepted: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    begun: list[Run] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    """How often a task was recorded as done."""
    kills: list[tuple[str, float]] = field(default_factory=list)
    """Which node, when."""

    def again(self) -> int:
        """Starts beyond the first one of each task."""
        return len(self.begun) - len({run.task for run in self.begun})

    def restarts(self) -> list[float]:
        """Seconds from the kill of a node to the next start of each task that it had begun and not ended."""
        times = []
        runs: dict[str, list[Run]] = {}
        for run in sorted(self.begun, key=lambda run: run.at):
            runs.setdefault(run.task, []).append(run)
        for starts in runs.values():
            for run, following in zip(starts, starts[1:]):
                killed = [at for node, at in self.kills if node == run.node and run.at <= at <= following.at]
                if killed:
                    times.append(following.at - killed[0])
        return times


class System(ABC):
    """A task queue with its nodes."""

    @abstractmethod
    def call(self, task: str, ms: int, record: Record, stop: threading.Event) -> None:
        """Submit a task, note that it was accepted, wait for its result until ``stop``, note that it came."""

    @abstractmethod
    def kill(self, node: str) -> None:
        """SIGKILL to all processes of a node, and start it again."""

    @abstractmethod
    def collect(self, record: Record) -> None:
        """Add all starts and outcomes to the record."""


def run_kills(system: System, kills: int, seed: int) -> Record:
    """Run the load, kill nodes at random moments, wait until all is answered or the time is up."""
    record, rng = Record(), random.Random(seed)
    no_more, stop = threading.Event(), threading.Event()

    def caller(rng: random.Random) -> None:
        while not no_more.is_set():
            task = f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
            system.call(task, rng.randrange(50, 400), record, stop)

    threads = [
        threading.Thread(target=caller, args=(random.Random(rng.random()),), daemon=True)
        for _ in range(CALLERS)
    ]
    for thread in threads:
        thread.start()
    for _ in range(kills):
        _wait_busy(record)
        time.sleep(0.5 + rng.random())  # the moment of a kill is a random one
        node = f"n{rng.randrange(NODES)}"
        record.kills.append((node, time.time()))
        system.kill(node)
    no_more.set()
    end = time.monotonic() + SETTLE_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    stop.set()
    for thread in threads:
        thread.join(10)
    system.collect(record)
    return record


def _wait_busy(record: Record, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while len(record.accepted) - len(record.answered) < LEAST_IN_FLIGHT:
        if time.monotonic() > end:
            raise AssertionError(f"never {LEAST_IN_FLIGHT} tasks in flight: are the nodes up?")
        time.sleep(0.01)
