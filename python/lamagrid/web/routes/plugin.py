"""The ``/run_plugin`` route: the work of a plugin is a task, and its weights load on nodes only.

Does not: import or build a plugin, or decode a picture.
"""

from __future__ import annotations

import contextlib
import io
import time
from typing import TYPE_CHECKING, Any

from lamagrid import pixel_limit
from lamagrid.errors import InvalidInputError
from lamagrid.upstream.enabled_plugins import ANSWERS_PNG, MAKE_GIF, RemotePlugin
from lamagrid.upstream.forms import PLUGIN_FIELDS
from lamagrid.web import error_responses
from lamagrid.web.error_responses import AnswerStyle
from lamagrid.web.model_manager import InputFiles
from lamagrid.web.uploads import content

if TYPE_CHECKING:
    from lamagrid.upstream.protocol import UpstreamServer


class PluginRoute:
    """Replaces upstream's view ``run_plugin``: a node does the work.

    Args:
        server: Upstream's module; its ``plugins``, ``model`` and ``image_quality`` are used.
        max_pixels: Of one picture; more are answered with 413.
        style: Upstream's hides errors.
    """

    def __init__(self, server: UpstreamServer, max_pixels: int, style: AnswerStyle) -> None:
        self._server = server
        self._max_pixels = max_pixels
        self._hides_errors = style is AnswerStyle.UPSTREAM

    def __call__(self) -> Any:
        """Answer one request. The order of the checks is upstream's."""
        from flask import abort, request

        form, uploads = request.form, request.files
        name = form["name"]
        plugin: RemotePlugin | None = self._server.plugins.get(name)
        if plugin is None:
            return "Plugin not found", 500
        image = content(uploads["image"].stream)
        params = dict(plugin.options)
        if name not in ANSWERS_PNG:
            params["quality"] = self._server.image_quality
        for key in PLUGIN_FIELDS.get(name, ()):
            params[key] = dict(form)[key]  # as in upstream, a missing field is an error of the server
        if "upscale" in params:
            with contextlib.suppress(ValueError):  # checked() refuses other texts
                params["upscale"] = float(params["upscale"])
        example, filename = None, ""
        if name == MAKE_GIF:
            example, filename = content(uploads["clean_img"].stream), dict(form)["filename"]
        for what, data in (("image", image), ("clean_img", example)):
            text = None if data is None else pixel_limit.too_large(io.BytesIO(data), self._max_pixels)
            if text is not None:
                return f"The {what} is too large: {text}", 413
        began = time.monotonic()
        try:
            file = self._server.model.run_plugin(name, InputFiles(image, example=example), params)
        except RuntimeError as error:
            if self._hides_errors and isinstance(error, InvalidInputError):
                abort(500)  # upstream's plugins raise another exception than RuntimeError here
            if self._hides_errors and "CUDA out of memory. " not in str(error):
                return "Internal Server Error", 500
            return error_responses.failed(self._server, error)
        self._server.logger.info(f"{name} process time: {(time.monotonic() - began) * 1000}ms")
        if name == MAKE_GIF:
            return self._server.send_file(
                io.BytesIO(file), mimetype="image/gif", as_attachment=True, download_name=filename
            )
        extension = "png" if name in ANSWERS_PNG else self._server.get_image_ext(image)
        return self._server.send_file(io.BytesIO(file), mimetype=f"image/{extension}")
