"""Networks of other signatures than lama's, by configuration: the pixels of plain Python scripts. X10."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grids.pictures import decoded, encoded, hole
from grids.server import BIN, GridServer, start_grid
from lamagrid import TaskClient
from models.conftest import torch_grid
from parity.stock import stock_inpaint
from stock.models import tiny_lama
from stock.processes import Processes
from stock.signatures import Described, joined, keep_first, migan

pytestmark = pytest.mark.timeout(300)

RNG = np.random.default_rng(77)
ANSWER_S = 240.0
CROP = {"hd_strategy": "Crop", "hd_strategy_crop_trigger_size": 300, "hd_strategy_crop_margin": 40}


def soft(height: int, width: int) -> Any:
    """A picture with structure."""
    cells = RNG.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return np.ascontiguousarray(np.kron(cells, np.ones((16, 16, 1), np.uint8))[:height, :width])


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Described]:
    folder = tmp_path_factory.mktemp("networks")
    return {"migan": migan(folder), "keep-first": keep_first(folder), "joined": joined(folder)}


@pytest.fixture(scope="module")
def anime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of lama's signature, as the anime-lama that users fetch."""
    return tiny_lama(tmp_path_factory.mktemp("anime"), 23)


@pytest.fixture(scope="module")
def url(anime: Path) -> Iterator[str]:
    """Where it is served."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(anime.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{anime.name}"
        server.shutdown()


@pytest.fixture(scope="module")
def configuration(
    networks: dict[str, Described], anime: Path, url: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    file = tmp_path_factory.mktemp("configuration") / "config.toml"
    sections = [
        f'[models.{name}]\npath = "{network.file}"\n{network.section}' for name, network in networks.items()
    ]
    sum_ = hashlib.sha256(anime.read_bytes()).hexdigest()
    sections.append(f'[models.anime]\nurl = "{url}"\nsha256 = "{sum_}"\n')
    file.write_text("\n".join(sections))
    return file


@pytest.fixture(scope="module")
def env(configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For nodes, also where they keep what they fetch."""
    cache = tmp_path_factory.mktemp("cache")
    return {"LAMAGRID_CONFIG": str(configuration), "TORCH_HOME": str(cache)}


@pytest.fixture(scope="module")
def client(
    networks: dict[str, Described], env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TaskClient]:
    with torch_grid(tmp_path_factory.mktemp("grid"), [*networks, "anime"], env) as made:
        yield made


@pytest.mark.filterwarnings("ignore")  # upstream's, of what it stands on
@pytest.mark.parametrize("name", ["migan", "keep-first"])
@pytest.mark.parametrize(("height", "width"), [(512, 512), (300, 411), (700, 1290)])
def test_a_network_of_512_pixels_gives_the_pixels_of_a_plain_script(
    client: TaskClient, networks: dict[str, Described], name: str, height: int, width: int
) -> None:
    image = soft(height, width)
    # One hole that is enlarged again, one that is not, both with grey where they end.
    mask = hole(height, width, 20, 30, 60) | hole(height, width, height - 90, width - 300, 70)
    mask[20:80, 30 : min(width, 1000) - 100] = 255
    wanted = networks[name].inpaint(image, mask)
    got = client.inpaint(image, mask, model=name, timeout=ANSWER_S)[:, :, ::-1]
    assert np.array_equal(got, wanted), f"{(got != wanted).mean():.2%} of the samples differ"
    assert not np.array_equal(got[:, :, ::-1], image), "nothing was done"


@pytest.mark.filterwarnings("ignore")  # upstream's, of what it stands on
@pytest.mark.parametrize("fields", [{"hd_strategy": "Original"}, CROP])
def test_a_network_with_joined_inputs_pastes_its_whole_output(
    client: TaskClient, networks: dict[str, Described], fields: dict[str, Any]
) -> None:
    image = soft(181, 333)
    mask = hole(181, 333, 20, 30, 40) | hole(181, 333, 100, 250, 30)
    wanted = networks["joined"].inpaint(image, mask, **fields)
    got = client.inpaint(image, mask, model="joined", timeout=ANSWER_S, **fields)[:, :, ::-1]
    assert np.array_equal(got, wanted), f"{(got != wanted).mean():.2%} of the samples differ"
    assert not np.array_equal(got[mask == 0][:, ::-1], image[mask == 0]), "only the hole was pasted"


@pytest.mark.filterwarnings("ignore")  # upstream's, of what it stands on
def test_a_network_of_lamas_signature_is_fetched_by_its_url(
    client: TaskClient, anime: Path, env: dict[str, str]
) -> None:
    image = soft(150, 170)
    mask = hole(150, 170, 20, 30, 60)
    wanted = stock_inpaint(anime, image, mask, {})
    got = client.inpaint(image, mask, model="anime", timeout=ANSWER_S)[:, :, ::-1]
    assert np.array_equal(got, wanted)
    assert (Path(env["TORCH_HOME"]) / "hub" / "checkpoints" / anime.name).read_bytes() == anime.read_bytes()


@pytest.mark.filterwarnings("ignore")  # upstream's, of what it stands on
def test_models_of_the_configuration_work_through_the_unchanged_page(
    networks: dict[str, Described], anime: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """Started with one, switched to the other, by the requests that the page sends. X10, R1.1."""
    image = soft(300, 411)
    mask = hole(300, 411, 20, 30, 60)
    files = encoded(image), encoded(mask)
    processes = Processes(tmp_path / "logs")
    try:
        flags = ("--model", "migan", "--grid-python-models", "", "--device", "cpu")
        server = start_grid(processes, tmp_path / "data", *flags, env=env).wait_ready()
        assert server.get("/model").text == "migan"
        assert_pixels(server, files, lambda: networks["migan"].inpaint(image, mask))
        assert server.post("/model", data={"name": "anime"}).text == "ok, switch to anime"
        assert_pixels(server, files, lambda: stock_inpaint(anime, image, mask, {}))
        assert server.get("/model_downloaded/anime").text == "True"
        assert server.post("/model", data={"name": "nothing"}).status_code == 403
    finally:
        processes.close()


def assert_pixels(server: GridServer, files: tuple[bytes, bytes], wanted: Callable[[], Any]) -> None:
    """The page's request has the pixels of a script, and nodes did it all."""
    answer = server.inpaint(*files)
    assert answer.status_code == 200, answer.text
    assert "X-Lamagrid-Fallback" not in answer.headers
    assert np.array_equal(decoded(answer.content)[:, :, ::-1], wanted())


def model_command(env: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a verb of ``lamagrid model``."""
    command = [BIN / "lamagrid", "model", *words]
    around = {**os.environ, **env}
    return subprocess.run(command, env=around, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.filterwarnings("ignore")  # upstream's, of what it stands on
def test_a_model_is_checked_on_a_picture_without_a_grid(
    networks: dict[str, Described], env: dict[str, str], tmp_path: Path
) -> None:
    image, mask, out = tmp_path / "image.png", tmp_path / "mask.png", tmp_path / "out.png"
    pixels, hole_ = soft(120, 150), hole(120, 150, 20, 30, 60)
    image.write_bytes(encoded(pixels))
    mask.write_bytes(encoded(hole_))
    env = {**env, "LAMAGRID__DATA_DIR": str(tmp_path / "data")}
    done = model_command(env, "check", "migan", "--image", image, "--mask", mask, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "migan: 150 x 120 pixels on cpu: loaded in " in done.stdout
    assert "MiB of memory" in done.stdout
    assert f"{out}: before, mask, after" in done.stdout
    seen = decoded(out.read_bytes())
    assert seen.shape == (120, 450, 3)
    assert np.array_equal(seen[:, :150], pixels)
    assert np.array_equal(seen[:, 150:300, 0], hole_)
    assert np.array_equal(seen[:, 300:, ::-1], networks["migan"].inpaint(pixels, hole_))
    # On the sample, as JSON, and with a wrong command line.
    done = model_command(env, "check", "joined", "--out", out, "--output", "json")
    (row,) = json.loads(done.stdout)
    assert (row["model"], row["out"], row["width"], row["height"]) == ("joined", str(out), 512, 384)
    assert model_command(env, "check", "migan", "--image", image).returncode == 2
    done = model_command(env, "check", "cv2")
    assert done.returncode == 2
    assert "runs on a Python node" in done.stderr


def test_a_model_is_verified_by_its_sum_and_by_a_run(
    configuration: Path, env: dict[str, str], anime: Path, tmp_path: Path
) -> None:
    env = {**env, "LAMAGRID__DATA_DIR": str(tmp_path / "data"), "TORCH_HOME": str(tmp_path)}
    assert model_command(env, "verify", "anime").returncode == 1, "it is not fetched yet"
    done = model_command(env, "verify", "--run", "migan", "anime")
    assert done.returncode == 0, done.stderr
    assert "anime: ran: 512 x 384 pixels on cpu" in done.stdout
    fetched = tmp_path / "hub" / "checkpoints" / anime.name
    assert model_command(env, "verify", "anime").stdout == f"anime: {fetched} is right\n"
    fetched.write_bytes(fetched.read_bytes()[:-100])
    done = model_command(env, "verify", "anime", "--run")
    assert done.returncode == 1
    assert "has SHA-256" in done.stdout
    assert "has SHA-256" in done.stderr
    assert model_command(env, "verify", "cv2", "--run").returncode == 2
    assert model_command(env, "verify", "--run").returncode == 2
    wrong = tmp_path / "wrong.toml"
    text = configuration.read_text().replace('inputs = ["mask+erased"]', 'inputs = ["mask", "erased"]')
    wrong.write_text(text.replace('mask_range = "0.5..-0.5"', 'mask_range = "0..1"'))
    done = model_command({**env, "LAMAGRID_CONFIG": str(wrong)}, "verify", "migan", "--run")
    assert done.returncode == 1
    assert "migan: did not run" in done.stdout
    assert "but received 3 argument(s)" in done.stderr
