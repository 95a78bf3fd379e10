"""A web server on another host than the scheduler's, and its nodes on two more. R2.1, R7.3"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from grids.pictures import decoded, encoded, hole
from grids.server import BIN, PROGRAMS
from lamagrid.launcher.process_specs import DEMO_MODEL
from net.conftest import SOON_S, Grid
from net.hosts import Host, Network

pytestmark = pytest.mark.timeout(240)

PHOTO = np.random.default_rng(5).integers(0, 256, (900, 1_200, 3), np.uint8)
MASK = hole(900, 1_200, 300, 300, 80)
TORCH = ("--model", f"lama={DEMO_MODEL}", "--device", "cpu", "--threads", "1")
ECHO = ("--backend", "echo", "--model", "lama")


def run(host: Host, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of lamagrid on a host."""
    command = ["ip", "netns", "exec", host.namespace, BIN / "lamagrid", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_pages_of_another_host_get_the_pixels_of_the_schedulers_own(grid: Grid, network: Network) -> None:
    """Pictures of 3 MB go to the scheduler, to a node, and all the way back; four hosts in all."""
    command = [PROGRAMS / "lamagrid-node", "--data-dir", grid.data_dir, "--name", "near", *TORCH]
    near = grid.host.start(grid.processes, command)
    grid.wait_ready("near", near)
    wanted = grid.client.inpaint(PHOTO, MASK, model="lama", timeout=60)
    grid.processes.stop(near)
    nodes = {name: grid.join(network.host(name), grid.bundle(name), *TORCH) for name in ("gpu-1", "gpu-2")}
    for name, node in nodes.items():
        grid.wait_ready(name, node)
    host = network.host("web")
    web = grid.join_web(host, grid.bundle("web-1", role="client"))
    host.inside(web.wait_ready)
    answers = [host.inside(lambda: web.inpaint(encoded(PHOTO), encoded(MASK))) for _ in range(4)]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert np.array_equal(decoded(answer.content), wanted)
    # The page's tasks are its certificate's.
    shown = grid.folder / "admin.bundle"
    grid.bundle("admin", role="admin")
    task = answers[0].headers["X-Lamagrid-Task"]
    reported = run(host, "--join", shown, "task", "show", task, "--output", "json")
    history = json.loads(reported.stdout)
    assert (history["state"], history["owner"]) == ("completed", "web-1")
    listed = run(host, "--join", shown, "node", "list", "--output", "json")
    assert {node["name"] for node in json.loads(listed.stdout)} == set(nodes)


def test_a_client_of_another_host_sees_its_own_tasks_alone(
    grid: Grid, network: Network, tmp_path: Path
) -> None:
    node = grid.join(network.host("far"), grid.bundle("gpu-1"), *ECHO)
    grid.wait_ready("gpu-1", node)
    host = network.host("program")
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, numpy\n"
        "from lamagrid import TaskClient\n"
        "image = numpy.full((700, 700, 3), 7, numpy.uint8)\n"
        "mask = numpy.full((700, 700), 255, numpy.uint8)\n"
        "client = TaskClient(join=sys.argv[1])\n"
        "task = client.submit(image, mask, model='lama')\n"
        "assert (task.wait(30) == image).all()\n"
        "print('done', task.id, client.address)\n"
        "for owner in ('local', 'web-2'):\n"
        "    try:\n"
        "        TaskClient(join=sys.argv[1], owner=owner).submit(image, mask, model='lama')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    program = host.start(
        grid.processes, [BIN / "python", script, grid.bundle("web-1", role="client")], {"HOME": str(tmp_path)}
    )
    assert program.wait(SOON_S) == 0, grid.processes.log(program)
    reported = grid.processes.log(program)
    assert f"{grid.host.address}:8872" in reported
    for owner in ("local", "web-2"):
        assert f"the certificate web-1 has the tasks of the owner web-1, not those of {owner}" in reported
    # A program of the scheduler's own host has another owner.
    mine = grid.client.submit(PHOTO, MASK, model="lama")
    mine.wait(30)
    task = reported.split("done ")[1].split(" ")[0]
    with pytest.raises(Exception, match="no task"):
        grid.client.task(task).status()


@pytest.mark.parametrize(
    ("made", "reported"),
    [
        ("role", "it is for a node, and this is a client: issue one with --role client"),
        ("revoked", "the certificate web-1 was revoked: ask for a new bundle"),
        ("absent", "no scheduler answered at"),
    ],
)
def test_wrong_papers_end_the_page_with_what_to_do(
    grid: Grid, network: Network, made: str, reported: str
) -> None:
    host = network.host("web")
    bundle = grid.bundle("web-1", role="node" if made == "role" else "client")
    if made == "revoked":
        grid.certs("revoke", "web-1")
        # The scheduler looks once a second.
        grid.processes.wait_until(
            lambda: "revoked" in run(host, "--join", bundle, "node", "list").stderr, SOON_S, "revocation", []
        )
    elif made == "absent":
        bundle = grid.bundle("web-1", role="client", scheduler=f"{grid.host.address}:9")
    web = grid.join_web(host, bundle)
    assert web.process.wait(SOON_S) == 1
    assert reported in web.log
    assert "Traceback" not in web.log


def test_commands_of_a_client_are_not_an_administrators(grid: Grid, network: Network) -> None:
    host = network.host("desk")
    done = run(host, "--join", grid.bundle("web-1", role="client"), "task", "list")
    assert done.returncode == 69
    assert "a certificate of the role client does not open the channel admin" in done.stderr
    for words in (("certs", "list"), ("config", "show")):
        done = run(host, "--join", grid.folder / "web-1.bundle", *words)
        assert (done.returncode, "leave it out" in done.stderr) == (2, True), done.stderr
