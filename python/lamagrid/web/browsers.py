"""Which tasks are whose: a cookie tells browsers apart, Socket.IO tells each what becomes of its tasks.

Upstream sends every event to everybody. Here an event that belongs to one browser's request goes to that
browser, where the cookie says which it is and it listens; to everybody otherwise, as upstream does.

Events besides upstream's:
    ``task_status`` to the browser of a task and to who subscribed: ``id``, ``what``, ``state``, ``position``,
    ``expected_wait_s``, ``activity`` (``loading`` or ``running``, while it is processed), ``step``, ``of``,
    ``node``, ``failure``.
    ``subscribe_task`` and ``unsubscribe_task`` from a browser, with a task's id; the answer is what
    ``task_status`` tells, or ``{"error": text}``.

Does not: ask the scheduler about tasks of other programs.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lamagrid.client import TERMINAL
from lamagrid.errors import LamaGridError

if TYPE_CHECKING:
    from lamagrid.client import Outcome, Progress, Task

COOKIE = "lamagrid"
COOKIE_DAYS = 365
BROWSERS = 1_000
"""So many browsers are remembered, the last ones that sent a task."""
TASKS_EACH = 50
SUBSCRIPTIONS = 32
"""Of one connection."""
ASK_EVERY_S = 1.0
STATUS_LIMIT_S = 1.0
OF_ONE_REQUEST = frozenset(["diffusion_progress", "diffusion_finish"])

_BROWSER = re.compile(r"[0-9a-f]{32}")


@dataclass
class Watched:
    """A task that this server submitted, and where it is.

    Attributes:
        what: The model, or the plugin.
        browser: Who sent it, None if it shows no cookie.
        created: Seconds since the Unix epoch.
    """

    task: Task
    what: str
    browser: str | None
    created: float = field(default_factory=time.time)
    state: str = "queued"
    position: int | None = None
    expected_wait_s: float | None = None
    activity: str | None = None
    step: int = 0
    of: int = 0
    node: str | None = None
    failure: str | None = None

    def told(self) -> dict[str, Any]:
        """As browsers are told."""
        return {
            "id": self.task.id,
            "what": self.what,
            "state": self.state,
            "position": self.position,
            "expected_wait_s": self.expected_wait_s,
            "activity": self.activity,
            "step": self.step,
            "of": self.of,
            "node": self.node,
            "failure": self.failure,
            "created": self.created,
        }

    def ask(self) -> None:
        """Ask the scheduler where it is, if it has not ended."""
        if self.state in TERMINAL:
            return
        try:
            known = self.task.status(STATUS_LIMIT_S)
        except LamaGridError:
            return  # who waits for it hears why
        wait_ms = known.get("wait_ms")
        self.position, self.node = known["position"], known["node"]
        self.expected_wait_s = None if wait_ms is None else round(wait_ms / 1_000, 1)


class Browsers:
    """All browsers that sent tasks lately, and those that listen.

    Args:
        socketio: Upstream's.
    """

    def __init__(self, socketio: Any) -> None:
        self._socketio = socketio
        self._emit = socketio.emit
        self._lock = threading.Lock()  # guards all below
        self._tasks: OrderedDict[str, deque[Watched]] = OrderedDict()
        self._by_id: OrderedDict[str, Watched] = OrderedDict()
        self._listening: dict[str, int] = {}

    def register(self, app: Any) -> None:
        """Give each visitor of the page a cookie, and serve the events."""
        app.after_request(_with_cookie)
        for name, handler in (
            ("connect", self._connected),
            ("disconnect", self._disconnected),
            ("subscribe_task", self._subscribe),
            ("unsubscribe_task", self._unsubscribe),
        ):
            self._socketio.on_event(name, handler)
        self._socketio.emit = self._addressed_emit

    def watch(self, task: Task, what: str) -> Watch:
        """Take note of a task of the request that this thread serves."""
        watched = Watched(task, what, browser_of_request())
        with self._lock:
            self._by_id[task.id] = watched
            while len(self._by_id) > BROWSERS:
                self._by_id.popitem(last=False)
            if watched.browser is not None:
                mine = self._tasks.setdefault(watched.browser, deque(maxlen=TASKS_EACH))
                mine.append(watched)
                self._tasks.move_to_end(watched.browser)
                while len(self._tasks) > BROWSERS:
                    self._tasks.popitem(last=False)
        watch = Watch(self, watched)
        watch.tell()
        return watch

    def tasks(self, browser: str | None) -> list[Watched]:
        """The last tasks of a browser, the newest first."""
        with self._lock:
            return list(reversed(self._tasks.get(browser or "", ())))

    def find(self, browser: str | None, task_id: str) -> Watched | None:
        """A browser's own task."""
        return next((each for each in self.tasks(browser) if each.task.id == task_id), None)

    def is_heard(self, watched: Watched) -> bool:
        """Whether somebody listens for that task."""
        with self._lock:
            if watched.browser is not None and watched.browser in self._listening:
                return True
        manager = self._socketio.server.manager
        return any(True for _ in manager.get_participants("/", _task_room(watched.task.id)))

    def tell(self, watched: Watched) -> None:
        """Send where a task is to those whom it concerns."""
        rooms = [_task_room(watched.task.id)]
        if watched.browser is not None:
            rooms.append(_browser_room(watched.browser))
        self._emit("task_status", watched.told(), to=rooms)

    def _addressed_emit(self, event: str, *args: Any, **kwargs: Any) -> None:
        """``socketio.emit``; what concerns one request goes to its browser, if that listens."""
        if event in OF_ONE_REQUEST and not kwargs:
            browser = browser_of_request()
            with self._lock:
                listens = browser is not None and browser in self._listening
            if browser is not None and listens:
                kwargs = {"to": _browser_room(browser)}
        self._emit(event, *args, **kwargs)

    def _connected(self, _auth: Any = None) -> None:
        from flask_socketio import join_room

        browser = browser_of_request()
        if browser is not None:
            join_room(_browser_room(browser))
            with self._lock:
                self._listening[browser] = self._listening.get(browser, 0) + 1

    def _disconnected(self, *_reason: Any) -> None:
        browser = browser_of_request()
        if browser is not None:
            with self._lock:
                left = self._listening.get(browser, 0) - 1
                if left > 0:
                    self._listening[browser] = left
                else:
                    self._listening.pop(browser, None)

    def _subscribe(self, task_id: Any = None) -> Mapping[str, Any]:
        from flask_socketio import join_room, rooms

        with self._lock:
            watched = self._by_id.get(task_id) if isinstance(task_id, str) else None
        if watched is None or watched.browser not in (None, browser_of_request()):
            return {"error": "no such task of this browser: it ended long ago, or another one sent it"}
        if sum(room.startswith(_TASK) for room in rooms()) >= SUBSCRIPTIONS:
            return {"error": f"at most {SUBSCRIPTIONS} tasks can be followed at once: unsubscribe one first"}
        join_room(_task_room(watched.task.id))
        watched.ask()
        return watched.told()

    def _unsubscribe(self, task_id: Any = None) -> Mapping[str, Any]:
        from flask_socketio import leave_room

        if isinstance(task_id, str):
            leave_room(_task_room(task_id))
        return {}


class Watch:
    """Told by the thread that waits for a task."""

    def __init__(self, browsers: Browsers, watched: Watched) -> None:
        self._browsers = browsers
        self._watched = watched
        self._asked = 0.0

    def tell(self) -> None:
        """Send where it is, with its place in the queue."""
        if self._browsers.is_heard(self._watched):
            self._watched.ask()
            self._asked = time.monotonic()
            self._browsers.tell(self._watched)

    def told(self, progress: Progress | None) -> None:
        """Something happened to the task, or for a while nothing did."""
        watched = self._watched
        if progress is None:
            if watched.state == "queued" and time.monotonic() - self._asked >= ASK_EVERY_S:
                before = watched.position
                if self._browsers.is_heard(watched):
                    watched.ask()
                    self._asked = time.monotonic()
                    if watched.position != before:
                        self._browsers.tell(watched)
        elif progress.status not in TERMINAL:  # the end has a reason, and comes with it
            activity = progress.activity if progress.status == "processing" else None
            is_new = (progress.status, activity) != (watched.state, watched.activity)
            watched.state, watched.activity = progress.status, activity
            watched.step, watched.of = progress.step, progress.of
            if is_new:
                self.tell()
            elif self._browsers.is_heard(watched):
                self._browsers.tell(watched)

    def ended(self, outcome: Outcome) -> None:
        """The task gave its picture."""
        self._watched.node = outcome.task.get("node")
        self._end("completed", None)

    def failed(self, error: Exception) -> None:
        """The task gave none."""
        self._end("cancelled" if getattr(error, "kind", "") == "cancelled" else "failed", str(error))

    def _end(self, state: str, failure: str | None) -> None:
        watched = self._watched
        watched.state, watched.failure = state, failure
        watched.position = watched.expected_wait_s = watched.activity = None
        self._browsers.tell(watched)


_TASK = "task:"


def _task_room(task_id: str) -> str:
    return _TASK + task_id


def _browser_room(browser: str) -> str:
    return "browser:" + browser


def browser_of_request() -> str | None:
    """Which browser sent the request, or holds the connection, that this thread serves."""
    from flask import has_request_context, request

    if not has_request_context():
        return None
    told = request.cookies.get(COOKIE, "")
    return told if _BROWSER.fullmatch(told) else None


def _with_cookie(response: Any) -> Any:
    """The answer to a page's request, with a cookie for a browser that has none."""
    from flask import request

    if request.path in ("/", "/grid") and request.method == "GET" and browser_of_request() is None:
        response.set_cookie(
            COOKIE,
            secrets.token_hex(16),
            max_age=COOKIE_DAYS * 86_400,
            path=request.script_root or "/",
            secure=request.is_secure,
            httponly=True,
            samesite="Lax",
        )
    return response
