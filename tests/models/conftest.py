"""A real scheduler and one Python node."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lamagrid import TaskClient
from stock.processes import Processes


@contextlib.contextmanager
def python_grid(
    folder: Path, models: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
) -> Iterator[TaskClient]:
    """A client of a grid whose one node serves the models, with this environment and in that folder."""
    processes = Processes(folder / "logs")
    try:
        command = [sys.executable, "-m", "lamagrid"]
        data_dir = folder / "data"
        scheduler = processes.start("scheduler", [*command, "scheduler", "--data-dir", data_dir])
        client = TaskClient(data_dir)
        processes.wait_until(lambda: client.survey() is not None, 60, "the scheduler", [scheduler])
        flags = [word for name in models for word in ("--model", name)]
        node = processes.start("pynode", [*command, "pynode", "--data-dir", data_dir, *flags], env, cwd)
        processes.wait_until(lambda: client.survey()["nodes"], 120, "the node", [node])
        yield client
    finally:
        processes.close()
