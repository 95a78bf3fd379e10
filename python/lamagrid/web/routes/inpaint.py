"""The ``/inpaint`` route: passes the uploaded files on unread, so that nodes decode and encode.

Upstream's own view answers all other requests: a missing field, a broken picture, a format for which nodes do
not promise Pillow's pixels. So its checks, their order and their texts stay upstream's.

Does not: decode a picture, or check what upstream's view checks.
"""

from __future__ import annotations

import io
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lamagrid import _native, pixel_limit
from lamagrid.errors import InvalidInputError
from lamagrid.upstream.forms import INPAINT_FIELDS
from lamagrid.web import error_responses
from lamagrid.web.model_manager import InputFiles, OutputFile
from lamagrid.web.uploads import content

if TYPE_CHECKING:
    from lamagrid.upstream.protocol import UpstreamConfig, UpstreamServer

    Header = Mapping[str, Any] | None  # from `_native.probe`

FALLBACK_HEADER = "X-Lamagrid-Fallback"

BROKEN_UPSTREAM = frozenset(["tiff"])
"""Formats that upstream answers although nodes can write them. The TIFF that upstream writes repeats the
structure of the one it read; often it fails, or the file cannot be read again."""

FILE_FIELDS = ("image", "mask", "paintByExampleImage")

log = logging.getLogger("lamagrid.web")


class _NotPromised(Exception):
    """Upstream's view answers this request, with arrays going to the grid.

    Args:
        kind: Format and mode of the picture, for the log; None where the request is not a valid one.
    """

    def __init__(self, kind: str | None) -> None:
        super().__init__(kind)
        self.kind = kind


class InpaintRoute:
    """Replaces upstream's view ``process`` for requests that nodes can answer.

    Args:
        server: Upstream's module; its ``model``, ``image_quality`` and ``socketio`` are used.
        upstream: Upstream's view.
        max_pixels: Of one picture; more are answered with 413.
    """

    def __init__(self, server: UpstreamServer, upstream: Callable[[], Any], max_pixels: int) -> None:
        self._server = server
        self._upstream = upstream
        self._max_pixels = max_pixels

    def __call__(self) -> Any:
        """Answer one request."""
        from flask import request

        uploads = request.files
        files = {name: content(uploads[name].stream) for name in FILE_FIELDS if name in uploads}
        try:
            return self._answer(files, request.form)
        except _NotPromised as fallback:
            kind = fallback.kind
        except InvalidInputError as error:
            # A node could not read it. Upstream's view may, with Pillow, or tells the error in its own words.
            log.info("upstream answers a request that a node refused: %s", error)
            kind = "refused by a node"
        for name in files:
            uploads[name].stream.seek(0)
        response = self._server.app.make_response(self._upstream())
        if kind is not None:
            log.info("Pillow decodes and encodes this request: %s", kind)
            response.headers[FALLBACK_HEADER] = kind
        return response

    def _answer(self, files: Mapping[str, bytes], form: Mapping[str, str]) -> Any:
        server = self._server
        headers = {name: _native.probe(data) for name, data in files.items()}
        for name, data in files.items():
            text = self._too_large(headers[name], data)
            if text is not None:
                return f"The {name} is too large: {text}", 413
        if "image" not in files or "mask" not in files:
            raise _NotPromised(None)
        extension = self._extension(headers, files["image"])
        config = self._config(form)
        began = time.monotonic()
        try:
            result = server.model.inpaint_files(
                InputFiles(files["image"], files["mask"], files.get("paintByExampleImage")),
                config,
                OutputFile(extension, server.image_quality),
            )
        except InvalidInputError:
            raise
        except RuntimeError as error:
            return error_responses.failed(server, error)
        server.logger.info(f"process time: {(time.monotonic() - began) * 1000}ms")
        response = server.make_response(result)
        # The same as upstream's send_file sets.
        response.headers["Content-Type"] = f"image/{extension}"
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Seed"] = str(config.sd_seed)
        server.socketio.emit("diffusion_finish")
        return response

    def _too_large(self, header: Header, data: bytes) -> str | None:
        if header is None:  # of a format that Pillow may know
            return pixel_limit.too_large(io.BytesIO(data), self._max_pixels)
        return pixel_limit.over(header["width"], header["height"], self._max_pixels)

    def _extension(self, headers: Mapping[str, Header], image: bytes) -> str:
        """Upstream's name of the answer's format.

        Raises:
            _NotPromised: Nodes do not promise Pillow's pixels for one of these files.
        """
        extension: str = self._server.get_image_ext(image)
        for name, header in headers.items():
            if header is None:
                raise _NotPromised("unknown ?")
            promised = header["decodes"]
            if name == "image":
                form = header["format"]
                promised &= header["encodes"] and form not in BROKEN_UPSTREAM and form == extension
            if not promised:
                raise _NotPromised(f"{header['format']} {header['mode']}")
        return extension

    def _config(self, form: Mapping[str, str]) -> UpstreamConfig:
        """Make upstream's ``Config`` from the form; random seeds are drawn as in upstream."""
        try:
            config = self._server.Config(**{key: form[field.form] for key, field in INPAINT_FIELDS.items()})
        except (KeyError, ValueError) as error:  # of Werkzeug and of pydantic
            raise _NotPromised(None) from error
        if config.sd_seed == -1:
            config.sd_seed = random.randint(1, 999999999)
        if config.paint_by_example_seed == -1:
            config.paint_by_example_seed = random.randint(1, 999999999)
        return config
