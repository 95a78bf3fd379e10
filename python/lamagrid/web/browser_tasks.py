"""Tracks which browser sent which task, and reports the progress of each task to its browser.

A cookie identifies the browser, Socket.IO carries the reports. Upstream sends every event to all browsers.
Here an event of one browser's request goes to that browser, if its cookie is known and it is connected;
otherwise to all, as upstream does.

Events besides upstream's:
    ``task_status`` to the browser of a task and to subscribers: ``id``, ``what``, ``state``, ``position``,
    ``expected_wait_s``, ``activity`` (``loading`` or ``running``, while it is processed), ``step``, ``of``,
    ``node``, ``failure``.
    ``subscribe_task`` and ``unsubscribe_task`` from a browser, with a task's id; the answer has the
    fields of ``task_status``, or ``{"error": text}``.

A server takes over the tasks of the one before it: browsers see them, with their results; tasks that no
browser asks for within a minute are cancelled.

Does not: ask the scheduler about tasks of other programs.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lamagrid.client import TERMINAL, statuses
from lamagrid.errors import InvalidInputError, LamaGridError
from lamagrid.web.task_ledger import TaskLedger, entry_of, hash_of

if TYPE_CHECKING:
    from flask import Flask

    from lamagrid.client import Outcome, Progress, Task, TaskClient
    from lamagrid.upstream.protocol import SocketIO

COOKIE = "lamagrid"
COOKIE_DAYS = 365
BROWSERS = 1_000
"""At most this many browsers are remembered: those that sent a task last."""
TASKS_EACH = 50
SUBSCRIPTIONS = 32
"""Per connection."""
REFRESH_EVERY_S = 1.0
STATUS_LIMIT_S = 1.0
UNCLAIMED_LIMIT_S = 60.0
"""Tasks of a server that has ended are cancelled when no browser asks for them for this long."""
CHECK_EVERY_S = 1.0
"""How often tasks of servers that have ended are looked for and checked."""
RESULT_LIMIT_S = 30.0
REQUEST_EVENTS = frozenset(["diffusion_progress", "diffusion_finish"])

log = logging.getLogger("lamagrid.web")

_BROWSER = re.compile(r"[0-9a-f]{32}")


@dataclass
class WatchedTask:
    """A task that this server, or one before it, submitted, and its state.

    Attributes:
        what: The model, or the plugin.
        browser: The cookie of its browser; None without a cookie, and for another server's task.
        created: Seconds since the Unix epoch.
        taken_over: Whether no request of this server waits for it.
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
    taken_over: bool = False

    def as_event(self) -> dict[str, Any]:
        """The fields that browsers get."""
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
            "has_result": self.taken_over and self.state == "completed",
        }

    def refresh(self) -> None:
        """Update it from the scheduler, unless it has ended.

        Raises:
            InvalidInputError: The scheduler does not know a task of an earlier server any more.
        """
        if self.state in TERMINAL and not self.taken_over:
            return
        try:
            known = self.task.status(STATUS_LIMIT_S)
        except LamaGridError as error:
            if self.taken_over and isinstance(error, InvalidInputError):
                raise
            return  # the request that waits for it reports the error
        self.update(known)

    def update(self, known: Mapping[str, Any]) -> None:
        """Update it from a status of the scheduler. A waiting request reports the end of its own task."""
        if self.taken_over:
            self.state = known["status"]
            failure = known.get("failure")
            self.failure = None if failure is None else failure["message"]
        self.node = known["node"]
        is_over = self.state in TERMINAL
        wait_ms = None if is_over else known.get("wait_ms")
        self.position = None if is_over else known["position"]
        self.expected_wait_s = None if wait_ms is None else round(wait_ms / 1_000, 1)


class BrowserTasks:
    """The browsers that sent tasks recently, and those that are connected.

    Args:
        socketio: Upstream's.
        client: Asks the scheduler about tasks of servers that have ended.
        ledger: Keeps the tasks for the next server; None to keep nothing.
    """

    def __init__(
        self, socketio: SocketIO, client: TaskClient | None = None, ledger: TaskLedger | None = None
    ) -> None:
        self._socketio = socketio
        self._client = client
        self._ledger = ledger
        self._taken_over: dict[str, list[WatchedTask]] = {}
        """Tasks of servers that have ended, by the hash of their browser's cookie."""
        self._claimed_by: set[str | None] = set()
        """The browsers, by the same hash, that asked for those."""
        self._unclaimed: dict[str, tuple[WatchedTask, str | None, float]] = {}
        """Those of them that no browser asked for yet, and when they were found. Used by one thread only."""
        self._emit = socketio.emit
        self._lock = threading.Lock()  # guards all below
        self._tasks: OrderedDict[str, deque[WatchedTask]] = OrderedDict()
        self._by_id: OrderedDict[str, WatchedTask] = OrderedDict()
        self._listening: dict[str, int] = {}

    def register(self, app: Flask) -> None:
        """Set a cookie for each browser, and handle the events."""
        app.after_request(_with_cookie)
        for name, handler in (
            ("connect", self._connected),
            ("disconnect", self._disconnected),
            ("subscribe_task", self._subscribe),
            ("unsubscribe_task", self._unsubscribe),
        ):
            self._socketio.on_event(name, handler)

    def take_over(self) -> None:
        """Take over the tasks of servers that have ended, in a thread of each serving process.

        A process that forks serves through its children: the first child takes over its tasks.
        """
        os.register_at_fork(before=self._before_fork, after_in_child=self._start_thread)
        self._start_thread()

    def _start_thread(self) -> None:
        self._forks = threading.Event()
        self._takeover_thread = threading.Thread(
            target=self._run, args=(self._forks,), name="earlier tasks", daemon=True
        )
        self._takeover_thread.start()

    def _before_fork(self) -> None:
        self._forks.set()
        if self._takeover_thread is not threading.current_thread():
            self._takeover_thread.join()  # so that no lock is held
        if self._ledger is not None:
            self._ledger.close()

    def _run(self, forks: threading.Event) -> None:
        while not forks.wait(CHECK_EVERY_S):
            try:
                self.cancel_unclaimed(time.monotonic())
            except Exception:  # an error with one task must not end the thread
                log.exception("the tasks of an earlier server cannot be checked")

    def cancel_unclaimed(self, now: float) -> None:
        """Find the tasks of servers that have ended, and cancel those that no browser asks for.

        Args:
            now: Monotonic seconds.
        """
        assert self._ledger is not None
        assert self._client is not None
        for entry in self._ledger.take_over():
            if entry.id in self._unclaimed:  # of the process that forked this one
                continue
            watched = WatchedTask(
                self._client.task(entry.id), entry.what, None, entry.created, taken_over=True
            )
            self._unclaimed[entry.id] = (watched, entry.browser, now)
            if entry.browser is not None:
                with self._lock:
                    mine = self._taken_over.setdefault(entry.browser, [])
                    mine.append(watched)
                    mine.sort(key=lambda each: each.created)
                    del mine[:-TASKS_EACH]
        for watched, browser, found in list(self._unclaimed.values()):
            with self._lock:
                is_claimed = browser in self._claimed_by
            if is_claimed or (
                (browser is None or now - found >= UNCLAIMED_LIMIT_S) and self._cancel(watched)
            ):
                del self._unclaimed[watched.task.id]

    def _cancel(self, watched: WatchedTask) -> bool:
        """Cancel a task, if it has not ended. Returns whether the scheduler has answered."""
        task = watched.task
        try:
            state = task.cancel(STATUS_LIMIT_S)
        except InvalidInputError:  # it was never submitted, or ended long ago
            self.forget(task.id)
            return True
        except LamaGridError:
            return False
        log.info("no browser asks for task %s of an earlier server; it is %s", task.id, state)
        return True

    def remember(self, task_id: str, what: str) -> bool:
        """Record a task of the request that this thread serves, before it is submitted.

        Returns:
            Whether its browser finds it again after a restart.
        """
        browser = browser_of_request()
        if self._ledger is not None:
            self._ledger.add(entry_of(task_id, what, browser))
        return self._ledger is not None and browser is not None

    def forget(self, task_id: str) -> None:
        """Remove a task whose end was reported, or that the scheduler does not know."""
        if self._ledger is not None:
            self._ledger.remove(task_id)
        with self._lock:
            for mine in self._taken_over.values():
                mine[:] = [each for each in mine if each.task.id != task_id]

    def watch(self, task: Task, what: str) -> TaskWatch:
        """Track a task of the request that this thread serves."""
        watched = WatchedTask(task, what, browser_of_request())
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
        watch = TaskWatch(self, watched)
        watch.send()
        return watch

    def tasks(self, browser: str | None) -> list[WatchedTask]:
        """The last tasks of a browser, the newest first."""
        if browser is None:
            return []
        hashed = hash_of(browser)
        with self._lock:
            earlier = list(self._taken_over.get(hashed, ()))
            if earlier:
                self._claimed_by.add(hashed)
            mine = [*earlier, *self._tasks.get(browser, ())]
        mine.sort(key=lambda each: each.created, reverse=True)
        return mine[:TASKS_EACH]

    def refreshed(self, browser: str | None) -> list[WatchedTask]:
        """As :meth:`tasks`, updated from the scheduler in one round trip."""
        mine = self.tasks(browser)
        live = [each for each in mine if each.taken_over or each.state not in TERMINAL]
        try:
            found = statuses([each.task for each in live], STATUS_LIMIT_S)
        except LamaGridError:
            return mine  # the requests that wait for them report the error
        gone = set()
        for each, known in zip(live, found):
            if known is not None:
                each.update(known)
            elif each.taken_over:
                self.forget(each.task.id)
                gone.add(each.task.id)
        return [each for each in mine if each.task.id not in gone]

    def find(self, browser: str | None, task_id: str) -> WatchedTask | None:
        """A browser's own task."""
        return next((each for each in self.tasks(browser) if each.task.id == task_id), None)

    def refresh(self, watched: WatchedTask) -> bool:
        """Update a task from the scheduler. Returns whether it is still known."""
        try:
            watched.refresh()
        except InvalidInputError:
            self.forget(watched.task.id)
            return False
        return True

    def has_listener(self, watched: WatchedTask) -> bool:
        """Whether a connected browser gets the events of that task."""
        with self._lock:
            if watched.browser is not None and watched.browser in self._listening:
                return True
        manager = self._socketio.server.manager
        return any(True for _ in manager.get_participants("/", _task_room(watched.task.id)))

    def send(self, watched: WatchedTask) -> None:
        """Send the state of a task to its browser and its subscribers."""
        rooms = [_task_room(watched.task.id)]
        if watched.browser is not None:
            rooms.append(_browser_room(watched.browser))
        self._emit("task_status", watched.as_event(), to=rooms)

    def emit(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Replaces ``socketio.emit``: an event of one request goes to its browser, if that listens."""
        if event in REQUEST_EVENTS and not kwargs:
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
        if watched is None and isinstance(task_id, str):
            watched = self.find(browser_of_request(), task_id)
        if watched is None or watched.browser not in (None, browser_of_request()):
            return {"error": "no such task of this browser: it ended long ago, or another one sent it"}
        if sum(room.startswith(_TASK) for room in rooms()) >= SUBSCRIPTIONS:
            return {"error": f"at most {SUBSCRIPTIONS} tasks can be followed at once: unsubscribe one first"}
        join_room(_task_room(watched.task.id))
        self.refresh(watched)
        return watched.as_event()

    def _unsubscribe(self, task_id: Any = None) -> Mapping[str, Any]:
        from flask_socketio import leave_room

        if isinstance(task_id, str):
            leave_room(_task_room(task_id))
        return {}


class TaskWatch:
    """Gets the events of a task from the thread that waits for it."""

    def __init__(self, browser_tasks: BrowserTasks, watched: WatchedTask) -> None:
        self._browser_tasks = browser_tasks
        self._watched = watched
        self._refreshed = 0.0

    def send(self) -> None:
        """Send its state, with its place in the queue."""
        if self._browser_tasks.has_listener(self._watched):
            self._watched.refresh()
            self._refreshed = time.monotonic()
            self._browser_tasks.send(self._watched)

    def on_event(self, progress: Progress | None) -> None:
        """Handle an event of the task; None if nothing happened for a while."""
        watched = self._watched
        if progress is None:
            if watched.state == "queued" and time.monotonic() - self._refreshed >= REFRESH_EVERY_S:
                before = watched.position
                if self._browser_tasks.has_listener(watched):
                    watched.refresh()
                    self._refreshed = time.monotonic()
                    if watched.position != before:
                        self._browser_tasks.send(watched)
        elif progress.status not in TERMINAL:  # completed() and failed() report the end
            activity = progress.activity if progress.status == "processing" else None
            is_new = (progress.status, activity) != (watched.state, watched.activity)
            watched.state, watched.activity = progress.status, activity
            watched.step, watched.of = progress.step, progress.of
            if is_new:
                self.send()
            elif self._browser_tasks.has_listener(watched):
                self._browser_tasks.send(watched)

    def completed(self, outcome: Outcome) -> None:
        """Report that the task has completed."""
        self._watched.node = outcome.task.get("node")
        self._end("completed", None)

    def failed(self, error: Exception) -> None:
        """Report that the task has failed or was cancelled."""
        self._end("cancelled" if getattr(error, "kind", "") == "cancelled" else "failed", str(error))

    def _end(self, state: str, failure: str | None) -> None:
        watched = self._watched
        self._browser_tasks.forget(watched.task.id)
        watched.state, watched.failure = state, failure
        watched.position = watched.expected_wait_s = watched.activity = None
        self._browser_tasks.send(watched)


_TASK = "task:"


def _task_room(task_id: str) -> str:
    return _TASK + task_id


def _browser_room(browser: str) -> str:
    return "browser:" + browser


def browser_of_request() -> str | None:
    """The cookie of the browser whose request or connection this thread serves."""
    from flask import has_request_context, request

    if not has_request_context():
        return None
    cookie = request.cookies.get(COOKIE, "")
    return cookie if _BROWSER.fullmatch(cookie) else None


def _with_cookie(response: Any) -> Any:
    """Add a cookie to the answer for a page, if the browser has none."""
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
