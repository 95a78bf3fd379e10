"""A client that works through the gate while others misbehave.

It is a process of its own: attackers' threads in this one would keep it waiting for the interpreter.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import multiprocessing.sharedctypes
import multiprocessing.synchronize
import time
from pathlib import Path

import numpy as np

from lamagrid import TaskClient

SOON_S = 30.0
SMALL = np.full((100, 100, 3), 7, np.uint8)
LARGE = np.full((600, 600, 3), 7, np.uint8)
# The scheduler keeps 1 to 2 KB of each honest task: at this rate they do not hide what attacks leave.
PAUSE_S = 0.05

Number = multiprocessing.sharedctypes.Synchronized


def _one(client: TaskClient, picture: np.ndarray) -> str:
    """Have one picture worked on. Returns what was wrong, "" for nothing."""
    try:
        task = client.submit(picture, np.full(picture.shape[:2], 255, np.uint8))
        outcome = task.outcome(SOON_S)
        task.release()
    except Exception as error:  # any error of an honest client is a finding
        return f"{type(error).__name__}: {error}"
    counters = outcome.task["counters"]
    if (counters["attempts"], counters["crashes"], counters["failures"]) != (1, 0, 0):
        return f"more than one attempt: {counters}"
    return "" if np.array_equal(outcome.rgb(), picture) else "wrong pixels"


def _work(
    bundle: Path,
    done: Number[int],
    slowest_s: Number[float],
    pause_s: Number[float],
    wrong: multiprocessing.queues.Queue[str],
    end: multiprocessing.synchronize.Event,
) -> None:
    client = TaskClient(join=bundle)
    while not end.wait(pause_s.value):
        began = time.monotonic()
        found = _one(client, LARGE if done.value % 4 == 0 else SMALL)
        slowest_s.value = max(slowest_s.value, time.monotonic() - began)
        if found:
            wrong.put(found)
        else:
            done.value += 1


class Honest:
    """Work that goes on through the gate."""

    def __init__(self, bundle: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._done: Number[int] = context.Value("L", 0)
        self._slowest_s: Number[float] = context.Value("d", 0.0)
        self._pause_s: Number[float] = context.Value("d", 0.0)
        self._reported: multiprocessing.queues.Queue[str] = context.Queue()
        self._wrong: list[str] = []
        self._end = context.Event()
        shared = (self._done, self._slowest_s, self._pause_s, self._reported, self._end)
        self._process = context.Process(target=_work, args=(bundle, *shared), daemon=True)
        self._process.start()

    @property
    def done(self) -> int:
        """Tasks that came back right, after one attempt."""
        return self._done.value

    @property
    def slowest_s(self) -> float:
        """The longest that one took since :meth:`reset`."""
        return self._slowest_s.value

    @property
    def wrong(self) -> list[str]:
        """Errors of the other tasks."""
        while not self._reported.empty():
            self._wrong.append(self._reported.get())
        return self._wrong

    def reset(self) -> None:
        """Forget the slowest one."""
        self._slowest_s.value = 0.0

    def slow_down(self) -> None:
        """Work as a few people do from now on."""
        self._pause_s.value = PAUSE_S

    def wait(self, count: int = 1) -> None:
        """Wait for ``count`` more."""
        wanted, end = self.done + count, time.monotonic() + SOON_S
        while self.done < wanted and time.monotonic() < end:
            time.sleep(0.01)
        assert self.done >= wanted, (self.wrong, self._process.exitcode)

    def close(self) -> None:
        """Let the last one finish."""
        self._end.set()
        self._process.join(SOON_S)
        assert self._process.exitcode == 0, self._process.exitcode
