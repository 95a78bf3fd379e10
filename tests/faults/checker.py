"""Records every submission, acknowledgement and outcome of a run, and judges them.

Invariant: nothing here asks the grid; what is not recorded did not happen.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

TERMINAL = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True)
class Entry:
    """One thing that happened to one task."""

    at: float
    what: str
    """``submitted``, ``accepted``, ``refused``; ``status``: its status was asked for; ``outcome``: it came;
    ``wrong``, ``stale``: its result; ``left``: the caller gave up; ``silence``: a wait was in vain."""
    status: str = ""
    detail: str = ""


@dataclass
class Record:
    """All that is known of one task. ``may_fail``: it is guilty, its failure is right."""

    may_fail: bool = False
    entries: list[Entry] = field(default_factory=list)

    def has(self, what: str) -> bool:
        """Whether such a thing happened."""
        return any(entry.what == what for entry in self.entries)

    def statuses(self, *whats: str) -> list[str]:
        """The statuses of all such entries."""
        return [entry.status for entry in self.entries if entry.what in whats]


@dataclass
class Verdict:
    """The four counts, and why."""

    faults: int
    tasks: int
    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    unfinished: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Lost, duplicated, unexpected, unfinished."""
        return self.lost, self.duplicated, self.unexpected, self.unfinished

    def __str__(self) -> str:
        names = ("lost", "duplicated", "unexpected", "unfinished")
        reported = " ".join(f"{name} {count}" for name, count in zip(names, self.counts))
        return f"faults {self.faults} {reported}"


class History:
    """Records from many threads; :meth:`verdict` judges them at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._finished: Counter[str] = Counter()
        self._strange: list[str] = []
        self.faults = 0

    def note(self, task: str, what: str, status: str = "", detail: str = "", may_fail: bool = False) -> None:
        """Something happened to a task."""
        with self._lock:
            record = self._records.setdefault(task, Record())
            record.may_fail |= may_fail
            record.entries.append(Entry(time.monotonic(), what, status, detail))

    def fault(self) -> None:
        """Something was killed, stopped or cancelled."""
        with self._lock:
            self.faults += 1

    def strange(self, reason: str) -> None:
        """Something happened that no submission explains."""
        with self._lock:
            self._strange.append(reason)

    def finished(self, tasks: Iterable[str]) -> None:
        """The scheduler's log says that these tasks have finished, once for each time that it says so."""
        with self._lock:
            self._finished.update(tasks)

    def in_flight(self) -> int:
        """Tasks that were accepted, and whose outcome has not come."""
        with self._lock:
            records = list(self._records.values())
        return sum(record.has("accepted") and not record.has("outcome") for record in records)

    def entries(self, task: str) -> list[Entry]:
        """The events of a task so far."""
        with self._lock:
            return list(self._records[task].entries)

    def accepted(self) -> list[str]:
        """The tasks that were acknowledged."""
        with self._lock:
            return [task for task, record in self._records.items() if record.has("accepted")]

    def outcomes(self) -> Counter[str]:
        """How often tasks ended in which state."""
        with self._lock:
            ends = (record.statuses("outcome")[-1:] for record in self._records.values())
            return Counter(status for end in ends for status in end)

    def verdict(self) -> Verdict:
        """Judge everything that was recorded."""
        with self._lock:
            verdict = Verdict(self.faults, len(self._records))
            for reason in self._strange:
                verdict.unexpected += 1
                verdict.reasons.append(f"unexpected: {reason}")
            for task in self._finished.keys() - self._records.keys():
                verdict.unexpected += 1
                verdict.reasons.append(f"unexpected: task {task} finished and was never submitted")
            for task, record in self._records.items():
                self._judge(task, record, verdict)
            return verdict

    def _judge(self, task: str, record: Record, verdict: Verdict) -> None:
        def bad(kind: str, why: str) -> None:
            setattr(verdict, kind, getattr(verdict, kind) + 1)
            began = record.entries[0].at
            lines = [f"    {e.at - began:8.3f} s  {e.what} {e.status} {e.detail}" for e in record.entries]
            verdict.reasons.append("\n".join([f"{kind}: task {task}: {why}", *lines]))

        ends = {status for status in record.statuses("status", "outcome") if status in TERMINAL}
        outcomes = record.statuses("outcome")
        if self._finished[task] > 1:
            bad("duplicated", f"the scheduler finished it {self._finished[task]} times")
        elif len(ends) > 1:
            bad("duplicated", f"it ended as {' and as '.join(sorted(ends))}")
        if len(outcomes) > 1:
            bad("duplicated", f"its outcome came {len(outcomes)} times")
        if outcomes and not record.has("submitted"):
            bad("unexpected", "its outcome came, and it was never submitted")
        if record.has("wrong"):
            bad("unexpected", "its result is not what was asked for")
        if record.has("stale"):
            bad("unexpected", "its result is of an attempt that had lost its lease")
        if "failed" in ends and not record.may_fail:
            bad("unexpected", "an innocent task failed")
        if not record.has("accepted"):
            return
        reported = record.statuses("status")
        if reported and reported[-1] == "unknown":
            bad("lost", "it was accepted, and the scheduler does not know it")
        elif not ends:
            bad("unfinished", "it was accepted and has no end")
        elif not outcomes and not record.has("left"):
            bad("unfinished", "it ended, and its client got no outcome")
