"""A thousand nodes and two hundred clients on one scheduler: what each costs, and whether a long queue does.

usage: bench/scale.py [--quick]

The nodes are real sessions in one process, without a model. Prints a table by queued tasks, then each row's
floor and aim, and writes ``target/bench-herd.json``. Ends with 1 if a floor is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

# The tests' code that starts and asks servers is used here, too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from grids.procfs import TICKS_PER_S
from machine import machine
from tasks import BIN, PROGRAMS, Grid, grid
from thresholds import Row, show

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench-herd.json"
CLIENTS = 200
QUEUED = (1_000, 10_000, 100_000, 1_000_000)
# Tasks that nodes give back when the queue is paused come on top of the longest queue.
ROOM = {
    "LAMAGRID__QUEUES__GPU__MAX_TASKS": "2000000",
    "LAMAGRID__LIMITS__MAX_CLIENT_TASKS": "2000000",
    "LAMAGRID__LIMITS__MAX_OWNER_TASKS": "2000000",
}
# This number of each length is submitted last and begun first, and measured.
SAMPLE = 10_000
IDLE_S = 10.0
DISPATCH_LIMIT_S = 120.0

ROWS = (
    Row("idle_node_cpu", "ms/s", 1.0, 0.3),
    Row("idle_node_memory", "KiB", 256, 64),
    Row("dispatched", "1/s", 2_000, 5_000, more=True),
    Row("submit_cpu_longest_of_shortest", "", 2.0, 1.2),
    Row("dispatch_cpu_longest_of_shortest", "", 2.0, 1.2),
    Row("idle_cpu_longest_of_shortest", "", 2.0, 1.2),
)


def cpu_s(pid: int) -> float:
    """The processor time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def admin(one: Grid, *words: str) -> None:
    """Run ``lamagrid``."""
    command = [BIN / "lamagrid", *words, "--data-dir", one.data_dir]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


class Sample:
    """One line of the table."""

    def __init__(self, one: Grid, queued: int, before: int) -> None:
        pid = one.scheduler.pid
        sample = min(SAMPLE, queued)
        if queued - sample > before:
            one.load("queue", queued - sample - before, 200, "process", CLIENTS)
        began = cpu_s(pid)
        self.queued = queued
        self.submitted = one.load("queue", sample, 200, "process", CLIENTS)["per_second"]
        self.submit_us = (cpu_s(pid) - began) / sample * 1e6
        began = cpu_s(pid)
        time.sleep(IDLE_S)  # nothing happens: what is measured
        self.idle_ms = (cpu_s(pid) - began) / IDLE_S * 1e3
        client = one.client()
        wanted = queued - sample

        def waiting() -> int:
            return sum(queue["waiting"] for queue in client.survey(timeout=60)["queues"])

        began, started = cpu_s(pid), time.monotonic()
        admin(one, "queue", "resume", "gpu")
        while (left := waiting()) > wanted:
            if time.monotonic() > started + DISPATCH_LIMIT_S:
                raise AssertionError(f"{left - wanted} of {sample} tasks still wait to be dispatched")
            time.sleep(0.05)
        done, took = queued - left, time.monotonic() - started
        self.dispatch_us = (cpu_s(pid) - began) / done * 1e6
        self.dispatched = done / took
        admin(one, "queue", "pause", "gpu")
        self.left = waiting()


def main() -> int:
    """Measure, show, write. Returns 1 if a floor was missed."""
    parser = argparse.ArgumentParser(prog="bench/scale.py", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a hundred nodes and short queues")
    quick = parser.parse_args().quick
    print("machine: " + ", ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    nodes = 100 if quick else 1_000
    with grid(**ROOM) as one:
        pid = one.scheduler.pid
        time.sleep(2)
        alone, memory = cpu_s(pid), one.memory()
        time.sleep(IDLE_S)
        alone = (cpu_s(pid) - alone) / IDLE_S
        host = subprocess.Popen(
            [PROGRAMS / "examples" / "scale", one.data_dir, str(nodes), "lama"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        try:
            client = one.client()
            one.processes.wait_until(
                lambda: len(client.survey(timeout=60)["nodes"]) == nodes, 120, "all nodes", []
            )
            time.sleep(2)
            began = cpu_s(pid)
            time.sleep(IDLE_S)
            idle = (cpu_s(pid) - began) / IDLE_S - alone
            values = {
                "idle_node_cpu": idle * 1e3 / nodes,
                "idle_node_memory": (one.memory() - memory) / 1024 / nodes,
            }
            admin(one, "queue", "pause", "gpu")
            print(f"\n{nodes} nodes, {CLIENTS} clients\n")
            print(
                f"{'queued':>9} {'submitted':>11} {'dispatched':>11} {'CPU, us per task':>21} {'idle CPU':>9}"
            )
            print(f"{'':>9} {'1/s':>11} {'1/s':>11} {'submit':>10} {'dispatch':>10} {'ms/s':>9}")
            samples: list[Sample] = []
            for queued in QUEUED[: 2 if quick else None]:
                samples.append(Sample(one, queued, samples[-1].left if samples else 0))
                last = samples[-1]
                print(
                    f"{last.queued:>9} {last.submitted:>11.0f} {last.dispatched:>11.0f} "
                    f"{last.submit_us:>10.0f} {last.dispatch_us:>10.0f} {last.idle_ms:>9.1f}",
                    flush=True,
                )
        finally:
            host.communicate(b"", timeout=60)
    first, last = samples[0], samples[-1]
    values |= {
        "dispatched": min(sample.dispatched for sample in samples),
        "submit_cpu_longest_of_shortest": last.submit_us / first.submit_us,
        "dispatch_cpu_longest_of_shortest": last.dispatch_us / first.dispatch_us,
        "idle_cpu_longest_of_shortest": last.idle_ms / first.idle_ms,
    }
    print()
    return show(ROWS, values, OUT)


if __name__ == "__main__":
    sys.exit(main())
