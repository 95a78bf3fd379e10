"""The server as a child process, the grid's or the unchanged one, and requests to it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from stock.forms import stock_form
from stock.processes import Processes

BIN = Path(sys.executable).parent
PROGRAMS = Path(__file__).parents[2] / "target" / "release"
"""The programs in Rust, as built here."""
READY_S = 90.0
ANSWER_S = 110.0

# Plain Original, so that a picture reaches the model as it is.
ORIGINAL = {"hdStrategy": "Original"}


class Server:
    """One running server.

    Attributes:
        process: The process that serves the page.
        base: Its address.
    """

    def __init__(self, processes: Processes, process: subprocess.Popen[bytes], port: int) -> None:
        self._processes = processes
        self.process = process
        self.base = f"http://127.0.0.1:{port}"
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy of the environment between us

    @property
    def log(self) -> str:
        """Its output so far."""
        return self._processes.log(self.process)

    def wait_ready(self) -> Server:
        """Wait until it answers."""
        self._processes.wait_until(
            lambda: self.get("/model").status_code == 200,
            READY_S,
            f"an answer of {self.base}",
            [self.process],
        )
        return self

    def get(self, path: str) -> requests.Response:
        """GET."""
        return self._session.get(self.base + path, timeout=30)

    def post(self, path: str, **kwargs: Any) -> requests.Response:
        """POST; a connection of its own, so that threads may share this."""
        with requests.Session() as session:
            session.trust_env = False
            return session.post(self.base + path, timeout=ANSWER_S, **kwargs)

    def inpaint(
        self,
        image: bytes | None,
        mask: bytes | None,
        form: Mapping[str, str] | None = None,
        **overrides: object,
    ) -> requests.Response:
        """POST /inpaint as the page does; a part that is None is left out."""
        parts = {"image": ("image", image), "mask": ("mask", mask)}
        files = {name: part for name, part in parts.items() if part[1] is not None}
        data = stock_form(**overrides) if form is None else dict(form)
        return self.post("/inpaint", files=files or {"nothing": ("x", b"")}, data=data)


class GridServer(Server):
    """``lama-cleaner-grid`` with what it started."""

    def __init__(
        self, processes: Processes, process: subprocess.Popen[bytes], port: int, data_dir: Path
    ) -> None:
        super().__init__(processes, process, port)
        self.data_dir = data_dir

    @property
    def scheduler_pid(self) -> int:
        """The scheduler that was started last, as the launcher says."""
        return int(re.findall(r"^scheduler (?:ready|started again) \(pid (\d+)\)", self.log, re.M)[-1])

    def nodes(self) -> list[dict[str, Any]]:
        """The connected nodes, as the scheduler sees them."""
        nodes: list[dict[str, Any]] = lamagrid_json("node", "list", data_dir=self.data_dir)
        return nodes

    def queues(self) -> dict[str, dict[str, int]]:
        """How many tasks wait and run, by queue."""
        shown = lamagrid_json("queue", "show", data_dir=self.data_dir)
        return {queue["queue"]: queue for queue in shown}

    def task(self, answer: requests.Response) -> dict[str, Any]:
        """The scheduler's record of the task behind an answer."""
        task: dict[str, Any] = lamagrid_json(
            "task", "show", answer.headers["X-Lamagrid-Task"], data_dir=self.data_dir
        )
        return task


def lamagrid_json(*words: str, data_dir: Path) -> Any:
    """The JSON that a verb of ``lamagrid`` prints."""
    done = subprocess.run(
        [BIN / "lamagrid", *words, "--output", "json", "--data-dir", data_dir],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(f"lamagrid {' '.join(words)}: {done.stderr.strip()}")  # as if nothing listened yet
    return json.loads(done.stdout)


def start_grid(
    processes: Processes,
    data_dir: Path,
    *flags: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    name: str = "server",
    cwd: Path | None = None,
) -> GridServer:
    """Start ``lama-cleaner-grid`` on a free port; it may not be ready yet."""
    port = free_port()
    where = () if "--grid-scheduler" in flags else ("--grid-data-dir", data_dir)
    command: Sequence[str | os.PathLike[str]] = [
        BIN / "lama-cleaner-grid",
        "--port",
        str(port),
        *where,
        *flags,
    ]
    return GridServer(processes, processes.start(name, command, env, cwd), port, data_dir)


def start_stock(
    processes: Processes,
    *flags: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Server:
    """Start the unchanged server on a free port."""
    port = free_port()
    command = [BIN / "lama-cleaner", "--device", "cpu", "--port", str(port), *flags]
    return Server(processes, processes.start("stock", command, env, cwd), port)


def is_one_line(body: bytes) -> bool:
    """Whether an answer is what stands for upstream's page of HTML (docs/compatibility.md)."""
    return 0 < len(body) <= 500 and b"<" not in body and b"\n" not in body


def free_port() -> int:
    """A loopback port that nothing listens on now.

    A server that is started with it may need seconds before it listens. So the kernel gives none of these to
    outgoing connections, and each process takes them from a range of its own.
    """
    for _ in range(_PORTS):
        port = next(_ports)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise OSError("no free port")


_PORTS = 100
_FIRST_PORT = 10_000 + os.getpid() % 200 * _PORTS
_ports = itertools.cycle(range(_FIRST_PORT, _FIRST_PORT + _PORTS))
