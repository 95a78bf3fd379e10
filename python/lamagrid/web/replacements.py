"""Makes the replacements of parts of upstream's web server, for `lamagrid.upstream.patches`.

Each function gets the original and the context, and returns the replacement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lamagrid.client import TaskClient
from lamagrid.settings import Settings
from lamagrid.upstream.enabled_plugins import RemotePlugin
from lamagrid.upstream.protocol import UpstreamServer
from lamagrid.web.bounded_server import BoundedServer
from lamagrid.web.browser_tasks import BrowserTasks
from lamagrid.web.error_responses import AnswerStyle
from lamagrid.web.flask_classes import make_request_class, make_response_class
from lamagrid.web.forwarded_headers import ForwardedHeaders
from lamagrid.web.model_manager import RemoteModelManager, WebTasks
from lamagrid.web.request_filter import RequestFilter
from lamagrid.web.routes.inpaint import InpaintRoute
from lamagrid.web.routes.plugin import PluginRoute
from lamagrid.web.routes.save_image import SaveImageRoute
from lamagrid.web.routes.thumbnail import ThumbnailRoute
from lamagrid.web.same_origin import SameOrigin
from lamagrid.web.socketio_limits import SessionLimit

View = Callable[..., Any]


@dataclass(frozen=True)
class WebContext:
    """The parts of one web server that its replacements use.

    Attributes:
        server: Upstream's module.
        client: Submits tasks.
        settings: The configuration.
        style: How errors are answered.
        plugins: Those that upstream's flags enable.
        browser_tasks: Knows which browser sent which task.
        sessions: Counts the sessions of Engine.IO.
        same_origin: Which browsers are answered; None for all.
    """

    server: UpstreamServer
    client: TaskClient
    settings: Settings
    style: AnswerStyle
    plugins: dict[str, RemotePlugin]
    browser_tasks: BrowserTasks
    sessions: SessionLimit
    same_origin: SameOrigin | None

    @property
    def max_pixels(self) -> int:
        """Of one picture."""
        return self.settings.max_pixels


def model_manager(_original: type[Any], context: WebContext) -> Callable[..., RemoteModelManager]:
    """The manager whose models are on nodes."""
    return partial(
        RemoteModelManager,
        client=context.client,
        timeout_s=context.settings.timeout_s,
        web=WebTasks(context.browser_tasks, context.style),
    )


def build_plugins(_original: Callable[..., None], context: WebContext) -> Callable[[object], None]:
    """Enters the plugins by name, and builds none."""
    return lambda _args: context.server.plugins.update(context.plugins)


def inpaint_view(upstream: View, context: WebContext) -> View:
    """The route ``/inpaint``."""
    return InpaintRoute(context.server, upstream, context.max_pixels)


def plugin_view(_upstream: View, context: WebContext) -> View:
    """The route ``/run_plugin``."""
    return PluginRoute(context.server, context.max_pixels, context.style)


def save_image_view(upstream: View, _context: WebContext) -> View:
    """The route ``/save_image``."""
    return SaveImageRoute(upstream)


def thumbnail_view(upstream: View, _context: WebContext) -> View:
    """The route ``/media_thumbnail``."""
    return ThumbnailRoute(upstream)


def request_class(original: type[Any], context: WebContext) -> type[Any]:
    """Flask's request class with bounded forms, and uploads in memory."""
    return make_request_class(original, context.max_pixels)


def response_class(original: type[Any], _context: WebContext) -> type[Any]:
    """Flask's response class whose texts are plain text."""
    return make_response_class(original)


def wsgi_app(original: Any, context: WebContext) -> RequestFilter:
    """The application behind the filter of requests."""
    return RequestFilter(
        original, context.sessions, context.settings.web, context.max_pixels, context.same_origin
    )


def emit(original: Callable[..., None], context: WebContext) -> Callable[..., None]:
    """Sends an event of one browser's request to that browser only."""
    return original if context.style is AnswerStyle.UPSTREAM else context.browser_tasks.emit


def generate_id(original: Callable[[], str], context: WebContext) -> Callable[[], str]:
    """Counts each new session for its client."""
    return context.sessions.counting(original)


def wsgi_server(_original: type[Any], context: WebContext) -> type[BoundedServer]:
    """The bounded server, which Werkzeug makes for the page, ``--gui`` and ``--debug``."""
    proxies = ForwardedHeaders(context.settings.web.trusted_proxies)
    return type("BoundedServer", (BoundedServer,), {"proxies": proxies})
