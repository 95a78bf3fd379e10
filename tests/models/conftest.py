"""A real scheduler and one node."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from grids.server import PROGRAMS
from lamagrid import TaskClient
from stock.processes import Processes


@contextlib.contextmanager
def python_grid(
    folder: Path, models: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
) -> Iterator[TaskClient]:
    """A client of a grid whose Python node, in that folder, serves the models; both have this environment."""
    with _grid(folder, (sys.executable, "-m", "lamagrid", "pynode"), models, env, cwd) as client:
        yield client


@contextlib.contextmanager
def torch_grid(folder: Path, models: Sequence[str], env: Mapping[str, str]) -> Iterator[TaskClient]:
    """The same with one Rust node."""
    with _grid(folder, (PROGRAMS / "lamagrid-node", "--device", "cpu"), models, env, None) as client:
        yield client


@contextlib.contextmanager
def _grid(
    folder: Path, node: Sequence[str | Path], models: Sequence[str], env: Mapping[str, str], cwd: Path | None
) -> Iterator[TaskClient]:
    processes = Processes(folder / "logs")
    try:
        data_dir = folder / "data"
        command = [sys.executable, "-m", "lamagrid", "scheduler", "--data-dir", data_dir]
        scheduler = processes.start("scheduler", command, env)
        client = TaskClient(data_dir)
        processes.wait_until(lambda: client.survey() is not None, 60, "the scheduler", [scheduler])
        flags = [word for name in models for word in ("--model", name)]
        started = processes.start("node", [*node, "--data-dir", data_dir, *flags], env, cwd)
        processes.wait_until(lambda: client.survey()["nodes"], 120, "the node", [started])
        yield client
    finally:
        processes.close()
