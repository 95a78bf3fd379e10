"""A browser as Socket.IO sees it."""

from __future__ import annotations

from typing import Any

import requests
import socketio

from grids.server import Server

SOON_S = 20


class Browser:
    """A connection that keeps all events it receives, in their order."""

    def __init__(self, server: Server, cookie: str | None = None) -> None:
        session = requests.Session()
        session.trust_env = False
        if cookie is not None:
            session.headers["Cookie"] = f"lamagrid={cookie}"
        self.events: list[tuple[Any, ...]] = []
        self._client = socketio.Client(http_session=session, reconnection=False)
        self._client.on("*", lambda event, *payload: self.events.append((event, *payload)))
        self._client.connect(server.base, transports=["polling"], wait_timeout=SOON_S)

    def await_silence(self) -> None:
        """Wait for what was on its way when this was called: our servers' answers come behind it."""
        self._client.call("unsubscribe_task", "0" * 32, timeout=SOON_S)

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
