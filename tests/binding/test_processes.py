"""Ctrl-C, forks and the command line, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from .conftest import Grid

PICTURE = """
import os, sys, time
import numpy as np
import lamagrid
client = lamagrid.TaskClient(sys.argv[1])
image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
mask = np.zeros((4, 4), np.uint8)
"""

Script = Callable[[str], Popen[bytes]]


def interrupt(grid: Grid, script: Script, wait: str) -> float:
    """Start a program that waits, send it SIGINT, and return how long it took to end."""
    text = PICTURE + "task = client.submit(image, mask)\n" if "task" in wait else PICTURE
    child = script(text + f"print('waiting', flush=True)\n{wait}\n")
    grid.processes.wait_until(lambda: "waiting" in grid.processes.log(child), 30, "the wait")
    time.sleep(0.3)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    child.wait(10)
    took = time.monotonic() - began
    assert "KeyboardInterrupt" in grid.processes.log(child)
    return took


@pytest.mark.parametrize("wait", ["task.wait(60)", "list(task.follow(60))"])
def test_ctrl_c_ends_a_wait(lonely: Grid, script: Script, wait: str) -> None:
    # 100 ms of it are ours; the rest is the interpreter's end on a busy machine.
    assert interrupt(lonely, script, wait) < 1


def test_ctrl_c_ends_the_wait_for_an_absent_scheduler(lonely: Grid, script: Script) -> None:
    lonely.kill_scheduler()
    assert interrupt(lonely, script, "client.survey(60)") < 1


def test_ctrl_c_during_inpaint_cancels_the_task(lonely: Grid, script: Script) -> None:
    interrupt(lonely, script, "client.inpaint(image, mask, timeout=60)")
    lonely.processes.wait_until(
        lambda: all(q["waiting"] == 0 for q in lonely.client.survey()["queues"]), 5, "the cancel"
    )


FORK = """
first = client.inpaint(image, mask, timeout=30)       # the parent's threads and sockets exist now
task = client.submit(image, mask)
events = task.follow(30)
pids = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert (client.inpaint(image, mask, timeout=30) == image).all()
            assert (client.task(task.id).wait(30) == image).all()
            del client, task, events
            status = 0
        finally:
            os._exit(status)
    pids.append(pid)
assert (client.inpaint(image, mask, timeout=30) == image).all()
statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
assert statuses == [0, 0, 0], statuses
assert list(events)[-1].status == "completed"
assert (client.inpaint(image, mask, timeout=30) == image).all()
print("all fine")
"""


def test_a_fork_makes_its_own_connection(grid: Grid, script: Script) -> None:
    child = script(PICTURE + FORK)
    assert child.wait(60) == 0, grid.processes.tails()
    assert "all fine" in grid.processes.log(child)


def test_events_do_not_cross_a_fork(grid: Grid, script: Script) -> None:
    child = script(
        PICTURE
        + """
task = client.submit(image, mask)
events = client._native.follow(task.id)
if os.fork() == 0:
    try:
        events.next_event(5)
    except lamagrid.errors.InvalidInputError as error:
        os._exit(0 if "before a fork" in str(error) else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
    )
    assert child.wait(60) == 0, grid.processes.tails()


def command(*args: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lamagrid", *args]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_is_the_native_one() -> None:
    assert command("--help").stdout.startswith("Manages a grid")
    wrong = command("nonsense")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_ctrl_c_ends_a_command_without_a_traceback(lonely: Grid) -> None:
    lonely.kill_scheduler()
    child = lonely.processes.start(
        "command", [sys.executable, "-m", "lamagrid", "node", "list", "--data-dir", lonely.data_dir]
    )
    time.sleep(0.5)
    assert child.poll() is None, lonely.processes.log(child)  # it looks for the scheduler
    child.send_signal(signal.SIGINT)
    assert child.wait(5) in (-signal.SIGINT, 130)
    assert "Traceback" not in lonely.processes.log(child)


def test_a_reader_that_leaves_is_no_traceback(data_dir: Path) -> None:
    line = f"'{sys.executable}' -m lamagrid config show --data-dir '{data_dir}' | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_scheduler_ends_in_order_on_a_signal(lonely: Grid, number: signal.Signals) -> None:
    assert lonely.scheduler is not None
    lonely.scheduler.send_signal(number)
    assert lonely.scheduler.wait(20) == 0, lonely.processes.tails()
