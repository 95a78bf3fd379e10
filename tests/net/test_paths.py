"""Paths between hosts: wrong clocks, slow name servers, swallowed packets, full gates. R4.4, R7.3, X14"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from grids.preload import compiled
from grids.server import BIN
from net.conftest import PORT, SOON_S, Grid, made_network
from net.dns import NameServer, hurry, resolver
from net.hosts import Host, Network
from stock.processes import Processes

pytestmark = pytest.mark.timeout(180)

ECHO = ("--backend", "echo", "--model", "lama")
HOURS_S = 2 * 3_600
BOTH_CLOCKS = re.compile(
    r"the scheduler's clock shows \w+ +\d+ .*the clock of this host shows \w+ +\d+ ", re.DOTALL
)
PHOTO = np.full((700, 700, 3), 7, np.uint8)
MASK = np.full((700, 700), 255, np.uint8)

WAITS = """
import sys, time
import numpy
from lamagrid import LamaGridError, TaskClient

image = numpy.full((700, 700, 3), 7, numpy.uint8)
mask = numpy.full((700, 700), 255, numpy.uint8)
client = TaskClient(join=sys.argv[1])
task = client.submit(image, mask, model="lama", echo_ms=3_000)
print("submitted", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        assert (task.wait(1) == image).all()
        print("done", flush=True)
        break
    except LamaGridError as error:
        print(type(error).__name__, error, flush=True)
"""


network = pytest.fixture(made_network, scope="module", name="network")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[Grid]:
    """A scheduler for all tests of this file; whose clock and limits some of them change."""
    folder = tmp_path_factory.mktemp("paths")
    processes = Processes(folder / "logs")
    try:
        yield Grid(processes, network, folder)
    finally:
        processes.close()


@pytest.fixture
def grid(shared: Grid) -> Iterator[Grid]:
    """The shared one without nodes: those of a test end with it."""
    yield shared
    shared.processes.close(keep=[shared.scheduler])
    shared.processes.wait_until(lambda: shared.nodes() == {}, SOON_S, "the nodes' end", [shared.scheduler])


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clock that is wrong, for LD_PRELOAD."""
    return compiled(Path(__file__).with_name("clock.c"), tmp_path_factory.mktemp("clock"))


def shifted(clock: Path, file: Path, seconds: int) -> dict[str, str]:
    """The variables under which a process has a clock that is wrong until ``file`` is gone."""
    file.write_text(str(seconds))
    return {"LD_PRELOAD": str(clock), "CLOCK_FILE": str(file)}


def doctor(host: Host, bundle: Path) -> dict[str, tuple[str, str]]:
    command = ["ip", "netns", "exec", host.namespace, BIN / "lamagrid", "doctor", "--join", bundle]
    done = subprocess.run(
        [*command, "--output", "json"], check=False, capture_output=True, text=True, timeout=90
    )
    return {each["check"]: (each["state"], each["what"]) for each in json.loads(done.stdout)}


def test_a_scheduler_whose_clock_is_behind_for_a_while_keeps_its_nodes_and_clients(
    grid: Grid, network: Network, tmp_path: Path, clock: Path
) -> None:
    """A call that waits meanwhile fails with both clocks, and works when it is made again."""
    rust = grid.join(network.host("rust"), grid.bundle("gpu-1"), *ECHO)
    python = grid.join_python(network.host("python"), grid.bundle("cpu-1"), "--model", "cv2")
    grid.wait_ready("gpu-1", rust)
    grid.wait_ready("cpu-1", python)
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    client = network.host("client").start(
        grid.processes,
        [BIN / "python", script, grid.bundle("web-1", role="client")],
        {"HOME": str(tmp_path)},
    )
    everybody = [rust, python, client]
    grid.processes.wait_until(
        lambda: "submitted" in grid.processes.log(client), SOON_S, "the task", everybody
    )
    grid.scheduler.send_signal(signal.SIGKILL)
    grid.scheduler.wait(SOON_S)
    wrong = tmp_path / "offset"
    grid.scheduler = grid.start_scheduler(env=shifted(clock, wrong, -HOURS_S))
    for process in everybody:
        grid.processes.wait_until(
            lambda process=process: BOTH_CLOCKS.search(grid.processes.log(process)),
            SOON_S,
            "both clocks",
            [grid.scheduler, *everybody],
        )
    assert grid.nodes() == {}
    wrong.unlink()
    grid.wait_ready("cpu-1", python)
    assert client.wait(SOON_S) == 0, grid.processes.log(client)
    assert "done" in grid.processes.log(client).splitlines()
    grid.wait_ready("gpu-1", rust)


def test_nodes_that_start_with_a_wrong_clock_join_once_it_is_right(
    grid: Grid, network: Network, tmp_path: Path, clock: Path
) -> None:
    """One before the certificates are valid, one after they have ended."""
    behind, ahead = tmp_path / "behind", tmp_path / "ahead"
    early = shifted(clock, behind, -HOURS_S)
    late = shifted(clock, ahead, 40 * 365 * 86_400)
    nodes = {
        "gpu-1": grid.join(network.host("rust"), grid.bundle("gpu-1"), *ECHO, env=early),
        "cpu-1": grid.join_python(network.host("python"), grid.bundle("cpu-1"), "--model", "cv2", env=late),
    }
    for node in nodes.values():
        grid.processes.wait_until(
            lambda node=node: (
                "the scheduler's certificate is valid from" in grid.processes.log(node)
                and "the scheduler's clock shows" in grid.processes.log(node)
            ),
            SOON_S,
            "both clocks in the node's log",
            list(nodes.values()),
        )
    assert grid.nodes() == {}
    behind.unlink()
    ahead.unlink()
    for name, node in nodes.items():
        grid.wait_ready(name, node)


def threads(root: int, name: str) -> int:
    """Threads of this name in all processes below ``root``."""
    below, count = [root], 0
    while below:
        pid = below.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                count += (task / "comm").read_text().strip() == name
                below += [int(child) for child in (task / "children").read_text().split()]
    return count


def test_a_silent_name_server_and_a_dead_address_delay_a_node_and_a_command(
    grid: Grid, network: Network
) -> None:
    """The first server says nothing (the resolver waits 5 s), and the first address swallows packets."""
    far, names, dead = network.host("far"), network.host("names"), network.host("dead")
    with contextlib.ExitStack() as stack:
        silent = NameServer(dead)
        stack.callback(silent.close)
        good = NameServer(names, [dead.address, grid.host.address])
        stack.callback(good.close)
        stack.enter_context(resolver(far, [dead.address, names.address]))
        node = grid.join(far, grid.bundle("gpu-1", scheduler=f"scheduler.test:{PORT}"), *ECHO)
        grid.processes.wait_until(lambda: silent.queries > 0, SOON_S, "a query", [node])
        most = 0

        def answered() -> bool:
            nonlocal most
            most = max(most, threads(node.pid, "lookup"))
            return good.queries > 0

        grid.processes.wait_until(answered, SOON_S, "the second server's turn", [node])
        assert most == 1
        # From now on it is cut off altogether: no error comes back.
        dead.cut()
        grid.wait_ready("gpu-1", node)
        dead.mend()
        admin = grid.bundle("admin", role="admin", scheduler=f"scheduler.test:{PORT}")
        command = ["ip", "netns", "exec", far.namespace, BIN / "lamagrid", "--join", admin, "node", "list"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "gpu-1" in done.stdout
        good.addresses = ()
        hurry(far)
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=90)
        assert done.returncode != 0
        assert "cannot look up scheduler.test" in done.stderr, done.stderr


LARGE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy
from lamagrid import LamaGridError, TaskClient


def send(size, limit_s):
    image = numpy.full((size, size, 3), 7, numpy.uint8)
    mask = numpy.full((size, size), 255, numpy.uint8)
    try:
        TaskClient(join=sys.argv[1]).submit(image, mask, model="lama", timeout=limit_s)
    except LamaGridError as error:
        return error


# One goes with the message, the other on a connection of its own.
with ThreadPoolExecutor(2) as pool:
    print(*pool.map(send, (200, 700), (5, 6)), sep="\\n")
"""


def test_a_path_that_drops_large_packets_is_reported(grid: Grid, network: Network, tmp_path: Path) -> None:
    """A switch that drops what is longer than 1,000 bytes, and says nothing of it."""
    host = network.host("far")
    bundle = grid.bundle("web-1", role="client")
    assert doctor(host, bundle)["path"][0] == "good"
    host.swallow_large(1_000)
    script = tmp_path / "large.py"
    script.write_text(LARGE)
    program = host.start(grid.processes, [BIN / "python", script, bundle], {"HOME": str(tmp_path)})
    found = doctor(host, bundle)
    assert (found["gate"][0], found["path"][0]) == ("good", "bad"), found
    assert "is the path's MTU smaller" in found["path"][1]
    assert program.wait(60) == 0, grid.processes.log(program)
    reported = grid.processes.log(program)
    for what in ("connection", "transfer"):
        assert re.search(
            rf"the {what} began, then stalled after \d+ bytes: .*path's MTU smaller", reported
        ), reported
    assert "temporarily unavailable" not in reported


CROWD = """
import sys
from lamagrid import LamaGridError, TaskClient

clients = [TaskClient(join=sys.argv[1]) for _ in range(9)]
print("in", sum(1 for client in clients[:6] if client.survey(10)), flush=True)
for client in clients[6:]:
    try:
        client.survey(1)
    except LamaGridError as error:
        print("out", error, flush=True)
del client
clients = clients[6:]
print("late", sum(1 for client in clients if client.survey(20)), flush=True)
"""


def test_clients_behind_one_address_are_refused_for_lack_of_room_and_a_node_gets_in(
    grid: Grid, network: Network, tmp_path: Path
) -> None:
    """The limit as it is set; tests/hostile has four hundred clients and the limit as it comes."""
    grid.scheduler.terminate()
    grid.scheduler.wait(SOON_S)
    grid.scheduler = grid.start_scheduler(flags=["--set", "gate.max_connections_per_peer=6"])
    host = network.host("office")
    script = tmp_path / "crowd.py"
    script.write_text(CROWD)
    crowd = host.start(
        grid.processes,
        [BIN / "python", script, grid.bundle("web-1", role="client")],
        {"HOME": str(tmp_path)},
    )
    node = grid.join(host, grid.bundle("gpu-1"), *ECHO)
    grid.wait_ready("gpu-1", node)
    assert crowd.wait(60) == 0, grid.processes.log(crowd)
    lines = grid.processes.log(crowd).splitlines()
    assert {"in 6", "late 3"} <= set(lines), lines
    reported = [line for line in lines if line.startswith("out ")]
    reason = f"no room: 6 connections of clients of your address {host.address} are open"
    assert len(reported) == 3
    assert all(reason in line and "gate.max_connections_per_peer" in line for line in reported), reported
