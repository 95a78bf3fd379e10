"""Administration of nodes with real processes: orders that outlive ``kill -9``, and settings that change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from subprocess import Popen
from typing import Any

import numpy as np

from .conftest import Grid, Pixels, node_program

Picture = tuple[Pixels, Pixels]
LONG_MS = 600_000


def lamagrid(grid: Grid, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line with this exit code."""
    line = [sys.executable, "-m", "lamagrid", *words, "--data-dir", str(grid.data_dir)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done


def shown(grid: Grid, name: str) -> dict[str, Any]:
    """Everything known about a node."""
    told = lamagrid(grid, "node", "show", name, "--output", "json").stdout
    return dict(json.loads(told))


def start_echo(grid: Grid, name: str, *flags: str) -> Popen[bytes]:
    """Start an echo node, and wait until it is connected."""
    words = [node_program(), "--data-dir", grid.data_dir, "--backend", "echo", "--name", name, *flags]
    child = grid.processes.start(name, words)
    grid.processes.wait_until(lambda: is_connected(grid, name), 30, f"node {name}", alive=[child])
    return child


def is_connected(grid: Grid, name: str) -> bool:
    return name in [node["info"]["name"] for node in grid.client.survey()["nodes"]]


def running(grid: Grid, name: str) -> int:
    return next((n["running"] for n in grid.client.survey()["nodes"] if n["info"]["name"] == name), 0)


def wait_for(grid: Grid, what: str, predicate: Callable[[], Any]) -> None:
    grid.processes.wait_until(predicate, 30, what)


def test_a_drain_survives_kill_9_of_the_scheduler_and_is_taken_back(lonely: Grid, picture: Picture) -> None:
    """R4.4: the node finishes its task and is still draining; an undrain lets it serve."""
    node = start_echo(lonely, "n")
    task = lonely.client.submit(*picture, model="lama", echo_ms=LONG_MS)
    wait_for(lonely, "the task", lambda: running(lonely, "n") == 1)
    lamagrid(lonely, "node", "drain", "n")
    lonely.kill_scheduler()
    lonely.start_scheduler()
    wait_for(lonely, "the node", lambda: is_connected(lonely, "n"))
    seen = shown(lonely, "n")
    assert (seen["order"]["kind"], seen["session"]["state"]) == ("drain", "draining")
    assert seen["tasks"][0]["id"] == task.id
    lamagrid(lonely, "node", "undrain", "n")
    wait_for(lonely, "the undrain", lambda: shown(lonely, "n")["session"]["state"] != "draining")
    task.cancel()
    again = lonely.client.submit(*picture, model="lama")
    np.testing.assert_array_equal(again.wait(30), picture[0])
    assert node.poll() is None


def test_a_removed_node_ends_and_is_refused_until_undrain(lonely: Grid, picture: Picture) -> None:
    """R4.4: its task goes to another node, and a restarted scheduler refuses it, too."""
    node = start_echo(lonely, "gpu-1")
    task = lonely.client.submit(*picture, model="lama", echo_ms=3_000)
    wait_for(lonely, "the task", lambda: running(lonely, "gpu-1") == 1)
    start_echo(lonely, "other")
    refused = lamagrid(lonely, "node", "remove", "gpu-11", code=65).stderr
    assert "did you mean gpu-1?" in refused
    lamagrid(lonely, "node", "remove", "gpu-1")
    wait_for(lonely, "the other node", lambda: running(lonely, "other") == 1)
    assert node.wait(20) == 65
    assert "`lamagrid node undrain gpu-1` takes that back" in lonely.processes.log(node)
    np.testing.assert_array_equal(task.wait(30), picture[0])
    assert task.status()["counters"]["crashes"] == 0
    lonely.kill_scheduler()
    lonely.start_scheduler()
    words = [node_program(), "--data-dir", lonely.data_dir, "--backend", "echo", "--name", "gpu-1"]
    assert lonely.processes.start("again", words).wait(30) == 65
    lamagrid(lonely, "node", "undrain", "gpu-1")
    start_echo(lonely, "gpu-1")


def test_a_rust_node_changes_its_settings_or_refuses(lonely: Grid, picture: Picture) -> None:
    """R4.4: while a task runs, and without losing it."""
    start_echo(lonely, "n", "--model", "lama", "--model", "manga")
    task = lonely.client.submit(*picture, model="lama", echo_ms=2_000)
    wait_for(lonely, "the task", lambda: running(lonely, "n") == 1)
    change = ("--slots", "3", "--models", "lama", "--labels", "a,b", "--log-level", "debug")
    done = lamagrid(lonely, "node", "set", "n", *change)
    assert done.stdout == "node n has changed\n"
    wait_for(lonely, "the registration", lambda: (shown(lonely, "n")["session"] or {}).get("slots") == 3)
    seen = shown(lonely, "n")
    session = seen["session"]
    assert [offer["model"] for offer in session["models"]] == ["lama"]
    assert (session["labels"], session["withheld"][0]["model"]) == (["a", "b"], "manga")
    assert (seen["change"]["state"], seen["tasks"][0]["id"]) == ("done", task.id)
    others = [lonely.client.submit(*picture, model="lama", echo_ms=2_000) for _ in range(2)]
    wait_for(lonely, "three tasks at once", lambda: running(lonely, "n") == 3)
    for each in (task, *others):
        np.testing.assert_array_equal(each.wait(30), picture[0])
    refused = lamagrid(lonely, "node", "set", "n", "--threads", "2", "--slots", "1", code=65).stderr
    assert "node n refused the change, and nothing changed: an echo node runs no model" in refused
    assert shown(lonely, "n")["session"]["slots"] == 3
    refused = lamagrid(lonely, "node", "set", "n", "--models", "sd2", code=65).stderr
    assert "started without the model sd2; it has lama, manga" in refused
    refused = lamagrid(lonely, "node", "set", "n", "--log-level", "loud", code=65).stderr
    assert "there are error, warn, info, debug, trace" in refused


def test_a_python_node_changes_its_settings_or_refuses(lonely: Grid, picture: Picture) -> None:
    words = [sys.executable, "-m", "lamagrid", "pynode", "--model", "cv2", "--name", "p"]
    node = lonely.processes.start("p", [*words, "--data-dir", lonely.data_dir])
    lonely.processes.wait_until(lambda: is_connected(lonely, "p"), 60, "the Python node", alive=[node])
    done = lamagrid(lonely, "node", "set", "p", "--threads", "1", "--log-level", "debug", "--labels", "old")
    assert done.stdout == "node p has changed\n"
    wait_for(lonely, "the labels", lambda: (shown(lonely, "p")["session"] or {}).get("labels") == ["old"])
    refused = lamagrid(lonely, "node", "set", "p", "--slots", "2", code=65).stderr
    assert "a Python node works on one task at a time: its models keep state" in refused
    assert lonely.client.submit(*picture, model="cv2").wait(60).shape == picture[0].shape
    assert node.poll() is None


def test_statistics_survive_kill_9(lonely: Grid, picture: Picture) -> None:
    node = start_echo(lonely, "n")
    for _ in range(3):
        lonely.client.submit(*picture, model="lama", echo_ms=20).wait(30)
    lonely.client.submit(*picture, model="lama", echo_ms=LONG_MS).cancel()

    def counted() -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = json.loads(lamagrid(lonely, "stats", "--output", "json").stdout)
        return lines

    wait_for(lonely, "the cancel", lambda: counted()[0]["cancelled"] == 1)
    (before,) = counted()
    assert (before["model"], before["completed"], before["failed"]) == ("lama", 3, 0)
    assert before["run_ms"] >= 60
    lonely.kill_scheduler()
    lonely.start_scheduler()
    assert counted() == [before]
    assert node.poll() is None
