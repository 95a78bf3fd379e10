"""Networks that fail in every way that is known: the work goes on, nothing is lost or done twice. X8."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from grids.pictures import decoded, encoded, hole
from grids.server import Server, lamagrid_json
from lamagrid.launcher.process_specs import DEMO_MODEL
from net.conftest import PORT, Grid, made_network
from net.hosts import Host, Network
from net.proxy import Proxy
from stock.processes import Processes

pytestmark = pytest.mark.timeout(900)

PHOTO = np.random.default_rng(4).integers(0, 256, (400, 600, 3), np.uint8)
MASK = hole(400, 600, 100, 100, 40)
# A lease is 20 s.
LONG_S = (0.5, 1.5, 3.0, 5.0)
SHORT_S = (0.3, 0.8, 1.5)
BACK_S = 5.0


class Visitors:
    """Browsers that send one picture after the other, whatever the network does.

    Attributes:
        answers: How many came, each with the right pixels.
        wrong: All other answers.
    """

    def __init__(self, host: Host, web: Server, wanted: np.ndarray) -> None:
        self.answers = 0
        self.wrong: list[str] = []
        self._web, self._wanted = web, wanted
        self._picture, self._mask = encoded(PHOTO), encoded(MASK)
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: host.inside(self._visit), daemon=True)
        self._thread.start()

    def _visit(self) -> None:
        while not self._end.is_set():
            answer = self._web.inpaint(self._picture, self._mask)
            if answer.status_code == 200 and np.array_equal(decoded(answer.content), self._wanted):
                self.answers += 1
            else:
                self.wrong.append(f"{answer.status_code} {answer.text[:200]}")

    def wait_one(self) -> None:
        """Wait for one more answer."""
        before, end = self.answers, time.monotonic() + 60
        while self.answers == before and not self.wrong and time.monotonic() < end:
            time.sleep(0.01)
        assert self.answers > before, self.wrong

    def close(self) -> None:
        """Let the last one finish."""
        self._end.set()
        self._thread.join()


class Scene:
    """Two nodes and a web server, each on its own host, which reach the scheduler by a proxy on a fifth."""

    def __init__(self, grid: Grid, network: Network, proxy: Proxy) -> None:
        self.grid = grid
        self.proxy = proxy
        self.hosts = {name: network.host(name) for name in ("gpu-1", "gpu-2", "web")}
        torch = ("--model", f"lama={DEMO_MODEL}", "--device", "cpu", "--threads", "1")
        echo = ("--backend", "echo", "--model", "mat")
        self.nodes = {
            name: grid.join(self.hosts[name], grid.bundle(name, scheduler=self.proxy.address), *flags)
            for name, flags in (("gpu-1", torch), ("gpu-2", echo))
        }
        for name, node in self.nodes.items():
            grid.wait_ready(name, node)
        wanted = grid.client.inpaint(PHOTO, MASK, model="lama", timeout=60)
        bundle = grid.bundle("web-1", role="client", scheduler=self.proxy.address)
        self.web = grid.join_web(self.hosts["web"], bundle)
        self.hosts["web"].inside(self.web.wait_ready)
        self.visitors = Visitors(self.hosts["web"], self.web, wanted)

    def heard_at(self) -> float:
        """When both nodes were heard of again, by the monotonic clock."""
        for name, node in self.nodes.items():
            self.grid.wait_heard(name, node)
        return time.monotonic()

    def finished(self) -> list[tuple[str, int]]:
        """Id and number of attempts, of each log line of a finished task, those of browsers among them."""
        log = "\n".join(path.read_text() for path in (self.grid.data_dir / "logs").glob("scheduler*.log"))
        lines = [line for line in log.splitlines() if "task finished" in line]
        return [(_field(line, "task.id"), int(_field(line, "attempts"))) for line in lines]

    def on_their_way(self, id: str) -> int:
        """Attempts of a task that a cut, or the scheduler's end, met before their node had them.

        An attempt that had begun is ``crashed``; only a scheduler that has just started cannot tell.
        """
        history = lamagrid_json("task", "show", id, data_dir=self.grid.data_dir)["history"]
        events = [entry["event"] for entry in history]
        return events.count("given_back") + events.count("node_lost")

    def close(self) -> None:
        """Let the browsers go."""
        self.visitors.close()


def _field(line: str, name: str) -> str:
    return line.split(f" {name}=")[1].split(" ")[0]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The whole grid, at work through all the cuts of this file."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(contextlib.contextmanager(made_network)())
        folder = tmp_path_factory.mktemp("cuts")
        processes = Processes(folder / "logs")
        stack.callback(processes.close)
        grid = Grid(processes, network, folder)
        proxy = Proxy(network.host("router"), PORT, (grid.host.address, PORT))
        stack.callback(proxy.close)
        scene = Scene(grid, network, proxy)
        stack.callback(scene.close)
        yield scene


@pytest.fixture(scope="session")
def cuts(request: pytest.FixtureRequest) -> int:
    """How often each kind of cut is made."""
    number: int = request.config.getoption("--cuts")
    return number


# Each makes one cut and returns when the network was back, by the monotonic clock.
Cut = Callable[[Scene, int], float]


def _packets(scene: Scene, number: int) -> float:
    hosts = list(scene.hosts.values())
    host = hosts[number % len(hosts)]
    host.cut()
    time.sleep(LONG_S[number % len(LONG_S)])  # the cut itself
    host.mend()
    return time.monotonic()


def _silence(scene: Scene, number: int) -> float:
    scene.proxy.is_silent = True
    time.sleep(LONG_S[number % len(LONG_S)])
    scene.proxy.is_silent = False
    scene.proxy.reset()  # what was swallowed would be missing in the middle of a stream
    return time.monotonic()


def _latency(scene: Scene, number: int) -> float:
    scene.proxy.delay_s = 0.4
    time.sleep(SHORT_S[number % len(SHORT_S)])
    scene.proxy.delay_s = 0.0
    return time.monotonic()


def _trickle(scene: Scene, number: int) -> float:
    scene.proxy.rate = 4_000.0
    time.sleep(LONG_S[number % len(LONG_S)])
    scene.proxy.rate = None
    return time.monotonic()


def _half_open(scene: Scene, number: int) -> float:
    began = time.monotonic()
    scene.proxy.half_open()
    time.sleep(SHORT_S[number % len(SHORT_S)])  # so that what was said before does not pass for a sign
    return began


def _mid_frame(scene: Scene, number: int) -> float:
    began = time.monotonic()
    scene.proxy.cut_after(1 + 7_919 * number)
    time.sleep(SHORT_S[number % len(SHORT_S)])
    return began


def _reset(scene: Scene, number: int) -> float:
    began = time.monotonic()
    scene.proxy.reset()
    time.sleep(SHORT_S[number % len(SHORT_S)])
    return began


def _moved(scene: Scene, number: int) -> float:
    """The scheduler is killed, and comes up elsewhere."""
    scene.grid.scheduler.kill()
    scene.grid.scheduler.wait(20)
    port = PORT + 1 + number
    scene.grid.scheduler = scene.grid.start_scheduler(port)
    scene.proxy.target = (scene.grid.host.address, port)
    scene.grid.processes.wait_until(
        lambda: scene.grid.client.survey() is not None, 20, "the scheduler", [scene.grid.scheduler]
    )
    return time.monotonic()


CUTS_OF = (_packets, _silence, _latency, _trickle, _half_open, _mid_frame, _reset, _moved)


@pytest.mark.parametrize("cut", CUTS_OF, ids=[cut.__name__[1:] for cut in CUTS_OF])
def test_nothing_is_lost_or_done_twice(
    scene: Scene, cut: Cut, cuts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shorter than the lease, a cut costs no second attempt; everybody is back soon after it."""
    backs, mine = [], set()
    answers, wrong = scene.visitors.answers, len(scene.visitors.wrong)
    before = {id for id, _ in scene.finished()}
    lengths = LONG_S if cut in (_packets, _silence, _trickle) else SHORT_S
    for number in range(cuts):
        work_s = lengths[number % len(lengths)] + 0.3
        # Its node hears nothing for a while and works on.
        task = scene.grid.client.submit(PHOTO, MASK, model="mat", echo_ms=int(work_s * 1_000))
        mine.add(task.id)
        scene.grid.wait_begun(task)
        back = cut(scene, number)
        backs.append(scene.heard_at() - back)
        assert np.array_equal(task.wait(60), PHOTO)
        scene.visitors.wait_one()
    finished = scene.finished()
    ids = {id for id, _ in finished}
    duplicated = len(finished) - len(ids)
    lost = len(mine - ids) + len(scene.visitors.wrong) - wrong
    again = {id: attempts - 1 for id, attempts in finished if id not in before and attempts > 1}
    # The attempt that was under way at the cut finishes the task, whatever its history says.
    on_their_way = sum(scene.on_their_way(id) for id in again if id not in mine)
    second_attempts = sum(again.values()) - on_their_way
    with capsys.disabled():
        reported = ", ".join(f"{max(back, 0):.1f}" for back in sorted(backs))
        print(
            f"\n{cut.__name__[1:]}: cuts {cuts}, pictures {scene.visitors.answers - answers + cuts}, "
            f"lost {lost}, duplicated {duplicated}, second attempts {second_attempts} "
            f"(and {on_their_way} of attempts on their way to a node), back after {reported} s"
        )
    assert (lost, duplicated, second_attempts) == (0, 0, 0), scene.visitors.wrong
    assert max(backs) <= BACK_S
