"""Runs that are killed, interrupted and continued; schedulers and nodes that die meanwhile. X9"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from batch.conftest import Folders, certs, completed, ended, fill, interrupt, picture
from faults.grid import FaultGrid
from grids.server import BIN, lamagrid_json
from lamagrid import TaskClient

COUNT = 30


def waiting(grid: FaultGrid) -> int:
    """Tasks that wait or run."""
    queues = lamagrid_json("queue", "show", data_dir=grid.data_dir)
    return sum(queue["waiting"] + queue["running"] for queue in queues)


def test_a_killed_run_goes_on_and_does_nothing_twice(grid: FaultGrid, folders: Folders) -> None:
    names = fill(folders.pictures, COUNT)
    before = completed(grid)
    for least in (4, 12):
        run = folders.start("--echo-ms", "150")
        folders.wait_done(least, run)
        run.kill()
        assert ended(run) == -signal.SIGKILL
    taken_up = folders.states()["submitted"] + folders.states()["written"]
    assert taken_up > 0, "the run was killed with nothing under way"
    ran = folders.run("--echo-ms", "150")
    assert (ran.code, set(ran.counts())) == (0, {"done", "skipped"}), ran.err
    assert folders.results() == names
    assert folders.states() == {"done": COUNT}
    assert {len(tasks) for tasks in folders.tasks().values()} == {1}
    assert completed(grid) == before + COUNT


def test_deaths_of_scheduler_and_nodes_cost_nothing(grid: FaultGrid, folders: Folders) -> None:
    names = fill(folders.pictures, COUNT)
    before = completed(grid)
    run = folders.start("--echo-ms", "150")
    folders.wait_done(3, run)
    grid.kill_scheduler()
    folders.wait_done(8, run)
    grid.kill_node("n0")
    grid.kill_scheduler()
    folders.wait_done(14, run)
    grid.kill_node("n1")
    assert ended(run) == 0, grid.processes.log(run)
    grid.wait_ready()
    assert folders.results() == names
    assert folders.states() == {"done": COUNT}
    assert {len(tasks) for tasks in folders.tasks().values()} == {1}
    assert completed(grid) == before + COUNT


def test_the_command_the_scheduler_and_the_nodes_die_together(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, COUNT)
    before = completed(grid)
    run = folders.start("--echo-ms", "200")
    folders.wait_done(5, run)
    run.kill()
    grid.kill_scheduler()
    for node in ("n0", "n1"):
        grid.kill_node(node)
    ended(run)
    grid.wait_ready()
    ran = folders.run("--echo-ms", "200")
    assert (ran.code, folders.states()) == (0, {"done": COUNT}), ran.err
    assert {len(tasks) for tasks in folders.tasks().values()} == {1}
    assert completed(grid) == before + COUNT


def test_ctrl_c_cancels_what_is_under_way(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, COUNT)
    run = folders.start("--echo-ms", "300")
    folders.wait_done(4, run)
    interrupt(run)
    assert ended(run) == 130, grid.processes.log(run)
    log = grid.processes.log(run)
    assert "press Ctrl-C again to leave them in the grid" in log
    assert waiting(grid) == 0
    states = folders.states()
    assert states["submitted"] == states["failed"] == 0, states
    ran = folders.run()
    assert (ran.code, folders.states()["done"]) == (0, COUNT), ran.err


def test_a_second_ctrl_c_leaves_the_tasks_in_the_grid(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, COUNT)
    before = completed(grid)
    # The scheduler stands still, so that cancels take as long as they may.
    run = folders.start("--echo-ms", "300", "--in-flight", "8")
    folders.wait_done(1, run)
    os.kill(grid.schedulers[-1].pid, signal.SIGSTOP)
    try:
        interrupt(run)
        grid.processes.wait_until(lambda: "press Ctrl-C again" in grid.processes.log(run), 10)
        interrupt(run)
        assert ended(run, 4) == 130
    finally:
        os.kill(grid.schedulers[-1].pid, signal.SIGCONT)
    left = folders.states()
    assert left["submitted"] > 0
    ran = folders.run("--echo-ms", "300")
    assert (ran.code, folders.states()) == (0, {"done": COUNT}), ran.err
    assert completed(grid) == before + COUNT


def test_a_result_that_came_but_was_not_listed_is_taken(grid: FaultGrid, folders: Folders) -> None:
    """The run was killed between the result's name and the list's last line."""
    names = fill(folders.pictures, 3)
    assert folders.run().code == 0
    before = completed(grid)
    manifest = folders.out / ".lamagrid-manifest.jsonl"
    lines = manifest.read_text().splitlines()
    kept = [lines[0]] + [line for line in lines[1:] if json.loads(line).get("state") != "done"]
    manifest.write_text("\n".join(kept) + '\n{"input":"cut o')
    ran = folders.run()
    assert (ran.code, ran.counts(), completed(grid)) == (0, {"done": 3}, before)
    assert folders.results() == names


def test_an_input_that_changed_meanwhile_replaces_its_task(grid: FaultGrid, folders: Folders) -> None:
    (folders.pictures / "a.png").write_bytes(picture(1))
    run = folders.start("--echo-ms", "60000")
    grid.processes.wait_until(lambda: waiting(grid) == 1, 20, "the task", alive=[run])
    run.kill()
    ended(run)
    (folders.pictures / "a.png").write_bytes(picture(2))
    ran = folders.run()
    assert (ran.code, ran.counts()) == (0, {"done": 1}), ran.err
    assert len(folders.tasks()["a.png"]) == 2
    assert waiting(grid) == 0, "the earlier task was cancelled"


def test_a_task_that_the_grid_forgot_is_submitted_again(grid: FaultGrid, folders: Folders) -> None:
    (folders.pictures / "a.png").write_bytes(picture(1))
    run = folders.start("--echo-ms", "60000")
    grid.processes.wait_until(lambda: waiting(grid) == 1, 20, "the task", alive=[run])
    run.kill()
    ended(run)
    task = folders.records()[-1]["task"]
    lamagrid_json("task", "cancel", task, data_dir=grid.data_dir)
    done = subprocess.run(
        [BIN / "lamagrid", "purge", "--older-than", "0s", "--yes", "--data-dir", grid.data_dir],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    again = folders.start("--echo-ms", "60000")
    grid.processes.wait_until(lambda: len(folders.tasks()["a.png"]) == 2, 20, "a new task", alive=[again])
    interrupt(again)
    assert ended(again) == 130


def test_only_one_run_writes_into_a_folder(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, 2)
    run = folders.start("--echo-ms", "60000")
    grid.processes.wait_until(lambda: waiting(grid) == 2, 20, "the tasks", alive=[run])
    second = folders.run()
    assert (second.code, "another run writes into" in second.err) == (65, True), second.err
    interrupt(run)
    assert ended(run) == 130


def test_no_more_than_the_wanted_number_is_in_flight(grid: FaultGrid, folders: Folders) -> None:
    fill(folders.pictures, 12)
    client = TaskClient(grid.data_dir)
    run = folders.start("--echo-ms", "150", "--in-flight", "3")
    most = 0
    while run.poll() is None:
        queues = client.survey()["queues"]
        most = max(most, sum(queue["waiting"] + queue["running"] for queue in queues))
    assert (run.returncode, most) == (0, 3), grid.processes.log(run)


def test_a_run_joins_the_scheduler_of_another_host(grid: FaultGrid, folders: Folders, tmp_path: Path) -> None:
    gate = grid.env["LAMAGRID__GATE__LISTEN"]
    bundle = tmp_path / "batch.bundle"
    certs(grid.data_dir, "issue", "--role", "client", "--name", "batch-1")
    certs(grid.data_dir, "bundle", "batch-1", "--scheduler", gate, "--out", bundle)
    names = fill(folders.pictures, 6)
    large = picture(9, size=(400, 300))
    assert len(large) > 256 * 1024, "travels as a blob of its own"
    (folders.pictures / "large.png").write_bytes(large)
    ran = folders.run(folders.pictures, "--mask", folders.mask, "--join", bundle)
    assert ran.pictures["large.png"]["state"] == "failed", "its mask has another size"
    assert (ran.code, ran.counts()["done"]) == (1, 6), ran.err
    (folders.pictures / "000.jpg").unlink()
    ran = folders.run(
        folders.pictures / "large.png", "--mask-color", "#808080", "--mask-tolerance", "60", "--join", bundle
    )
    assert (ran.code, ran.counts()) == (0, {"done": 1}), ran.err
    assert folders.results() == sorted([*names, "large.png"])
