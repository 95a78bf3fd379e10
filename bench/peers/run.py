"""The same kills against LamaGrid, Celery and Dramatiq on Redis: what is lost, and how soon it goes on.

usage: bench/peers/run.py [--kills N] [--seed N] [NAME...]      all, or some of lamagrid, celery, dramatiq

Prints a table and writes ``target/bench-peers.json``. Needs redis-server; Celery and Dramatiq are installed
into ``target/peers``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import tomllib

# The code that drives grids for the tests and measures tasks is used here, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from kill_workload import NODES, SETTLE_S, SLOTS, Record, Run, System, run_kills

from faults.grid import SETTINGS, FaultGrid
from grids.server import lamagrid_json
from lamagrid.errors import LamaGridError
from machine import machine, versions
from stats import figure, quantile
from stock.processes import Processes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = ("lamagrid", "celery", "dramatiq")
ENVIRONMENT = ROOT / "target" / "peers"
OUT = ROOT / "target" / "bench-peers.json"
KEPT = ("SCHEDULER__CRASH_LIMIT", "SCHEDULER__NO_NODE_WAIT_MS")
"""Of the fault tests' settings; the others are shorter than the product's, which are measured here."""


def product_settings() -> dict[str, str]:
    """The product's own values of what the fault tests shorten."""
    default = tomllib.loads((ROOT / "src" / "config" / "src" / "default.toml").read_text("utf-8"))

    def value(key: str) -> str:
        section, name = key.lower().split("__")
        return str(default[section][name])

    return {key: value(key) for key in SETTINGS if key not in KEPT}


class LamaGrid(System):
    """Echo nodes: they do nothing for as long as they are told."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        settings = product_settings()
        self.grid = FaultGrid(processes, folder, nodes=NODES, slots=SLOTS, settings=settings)
        self.client = self.grid.client()

    def call(self, task: str, ms: int, record: Record, stop: threading.Event) -> None:
        image, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
        handle = self.client.submit(image, mask, task_id=task, echo_ms=ms, durability="process", timeout=60)
        record.accepted.add(task)
        while not stop.is_set():
            try:
                handle.outcome(5)
            except LamaGridError as error:
                if error.kind in ("disconnected", "deadline_exceeded"):
                    continue  # not yet
            record.answered.add(task)
            return

    def kill(self, node: str) -> None:
        self.grid.kill_node(node)

    def collect(self, record: Record) -> None:
        record.outcomes.update(self.grid.finished())
        for task in record.accepted:
            status = self.client.task(task).status()
            if status["counters"]["attempts"] == 1:
                record.begun.append(Run(task, status["node"], status["created_wall_ms"] / 1_000))
                continue
            told = lamagrid_json("task", "show", task, data_dir=self.grid.data_dir)
            starts = [event for event in told["history"] if event["event"] == "assigned"]
            record.begun += [
                Run(task, event["node"], datetime.fromisoformat(event["at"]).timestamp()) for event in starts
            ]


def environment() -> Path:
    """The Python that has Celery and Dramatiq; made at the first call."""
    python = ENVIRONMENT / "bin" / "python"
    wanted = (HERE / "requirements.txt").read_text("utf-8")
    marker = ENVIRONMENT / "requirements.txt"
    if not marker.exists() or marker.read_text("utf-8") != wanted:
        print("installing Celery and Dramatiq into target/peers", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        command = [python, "-m", "pip", "install", "-q", "--no-deps", "-r", HERE / "requirements.txt"]
        subprocess.run(command, check=True)
        marker.write_text(wanted, "utf-8")
    return python


def run_lamagrid(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """The workload with kills against this project."""
    processes = Processes(folder / "logs")
    try:
        record = run_kills(LamaGrid(processes, folder), kills, seed)
    finally:
        processes.close()
    return {
        "accepted": sorted(record.accepted),
        "answered": sorted(record.answered),
        "outcomes": record.outcomes,
        "again": record.again(),
        "restarts": record.restarts(),
    }


def run_peer(name: str, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """The workload with kills against another system, in its environment."""
    command = [environment(), HERE / "peer.py", name, str(kills), str(seed), folder]
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3_600, check=True, env=env)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def figures(answer: dict[str, Any]) -> dict[str, float]:
    """The columns of the table."""
    outcomes = Counter(answer["outcomes"])
    restarts = answer["restarts"]
    shown: dict[str, float] = {
        "accepted": len(answer["accepted"]),
        f"not done after {SETTLE_S} s": sum(task not in outcomes for task in answer["accepted"]),
        "done and never told": sum(
            task in outcomes for task in set(answer["accepted"]) - set(answer["answered"])
        ),
        "done twice": sum(count > 1 for count in outcomes.values()),
        "started again": answer["again"],
    }
    if restarts:
        shown |= {f"restart p{q * 100:.0f}, s": quantile(restarts, q) for q in (0.5, 0.99)}
        shown["restart max, s"] = max(restarts)
    return shown


def table(columns: dict[str, dict[str, float]]) -> str:
    """Side by side."""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    lines = [" " * 22 + "".join(f"{name:>12}" for name in columns)]
    for row in rows:
        cells = (figure(column[row]) if row in column else "-" for column in columns.values())
        lines.append(f"{row:22}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    """Run, show, write."""
    parser = argparse.ArgumentParser(prog="bench/peers/run.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--kills", type=int, default=40, help="how many nodes are killed (40)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the nodes (1)")
    options = parser.parse_args()
    names = options.names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no such system: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if set(names) != {"lamagrid"} and shutil.which("redis-server") is None:
        parser.error("redis-server is not there; on Debian: apt-get install redis-server")
    print("machine: " + ", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    columns = {}
    for name in names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch)
            if name == "lamagrid":
                answer = run_lamagrid(options.kills, options.seed, folder)
            else:
                answer = run_peer(name, options.kills, options.seed, folder)
        columns[name] = figures(answer)
        print(f"{name}: {options.kills} kills, {time.monotonic() - began:.0f} s", flush=True)
    print("\n" + table(columns))
    OUT.write_text(
        json.dumps({"kills": options.kills, "versions": versions(), **columns}, indent=1) + "\n", "utf-8"
    )
    print(f"written: {OUT}")
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
