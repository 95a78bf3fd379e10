"""The parts of Lama Cleaner's server module that LamaGrid uses, as types.

Does not: import upstream, or describe parts that LamaGrid does not use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import io
    import logging

    from flask import Flask, Response


class UpstreamConfig(Protocol):
    """``lama_cleaner.schema.Config``: the parameters of one request."""

    __fields__: dict[str, Any]
    sd_seed: int
    paint_by_example_seed: int


class UpstreamArguments(Protocol):
    """The result of ``lama_cleaner.parse_args``: the flags that LamaGrid reads.

    Upstream's ``main`` reads the others.
    """

    host: str
    port: int
    model: str
    device: str
    hf_access_token: str
    enable_interactive_seg: bool
    interactive_seg_model: str
    interactive_seg_device: str
    enable_remove_bg: bool
    enable_anime_seg: bool
    enable_realesrgan: bool
    realesrgan_model: Any
    realesrgan_device: str
    realesrgan_no_half: bool
    enable_gfpgan: bool
    gfpgan_device: str
    enable_restoreformer: bool
    restoreformer_device: str
    enable_gif: bool


class EngineIO(Protocol):
    """``engineio.Server``, below Socket.IO."""

    sockets: dict[str, Any]


class SocketIOServer(Protocol):
    """``socketio.Server``."""

    eio: EngineIO
    manager: Any


class SocketIO(Protocol):
    """``flask_socketio.SocketIO``."""

    server: SocketIOServer

    def emit(self, event: str, *args: Any, **kwargs: Any) -> None:
        """Send an event: to all listeners, or to the rooms ``to``."""

    def on_event(self, message: str, handler: Callable[..., Any]) -> None:
        """Register a handler of an event."""


class UpstreamServer(Protocol):
    """``lama_cleaner.server``, the module."""

    app: Flask
    socketio: SocketIO
    model: Any
    plugins: dict[str, Any]
    image_quality: int
    logger: logging.Logger
    Config: Callable[..., UpstreamConfig]

    def get_image_ext(self, img_bytes: bytes) -> str:
        """The format that upstream answers a picture in."""

    def make_response(self, *args: Any) -> Response:
        """Flask's."""

    def send_file(self, path_or_file: io.BytesIO, mimetype: str, **options: Any) -> Response:
        """Flask's."""

    def main(self, args: UpstreamArguments) -> None:
        """Set what the routes use, then serve."""
