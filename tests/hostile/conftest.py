"""A scheduler behind its gate, with an honest node and an honest client that go on all the while."""

from __future__ import annotations

import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from grids.procfs import rss_bytes
from grids.server import BIN, PROGRAMS, GridServer, free_port, start_grid
from hostile.honest import SOON_S, Honest
from lamagrid import TaskClient, _native
from stock.processes import Processes

MOST_GROWTH_MB = 10.0
MAX_PIXELS = 6_000_000
"""The limit of the web server."""
# Memory of connections that ended goes back a second after them (decision 0016).
GIVEN_BACK_S = 3.0


class Grid:
    """The scheduler that is attacked.

    Attributes:
        address: Its gate's.
        http: Where it answers ``/healthz``.
        near: A client of its own host.
        is_warm: Whether its memory is that of a scheduler that has worked for a while.
    """

    def __init__(
        self,
        processes: Processes,
        folder: Path,
        wrapper: tuple[str, ...] = (),
        settings: tuple[str, ...] = (),
    ) -> None:
        self.http = ("127.0.0.1", free_port())
        listen = f"http.listen={self.http[0]}:{self.http[1]}"
        self.settings = [word for setting in (listen, *settings) for word in ("--set", setting)]
        self.processes = processes
        self.folder = folder
        self.data_dir = folder / "data"
        self.address = ("127.0.0.1", free_port())
        self.certs("init")
        self.bundles = {role: self.bundle(f"bad-{role}", role=role) for role in ("client", "admin", "node")}
        self.scheduler = self._start(wrapper)
        self.near = TaskClient(self.data_dir)
        self.wait(lambda: self.near.survey() is not None, "the scheduler")
        command = [PROGRAMS / "lamagrid-node", "--join", self.bundle("honest", role="node")]
        env = {"LAMAGRID__DATA_DIR": str(folder / "of-node")}
        self.far = TaskClient(join=self.bundles["client"])
        self.node = processes.start("node", [*command, "--backend", "echo", "--model", "lama"], env)
        self.wait(lambda: bool(self.near.survey()["nodes"]), "the node")
        self.is_warm = False

    def _start(self, wrapper: tuple[str, ...]) -> subprocess.Popen[bytes]:
        """Start the scheduler."""
        where = f"gate.listen={self.address[0]}:{self.address[1]}"
        command = [BIN / "lamagrid", "scheduler", "--data-dir", self.data_dir]
        return self.processes.start("scheduler", [*wrapper, *command, "--set", where, *self.settings])

    def wait(self, predicate: object, what: str) -> None:
        """Wait until something is so."""
        self.processes.wait_until(predicate, SOON_S, what, [self.scheduler])  # type: ignore[arg-type]

    def certs(self, *words: str | Path) -> None:
        """Run ``lamagrid certs``."""
        command = [BIN / "lamagrid", "certs", *words, "--data-dir", self.data_dir]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def bundle(self, name: str, role: str) -> Path:
        """The papers of a peer."""
        self.certs("issue", "--role", role, "--name", name)
        path = self.folder / f"{name}.bundle"
        self.certs("bundle", name, "--scheduler", f"{self.address[0]}:{self.address[1]}", "--out", path)
        return path

    def socket(self, name: str) -> Path:
        """The private socket of a channel."""
        return Path(_native.config(None, [("data_dir", str(self.data_dir))])["runtime_dir"]) / f"{name}.sock"

    def rss_mb(self) -> float:
        """The scheduler's resident memory, in MB."""
        return rss_bytes(self.scheduler.pid) / 1e6


class Health:
    """Asks ``/healthz`` all the while, as a probe does.

    Attributes:
        count: Answers.
        slowest_s: The longest that an answer took.
        wrong: All other results.
    """

    def __init__(self, grid: Grid) -> None:
        self.count = 0
        self.slowest_s = 0.0
        self.wrong: list[str] = []
        self._url = f"http://{grid.http[0]}:{grid.http[1]}/healthz"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._end.wait(0.05):
            began = time.monotonic()
            try:
                with urllib.request.urlopen(self._url, timeout=10) as answer:
                    assert answer.status == 200
                self.count += 1
            except Exception as error:  # whatever it is, it is told
                self.wrong.append(f"{type(error).__name__}: {error}")
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def close(self) -> None:
        """Stop asking."""
        self._end.set()
        self._thread.join()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often each attack is made on the same scheduler; how long peers ask that do not read."""
    parser.addoption("--rounds", type=int, default=1)
    parser.addoption("--unread-s", type=float, default=0.5)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One round after the other, on the same scheduler."""
    rounds: int = metafunc.config.getoption("--rounds")
    # Modules with a grid of their own have no rounds.
    if rounds > 1 and "turn" in metafunc.fixturenames:
        metafunc.parametrize("turn", range(rounds), scope="module")


@pytest.fixture(scope="module")
def turn() -> int:
    """Which round this is."""
    return 0


@pytest.fixture(scope="session")
def unread_s(request: pytest.FixtureRequest) -> float:
    """How long peers ask that do not read."""
    seconds: float = request.config.getoption("--unread-s")
    return seconds


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One scheduler for all modules without settings of their own: what an attack leaves meets the next."""
    folder = tmp_path_factory.mktemp("hostile")
    processes = Processes(folder / "logs")
    try:
        yield Grid(processes, folder)
    finally:
        processes.close()


@pytest.fixture(scope="session")
def web_server(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> GridServer:
    """A web server of the scheduler that is attacked; it may not be ready yet."""
    env = {"LAMAGRID__LIMITS__MAX_PIXELS": str(MAX_PIXELS)}
    folder = tmp_path_factory.mktemp("web")
    flags = ("--model", "lama", "--output-dir", folder, "--grid-scheduler", grid.data_dir)
    return start_grid(grid.processes, grid.data_dir, *flags, env=env, cwd=folder)


@pytest.fixture(scope="module", autouse=True)
def web_server_starts_early(request: pytest.FixtureRequest) -> None:
    """Let the web server start while the tests of the gate wait, if a later module needs it."""
    wanted = (item for item in request.session.items if isinstance(item, pytest.Function))
    if request.path.stem == "test_gate" and any("web_server" in item.fixturenames for item in wanted):
        request.getfixturevalue("web_server")


@pytest.fixture(scope="module")
def honest(grid: Grid) -> Iterator[Honest]:
    """Begins before the first attack and ends after the last."""
    made = Honest(grid.bundle("web", role="client"))
    try:
        made.wait(10 if grid.is_warm else 100)
        grid.is_warm = True
        made.slow_down()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module", autouse=True)
def flat(request: pytest.FixtureRequest, grid: Grid, honest: Honest, turn: int) -> Iterator[None]:
    """In each round the process stays up, its memory flat, and everybody else is served."""
    most_mb: float = getattr(request.module, "MOST_GROWTH_MB", MOST_GROWTH_MB)
    before = grid.rss_mb()
    yield
    honest.wait(20)
    end = time.monotonic() + GIVEN_BACK_S
    while (growth := grid.rss_mb() - before) >= most_mb and time.monotonic() < end:
        time.sleep(0.1)
    print(
        f"\nhostile, round {turn + 1}: resident {before:.1f} MB before, {growth:+.1f} MB after; "
        f"honest tasks {honest.done}, failed {len(honest.wrong)}, slowest {honest.slowest_s:.2f} s"
    )
    assert grid.scheduler.poll() is None, grid.processes.log(grid.scheduler)
    assert not honest.wrong
    assert growth < most_mb


def open_descriptors(pid: int) -> int:
    """How many descriptors a process has."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
