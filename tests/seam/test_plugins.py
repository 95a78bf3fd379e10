"""The ``/run_plugin`` route: upstream's own view against ours, with the Python node's own code behind it.

R8.1, P7.1.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from lama_cleaner.model.utils import set_seed
from PIL import Image

from grids.pictures import decoded, encoded
from lamagrid import errors
from lamagrid.client import Outcome, Progress
from lamagrid.pynode.main import Serving, work
from lamagrid.pynode.plugins import PLUGINS, SEED, Embeddings, UpstreamPlugins
from lamagrid.types import PluginOptions
from lamagrid.upstream import enabled_plugins
from lamagrid.upstream.enabled_plugins import RemotePlugin
from lamagrid.web import error_responses
from lamagrid.web.error_responses import AnswerStyle
from lamagrid.web.model_manager import RemoteModelManager
from lamagrid.web.routes.plugin import PluginRoute
from stock.plugins import FACE_PX, small_plugins

PHOTO = np.random.default_rng(4).integers(0, 256, (40, 70, 3), np.uint8)
CLEAN = np.random.default_rng(5).integers(0, 256, (40, 70, 3), np.uint8)
CLICKS = json.dumps([[20, 15, 1, 0], [60, 30, 0, 1]])
FACE = np.random.default_rng(6).integers(0, 256, (FACE_PX, FACE_PX + 30, 3), np.uint8)
SERVED = tuple(PLUGINS)
UPSCALER = {"realesrgan_model": "realesr-general-x4v3", "realesrgan_no_half": True}
REMOTE = {
    "InteractiveSeg": RemotePlugin("InteractiveSeg", options={"interactive_seg_model": "vit_b"}),
    "RealESRGAN": RemotePlugin("RealESRGAN", options=UPSCALER),
    "GFPGAN": RemotePlugin("GFPGAN", options={"background": True, **UPSCALER}),
} | {name: RemotePlugin(name) for name in ("RemoveBG", "AnimeSeg", "RestoreFormer", "MakeGIF")}


class FakeJob:
    """A plugin's task as a session gives it."""

    def __init__(self, name: str, image: bytes, example: bytes | None, params: Mapping[str, Any]) -> None:
        self.spec = {"model": f"plugin/{name}", "params": dict(params)}
        self._files = {"image": image, "example": example}
        self.file: bytes | None = None
        self.failure: tuple[str, str] | None = None

    def loading(self) -> bool:
        return True

    def step(self, step: int, of: int) -> bool:
        return True

    def take_file(self, role: str) -> bytes | None:
        return self._files.pop(role)

    def finish_file(self, data: bytes, load_ms: float, infer_ms: float) -> None:
        assert load_ms >= 0
        assert infer_ms > 0
        self.file = data

    def fail(self, kind: str, message: str) -> None:
        self.failure = (kind, message)


class FakeTask:
    """Ended before it is asked for."""

    id = "0" * 32

    def __init__(self, job: FakeJob) -> None:
        self._job = job

    def events(self) -> FakeTask:
        return self

    def next(self, _timeout: float) -> Progress:
        return Progress("completed" if self._job.failure is None else "failed", 0, 0)

    def outcome(self, _timeout: float | None = None) -> Outcome:
        if self._job.failure is not None:
            kind, message = self._job.failure
            classes = (each for each in vars(errors).values() if getattr(each, "kind", None) == kind)
            raise next(classes)(message)
        assert self._job.file is not None
        return Outcome(self._job.file, None, {})

    def cancel(self) -> None:
        """Nothing to cancel."""

    def release(self) -> None:
        """Nothing to release."""


class Node:
    """Plays the client, and does the work at once with the node's own code."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.jobs: list[FakeJob] = []
        self.failure: tuple[str, str] | None = None

    def survey(self, *_: Any) -> dict[str, Any]:
        return {"nodes": []}

    def submit_plugin(self, name: str, image: bytes, options: PluginOptions) -> FakeTask:
        job = FakeJob(name, image, options.example, options.params)  # type: ignore[arg-type]
        self.jobs.append(job)
        if self.failure is None:
            work(job, self._serving)
        job.failure = self.failure or job.failure
        return FakeTask(job)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with small_plugins(tmp_path_factory.mktemp("torch")):
        yield


@pytest.fixture(scope="module")
def upstreams(small: None) -> dict[str, Any]:
    """Upstream's plugins as its server builds them."""
    upscaler = PLUGINS["RealESRGAN"](UPSCALER["realesrgan_model"], "cpu", no_half=True)
    return {
        "InteractiveSeg": PLUGINS["InteractiveSeg"]("vit_b", "cpu"),
        "RealESRGAN": upscaler,
        "GFPGAN": PLUGINS["GFPGAN"]("cpu", upscaler=upscaler),
        "RestoreFormer": PLUGINS["RestoreFormer"]("cpu", upscaler=None),
    } | {name: PLUGINS[name]() for name in ("RemoveBG", "AnimeSeg", "MakeGIF")}


@pytest.fixture(scope="module")
def node(small: None) -> Iterator[Node]:
    offers = tuple(f"plugin/{name}" for name in SERVED)
    limit = Image.MAX_IMAGE_PIXELS
    yield Node(Serving(None, UpstreamPlugins(dict.fromkeys(SERVED, "cpu"), 200_000), offers))
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture
def both(
    server_module: Any, upstreams: dict[str, Any], node: Node, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Posts to upstream's view and to ours; gives both answers. For ``only_grid`` the first is None."""
    app = server_module.app
    stock_view = app.view_functions["run_plugin"]
    monkeypatch.setattr(server_module, "model", RemoteModelManager("cv2", "cpu", client=node))  # type: ignore[arg-type]
    monkeypatch.setattr(server_module, "plugins", {})
    node.failure = None

    def post(
        files: Mapping[str, bytes], strict: bool = True, only_grid: bool = False, **form: str
    ) -> tuple[Any, Any]:
        style = AnswerStyle.UPSTREAM if strict else AnswerStyle.READABLE
        view = PluginRoute(server_module, 100_000, style)
        reported: list[Any] = []
        for this_view, these in ((stock_view, upstreams), (view, REMOTE)):
            if only_grid and these is upstreams:
                reported.append(None)
                continue
            set_seed(SEED)  # the node does so before each task
            app.view_functions["run_plugin"] = this_view
            monkeypatch.setattr(server_module, "plugins", these)
            data: dict[str, Any] = dict(form)
            data |= {name: (io.BytesIO(content), f"{name}.png") for name, content in files.items()}
            reported.append(app.test_client().post("/run_plugin", data=data))
        return reported[0], reported[1]

    yield post
    app.view_functions["run_plugin"] = stock_view


def same(stock: Any, grid: Any) -> Any:
    """The answer, once both are known to be the same one."""
    assert (stock.status_code, stock.data) == (grid.status_code, grid.data)
    ours = {name: value for name, value in grid.headers.items() if name != "X-Lamagrid-Task"}
    assert dict(stock.headers) == ours
    return grid


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_click_gives_upstreams_mask(both: Any, node: Node, form: str) -> None:
    answer = same(*both({"image": encoded(PHOTO, form)}, name="InteractiveSeg", clicks=CLICKS))
    assert (answer.status_code, answer.mimetype) == (200, "image/png")
    assert decoded(answer.data).shape == (40, 70, 4)
    assert node.jobs[-1].spec["params"]["clicks"] == CLICKS


@pytest.mark.parametrize("name", ["AnimeSeg", "RemoveBG"])
def test_a_cut_out_is_upstreams(both: Any, name: str) -> None:
    answer = same(*both({"image": encoded(PHOTO, "JPEG")}, name=name))
    assert (answer.status_code, answer.mimetype) == (200, "image/png")
    assert len(set(decoded(answer.data)[:, :, 3].flat)) > 1, "the network sees no difference"


@pytest.mark.parametrize(("scale", "shape"), [("4", (160, 280)), ("1.5", (60, 105))])
def test_a_picture_is_enlarged_as_upstream_does_it(both: Any, scale: str, shape: tuple[int, int]) -> None:
    answer = same(*both({"image": encoded(PHOTO, "JPEG")}, name="RealESRGAN", upscale=scale))
    assert (answer.status_code, answer.mimetype) == (200, "image/jpeg")
    assert decoded(answer.data).shape[:2] == shape
    alpha = np.dstack((PHOTO, PHOTO[:, :, 0]))
    assert decoded(same(*both({"image": encoded(alpha)}, name="RealESRGAN", upscale=scale)).data).shape == (
        *shape,
        4,
    )


def test_the_larger_upscaler_is_upstreams(small: None) -> None:
    served = UpstreamPlugins({"RealESRGAN": "cpu"}, 200_000)
    model = "RealESRGAN_x4plus"
    made = served.run("RealESRGAN", {"realesrgan_model": model, "upscale": "2"}, encoded(PHOTO))
    stock = PLUGINS["RealESRGAN"](model, "cpu")(PHOTO, {}, {"upscale": "2"})
    assert np.array_equal(decoded(made), stock[:, :, ::-1])


def test_the_orientation_of_an_answer_is_upstreams_only_on_request(small: None) -> None:
    """R8.1: `/run_plugin` asks for it; a file for a program is upright, and says so."""
    served = UpstreamPlugins({"RealESRGAN": "cpu"}, 200_000)
    out, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    Image.fromarray(PHOTO).save(out, "JPEG", exif=exif)
    params = {"realesrgan_model": "RealESRGAN_x4plus", "upscale": 1.0}
    for keeps, orientation in ((False, 1), (True, 6)):
        made = served.run("RealESRGAN", {**params, "keep_orientation": keeps}, out.getvalue())
        answer = Image.open(io.BytesIO(made))
        assert answer.size == (PHOTO.shape[0], PHOTO.shape[1])
        assert answer.getexif()[274] == orientation


@pytest.mark.parametrize("name", ["GFPGAN", "RestoreFormer"])
def test_a_face_is_restored_as_upstream_does_it(both: Any, name: str) -> None:
    """GFPGAN with RealESRGAN's background, as upstream's flags give it, and RestoreFormer without."""
    answer = same(*both({"image": encoded(FACE)}, name=name))
    assert (answer.status_code, answer.mimetype) == (200, "image/png")
    changed = np.abs(decoded(answer.data).astype(int) - FACE).max(2) > 0
    assert changed[60:-60, 60:-60].mean() > 0.5, "the face is as it was"
    if name == "RestoreFormer":
        assert not changed[:8].any(), "its surroundings are not"
        assert decoded(same(*both({"image": encoded(PHOTO)}, name=name)).data).tolist() == PHOTO.tolist()


def test_a_face_is_restored_the_same_way_twice(upstreams: dict[str, Any], node: Node) -> None:
    """Upstream's own answer depends on what was drawn before."""
    one, other = (upstreams["GFPGAN"](FACE, {}, {}) for _ in range(2))
    assert not np.array_equal(one, other)
    served = node._serving.plugins
    assert served is not None
    made = {served.run("GFPGAN", {"background": True, **UPSCALER}, encoded(FACE)) for _ in range(2)}
    assert len(made) == 1


def test_a_gif_has_upstreams_content_and_file_name(both: Any) -> None:
    files = {"image": encoded(PHOTO), "clean_img": encoded(CLEAN, "JPEG")}
    answer = same(*both(files, name="MakeGIF", filename="before and after.gif"))
    assert (answer.status_code, answer.mimetype) == (200, "image/gif")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="before and after.gif"'


@pytest.mark.parametrize(
    ("files", "form", "status", "text"),
    [
        ({"image": encoded(PHOTO)}, {}, 400, "The request has no field name"),
        ({"image": encoded(PHOTO)}, {"name": "Nonsense"}, 500, "Plugin not found"),
        ({"image": encoded(PHOTO)}, {"name": "RealESRGAN"}, 500, "upscale"),
        ({"image": encoded(PHOTO)}, {"name": "RealESRGAN", "upscale": "x"}, 500, "ValueError"),
        ({}, {"name": "AnimeSeg"}, 400, "The request has no field image"),
        ({"image": b"no picture"}, {"name": "AnimeSeg"}, 500, "cannot be read"),
        ({"image": encoded(PHOTO)}, {"name": "InteractiveSeg"}, 500, "clicks"),
        ({"image": encoded(PHOTO)}, {"name": "InteractiveSeg", "clicks": "[[1"}, 500, "JSONDecodeError"),
        ({"image": encoded(PHOTO)}, {"name": "MakeGIF", "filename": "x"}, 400, "clean_img"),
        (
            {"image": encoded(PHOTO), "clean_img": b"no picture"},
            {"name": "MakeGIF", "filename": "x"},
            500,
            "cannot be read",
        ),
        ({"image": encoded(PHOTO), "clean_img": encoded(CLEAN)}, {"name": "MakeGIF"}, 500, "filename"),
    ],
)
def test_errors_have_upstreams_status_and_in_strict_mode_its_text(
    both: Any,
    server_module: Any,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes],
    form: dict[str, str],
    status: int,
    text: str,
) -> None:
    assert same(*both(files, **form)).status_code == status
    # Handlers are registered before the first request, as a start does.
    monkeypatch.setattr(server_module.app, "_got_first_request", False)
    monkeypatch.setattr(
        server_module.app, "error_handler_spec", copy.deepcopy(server_module.app.error_handler_spec)
    )
    error_responses.register(server_module.app)
    _, grid = both(files, strict=False, **form)
    said = grid.get_data(as_text=True)
    assert (grid.status_code, grid.mimetype) == (status, "text/html")
    assert text in said
    assert "<" not in said
    assert len(said.splitlines()) == 1


def test_a_failure_of_the_grid_is_reported_unless_strict(both: Any, node: Node) -> None:
    node.failure = ("node_lost", "3 nodes died under this task")
    _, grid = both({"image": encoded(PHOTO)}, strict=False, name="AnimeSeg")
    assert (grid.status_code, grid.get_data(as_text=True)) == (500, "3 nodes died under this task")
    _, grid = both({"image": encoded(PHOTO)}, strict=True, name="AnimeSeg")
    assert (grid.status_code, grid.get_data(as_text=True)) == (500, "Internal Server Error")
    for strict in (False, True):
        node.failure = ("out_of_memory", "the device is full")
        _, grid = both({"image": encoded(PHOTO)}, strict=strict, name="AnimeSeg")
        assert (grid.status_code, grid.get_data(as_text=True)) == (500, "CUDA out of memory")


def test_large_pictures_are_refused_by_their_header(both: Any, node: Node) -> None:
    before = len(node.jobs)
    large = encoded(np.zeros((400, 300, 3), np.uint8))
    for files, form in (
        ({"image": large}, {"name": "AnimeSeg"}),
        ({"image": encoded(PHOTO), "clean_img": large}, {"name": "MakeGIF", "filename": "x"}),
    ):
        _, grid = both(files, only_grid=True, **form)
        assert grid.status_code == 413
        assert "limits.max_pixels" in grid.get_data(as_text=True)
    assert len(node.jobs) == before


def test_a_node_refuses_large_pictures_by_their_header(node: Node) -> None:
    """Also of a program that asks no web server."""
    for width, reported in ((600, "240000 pixels, at most 200000 are"), (3_000, "far more than the 200000")):
        large = encoded(np.zeros((400, width, 3), np.uint8))
        for image, example in ((large, None), (encoded(PHOTO), large)):
            job = FakeJob("MakeGIF", image, example, {})
            work(job, node._serving)
            assert job.failure is not None
            assert job.failure[0] == "invalid_input"
            assert reported in job.failure[1]


def test_embeddings_are_cached_for_alternating_users(small: None) -> None:
    """Upstream keeps one; here each of the last pictures is computed once, and none on another's."""
    served = UpstreamPlugins({"InteractiveSeg": "cpu"}, 200_000)
    options = {"interactive_seg_model": "vit_b", "clicks": CLICKS}
    one, two = encoded(PHOTO), encoded(CLEAN)
    wanted = {file: served.run("InteractiveSeg", options, file) for file in (one, two)}
    computed: list[Any] = []
    predictor = served._built["InteractiveSeg"][1].predictor
    set_image = predictor.set_image
    predictor.set_image = lambda image: (computed.append(image), set_image(image))
    for file in (one, two, one, two):
        assert served.run("InteractiveSeg", options, file) == wanted[file]
    assert not computed
    assert len(served._embeddings) == 2


def test_the_embedding_cache_is_limited_and_skips_failures() -> None:
    class Plugin:
        prev_img_md5: str | None = None

        class predictor:
            features = original_size = input_size = is_image_set = None

    plugin, kept = Plugin(), Embeddings(2)

    def compute(key: str) -> None:
        plugin.prev_img_md5 = key
        plugin.predictor.features = key  # type: ignore[assignment]

    plugin.predictor = Plugin.predictor()  # type: ignore[misc, assignment]
    for key in ("a", "b", "c"):
        kept.around(plugin, key, lambda key=key: compute(key))  # type: ignore[misc]
    assert len(kept) == 2
    seen = kept.around(plugin, "b", lambda: (plugin.prev_img_md5, plugin.predictor.features))
    assert seen == ("b", "b")

    def fail() -> None:
        plugin.prev_img_md5 = "d"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        kept.around(plugin, "d", fail)
    assert plugin.prev_img_md5 is None
    assert len(kept) == 2


def test_upstreams_flags_say_which_plugins_there_are() -> None:
    args = argparse.Namespace(
        enable_interactive_seg=True,
        interactive_seg_model="vit_b",
        interactive_seg_device="cuda",
        enable_remove_bg=True,
        enable_anime_seg=False,
        enable_realesrgan=True,
        realesrgan_model="RealESRGAN_x4plus",
        realesrgan_device="cpu",
        realesrgan_no_half=True,
        enable_gfpgan=True,
        gfpgan_device="cuda",
        enable_restoreformer=False,
        restoreformer_device="cpu",
        enable_gif=True,
    )
    found = enabled_plugins.enabled(args)
    assert list(found) == ["InteractiveSeg", "RemoveBG", "RealESRGAN", "GFPGAN", "MakeGIF"]
    assert found["InteractiveSeg"].device == "cuda"
    assert found["GFPGAN"].options == {
        "background": True,
        "realesrgan_model": "RealESRGAN_x4plus",
        "realesrgan_no_half": True,
    }
