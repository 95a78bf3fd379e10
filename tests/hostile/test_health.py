"""``/healthz`` beside peers that are slow, silent, or many. X8"""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grids.server import free_port
from hostile.conftest import Grid, Honest, open_descriptors
from hostile.peers import SOURCE, is_dropped, send
from stock.processes import Processes

pytestmark = pytest.mark.timeout(180)

DESCRIPTORS = 1_024
SLOWEST_S = 1.0
CROWD = 1_100


class WatchedGrid(Grid):
    """One whose health is asked for all the while.

    Attributes:
        http: Where it tells its health.
    """

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.http = ("127.0.0.1", free_port())
        limit = f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"
        super().__init__(processes, folder, ("prlimit", limit))

    def flags(self) -> tuple[str, ...]:
        """What the scheduler is started with."""
        return ("--set", f"http.listen={self.http[0]}:{self.http[1]}")


class Probe:
    """What an orchestrator does: one request after the other, each on a new connection.

    Attributes:
        slowest_s: The longest answer.
        wrong: Answers that were none.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.slowest_s = 0.0
        self.count = 0
        self.wrong: list[str] = []
        self._address = address
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._end.wait(0.05):
            began = time.monotonic()
            try:
                with socket.create_connection(self._address, 10.0) as connection:
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                    said = connection.recv(4_096)
            except OSError as error:
                self.wrong.append(str(error))
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.count += 1
            if not said.startswith(b"HTTP/1.1 200"):
                self.wrong.append(said.decode(errors="replace")[:200])

    def close(self) -> None:
        """Check what came of it."""
        self._end.set()
        self._thread.join()
        print(f"\nhealth: {self.count} answers, slowest {self.slowest_s:.3f} s, wrong {len(self.wrong)}")
        assert self.count > 0
        assert not self.wrong, self.wrong[:3]
        assert self.slowest_s < SLOWEST_S


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedGrid]:
    """One with as many descriptors as a usual shell allows."""
    folder = tmp_path_factory.mktemp("health")
    processes = Processes(folder / "logs")
    try:
        yield WatchedGrid(processes, folder)
    finally:
        processes.close()


@pytest.fixture
def probe(grid: WatchedGrid) -> Iterator[Probe]:
    """Asks while the test runs."""
    made = Probe(grid.http)
    yield made
    made.close()


SLOW = {
    "nothing": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nHost:",
    "a body that does not come": b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n",
    "a connection that is kept": b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n",
    "answers that are not read": b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 100,
}


@pytest.mark.parametrize("what", SLOW)
def test_slow_peers_of_the_health_check(grid: WatchedGrid, honest: Honest, probe: Probe, what: str) -> None:
    with contextlib.ExitStack() as slow:
        for _ in range(200):
            connection = slow.enter_context(socket.create_connection(grid.http, 5.0))
            send(connection, SLOW[what])
        honest.wait(10)


def test_more_silent_connections_than_descriptors(grid: WatchedGrid, honest: Honest, probe: Probe) -> None:
    """At the gate, from one host and from many: peers are served, newcomers are let in, health is told."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the crowd is this process
    for sources in ([SOURCE], [f"127.0.1.{n}" for n in range(1, 200)]):
        crowd = []
        for n in range(CROWD):
            crowd.append(socket.create_connection(grid.address, 5.0, (sources[n % len(sources)], 0)))
        late = Honest(grid)
        try:
            late.wait(5)
        finally:
            late.close()
        assert not late.wrong
        assert late.slowest_s < 2 * SLOWEST_S
        assert open_descriptors(grid.scheduler.pid) < DESCRIPTORS / 2, "strangers have a budget of their own"
        honest.wait(10)
        assert all(is_dropped(connection) for connection in crowd)
