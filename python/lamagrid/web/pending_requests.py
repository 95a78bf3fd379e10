"""Counts the HTTP requests that wait for a task, and notifies them when the server is about to end.

Does not: end the server or a request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lamagrid.errors import LamaGridError

SENT_S = 0.2
"""How long an answer takes from the end of its task until it is sent."""


class StoppingError(LamaGridError):
    """The server ends before the task does."""

    kind = "disconnected"


_changed = threading.Condition()  # guards both below
_waiting = 0
_stopping = False


@contextmanager
def waiting() -> Iterator[None]:
    """Count a request while it waits."""
    global _waiting
    with _changed:
        _waiting += 1
    try:
        yield
    finally:
        with _changed:
            _waiting -= 1
            _changed.notify_all()


def stop() -> None:
    """Tell all requests that the server ends."""
    global _stopping
    with _changed:
        _stopping = True


def is_stopping() -> bool:
    """Whether the server is about to end."""
    return _stopping


def wait(deadline: float) -> None:
    """Wait until no request waits and the answers are sent, or until the monotonic time ``deadline``."""
    with _changed:
        had_any = _waiting > 0
        _changed.wait_for(lambda: _waiting == 0, max(0.0, deadline - time.monotonic()))
    if had_any:
        time.sleep(SENT_S)
