"""Over-large pictures are refused by their header."""

from __future__ import annotations

import io
import struct
import types
import warnings
import zlib
from collections.abc import Iterator

import flask
import numpy as np
import pytest
from PIL import Image

from grids.pictures import encoded
from lamagrid.web.routes.inpaint import InpaintRoute

LIMIT = 1000


@pytest.fixture
def page() -> Iterator[flask.testing.FlaskClient]:
    """A server whose /inpaint says how many bytes of each upload are left to read."""
    app = flask.Flask("page")

    def process() -> dict[str, int]:
        return {name: len(upload.read()) for name, upload in flask.request.files.items()}

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LIMIT
    server = types.SimpleNamespace(app=app, Config=dict, get_image_ext=lambda _: "png")
    app.add_url_rule("/inpaint", "process", InpaintRoute(server, process, LIMIT), methods=["POST"])
    yield app.test_client()
    Image.MAX_IMAGE_PIXELS = before


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG of that size, without any pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")


@pytest.mark.parametrize("field", ["image", "mask", "paintByExampleImage"])
@pytest.mark.parametrize("size", [(1001, 1), (40, 26), (50, 50), (60000, 60000)])
def test_too_many_pixels_are_413_before_anything_is_decoded(
    page: flask.testing.FlaskClient, field: str, size: tuple[int, int]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        answer = page.post("/inpaint", data={field: (io.BytesIO(png_of(*size)), "x.png")})
    assert answer.status_code == 413
    text = answer.get_data(as_text=True)
    assert field in text
    assert str(LIMIT) in text
    assert "Send a smaller one" in text
    assert len(text) < 200


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_pictures_up_to_the_limit_pass_unread(page: flask.testing.FlaskClient, form: str) -> None:
    data = encoded(np.zeros((25, 40, 3), np.uint8), form)
    answer = page.post("/inpaint", data={"image": (io.BytesIO(data), "x"), "mask": (io.BytesIO(data), "y")})
    assert answer.get_json() == {"image": len(data), "mask": len(data)}


@pytest.mark.parametrize("data", [b"", b"no picture", png_of(20, 20)[:20]])
def test_files_that_are_no_pictures_are_left_to_upstream(
    page: flask.testing.FlaskClient, data: bytes
) -> None:
    answer = page.post("/inpaint", data={"image": (io.BytesIO(data), "x")})
    assert answer.get_json() == {"image": len(data)}
