"""``/healthz`` beside peers that are slow, silent, or many. X8"""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from hostile.conftest import Grid, Health, open_descriptors
from hostile.honest import Honest
from hostile.peers import SOCKET_TYPES, SOURCE, is_dropped, send, unix
from lamagrid import TaskClient
from stock.processes import Processes

pytestmark = pytest.mark.timeout(180)

DESCRIPTORS = 1_024
SLOWEST_S = 1.0
CROWD = 1_100


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One with as many descriptors as a usual shell allows."""
    folder = tmp_path_factory.mktemp("health")
    processes = Processes(folder / "logs")
    try:
        yield Grid(processes, folder, ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"))
    finally:
        processes.close()


@pytest.fixture
def health(grid: Grid) -> Iterator[Health]:
    """Asks while the test runs."""
    made = Health(grid)
    yield made
    made.close()
    print(f"\nhealth: {made.count} answers, slowest {made.slowest_s:.3f} s, wrong {len(made.wrong)}")
    assert made.count > 0
    assert not made.wrong, made.wrong[:3]
    assert made.slowest_s < SLOWEST_S


SLOW = {
    "nothing": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nHost:",
    "a body that does not come": b"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n",
    "a connection that is kept": b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n",
    "answers that are not read": b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 100,
}


@pytest.mark.parametrize("what", SLOW)
def test_slow_peers_of_the_health_check(grid: Grid, honest: Honest, health: Health, what: str) -> None:
    with contextlib.ExitStack() as slow:
        for _ in range(200):
            connection = slow.enter_context(socket.create_connection(grid.http, 5.0))
            send(connection, SLOW[what])
        honest.wait(10)


def test_more_silent_connections_than_descriptors(grid: Grid, honest: Honest, health: Health) -> None:
    """At the gate, from one host and from many: peers are served, newcomers are let in, health is told."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the crowd is this process
    crowd = []
    for sources in ([SOURCE], [f"127.0.1.{n}" for n in range(1, 200)]):
        for n in range(CROWD):
            crowd.append(socket.create_connection(grid.address, 5.0, (sources[n % len(sources)], 0)))
        late = Honest(grid.bundle("late", role="client"))
        try:
            late.wait(5)
        finally:
            late.close()
        assert not late.wrong
        assert late.slowest_s < 2 * SLOWEST_S
        assert open_descriptors(grid.scheduler.pid) < DESCRIPTORS / 2, "strangers have a budget of their own"
        honest.wait(10)
    assert all(is_dropped(connection) for connection in crowd)


def test_silent_connections_on_this_host(grid: Grid, honest: Honest, health: Health) -> None:
    """At each private socket: as many as there are descriptors, and one more peer is still let in."""
    crowd = []
    for name in SOCKET_TYPES:
        for _ in range(CROWD):
            try:
                crowd.append(unix(grid.socket(name)))
            except OSError:  # its queue is full for the moment
                break
        late = TaskClient(grid.data_dir)
        assert late.survey(timeout=SLOWEST_S)["nodes"]
    honest.wait(10)
    assert open_descriptors(grid.scheduler.pid) < DESCRIPTORS, "strangers have a budget of their own"
    assert all(is_dropped(connection) for connection in crowd)
