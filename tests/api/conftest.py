"""A scheduler with an echo node, and requests to its HTTP API."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from grids.pictures import encoded, hole, plain
from grids.server import BIN, PROGRAMS, free_port
from stock.processes import Processes

READY_S = 30.0
SOON_S = 10.0
IMAGE = encoded(plain(40, 60))
MASK = encoded(hole(40, 60, 10, 10, 10))
FILES = {"image": ("image.png", IMAGE), "mask": ("mask.png", MASK)}
MS = "echo_ms"
"""How long the echo node works on a task."""


class Grid:
    """One scheduler with its API.

    Attributes:
        data_dir: The scheduler's.
        address: Where the API listens.
        scheduler: The process.
    """

    def __init__(self, processes: Processes, folder: Path, *settings: str, nodes: int = 1) -> None:
        self.processes = processes
        self.data_dir = folder / "data"
        self.address = ("127.0.0.1", free_port())
        given = (f"http.listen={self.address[0]}:{self.address[1]}", *settings)
        words = [word for setting in given for word in ("--set", setting)]
        command = [BIN / "lamagrid", "scheduler", "--data-dir", self.data_dir]
        self.scheduler = processes.start("scheduler", [*command, *words])
        self.node = [
            PROGRAMS / "lamagrid-node",
            "--data-dir",
            self.data_dir,
            "--backend",
            "echo",
            "--model",
            "lama",
        ]
        for number in range(nodes):
            processes.start(f"node-{number}", [*self.node, "--name", f"echo-{number}"])
        self._clients: list[httpx.Client] = []
        self.http = self.client()
        self.wait(lambda: len(self.http.get("/nodes").json().get("nodes", ())) == nodes, READY_S)

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        """Sends requests, with an API key or without one."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        base = f"http://{self.address[0]}:{self.address[1]}/api/v1"
        made = httpx.Client(base_url=base, headers=headers, timeout=60, trust_env=False, **options)
        self._clients.append(made)
        return made

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            client.close()

    def key(self, name: str, *flags: str) -> str:
        """Create an API key; its token."""
        token: str = self.lamagrid("key", "create", name, *flags)["token"]
        self.wait(lambda: self.client(token).get("/queues").status_code == 200, SOON_S)
        return token

    def lamagrid(self, *words: str) -> Any:
        """The JSON that a verb of ``lamagrid`` prints."""
        command = [BIN / "lamagrid", *words, "--output", "json", "--data-dir", self.data_dir]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return json.loads(done.stdout)

    def wait(self, predicate: Callable[[], object], seconds: float = SOON_S) -> None:
        """Wait until something is so."""

        def is_so() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return bool(predicate())
            return False

        self.processes.wait_until(is_so, seconds, "the condition", [self.scheduler])

    def connect(self) -> socket.socket:
        """A bare connection."""
        connection = socket.create_connection(self.address, SOON_S)
        connection.settimeout(SOON_S)
        return connection


def submit(
    client: httpx.Client,
    fields: Mapping[str, object] | None = None,
    files: Mapping[str, Any] | None = None,
    **headers: str,
) -> httpx.Response:
    """POST /tasks, as a form."""
    data = {name: str(value) for name, value in (fields or {}).items()}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/tasks", data=data, files=FILES if files is None else files, headers=names)


def is_problem(response: httpx.Response, status: int, *words: str) -> bool:
    """Whether a response is the problem document that is expected; prints it if not."""
    body = response.json() if response.content else {}
    is_one = (
        response.status_code == status
        and response.headers["content-type"] == "application/problem+json"
        and body["status"] == status
        and body["type"].startswith("urn:lamagrid:problem:")
        and {"title", "detail", "kind"} <= set(body)
        and all(word in body["detail"] for word in words)
        and (status not in (429, 503) or int(response.headers["retry-after"]) >= 1)
    )
    if not is_one:
        print(response.status_code, dict(response.headers), body)
    return is_one


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One for all tests that leave it standing: two slots."""
    folder = tmp_path_factory.mktemp("api")
    processes = Processes(folder / "logs")
    try:
        made = Grid(processes, folder, nodes=2)
        yield made
        made.close()
    finally:
        processes.close()


@pytest.fixture
def http(grid: Grid) -> Iterator[httpx.Client]:
    """A program of this host."""
    with grid.client() as client:
        yield client
