"""A node that knows everything about another one, and is not that one. R7.1, X6, X11"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grids.server import BIN, PROGRAMS, lamagrid_json
from hostile.conftest import Grid
from hostile.honest import SMALL, SOON_S, Honest
from hostile.speaker import (
    ACCEPT,
    FAREWELL,
    GOODBYE,
    HELLO,
    POLL,
    READY,
    REJECTED,
    SESSION_GONE,
    WELCOME,
    Speaker,
    hello,
)
from lamagrid.client import Task

pytestmark = pytest.mark.timeout(180)

MASK = np.full((100, 100), 255, np.uint8)
VICTIM = "bad-node-1"
WORK_MS = 2_500


def _victims_bundle(grid: Grid) -> Path:
    """A name that the attacker's nodes may have, too, as older versions issued it."""
    ledger = grid.data_dir / "certs" / "issued.json"
    rows: list[dict[str, Any]] = json.loads(ledger.read_text())
    ledger.write_text(json.dumps([row for row in rows if row["name"] != "bad-node"]))
    bundle = grid.bundle(VICTIM, role="node")
    issued = [row for row in json.loads(ledger.read_text()) if row["name"] == VICTIM]
    ledger.write_text(json.dumps(rows + issued))
    return bundle


@pytest.fixture(scope="module")
def victim(grid: Grid) -> Iterator[subprocess.Popen[bytes]]:
    """A node of its own model, so that tasks of that model are its."""
    command = [PROGRAMS / "lamagrid-node", "--join", _victims_bundle(grid), "--backend", "echo"]
    env = {"LAMAGRID__DATA_DIR": str(grid.folder / "of-victim")}
    node = grid.processes.start("victim", [*command, "--model", "manga"], env)
    grid.wait(lambda: _victim(grid) is not None, "the victim")
    return node


def _victim(grid: Grid) -> dict[str, Any] | None:
    nodes = [node for node in grid.near.survey()["nodes"] if node["info"]["name"] == VICTIM]
    return next((node for node in nodes if node["info"]["models"][0]["model"] == "manga"), None)


def _working(grid: Grid) -> Task:
    task = grid.near.submit(SMALL, MASK, model="manga", echo_ms=WORK_MS)
    grid.wait(lambda: task.status()["status"] == "processing", "the task")
    return task


def _finishes_in_one_attempt(task: Task) -> None:
    assert np.array_equal(task.wait(SOON_S), SMALL)
    counters = task.status()["counters"]
    assert (counters["attempts"], counters["crashes"]) == (1, 0)


def test_names_that_collide_are_not_issued(grid: Grid, honest: Honest) -> None:
    issue = [BIN / "lamagrid", "certs", "issue", "--role", "node", "--data-dir", grid.data_dir]
    done = subprocess.run([*issue, "--name", "bad-node-7"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the name bad-node-7 is too like bad-node" in done.stderr


def test_the_name_and_the_process_id_of_another_node_take_nothing_over(
    grid: Grid, honest: Honest, victim: subprocess.Popen[bytes]
) -> None:
    task = _working(grid)
    known = _victim(grid)
    assert known is not None
    said = hello(VICTIM, pid=known["info"]["pid"])
    with Speaker(grid.address, grid.bundles["node"], "control") as attacker:
        kind, _ = attacker.ask(HELLO, said)
        assert kind == WELCOME, "it is a node of its own, of the same name"
        # The same again, as another process: its own session stands in the way, and nothing is told about it.
        kind, reported = attacker.ask(HELLO, hello(VICTIM, pid=1, boot=bytes(16)))
        assert kind == REJECTED
        assert "give this one another name" in str(reported)
        assert str(known["info"]["pid"]) not in str(reported)
        _finishes_in_one_attempt(task)
    assert victim.poll() is None
    assert "no session with the scheduler" not in grid.processes.log(victim)


def test_a_session_is_spoken_for_by_its_own_certificate_alone(
    grid: Grid, honest: Honest, victim: subprocess.Popen[bytes]
) -> None:
    """Also if its id were known: here it is read from the victim's own log."""
    task = _working(grid)
    reported = re.findall(r"session[^0-9a-f]+([0-9a-f]{32})", grid.processes.log(victim))
    session = bytes.fromhex(reported[-1])
    with Speaker(grid.address, grid.bundles["node"], "control") as attacker:
        poll = {"session": session, "running": [], "acknowledged": 0, "refused": []}
        for _ in range(5):
            assert attacker.ask(POLL, poll)[0] == SESSION_GONE
        assert attacker.ask(GOODBYE, {"session": session})[0] == FAREWELL
    with Speaker(grid.address, grid.bundles["node"], "result") as attacker:
        for kind, body in (
            (READY, {"session": session, "credit": 9, "loaded": []}),
            (ACCEPT, {"session": session, "token": bytes(16)}),
        ):
            assert attacker.ask(kind, body)[0] == SESSION_GONE
    _finishes_in_one_attempt(task)
    assert "the scheduler ended the session" not in grid.processes.log(victim)


def test_long_texts_of_a_node_break_nothing_for_others(grid: Grid, honest: Honest) -> None:
    """As long as a header allows, with what a terminal would obey."""
    steering = "\x1b]0;owned\x07\x1b[2J\u009b2J\u202e"
    models = [{"model": f"{n:0>96}", "queue": "gpu", "loaded": True, "present": True} for n in range(256)]
    for changes in (
        {"device": steering + "d" * 64_000},
        {"gpu": steering + "g" * 64_000},
        {"version": steering + "v" * 64_000},
        {"models": models, "device": steering * 100},
    ):
        with Speaker(grid.address, grid.bundles["node"], "control") as attacker:
            kind, welcome = attacker.ask(HELLO, hello("bad-node", **changes))
            assert kind == WELCOME
            nodes = lamagrid_json("node", "list", data_dir=grid.data_dir)
            assert {"bad-node", "honest"} <= {node["name"] for node in nodes}
            assert all(len(node["device"]) <= 96 and len(node["version"]) <= 96 for node in nodes)
            for words in (("node", "list"), ("queue", "show"), ("doctor",)):
                command = [BIN / "lamagrid", *words, "--data-dir", grid.data_dir]
                done = subprocess.run(command, capture_output=True, timeout=30, check=False)
                assert done.returncode == 0 or words == ("doctor",), done.stderr
                assert b"\x1b" not in done.stdout
                assert "\u009b" not in done.stdout.decode()
                assert "\u202e" not in done.stdout.decode()
            names = {node["info"]["name"] for node in grid.near.survey()["nodes"]}
            assert {"bad-node", "honest"} <= names
            # It leaves before the next one comes by its name.
            assert attacker.ask(GOODBYE, {"session": welcome["session"]})[0] == FAREWELL
        honest.wait()
