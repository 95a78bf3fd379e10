"""Bounds Socket.IO: the number of sessions, the size of a message, received messages and unread packets."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import simple_websocket
from engineio.async_drivers._websocket_wsgi import SimpleWebSocketWSGI

from lamagrid.upstream.protocol import EngineIO
from lamagrid.web.fair_share import Client, FairShare

SOCKETIO_SESSIONS = 1024
"""Each costs a thread that waits to send its next ping."""
MESSAGE_BYTES = 64 * 1024
INBOX = 32
"""Received messages that wait to be handled; beyond it, the connection is not read."""
INBOX_LIMIT_S = 60.0
OUTBOX = 256
"""Packets for a client that does not read; further ones are dropped until its connection times out."""


def async_handlers(_original: object, _context: object) -> bool:
    """Handle the events of a client one after the other, in its own thread."""
    return False


def max_http_buffer_size(_original: object, _context: object) -> int:
    """The largest message of a client."""
    return MESSAGE_BYTES


def async_driver(original: dict[str, Any], _context: object) -> dict[str, Any]:
    """Engine.IO's driver with a bounded queue of packets to send, and of messages received."""
    return {**original, "queue": _Outbox, "websocket": _WebSocket}


class SessionLimit:
    """Bounds the sessions of Engine.IO, below Socket.IO, and shares them out by client.

    Args:
        engine: Knows which sessions are open.
    """

    def __init__(self, engine: EngineIO) -> None:
        self._engine = engine
        self._share = FairShare(SOCKETIO_SESSIONS)
        self._lock = threading.Lock()  # guards _clients
        self._clients: dict[str, Client] = {}
        self._opening = threading.local()

    def admit(self, client: Client) -> bool:
        """Whether a client may open one more session, in the request that this thread serves."""
        with self._lock:
            for sid in [sid for sid in self._clients if sid not in self._engine.sockets]:
                self._share.give_back(self._clients.pop(sid))
        if not self._share.take(client):
            return False
        self._share.give_back(client)
        self._opening.client = client
        return True

    def continue_open(self) -> None:
        """Note that the request that this thread serves belongs to an open session."""
        self._opening.client = None

    def counting(self, generate_id: Callable[[], str]) -> Callable[[], str]:
        """Engine.IO's function for the id of a new session, which counts it for its client."""

        def counted_id() -> str:
            sid = generate_id()
            client = getattr(self._opening, "client", None) or Client("")
            with self._lock:
                if self._share.take(client):
                    self._clients[sid] = client
            return sid

        return counted_id


class _Inbox(list):  # type: ignore[type-arg]
    """Received messages of a WebSocket; its reader blocks while there are many."""

    def __init__(self) -> None:
        super().__init__()
        self._room = threading.Semaphore(INBOX)

    def append(self, message: Any) -> None:
        if not self._room.acquire(timeout=INBOX_LIMIT_S):
            raise OSError("the messages are not handled any more")  # the reader ends
        super().append(message)

    def pop(self, index: Any = -1) -> Any:
        message = super().pop(index)
        self._room.release()
        return message


class _Server(simple_websocket.Server):  # type: ignore[misc]
    def handshake(self) -> None:
        self.input_buffer = _Inbox()  # before anything is read
        super().handshake()


class _WebSocket(SimpleWebSocketWSGI):  # type: ignore[misc]
    """Engine.IO's WebSocket, with the bounded server."""

    def __init__(self, handler: Any, *_: Any, **__: Any) -> None:
        self.app = handler

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.ws = _Server(environ, max_message_size=MESSAGE_BYTES)
        answer = self.app(self)
        # The web server must not use the connection any more.
        if self.ws.mode == "gunicorn":
            raise StopIteration
        if self.ws.mode == "werkzeug":
            raise ConnectionError
        return answer


class _Outbox(queue.Queue):  # type: ignore[type-arg]
    """Packets to send to one client."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        # None ends the connection, and is always accepted.
        if item is None or self.qsize() < OUTBOX:
            super().put(item, block, timeout)
