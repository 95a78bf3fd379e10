"""Workers per GPU, as the scheduler sees them (R2.1), and GPUs that are lost while they work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lamagrid.launcher.process_specs import DEMO_MODEL

from .conftest import NODE, Driver, Grid, gpu

GIB = 1 << 30
PAUSE_S = 2.0
"""Longer than the first pauses of a supervisor that restarts a worker."""


def figures(nodes: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str | None, int]]:
    """Device, GPU and memory in GiB of each node."""
    return {
        name: (node["device"], node["gpu"], round(node["memory_bytes"] / GIB)) for name, node in nodes.items()
    }


def visible_to(pid: int) -> str | None:
    """The GPUs that a process sees."""
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    given = (each.partition("=")[2] for each in environment if each.startswith("CUDA_VISIBLE_DEVICES="))
    return next(given, None)


def inpaint(grid: Grid) -> None:
    """Let the grid work on one picture."""
    image = np.zeros((32, 32, 3), np.uint8)
    grid.client.inpaint(image, np.full((32, 32), 255, np.uint8))


def test_one_worker_per_gpu_and_a_lost_one_leaves_alone(grid: Grid, driver: Driver) -> None:
    driver.write(*(gpu(number, 24) for number in range(4)))
    node = grid.echo(driver)
    nodes = grid.nodes({"n-0", "n-1", "n-2", "n-3"}, node)
    print(f"4 GPUs of 24 GiB: {figures(nodes)}")
    assert figures(nodes) == {f"n-{n}": (f"cuda:{n}", "NVIDIA H24", 24) for n in range(4)}
    assert {name: visible_to(each["pid"]) for name, each in nodes.items()} == {
        f"n-{n}": f"GPU-{n}0000000-aaaa" for n in range(4)
    }
    inpaint(grid)
    driver.write(*(gpu(number, 24, "lost" if number == 2 else "ok") for number in range(4)))
    left = grid.nodes({"n-0", "n-1", "n-3"}, node)
    assert {name: each["pid"] for name, each in left.items()} == {
        name: nodes[name]["pid"] for name in left
    }, "the other workers go on"
    inpaint(grid)
    time.sleep(PAUSE_S)
    log = grid.processes.log(node)
    lost = [line for line in log.splitlines() if "is lost" in line]
    print("\n".join(lost))
    assert len(lost) == 1
    assert "cuda:2 NVIDIA H24 GPU-20000000-aaaa" in lost[0]
    assert "fallen off the bus" in lost[0]
    assert len(re.findall("worker started", log)) == 4, "it is not started again"
    # Without any GPU the node goes on on the processor.
    driver.write(*(gpu(number, 24, "lost") for number in range(4)))
    last = grid.nodes({"n"}, node)
    print(f"all lost: {figures(last)}")
    assert last["n"]["device"] == "cpu"
    inpaint(grid)
    assert grid.processes.stop(node) == 0


def test_hosts_with_other_numbers_of_gpus(grid: Grid, driver: Driver) -> None:
    for count, memory_gib in ((1, 80), (2, 40), (8, 4)):
        driver.write(*(gpu(number, memory_gib) for number in range(count)))
        node = grid.echo(driver)
        names = {"n"} if count == 1 else {f"n-{number}" for number in range(count)}
        nodes = grid.nodes(names, node)
        print(f"{count} GPUs of {memory_gib} GiB: {figures(nodes)}")
        assert sorted(each["device"] for each in nodes.values()) == [f"cuda:{n}" for n in range(count)]
        assert {each["memory_bytes"] for each in nodes.values()} == {memory_gib * GIB}
        assert grid.processes.stop(node) == 0


def test_flags_variables_and_files_limit_the_workers(grid: Grid, driver: Driver, tmp_path: Path) -> None:
    driver.write(
        gpu(0, 80), gpu(1, 40), gpu(2, 80, "mig"), "instance MIG-5 H80_MIG_1g.10gb 10240 0", gpu(3, 4)
    )
    path = tmp_path / "node.toml"
    path.write_text(
        "labels = ['lab-2']\n[[gpus]]\nid = 'GPU-00000000-aaaa'\nmemory_mib = 20480\n"
        "[[gpus]]\nid = 'MIG-5'\nuse = false\n[[gpus]]\nid = 'GPU-gone'\nmemory_mib = 1\n"
    )
    for flags, env, wanted in (
        ((), {}, [("cuda:0", 80), ("cuda:1", 40), ("cuda:2:0", 10), ("cuda:3", 4)]),
        (("--device", "cuda:1"), {}, [("cuda:1", 40)]),
        ((), {"CUDA_VISIBLE_DEVICES": "GPU-3,1"}, [("cuda:3", 4), ("cuda:1", 40)]),
        (("--device", "cuda:1,cpu"), {"CUDA_VISIBLE_DEVICES": "3,1"}, [("cuda:1", 40), ("cpu", None)]),
        (("--device", "cpu"), {}, [("cpu", None)]),
        (("--capabilities", path), {}, [("cuda:0", 20), ("cuda:1", 40), ("cuda:3", 4)]),
    ):
        names = {"n"} if len(wanted) == 1 else {f"n-{index}" for index in range(len(wanted))}
        node = grid.echo(driver, *flags, **env)
        nodes = grid.nodes(names, node)
        print(f"{[str(each) for each in flags]} {env}: {figures(nodes)}")
        assert [
            (each["device"], round(each["memory_bytes"] / GIB) if each["gpu"] else None)
            for _, each in sorted(nodes.items())
        ] == wanted
        assert grid.processes.stop(node) == 0
    assert "names the GPU GPU-gone, which was not found now" in grid.processes.log(node)


def test_a_python_node_reports_its_gpu(grid: Grid, driver: Driver, tmp_path: Path) -> None:
    driver.write(gpu(0, 80), gpu(1, 40))
    path = tmp_path / "node.toml"
    path.write_text("leave_out = ['zits']\n[[gpus]]\nid = 'GPU-10000000-aaaa'\nmemory_mib = 8192\n")
    words = ["--data-dir", grid.data_dir, "--name", "p", "--model", "cv2", "--device", "cuda:1"]
    command = [sys.executable, "-m", "lamagrid", "pynode", *words, "--capabilities", path]
    node = grid.processes.start("pynode", command, driver.env)
    nodes = grid.nodes({"p"}, node)
    print(f"Python node: {figures(nodes)}")
    assert figures(nodes) == {"p": ("cuda:1", "NVIDIA H40", 8)}
    driver.write(gpu(0, 80), gpu(1, 40, "lost"))
    assert node.wait(20) == 69
    assert "its GPU is lost: it has fallen off the bus" in grid.processes.log(node)


def test_torch_without_cuda_runs_on_the_processor(grid: Grid, driver: Driver) -> None:
    driver.write(gpu(0, 80), gpu(1, 80))
    torch = [NODE, "--model", f"lama={DEMO_MODEL}", "--name", "t", "--data-dir", grid.data_dir]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of the Python with torch
    node = grid.processes.start("torch", torch, {**driver.env, "PATH": path})
    nodes = grid.nodes({"t"}, node)
    print(f"torch without CUDA beside 2 GPUs: {figures(nodes)}")
    assert nodes["t"]["device"] == "cpu"
    log = grid.processes.log(node)
    assert log.count("was asked for but cannot be used") == 2
    assert "no GPU of this host can be used" in log
    command = [*torch, "--device", "cuda:1"]
    env = {**os.environ, **driver.env, "PATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    assert "cuda:1 was asked for but cannot be used" in done.stderr
