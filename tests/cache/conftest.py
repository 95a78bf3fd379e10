"""A Redis server of this suite's own, on a Unix socket."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stock.processes import Processes

START_S = 20.0
ANSWER_S = 10.0


class RedisServer:
    """One server; what it holds is lost when it ends."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is missing: `make deps` installs it"
        self._processes = processes
        self._socket = folder / "redis"
        self._command = [program, "--port", "0", "--save", "", "--appendonly", "no"]
        self._command += ["--unixsocket", str(self._socket), "--dir", str(folder)]
        self.url = f"unix://{self._socket}"
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._child: subprocess.Popen[bytes] = self._processes.start("redis", self._command)
        self._processes.wait_until(self._answers, START_S, "redis-server", alive=[self._child])

    def _answers(self) -> bool:
        return self.ask("PING").startswith("+PONG")

    def kill(self) -> None:
        """As ``kill -9``."""
        self._child.kill()
        self._child.wait()

    def freeze(self) -> None:
        """Its connections stay open, and nothing answers."""
        os.kill(self._child.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on with what was sent meanwhile."""
        os.kill(self._child.pid, signal.SIGCONT)

    def ask(self, command: str) -> str:
        """Send one command, and return the beginning of the answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(str(self._socket))
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(65_536).decode(errors="replace")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many faults the server has; `make chaos` asks for more."""
    parser.addoption("--redis-faults", type=int, default=5)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a short path, below which sockets fit."""
    with tempfile.TemporaryDirectory(prefix="lg-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def redis_server(processes: Processes, folder: Path) -> RedisServer:
    """A server that answers."""
    return RedisServer(processes, folder)
