"""Runs the workload with kills against Celery or Dramatiq, in their own environment; prints one line of JSON.

usage: peer.py celery|dramatiq KILLS SEED FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

# The tests' code that starts and finds processes is used here, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import redis
from kill_workload import NODES, SLOTS, Record, Run, System, run_kills

from grids import procfs
from stock.processes import Processes

HERE = Path(__file__).resolve().parent
POLL_S = 0.05
LEASE_S = 20
"""LamaGrid's; each system's own default is longer."""
COMMANDS = {
    "celery": ("celery", "-A", "app_celery", "worker", "--loglevel", "warning", "-c", str(SLOTS)),
    "dramatiq": ("dramatiq", "app_dramatiq", "--processes", "1", "--threads", str(SLOTS)),
}


class Peer(System):
    """Celery or Dramatiq, with a Redis of its own on a Unix socket."""

    def __init__(self, name: str, processes: Processes, folder: Path) -> None:
        self.name = name
        self.processes = processes
        socket = folder / "redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", socket, "--dir", folder]
        self.redis_process = processes.start("redis", [*command, "--appendonly", "yes"])
        notes = f"unix://{socket}"
        self.notes = redis.Redis.from_url(notes)
        processes.wait_until(self._answers, 20, "redis", [self.redis_process])
        # Celery calls a Unix socket by another scheme.
        url = f"redis+socket://{socket}" if name == "celery" else notes
        os.environ |= {
            "PEERS_REDIS": url,
            "PEERS_NOTES": notes,
            "PEERS_LEASE_S": str(LEASE_S),
            "PEERS_NODE": "",
        }
        self.nodes = {f"n{index}": self._start(f"n{index}") for index in range(NODES)}

    def _answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.notes.ping())
        return False

    def _start(self, node: str) -> subprocess.Popen[bytes]:
        program, *words = COMMANDS[self.name]
        if self.name == "celery":
            words += ["-n", f"{node}-{time.monotonic_ns()}@host"]
        env = {"PEERS_NODE": node, "PYTHONPATH": str(HERE)}
        return self.processes.start(node, [Path(sys.executable).parent / program, *words], env, HERE)

    def call(self, task: str, ms: int, record: Record, stop: threading.Event) -> None:
        done = self._submit(task, ms)
        record.accepted.add(task)
        while not stop.is_set():
            if done():
                record.answered.add(task)
                return
            time.sleep(POLL_S)

    def _submit(self, task: str, ms: int) -> Callable[[], bool]:
        if self.name == "celery":
            import app_celery

            ready: Callable[[], bool] = app_celery.work.delay(task, ms).ready
            return ready
        import app_dramatiq
        from dramatiq.results import ResultMissing

        message = app_dramatiq.work.send(task, ms)

        def done() -> bool:
            try:
                message.get_result(block=False)
            except ResultMissing:
                return False
            return True

        return done

    def kill(self, node: str) -> None:
        pids = [self.nodes[node].pid, *procfs.descendants(self.nodes[node].pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes[node].wait()
        self.nodes[node] = self._start(node)

    def collect(self, record: Record) -> None:
        for line in self.notes.lrange("begun", 0, -1):
            task, node, at = line.decode().split()
            record.begun.append(Run(task, node, float(at)))
        record.outcomes.update(line.decode().split()[0] for line in self.notes.lrange("ended", 0, -1))


def main(name: str, kills: str, seed: str, folder: str) -> int:
    """Run it."""
    processes = Processes(Path(folder) / "logs")
    try:
        record = run_kills(Peer(name, processes, Path(folder)), int(kills), int(seed))
    finally:
        processes.close()
    answer = {
        "accepted": sorted(record.accepted),
        "answered": sorted(record.answered),
        "outcomes": record.outcomes,
        "again": record.again(),
        "restarts": record.restarts(),
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
