"""Reads states through the cache and from the scheduler, and compares the two."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lamagrid import TaskClient
from lamagrid.client import TERMINAL, statuses
from lamagrid.errors import LamaGridError

MAX_STALE_S = 2.5
"""The bound that docs/cache.md states."""
LATEST = 24
"""Tasks that are looked at together."""
KEPT = 400


def version(info: Mapping[str, Any]) -> tuple[int, str]:
    """The place of a state in the life of its task; final states are one place, and compared by name."""
    status, attempts = info["status"], info["counters"]["attempts"]
    if status in TERMINAL:
        return 1 << 30, status
    return 2 * attempts + (status == "queued"), ""


@dataclass
class Observer:
    """A thread that looks at the latest tasks, by both ways, until it is stopped.

    Attributes:
        wrong: States that the scheduler's order does not allow.
        away: Whether the cache is away just now.
        cached_s: Times of look-ups through the cache, while it is away and else.
        direct_s: The same of look-ups at the scheduler.
    """

    cached: TaskClient
    direct: TaskClient
    wrong: list[str] = field(default_factory=list)
    shown: int = 0
    away: bool = False
    cached_s: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    direct_s: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    errors: int = 0

    def __post_init__(self) -> None:
        self._latest: deque[str] = deque(maxlen=LATEST)
        self._seen: dict[str, list[tuple[float, tuple[int, str]]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submitted(self, task_id: str) -> None:
        """Look at this task from now on."""
        self._latest.append(task_id)

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            ids = list(self._latest)
            if ids:
                try:
                    self._look(ids)
                except LamaGridError:  # the scheduler itself is away
                    self.errors += 1
            self._stop.wait(0.01)

    def _timed(self, client: TaskClient, ids: Sequence[str], times: dict[bool, list[float]]) -> list[Any]:
        away, began = self.away, time.monotonic()
        found = statuses([client.task(each) for each in ids], 5.0)
        if away == self.away:
            times[away].append(time.monotonic() - began)
        return list(found)

    def _look(self, ids: Sequence[str]) -> None:
        began = time.monotonic()
        shown = self._timed(self.cached, ids, self.cached_s)
        truth = self._timed(self.direct, ids, self.direct_s)
        now = time.monotonic()
        for task_id, state, after in zip(ids, shown, truth):
            if state is None or after is None:
                if (state is None) != (after is None):
                    self.wrong.append(f"{task_id}: shown {state}, then the scheduler said {after}")
                continue
            self.shown += 1
            seen = self._seen.setdefault(task_id, [])
            known = [place for at, place in seen if at <= began - MAX_STALE_S]
            place, place_after = version(state), version(after)
            is_right = place[0] <= place_after[0] and all(place[0] >= each[0] for each in known)
            if place[0] == place_after[0] and place[1] != place_after[1]:
                is_right = False
            if not is_right:
                self.wrong.append(f"{task_id}: shown {place}, long before {known[-1:]}, then {place_after}")
            seen.append((now, place_after))
        for old in list(self._seen)[:-KEPT]:
            del self._seen[old]


def percentile(times: Sequence[float], share: float) -> float:
    """In milliseconds; 0 without any."""
    ordered = sorted(times)
    return 1_000 * ordered[int((len(ordered) - 1) * share)] if ordered else 0.0
