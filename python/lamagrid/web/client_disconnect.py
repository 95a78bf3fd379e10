"""Who waits for the answer to the HTTP request in hand, and whether they still do.

Does not: read a byte of the connection, or write one.
Who calls it: `lamagrid.web.model_manager`, while it waits for a picture.
"""

from __future__ import annotations

import re
import select
import socket
import sys
import time

from lamagrid.web.forwarded_headers import client_key

GRACE_S = 1.0
"""A connection that has been closed for so long has nobody at its other end."""

_CLIENT = re.compile(r"[A-Za-z0-9\-_.:@/%]{1,128}")


class ClientConnection:
    """The other end of one request's connection.

    Args:
        connection: Its socket, None where the server does not show it.
        address: Where it comes from, as :func:`client_key` gives it; None where that is not known.
    """

    def __init__(self, connection: socket.socket | None, address: str | None) -> None:
        self._connection = connection
        self._closed_since: float | None = None
        self.client = address if address is not None and _CLIENT.fullmatch(address) else None
        """The caller as a client of the grid: its fair share is its own."""

    @classmethod
    def of_request(cls) -> ClientConnection:
        """The caller of the request that this thread serves; one that never leaves if it serves none."""
        flask = sys.modules.get("flask")  # a program without it gets by without it
        if flask is None or not flask.has_request_context():
            return cls(None, None)
        environ = flask.request.environ
        # The server that Lama Cleaner runs on names the socket, gunicorn does, and another one may not.
        connection = environ.get("werkzeug.socket") or environ.get("gunicorn.socket")
        return cls(connection, client_key(flask.request.remote_addr))

    @property
    def can_leave(self) -> bool:
        """Whether :meth:`has_left` can ever say so."""
        return self._connection is not None

    def has_left(self) -> bool:
        """Whether the connection has been closed for the grace, so that nobody would read an answer.

        A caller that closes only its sending side cannot be told from one that left; browsers do not do that.
        """
        if not self._is_closed():
            self._closed_since = None
            return False
        now = time.monotonic()
        if self._closed_since is None:
            self._closed_since = now
        return now - self._closed_since >= GRACE_S

    def _is_closed(self) -> bool:
        if self._connection is None:
            return False
        if self._connection.fileno() < 0:
            return True
        # Not MSG_DONTWAIT: Python waits for the socket's own time limit before that counts.
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        try:
            return bool(poll.poll(0)) and self._connection.recv(1, socket.MSG_PEEK) == b""
        except InterruptedError:
            return False
        except ValueError:  # a TLS socket takes no flags
            return False
        except OSError:
            return True
