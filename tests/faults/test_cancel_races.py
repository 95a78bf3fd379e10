"""R3.3, R3.4: a cancel that meets submission, assignment, end or crash leaves one end, which all are told."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from faults.checker import TERMINAL, History, Verdict
from faults.grid import FaultGrid
from lamagrid import TaskClient, new_task_id
from lamagrid.errors import CancelledError, LamaGridError, UnknownTaskError

pytestmark = pytest.mark.timeout(3_600)
THREADS = 16


def race(client: TaskClient, other: TaskClient, history: History, rng: random.Random) -> None:
    """One task, and a cancel at a random moment of its life, before its submission included."""
    task_id = new_task_id()
    image, mask = np.full((4, 4, 3), 7, np.uint8), np.zeros((4, 4), np.uint8)
    echo_ms = rng.choice((0, 0, 1, 5, 20, 50))
    moment = rng.random() * rng.choice((0.001, 0.01, 0.06))

    def cancel() -> None:
        time.sleep(moment)
        try:
            status = other.task(task_id).cancel(timeout=30)
        except UnknownTaskError:
            return  # it came before its task, which does not start then
        history.note(task_id, "status", status)
        if status not in TERMINAL:
            history.strange(f"task {task_id} is {status} after its cancel")

    canceller = threading.Thread(target=cancel)
    history.note(task_id, "submitted")
    canceller.start()
    try:
        task = client.submit(image, mask, task_id=task_id, echo_ms=echo_ms, durability="process")
        history.note(task_id, "accepted")
        task.wait(30)
        history.note(task_id, "outcome", "completed")
    except CancelledError:
        history.note(task_id, "outcome", "cancelled")
    except UnknownTaskError as error:
        history.note(task_id, "refused", detail=str(error))
    except LamaGridError as error:
        history.note(task_id, "outcome", "failed", f"{error.kind}: {error}")
    canceller.join()
    history.fault()


def test_cancels_race_with_everything(
    new_grid: Callable[..., FaultGrid],
    judge: Callable[[FaultGrid], Verdict],
    history: History,
    times: Callable[[str], int],
    rng: random.Random,
) -> None:
    grid = new_grid(nodes=2, slots=4)
    left = threading.Semaphore(times("cancels"))

    def work(seed: int) -> None:
        mine = random.Random(seed)
        client, other = grid.client(), grid.client()
        while left.acquire(blocking=False):
            race(client, other, history, mine)

    threads = [threading.Thread(target=work, args=(rng.randrange(1 << 30),)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    # The crash that a cancel can meet.
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.5 + rng.random())
        grid.kill_node(rng.choice(sorted(grid.nodes)))
    for thread in threads:
        thread.join()
    judge(grid)
    ends = history.outcomes()
    assert ends["cancelled"] >= times("cancels") / 10, f"hardly a cancel came in time: {ends}"
    assert ends["completed"] >= times("cancels") / 10, f"hardly a cancel came too late: {ends}"
