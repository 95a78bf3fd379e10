"""Stands before upstream's application and Socket.IO, and decides which requests they see.

In this order: headers of trusted proxies, the name that is asked for, the page that asks, the body's size.
On the way back it makes browsers take every answer for what it is declared to be, and takes from pages of
other sites the right to read it.

Does not: look into a body; `lamagrid.web.request_body` does while the application reads it.
Who calls it: the launcher wraps the application in it, for Lama Cleaner's own server and for gunicorn alike.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

from lamagrid.settings import WebSettings
from lamagrid.web import socketio_limits
from lamagrid.web.fair_share import FairShare
from lamagrid.web.forwarded_headers import ForwardedHeaders, client_key
from lamagrid.web.plain_responses import respond_plain
from lamagrid.web.request_body import (
    BoundedBody,
    BoundedFormParser,
    max_file_bytes,
    max_form_bytes,
    too_large_text,
)
from lamagrid.web.same_origin import SameOrigin

PICTURE_PATHS = frozenset(["/inpaint", "/run_plugin", "/save_image"])
SMALL_BODY_BYTES = 64 * 1024
"""What other routes accept: the name of a model, or messages of Socket.IO."""
BODIES_BYTES = 4 << 30
"""All bodies that are being read or answered."""
SOCKETIO_PATH = "/socket.io"
SOCKETIO_SESSIONS = 1024
"""Each costs a thread that waits to send its next ping."""
NO_DOCUMENT = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""For all but pages: shown by itself, an answer runs no script and belongs to no origin."""
BUSY = "The server has too many connections of this address: close some, or try again in some seconds."


class RequestFilter:
    """The WSGI application around upstream's.

    Args:
        app: What it lets requests through to.
        socketio: Upstream's.
        web: Who is believed.
        max_pixels: All sizes follow from it.
        rules: Which browsers are answered; None for all.
    """

    def __init__(
        self, app: Any, socketio: Any, web: WebSettings, max_pixels: int, rules: SameOrigin | None
    ) -> None:
        self._app = app
        self._max_form_bytes = max_form_bytes(max_pixels)
        self._bodies = FairShare(max(BODIES_BYTES, 2 * self._max_form_bytes))
        self._forwarded = ForwardedHeaders(web.trusted_proxies)
        self._rules = rules
        self._sessions = _Sessions(socketio.server.eio)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request, or let it through."""
        self._forwarded.apply(environ)
        start_response = self._marked(environ, start_response)
        text = None if self._rules is None else self._rules.refusal_reason(environ)
        if text is not None:
            return respond_plain(403, text, environ, start_response)
        path = environ.get("PATH_INFO", "")
        limit = self._max_form_bytes if path in PICTURE_PATHS else SMALL_BODY_BYTES
        length = environ.get("CONTENT_LENGTH") or "0"
        if not (length.isascii() and length.isdigit()):
            return respond_plain(400, "The header Content-Length is no number.", environ, start_response)
        if int(length[:20]) > limit:
            return respond_plain(413, too_large_text(limit), environ, start_response)
        client, is_proxy = client_of(environ)
        if path.startswith(SOCKETIO_PATH):
            query = parse_qs(environ.get("QUERY_STRING", ""))
            if "j" in query:  # an answer that is a script, which every site may embed and so read
                return respond_plain(400, "JSONP is not served.", environ, start_response)
            if not self._sessions.admit("sid" in query, client, is_proxy):
                return respond_plain(503, BUSY, environ, start_response)
        body = BoundedBody(environ["wsgi.input"], limit, self._bodies, client, is_proxy)
        environ["wsgi.input"] = body
        return _closing(self._app, environ, start_response, body)

    def _marked(self, environ: dict[str, Any], start_response: Any) -> Any:
        """``start_response`` with the headers that tell browsers what they may do with the answer."""
        path = environ.get("PATH_INFO", "")
        origin = environ.get("HTTP_ORIGIN")
        may_read = self._rules is None or (origin is not None and self._rules.is_allowed_origin(origin))

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [each for each in headers if may_read or not each[0].lower().startswith("access-control-")]
            names = {name.lower() for name, _ in kept}
            kept.append(("X-Content-Type-Options", "nosniff"))
            is_page = path == "/" or path.startswith("/static/")
            if not is_page and "content-security-policy" not in names:
                kept.append(("Content-Security-Policy", NO_DOCUMENT))
            return start_response(status, kept, *rest)

        return start


class _Sessions:
    """Bounds the sessions of Engine.IO, below Socket.IO."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._share = FairShare(SOCKETIO_SESSIONS)
        self._lock = threading.Lock()  # guards _clients
        self._clients: dict[str, str] = {}
        self._opening = threading.local()
        self._generate_id = engine.generate_id
        engine.generate_id = self._named_id

    def admit(self, is_open: bool, client: str, is_proxy: bool) -> bool:
        """Whether the request may go on; one of an open session always may."""
        self._opening.client = None
        if is_open:
            return True
        with self._lock:
            for sid in [sid for sid in self._clients if sid not in self._engine.sockets]:
                self._share.give_back(self._clients.pop(sid))
        if not self._share.take(client, is_proxy=is_proxy):
            return False
        self._share.give_back(client)
        self._opening.client = (client, is_proxy)
        return True

    def _named_id(self) -> str:
        sid: str = self._generate_id()
        client, is_proxy = getattr(self._opening, "client", None) or ("", False)
        with self._lock:
            if self._share.take(client, is_proxy=is_proxy):
                self._clients[sid] = client
        return sid


def client_of(environ: dict[str, Any]) -> tuple[str, bool]:
    """Whose share a request uses, and whether many people are behind that."""
    address = environ.get("REMOTE_ADDR")
    if not address:  # a Unix socket: a proxy of this host
        return "", True
    return client_key(address) or "", environ.get("lamagrid.proxy") == address


def _closing(app: Any, environ: dict[str, Any], start_response: Any, body: BoundedBody) -> Iterable[bytes]:
    from werkzeug.wsgi import ClosingIterator

    try:
        return ClosingIterator(app(environ, start_response), body.close)
    except BaseException:
        body.close()
        raise


def _free_pictures(error: BaseException | None) -> None:
    """Free what the frames of a failed request hold: Flask leaves the error in a cycle with them."""
    if error is not None:
        traceback.clear_frames(error.__traceback__)


def install(server: Any, web: WebSettings, max_pixels: int, rules: SameOrigin | None) -> None:
    """Put the door before the application of ``lama_cleaner.server``, and the bounded parser into it."""
    app = server.app
    parser = type("FormParser", (BoundedFormParser,), {"max_file_bytes": max_file_bytes(max_pixels)})
    app.request_class = type("BoundedRequest", (app.request_class,), {"form_data_parser_class": parser})
    # What a view returns as text is text: upstream's repeat what they were sent.
    app.response_class = type("PlainResponse", (app.response_class,), {"default_mimetype": "text/plain"})
    app.teardown_request(_free_pictures)
    socketio_limits.install(server.socketio)
    app.wsgi_app = RequestFilter(app.wsgi_app, server.socketio, web, max_pixels, rules)
