"""Nothing that happens to Redis is an error for a user, a wrong state or a long wait (X6, X8)."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import threading
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cache.conftest import RedisServer
from cache.observer import Observer, percentile
from faults.grid import FaultGrid
from lamagrid import TaskClient, new_task_id
from lamagrid.client import statuses
from lamagrid.errors import LamaGridError
from stock.processes import Processes

OUTCOME_S = 60.0
WORKERS = 3
MOST_ADDED_MS = 50.0


class Work:
    """Threads that submit tasks and wait for each."""

    def __init__(self, clients: list[TaskClient], submitted: Callable[[str], None]) -> None:
        self.done = 0
        self.lost: list[str] = []
        self._submitted = submitted
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(client, n), daemon=True)
            for n, client in enumerate(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, client: TaskClient, number: int) -> None:
        rng = random.Random(number)
        image, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
        while not self._stop.is_set():
            task_id = new_task_id()
            try:
                task = client.submit(image, mask, task_id=task_id, echo_ms=rng.randrange(5, 150), timeout=30)
                self._submitted(task_id)
                task.outcome(OUTCOME_S)
                self.done += 1
            except Exception as error:
                self.lost.append(f"{task_id}: {error}")

    def finish(self) -> None:
        """Submit nothing more and wait for what is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join(OUTCOME_S)
        assert not any(thread.is_alive() for thread in self._threads)


class CachedGrid(FaultGrid):
    """A grid whose nodes are not told where the cache is, since they do not use it."""

    def start_node(self, name: str) -> None:
        """Start a node; it need not be ready."""
        kept = self.env
        self.env = {key: value for key, value in kept.items() if "__CACHE__" not in key}
        super().start_node(name)
        self.env = kept


@pytest.fixture
def grid(processes: Processes, folder: Path, redis_server: RedisServer) -> FaultGrid:
    """Two echo nodes; states are cached in Redis."""
    return CachedGrid(processes, folder, nodes=2, slots=2, settings={"CACHE__URL": redis_server.url})


def direct_client(grid: FaultGrid) -> TaskClient:
    """A client that asks the scheduler."""
    return TaskClient(data_dir=grid.data_dir)


@contextlib.contextmanager
def away(observer: Observer) -> Iterator[None]:
    """Until its end the cache is away."""
    observer.away = True
    try:
        yield
    finally:
        observer.away = False


def faults(
    grid: FaultGrid, server: RedisServer, observer: Observer
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every kind of fault, again and again."""

    def killed() -> None:
        with away(observer):
            server.kill()
            time.sleep(1.0)  # the fault's length, not a wait
        server.start()

    def frozen() -> None:
        with away(observer):
            server.freeze()
            time.sleep(2.0)
        server.thaw()

    def flushed() -> None:
        server.ask("FLUSHALL")

    def full() -> None:
        server.ask("CONFIG SET maxmemory 1")
        time.sleep(1.0)
        server.ask("CONFIG SET maxmemory 0")

    def scheduler() -> None:
        grid.kill_scheduler()
        grid.wait_ready()

    def read_only() -> None:
        server.ask("REPLICAOF 127.0.0.1 1")
        time.sleep(1.0)
        server.ask("REPLICAOF NO ONE")

    kinds = [killed, frozen, flushed, full, scheduler, read_only]
    return itertools.cycle((kind.__name__, kind) for kind in kinds)


@pytest.mark.timeout(900)
def test_faults_of_redis_lose_no_task_and_show_no_wrong_state(
    grid: FaultGrid, redis_server: RedisServer, request: pytest.FixtureRequest
) -> None:
    count: int = request.config.getoption("--redis-faults")
    observer = Observer(grid.client(), direct_client(grid))
    work = Work([grid.client() for _ in range(WORKERS)], observer.submitted)
    for name, fault in itertools.islice(faults(grid, redis_server, observer), count):
        before = work.done
        fault()
        grid.processes.wait_until(lambda: work.done > before + 5, 60, f"tasks after {name}")  # noqa: B023
    work.finish()
    observer.stop()
    cached, direct = observer.cached_s, observer.direct_s
    added = percentile(cached[True], 0.99) - percentile(direct[True], 0.99)
    print(
        f"\ncache: faults {count} tasks {work.done} lost {len(work.lost)} shown {observer.shown} "
        f"wrong {len(observer.wrong)}; while away p99 {percentile(cached[True], 0.99):.1f} ms, "
        f"the scheduler's {percentile(direct[True], 0.99):.1f} ms, added {added:.1f} ms; "
        f"else p50 {percentile(cached[False], 0.5):.1f} ms, "
        f"the scheduler's {percentile(direct[False], 0.5):.1f} ms"
    )
    assert work.lost == []
    assert observer.wrong == []
    assert observer.shown > 0
    assert added < MOST_ADDED_MS


def test_states_come_from_the_cache_while_the_scheduler_stands_still(
    grid: FaultGrid, redis_server: RedisServer, processes: Processes
) -> None:
    """But for no longer than the feed vouches for them; and another owner's tasks do not exist."""
    image, mask = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)
    client = grid.client()
    task = client.submit(image, mask)
    task.outcome(OUTCOME_S)
    processes.wait_until(lambda: redis_server.ask("DBSIZE").strip() == ":2", 20, "the state in Redis")
    with unittest.mock.patch.dict(os.environ, grid.env):
        other = TaskClient(data_dir=grid.data_dir, owner="other")
    assert statuses([other.task(task.id)], 5.0) == [None]

    def shown_while_frozen() -> bool:
        scheduler = grid.schedulers[-1].pid
        os.kill(scheduler, signal.SIGSTOP)
        try:
            found = statuses([task], 0.5)[0]
        except LamaGridError:  # the copy was not read in time
            return False
        finally:
            os.kill(scheduler, signal.SIGCONT)
        return found is not None and found["status"] == "completed"

    processes.wait_until(shown_while_frozen, 30, "an answer from the cache")
    scheduler = grid.schedulers[-1].pid
    os.kill(scheduler, signal.SIGSTOP)
    try:
        processes.wait_until(
            lambda: ":1" in redis_server.ask("DBSIZE"),
            10,
            "the end of its epoch",
        )
        with pytest.raises(LamaGridError):
            statuses([task], 0.3)
    finally:
        os.kill(scheduler, signal.SIGCONT)
