"""The ``/run_plugin`` route: each plugin's work as a task; its weights load on nodes alone.

Does not: import or build a plugin, or decode a picture.
Who calls it: the launcher, once, before the server starts.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lamagrid import pixel_limit
from lamagrid.errors import InvalidInputError
from lamagrid.upstream.enabled_plugins import ANSWERS_PNG, FORM_FIELDS, MAKE_GIF, RemotePlugin
from lamagrid.web import error_responses
from lamagrid.web.routes.inpaint import content

if TYPE_CHECKING:
    from lamagrid.web.model_manager import RemoteModelManager


def register(server: Any, plugins: Mapping[str, RemotePlugin], max_pixels: int, strict: bool = False) -> None:
    """Put the route in upstream's place, in ``lama_cleaner.server``, and keep it from building plugins."""
    server.build_plugins = lambda _args: server.plugins.update(plugins)
    server.app.view_functions["run_plugin"] = PluginRoute(server, max_pixels, strict)


class PluginRoute:
    """Upstream's ``run_plugin``, with the work done by a node.

    Args:
        server: Upstream's module; its ``plugins``, ``model`` and ``image_quality`` are used.
        max_pixels: Of one picture; more are answered with 413.
        strict: Whether to hide what went wrong, as upstream does.
    """

    def __init__(self, server: Any, max_pixels: int, strict: bool = False) -> None:
        self._server = server
        self._max_pixels = max_pixels
        self._strict = strict

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
        for key in FORM_FIELDS.get(name, ()):
            params[key] = dict(form)[key]  # as upstream: an error of the server, not of the request
        if "upscale" in params:
            with contextlib.suppress(ValueError):  # checked() refuses a text that is no number
                params["upscale"] = float(params["upscale"])
        example, filename = None, ""
        if name == MAKE_GIF:
            example, filename = content(uploads["clean_img"].stream), dict(form)["filename"]
        for what, data in (("image", image), ("clean_img", example)):
            text = None if data is None else pixel_limit.too_large(io.BytesIO(data), self._max_pixels)
            if text is not None:
                return f"The {what} is too large: {text}", 413
        began = time.monotonic()
        manager: RemoteModelManager = self._server.model
        try:
            file = manager.run_plugin(name, image, example, params)
        except RuntimeError as error:
            if self._strict and isinstance(error, InvalidInputError):
                abort(500)  # what upstream's plugins raise then is no RuntimeError
            if self._strict and "CUDA out of memory. " not in str(error):
                return "Internal Server Error", 500
            return error_responses.failed(self._server, error)
        self._server.logger.info(f"{name} process time: {(time.monotonic() - began) * 1000}ms")
        if name == MAKE_GIF:
            return self._server.send_file(
                io.BytesIO(file), mimetype="image/gif", as_attachment=True, download_name=filename
            )
        extension = "png" if name in ANSWERS_PNG else self._server.get_image_ext(image)
        return self._server.send_file(io.BytesIO(file), mimetype=f"image/{extension}")
