"""A scheduler with echo nodes, folders of small pictures, and runs of ``lamagrid inpaint``."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from faults.grid import FaultGrid
from grids.server import BIN, free_port, lamagrid_json
from stock.processes import Processes

SIZE = (48, 32)
"""Width and height of the pictures as they are seen."""
MANIFEST = ".lamagrid-manifest.jsonl"
ORIENTATION, ARTIST = 274, 315
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(number: int, form: str = "PNG", size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    """A file with its own pixels; JPEG has EXIF, every third one is turned, and every fifth has a profile."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    if form == "JPEG":
        exif = Image.Exif()
        exif[ARTIST] = f"artist {number}"
        if number % 3 == 0:
            exif[ORIENTATION] = 6
            image = image.transpose(Image.Transpose.ROTATE_90)
        options = {"exif": exif, "quality": 90, **options}
    if number % 5 == 0:
        options = {"icc_profile": ICC, **options}
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def mask(size: tuple[int, int] = SIZE) -> bytes:
    """A mask with a hole in its middle."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[10:20, 10:30] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def fill(folder: Path, count: int) -> list[str]:
    """Write pictures into a folder and two below it. Returns their paths in it."""
    names = []
    for number in range(count):
        form, ending = (("JPEG", "jpg"), ("PNG", "png"))[number % 2]
        name = f"{('', 'a/', 'a/b/')[number % 3]}{number:03}.{ending}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, form))
        names.append(name)
    return sorted(names)


@dataclass
class Ran:
    """A run that ended.

    Attributes:
        pictures: Its JSON lines about pictures, by their inputs.
        summary: Its last JSON line.
    """

    code: int
    out: str
    err: str
    pictures: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def counts(self) -> Counter[str]:
        """How many pictures ended in each state."""
        return Counter(line["state"] for line in self.pictures.values())


class Folders:
    """Pictures, a mask and results of one test, and the grid that inpaints them."""

    def __init__(self, grid: FaultGrid, root: Path) -> None:
        self.grid = grid
        self.pictures = root / "pictures"
        self.mask = root / "mask.png"
        self.out = root / "out"
        self.mask.write_bytes(mask())

    def command(self, *words: str | Path) -> list[str]:
        """The command line; ``words`` replace the pictures and the mask if they name any."""
        chosen = [os.fspath(word) for word in words]
        if not {"--mask", "--mask-color"} & set(chosen):
            chosen = [str(self.pictures), "--mask", str(self.mask), *chosen]
        where = [] if {"--join", "--data-dir"} & set(chosen) else ["--data-dir", str(self.grid.data_dir)]
        return [str(BIN / "lamagrid"), "inpaint", *chosen, "--out", str(self.out), *where]

    def env(self) -> dict[str, str]:
        """Of the command: this grid's patience."""
        return {**os.environ, **self.grid.env}

    def run(self, *words: str | Path, timeout: float = 60) -> Ran:
        """Run to the end, with JSON lines."""
        command = [*self.command(*words), "--output", "json"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=self.env(), check=False
        )
        ran = Ran(done.returncode, done.stdout, done.stderr)
        for line in done.stdout.splitlines():
            event = json.loads(line)
            if event["event"] == "picture":
                assert event["input"] not in ran.pictures, "reported twice"
                ran.pictures[event["input"]] = event
            else:
                ran.summary = event
        return ran

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start a run whose output goes to a log."""
        return self.grid.processes.start("inpaint", self.command(*words), self.grid.env)

    def records(self) -> list[dict[str, Any]]:
        """The whole lines of the list of results that are about pictures."""
        path = self.out / MANIFEST
        lines = path.read_text().split("\n")[1:-1] if path.exists() else []
        return [record for record in map(json.loads, lines) if "output" in record]

    def states(self) -> Counter[str]:
        """How many pictures are in each state by the list."""
        last = {record["output"]: record["state"] for record in self.records()}
        return Counter(last.values())

    def tasks(self) -> dict[str, set[str]]:
        """The tasks of each picture by the list."""
        found: dict[str, set[str]] = {}
        for record in self.records():
            found.setdefault(record["input"], set()).add(record["task"])
        return found

    def results(self) -> list[str]:
        """The files in OUT that are no lists, hidden ones too."""
        paths = (path for path in self.out.rglob("*") if path.is_file())
        names = sorted(path.relative_to(self.out).as_posix() for path in paths)
        return [name for name in names if name not in (MANIFEST, ".lamagrid-failures.jsonl")]

    def wait_done(self, count: int, run: subprocess.Popen[bytes]) -> None:
        """Wait until that many pictures are done by the list."""
        self.grid.processes.wait_until(
            lambda: self.states()["done"] >= count, 30, f"{count} results", alive=[run]
        )


def completed(grid: FaultGrid) -> int:
    """Tasks that the scheduler accepted as completed, over its restarts."""
    lines = lamagrid_json("stats", data_dir=grid.data_dir)
    return sum(line["completed"] for line in lines)


def certs(data_dir: Path, *words: str | Path) -> None:
    """Run a command about certificates."""
    command = [BIN / "lamagrid", "certs", *words, "--data-dir", data_dir]
    subprocess.run(command, capture_output=True, timeout=30, check=True)


def ended(process: subprocess.Popen[bytes], timeout: float = 60) -> int:
    """Wait for the end of a process."""
    return process.wait(timeout)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does."""
    process.send_signal(signal.SIGINT)


@pytest.fixture(scope="session")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultGrid]:
    """A scheduler with a gate and two nodes, for all tests: those that kill some wait for the next ones."""
    folder = tmp_path_factory.mktemp("grid")
    certs(folder / "data", "init")
    processes = Processes(folder / "logs")
    try:
        gate = {"GATE__LISTEN": f"127.0.0.1:{free_port()}"}
        yield FaultGrid(processes, folder, nodes=2, slots=2, settings=gate)
    finally:
        processes.close()


@pytest.fixture
def folders(grid: FaultGrid, tmp_path: Path) -> Folders:
    """Empty folders."""
    made = Folders(grid, tmp_path)
    made.pictures.mkdir()
    return made
