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
from stock.processes import Processes

SHARES = {
    # What happens: how often in `make test`, and in `make chaos`.
    "scheduler_kills": (20, 200),
    "node_kills": (40, 500),
    "freezes": (10, 100),
    "cancels": (500, 10_000),
    "drains": (10, 200),
    "everything": (3, 50),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--chaos``, ``--fault-seed`` and ``--verdicts``."""
    group = parser.getgroup("faults")
    group.addoption("--chaos", action="store_true", help="as many faults as `make chaos` has")
    group.addoption("--fault-seed", type=int, help="the seed that an earlier run printed")
    group.addoption("--verdicts", type=Path, help="file to which each test's four counts are appended")


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[str], int]:
    """``times("freezes")``: how often something happens in this run."""
    chaos: bool = request.config.getoption("--chaos")
    return lambda what: SHARES[what][chaos]


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
    return lambda **options: FaultGrid(processes, tmp_path, **options)


@pytest.fixture
def judge(request: pytest.FixtureRequest, history: History) -> Callable[[FaultGrid], Verdict]:
    """``judge(grid)``: asks about every task, and fails unless all four counts are 0."""

    def judged(grid: FaultGrid) -> Verdict:
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
