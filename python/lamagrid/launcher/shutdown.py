"""Ends the launcher's process on SIGTERM and SIGINT: in a few seconds, with status 0, at any moment.

A thread handles the signals, because an exception in the main thread may be swallowed, or delayed by a long
import.

Does not: end anything on SIGHUP, as when a terminal closes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from lamagrid.launcher.process_supervisor import ProcessSupervisor, say
from lamagrid.web import pending_requests

ENDING = (signal.SIGTERM, signal.SIGINT)
UNWIND_LIMIT_S = 1.0
"""How long the main thread may take to clean up, for example to end the child of Werkzeug's reloader."""
ANSWERS_LIMIT_S = 1.0
"""How long answering the waiting requests may take, once all children are gone."""


class Stopped(BaseException):
    """Raised in the main thread by SIGTERM and SIGINT."""


class Shutdown:
    """Ends the children and this process, once.

    Args:
        children: The child processes.
    """

    def __init__(self, children: ProcessSupervisor) -> None:
        self._children = children
        self._begun = threading.Lock()  # taken for good by the first thread that ends the process
        self._unwound = threading.Event()
        self._raised = False

    def handle_signals(self) -> None:
        """End the process on SIGTERM and SIGINT from now on.

        Raises:
            ValueError: This is not the main thread.
        """
        for number in ENDING:
            signal.signal(number, self._raise)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
            # Not SIG_IGN, which children would inherit.
            signal.signal(signal.SIGHUP, lambda _number, _frame: None)
        read_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        threading.Thread(target=self._watch_signals, args=(read_fd,), name="signals", daemon=True).start()

    def end(self, status: int) -> NoReturn:
        """End the process, from the main thread."""
        self._unwound.set()
        self._end(status)

    def _raise(self, _number: int, _frame: Any) -> None:
        if not self._raised:  # a second one would interrupt the clean-up
            self._raised = True
            raise Stopped

    def _watch_signals(self, pipe: int) -> None:
        while numbers := os.read(pipe, 64):
            if any(number in ENDING for number in numbers):
                self._end(0)
            if signal.SIGHUP in numbers:
                say("SIGHUP: there is nothing to reload; the server goes on")

    def _end(self, status: int) -> NoReturn:
        if not self._begun.acquire(blocking=False):
            threading.Event().wait()
        try:
            pending_requests.stop()
            self._children.stop()
            self._unwound.wait(UNWIND_LIMIT_S)
            pending_requests.wait(time.monotonic() + ANSWERS_LIMIT_S)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):  # its reader has ended
                    stream.flush()
        finally:
            # Threads of browsers may wait in native code, which a normal exit would tear down under them.
            os._exit(status)
