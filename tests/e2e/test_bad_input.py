"""Whatever is sent or set wrong: a clear answer, and the next good request works."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grids.pictures import decoded, encoded, hole, plain
from grids.server import (
    BIN,
    ORIGINAL,
    GridServer,
    Server,
    free_port,
    is_one_line,
    lamagrid_json,
    start_grid,
)
from stock.forms import stock_form
from stock.processes import Processes

pytestmark = pytest.mark.timeout(120)

Background = Callable[..., Future[Any]]
PHOTO, HOLE = plain(48, 64), hole(48, 64, 10, 10, 12)
GOOD_PHOTO, GOOD_HOLE = encoded(PHOTO), encoded(HOLE)


@pytest.fixture
def grid(shared_grid: tuple[Processes, GridServer]) -> Iterator[GridServer]:
    """A running stack, which answers a good request after each test."""
    _, grid = shared_grid
    yield grid
    answer = grid.inpaint(GOOD_PHOTO, GOOD_HOLE, **ORIGINAL)
    assert answer.status_code == 200, answer.text
    wanted = PHOTO.copy()
    wanted[HOLE > 0] = 127
    assert np.array_equal(decoded(answer.content), wanted)


@pytest.mark.parametrize(
    ("image", "mask"),
    [(b"", GOOD_HOLE), (b"no picture", GOOD_HOLE), (GOOD_PHOTO, b"no picture"), (GOOD_PHOTO[:60], GOOD_HOLE)],
)
def test_an_undecodable_picture_is_upstreams_500(grid: GridServer, image: bytes, mask: bytes) -> None:
    answer = grid.inpaint(image, mask)
    assert answer.status_code == 500
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert is_one_line(answer.content), answer.text


def test_a_mask_of_another_size_is_upstreams_400(grid: GridServer) -> None:
    answer = grid.inpaint(GOOD_PHOTO, encoded(hole(20, 30, 0, 0, 5)))
    assert (answer.status_code, answer.text) == (400, "Mask shape(20, 30) not queal to Image shape(48, 64)")


@pytest.mark.parametrize("field", sorted(stock_form()))
def test_a_missing_field_is_upstreams_400(grid: GridServer, field: str) -> None:
    answer = grid.inpaint(GOOD_PHOTO, GOOD_HOLE, **{field: None})
    assert answer.status_code == 400
    assert field in answer.text
    assert is_one_line(answer.content), answer.text


@pytest.mark.parametrize(("image", "mask"), [(None, GOOD_HOLE), (GOOD_PHOTO, None), (None, None)])
def test_a_missing_file_is_upstreams_400(grid: GridServer, image: bytes | None, mask: bytes | None) -> None:
    assert grid.inpaint(image, mask).status_code == 400


@pytest.mark.parametrize(
    ("field", "value"), [("croperX", "1.5"), ("sdSteps", "many"), ("useCroper", "perhaps")]
)
def test_a_malformed_field_is_upstreams_500(grid: GridServer, field: str, value: str) -> None:
    answer = grid.inpaint(GOOD_PHOTO, GOOD_HOLE, **{field: value})
    assert answer.status_code == 500
    assert is_one_line(answer.content), answer.text


def test_what_the_model_refuses_is_a_short_text(grid: GridServer) -> None:
    assert grid.post("/model", data={"name": "cv2"}).text == "ok, switch to cv2"
    try:
        answer = grid.inpaint(GOOD_PHOTO, GOOD_HOLE, cv2Flag="INPAINT_MAGIC")
        assert answer.status_code == 500
        assert "INPAINT_MAGIC" in answer.text
        assert len(answer.text) < 300
        assert "<" not in answer.text
        assert grid.inpaint(GOOD_PHOTO, GOOD_HOLE).status_code == 200
    finally:
        assert grid.post("/model", data={"name": "lama"}).text == "ok, switch to lama"


def test_an_unknown_model_is_403_and_the_current_one_stays(grid: GridServer) -> None:
    answer = grid.post("/model", data={"name": "nonsense"})
    assert (answer.status_code, answer.text) == (403, "nonsense not implemented")
    assert grid.get("/model").text == "lama"


def test_a_model_that_no_node_serves_is_refused_and_the_current_one_stays(grid: GridServer) -> None:
    assert grid.get("/model_downloaded/mat").text == "False"
    assert grid.post("/model", data={"name": "mat"}).status_code == 500
    assert grid.get("/model").text == "lama"


def test_what_the_model_does_not_read_refuses_nothing(grid: GridServer) -> None:
    """R8.1: stock looks at no field that lama does not read; each of these was refused for its size alone."""
    huge, long = 2**70, "x" * 9000
    unread: dict[str, object] = dict.fromkeys(("prompt", "negativePrompt", "sdSampler", "cv2Flag"), long)
    unread |= dict.fromkeys(("croperX", "croperY", "croperHeight", "croperWidth", "sdSeed"), huge)
    unread |= dict.fromkeys(("ldmSteps", "sdSteps", "sdMaskBlur", "cv2Radius", "p2pSteps"), -huge)
    unread |= dict.fromkeys(("sdScale", "sdStrength", "p2pGuidanceScale"), "nan")
    unread |= {"hdStrategyResizeLimit": huge, "paintByExampleSeed": huge, "ldmSampler": long}
    unread |= {"controlnet_method": long, "hdStrategyCropMargin": huge, "hdStrategy": "Crop"}
    answer = grid.inpaint(GOOD_PHOTO, GOOD_HOLE, **unread)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Seed"] == str(huge)
    answer = grid.inpaint(GOOD_PHOTO, GOOD_HOLE, hdStrategy=long)  # no strategy: the whole picture
    assert answer.status_code == 200, answer.text


# Set wrong: each of these starts, or refuses to, with a text that says what to do.


def refused(processes: Processes, data_dir: Path, *flags: str, env: dict[str, str] | None = None) -> str:
    """The output of a launcher that could not start."""
    grid = start_grid(processes, data_dir, "--grid-python-models", "", *flags, env=env)
    assert grid.process.wait(60) == 1, grid.log
    assert "Traceback" not in grid.log
    return grid.log


def test_missing_weights_are_named_and_the_server_mends(
    processes: Processes, tmp_path: Path, slow_model: Path
) -> None:
    nowhere = "http://127.0.0.1:9/lama.pt"  # nothing listens on port 9
    env = {"TORCH_HOME": str(tmp_path / "torch"), "LAMA_MODEL_URL": nowhere}
    grid = start_grid(processes, tmp_path / "grid", "--grid-python-models", "", env=env).wait_ready()
    assert "warning: node torch-0 could not load lama" in grid.log
    answer = grid.inpaint(GOOD_PHOTO, GOOD_HOLE)
    assert answer.status_code == 500
    assert nowhere in answer.text
    assert "LAMA_MODEL_URL" in answer.text
    # Its text says where the file belongs.
    place = tmp_path / "torch" / "hub" / "checkpoints" / "lama.pt"
    assert str(place) in answer.text
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(slow_model, place)
    assert grid.inpaint(GOOD_PHOTO, GOOD_HOLE).status_code == 200


def test_a_broken_model_file_is_named_and_kept(processes: Processes, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no model")
    flags = ["--grid-model", f"lama={broken}", "--grid-python-models", ""]
    env = {"LAMAGRID__SCHEDULER__NO_NODE_WAIT_MS": "500"}
    grid = start_grid(processes, tmp_path / "grid", *flags, env=env).wait_ready()
    # Its node does not offer it, and says why.
    assert f"warning: node torch-0 does not serve lama: {broken} is not a" in grid.log
    answer = grid.inpaint(GOOD_PHOTO, GOOD_HOLE)
    assert answer.status_code in (404, 500, 503), answer.text
    assert "lama" in answer.text
    assert broken.read_bytes() == b"no model"
    assert grid.get("/model").text == "lama"


def test_a_store_of_a_newer_version_is_left_alone(processes: Processes, tmp_path: Path) -> None:
    data_dir = tmp_path / "grid"
    scheduler = processes.start("scheduler", [BIN / "lamagrid", "scheduler", "--data-dir", data_dir])
    processes.wait_until(
        lambda: lamagrid_json("node", "list", data_dir=data_dir) == [], 30, "a scheduler", [scheduler]
    )
    processes.stop(scheduler)
    store = data_dir / "tasks.db"
    assert store.is_file()
    with sqlite3.connect(store) as database:
        database.execute("PRAGMA user_version = 9999")
    database.close()
    before = store.read_bytes()
    log = refused(processes, data_dir, "--grid-demo-model")
    assert "9999" in log
    assert "newer" in log
    assert store.read_bytes() == before


def test_a_read_only_data_directory_is_named(processes: Processes, tmp_path: Path) -> None:
    # A file where the directory should be stands for a read-only home, which root could write to.
    (tmp_path / "home").write_text("")
    log = refused(processes, tmp_path / "home" / "grid", "--grid-demo-model")
    assert str(tmp_path / "home") in log


def test_too_long_a_socket_path_is_named_with_what_to_do(processes: Processes, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir(mode=0o700)
    env = {"XDG_RUNTIME_DIR": str(long), "TMPDIR": str(long)}  # the second one takes the place of the first
    log = refused(processes, tmp_path / "grid", "--grid-demo-model", env=env)
    assert "set XDG_RUNTIME_DIR to a shorter path" in log


def test_no_scheduler_to_attach_to_is_named(processes: Processes, tmp_path: Path) -> None:
    port = free_port()
    command = [BIN / "lama-cleaner-grid", "--port", str(port), "--grid-scheduler", tmp_path / "nobody"]
    attached = processes.start("attached", command)
    assert attached.wait(60) == 1
    log = processes.log(attached)
    assert f"lamagrid scheduler --data-dir {tmp_path / 'nobody'}" in log


def test_no_node_is_a_short_text_and_one_that_comes_works(
    processes: Processes, tmp_path: Path, background: Background
) -> None:
    """The launcher on a scheduler that runs by itself, first without any node."""
    data_dir = tmp_path / "grid"
    env = {"LAMAGRID__SCHEDULER__NO_NODE_WAIT_MS": "300", "LAMAGRID__CLIENT__TIMEOUT_MS": "20000"}
    scheduler = processes.start("scheduler", [BIN / "lamagrid", "scheduler", "--data-dir", data_dir], env)
    processes.wait_until(lambda: any(data_dir.glob("*")), 20, "a data directory", [scheduler])
    port = free_port()
    command = [BIN / "lama-cleaner-grid", "--port", str(port), "--model", "cv2", "--grid-scheduler", data_dir]
    web = Server(processes, processes.start("web", command, env), port).wait_ready()
    answer = web.inpaint(GOOD_PHOTO, GOOD_HOLE)
    assert answer.status_code == 500
    assert "node" in answer.text
    assert len(answer.text) < 400
    command = [BIN / "lamagrid", "pynode", "--data-dir", data_dir, "--model", "cv2"]
    node = processes.start("pynode", command, env)
    processes.wait_until(lambda: web.inpaint(GOOD_PHOTO, GOOD_HOLE).status_code == 200, 40, "an answer")

    # R4.4: told to end while it works, the node finishes what takes under 4 seconds, delivers, and leaves.
    large, wide = encoded(plain(1200, 1200)), encoded(hole(1200, 1200, 200, 200, 500))
    slow = {"hdStrategy": "Original", "cv2Flag": "INPAINT_TELEA", "cv2Radius": 12}
    waiting = background(web.inpaint, large, wide, **slow)
    processes.wait_until(
        lambda: any(node["running"] for node in lamagrid_json("node", "list", data_dir=data_dir)),
        30,
        "a running task",
        [node],
    )
    node.terminate()
    assert waiting.result(60).status_code == 200
    assert node.wait(20) == 0


def test_a_timeout_is_a_short_text_and_frees_the_node(
    processes: Processes, tmp_path: Path, slow_flags: list[str]
) -> None:
    env = {"LAMAGRID__CLIENT__TIMEOUT_MS": "1000"}
    grid = start_grid(processes, tmp_path / "grid", *slow_flags, env=env).wait_ready()
    slow = encoded(plain(48, 64, 255))
    answer = grid.inpaint(slow, GOOD_HOLE, **ORIGINAL)
    assert answer.status_code == 500
    assert answer.text.startswith("Timed out after 1 s")
    assert len(answer.text) < 300
    assert grid.task(answer)["state"] == "cancelled"
    processes.wait_until(
        lambda: grid.inpaint(GOOD_PHOTO, GOOD_HOLE, **ORIGINAL).status_code == 200, 40, "a good answer"
    )
