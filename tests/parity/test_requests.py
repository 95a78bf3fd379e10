"""Seeded requests to ``/inpaint``: stock's own code against the whole grid, decoded pixel by decoded pixel.

`pytest tests/parity --requests 2000` runs the first 2,000 cases, `--seed 137` one of them alone.
A case that differs leaves its files and both answers in `target/parity/<number>`.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import logging
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grids.server import GridServer, start_grid
from lamagrid.client import TaskClient
from lamagrid.errors import InvalidInputError
from lamagrid.options import read_by
from parity.cases import Case
from parity.compare import Difference, GridAnswer, complaints, difference
from parity.page import StockAnswer, StockPage
from stock.models import wild_lama
from stock.processes import Processes

ROOT = Path(__file__).resolve().parents[2]
LEFT_BEHIND = ROOT / "target" / "parity"
ALL = 2000
AT_ONCE = 4
THREADS = "1"  # stock's convolutions in this process use as many
PROMISED = frozenset((form, mode) for form in ("PNG", "JPEG", "BMP") for mode in ("RGB", "RGBA", "L"))
"""Formats and modes that the grid decodes and encodes itself, by Pillow's names."""
BEFORE_ENCODING = frozenset(["JPEG", "MPO", "WEBP", "GIF", "TIFF"])
"""Formats whose pixels are compared before encoding too: they lose some, and what stock writes as TIFF
is often a file that nothing can read."""
FALLBACK = "X-Lamagrid-Fallback"
REFUSED_BY_A_NODE = "refused by a node"


@dataclass
class Finding:
    """The result of a case."""

    case: Case
    stock: StockAnswer
    grid: GridAnswer
    wrong: list[str]
    opened: str = ""
    """The picture's format and mode, as Pillow says."""
    far: Difference | None = None
    before_encoding: bool = False
    """Whether the pixels were compared before they were encoded too."""
    fallbacks: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that leaves 0..1."""
    return wild_lama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Iterator[GridServer]:
    """The whole stack with one torch node."""
    folder = tmp_path_factory.mktemp("parity")
    processes = Processes(folder / "logs")
    try:
        flags = ["--model", "lama", "--device", "cpu", "--grid-model", f"lama={model_file}"]
        flags += ["--grid-threads", THREADS, "--grid-python-models", ""]
        yield start_grid(processes, folder / "data", *flags).wait_ready()
    finally:
        processes.close()


@pytest.fixture(scope="module")
def page(model_file: Path) -> Iterator[StockPage]:
    """Stock, in this process, and as quiet as it can be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        page = StockPage(model_file)
    loguru = importlib.import_module("loguru").logger
    loguru.disable("lama_cleaner")
    logging.disable(logging.CRITICAL)
    try:
        yield page
    finally:
        page.close()
        with warnings.catch_warnings():  # stock leaves the temporary files of large uploads open
            warnings.simplefilter("ignore")
            gc.collect()
        loguru.enable("lama_cleaner")
        logging.disable(logging.NOTSET)


def calm_libraries() -> None:
    """One thread per call, and no IPP, whose resize differs in the last bit; both hold for a thread only."""
    import cv2
    import torch

    cv2.ipp.setUseIPP(False)
    cv2.setNumThreads(1)
    torch.set_num_threads(int(THREADS))


class Comparison:
    """Runs cases against stock and the grid. Threads may share it."""

    def __init__(self, page: StockPage, grid: GridServer, client: TaskClient) -> None:
        self._page = page
        self._grid = grid
        self._client = client

    def run(self, number: int) -> Finding:
        """One case."""
        case = Case(number)
        stock = self._page.inpaint(case.image, case.mask, case.form)
        answer = self._grid.inpaint(case.image, case.mask, case.form)
        grid = GridAnswer(
            answer.status_code,
            {name.lower(): value for name, value in answer.headers.items()},
            answer.content,
        )
        wrong, far = complaints(stock, grid)
        finding = Finding(case, stock, grid, wrong, far=far)
        finding.opened = opened(case.image)
        finding.fallbacks = [part.strip() for part in answer.headers.get(FALLBACK, "").split(",") if part]
        if stock.status == 200:
            if "x-lamagrid-task" not in grid.headers:
                finding.wrong.append("no task: the grid had no part in this answer")
            seed = case.form["sdSeed"]
            if seed != "-1" and grid.headers.get("x-seed") != seed:
                finding.wrong.append(f"X-Seed {grid.headers.get('x-seed')!r}, stock {seed!r}")
        self._judge_fallbacks(finding)
        if stock.pixels is not None and finding.opened.split(" ")[0] in BEFORE_ENCODING:
            self._judge_before_encoding(finding)
        return finding

    def _judge_fallbacks(self, finding: Finding) -> None:
        """None for what is promised, one for what nothing but Pillow reads; sound requests only."""
        case = finding.case
        if case.fault or finding.stock.status != 200:
            return
        promised = {tuple(opened(data).split(" ")) for data in (case.image, case.mask)} <= PROMISED
        if promised and not case.odd_tags and finding.fallbacks:
            finding.wrong.append(f"fell back to Pillow: {finding.fallbacks}")
        if case.kind.startswith("OTHER") and not finding.fallbacks:
            finding.wrong.append("Pillow's work is not counted")

    def _judge_before_encoding(self, finding: Finding) -> None:
        """The same bytes through the task API, which answers without a loss."""
        case = finding.case
        assert case.image is not None
        assert case.mask is not None
        wanted = finding.stock.pixels
        assert wanted is not None
        params = read_by("lama", case.params, {})  # as the page sends them
        try:
            task = self._client.submit(
                case.image, case.mask, model="lama", output="png", durability="process", **params
            )
            data = task.wait_bytes()
            task.release()
        except InvalidInputError as error:
            # A kind of file that is Pillow's, or a damaged one, of which Pillow makes something.
            if not (finding.fallbacks or case.fault or finding.stock.status != 200):
                finding.wrong.append(f"before encoding: {error}")
            return
        finding.before_encoding = True
        with Image.open(io.BytesIO(data)) as picture:
            given = np.array(picture)
        if given.shape != wanted.shape:
            finding.wrong.append(f"before encoding {given.shape}, stock {wanted.shape}")
            return
        far = difference(wanted, given)
        if far.samples:
            finding.wrong.append(f"before encoding {far.samples} samples differ, by {far.largest} at most")


def opened(data: bytes | None) -> str:
    """Format and mode of a file as Pillow opens it."""
    try:
        with Image.open(io.BytesIO(data or b"")) as picture:
            return f"{picture.format} {picture.mode}"
    except Exception:  # damaged files make Pillow raise anything
        return "unreadable"


def leave_behind(finding: Finding) -> Path:
    """Write down what is needed to look at a case."""
    folder = LEFT_BEHIND / str(finding.case.number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "case.txt").write_text("\n".join([repr(finding.case), *finding.wrong]) + "\n")
    (folder / "form.json").write_text(json.dumps(finding.case.form, indent=1))
    parts = {"image": finding.case.image, "mask": finding.case.mask}
    parts |= {"stock": finding.stock.body, "grid": finding.grid.body}
    for name, data in parts.items():
        if data is not None:
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore")  # stock ignores them; as errors they would change what it answers
def test_requests(
    page: StockPage, grid: GridServer, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """X2, X18, R8.1: status, type, text, pixels and EXIF of each answer are stock's; of JPEG, its bytes."""
    numbers = pytestconfig.getoption("--seed") or range(pytestconfig.getoption("--requests"))
    comparison = Comparison(page, grid, TaskClient(data_dir=grid.data_dir))
    begin = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE, initializer=calm_libraries) as pool:
        findings = list(pool.map(comparison.run, numbers))
    seconds = time.monotonic() - begin
    differing = [finding for finding in findings if finding.wrong]
    with capsys.disabled():
        print()
        for finding in differing:
            print(finding.case)
            for text in finding.wrong:
                print(f"    {text[:400]}")
            print(
                f"    again: pytest tests/parity --seed {finding.case.number}; files: {leave_behind(finding)}"
            )
        for line in summary(findings, seconds):
            print(f"parity: {line}")
    assert not differing, f"{len(differing)} of {len(findings)} requests differ"


def summary(findings: list[Finding], seconds: float) -> Iterator[str]:
    """The comparisons, with their figures."""
    rate = len(findings) / seconds
    yield f"{len(findings)} of {ALL} seeds in {seconds:.0f} s, {rate:.0f} requests/s"
    by_status = Counter(finding.stock.status for finding in findings)
    yield "answers of stock: " + ", ".join(f"{status} {count}" for status, count in sorted(by_status.items()))
    pictures = [finding for finding in findings if finding.stock.status == 200]
    kinds = Counter(finding.opened for finding in pictures)
    yield "pictures in: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    kinds = Counter(finding.opened.split(" ")[0] for finding in findings if finding.before_encoding)
    yield "compared before encoding too: " + ", ".join(
        f"{kind} {count}" for kind, count in sorted(kinds.items())
    )
    types = sorted({finding.grid.headers.get("content-type", "") for finding in pictures})
    for kind in types:
        far = [
            finding.far
            for finding in pictures
            if finding.far and finding.grid.headers["content-type"] == kind
        ]
        largest = max((each.largest for each in far), default=0)
        mean = max((each.mean for each in far), default=0.0)
        yield f"{kind} out: {len(far)} pictures, largest difference {largest}, largest mean {mean:.3f}"
    left = [finding for finding in pictures if finding.fallbacks]
    table = Counter(kind for finding in left for kind in left_to_pillow(finding))
    for kind, count in sorted(table.items()):
        yield f"left to Pillow: {kind:28} {count}"
    differing = sum(bool(finding.wrong) for finding in findings)
    reported = ", ".join(f"{kind} {count}" for kind, count in sorted(table.items()))
    yield f"{len(findings)} requests, {differing} differing, {len(left)} fallbacks" + (
        f" ({reported})" if reported else ""
    )


def left_to_pillow(finding: Finding) -> list[str]:
    """Format and mode of what Pillow decoded or encoded; the picture's where a node found its file odd."""
    return [
        f"{finding.opened} (odd file)" if kind == REFUSED_BY_A_NODE else kind for kind in finding.fallbacks
    ]
