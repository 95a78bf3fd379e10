"""Bounds what a connection of Socket.IO makes the server hold: a message, waiting ones, unread answers.

Does not: bound the number of connections; `lamagrid.web.request_filter` does.
"""

from __future__ import annotations

import queue
import threading
from typing import Any

import simple_websocket
from engineio.async_drivers._websocket_wsgi import SimpleWebSocketWSGI

MESSAGE_BYTES = 64 * 1024
INBOX = 32
"""Messages that were received and not looked at; then no more is read of the connection."""
INBOX_LIMIT_S = 60.0
OUTBOX = 256
"""Packets for a client that does not read them; then they are dropped until its time limit ends it."""


def install(socketio: Any) -> None:
    """Bound the connections of Flask-SocketIO's server."""
    # Each event in a thread of its own: a client that sends many would have as many.
    socketio.server.async_handlers = False
    engine = socketio.server.eio
    engine.max_http_buffer_size = MESSAGE_BYTES
    engine._async = {**engine._async, "queue": _Outbox, "websocket": _WebSocket}


class _Inbox(list):  # type: ignore[type-arg]
    """Messages of a WebSocket; its reader waits while there are many."""

    def __init__(self) -> None:
        super().__init__()
        self._room = threading.Semaphore(INBOX)

    def append(self, message: Any) -> None:
        if not self._room.acquire(timeout=INBOX_LIMIT_S):
            raise OSError("nothing takes the messages any more")  # the reader ends
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
    """As Engine.IO's, with our server."""

    def __init__(self, handler: Any, *_: Any, **__: Any) -> None:
        self.app = handler

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.ws = _Server(environ, max_message_size=MESSAGE_BYTES)
        answer = self.app(self)
        # The connection was taken out of the web server's hands.
        if self.ws.mode == "gunicorn":
            raise StopIteration
        if self.ws.mode == "werkzeug":
            raise ConnectionError
        return answer


class _Outbox(queue.Queue):  # type: ignore[type-arg]
    """Packets of one client that are to be sent."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        # None ends the connection, and always has room.
        if item is None or self.qsize() < OUTBOX:
            super().put(item, block, timeout)
