"""A scheduler on one host, nodes and web servers on others."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from grids.server import BIN, PROGRAMS, Server
from lamagrid import TaskClient
from lamagrid.client import Task
from net.hosts import Host, Network
from stock.processes import Processes

PORT = 8872
WEB_PORT = 8080
SOON_S = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuts", type=int, default=5, help="how often each kind of cut is made; make chaos: 20")


def made_network() -> Iterator[Network]:
    """A network of the test's own; without it the test is skipped, which under CI=true is a failure."""
    try:
        made = Network()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here (they need root and iproute2): {error}")
    try:
        yield made
    finally:
        made.close()


network = pytest.fixture(made_network, name="network")


class Grid:
    """A scheduler behind its gate, and the nodes that join it.

    Attributes:
        client: On the scheduler's host; its sockets are files.
    """

    def __init__(self, processes: Processes, network: Network, folder: Path) -> None:
        self.processes = processes
        self.folder = folder
        self.data_dir = folder / "data"
        self.network = network
        self.host = network.host("scheduler")
        self.certs("init")
        self.scheduler = self.start_scheduler()
        self.client = TaskClient(self.data_dir)
        processes.wait_until(
            lambda: self.client.survey() is not None, SOON_S, "the scheduler", [self.scheduler]
        )

    def certs(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run ``lamagrid certs``."""
        command = [BIN / "lamagrid", "certs", *words, "--data-dir", self.data_dir]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)

    def start_scheduler(
        self, port: int = PORT, flags: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        listen = ["--set", f"gate.listen={self.host.address}:{port}", "--set", "http.listen="]
        command = [BIN / "lamagrid", "scheduler", "--data-dir", self.data_dir, *listen, *flags]
        return self.host.start(self.processes, command, env)

    def bundle(self, name: str, *flags: str, role: str = "node", scheduler: str | None = None) -> Path:
        """The one file that a host needs; ``scheduler`` is where it dials, if not the scheduler itself."""
        self.certs("issue", "--role", role, "--name", name, *flags)
        path = self.folder / f"{name}.bundle"
        self.certs("bundle", name, "--scheduler", scheduler or f"{self.host.address}:{PORT}", "--out", path)
        return path

    def join_web(self, host: Host, bundle: Path, *flags: str) -> Server:
        """Start Lama Cleaner's server on a host, for the scheduler of this grid."""
        env = {"LAMAGRID__DATA_DIR": str(self.folder / f"of-{host.name}")}
        words = ["--grid-join", bundle, "--model", "lama", "--host", "127.0.0.1", "--port", str(WEB_PORT)]
        process = host.start(self.processes, [BIN / "lama-cleaner-grid", *words, *flags], env)
        return Server(self.processes, process, WEB_PORT)

    def join(
        self, host: Host, bundle: Path, *flags: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a node on a host; it shares no directory with the scheduler."""
        env = {"LAMAGRID__DATA_DIR": str(self.folder / f"of-{host.name}"), **(env or {})}
        return host.start(self.processes, [PROGRAMS / "lamagrid-node", "--join", bundle, *flags], env)

    def join_python(
        self, host: Host, bundle: Path, *flags: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """The same with a Python node."""
        env = {"LAMAGRID__DATA_DIR": str(self.folder / f"of-{host.name}"), **(env or {})}
        return host.start(self.processes, [BIN / "lamagrid", "pynode", "--join", bundle, *flags], env)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The connected nodes by their names."""
        return {node["info"]["name"]: node for node in self.client.survey()["nodes"]}

    def wait_ready(self, name: str, node: subprocess.Popen[bytes]) -> None:
        """Wait until a node is there, with nothing to do."""
        self._wait_state(name, node, "ready")

    def wait_heard(self, name: str, node: subprocess.Popen[bytes]) -> None:
        """Wait until a node is heard of again, whether it works or not."""
        self._wait_state(name, node, "ready", "busy")

    def _wait_state(self, name: str, node: subprocess.Popen[bytes], *states: str) -> None:
        self.processes.wait_until(
            lambda: self.nodes().get(name, {}).get("state") in states, SOON_S, f"node {name}", [node]
        )

    def wait_begun(self, task: Task) -> None:
        """Wait until a node has said that it works on it: what is on its way may be lost and sent anew."""
        events, end = task.events(), time.monotonic() + SOON_S
        while time.monotonic() < end:
            progress = events.next(SOON_S)
            if progress is not None and progress.of > 0:
                return
        raise AssertionError(f"no node began with {task}: {task.status()}")


@pytest.fixture
def grid(tmp_path: Path, network: Network) -> Iterator[Grid]:
    """A scheduler on a host of its own."""
    processes = Processes(tmp_path / "logs")
    try:
        yield Grid(processes, network, tmp_path)
    finally:
        processes.close()
