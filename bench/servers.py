"""Stock Lama Cleaner and the grid side by side, each as its user starts it, with one network for both."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grids.server import BIN, GridServer, Server, free_port, start_grid
from lamagrid import TaskClient
from stock.processes import Processes

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "target" / "bench"


@dataclass(frozen=True)
class Running:
    """One server: where it listens, and the process that serves the page."""

    name: str
    port: int
    pid: int


@dataclass(frozen=True)
class Pair:
    """Both servers, and a client of the grid's scheduler."""

    stock: Running
    grid: Running
    client: TaskClient

    def stages(self, task: str) -> dict[str, float]:
        """Milliseconds per stage of a finished task, by its name."""
        told = self.client.task(task).status().get("stages", {})
        return {name.removesuffix("_ms"): float(value) for name, value in told.items()}


@contextlib.contextmanager
def pair(network: Path, nodes: int = 1) -> Iterator[Pair]:
    """Start both, wait until they answer, and end them.

    Both find the network as Lama Cleaner's users configure it, by ``LAMA_MODEL_URL``. The grid's torch nodes
    are those of its launcher; its node for cv2, which no request here needs, is left out.

    Raises:
        AssertionError: One did not start; the text ends with the logs.
    """
    env = {"LAMA_MODEL_URL": str(network)}
    flags = ["--model", "lama", "--device", "cpu"]
    with tempfile.TemporaryDirectory(prefix="lamagrid-bench-") as scratch, contextlib.ExitStack() as stack:
        processes = Processes(LOGS)
        stack.callback(processes.close)
        port = free_port()
        command = [str(BIN / "lama-cleaner"), *flags, "--port", str(port)]
        stock = Server(processes, processes.start("stock", command, env), port)
        data_dir = Path(scratch) / "data"
        grid_flags = [*flags, "--grid-nodes", str(nodes), "--grid-python-models", ""]
        grid = start_grid(processes, data_dir, *grid_flags, env=env, name="grid")
        for server in (stock, grid):
            server.wait_ready()
        yield Pair(_running("stock", stock), _running("grid", grid), TaskClient(data_dir=data_dir))


def _running(name: str, server: Server | GridServer) -> Running:
    return Running(name, int(server.base.rpartition(":")[2]), server.process.pid)
