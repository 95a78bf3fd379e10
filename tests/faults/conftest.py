"""How many faults there are, and where their seed comes from; the sum of all verdicts at the end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.checker import History, Verdict
from faults.grid import FaultGrid, settle
from grids.preload import compiled
from stock.processes import Processes

SHARES = {
    # Kind of fault: how often in `make test`, and in `make chaos`.
    "scheduler_kills": (20, 200),
    "node_kills": (40, 500),
    "freezes": (10, 100),
    "cancels": (500, 10_000),
    "drains": (10, 200),
    "everything": (3, 50),
    "stops": (2, 20),
    "disk_step": (7, 1),
    "power_losses": (10, 50),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--chaos``, ``--stops``, ``--fault-seed`` and ``--verdicts``."""
    group = parser.getgroup("faults")
    group.addoption("--chaos", action="store_true", help="as many faults as `make chaos` has")
    group.addoption("--stops", type=int, help="how often each program is stopped")
    group.addoption("--fault-seed", type=int, help="the seed that an earlier run printed")
    group.addoption("--verdicts", type=Path, help="file to which each test's four counts are appended")


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[str], int]:
    """``times("freezes")``: how often something happens in this run."""
    chaos: bool = request.config.getoption("--chaos")
    stops: int | None = request.config.getoption("--stops")
    return lambda what: stops if what == "stops" and stops is not None else SHARES[what][chaos]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """The moments of the faults. The seed is shown where a test fails."""
    seed = request.config.getoption("--fault-seed")
    seed = time.time_ns() % 1_000_000 if seed is None else seed
    print(f"repeat with: pytest {request.node.nodeid} --fault-seed {seed}")
    return random.Random(seed)


@pytest.fixture
def history() -> History:
    """Where a test records what it does and sees."""
    return History()


@pytest.fixture
def new_grid(processes: Processes, tmp_path: Path) -> Callable[..., FaultGrid]:
    """``new_grid(nodes=.., slots=.., settings=..)``."""
    return lambda folder=tmp_path, **options: FaultGrid(processes, folder, **options)


@pytest.fixture
def judge(request: pytest.FixtureRequest, history: History) -> Callable[..., Verdict]:
    """``judge(grid, history)``: asks about every task, and fails unless all four counts are 0."""

    def judged(grid: FaultGrid, history: History = history) -> Verdict:
        settle(grid, history)
        verdict = history.verdict()
        print(f"{request.node.name}: {verdict}, {verdict.tasks} tasks, {dict(history.outcomes())}")
        file: Path | None = request.config.getoption("--verdicts")
        if file is not None:
            with file.open("a") as lines:
                lines.write(json.dumps({"faults": verdict.faults, "counts": verdict.counts}) + "\n")
        assert verdict.counts == (0, 0, 0, 0), "\n".join([str(verdict), *verdict.reasons[:20]])
        return verdict

    return judged


@pytest.fixture
def judge_all(request: pytest.FixtureRequest) -> Callable[[list[History]], None]:
    """``judge_all(histories)``: fails unless all counts of all of them are 0."""

    def judged(histories: list[History]) -> None:
        verdicts = [history.verdict() for history in histories]
        counts = [sum(column) for column in zip(*(verdict.counts for verdict in verdicts))]
        faults = sum(verdict.faults for verdict in verdicts)
        print(f"{request.node.name}: faults {faults}, lost, duplicated, unexpected, unfinished: {counts}")
        file: Path | None = request.config.getoption("--verdicts")
        if file is not None:
            with file.open("a") as lines:
                lines.write(json.dumps({"faults": faults, "counts": counts}) + "\n")
        reasons = [reason for verdict in verdicts for reason in verdict.reasons]
        assert not any(counts), "\n".join(reasons[:20])

    return judged


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk that fails, for LD_PRELOAD."""
    return compiled(Path(__file__).with_name("disk.c"), tmp_path_factory.mktemp("shim"))
