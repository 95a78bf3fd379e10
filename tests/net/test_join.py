"""A node on another host: one file, one command; real pictures, wrong papers, revocation, deaths. R4.3"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from grids.pictures import hole
from grids.server import BIN, PROGRAMS
from lamagrid.launcher.process_specs import DEMO_MODEL
from net.conftest import SOON_S, Grid
from net.hosts import Network
from parity.stock import stock_inpaint

pytestmark = pytest.mark.timeout(180)

ECHO = ("--backend", "echo", "--model", "lama")
REFUSED = 65
PHOTO = np.random.default_rng(3).integers(0, 256, (900, 1_200, 3), np.uint8)
MASK = hole(900, 1_200, 300, 300, 80)


def test_a_node_of_another_host_gives_the_pixels_of_one_of_this(grid: Grid, network: Network) -> None:
    """Arrays of 3 MB there and back, and files; the model is the packaged one, on both."""
    torch = ("--model", f"lama={DEMO_MODEL}", "--device", "cpu", "--threads", "1")
    command = [PROGRAMS / "lamagrid-node", "--data-dir", grid.data_dir, "--name", "near", *torch]
    near = grid.host.start(grid.processes, command)
    grid.wait_ready("near", near)
    wanted = grid.client.inpaint(PHOTO, MASK, model="lama", timeout=60)
    grid.processes.stop(near)
    far = grid.join(network.host("far"), grid.bundle("gpu-1"), *torch)
    grid.wait_ready("gpu-1", far)
    task = grid.client.submit(PHOTO, MASK, model="lama")
    assert np.array_equal(task.wait(60), wanted)
    assert task.status()["node"] == "gpu-1"
    assert not np.array_equal(wanted, PHOTO)


def test_a_python_node_of_another_host_gives_upstreams_pixels(grid: Grid, network: Network) -> None:
    node = grid.join_python(network.host("far"), grid.bundle("cpu-1"), "--model", "cv2")
    grid.wait_ready("cpu-1", node)
    fields = {"hd_strategy": "Original", "cv2_flag": "INPAINT_TELEA", "cv2_radius": 4}
    made = grid.client.inpaint(PHOTO, MASK, model="cv2", timeout=60, **fields)
    assert np.array_equal(made[:, :, ::-1], stock_inpaint(None, PHOTO, MASK, fields, "cv2"))
    grid.certs("revoke", "cpu-1")
    assert node.wait(SOON_S) == REFUSED
    assert "ask for a new bundle" in grid.processes.log(node)


@pytest.mark.parametrize(
    ("made", "reported"),
    [
        ("revoked", "the certificate gpu-1 was revoked: ask for a new bundle"),
        ("name", "the node calls itself other, but its certificate is for gpu-1"),
        ("queue", "the certificate gpu-1 is for other queues than those of the node's models"),
        ("authority", "is the bundle from its `lamagrid certs`?"),
    ],
)
def test_wrong_papers_end_the_node_with_what_to_do(
    grid: Grid, network: Network, tmp_path: Path, made: str, reported: str
) -> None:
    flags: tuple[str, ...] = ECHO
    bundle = grid.bundle("gpu-1", *(("--queue", "cpu") if made == "queue" else ()))
    if made == "revoked":
        grid.certs("revoke", "gpu-1")
    elif made == "name":
        flags = (*ECHO, "--name", "other")
    elif made == "authority":
        address = bundle.read_text().split("# scheduler: ")[1].split("\n")[0]
        elsewhere = Grid.__new__(Grid)
        elsewhere.data_dir = tmp_path / "elsewhere"
        elsewhere.certs("init")
        elsewhere.certs("issue", "--role", "node", "--name", "gpu-1")
        elsewhere.certs("bundle", "gpu-1", "--scheduler", address, "--out", bundle)
    node = grid.join(network.host("far"), bundle, *flags)
    assert node.wait(SOON_S) == REFUSED
    assert reported in grid.processes.log(node)
    assert grid.nodes() == {}
    # The next good one works.
    good = grid.join(network.host("good"), grid.bundle("gpu-2"), *ECHO)
    grid.wait_ready("gpu-2", good)
    assert np.array_equal(grid.client.inpaint(PHOTO, MASK, model="lama", timeout=60), PHOTO)


def test_papers_are_renewed_without_a_restart(grid: Grid, network: Network) -> None:
    """The node's process and its work go on; each side shows the new certificate with the next connection."""
    host = network.host("far")
    bundle = grid.bundle("gpu-1", "--days", "2")
    node = grid.join(host, bundle, *ECHO)
    grid.wait_ready("gpu-1", node)
    grid.certs("renew")
    assert grid.bundle("gpu-1", "--days", "300") == bundle
    grid.processes.wait_until(
        lambda: "the certificate was renewed" in grid.processes.log(grid.scheduler),
        SOON_S,
        "the scheduler's new certificate",
        [grid.scheduler],
    )
    task = grid.client.submit(PHOTO, MASK, model="lama", echo_ms=3_000)
    grid.wait_begun(task)
    grid.scheduler.send_signal(signal.SIGKILL)
    grid.scheduler.wait(SOON_S)
    grid.scheduler = grid.start_scheduler()
    assert np.array_equal(task.wait(60), PHOTO)
    assert "the certificate was renewed" in grid.processes.log(node)


def test_the_doctor_says_what_keeps_a_host_out(grid: Grid, network: Network) -> None:
    host = network.host("far")
    bundle = grid.bundle("gpu-1")

    def doctor(*words: str | Path) -> tuple[int, dict[str, tuple[str, str]]]:
        command = ["ip", "netns", "exec", host.namespace, BIN / "lamagrid", "doctor", *words]
        done = subprocess.run(
            [*command, "--output", "json"], check=False, capture_output=True, text=True, timeout=60
        )
        found = json.loads(done.stdout)
        return done.returncode, {each["check"]: (each["state"], each["what"]) for each in found}

    status, found = doctor("--join", bundle)
    assert status == 0, found
    for check in ("disk", "bundle", "certificate", "port", "gate", "clock", "libtorch"):
        assert found[check][0] == "good", found
    host.cut()
    status, found = doctor("--join", bundle)
    assert (status, found["port"][0]) == (1, "bad"), found
    host.mend()
    grid.certs("revoke", "gpu-1")
    grid.processes.wait_until(lambda: doctor("--join", bundle)[0] == 1, SOON_S, "revocation", [])
    assert "ask for a new bundle" in doctor("--join", bundle)[1]["gate"][1]


def test_revocation_ends_a_node_at_work(grid: Grid, network: Network) -> None:
    """Its task goes to another one when its lease has ended; the lease is 20 s if nothing is set."""
    grid.processes.stop(grid.scheduler)
    grid.scheduler = grid.start_scheduler(flags=["--set", "scheduler.lease_ms=5000"])
    node = grid.join(network.host("far"), grid.bundle("gpu-1"), *ECHO)
    grid.wait_ready("gpu-1", node)
    task = grid.client.submit(PHOTO, MASK, model="lama", echo_ms=5_000)
    grid.wait_begun(task)
    grid.certs("revoke", "gpu-1")
    assert node.wait(SOON_S) == REFUSED
    second = grid.join(network.host("second"), grid.bundle("gpu-2"), *ECHO)
    grid.wait_ready("gpu-2", second)
    grid.processes.wait_until(lambda: task.status()["node"] == "gpu-2", SOON_S, "the task", [second])
    task.cancel()


def test_a_scheduler_that_is_killed_gets_its_nodes_and_their_work_back(grid: Grid, network: Network) -> None:
    node = grid.join(network.host("far"), grid.bundle("gpu-1"), *ECHO)
    grid.wait_ready("gpu-1", node)
    task = grid.client.submit(PHOTO, MASK, model="lama", echo_ms=4_000)
    grid.wait_begun(task)
    grid.scheduler.send_signal(signal.SIGKILL)
    grid.scheduler.wait(SOON_S)
    grid.scheduler = grid.start_scheduler()
    assert np.array_equal(task.wait(60), PHOTO)
    assert task.status()["counters"]["attempts"] == 1
