"""Models that do not all fit a node's memory: loads, waits and resident memory for mixed tasks.

usage: bench/models.py [--tasks N] [--mib N] [--limit-mib N]

Three TorchScript networks on one Rust node, and tasks for them in a random order, the same in each run. First
one at a time, so that its wait shows each swap; then 20 at a time, in the order that the scheduler chooses.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# The tests' code that starts and asks servers is used here, too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from grids.pictures import hole, plain
from grids.procfs import rss_bytes
from lamagrid import TaskClient
from models.conftest import torch_grid
from stock.models import heavy_lama

MIB = 1 << 20
NAMES = ("one", "two", "three")
IMAGE, MASK = plain(64, 80), hole(64, 80, 10, 10, 30)
SEED = 3
READY_S = 120.0
ANSWER_S = 600.0


def node_pid(client: TaskClient) -> int:
    """The process of the only node, once it offers all models."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        nodes = client.survey()["nodes"]
        if nodes and len(nodes[0]["info"]["models"]) == len(NAMES):
            return nodes[0]["info"]["pid"]
        time.sleep(0.1)
    raise TimeoutError("the node does not offer all models")


def measure(client: TaskClient, pid: int, order: Sequence[str], at_once: int) -> str:
    """Run the tasks, some at once, and describe what they cost."""
    began, loads, times, highest = time.monotonic(), 0, [], 0
    for first in range(0, len(order), at_once):
        submitted = time.monotonic()
        tasks = [client.submit(IMAGE, MASK, model=name) for name in order[first : first + at_once]]
        for task in tasks:
            task.wait(ANSWER_S)
            times.append(time.monotonic() - submitted)
            highest = max(highest, rss_bytes(pid))
        loads += sum(task.status()["stages"]["load_ms"] > 0 for task in tasks)
    p50, p99 = np.percentile(times, [50, 99]) * 1_000
    return (
        f"{len(order)} tasks, {at_once} at once: {loads} loads, p50 {p50:.0f} ms, p99 {p99:.0f} ms, "
        f"{time.monotonic() - began:.1f} s, resident at most {highest // MIB} MiB"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, usage="bench/models.py [--tasks N] [--mib N]")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--mib", type=int, default=300, help="size of each network")
    parser.add_argument("--limit-mib", type=int, default=800, help="memory for models")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        sections = [f"[node]\nmemory_mib = {options.limit_mib}"]
        for level, name in enumerate(NAMES, 1):
            path = heavy_lama(folder / f"{name}.pt", options.mib, level)
            sections.append(f'[models.{name}]\npath = "{path}"')
        configuration = folder / "config.toml"
        configuration.write_text("\n".join(sections))
        with torch_grid(folder / "grid", NAMES, {"LAMAGRID_CONFIG": str(configuration)}) as client:
            pid = node_pid(client)
            order = [str(name) for name in np.random.default_rng(SEED).choice(NAMES, options.tasks)]
            print(f"three networks of {options.mib} MiB, {options.limit_mib} MiB for models")
            print(measure(client, pid, order, 1), flush=True)
            print(measure(client, pid, order, 20), flush=True)


if __name__ == "__main__":
    main()
