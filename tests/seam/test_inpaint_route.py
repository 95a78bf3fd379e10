"""The ``/inpaint`` route with files handed on: upstream's unchanged server, and a client that plays the grid.

R8.1, P7.1.
"""

from __future__ import annotations

import io
from typing import Any

import flask
import numpy as np
import pytest
from PIL import Image
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from grids.pictures import decoded, encoded, hole
from lamagrid import _native, errors
from lamagrid.web import flask_classes
from lamagrid.web.flask_classes import make_request_class
from lamagrid.web.model_manager import RemoteModelManager
from lamagrid.web.routes import inpaint
from lamagrid.web.routes.inpaint import FALLBACK_HEADER, InpaintRoute
from seam.conftest import FakeClient
from stock.forms import stock_form

PHOTO = np.random.default_rng(6).integers(0, 256, (30, 50, 3), np.uint8)
MASK = encoded(hole(30, 50, 5, 9, 8))
ANSWER = b"the file that a node made"


@pytest.fixture
def page(client: FakeClient, server_module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Upstream's server with our model and our route, as a test client of Flask."""
    monkeypatch.setattr(server_module, "model", RemoteModelManager("lama", "cpu", client=client))
    use_inpaint_route(server_module, monkeypatch)
    client.work = lambda image, mask: ANSWER if isinstance(image, bytes) else image[:, :, ::-1]
    return server_module.app.test_client()


def use_inpaint_route(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let upstream's server use our route, until the end of the test."""
    app, max_pixels = server.app, 100_000
    monkeypatch.setattr(app, "request_class", make_request_class(app.request_class, max_pixels))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", max_pixels)
    route = InpaintRoute(server, app.view_functions["process"], max_pixels)
    monkeypatch.setitem(app.view_functions, "process", route)


def post(page: Any, image: bytes | None, mask: bytes | None = MASK, **overrides: object) -> Any:
    form: dict[str, Any] = dict(stock_form(**overrides))
    for name, data in (("image", image), ("mask", mask)):
        if data is not None:
            form[name] = FileStorage(io.BytesIO(data), f"{name}.png")
    boundary, body = encode_multipart(form)
    return page.post("/inpaint", data=body, content_type=f"multipart/form-data; boundary={boundary}")


def test_files_are_passed_on_unread_in_both_directions(page: Any, client: FakeClient) -> None:
    photo = encoded(PHOTO, "JPEG", quality=91)
    answer = post(page, photo, sdSeed=77, hdStrategyCropMargin=33)
    assert (answer.status_code, answer.data) == (200, ANSWER)
    image, mask, named = client.submitted[0]
    assert (image, mask) == (photo, MASK)
    assert (named["output"], named["quality"], named["model"]) == ("jpeg", 95, "lama")
    assert named["hd_strategy_crop_margin"] == 33
    assert named["keep_orientation"] is True
    assert answer.headers["X-Seed"] == "77"
    assert answer.headers["X-Lamagrid-Task"] == client.tasks[0].id
    assert FALLBACK_HEADER not in answer.headers
    assert client.tasks[0].released


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_the_answers_headers_are_those_of_upstreams_view(
    page: Any, client: FakeClient, server_module: Any, form: str
) -> None:
    photo = encoded(PHOTO, form)
    ours = post(page, photo, sdSeed=5)
    views = server_module.app.view_functions
    views["process"] = views["process"]._upstream
    theirs = post(page, photo, sdSeed=5)
    assert not isinstance(client.submitted[1][0], bytes)

    def headers(answer: Any) -> dict[str, str]:
        reported = {name: value for name, value in answer.headers.items() if name != "X-Lamagrid-Task"}
        assert reported.pop("Content-Length") == str(len(answer.data))
        return reported

    assert headers(ours) == headers(theirs)


def test_a_seed_is_drawn_for_each_request_that_asks_for_one(
    page: Any, client: FakeClient, server_module: Any
) -> None:
    server_module.model.name = "sd1.5"
    seeds = {int(post(page, encoded(PHOTO)).headers["X-Seed"]) for _ in range(5)}
    assert len(seeds) > 1
    assert seeds == {named["sd_seed"] for _, _, named in client.submitted}
    assert all(1 <= seed <= 999999999 for seed in seeds)
    server_module.model.name = "paint_by_example"
    post(page, encoded(PHOTO))
    assert client.submitted[-1][2]["paint_by_example_seed"] >= 1


def test_an_example_picture_is_passed_on_as_a_file(page: Any, client: FakeClient) -> None:
    form: dict[str, Any] = dict(stock_form())
    example = encoded(PHOTO[:10])
    for name, data in (("image", encoded(PHOTO)), ("mask", MASK), ("paintByExampleImage", example)):
        form[name] = (io.BytesIO(data), "x.png")
    assert page.post("/inpaint", data=form).data == ANSWER
    assert client.submitted[0][2]["example"] == example


def test_the_end_is_reported_to_browsers(
    page: Any, server_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R8.2: after a good answer, as upstream does, and after no other."""
    reported: list[str] = []
    monkeypatch.setattr(server_module.socketio, "emit", lambda event, *_: reported.append(event))
    post(page, encoded(PHOTO))
    assert reported == ["diffusion_finish"]
    post(page, encoded(PHOTO), sdSteps=None)
    assert reported == ["diffusion_finish"]


def test_formats_that_nodes_do_not_promise_are_decoded_by_pillow(page: Any, client: FakeClient) -> None:
    """Counted per format and mode, by a header that operators and tests can see."""
    palette = io.BytesIO()
    Image.fromarray(PHOTO).convert("P").save(palette, "GIF")
    ppm = io.BytesIO()
    Image.fromarray(PHOTO).save(ppm, "PPM")
    files = [
        (palette.getvalue(), "gif P"),
        (encoded(PHOTO, "TIFF"), "tiff RGB"),
        (ppm.getvalue(), "unknown ?"),
    ]
    for photo, reported in files:
        answer = post(page, photo)
        assert answer.status_code == 200
        assert answer.headers[FALLBACK_HEADER] == reported
        assert isinstance(client.submitted[-1][0], np.ndarray)
        assert decoded(answer.data).shape[:2] == (30, 50)


def test_a_file_that_a_node_cannot_read_is_answered_by_upstream(page: Any, client: FakeClient) -> None:
    def refuse(image: Any, mask: Any) -> Any:
        if isinstance(image, bytes):
            return errors.InvalidInputError("the image: it is a damaged png file")
        return image[:, :, ::-1]

    client.work = refuse
    answer = post(page, encoded(PHOTO))
    assert answer.status_code == 200
    assert np.array_equal(decoded(answer.data), PHOTO)
    assert answer.headers[FALLBACK_HEADER] == "refused by a node"
    assert len(client.submitted) == 2


@pytest.mark.parametrize(
    ("image", "mask", "overrides", "status", "text"),
    [
        (None, MASK, {}, 400, "Bad Request"),
        (encoded(PHOTO), None, {}, 400, "Bad Request"),
        (encoded(PHOTO), MASK, {"croperX": None}, 400, "Bad Request"),
        (encoded(PHOTO), MASK, {"croperX": "1.5"}, 500, "Internal Server Error"),
        (b"no picture", MASK, {}, 500, "Internal Server Error"),
        (encoded(PHOTO)[:60], MASK, {}, 500, "Internal Server Error"),
    ],
)
def test_a_bad_request_has_upstreams_answer(
    page: Any,
    client: FakeClient,
    image: bytes | None,
    mask: bytes | None,
    overrides: dict[str, Any],
    status: int,
    text: str,
) -> None:
    client.work = lambda image, mask: errors.InvalidInputError("a node says so")
    answer = post(page, image, mask, **overrides)
    assert (answer.status_code, text in answer.get_data(as_text=True)) == (status, True)
    assert answer.mimetype == "text/html"
    client.work = lambda image, mask: ANSWER
    assert post(page, encoded(PHOTO)).data == ANSWER


def test_sizes_that_differ_have_upstreams_text(page: Any, client: FakeClient) -> None:
    client.work = lambda image, mask: errors.InvalidInputError("Mask shape(9, 9) not queal to Image shape...")
    answer = post(page, encoded(PHOTO), encoded(hole(20, 50, 1, 1, 4)))
    assert answer.status_code == 400
    assert answer.get_data(as_text=True) == "Mask shape(20, 50) not queal to Image shape(30, 50)"


def test_failures_have_upstreams_answers_and_a_full_queue_has_retry_after(
    page: Any, client: FakeClient
) -> None:
    def answer_to(error: BaseException) -> Any:
        client.work = lambda image, mask: error
        return post(page, encoded(PHOTO))

    def reported(answer: Any) -> tuple[int, str]:
        return answer.status_code, answer.get_data(as_text=True)

    assert reported(answer_to(errors.OutOfMemoryError("the device is full"))) == (500, "CUDA out of memory")
    assert reported(answer_to(errors.InferenceError("the model failed"))) == (500, "the model failed")
    full = errors.OverloadedError("1000 tasks wait")
    full.wait_s = 12.4
    answer = answer_to(full)
    assert reported(answer) == (503, "1000 tasks wait")
    assert answer.headers["Retry-After"] == "12"
    full.queue_len = 1_000
    wanted = "1000 tasks wait. 1000 before you, try again in 12 s."
    assert reported(answer_to(full)) == (503, wanted)


def test_uploads_are_held_in_memory_within_a_budget(
    page: Any, server_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Werkzeug puts the rest on disk; memory is free again when a request ends."""
    seen: list[type[Any]] = []
    monkeypatch.setattr(flask_classes, "UPLOADS_BYTES", 2_000_000)
    in_memory = flask_classes.with_uploads_in_memory(flask.Request)
    monkeypatch.setattr(server_module.app, "request_class", in_memory)
    content = inpaint.content

    def look(stream: Any) -> bytes:
        seen.append(type(stream))
        return content(stream)

    monkeypatch.setattr(inpaint, "content", look)
    big = encoded(PHOTO, "BMP") + bytes(2_500_000)
    small = encoded(PHOTO)
    for photo in (big, small, big, small):
        assert post(page, photo).data == ANSWER
    assert [kind is io.BytesIO for kind in seen] == [False, False, True, True] * 2


def test_probe_reports_which_formats_are_promised() -> None:
    assert _native.probe(encoded(PHOTO, "JPEG")) == {
        "format": "jpeg",
        "mode": "RGB",
        "width": 50,
        "height": 30,
        "decodes": True,
        "encodes": True,
    }
    assert _native.probe(b"") is None
    assert _native.probe(b"\x89PNG\r\n\x1a\n") is None
