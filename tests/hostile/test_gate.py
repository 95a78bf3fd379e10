"""Everything that ZeroMQ alone does not survive, at every endpoint, before and after each handshake. X8."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from hostile.conftest import Grid, open_descriptors
from hostile.honest import Honest
from hostile.peers import (
    COMMAND,
    LONG,
    MORE,
    SOCKET_TYPES,
    SOURCE,
    channel,
    frame,
    greeting,
    is_dropped,
    line,
    message,
    prelude,
    ready,
    send,
    tcp,
    tls,
)

pytestmark = pytest.mark.timeout(300)

GIB = 1 << 30
ROLE = {"client": "client", "admin": "admin", "control": "node", "result": "node", "node-events": "node"}
ENDPOINTS = sorted(SOCKET_TYPES)
# Of one attack, everything on the wire.
HUGE = 20_000_000
# gate.max_connections_per_peer as it comes.
CLIENTS_OF_AN_ADDRESS = 256
NOISE = random.Random(6)

BEFORE_TLS = {
    "a greeting of ZMTP with a command of 2^62 bytes": greeting() + frame(b"", COMMAND | LONG, 1 << 62),
    "HTTP": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "a record of TLS that claims 64 KiB": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "a hello of TLS that claims 16 MiB": b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(70_000),
    "zeros": bytes(1 << 16),
    "noise": NOISE.randbytes(1 << 16),
}


@pytest.mark.parametrize("what", BEFORE_TLS)
def test_bytes_that_are_not_tls_end_their_connection(grid: Grid, honest: Honest, what: str) -> None:
    for _ in range(20):
        connection = tcp(grid.address)
        send(connection, BEFORE_TLS[what])
        assert is_dropped(connection)
    honest.wait()


LINES = {
    "GET / HTTP/1.1": "refused invalid_input this is no line of a LamaGrid gate",
    "lamagrid 2.0 client": "refused incompatible you speak protocol 2.0, the scheduler 1.",
    "lamagrid 0.9 client": "refused incompatible you speak protocol 0.9, the scheduler 1.",
    "lamagrid 1.5 lane-../../../etc/passwd-0": "refused invalid_input this is no line",
    "lamagrid 1.5 ../control": "refused invalid_input this is no line",
    "lamagrid 1.5 control": "refused invalid_input a certificate of the role client does not open",
    f"lamagrid 1.5 lane-{'0' * 16}-0": "refused invalid_input a certificate of the role client does not open",
    f"lamagrid 1.5 get {'0' * 32} image 0": "refused invalid_input a certificate of the role client does not",
    f"lamagrid 1.5 fetch {'0' * 32} 0": "refused disconnected this blob is not yours",
    f"lamagrid 1.5 bring {'0' * 32} image {1 << 62} new": "refused disconnected this blob is not yours",
    f"lamagrid 1.5 bring {'0' * 32} image -1 new": "refused invalid_input this is no line",
    f"lamagrid 1.5 fetch {'0' * 32} {1 << 70}": "refused invalid_input this is no line",
    "\0\0\0": "refused invalid_input this is no line",
}


@pytest.mark.parametrize("asked", LINES)
def test_preambles_beyond_the_certificates_role_are_refused(grid: Grid, honest: Honest, asked: str) -> None:
    for _ in range(5):
        connection = tls(grid.address, grid.bundles["client"])
        send(connection, asked.encode() + b"\n")
        assert line(connection).startswith(LINES[asked])
        assert is_dropped(connection)
    honest.wait()


def test_no_certificate_and_endless_preambles(grid: Grid, honest: Honest) -> None:
    stranger = tls(grid.address, None)
    send(stranger, b"lamagrid 1.5 client\n")
    assert is_dropped(stranger)
    for endless in (b"lamagrid " * 1_000_000, b"\n" * 10, bytes(9_000_000)):
        connection = tls(grid.address, grid.bundles["client"])
        send(connection, endless)
        assert is_dropped(connection)
    honest.wait()


def test_silent_connections_end_with_the_handshakes_time(grid: Grid, honest: Honest) -> None:
    """Two hundred that say nothing, and two hundred behind TLS, are let go after the handshake's time."""
    before = open_descriptors(grid.scheduler.pid)
    silent = [tcp(grid.address) for _ in range(200)]
    silent += [tls(grid.address, grid.bundles["client"]) for _ in range(200)]
    honest.wait(10)
    began = time.monotonic()
    assert all(is_dropped(connection) for connection in silent)
    assert time.monotonic() - began < 10
    grid.wait(lambda: open_descriptors(grid.scheduler.pid) < before + 20, "descriptors to come back")


def test_four_hundred_clients_of_one_address(grid: Grid, honest: Honest) -> None:
    """Those beyond the limit are told so, a node behind the same address gets in, and room comes back."""

    def answer(role: str, name: str, stays: contextlib.ExitStack) -> str:
        connection, said = channel(grid.address, grid.bundles[role], name)
        stays.enter_context(connection)
        if said.startswith("welcome "):
            connection.sendall(greeting() + ready(SOCKET_TYPES[name]))
            assert len(connection.recv(64)) > 0
        return said

    with contextlib.ExitStack() as stays:
        said = [answer("client", "client", stays) for _ in range(400)]
        assert sum(each.startswith("welcome ") for each in said) == CLIENTS_OF_AN_ADDRESS
        reason = f"no room: {CLIENTS_OF_AN_ADDRESS} connections of clients of your address {SOURCE} are open"
        refused = [each for each in said if reason in each and "gate.max_connections_per_peer" in each]
        assert len(refused) == len(said) - CLIENTS_OF_AN_ADDRESS, said[-1]
        assert answer("node", "control", stays).startswith("welcome ")
        honest.wait(10)
    with contextlib.ExitStack() as stays:
        grid.wait(lambda: answer("client", "client", stays).startswith("welcome "), "room for another one")


HANDSHAKES: dict[str, bytes] = {
    "another mechanism": greeting(b"CURVE") + ready(b"DEALER"),
    "another version": greeting(major=2) + ready(b"DEALER"),
    "no greeting": NOISE.randbytes(200),
    "a truncated READY": greeting() + frame(b"\x05READY\x0bSocket-Type\0\0\0\xff", COMMAND),
    "a READY of 2^62 bytes": greeting() + frame(b"", COMMAND | LONG, 1 << 62),
    "a READY of 64 GiB": greeting() + frame(b"", COMMAND | LONG, 64 * GIB),
    "a READY of 8 GiB that comes": greeting() + frame(bytes(HUGE), COMMAND | LONG, 8 * GIB),
    "a READY of 2^64-1 bytes": greeting() + frame(b"", COMMAND | LONG, (1 << 64) - 1),
    "a socket of another type": greeting() + ready(b"ROUTER"),
    "a message in place of READY": greeting() + message(b"hello"),
}


@pytest.mark.parametrize("what", HANDSHAKES)
@pytest.mark.parametrize("name", ENDPOINTS)
def test_wrong_handshakes_of_zmtp_end_their_connection(
    grid: Grid, honest: Honest, name: str, what: str
) -> None:
    for _ in range(3):
        connection, said = channel(grid.address, grid.bundles[ROLE[name]], name)
        assert said.startswith("welcome ")
        send(connection, HANDSHAKES[what])
        assert is_dropped(connection)
    honest.wait()


FRAMES: dict[str, bytes] = {
    "a frame of 2^64-1 bytes": frame(b"", LONG, (1 << 64) - 1),
    "a frame of 2^62 bytes": frame(b"", LONG, 1 << 62),
    "a frame of 64 GiB": frame(b"", LONG, 64 * GIB),
    "8 GiB that come": frame(bytes(HUGE), LONG, 8 * GIB),
    "a message that never ends": frame(b"", MORE) * (HUGE // 2),
    "a long message": message(bytes(1_000_000), bytes(1_000_000)),
    "a ping of ZMTP": frame(b"\x04PING\0\0", COMMAND),
    "flags that mean nothing": b"\xff\xff\xff",
}


@pytest.mark.parametrize("what", FRAMES)
@pytest.mark.parametrize("name", ENDPOINTS)
def test_wrong_frames_end_their_connection(grid: Grid, honest: Honest, name: str, what: str) -> None:
    for _ in range(3):
        connection, said = channel(grid.address, grid.bundles[ROLE[name]], name)
        assert said.startswith("welcome ")
        send(connection, greeting() + ready(SOCKET_TYPES[name]))
        send(connection, FRAMES[what])
        assert is_dropped(connection)
    honest.wait()


def _messages() -> list[tuple[bytes, ...]]:
    """Messages that are whole, and wrong."""
    kinds = (0x0101, 0x0102, 0x0103, 0x0301, 0x0302, 0x0501, 0x0701, 0x0901, 0xFFFF)
    headers = (b"", b"\x80", b"\xc0", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\x91" * 60_000)
    made: list[tuple[bytes, ...]] = [(b"",), (b"", b""), (b"hello",), (b"",) * 6, (bytes(8), b"\x80")]
    made += [(prelude(kind), header) for kind in kinds for header in headers]
    made += [(prelude(kind, major), b"\x80") for kind in kinds for major in (0, 2, 255)]
    made += [(prelude(kind), NOISE.randbytes(NOISE.randrange(65_536))) for kind in kinds for _ in range(5)]
    return made


@pytest.mark.parametrize("name", ENDPOINTS)
def test_messages_that_are_wrong(grid: Grid, honest: Honest, name: str) -> None:
    """They are refused or passed over, and what comes after them on the same connection is, too."""
    envelope = (b"",) if SOCKET_TYPES[name] == b"REQ" else ()
    for wrong in _messages():
        connection, _ = channel(grid.address, grid.bundles[ROLE[name]], name)
        send(connection, greeting() + ready(SOCKET_TYPES[name]) + message(*envelope, *wrong))
        connection.close()
    connection, _ = channel(grid.address, grid.bundles[ROLE[name]], name)
    send(connection, greeting() + ready(SOCKET_TYPES[name]))
    for wrong in _messages():
        send(connection, message(*envelope, *wrong))
    connection.close()
    honest.wait()


def test_messages_that_stop_in_the_middle(grid: Grid, honest: Honest) -> None:
    """Each of a hundred connections leaves most of a message lying; together they may keep a few of them."""
    half = greeting() + ready(b"DEALER") + frame(bytes(900_000), LONG, 1_000_000)
    before = grid.rss_mb()
    held = []
    for _ in range(100):
        connection, said = channel(grid.address, grid.bundles["client"], "client")
        assert said.startswith("welcome ")
        send(connection, half)
        held.append(connection)
    honest.wait(5)
    assert grid.rss_mb() - before < 20
    for connection in held:
        connection.close()
    honest.wait()


def test_bytes_that_come_one_by_one(grid: Grid, honest: Honest) -> None:
    connection, _ = channel(grid.address, grid.bundles["client"], "client")
    said = greeting() + ready(b"DEALER") + message(prelude(0x0101), b"\x81\xa3seq\x07")
    for byte in said:
        connection.sendall(bytes((byte,)))
    connection.settimeout(10)
    received = b""
    while b"\xa3seq\x07" not in received:
        more = connection.recv(65_536)
        assert more, "an honest message is answered, however it comes"
        received += more
    connection.close()
    honest.wait()


def test_guessed_blob_tokens_open_nothing(grid: Grid, honest: Honest) -> None:
    """Guessed tokens, and lines behind lines."""
    for _ in range(100):
        token = NOISE.randbytes(16).hex()
        for asked in (f"get {token} image 0", f"put {token} 10 new", f"put {token} {1 << 62} again"):
            connection, said = channel(grid.address, grid.bundles["node"], asked)
            assert said.startswith("refused disconnected this blob is not yours")
            connection.close()
    honest.wait()
