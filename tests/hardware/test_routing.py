"""Tasks reach the nodes that docs/queues.md says, with a scheduler and echo nodes that are real processes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import pytest

from grids.server import lamagrid_json
from lamagrid.client import Task
from lamagrid.errors import (
    InvalidInputError,
    LamaGridError,
    NodeLostError,
    OutOfMemoryError,
    UnknownModelError,
)
from stock.processes import Processes

from .conftest import Driver, Grid, gpu

ANSWER_S = 30.0
SPILL_S = 2
NO_NODE_S = 1
LONG_MS = 600_000
SMALL, LARGE = (300, 400), (1_000, 1_200)
"""Height and width of pictures below and above a megapixel."""

TABLE = f"""
[scheduler]
no_node_wait_ms = {NO_NODE_S * 1_000}

[queues.gpu]
requires = {{ device = "gpu" }}

[queues.cpu]
requires = {{ device = "cpu" }}

[queues.big]
requires = {{ device = "gpu", memory_gib = 40, labels = ["a100"] }}

[queues.tiny]
requires = {{ device = "gpu", memory_gib = 1, labels = ["old"] }}

[queues.art]
requires = {{ device = "gpu", memory_gib = 8 }}
spill_to = "cpu"
spill_after_s = {SPILL_S}

[models.lama.need]
memory_mib = 500
mib_per_megapixel = 1000
cpu_up_to_megapixels = 1

[models.manga]
queue = "art"

[models.mat.need]
device = "any"
memory_mib = 30000
"""

DEVICES = {"plain": "cpu", "weak": "cuda:0", "strong": "cuda:1"}


class Routed:
    """A grid with requirements, the nodes of one test, and a host with GPUs of 24 and 80 GiB."""

    def __init__(self, grid: Grid, driver: Driver) -> None:
        driver.write(gpu(0, 24), gpu(1, 80))
        self.grid = grid
        self._driver = driver
        self._nodes: dict[str, Popen[bytes]] = {}

    def start(self, name: str, *flags: str | Path) -> None:
        """Start one of `DEVICES`, and wait until it is connected."""
        words = ("--model", "manga", "--model", "mat", "--device", DEVICES[name])
        node = self.grid.echo(self._driver, *words, *flags, name=name)
        self._nodes[name] = node
        self.grid.nodes(set(self._nodes), node)

    def submit(self, size: tuple[int, int], model: str = "lama", **keywords: Any) -> Task:
        """Submit a picture of this size, all of which reaches the network."""
        image, mask = np.zeros((*size, 3), np.uint8), np.full(size, 255, np.uint8)
        return self.grid.client.submit(image, mask, model=model, hd_strategy="Original", **keywords)

    def shown(self, task: Task) -> dict[str, Any]:
        """The scheduler's record of a task, with its history."""
        found: dict[str, Any] = lamagrid_json("task", "show", task.id, data_dir=self.grid.data_dir)
        return found

    def wait_until_runs(self, task: Task) -> str:
        """Wait until a node works on a task, and return its name."""

        def node() -> str | None:
            told = task.status()
            return told["node"] if told["status"] == "processing" else None

        return str(self.grid.processes.wait_until(node, ANSWER_S, "a node for the task"))

    def stop(self) -> None:
        """End the nodes, and wait until the scheduler has seen it."""
        for node in self._nodes.values():
            self.grid.processes.stop(node)
        self.grid.processes.wait_until(
            lambda: self.grid.client.survey()["nodes"] == [], ANSWER_S, "the end of all nodes"
        )


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """A scheduler with the table."""
    folder = tmp_path_factory.mktemp("routed")
    table = folder / "config.toml"
    table.write_text(TABLE)
    processes = Processes(folder / "logs")
    try:
        yield Grid(processes, folder / "data", {"LAMAGRID_CONFIG": str(table)})
    finally:
        processes.close()


@pytest.fixture
def routed(scheduler: Grid, driver: Driver) -> Iterator[Routed]:
    """The same, without nodes yet."""
    made = Routed(scheduler, driver)
    try:
        yield made
    finally:
        made.stop()


def show(tasks: Sequence[tuple[str, Task]]) -> list[dict[str, Any]]:
    """Wait for the tasks, print which node each reached, and return their records."""
    print(f"\n{'task':24} {'queue':6} {'node':6} {'waited':>9}")
    told = []
    for what, task in tasks:
        task.wait(ANSWER_S)
        told.append(dict(task.status()))
        info = told[-1]
        print(f"{what:24} {info['queue']:6} {info['node']:6} {info['stages']['queue_ms']:6.0f} ms")
    return told


def failure_of(task: Task, kind: type[LamaGridError]) -> str:
    """Wait for the failure of a task, print its text and return it."""
    with pytest.raises(kind) as caught:
        task.wait(ANSWER_S)
    print(f"{kind.kind}: {caught.value}")
    return str(caught.value)


def assert_named(text: str, *words: str) -> None:
    """A text names all of these."""
    assert [word for word in words if word not in text] == []


def test_small_pictures_go_to_the_cpu_and_large_ones_to_the_gpu(routed: Routed) -> None:
    routed.start("plain")
    routed.start("strong")
    tasks = [
        (f"{'small' if size == SMALL else 'large'} picture", routed.submit(size))
        for _ in range(5)
        for size in (SMALL, LARGE)
    ]
    told = show(tasks)
    reached = Counter(
        (what, info["queue"], info["node"]) for (what, _), info in zip(tasks, told, strict=True)
    )
    assert reached == {("small picture", "cpu", "plain"): 5, ("large picture", "gpu", "strong"): 5}
    attempts = [
        [entry["node"] for entry in routed.shown(task)["history"] if entry["event"] == "assigned"]
        for _, task in tasks
    ]
    assert attempts == [["plain"], ["strong"]] * 5, "no task was moved"


def test_a_queue_gets_the_nodes_with_its_memory_and_labels(routed: Routed, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.toml"
    labelled.write_text("labels = ['a100']\n")
    routed.start("strong", "--capabilities", labelled)
    routed.start("weak")
    tasks = [("named big", routed.submit(SMALL, queue="big")) for _ in range(3)]
    tasks += [("2 GiB", routed.submit(LARGE)), ("29 GiB", routed.submit(SMALL, "mat"))]
    told = show(tasks)
    assert [info["node"] for info in told[:3]] == ["strong"] * 3
    assert told[4]["node"] == "strong", "the other one has 24 GiB"
    shown = lamagrid_json("node", "show", "weak", data_dir=routed.grid.data_dir)
    reasons = {each["queue"]: each["reason"] for each in shown["refused_queues"]}
    print(reasons)
    assert reasons == {
        "big": "it requires 40 GiB of device memory, the node has 24 GiB",
        "cpu": "it requires a cpu, the node has cuda:0",
        "tiny": "it requires the label old, which the node lacks",
    }


def test_a_task_spills_after_its_time_while_the_gpu_is_away(routed: Routed) -> None:
    routed.start("plain")
    assert_spills(routed, "gpu away")


def test_a_task_spills_after_its_time_while_the_gpu_is_busy(routed: Routed) -> None:
    routed.start("strong")
    busy = routed.submit(LARGE, echo_ms=LONG_MS)
    assert routed.wait_until_runs(busy) == "strong"
    prepared = routed.submit(LARGE, "manga")
    assert routed.wait_until_runs(prepared) == "strong", "the busy node prepares one more task"
    routed.start("plain")
    assert_spills(routed, "gpu busy")
    (told,) = show([("prepared, gpu busy", prepared)])
    assert told["node"] == "plain", "what waits on the busy node is taken back for the idle one"
    busy.cancel()
    (told,) = show([("gpu idle again", routed.submit(LARGE, "manga"))])
    assert (told["queue"], told["node"]) == ("art", "strong")
    assert told["stages"]["queue_ms"] < SPILL_S * 1_000


def assert_spills(routed: Routed, what: str) -> None:
    """A small and a large picture of queue `art` wait for its GPU, and then run on the CPU."""

    def counted() -> dict[str, Any]:
        lines = lamagrid_json("stats", data_dir=routed.grid.data_dir)
        return next((line for line in lines if line["queue"] == "art"), {"completed": 0})

    before = counted()
    tasks = [
        (f"{name}, {what}", routed.submit(size, "manga"))
        for name, size in (("small", SMALL), ("large", LARGE))
    ]
    # A picture of the queue `cpu` that came later passes them: the node is idle, but not theirs yet.
    later = routed.submit(SMALL)
    later.wait(ANSWER_S)
    told = show([*tasks, ("later, small", later)])
    assert [(info["queue"], info["node"]) for info in told] == [("art", "plain")] * 2 + [("cpu", "plain")]
    # The picture that keeps the GPU busy may have ended, too.
    assert counted()["completed"] >= before["completed"] + 2
    for _, task in tasks:
        found = routed.shown(task)
        given = [entry for entry in found["history"] if entry["event"] == "assigned"][-1]
        waited = datetime.fromisoformat(given["at"]) - datetime.fromisoformat(found["created"])
        print(f"given to {given['node']} after {waited.total_seconds():.2f} s")
        assert waited >= timedelta(seconds=SPILL_S), "not before"
        assert (given["node"], given["spilled_to"]) == ("plain", "cpu")


def test_a_named_queue_that_cannot_serve_the_task_is_refused(routed: Routed) -> None:
    with pytest.raises(InvalidInputError) as caught:
        routed.submit(LARGE, queue="tiny")
    print(f"refused: {caught.value}")
    # 500 MiB and 1000 MiB for each of 1.2 megapixels.
    assert_named(str(caught.value), "queue tiny", "a gpu, 1 GiB of memory, the label old", "1.6 GiB")
    assert "submit it to gpu" in str(caught.value)
    with pytest.raises(InvalidInputError) as caught:
        routed.submit(SMALL, queue="nowhere")
    assert_named(str(caught.value), "there is no queue nowhere", "art, big, cpu, gpu, tiny")


def test_a_task_fails_or_waits_for_its_node_as_it_says(routed: Routed) -> None:
    patient = routed.submit(LARGE, no_node_wait=ANSWER_S)
    assert "no node is connected" in failure_of(routed.submit(LARGE), NodeLostError)
    routed.start("plain")
    text = failure_of(routed.submit(LARGE), UnknownModelError)
    assert_named(text, "queue gpu", "requires a gpu", "plain (cpu")
    routed.start("weak")
    told = show([("waited for its node", patient)])
    assert (told[0]["queue"], told[0]["node"]) == ("gpu", "weak")
    assert told[0]["stages"]["queue_ms"] >= 2 * NO_NODE_S * 1_000, "it outlived two that did not wait"
    # A node is there now, and its GPU is too small.
    huge = routed.submit(SMALL, "mat", no_node_wait=ANSWER_S)
    text = failure_of(routed.submit(SMALL, "mat"), OutOfMemoryError)
    assert_named(text, "queue gpu", "any device with 29.", "weak (cuda:0, 24 GiB)")
    assert huge.status()["status"] == "queued"
    routed.start("strong")
    told = show([("waited for its memory", huge)])
    assert (told[0]["queue"], told[0]["node"]) == ("gpu", "strong")


def test_without_configuration_every_node_serves_every_picture(grid: Grid, driver: Driver) -> None:
    for name, lines in (("plain", []), ("strong", [gpu(0, 24)])):
        driver.write(*lines)
        node = grid.echo(driver, name=name)
        grid.nodes({name}, node)
        tasks = []
        for what, size in (("small", SMALL), ("large", LARGE)):
            image, mask = np.zeros((*size, 3), np.uint8), np.full(size, 255, np.uint8)
            tasks.append((f"{what}, one node", grid.client.submit(image, mask)))
        told = show(tasks)
        assert [(info["queue"], info["node"]) for info in told] == [("gpu", name)] * 2
        assert grid.processes.stop(node) == 0


def test_a_spill_in_a_circle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        "[queues.gpu]\nspill_to = 'cpu'\n[queues.cpu]\nspill_to = 'art'\n[queues.art]\nspill_to = 'gpu'\n"
    )
    command = [sys.executable, "-m", "lamagrid", "config", "check", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    print(done.stderr.strip())
    assert done.returncode == 78
    assert_named(done.stderr, "spill_to", str(path), "circle")
    assert any(way in done.stderr for way in ("art -> gpu -> cpu -> art", "gpu -> cpu -> art -> gpu"))
