"""Whole stacks: the launcher with everything that it starts, on models that take as long as they are told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grids.models import slow_lama
from grids.server import GridServer, start_grid
from stock.processes import Processes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stops", type=int, default=1, help="random moments at which the launcher is stopped")
    parser.addoption("--restarts", type=int, default=2, help="how often the web server is started again")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model whose picture says how long it works."""
    return slow_lama(tmp_path_factory.mktemp("slow"))


@pytest.fixture(scope="session")
def slow_flags(slow_model: Path) -> list[str]:
    """Flags for one torch node with that model and nothing else."""
    return [
        *("--model", "lama", "--grid-model", f"lama={slow_model}"),
        *("--grid-threads", "1", "--grid-python-models", ""),
    ]


@pytest.fixture(scope="session")
def shared_grid(
    tmp_path_factory: pytest.TempPathFactory, slow_flags: list[str]
) -> Iterator[tuple[Processes, GridServer]]:
    """One stack for all tests that leave it standing: two torch nodes, and one for cv2."""
    folder = tmp_path_factory.mktemp("grid")
    processes = Processes(folder / "logs")
    try:
        flags = [*slow_flags, "--grid-nodes", "2", "--grid-python-models", "cv2"]
        yield processes, start_grid(processes, folder / "data", *flags).wait_ready()
    finally:
        processes.close()


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """``background(function, *arguments)``: call it in another thread."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=32))
        yield pool.submit
