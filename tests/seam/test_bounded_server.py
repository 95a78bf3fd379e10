"""The bounded server, with a small application in place of upstream's.

X8, X11.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lamagrid.web import bounded_server as bounded
from lamagrid.web.bounded_server import HEAD_BYTES, BoundedServer

LARGE = b"answer" * 1_000_000


class App:
    """Answers with what it was sent, and remembers its environments."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.seen.append(environ)
        if environ["PATH_INFO"] == "/refuse":
            start_response("413 Too Large", [("Content-Length", "2")])
            return [b"no"]
        if environ["PATH_INFO"] == "/large":
            start_response("200 OK", [("Content-Length", str(len(LARGE)))])
            return [LARGE]
        stream = environ["wsgi.input"]
        chunked = environ.get("wsgi.input_terminated")
        body = stream.read() if chunked else stream.read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


@pytest.fixture
def app() -> App:
    """The application."""
    return App()


@pytest.fixture
def port(app: App) -> Iterator[int]:
    """Where it is served."""
    server = BoundedServer("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server.port
    server.shutdown()
    thread.join()


def ask(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send pieces, and read until the end."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


def post(length: int | None, *lines: bytes, path: bytes = b"/") -> bytes:
    """The head of a POST."""
    size = b"Transfer-Encoding: chunked\r\n" if length is None else b"Content-Length: %d\r\n" % length
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n" % (path, size, b"".join(lines))


@pytest.mark.parametrize("size", [0, 1, 1_000, 40_000, 3_000_000])
def test_a_body_arrives_complete_in_any_pieces(port: int, size: int) -> None:
    body = bytes(index % 251 for index in range(size))
    whole = post(size) + body
    for cuts in ((), (3,), (len(post(size)) - 1,), (len(post(size)) + 1,), (20, 40, 60)):
        edges = [0, *cuts, len(whole)]
        pieces = [whole[one:other] for one, other in zip(edges, edges[1:])]
        answer = ask(port, *pieces, pause_s=0.01 if cuts else 0.0)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n" + body)


def test_a_body_in_chunks_arrives(port: int) -> None:
    answer = ask(port, post(None), b"3\r\nabc\r\n", b"5\r\ndefgh\r\n0\r\n\r\n", pause_s=0.05)
    assert answer.endswith(b"\r\n\r\nabcdefgh")


def test_100_continue_is_sent_when_the_body_is_read(port: int) -> None:
    expects = b"Expect: 100-continue\r\n"
    assert b"100 Continue" not in ask(port, post(5, expects, path=b"/refuse"))
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(post(5, expects))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abcde")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        assert answer.endswith(b"\r\n\r\nabcde")


def test_a_client_that_keeps_sending_still_reads_its_refusal(port: int) -> None:
    answer = ask(port, post(10_000_000, path=b"/refuse"), bytes(10_000_000))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_large_answer_is_sent_completely(port: int) -> None:
    assert ask(port, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b"\r\n\r\n" + LARGE)


def test_a_long_head_is_refused_and_a_missing_head_times_out(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = b"GET / HTTP/1.1\r\nX: " + b"x" * (HEAD_BYTES + 1)
    assert ask(port, long).startswith(b"HTTP/1.1 431 ")
    monkeypatch.setattr(bounded, "HEAD_LIMIT_S", 0.3)
    for half in (b"", b"GET / HTTP/1.1\r\nX: y\r\n", post(9) + b"half"):
        began = time.monotonic()
        assert ask(port, half) == b""
        assert time.monotonic() - began < 5.0


def test_a_slow_body_is_given_up(
    port: int, app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bounded, "GRACE_S", 0.3)
    began = time.monotonic()
    assert b" 200 " not in ask(port, post(100_000), *[b"x"] * 20, pause_s=0.05)
    monkeypatch.setattr(bounded, "READ_LIMIT_S", 0.3)
    assert b" 200 " not in ask(port, post(100_000))
    assert time.monotonic() - began < 8.0
    assert len(app.seen) == 2
    capsys.readouterr()


def test_a_slow_body_gives_its_place_to_a_new_request(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    places = 20
    slow = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(bounded.BODIES)]
    for connection in slow:
        connection.sendall(post(100_000))
    began = time.monotonic()
    for _ in range(places):
        assert ask(port, post(100_000), bytes(100_000)).startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - began < 10.0
    for connection in slow:
        connection.close()


def test_headers_with_underscores_are_removed(port: int, app: App) -> None:
    lines = b"X-Forwarded-For: 203.0.113.7\r\nX_Forwarded_For: 198.51.100.1\r\nContent_Length: 9\r\n"
    assert ask(port, b"GET / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n").startswith(b"HTTP/1.1 200 ")
    assert app.seen[0]["HTTP_X_FORWARDED_FOR"] == "203.0.113.7"
    assert app.seen[0].get("CONTENT_LENGTH") in (None, "")


def test_a_unix_socket_is_served(app: App, tmp_path: Path) -> None:
    """R8.1: as stock's ``--host unix:///...`` is, for a reverse proxy of this host."""
    path = tmp_path / "s"
    server = BoundedServer(f"unix://{path}", 0, app)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    for body in (b"", b"x" * 100_000):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(path))
            connection.sendall(post(len(body)) + body)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n" + body)
    assert [environ["REMOTE_ADDR"] for environ in app.seen] == ["", ""]
    server.shutdown()
    thread.join()
