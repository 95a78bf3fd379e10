"""Pixels through a real grid against stock's: upstream's own cv2 cases, and random requests to a network."""

from __future__ import annotations

import gc
import io
import os
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from grids.pictures import decoded, encoded
from grids.server import BIN, lamagrid_json
from lama_cleaner_patch import ModelManager
from lamagrid.client import TaskClient
from lamagrid.launcher.process_specs import node_command
from parity.stock import stock_config, stock_inpaint
from stock.forms import stock_form
from stock.models import tiny_lama as make_tiny_lama
from stock.processes import Processes

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"
SEED = 20231122
REQUESTS = 100
THREADS = "1"  # stock's convolutions in this process use as many


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small TorchScript of lama's signature."""
    return make_tiny_lama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scheduler's data directory."""
    return tmp_path_factory.mktemp("grid") / "data"


@pytest.fixture(scope="module")
def grid(data_dir: Path, model_file: Path) -> Iterator[TaskClient]:
    """A scheduler, a torch node for lama and a Python node for cv2."""
    processes = Processes(data_dir.parent / "logs")
    try:
        lamagrid = [BIN / "lamagrid"]
        alive = [
            processes.start("scheduler", [*lamagrid, "scheduler", "--data-dir", data_dir]),
            processes.start("pynode", [*lamagrid, "pynode", "--data-dir", data_dir, "--model", "cv2"]),
            processes.start(
                "node",
                [
                    *(node_command(None), "--data-dir", data_dir, "--name", "torch"),
                    *("--device", "cpu", "--threads", THREADS, "--model", f"lama={model_file}"),
                ],
                {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},  # where the node finds libtorch
            ),
        ]
        processes.wait_until(
            lambda: len(lamagrid_json("node", "list", data_dir=data_dir)) == 2, 60, "two nodes", alive
        )
        yield TaskClient(data_dir=data_dir)
    finally:
        processes.close()


# Upstream's test_cv2: three strategies, two flags, two radii.


def photo_and_mask() -> tuple[Any, Any]:
    """Upstream's test picture where it lies beside the checkout, else a photo with a painted mask."""
    if (PHOTOS / "image.png").is_file():
        photo = np.array(Image.open(PHOTOS / "image.png").convert("RGB"))
        return photo, np.array(Image.open(PHOTOS / "mask.png").convert("L"))
    photo = data.astronaut()
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[100:180, 200:300] = 255
    mask[300:330, 40:400] = 255
    return photo, mask


@pytest.mark.parametrize("strategy", ["Original", "Resize", "Crop"])
@pytest.mark.parametrize("flag", ["INPAINT_NS", "INPAINT_TELEA"])
@pytest.mark.parametrize("radius", [3, 15])
def test_cv2(grid: TaskClient, strategy: str, flag: str, radius: int) -> None:
    """R8.1: upstream's 12 cases through the swapped import."""
    fields = {
        "ldm_steps": 1,
        "hd_strategy": strategy,
        "hd_strategy_crop_margin": 32,
        "hd_strategy_crop_trigger_size": 200,
        "hd_strategy_resize_limit": 200,
        "cv2_flag": flag,
        "cv2_radius": radius,
    }
    photo, mask = photo_and_mask()
    result = ModelManager(name="cv2", device="cpu", client=grid)(photo, mask, stock_config(**fields))
    assert result.dtype == np.uint8
    assert np.array_equal(result, stock_inpaint(None, photo, mask, fields, "cv2"))


def test_one_swapped_import_in_an_otherwise_unchanged_server(
    grid: TaskClient, data_dir: Path, server_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8.4: way 1. The configuration alone says where the scheduler is."""
    monkeypatch.setenv("LAMAGRID__DATA_DIR", str(data_dir))
    source = Path(server_module.__file__).read_text()
    before = "from lama_cleaner.model_manager import ModelManager"
    assert source.count(before) == 1
    swapped: Any = types.ModuleType("swapped_server")
    swapped.__file__ = server_module.__file__
    monkeypatch.setitem(sys.modules, "swapped_server", swapped)
    exec(
        compile(
            source.replace(before, "from lama_cleaner_patch import ModelManager"), swapped.__file__, "exec"
        ),
        vars(swapped),
    )
    assert swapped.ModelManager is ModelManager
    swapped.model = swapped.ModelManager(
        name="cv2", device=torch.device("cpu"), callback=swapped.diffuser_callback
    )
    photo, mask = photo_and_mask()
    body: dict[str, Any] = dict(stock_form("cv2"))
    body["image"] = (io.BytesIO(encoded(photo)), "image.png")
    body["mask"] = (io.BytesIO(encoded(mask)), "mask.png")
    answer = swapped.app.test_client().post("/inpaint", data=body, content_type="multipart/form-data")
    assert answer.status_code == 200, answer.data[:300]
    assert answer.headers["X-Lamagrid-Task"]
    hard = np.where(mask > 127, 255, 0).astype(np.uint8)
    fields = {"hd_strategy": "Resize", "hd_strategy_resize_limit": 1080, "cv2_radius": 5}
    wanted = stock_inpaint(None, photo, hard, fields, "cv2")
    assert np.array_equal(decoded(answer.data), wanted[:, :, ::-1])


# Random requests.


class Request:
    """One request, drawn from its number alone."""

    def __init__(self, number: int) -> None:
        dice = random.Random(SEED * 1000 + number)
        # Mostly small; the borders of the padding are among the small ones.
        longest = dice.choice([9, 40, 120, 300, 300, 600, 1200])
        self.width, self.height = dice.randint(1, longest), dice.randint(1, longest)
        self.alpha = dice.random() < 0.4
        self.strategy = dice.choice(["Original", "Resize", "Crop"])
        size, small = max(self.width, self.height), min(self.width, self.height)
        self.form = stock_form(
            "lama",
            hdStrategy=self.strategy,
            hdStrategyCropMargin=dice.choice([1, 7, 32, 196]),
            hdStrategyCropTrigerSize=max(1, size // dice.choice([1, 2, 4])),
            # Not so far that the short side vanishes, which OpenCV refuses.
            hdStrategyResizeLimit=max(size // dice.choice([1, 2, 3]), size // (2 * small) + 1),
        )
        pixels = np.random.default_rng(number).integers(0, 256, (self.height, self.width, 4), np.uint8)
        if dice.random() < 0.5:  # hard edges, at which a cubic overshoots
            pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
        self.image = encoded(pixels if self.alpha else pixels[:, :, :3], compress_level=1)
        mask = np.zeros((self.height, self.width), np.uint8)
        for _ in range(dice.randint(0, 5)):
            top, left = dice.randrange(self.height), dice.randrange(self.width)
            bottom = top + dice.randint(1, max(1, self.height // 3))
            right = left + dice.randint(1, max(1, self.width // 3))
            mask[top:bottom, left:right] = dice.choice([255, 255, 128])
        self.mask = encoded(mask, compress_level=1)

    def send(self, page: Any) -> Any:
        """POST it to a server's test client."""
        body: dict[str, Any] = dict(self.form)
        body["image"] = (io.BytesIO(self.image), "image.png")
        body["mask"] = (io.BytesIO(self.mask), "mask.png")
        return page.post("/inpaint", data=body, content_type="multipart/form-data")

    def __repr__(self) -> str:
        return f"{self.width}x{self.height} {self.strategy}{' with alpha' if self.alpha else ''}"


@pytest.fixture
def upstream_leaves_uploads_open() -> Iterator[None]:
    """Upstream's server leaves the temporary files of large uploads to the garbage collector."""
    yield
    gc.collect()


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("upstream_leaves_uploads_open")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_random_requests(
    grid: TaskClient, model_file: Path, server_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X2: the same server code, once with stock's model and once with the grid's: no pixel differs."""
    import cv2
    import lama_cleaner.model.lama as lama
    from lama_cleaner.model_manager import ModelManager as StockModelManager

    cv2.ipp.setUseIPP(False)
    threads = torch.get_num_threads()
    torch.set_num_threads(int(THREADS))
    monkeypatch.setattr(lama, "LAMA_MODEL_URL", str(model_file))
    stock = StockModelManager(name="lama", device=torch.device("cpu"))
    ours = ModelManager(name="lama", device="cpu", client=grid)
    page = server_module.app.test_client()
    differing = 0
    try:
        for number in range(REQUESTS):
            request = Request(number)
            monkeypatch.setattr(server_module, "model", stock)
            expected = request.send(page)
            monkeypatch.setattr(server_module, "model", ours)
            answer = request.send(page)
            codes = (expected.status_code, answer.status_code)
            assert codes == (200, 200), f"{number}: {request} {answer.data[:300]}"
            assert "X-Lamagrid-Task" in answer.headers
            wanted, pixels = decoded(expected.data), decoded(answer.data)
            assert wanted.shape == (request.height, request.width, 4 if request.alpha else 3)
            wrong = int((wanted != pixels).any(axis=2).sum())
            if wrong:
                print(f"request {number} ({request}): {wrong} pixels differ")
            differing += wrong
    finally:
        torch.set_num_threads(threads)
    print(f"{REQUESTS} requests, {differing} pixels differ")
    assert differing == 0
