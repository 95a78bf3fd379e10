"""Peers that ask without end and read nothing, at every socket, near and through the gate. X13, R7.1."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest

from hostile.conftest import Grid, Health, open_descriptors
from hostile.honest import Honest
from hostile.peers import SOCKET_TYPES, channel, greeting, message, prelude, ready, unix

pytestmark = pytest.mark.timeout(900)

ROLE = {"client": "client", "admin": "admin", "control": "node", "result": "node", "node-events": "node"}
# Asks for an answer each: a ping; three that are refused.
ASKS = {
    "client": message(prelude(0x0101), msgpack.packb({"seq": 7})),
    "admin": message(b"", prelude(0x0901), msgpack.packb({})),
    "control": message(b"", prelude(0x0301), msgpack.packb({})),
    "result": message(prelude(0x0501), msgpack.packb({})),
    "node-events": message(prelude(0x0801), msgpack.packb({"session": bytes(16)})),
}
# While they are at it, and for one of them.
MOST_HELD_MB = 64.0
MOST_PER_PEER_MB = 8.0
# Afterwards; it is 8 to 12 in the first round, and less than 1 in the third.
MOST_GROWTH_MB = 20.0
DROPPED_WITHIN_S = 30.0
SOON_S = 1.0
# `make chaos` runs this file with `--unread-s 20`, and so with ten peers at once as well.
LONG_S = 10.0


def crowds(unread_s: float) -> tuple[int, ...]:
    """How many peers ask at once, one attack after the other."""
    return (1, 10, 200) if unread_s >= LONG_S else (1, 200)


class Deaf:
    """One peer that sends the same again and again."""

    def __init__(self, connection: socket.socket, asks: bytes, until: float) -> None:
        self.connection = connection
        self.sent = 0
        self.is_dropped = False
        self._asks, self._until = asks, until
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        self.connection.settimeout(0.5)
        while time.monotonic() < self._until:
            try:
                # Goes on where the last write was cut, so that frames stay whole.
                self.sent += self.connection.send(self._asks[self.sent % len(self._asks) :])
            except TimeoutError:
                continue
            except OSError:
                self.is_dropped = True
                return

    def close(self) -> None:
        """Wait for the last one and leave."""
        self._thread.join()
        with contextlib.suppress(OSError):
            self.connection.close()


def connect(grid: Grid, name: str, near: bool) -> socket.socket:
    """A connection that has shaken hands."""
    connection: socket.socket
    if near:
        connection = unix(grid.socket(name))
    else:
        connection, said = channel(grid.address, grid.bundles[ROLE[name]], name)
        assert said.startswith("welcome "), said
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.sendall(greeting() + ready(SOCKET_TYPES[name]))
    return connection


@pytest.fixture(scope="module", autouse=True)
def descriptors() -> Iterator[None]:
    """Room for two hundred peers at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Watch:
    """Watches honest peers, the probe and the scheduler's memory while others misbehave."""

    def __init__(self, grid: Grid, honest: Honest) -> None:
        self.grid, self.honest = grid, honest
        self.before_mb = self.most_mb = grid.rss_mb()
        self.done = honest.done
        honest.reset()
        self.health = Health(grid)

    def look(self, until: float, peers: list[Deaf]) -> None:
        """Follow the memory until then, or until all of them are disconnected."""
        while time.monotonic() < until and not all(peer.is_dropped for peer in peers):
            self.most_mb = max(self.most_mb, self.grid.rss_mb())
            time.sleep(0.02)

    def judge(self, what: str, peers: int) -> None:
        """Print the figures, and hold them to their bounds."""
        self.honest.wait(5)
        self.health.close()
        growth = self.most_mb - self.before_mb
        print(
            f"\nunread: {what}, {peers} at once: memory {growth:+.1f} MB, honest tasks "
            f"{self.honest.done - self.done}, failed {len(self.honest.wrong)}, "
            f"slowest {self.honest.slowest_s:.2f} s, health {self.health.slowest_s:.2f} s"
        )
        assert not self.health.wrong
        assert self.health.slowest_s < SOON_S
        assert not self.honest.wrong
        assert self.honest.slowest_s < SOON_S
        assert growth < min(MOST_HELD_MB, MOST_PER_PEER_MB * (peers + 1))


def attack(
    grid: Grid, honest: Honest, name: str, near: bool, asks: bytes, peers: int, seconds: float
) -> None:
    """Let this number of peers ask at once for a while, and watch all others."""
    before = open_descriptors(grid.scheduler.pid)
    watch = Watch(grid, honest)
    # One alone is disconnected sooner or later, however slow the machine is.
    must_be_dropped = peers == 1 and name != "node-events"
    until = time.monotonic() + (DROPPED_WITHIN_S if must_be_dropped else seconds)
    deaf = [Deaf(connect(grid, name, near), asks, until) for _ in range(peers)]
    watch.look(until, deaf)
    for peer in deaf:
        peer.close()
    watch.judge(f"{name} {'near' if near else 'far'}", peers)
    assert sum(peer.sent for peer in deaf) > 0
    if must_be_dropped:
        assert deaf[0].is_dropped, "a peer that does not read is disconnected"
    grid.wait(lambda: open_descriptors(grid.scheduler.pid) < before + 20, "descriptors to come back")


@pytest.mark.parametrize("near", [True, False], ids=["near", "far"])
@pytest.mark.parametrize("name", sorted(ASKS))
def test_peers_that_ask_and_do_not_read(
    grid: Grid, honest: Honest, name: str, near: bool, unread_s: float
) -> None:
    for peers in crowds(unread_s):
        attack(grid, honest, name, near, ASKS[name] * 100, peers, unread_s)


@pytest.mark.parametrize("near", [True, False], ids=["near", "far"])
def test_the_same_result_again_and_again(grid: Grid, honest: Honest, near: bool, unread_s: float) -> None:
    """Each attach asks for 240 KB that lie in the database."""
    owner = "local" if near else "bad-client"
    client = grid.near if near else grid.far
    picture = np.random.default_rng(1).integers(0, 256, (300, 260, 3), np.uint8)
    task = client.submit(picture, np.full((300, 260), 255, np.uint8), model="lama")
    assert np.array_equal(task.wait(30), picture)
    attach = {"seq": 1, "id": bytes.fromhex(task.id), "owner": owner, "digest": None}
    asks = message(prelude(0x0104), msgpack.packb(attach)) * 100
    for peers in crowds(unread_s):
        attack(grid, honest, "client", near, asks, peers, unread_s)
