"""The cost of the scheduler and its nodes without a model: echo nodes, 200-byte blobs, a client in Rust.

usage: bench/tasks.py [--quick] [ROW...]      all rows, or those whose names begin with these words

Prints a table with each row's floor and aim, and writes ``target/bench-tasks.json``. Ends with 1 if a
floor is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The tests' code that starts and asks servers is used here, too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np

from grids import procfs
from grids.server import BIN, PROGRAMS, lamagrid_json
from lamagrid import TaskClient
from machine import machine
from stats import quantile
from stock.processes import Processes
from thresholds import Row, show

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench-tasks.json"
LOGS = ROOT / "target" / "bench"
UNBOUNDED = {
    "LAMAGRID__QUEUES__GPU__MAX_TASKS": "1000000",
    "LAMAGRID__LIMITS__MAX_CLIENT_TASKS": "1000000",
    "LAMAGRID__LIMITS__MAX_OWNER_TASKS": "1000000",
    "LAMAGRID__SCHEDULER__MAX_OUTSTANDING_PER_PEER": "100000",
    "LAMAGRID__SCHEDULER__NO_NODE_WAIT_MS": "86400000",
    "LAMAGRID_LOG": "warn",
}


ROWS = (
    Row("tasks_process", "1/s", 5_000, 10_000, more=True),
    Row("tasks_full", "1/s", 1_000, 3_000, more=True),
    Row("one_in_flight_p50", "ms", 2, 1),
    Row("restart_p99", "s", 4, 2),
    Row("cancel_p99", "ms", 100, 50),
    Row("start_100k", "s", 2, 1),
    Row("memory_per_task", "KiB", 2, 1),
    Row("overload_refused_p99", "ms", 50, 50),
    Row("overload_growth", "MB", 20, 20),
    Row("routing_1_queue", "us", 5, 2),
    Row("routing_20_queues", "us", 5, 2),
)
ROUTING_NODES = 1_000


class Grid:
    """A scheduler and echo nodes of one data directory."""

    def __init__(self, processes: Processes, data_dir: Path, env: dict[str, str]) -> None:
        self.processes = processes
        self.data_dir = data_dir
        self.env = {**UNBOUNDED, **env}
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        """Start it and wait until it answers."""
        command = [BIN / "lamagrid", "scheduler", "--data-dir", self.data_dir]
        self.scheduler = self.processes.start("scheduler", command, self.env)
        self.client().survey(timeout=60)
        return self.scheduler

    def client(self) -> TaskClient:
        """A client of its own connection."""
        return TaskClient(data_dir=self.data_dir)

    def start_node(self, name: str, slots: int) -> subprocess.Popen[bytes]:
        """Start an echo node and wait until it is connected."""
        env = {**self.env, "LAMAGRID__NODE__SLOTS": str(slots)}
        flags = ["--backend", "echo", "--model", "lama", "--name", name, "--data-dir", self.data_dir]
        node = self.processes.start(name, [PROGRAMS / "lamagrid-node", *flags], env)
        client = self.client()
        self.processes.wait_until(lambda: name in _ready(client), 30, f"node {name}", [node])
        return node

    def load(self, *words: object) -> dict[str, Any]:
        """Run the client in Rust."""
        command = [PROGRAMS / "examples" / "load", self.data_dir, *map(str, words)]
        told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        answer: dict[str, Any] = json.loads(told.stdout)
        return answer

    def memory(self) -> float:
        """The scheduler's resident bytes."""
        return float(procfs.rss_bytes(self.scheduler.pid))


@contextlib.contextmanager
def grid(**env: str) -> Iterator[Grid]:
    """A grid that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="lamagrid-bench-") as scratch:
        processes = Processes(LOGS)
        try:
            yield Grid(processes, Path(scratch) / "data", env)
        finally:
            processes.close()


def throughput(quick: bool) -> dict[str, float]:
    """Durable no-op tasks from submit to outcome, 16 slots."""
    tasks = 3_000 if quick else 30_000
    with grid() as one:
        one.start_node("echo", 16)
        one.load("run", 1_000, 64, 200, "process", 0)
        rates = {
            d: [one.load("run", tasks, 64, 200, d, 0)["per_second"] for _ in range(3)]
            for d in ("process", "full")
        }
        alone = one.load("run", tasks // 10, 1, 200, "process", 0)
    return {
        "tasks_process": quantile(rates["process"], 0.5),
        "tasks_full": quantile(rates["full"], 0.5),
        "one_in_flight_p50": alone["p50"],
    }


def restart(quick: bool) -> dict[str, float]:
    """From a node's death to the next attempt of its task on another one."""
    times = []
    with grid() as one:
        nodes = {name: one.start_node(name, 1) for name in ("a", "b")}
        client = one.client()
        image, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
        for _ in range(3 if quick else 30):
            one.processes.wait_until(lambda: len(_ready(client)) == 2, 30, "both nodes")
            task = client.submit(image, mask, echo_ms=1_000)
            node = one.processes.wait_until(lambda: _running_node(client), 10, "the task to run")
            began = time.monotonic()
            os.kill(node["info"]["pid"], 9)
            while (told := task.status())["counters"]["attempts"] < 2:
                if time.monotonic() > began + 60:
                    raise AssertionError(f"no second attempt: {told}")
                time.sleep(0.002)
            times.append(time.monotonic() - began)
            task.wait(60)
            # A new supervisor: the old one would pause longer and longer before it starts its worker again.
            name = node["info"]["name"]
            one.processes.stop(nodes[name])
            nodes[name] = one.start_node(name, 1)
    return {"restart_p99": quantile(times, 0.99)}


def _ready(client: TaskClient) -> set[str]:
    return {node["info"]["name"] for node in client.survey()["nodes"] if node["state"] == "ready"}


def _running_node(client: TaskClient) -> dict[str, Any] | None:
    return next((node for node in client.survey()["nodes"] if node["running"]), None)


def cancel(quick: bool) -> dict[str, float]:
    """From a cancel to the end of a task that waited for the slot."""
    with grid(LAMAGRID__SCHEDULER__POLL_MS="1000") as one:
        one.start_node("echo", 1)
        return {"cancel_p99": one.load("cancel", 20 if quick else 300)["p99"]}


def queue(quick: bool) -> dict[str, float]:
    """Memory of 100,000 queued tasks, and a start with them."""
    tasks = 5_000 if quick else 100_000
    with grid() as one:
        one.load("queue", 200, 200, "process")
        before = one.memory()
        one.load("queue", tasks, 200, "process")
        per_task = (one.memory() - before) / tasks / 1024
        one.scheduler.kill()
        one.scheduler.wait()
        began = time.monotonic()
        one.start_scheduler()
        seconds = time.monotonic() - began
        waiting = {q["queue"]: q["waiting"] for q in lamagrid_json("queue", "show", data_dir=one.data_dir)}
        assert waiting["gpu"] == tasks + 200, waiting
    return {"start_100k": seconds, "memory_per_task": per_task}


def overload(quick: bool) -> dict[str, float]:
    """Ten times what four slots can do, for a minute."""
    seconds, echo_ms, slots = (8, 50, 4) if quick else (60, 50, 4)
    capacity = slots * 1_000 / echo_ms
    with grid(LAMAGRID__QUEUES__GPU__MAX_TASKS="100") as one:
        one.start_node("echo", slots)
        one.load("overload", int(capacity * 10), 2 if quick else 10, echo_ms)
        before = one.memory()
        told = one.load("overload", int(capacity * 10), seconds, echo_ms)
        growth = (one.memory() - before) / 1e6
        assert told["accepted"] >= capacity * seconds * 0.8, told
        assert told["refused"] >= capacity * seconds * 5, told
    return {"overload_refused_p99": told["p99"], "overload_growth": growth}


def routing(_: bool) -> dict[str, float]:
    """The time in which a new task gets its queue and its node, of a thousand."""
    values = {}
    print(f"\n{'queues':>6} {'nodes':>6} {'need, queue':>12} {'busy':>11} {'idle':>11} {'next task':>10}")
    for queues, name in ((1, "routing_1_queue"), (20, "routing_20_queues")):
        command = [PROGRAMS / "examples" / "routing", str(queues), str(ROUTING_NODES)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        print(
            f"{queues:>6} {ROUTING_NODES:>6} {told['queue_ns']:>9} ns {told['busy_ns']:>8} ns "
            f"{told['idle_ns']:>8} ns {told['next_ns']:>7} ns"
        )
        values[name] = (told["queue_ns"] + told["idle_ns"]) / 1e3
    return values


PARTS: tuple[tuple[tuple[str, ...], Callable[[bool], dict[str, float]]], ...] = (
    (("tasks_process", "tasks_full", "one_in_flight_p50"), throughput),
    (("restart_p99",), restart),
    (("cancel_p99",), cancel),
    (("start_100k", "memory_per_task"), queue),
    (("overload_refused_p99", "overload_growth"), overload),
    (("routing_1_queue", "routing_20_queues"), routing),
)


def main() -> int:
    """Measure, show, write. Returns 1 if a floor was missed."""
    parser = argparse.ArgumentParser(prog="bench/tasks.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only parts with rows that begin so")
    parser.add_argument("--quick", action="store_true", help="few repetitions: does it work at all")
    options = parser.parse_args()
    print("machine: " + ", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    values: dict[str, float] = {}
    for names, part in PARTS:
        if not options.rows or any(name.startswith(tuple(options.rows)) for name in names):
            began = time.monotonic()
            values |= part(options.quick)
            print(f"{part.__name__}: {time.monotonic() - began:.0f} s", flush=True)
    return show(ROWS, values, OUT)


if __name__ == "__main__":
    sys.exit(main())
