"""R8.4, P4.2: web, scheduler and nodes, each upgraded alone and all in turn, under load: no request is lost.

The other version speaks the protocol's minor version before ours, and its store has an older schema.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from grids.pictures import decoded, encoded, hole
from grids.server import Server, free_port, lamagrid_json
from stock.forms import stock_form
from stock.processes import Processes
from upgrade.conftest import Version

# Without the build of the earlier version, which has a limit of its own.
pytestmark = pytest.mark.timeout(600, func_only=True)

CLIENTS = 6
NODES = 2
AGAIN = 25
"""Requests that are answered before and after each step."""
PHOTO = np.random.default_rng(2).integers(0, 256, (48, 64, 3), np.uint8)
WEB = """
try:
    from lamagrid.launcher.cli import main
except ImportError:  # where versions up to 0.1 have it
    from lamagrid.web.launcher import main
main()
"""


class Stack:
    """A scheduler, echo nodes and a web server, each of a version."""

    def __init__(self, processes: Processes, data_dir: Path, version: Version) -> None:
        self.processes = processes
        self.data_dir = data_dir
        self.count = 0
        self.scheduler = self._start_scheduler(version)
        self.nodes = [self._start_node(version) for _ in range(NODES)]
        self.web = self._start_web(version)

    def _start_scheduler(self, version: Version) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lamagrid", "scheduler", "--data-dir", self.data_dir]
        scheduler = self.processes.start(f"scheduler-{version.name}", command, version.env)
        self.processes.wait_until(lambda: self._names() is not None, 60, "the scheduler", [scheduler])
        return scheduler

    def _names(self) -> list[str]:
        return [node["name"] for node in lamagrid_json("node", "list", data_dir=self.data_dir)]

    def _start_node(self, version: Version) -> subprocess.Popen[bytes]:
        self.count += 1
        name = f"{version.name}-{self.count}"
        flags = ["--backend", "echo", "--model", "lama", "--name", name, "--data-dir", self.data_dir]
        node = self.processes.start(name, [version.node, *flags], version.env)
        self.processes.wait_until(lambda: name in self._names(), 60, f"node {name}", [node])
        return node

    def _start_web(self, version: Version) -> Server:
        port = free_port()
        flags = ["--model", "lama", "--port", str(port), "--grid-scheduler", self.data_dir]
        command = [sys.executable, "-c", WEB, *flags]
        web = self.processes.start(f"web-{version.name}", command, version.env)
        return Server(self.processes, web, port).wait_ready()

    def upgrade(self, part: str, version: Version) -> None:
        """Replace one part as an operator does."""
        if part == "scheduler":
            self.processes.stop(self.scheduler)
            self.scheduler = self._start_scheduler(version)
        elif part == "nodes":
            old, self.nodes = self.nodes, [self._start_node(version) for _ in range(NODES)]
            for node in old:
                self.processes.stop(node)
        else:
            self.web = self._start_web(version)  # the one before serves those who still wait there


class Visitors:
    """People who send one request after the other."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.good = 0
        self.bad: list[str] = []
        self._lock = threading.Lock()  # guards good and bad
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._visit, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _visit(self) -> None:
        photo, mask = encoded(PHOTO), encoded(hole(48, 64, 10, 10, 12))
        while not self._end.is_set():
            try:
                answer = self.stack.web.inpaint(photo, mask, stock_form())
                wrong = answer.text[:300] if answer.status_code != 200 else None
                if wrong is None and not np.array_equal(decoded(answer.content), PHOTO):
                    wrong = "another picture"
            except requests.RequestException as error:
                wrong = str(error)
            with self._lock:
                if wrong is None:
                    self.good += 1
                else:
                    self.bad.append(wrong)

    def go_on(self) -> None:
        """Let some more requests be answered."""
        seen, end = self.good, time.monotonic() + 120
        while self.good < seen + AGAIN:
            assert time.monotonic() < end, f"{self.good - seen} answers, then none: {self.bad[:3]}"
            time.sleep(0.05)

    def leave(self) -> None:
        """After the answers they wait for."""
        self._end.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def stack(processes: Processes, tmp_path: Path, previous: Version) -> Stack:
    """All of it of the version before."""
    return Stack(processes, tmp_path / "data", previous)


@pytest.fixture
def visitors(stack: Stack) -> Iterator[Visitors]:
    """They come at once."""
    made = Visitors(stack)
    yield made
    made.leave()


def test_the_other_version_is_another_one(previous: Version, current: Version) -> None:
    def reported(version: Version) -> tuple[int, int]:
        env = {**os.environ, **version.env}
        command = [sys.executable, "-m", "lamagrid", "--version"]
        text = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
        major, minor = re.search(r"protocol (\d+)\.(\d+)", text).groups()  # type: ignore[union-attr]
        return int(major), int(minor)

    major, minor = reported(current)
    assert reported(previous) == (major, minor - 1)


@pytest.mark.parametrize(
    "parts",
    [["nodes"], ["scheduler"], ["web"], ["scheduler", "nodes", "web"], ["web", "nodes", "scheduler"]],
    ids=" then ".join,
)
def test_no_request_is_lost(
    stack: Stack, visitors: Visitors, current: Version, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    visitors.go_on()
    for part in parts:
        stack.upgrade(part, current)
        visitors.go_on()
    visitors.leave()
    with capsys.disabled():
        print(f"\n{', '.join(parts)}: {visitors.good} answered, lost {len(visitors.bad)}")
    assert visitors.bad == []
