"""The five facts that the swap stands on: upstream's unchanged server, and a client that plays the grid."""

from __future__ import annotations

import inspect
import io
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grids.pictures import decoded, encoded, hole
from lamagrid import errors
from lamagrid.types import TaskOptions
from lamagrid.web.model_manager import RemoteModelManager
from parity.stock import stock_config
from seam.conftest import FakeClient
from stock.forms import stock_form

PHOTO = np.random.default_rng(5).integers(0, 256, (40, 60, 3), np.uint8)
MASK = hole(40, 60, 10, 20, 8)


@pytest.fixture
def page(client: FakeClient, server_module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Upstream's server with our model, as a test client of Flask."""
    monkeypatch.setattr(server_module, "model", RemoteModelManager("lama", "cpu", client=client))
    return server_module.app.test_client()


def post(page: Any, photo: bytes | None = None, **overrides: object) -> Any:
    """POST /inpaint."""
    form: dict[str, Any] = dict(stock_form(**overrides))
    form["image"] = (io.BytesIO(photo or encoded(PHOTO)), "image.png")
    form["mask"] = (io.BytesIO(encoded(MASK)), "mask.png")
    return page.post("/inpaint", data=form, content_type="multipart/form-data")


# 1. One import, one construction with keyword arguments.


def test_upstream_imports_and_constructs_the_manager_as_expected(server_module: Any) -> None:
    source = inspect.getsource(server_module)
    assert source.count("from lama_cleaner.model_manager import ModelManager") == 1
    assert len(re.findall(r"\bModelManager\(", source)) == 1
    assert set(re.findall(r"(?<![\w.])model\.(\w+)", source)) == {"name", "is_downloaded", "switch"}


def test_the_swapped_import_accepts_every_option_of_upstream(client: FakeClient) -> None:
    from lama_cleaner_patch import ModelManager

    assert ModelManager is RemoteModelManager
    options = {
        "sd_controlnet": False,
        "sd_controlnet_method": "control_v11p_sd15_canny",
        "no_half": False,
        "hf_access_token": "secret",
        "disable_nsfw": False,
        "sd_cpu_textencoder": False,
        "sd_run_local": False,
        "sd_local_model_path": None,
        "local_files_only": False,
        "cpu_offload": False,
        "enable_xformers": False,
    }
    model = ModelManager(name="lama", device="cpu", client=client, callback=lambda *_: None, **options)
    model(PHOTO, MASK, stock_config())
    assert "secret" not in repr(client.submitted)
    assert "callback" not in client.submitted[0][2]


def test_import_and_construction_start_nothing_and_load_no_model() -> None:
    code = (
        "import sys, threading\n"
        "from lama_cleaner_patch import ModelManager, entry_point\n"
        "ModelManager(name='lama', device='cpu')\n"
        "heavy = {'torch', 'diffusers', 'lama_cleaner.model', 'lama_cleaner.server'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert threading.active_count() == 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


# 2. RGB u8 in, mask of 0 and 255, BGR out, the caller's arrays untouched.


def test_a_picture_goes_as_rgb_and_comes_back_as_bgr(page: Any, client: FakeClient) -> None:
    answer = post(page)
    assert answer.status_code == 200
    assert np.array_equal(decoded(answer.data), PHOTO)
    image, mask, named = client.submitted[0]
    assert np.array_equal(image, PHOTO)
    assert image.dtype == mask.dtype == np.uint8
    assert np.array_equal(mask, MASK)
    assert named["model"] == "lama"
    assert named["durability"] == "process"
    assert answer.headers["X-Lamagrid-Task"] == client.tasks[0].id


def test_the_callers_arrays_are_only_read(client: FakeClient) -> None:
    image, mask = PHOTO.copy(), MASK.copy()
    image.flags.writeable = mask.flags.writeable = False
    config = stock_config(hd_strategy="Crop", hd_strategy_crop_trigger_size=10)
    before = config.copy()
    RemoteModelManager("lama", "cpu", client=client)(image, mask, config)
    assert config == before


OF_THE_TASK = set(TaskOptions.names())


def test_upstreams_parameters_travel_under_upstreams_names(
    page: Any, client: FakeClient, server_module: Any
) -> None:
    """R8.1: those that the model reads; what it does not read stays here."""
    server_module.model.name = "cv2"
    post(
        page,
        hdStrategy="Resize",
        hdStrategyResizeLimit=77,
        prompt="a cat",
        sdSeed=11,
        cv2Flag="INPAINT_TELEA",
    )
    named = client.submitted[0][2]
    params = {key: value for key, value in named.items() if key not in OF_THE_TASK}
    assert params == {
        "hd_strategy": "Resize",
        "hd_strategy_resize_limit": 77,
        "cv2_flag": "INPAINT_TELEA",
        "cv2_radius": 5,
    }
    server_module.model.name = "sd1.5"
    post(page, prompt="a cat", sdSeed=11, sdStrength=0.5)
    named = client.submitted[1][2]
    assert {"prompt": "a cat", "sd_seed": 11, "sd_sampler": "uni_pc"}.items() <= named.items()
    assert not {"hd_strategy", "sd_strength", "croper_x", "cv2_flag"} & named.keys()


def test_an_example_picture_travels_as_pixels(client: FakeClient) -> None:
    example = Image.fromarray(PHOTO[:5, :7])
    config = stock_config(paint_by_example_example_image=example)
    RemoteModelManager("paint_by_example", "cpu", client=client)(PHOTO, MASK, config)
    named = client.submitted[0][2]
    assert np.array_equal(named["example"], PHOTO[:5, :7])
    assert "paint_by_example_example_image" not in named


# 3. `.name`, `.is_downloaded`, `.switch`, and NotImplementedError for unknown models.


def test_switching_follows_the_nodes(page: Any, client: FakeClient) -> None:
    def switch(name: str) -> tuple[int, str]:
        answer = page.post("/model", data={"name": name})
        return answer.status_code, answer.get_data(as_text=True)

    assert page.get("/model").data == b"lama"
    assert switch("lama") == (200, "Same model")
    assert switch("cv2") == (200, "ok, switch to cv2")
    assert page.get("/model").data == b"cv2"
    assert switch("nonsense") == (403, "nonsense not implemented")
    assert page.post("/model").status_code == 403
    assert page.get("/model").data == b"cv2"
    post(page)
    assert client.submitted[-1][2]["model"] == "cv2"
    client.models = ["lama", "my/own-model"]
    assert switch("my/own-model") == (200, "ok, switch to my/own-model")


def test_a_model_that_no_live_node_serves_is_not_switched_to(client: FakeClient) -> None:
    model = RemoteModelManager("lama", "cpu", client=client)
    with pytest.raises(
        RuntimeError, match=r"No live node serves mat; lama stays.*lamagrid pynode --model mat"
    ):
        model.switch("mat")
    assert model.name == "lama"
    client.unreachable = errors.DisconnectedError("no scheduler answered")
    with pytest.raises(RuntimeError, match="no scheduler"):
        model.switch("cv2")
    with pytest.raises(NotImplementedError):
        model.switch("nonsense")
    model.switch("lama")
    assert model.name == "lama"


def test_downloaded_means_that_a_live_node_has_the_files(page: Any, client: FakeClient) -> None:
    def downloaded(name: str) -> Any:
        return page.get(f"/model_downloaded/{name}")

    assert downloaded("lama").data == b"True"
    assert downloaded("mat").data == b"False"
    assert downloaded("sd1.5").data == b"False"  # upstream says True of all diffusers' models
    client.models.append("sd1.5")
    assert downloaded("sd1.5").data == b"True"
    client.missing.append("sd1.5")
    assert downloaded("sd1.5").data == b"False"
    assert downloaded("nonsense").status_code == 500
    client.unreachable = errors.DisconnectedError("no scheduler answered")
    assert downloaded("lama").data == b"False"


def test_an_unknown_model_is_refused_at_construction(client: FakeClient) -> None:
    with pytest.raises(NotImplementedError, match="Not supported model: nonsense"):
        RemoteModelManager(name="nonsense", device="cpu", client=client)
    with pytest.raises(NotImplementedError):
        RemoteModelManager(name="lama", device="cpu", client=client).is_downloaded("nonsense")


# 4. Only RuntimeError is caught, and memory has its literal text.


def test_failures_become_upstreams_answers(page: Any, client: FakeClient) -> None:
    def answer_to(error: BaseException) -> tuple[int, str]:
        client.work = lambda image, mask: error
        answer = post(page)
        assert answer.headers["X-Lamagrid-Task"] == client.tasks[-1].id
        return answer.status_code, answer.get_data(as_text=True)

    assert answer_to(errors.OutOfMemoryError("the device is full")) == (500, "CUDA out of memory")
    assert answer_to(errors.InferenceError("the model failed")) == (500, "the model failed")
    assert answer_to(errors.OverloadedError("1000 tasks wait")) == (500, "1000 tasks wait")
    client.work = lambda image, mask: image[:, :, ::-1]
    assert post(page).status_code == 200


def test_every_error_of_ours_is_a_runtime_error() -> None:
    classes = [
        each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, Exception)
    ]
    assert len(classes) >= 14
    assert all(issubclass(each, RuntimeError) for each in classes)


def test_an_exception_during_the_wait_cancels_the_task(client: FakeClient) -> None:
    model = RemoteModelManager("lama", "cpu", client=client, timeout_s=0.2)
    client.work = lambda image, mask: KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(PHOTO, MASK, stock_config())
    assert client.tasks[0].cancelled
    client.work = lambda image, mask: errors.WaitTimeoutError("not ready")
    with pytest.raises(RuntimeError, match=r"^Timed out after 0.2 s"):
        model(PHOTO, MASK, stock_config())
    assert client.tasks[1].cancelled
    client.work = lambda image, mask: image
    model(PHOTO, MASK, stock_config())
    assert client.tasks[2].released
    assert not client.tasks[2].cancelled


# 5. The callback counts the steps of diffusers' models.


def test_steps_reach_the_callback_for_diffusers_models_only(client: FakeClient) -> None:
    client.steps = 3
    seen: list[tuple[Any, ...]] = []
    options: dict[str, Any] = {"client": client, "callback": lambda *step: seen.append(step)}
    RemoteModelManager("sd1.5", "cpu", **options)(PHOTO, MASK, stock_config())
    assert seen == [(0, None, None), (1, None, None), (2, None, None)]
    RemoteModelManager("lama", "cpu", **options)(PHOTO, MASK, stock_config())
    assert len(seen) == 3


def test_options_of_diffusers_models_are_sent_as_they_are_at_submission(client: FakeClient) -> None:
    model = RemoteModelManager(
        "sd1.5", "cpu", client=client, no_half=True, sd_controlnet=True, cpu_offload=False
    )
    model(PHOTO, MASK, stock_config())
    named = client.submitted[0][2]
    assert named["no_half"] is True
    assert named["sd_controlnet"] is True
    assert "cpu_offload" not in named
