"""Lama Cleaner's models on a node, against the same models in this process: the same pixels.

A real scheduler and a real node; upstream's own loading and calling code on both sides, on files with random
weights. R3.1, R8.1, P7.1.
"""

from __future__ import annotations

import http.server
import importlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grids.pictures import hole
from lamagrid import TaskClient
from lamagrid.client import TERMINAL
from lamagrid.errors import InvalidInputError, LamaGridError
from lamagrid.pynode.models import SEEDS
from lamagrid.pynode.opencv import without_ipp
from lamagrid.web.model_manager import RemoteModelManager
from models.conftest import python_grid, torch_grid
from parity.stock import stock_config
from stock.networks import point_upstream_at, write_networks

pytestmark = pytest.mark.timeout(300)

MODELS = ("cv2", "manga", "ldm", "zits", "mat", "fcf")
RNG = np.random.default_rng(21)
SOFT = np.kron(RNG.integers(0, 256, (12, 14, 3), np.uint8), np.ones((16, 16, 1), np.uint8))  # 192 x 224
ANSWER_S = 240.0
TAKEN_UP_S = 4.0
"""From the repair of a file to the next picture; a node that is set aside rests for 5 s at first."""


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def client(networks: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskClient]:
    """A client of a grid whose one node serves all of them."""
    with python_grid(tmp_path_factory.mktemp("grid"), MODELS, networks) as made:
        yield made


def stock(networks: dict[str, str], model: str, image: Any, mask: Any, **fields: Any) -> Any:
    """Upstream's answer in this process, BGR; the generators seeded as the node seeds them."""
    without_ipp()
    with pytest.MonkeyPatch.context() as patch:
        point_upstream_at(networks, patch)
        manager = importlib.import_module("lama_cleaner.model_manager")
        made = manager.ModelManager(model, torch.device("cpu"))
    seed(SEEDS.get(model, SEEDS["*"]))
    return made(image.copy(), mask.copy(), stock_config(**fields)).astype(np.uint8)


def seed(number: int) -> None:
    importlib.import_module("lama_cleaner.model.utils").set_seed(number)


@pytest.mark.filterwarnings("ignore")  # upstream's, of what it stands on
@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("manga", {}),
        ("manga", {"hd_strategy": "Resize", "hd_strategy_resize_limit": 100}),
        ("ldm", {"ldm_steps": 4, "ldm_sampler": "plms"}),
        ("ldm", {"ldm_steps": 4, "ldm_sampler": "ddim", "hd_strategy": "Original"}),
        ("zits", {"zits_wireframe": True}),
        ("zits", {"zits_wireframe": False}),
        ("zits", {"hd_strategy": "Crop", "hd_strategy_crop_trigger_size": 64, "hd_strategy_crop_margin": 24}),
        ("mat", {}),
        ("fcf", {}),
    ],
)
def test_a_model_gives_upstreams_pixels(
    client: TaskClient, networks: dict[str, str], model: str, fields: dict[str, Any]
) -> None:
    mask = hole(*SOFT.shape[:2], 60, 70, 50)
    wanted = stock(networks, model, SOFT, mask, **fields)
    # A second answer does not depend on what ran before it.
    for _ in range(1 if model == "fcf" else 2):
        got = client.inpaint(SOFT, mask, model=model, timeout=ANSWER_S, **fields)[:, :, ::-1]
        assert np.array_equal(got, wanted), f"{(got != wanted).mean():.2%} of the samples differ"
    assert not np.array_equal(wanted[:, :, ::-1], SOFT), "nothing was done"


@pytest.mark.filterwarnings("ignore")  # upstream's, of what it stands on
def test_manga_on_a_rust_node_gives_upstreams_pixels(
    networks: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    odd = np.ascontiguousarray(SOFT[:181, :205])  # of sides that are padded
    with torch_grid(tmp_path_factory.mktemp("torch"), ["manga"], networks) as client:
        for image, fields in [
            (SOFT, {"hd_strategy": "Original"}),
            (odd, {"hd_strategy": "Original"}),
            (odd, {"hd_strategy": "Resize", "hd_strategy_resize_limit": 100}),
            (
                odd,
                {"hd_strategy": "Crop", "hd_strategy_crop_trigger_size": 64, "hd_strategy_crop_margin": 24},
            ),
        ]:
            mask = hole(*image.shape[:2], 60, 70, 50) | hole(*image.shape[:2], 130, 20, 20)
            wanted = stock(networks, "manga", image, mask, **fields)
            got = client.inpaint(image, mask, model="manga", timeout=ANSWER_S, **fields)[:, :, ::-1]
            assert np.array_equal(got, wanted), (
                f"{fields}: {(got != wanted).mean():.2%} of the samples differ"
            )
            assert not np.array_equal(wanted[:, :, ::-1], image), "nothing was done"


def test_manga_without_its_files_says_what_to_do(
    networks: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    env = {**networks, "MANGA_LINE_MODEL_URL": "file:///no-such-file.jit"}
    mask = hole(*SOFT.shape[:2], 60, 70, 50)
    with (
        torch_grid(tmp_path_factory.mktemp("torch"), ["manga"], env) as client,
        pytest.raises(
            LamaGridError, match=r"model manga: cannot fetch file:///no-such-file\.jit .*MANGA_LINE_MODEL_URL"
        ),
    ):
        client.inpaint(SOFT, mask, model="manga", timeout=ANSWER_S)


def test_a_repaired_file_is_taken_up_within_seconds(
    networks: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file that was cut short fails tasks until its Python node is set aside; its repair ends that.

    Upstream's code removes a file that it cannot read. A Rust node does not offer the model: test_memory.
    """
    folder = tmp_path_factory.mktemp("repaired")
    whole = Path(networks["MANGA_LINE_MODEL_URL"]).read_bytes()
    file = folder / "line.jit"
    file.write_bytes(whole[: len(whole) // 2])
    mask = hole(*SOFT.shape[:2], 60, 70, 50)
    with python_grid(folder, ["manga"], {**networks, "MANGA_LINE_MODEL_URL": str(file)}) as client:
        for _ in range(5):
            with pytest.raises(LamaGridError, match=r"model verify manga|line\.jit"):
                client.inpaint(SOFT, mask, model="manga", timeout=ANSWER_S)
            (node,) = client.survey()["nodes"]
            if node["state"] == "aside":
                break
        assert node["state"] == "aside"
        repaired = folder / "repaired.jit"
        repaired.write_bytes(whole)
        repaired.rename(file)
        began = time.monotonic()
        got = client.inpaint(SOFT, mask, model="manga", timeout=ANSWER_S)
        took = time.monotonic() - began
    print(f"the picture came {took:.1f} s after the repair")
    assert not np.array_equal(got, SOFT)
    assert took < TAKEN_UP_S


class Slowly(http.server.BaseHTTPRequestHandler):
    """Serves one file: byte by byte until it is asked to hurry."""

    def do_GET(self) -> None:
        content: bytes = self.server.content  # type: ignore[attr-defined]
        hurry: threading.Event = self.server.hurry  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        sent = 0
        while sent < len(content) // 2 or (sent < len(content) - 1 and not hurry.is_set()):
            step = max(1, len(content) // 100)
            self.wfile.write(content[sent : sent + step])
            sent = min(sent + step, len(content))
            time.sleep(0.02)
        self.wfile.write(content[sent:])

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_a_fetch_shows_as_loading_with_its_progress(
    networks: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And the grid knows from then on that the files are there."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slowly) as server:
        server.content = Path(networks["MANGA_LINE_MODEL_URL"]).read_bytes()  # type: ignore[attr-defined]
        server.hurry = threading.Event()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folder = tmp_path_factory.mktemp("torch")
        url = f"http://127.0.0.1:{server.server_port}/erika.jit"
        env = {**networks, "MANGA_LINE_MODEL_URL": url, "TORCH_HOME": str(folder)}
        # Another model first: the first one is loaded before a task comes.
        with torch_grid(folder, ["lama", "manga"], {**env, "LAMA_MODEL_URL": __file__}) as client:
            manager = RemoteModelManager("manga", "cpu", client=client)
            assert not manager.is_downloaded("manga")
            task = client.submit(SOFT, hole(*SOFT.shape[:2], 60, 70, 50), model="manga")
            events, seen = task.events(), []
            while not seen or seen[-1].status not in TERMINAL:
                progress = events.next(ANSWER_S)
                assert progress is not None
                seen.append(progress)
                if progress.activity == "loading" and 0 < progress.step < 100:
                    server.hurry.set()  # type: ignore[attr-defined]
            task.wait(ANSWER_S)
            assert manager.is_downloaded("manga")
        server.shutdown()
    assert seen[-1].status == "completed", seen
    # The quick network may be done before its progress arrives: the picture takes another way.
    activities = [each.activity for each in seen if each.status == "processing" and each.of > 0]
    assert activities == sorted(activities), "loading comes before running, as in the alphabet"
    part = [each for each in seen if each.activity == "loading" and 0 < each.step < 100]
    assert part
    assert {each.of for each in part} == {100}


def test_an_unknown_sampler_is_reported_and_the_model_stays(
    client: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the node, too: a client of another version may not check it."""
    mask = hole(*SOFT.shape[:2], 60, 70, 50)
    monkeypatch.setattr("lamagrid.client.checked", lambda values, *_: dict(values))
    with pytest.raises(InvalidInputError, match=r"ValueError, without a reason, in forward of ldm\.py"):
        client.inpaint(SOFT, mask, model="ldm", ldm_sampler="euler", timeout=ANSWER_S)
    assert client.inpaint(SOFT, mask, model="ldm", ldm_steps=2, timeout=ANSWER_S).shape == SOFT.shape
