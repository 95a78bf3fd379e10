"""The ``/inpaint`` route with the uploaded files handed on as they are: nodes decode and encode.

Upstream's own view stays behind it and answers everything that is not plainly good: a missing field, a
broken picture, a format whose pixels only Pillow can promise. So its checks, their order and their texts stay
upstream's.

Does not: decode a picture, or judge a request that upstream would refuse.
Who calls it: the launcher, once, before the server starts.
"""

from __future__ import annotations

import io
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lamagrid import _native, pixel_limit
from lamagrid.errors import InvalidInputError
from lamagrid.web import error_responses

if TYPE_CHECKING:
    from lamagrid.web.model_manager import RemoteModelManager

    Header = Mapping[str, Any] | None  # what `_native.probe` says

FALLBACK_HEADER = "X-Lamagrid-Fallback"
UPLOADS_BYTES = 512 * 1024 * 1024
"""Uploads of all requests together that are held in memory; beyond it Werkzeug puts them on disk, as ever."""

FORM_FIELDS: Mapping[str, str] = {
    "ldm_steps": "ldmSteps",
    "ldm_sampler": "ldmSampler",
    "hd_strategy": "hdStrategy",
    "zits_wireframe": "zitsWireframe",
    "hd_strategy_crop_margin": "hdStrategyCropMargin",
    "hd_strategy_crop_trigger_size": "hdStrategyCropTrigerSize",
    "hd_strategy_resize_limit": "hdStrategyResizeLimit",
    "prompt": "prompt",
    "negative_prompt": "negativePrompt",
    "use_croper": "useCroper",
    "croper_x": "croperX",
    "croper_y": "croperY",
    "croper_height": "croperHeight",
    "croper_width": "croperWidth",
    "sd_scale": "sdScale",
    "sd_mask_blur": "sdMaskBlur",
    "sd_strength": "sdStrength",
    "sd_steps": "sdSteps",
    "sd_guidance_scale": "sdGuidanceScale",
    "sd_sampler": "sdSampler",
    "sd_seed": "sdSeed",
    "sd_match_histograms": "sdMatchHistograms",
    "cv2_flag": "cv2Flag",
    "cv2_radius": "cv2Radius",
    "paint_by_example_steps": "paintByExampleSteps",
    "paint_by_example_guidance_scale": "paintByExampleGuidanceScale",
    "paint_by_example_mask_blur": "paintByExampleMaskBlur",
    "paint_by_example_seed": "paintByExampleSeed",
    "paint_by_example_match_histograms": "paintByExampleMatchHistograms",
    "p2p_steps": "p2pSteps",
    "p2p_image_guidance_scale": "p2pImageGuidanceScale",
    "p2p_guidance_scale": "p2pGuidanceScale",
    "controlnet_conditioning_scale": "controlnet_conditioning_scale",
    "controlnet_method": "controlnet_method",
}
"""Upstream's ``Config`` by the fields of upstream's form, all of them mandatory."""

BROKEN_UPSTREAM = frozenset(["tiff"])
"""Formats whose answers stay upstream's although nodes write them: the TIFF that upstream writes repeats the
structure of the one it read, so that it often refuses or cannot be read again."""

FILE_FIELDS = ("image", "mask", "paintByExampleImage")

log = logging.getLogger("lamagrid.web")


class _Unpromised(Exception):
    """Upstream shall answer this request itself, with arrays going to the grid.

    Args:
        kind: Format and mode of the picture, for the count; None where the request is not a good one.
    """

    def __init__(self, kind: str | None) -> None:
        super().__init__(kind)
        self.kind = kind


def register(server: Any, max_pixels: int) -> None:
    """Put the route in front of upstream's, in ``lama_cleaner.server``, whose ``model`` is a remote one."""
    app = server.app
    app.request_class = _request_class(app.request_class)
    upstream = app.view_functions["process"]
    route = InpaintRoute(server, upstream, max_pixels)
    app.view_functions["process"] = route


class InpaintRoute:
    """Upstream's ``process``, for requests that nodes can answer whole.

    Args:
        server: Upstream's module; its ``model``, ``image_quality`` and ``socketio`` are used.
        upstream: Upstream's view.
        max_pixels: Of one picture; more are answered with 413.
    """

    def __init__(self, server: Any, upstream: Callable[[], Any], max_pixels: int) -> None:
        self._server = server
        self._upstream = upstream
        self._max_pixels = max_pixels
        pixel_limit.set_for_pillow(max_pixels)

    def __call__(self) -> Any:
        """Answer one request."""
        from flask import request

        uploads = request.files
        files = {name: content(uploads[name].stream) for name in FILE_FIELDS if name in uploads}
        try:
            return self._answer(files, request.form)
        except _Unpromised as fallback:
            kind = fallback.kind
        except InvalidInputError as error:
            # A node could not read it. Pillow may, or upstream says in its own words what is wrong.
            log.info("upstream answers what a node refused: %s", error)
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
            raise _Unpromised(None)
        extension = self._extension(headers, files["image"])
        config = self._config(form)
        began = time.monotonic()
        manager: RemoteModelManager = server.model
        try:
            result = manager.inpaint_files(
                files["image"],
                files["mask"],
                files.get("paintByExampleImage"),
                config,
                extension,
                server.image_quality,
            )
        except InvalidInputError:
            raise
        except RuntimeError as error:
            return error_responses.failed(server, error)
        server.logger.info(f"process time: {(time.monotonic() - began) * 1000}ms")
        response = server.make_response(result)
        # What upstream's send_file sets.
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
        """What upstream calls the answer's format.

        Raises:
            _Unpromised: Nodes do not promise Pillow's pixels for one of these files.
        """
        extension: str = self._server.get_image_ext(image)
        for name, header in headers.items():
            if header is None:
                raise _Unpromised("unknown ?")
            promised = header["decodes"]
            if name == "image":
                form = header["format"]
                promised &= header["encodes"] and form not in BROKEN_UPSTREAM and form == extension
            if not promised:
                raise _Unpromised(f"{header['format']} {header['mode']}")
        return extension

    def _config(self, form: Mapping[str, str]) -> Any:
        """Upstream's ``Config`` of the form, seeds drawn as upstream draws them."""
        try:
            config = self._server.Config(**{key: form[field] for key, field in FORM_FIELDS.items()})
        except (KeyError, ValueError) as error:  # of Werkzeug and of pydantic
            raise _Unpromised(None) from error
        if config.sd_seed == -1:
            config.sd_seed = random.randint(1, 999999999)
        if config.paint_by_example_seed == -1:
            config.paint_by_example_seed = random.randint(1, 999999999)
        return config


def content(stream: Any) -> bytes:
    """All bytes of an upload: without a copy, if it is in memory."""
    if isinstance(stream, io.BytesIO):
        return stream.getvalue()
    data: bytes = stream.read()
    return data


class _Uploads:
    """Counts what is held in memory of requests that are being read or answered."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()  # guards _held
        self._held = 0
        self._limit = limit

    def take(self, size: int) -> bool:
        with self._lock:
            if self._held + size > self._limit:
                return False
            self._held += size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._held -= size


def _request_class(base: type[Any]) -> type[Any]:
    """Flask's request class, with uploads in memory instead of temporary files, where there is room."""
    uploads = _Uploads(UPLOADS_BYTES)

    class GridRequest(base):  # type: ignore[misc]
        _held_bytes = 0

        def _get_file_stream(
            self,
            total_content_length: int | None,
            content_type: str | None,
            filename: str | None = None,
            content_length: int | None = None,
        ) -> Any:
            # A body holds all its files, so it is counted once.
            if not self._held_bytes and total_content_length and uploads.take(total_content_length):
                self._held_bytes = total_content_length
            if self._held_bytes:
                return io.BytesIO()
            return super()._get_file_stream(total_content_length, content_type, filename, content_length)

        def close(self) -> None:
            super().close()
            held, self._held_bytes = self._held_bytes, 0
            uploads.give_back(held)

    return GridRequest
