"""Browsers and programs that misbehave at the web server: bodies, half requests and connections without end.

R7.1, X8, X11. People who use it meanwhile are served within a second.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from grids import procfs
from grids.pictures import encoded, hole
from grids.server import ORIGINAL, GridServer
from hostile.conftest import MAX_PIXELS
from lamagrid.web.bounded_server import BODIES
from lamagrid.web.socketio_limits import SOCKETIO_SESSIONS

LIMIT_BYTES = 2 * (MAX_PIXELS * 4 + (1 << 20)) + (1 << 20)
"""The largest form, as docs/compatibility.md has it."""
MOST_GROWTH_MB = 3 * LIMIT_BYTES / 1e6
"""A body, and what the kernel and Python keep of it while it is answered."""
MOST_THREADS = max(BODIES, SOCKETIO_SESSIONS // 2) + 50
"""Those that wait for bodies, or with the pings of one address's sessions; and those of the visitors."""
SOON_S = 1.0
FEW_THREADS = 50
PINGED_S = 40.0
"""Engine.IO pings every 25 s."""
MANY = 2_000
PICTURE, MASK = encoded(np.full((48, 64, 3), 90, np.uint8)), encoded(hole(48, 64, 10, 12, 14))
PIECE = bytes(1 << 20)
OTHER_ADDRESS = "127.0.0.9"
HEAD = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n'
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"


def threads_of(pid: int) -> int:
    """How many threads a process has."""
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


class Visitors:
    """People who go on using the server.

    Attributes:
        done: Requests that were answered rightly.
        slowest_s: The longest that one took.
        wrong: All other answers.
    """

    def __init__(self, server: GridServer) -> None:
        self.done, self.slowest_s = 0, 0.0
        self.wrong: list[str] = []
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._visit, daemon=True)
        self._thread.start()

    def _visit(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            try:
                page = self._server.get("/")
                cleaned = self._server.inpaint(PICTURE, MASK, **ORIGINAL)
            except requests.RequestException as error:
                self.wrong.append(str(error))
                continue
            self.slowest_s = max(self.slowest_s, (time.monotonic() - began) / 2)
            if (page.status_code, cleaned.status_code) == (200, 200):
                self.done += 2
            else:
                self.wrong.append(f"{page.status_code} {cleaned.status_code}: {cleaned.text[:200]}")
            time.sleep(0.02)

    def wait(self, count: int) -> None:
        """Wait until ``count`` more were served, or one was not."""
        wanted = self.done + count
        while self.done < wanted and not self.wrong:
            time.sleep(0.01)

    def close(self) -> None:
        """Serve some more, then end."""
        self.wait(8)
        self._end.set()
        self._thread.join()


@pytest.fixture(scope="module")
def server(web_server: GridServer) -> GridServer:
    """The web server that is attacked, once it is ready."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * MANY + 1_000)), hard))
    web_server.wait_ready()
    return web_server


@pytest.fixture(scope="module", autouse=True)
def earlier_sessions_ended(server: GridServer, turn: int) -> None:
    """Wait until the threads of earlier sessions have ended: each waits to send its next ping."""
    end = time.monotonic() + PINGED_S
    while turn > 0 and (threads := threads_of(server.process.pid)) >= FEW_THREADS:
        assert time.monotonic() < end, f"{threads} threads"
        time.sleep(0.5)


@pytest.fixture
def visitors(server: GridServer) -> Iterator[Visitors]:
    """Served while a test attacks, all of them, each within a second."""
    made = Visitors(server)
    made.wait(4)
    made.slowest_s = 0.0
    yield made
    made.close()
    print(f"\nvisitors: {made.done} answers, failed {len(made.wrong)}, slowest {made.slowest_s:.2f} s")
    assert not made.wrong
    assert made.slowest_s < SOON_S


@pytest.fixture
def bounded(server: GridServer, visitors: Visitors) -> Iterator[None]:
    """The most memory and threads that the web process had during a test are bounded."""
    pid = server.process.pid
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM begins anew
    before = procfs.peak_megabytes(pid)
    most_threads = 0
    end = threading.Event()

    def watch() -> None:
        nonlocal most_threads
        while not end.wait(0.05):
            most_threads = max(most_threads, threads_of(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    end.set()
    watcher.join()
    growth = procfs.peak_megabytes(pid) - before
    print(f"web process: {before:.0f} MB before, {growth:+.0f} MB at most, {most_threads} threads at most")
    assert growth < MOST_GROWTH_MB
    assert most_threads < MOST_THREADS


class Sender:
    """One connection that sends a request by hand."""

    def __init__(self, server: GridServer, address: str = "127.0.0.1") -> None:
        self.port = int(server.base.rpartition(":")[2])
        self.socket = socket.create_connection(("127.0.0.1", self.port), 30, (address, 0))

    def head(self, path: str, *lines: bytes) -> None:
        """The head of a POST."""
        start = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % (path.encode(), self.port)
        self.socket.sendall(start + b"".join(lines) + b"\r\n")

    def send(self, data: bytes, megabytes: int) -> float:
        """That many megabytes, as far as they are taken; how many were."""
        sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(megabytes):
                self.socket.sendall(data)
                sent += len(data)
        return sent / 1e6

    def answer(self) -> bytes:
        """The answer, even if its rest was lost."""
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := self.socket.recv(65536):
                answer += piece
        return answer

    def close(self) -> None:
        """Leave."""
        self.socket.close()


def chunked(server: GridServer, path: str, kind: bytes, start: bytes, pattern: bytes) -> tuple[bytes, float]:
    """Send 2,000 MB in chunks, as far as they are taken."""
    sender = Sender(server)
    sender.head(path, kind, b"Transfer-Encoding: chunked\r\n")
    chunk = (pattern * (len(PIECE) // len(pattern) + 1))[: len(PIECE)]
    chunk = start + chunk[len(start) :]
    sent = sender.send(b"%x\r\n%b\r\n" % (len(chunk), chunk), 1)
    chunk = (pattern * (len(PIECE) // len(pattern) + 1))[: len(PIECE)]
    sent += sender.send(b"%x\r\n%b\r\n" % (len(chunk), chunk), 2_000)
    answer = sender.answer()
    sender.close()
    return answer, sent


@pytest.mark.parametrize("path", ["/inpaint", "/run_plugin", "/save_image", "/model", "/grid/tasks/1/cancel"])
def test_a_body_of_two_gigabytes_is_refused_before_it_is_read(
    server: GridServer, bounded: None, path: str
) -> None:
    sender = Sender(server)
    sender.head(path, FORM, b"Content-Length: 2000000000\r\n")
    assert sender.socket.recv(65536).startswith(b"HTTP/1.1 413 ")
    sender.send(PIECE, 2_000)  # goes on all the same, and is cut off
    sender.close()
    waits = Sender(server)
    waits.head(path, FORM, b"Content-Length: 2000000000\r\nExpect: 100-continue\r\n")
    assert waits.answer().startswith(b"HTTP/1.1 413 ")
    waits.close()


@pytest.mark.parametrize("path", ["/inpaint", "/run_plugin", "/save_image", "/model"])
def test_a_body_without_length_is_read_up_to_its_limit(server: GridServer, bounded: None, path: str) -> None:
    file = HEAD % (b"image", b'; filename="a.png"')
    for kind, start, pattern in [
        (FORM, file, b"\r\n--"),
        (FORM, HEAD % (b"prompt", b""), b"x"),
        (FORM, b"", HEAD % (b"a", b"") + b"\r\n"),
        (b"Content-Type: application/x-www-form-urlencoded\r\n", b"", b"a=b&"),
    ]:
        answer, sent = chunked(server, path, kind, start, pattern)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 413 "), answer[:200]
        assert sent < LIMIT_BYTES / 1e6 + 60, "some more is thrown away, so that the answer is read"


def test_a_text_field_of_300_megabytes_is_refused(server: GridServer, bounded: None) -> None:
    start = HEAD % (b"prompt", b"")
    body = start + bytes(40_000_000)
    answer = server.post("/inpaint", data=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 413
    assert "text fields" in answer.text


def test_a_large_file_that_is_no_picture_is_answered(server: GridServer, bounded: None) -> None:
    answer = server.inpaint(bytes(MAX_PIXELS * 4), MASK)
    assert answer.status_code == 500
    assert "cannot be read" in answer.text


@pytest.mark.parametrize("pattern", [b"\r", b"\n", b"\r\n", b"\r\n--b", b"-"])
def test_a_crafted_body_costs_no_more_time_than_any_other(
    server: GridServer, bounded: None, pattern: bytes
) -> None:
    """Werkzeug 2.2.2 takes 10 s for such a body of 40 MB."""
    size = 20_000_000
    body = HEAD % (b"image", b'; filename="a"') + b"\r\n" + pattern * (size // len(pattern))
    before = procfs.cpu_seconds(server.process.pid)
    answer = server.post("/inpaint", data=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 400, "of an incomplete form the fields are missing"
    took = procfs.cpu_seconds(server.process.pid) - before
    print(
        f"\n{pattern!r}: {took:.2f} s of the processor for {size / 1e6:.0f} MB, visitors' requests included"
    )
    assert took < 1.5


def test_half_requests_hold_no_threads(server: GridServer, bounded: None) -> None:
    """2,000 that stop in the head, and 500 that send it byte by byte; the time limit of heads ends them."""
    half = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
    senders = [Sender(server) for _ in range(MANY)]
    for sender in senders:
        sender.socket.sendall(half)
    began = time.monotonic()
    pid = server.process.pid
    while time.monotonic() - began < 5.0:
        for sender in senders[:500]:
            with contextlib.suppress(ConnectionError):
                sender.socket.sendall(b"x")
        threads = threads_of(pid)
        assert threads < 100, threads
        time.sleep(0.5)
    for sender in senders:
        assert sender.answer() == b""
        sender.close()
    assert time.monotonic() - began < 20.0


def test_slow_bodies_give_way_to_honest_ones(server: GridServer, visitors: Visitors, bounded: None) -> None:
    """2,000 that send a body byte by byte, from the visitors' own address and from another one."""
    senders = []
    for number in range(MANY):
        sender = Sender(server, OTHER_ADDRESS if number % 2 else "127.0.0.1")
        with contextlib.suppress(ConnectionError):
            sender.head("/inpaint", FORM, b"Content-Length: 100000\r\n")
        senders.append(sender)
    for _ in range(4):
        for sender in senders:
            with contextlib.suppress(ConnectionError):
                sender.socket.sendall(b"-")
        visitors.wait(8)
    for sender in senders:
        sender.close()


class WebSocket(Sender):
    """A connection of Socket.IO that sends frames by hand."""

    def __init__(self, server: GridServer) -> None:
        super().__init__(server)
        self.socket.sendall(
            b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" % self.port
        )
        assert self.socket.recv(65536).startswith(b"HTTP/1.1 101 ")

    @staticmethod
    def frame(text: bytes, length: int | None = None) -> bytes:
        """A message, or the start of one of that length; under the key 0."""
        return b"\x81\xff" + (length or len(text)).to_bytes(8, "big") + bytes(4) + text


def test_a_message_without_end_closes_its_websocket(server: GridServer, bounded: None) -> None:
    connection = WebSocket(server)
    connection.socket.sendall(WebSocket.frame(b"42", 2_000_000_000))
    assert connection.send(b"x" * len(PIECE), 2_000) < 50
    connection.close()


def test_a_websocket_that_floods_and_reads_nothing_waits(
    server: GridServer, bounded: None, request: pytest.FixtureRequest
) -> None:
    """Each event is answered; neither events nor answers pile up."""
    connection = WebSocket(server)
    connection.socket.sendall(WebSocket.frame(b"40"))
    connection.socket.settimeout(1.0)
    flood = b"".join(
        WebSocket.frame(b'42%d["subscribe_task","%b"]' % (number, b"x" * 1000)) for number in range(1000)
    )
    # `make chaos` runs several rounds.
    end = time.monotonic() + (4.0 if request.config.getoption("--rounds") > 1 else 1.5)
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError, ConnectionError):
            connection.socket.sendall(flood)
    connection.close()


def test_sessions_of_socketio_without_end_are_refused(server: GridServer, bounded: None) -> None:
    """Each costs a thread, until its first ping is not answered."""
    path = "/socket.io/?EIO=4&transport=polling"
    answers = [server.get(path) for _ in range(700)]
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    assert 400 < statuses.count(200) <= 512
    other = Sender(server, OTHER_ADDRESS)
    other.socket.sendall(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % (path.encode(), other.port))
    assert other.answer().startswith(b"HTTP/1.1 200 ")
    other.close()
    # A session that is closed gives its place back at once.
    for answer in answers:
        if answer.status_code == 200:
            session = f"{path}&sid={json.loads(answer.text[1:])['sid']}"
            assert server.post(session, data="1").status_code == 200
            assert server.get(session).status_code == 400
    assert server.get(path).status_code == 200
