"""Werkzeug's threaded server, with bounds for each connection and for their number.

A connection holds a descriptor and a buffer. It gets a thread when the head of its request has arrived, with
the body if that is small: incomplete requests hold no thread. Threads are divided among client addresses. A
body that arrives too slowly is given up after a grace, or earlier when another request of its address needs
its place.

Does not: limit how long an answer, a long poll or a WebSocket takes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import resource
import select
import selectors
import socket
import struct
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from lamagrid.web.fair_share import Client, FairShare
from lamagrid.web.forwarded_headers import ForwardedHeaders, client_key

REQUESTS = 1024
"""Requests that are being read or answered; each has a thread."""
BODIES = 256
"""Those of them whose bodies are still arriving."""
HEADS = 2048
"""Connections without a complete head; the oldest is closed when one more comes."""
DESCRIPTORS = REQUESTS + HEADS + 1024
HEAD_BYTES = 32 * 1024
SMALL_BODY_BYTES = 32 * 1024
"""A body up to this counts as a part of the head."""
HEAD_LIMIT_S = 10.0
READ_LIMIT_S = 10.0
"""Between two bytes of the body."""
SEND_LIMIT_S = 30.0
"""Per piece of the answer."""
PIECE_BYTES = 64 * 1024
GRACE_S = 15.0
LEAST_BYTES_PER_S = 4096
"""After the grace, a slower body is given up."""
SLOW_AFTER_S = 0.25
SLOW_BYTES_PER_S = 64 * 1024
"""After that time, a slower body is given up if another request needs its place."""
PLACE_LIMIT_S = 10.0
PLACE_EVERY_S = 0.05
"""How long a request waits for a place, and how often it tries."""
LINGER_S = 2.0
LINGER_BYTES = 32 << 20
"""How long, and how much, the rest of a refused body is read, so that its sender reads the answer."""

BLANK_LINE = re.compile(rb"\n\r?\n")
LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,20})[ \t]*\r?\n", re.IGNORECASE)
CHUNKED = re.compile(rb"\ntransfer-encoding:", re.IGNORECASE)
EXPECTS = re.compile(rb"\nexpect:", re.IGNORECASE)
OVERLOADED = b"The server has too many requests of this address: try again in some seconds."
TOO_LARGE_HEAD = b"The head of the request is too large."

log = logging.getLogger("lamagrid.web")


class BoundedServer(ThreadedWSGIServer):
    """The server of one process; Werkzeug makes it when upstream asks for a threaded one."""

    proxies = ForwardedHeaders(())
    """Their addresses are shared by many clients."""

    def __init__(self, host: str, port: int, app: Any, handler: Any = None, *rest: Any, **named: Any) -> None:
        self._requests = FairShare(REQUESTS)
        self._arriving = FairShare(BODIES)
        self._bodies = _ActiveBodies()
        self._heads = _HeadReader(self)
        super().__init__(host, port, app, handler or BoundedHandler, *rest, **named)
        # Werkzeug's backlog is 128; clients beyond it would retry after a second.
        self.socket.listen(HEADS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Add an accepted connection; a Unix socket has no address."""
        self._heads.add(request, client_address or ("", 0))

    def begin(self, head: _RequestHead) -> bool:
        """Start a thread for a request whose head is complete. Returns whether there was a place for it."""
        client, bodies = head.client, int(head.arrives)
        if bodies and not self._arriving.take(client):
            return False
        if not self._requests.take(client):
            self._arriving.give_back(client, bodies)
            return False
        try:
            threading.Thread(target=self._answer, args=(head, bodies), daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            self._requests.give_back(client)
            self._arriving.give_back(client, bodies)
            return False
        return True

    def client_of(self, address: str) -> Client:
        """Whose share a connection uses."""
        return Client(client_key(address) or "", not address or self.proxies.is_trusted(address))

    def end_slowest_body(self, client: Client) -> bool:
        """Give up a client's slowest body, if it is slow. Returns whether there was one."""
        return self._bodies.end_slowest(client)

    def _answer(self, head: _RequestHead, bodies: int) -> None:
        connection, client = head.connection, head.client
        body = _BodyReader(head, self._bodies, lambda: self._arriving.give_back(client, bodies))
        try:
            self.RequestHandlerClass(body, head.address, self)  # type: ignore[arg-type]
        except _BodyAbandoned:
            pass
        except Exception:
            log.exception("a request of %s failed", client.key)
        finally:
            body.arrived()
            with contextlib.suppress(OSError):
                body.linger()
            connection.close()
            self._requests.give_back(client)

    def server_close(self) -> None:
        """Close the server, and the connections without a complete head."""
        super().server_close()
        self._heads.close()


class BoundedHandler(WSGIRequestHandler):
    """Handles one request."""

    def setup(self) -> None:
        """Read through `_BodyReader`, and write in pieces."""
        body: Any = self.request
        self._body: _BodyReader = body
        self.request = self.connection = body.connection
        self.connection.settimeout(READ_LIMIT_S)
        with contextlib.suppress(OSError):  # it was closed already
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.rfile = io.BufferedReader(body, PIECE_BYTES)
        self.wfile = _Writer(self.connection)

    def handle_expect_100(self) -> bool:
        """Ask for the body when it is first read: a refused one is not sent."""
        self._body.on_first_read = self.connection
        del self.headers["Expect"]
        return True

    def make_environ(self) -> Any:
        """Remove headers with underscores: ``X_Real`` would have the same key as ``X-Real``."""
        for name in [name for name in self.headers if "_" in name]:
            del self.headers[name]
        if self.headers.get("Upgrade", "").lower() == "websocket":
            # Socket.IO reads and writes it from now on, with time limits of its own.
            self.connection.settimeout(None)
            limit = struct.pack("@ll", int(SEND_LIMIT_S), 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return super().make_environ()


class _BodyAbandoned(BaseException):
    """The rest of a body will not arrive. No Exception: the application neither answers nor logs it."""


class _BodyReader(io.RawIOBase):
    """Reads one connection: first the head that was already received, then the rest, whose pace it measures.

    Attributes:
        waited_s: Time spent waiting for the sender.
        received: Bytes received in that time.
    """

    def __init__(self, head: _RequestHead, bodies: _ActiveBodies, on_arrived: Callable[[], None]) -> None:
        self.connection = head.connection
        self.client = head.client
        self.on_first_read: socket.socket | None = None
        self.waited_s = 0.0
        self.received = len(head.data)
        self._head = memoryview(bytes(head.data))
        self._missing = head.missing
        self._bodies = bodies
        self._place = [on_arrived]

    def arrived(self) -> None:
        """Free the place of a body that is complete or given up; may be called twice, by two threads."""
        with contextlib.suppress(IndexError):
            self._place.pop()()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes."""
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        if self.on_first_read is not None:
            self.on_first_read.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.on_first_read = None
        with self._bodies.waiting_for(self):
            count = self.connection.recv_into(buffer)
        self.received += count
        if count == 0 and self._missing > 0:
            raise _BodyAbandoned  # its sender is gone
        self._missing -= count
        if self._missing <= 0:
            self.arrived()
        if self.waited_s > GRACE_S and self.received < self.waited_s * LEAST_BYTES_PER_S:
            raise TimeoutError("the body arrives too slowly")
        return count

    def linger(self) -> None:
        """Read the rest before closing, because closing with unread bytes resets the connection."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(0.2)
        end = time.monotonic() + LINGER_S
        scrap = bytearray(PIECE_BYTES)
        left = min(self._missing, LINGER_BYTES)
        while left > 0 and time.monotonic() < end and (count := self.connection.recv_into(scrap)):
            left -= count


class _ActiveBodies:
    """The bodies that are waiting for their senders."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _waiting
        self._waiting: dict[_BodyReader, float] = {}

    @contextlib.contextmanager
    def waiting_for(self, body: _BodyReader) -> Iterator[None]:
        """Count the time in which the next bytes of a body are awaited."""
        began = time.monotonic()
        with self._lock:
            self._waiting[body] = began
        try:
            yield
        finally:
            body.waited_s += time.monotonic() - began
            with self._lock:
                is_wanted = self._waiting.pop(body, None) is not None
            if not is_wanted:
                raise _BodyAbandoned

    def end_slowest(self, client: Client) -> bool:
        """Give up a client's slowest body, if it is slow. Returns whether there was one."""
        now = time.monotonic()
        with self._lock:
            paces = {
                body: body.received / waited_s
                for body, began in self._waiting.items()
                if body.client == client and (waited_s := body.waited_s + now - began) > SLOW_AFTER_S
            }
            slowest = min(paces, key=lambda body: paces[body], default=None)
            if slowest is None or paces[slowest] >= SLOW_BYTES_PER_S:
                return False
            del self._waiting[slowest]
        slowest.arrived()
        with contextlib.suppress(OSError):
            slowest.connection.shutdown(socket.SHUT_RD)  # wakes its thread
        return True


class _Writer(io.BufferedIOBase):
    """Sends in pieces, so that the time limit applies to each piece and not to a large answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Write all."""
        self._connection.settimeout(SEND_LIMIT_S)
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            self._connection.sendall(view[start : start + PIECE_BYTES])
        return len(view)


class _RequestHead:
    """A connection without a complete head."""

    def __init__(self, connection: socket.socket, address: Any, client: Client) -> None:
        self.connection = connection
        self.address = address
        self.client = client
        self.ends = time.monotonic() + HEAD_LIMIT_S
        self.data = bytearray()
        self.is_complete = self.has_small_body = False
        self.missing = 0
        """Bytes of the body that have not arrived, once the head is complete."""

    def add(self, data: bytes) -> bool:
        """Add received bytes. Returns whether the head is complete."""
        searched = max(0, len(self.data) - 3)
        self.data += data
        if self.is_complete:
            self.missing -= len(data)
            return True
        blank = BLANK_LINE.search(self.data, searched)
        if blank is None:
            return False
        end = blank.end()
        length = LENGTH.search(self.data, 0, end)
        if CHUNKED.search(self.data, 0, end):
            self.missing = sys.maxsize
        elif length is not None:
            self.missing = int(length[1]) - (len(self.data) - end)
        # With "100 Continue", the body is sent only when it is asked for.
        self.has_small_body = self.missing <= SMALL_BODY_BYTES and not EXPECTS.search(self.data, 0, end)
        self.is_complete = True
        return True

    @property
    def arrives(self) -> bool:
        """Whether a part of the body has not arrived."""
        return self.missing > 0


class _HeadReader:
    """Waits for the heads of requests, in one thread; connections are ordered by age."""

    def __init__(self, server: BoundedServer) -> None:
        self._server = server
        self._lock = threading.Lock()  # guards _new
        self._new: list[_RequestHead] = []
        self._waiting: OrderedDict[socket.socket, _RequestHead] = OrderedDict()
        self._complete: list[_RequestHead] = []
        self._ended = 0.0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="request heads", daemon=True)
        self._thread.start()

    def add(self, connection: socket.socket, address: Any) -> None:
        """Wait for the head of a connection's request."""
        connection.setblocking(False)
        with self._lock:
            self._new.append(_RequestHead(connection, address, self._server.client_of(address[0])))
        self._wake()

    def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a wake-up is already pending
            self._wake_write.send(b"\0")

    def _run(self) -> None:
        while not self._is_closed:
            for key, _ in self._selector.select(self._wait_s()):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        self._wake_read.recv(4096)
                else:
                    self._read(key.data)
            with self._lock:
                new, self._new = self._new, []
            for head in new:
                self._waiting[head.connection] = head
                self._selector.register(head.connection, selectors.EVENT_READ, head)
                self._read(head)  # most requests have already arrived
            self._start_complete()
            self._close_expired()
        for head in [*self._waiting.values(), *self._complete, *self._new]:
            head.connection.close()
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _wait_s(self) -> float | None:
        """How long to wait for events."""
        if self._complete:
            return PLACE_EVERY_S
        first = next(iter(self._waiting.values()), None)
        return None if first is None else max(0.0, first.ends - time.monotonic())

    def _start_complete(self) -> None:
        """Begin the complete requests, and refuse those that got no place in time.

        Newest first: under overload, the server answers requests whose clients still wait.
        """
        now = time.monotonic()
        may_end = now - self._ended >= PLACE_EVERY_S
        if may_end:
            self._ended = now
        left: list[_RequestHead] = []
        full: set[tuple[Client, bool]] = set()
        for head in reversed(self._complete):
            if head.arrives and has_left(head.connection):
                head.connection.close()
                continue
            kind = (head.client, head.arrives)
            if kind not in full:
                if self._server.begin(head):
                    continue
                full.add(kind)
                may_try = may_end and head.arrives and self._server.end_slowest_body(head.client)
                if may_try and self._server.begin(head):
                    continue
            if head.ends > now:
                left.append(head)
            else:
                refuse(head.connection, b"503 Service Unavailable", OVERLOADED)
        self._complete = left[::-1]

    def _read(self, head: _RequestHead) -> None:
        try:
            data = head.connection.recv(HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._remove(head)
            head.connection.close()
            return
        if not head.add(data):
            if len(head.data) > HEAD_BYTES:
                self._remove(head)
                refuse(head.connection, b"431 Request Header Fields Too Large", TOO_LARGE_HEAD)
            return
        if head.arrives and head.has_small_body:
            return
        self._remove(head)
        head.ends = time.monotonic() + PLACE_LIMIT_S
        self._complete.append(head)

    def _close_expired(self) -> None:
        """Close connections that are too slow, and the oldest ones beyond the bound."""
        now = time.monotonic()
        while self._waiting:
            head = next(iter(self._waiting.values()))
            if head.ends > now and len(self._waiting) + len(self._complete) <= HEADS:
                return
            self._remove(head)
            head.connection.close()

    def _remove(self, head: _RequestHead) -> None:
        del self._waiting[head.connection]
        self._selector.unregister(head.connection)


def has_left(connection: socket.socket) -> bool:
    """Whether the other end has closed the connection, even if bytes are unread."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def refuse(connection: socket.socket, status: bytes, text: bytes) -> None:
    """Answer with one line and close, without blocking."""
    answer = (
        b"HTTP/1.1 %b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
        b"Retry-After: 5\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n%b"
    ) % (status, len(text), text)
    with contextlib.suppress(OSError), connection:
        connection.send(answer)
        connection.shutdown(socket.SHUT_WR)


def raise_descriptor_limit() -> None:
    """Let the process have as many descriptors as the server may need, if the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
