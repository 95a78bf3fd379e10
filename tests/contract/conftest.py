"""Servers with the same flags, models and folders: the unchanged one, the grid's, and a strict one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from grids.pictures import encoded
from grids.server import GridServer, Server, start_grid, start_stock
from stock.processes import Processes
from stock.small import small_models

RNG = np.random.default_rng(31)
PHOTO = RNG.integers(0, 256, (48, 64, 3), np.uint8)
MAX_PIXELS = 1_000_000
"""The most pixels that the grid decodes."""


@dataclass(frozen=True)
class Servers:
    """The same in three ways."""

    stock: Server
    grid: GridServer
    strict: GridServer
    outputs: dict[str, Path]
    """Where each of them saves pictures."""

    def all(self) -> tuple[Server, Server, Server]:
        """One after the other."""
        return self.stock, self.grid, self.strict


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures to begin with; the servers' working directory."""
    made = tmp_path_factory.mktemp("contract")
    (made / "input").mkdir()
    (made / "input" / "photo.png").write_bytes(encoded(PHOTO))
    (made / "input" / "other.jpg").write_bytes(encoded(PHOTO[:, ::-1], "JPEG"))
    return made


@pytest.fixture(scope="package")
def environment(folder: Path) -> dict[str, str]:
    """Small models, for all servers alike."""
    return {**small_models(folder), "LAMAGRID__LIMITS__MAX_PIXELS": str(MAX_PIXELS)}


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """The flags and folders with which the servers of these suites are started."""
    processes = Processes(tmp_path_factory.mktemp("logs"))
    yield processes
    processes.close()


@pytest.fixture(scope="package")
def grid_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one scheduler of all grid servers keeps its tasks."""
    return tmp_path_factory.mktemp("grid") / "data"


@pytest.fixture(scope="package")
def servers(running: Processes, folder: Path, grid_dir: Path, environment: dict[str, str]) -> Servers:
    """With a file manager, an output folder, two plugins and models to switch between."""

    def flags(name: str) -> list[str | Path]:
        shutil.copytree(
            folder / "input", folder / name / "input"
        )  # a file manager writes beside its pictures
        outputs[name] = folder / name / "output"
        outputs[name].mkdir()
        own = ["--input", folder / name / "input", "--output-dir", outputs[name]]
        return ["--model", "cv2", "--enable-gif", "--enable-remove-bg", *own]

    outputs: dict[str, Path] = {}
    grid = start_grid(
        running,
        grid_dir,
        *flags("grid"),
        *("--grid-nodes", "1", "--grid-model", f"lama={environment['LAMA_MODEL_URL']}"),
        *("--grid-python-models", "cv2,sd1.5"),
        env=environment,
        cwd=folder,
    )
    stock = start_stock(running, *flags("stock"), env=environment, cwd=folder)
    grid.wait_ready()
    attached = ("--grid-scheduler", grid_dir, "--grid-strict")
    strict = start_grid(running, grid_dir, *flags("strict"), *attached, env=environment, cwd=folder)
    return Servers(stock.wait_ready(), grid, strict.wait_ready(), outputs)  # type: ignore[arg-type]


@pytest.fixture(scope="package")
def plain_servers(
    servers: Servers, running: Processes, folder: Path, grid_dir: Path, environment: dict[str, str]
) -> tuple[Server, Server]:
    """Stock and grid with one picture to begin with, no plugins, no folders, and a model that stays."""
    flags = ("--model", "cv2", "--disable-model-switch", "--input", folder / "input" / "photo.png")
    grid = start_grid(running, grid_dir, *flags, "--grid-scheduler", grid_dir, env=environment, cwd=folder)
    stock = start_stock(running, *flags, env=environment, cwd=folder)
    return stock.wait_ready(), grid.wait_ready()
