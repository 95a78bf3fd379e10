"""Tells whether the client of an HTTP request still waits for the answer.

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
"""A connection that has been closed for this long is lost."""

_CLIENT = re.compile(r"[A-Za-z0-9\-_.:@/%]{1,128}")


class ClientConnection:
    """The connection of one request.

    Args:
        connection: Its socket, None where the server does not show it.
        address: Where it comes from, as :func:`client_key` gives it; None where that is not known.
    """

    def __init__(self, connection: socket.socket | None, address: str | None) -> None:
        self._connection = connection
        self._closed_since: float | None = None
        self.client = address if address is not None and _CLIENT.fullmatch(address) else None
        """The client's name in the grid, which gives each its fair share; None if it is not known."""

    @classmethod
    def of_request(cls) -> ClientConnection:
        """Of the request that this thread serves; one that is never lost if it serves none."""
        flask = sys.modules.get("flask")  # not imported by programs that use only the model manager
        if flask is None or not flask.has_request_context():
            return cls(None, None)
        environ = flask.request.environ
        # The server that Lama Cleaner runs on names the socket, gunicorn does, and another one may not.
        connection = environ.get("werkzeug.socket") or environ.get("gunicorn.socket")
        return cls(connection, client_key(flask.request.remote_addr))

    def is_lost(self) -> bool:
        """Whether the connection has been closed for the grace.

        A client that closes only its sending side looks the same; browsers do not do that.
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
