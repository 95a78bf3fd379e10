"""A scheduler and one node from the programs of a build, without the launcher and its Lama Cleaner."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PYTHON = Path(__file__).resolve().parent.parent / "python"
START_LIMIT_S = 180.0  # a first CUDA start compiles kernels for some GPUs
STOP_LIMIT_S = 20.0
TAIL_LINES = 20


class GridError(Exception):
    """A program did not start or a task failed; the text says why."""


class Programs:
    """Child processes, each with a log in ``folder``; they end with this process, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, command: Sequence[str], env: dict[str, str]) -> None:
        """Start one."""
        with (self._folder / f"{name}.log").open("wb") as log:
            # Its lifeline: with --lifeline it ends when this pipe's other end is gone.
            child = subprocess.Popen(
                [*command, "--lifeline"],
                env=env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._running.append((name, child))

    def check(self) -> None:
        """Raise GridError with the end of its log if one has ended."""
        for name, child in self._running:
            if child.poll() is not None:
                raise GridError(f"{name} ended with status {child.returncode}:\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """The last lines of a log."""
        lines = (self._folder / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-TAIL_LINES:])

    def close(self) -> None:
        """End all, the last one first."""
        for _, child in reversed(self._running):
            child.terminate()
            try:
                child.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def running_grid(
    folder: Path, programs: Path, network: Path, device: str | None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Start both, wait for the node, and end them.

    Args:
        folder: Where the data directory and the logs lie.
        programs: Where lamagrid-node lies.
        device: None leaves the choice to the node; a processor gets one thread, which shares well.

    Yields:
        A client, and what the node says about itself.

    Raises:
        GridError: One did not start.
    """
    from lamagrid import TaskClient
    from lamagrid.errors import LamaGridError

    data_dir = str(folder / "data")
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([str(PYTHON), *filter(None, [env.get("PYTHONPATH")])])
    # The node looks for libtorch where `python3` has it.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    scheduler = [sys.executable, "-m", "lamagrid", "scheduler", "--data-dir", data_dir]
    node = [str(programs / "lamagrid-node"), "--data-dir", data_dir, "--name", "gpu-check"]
    node += ["--model", f"lama={network}"]
    if device is not None:
        node += ["--device", device, "--threads", "1"]
    children = Programs(folder)
    try:
        children.start("scheduler", scheduler, env)
        children.start("node", node, env)
        client = TaskClient(data_dir=data_dir)
        end = time.monotonic() + START_LIMIT_S
        nodes: list[dict[str, Any]] = []
        while not nodes:
            children.check()
            with contextlib.suppress(LamaGridError):
                nodes = client.survey(1.0)["nodes"]
            if time.monotonic() > end:
                raise GridError(
                    f"the node was not there after {START_LIMIT_S:.0f} s:\n{children.tail('node')}"
                )
            time.sleep(0.1)
        info: dict[str, Any] = nodes[0]["info"]
        info["log"] = children.tail("node")
        yield client, info
    finally:
        children.close()
