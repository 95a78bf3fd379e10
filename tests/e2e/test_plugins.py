"""Plugins on a node of their own, beside the unchanged server that runs them in its own process.

R3.1, R8.1, P7.3.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grids import procfs
from grids.pictures import encoded
from grids.server import Server, start_grid, start_stock
from stock.processes import Processes

pytestmark = pytest.mark.timeout(300)

FLAGS = ("--model", "cv2", "--enable-gif")
RNG = np.random.default_rng(8)
PHOTO = encoded(RNG.integers(0, 256, (120, 160, 3), np.uint8))
CLEAN = encoded(RNG.integers(0, 256, (120, 160, 3), np.uint8))


def make_gif(server: Server) -> Any:
    files = {"image": ("image", PHOTO), "clean_img": ("clean", CLEAN)}
    return server.post("/run_plugin", files=files, data={"name": "MakeGIF", "filename": "x.gif"})


def test_a_plugin_gives_what_the_unchanged_server_gives_and_outlives_its_node(
    processes: Processes, tmp_path: Path, background: Callable[..., Future[Any]]
) -> None:
    grid = start_grid(processes, tmp_path / "grid", *FLAGS)
    stock = start_stock(processes, *FLAGS).wait_ready()
    grid.wait_ready()
    assert grid.get("/server_config").json() == stock.get("/server_config").json()
    assert grid.get("/server_config").json()["plugins"] == ["MakeGIF"]
    wanted = make_gif(stock)
    got = make_gif(grid)
    assert (got.status_code, got.content) == (200, wanted.content), got.text[:300]
    for name in ("Content-Type", "Content-Disposition", "Cache-Control"):
        assert got.headers[name] == wanted.headers[name]
    assert grid.task(got)["node"] == "plugins-0"

    # The web process stays light: no plugin is in it, and none of its work.
    def node() -> dict[str, Any] | None:
        return next((each for each in grid.nodes() if each["name"] == "plugins-0" and each["running"]), None)

    before = procfs.cpu_seconds(grid.process.pid)
    answer = background(make_gif, grid)
    busy = processes.wait_until(node, 30, "the plugin's node to work")
    began = time.monotonic()
    os.kill(busy["pid"], 9)
    again = answer.result(120)
    assert (again.status_code, again.content) == (200, wanted.content), again.text[:300]
    reported = grid.task(again)
    assert (reported["attempts"], reported["crashes"]) == (2, 1)
    print(f"the plugin's node was killed; the answer came {time.monotonic() - began:.1f} s later")
    assert procfs.cpu_seconds(grid.process.pid) - before < 2
