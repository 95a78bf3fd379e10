"""WSGI middleware around upstream's application and Socket.IO: refuses requests and adds headers to answers.

Checks, in this order: headers of trusted proxies, host name, origin of the page, size of the body.
The added headers keep browsers from guessing the type of an answer, and pages of other sites from reading it.

Does not: parse a body; `lamagrid.web.request_body` does while the application reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

from lamagrid.settings import WebSettings
from lamagrid.web.fair_share import Client, FairShare
from lamagrid.web.forwarded_headers import ForwardedHeaders, client_key
from lamagrid.web.plain_responses import respond_plain
from lamagrid.web.request_body import (
    BoundedBody,
    max_form_bytes,
    too_large_text,
)
from lamagrid.web.same_origin import SameOrigin
from lamagrid.web.socketio_limits import SessionLimit

PICTURE_PATHS = frozenset(["/inpaint", "/run_plugin", "/save_image"])
SMALL_BODY_BYTES = 64 * 1024
"""The limit of other routes: the name of a model, or messages of Socket.IO."""
BODIES_BYTES = 4 << 30
"""All bodies that are being read or answered."""
SOCKETIO_PATH = "/socket.io"
NO_DOCUMENT = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""For all answers but pages: opened on its own, an answer runs no script and has no origin."""
BUSY = "The server has too many connections of this address: close some, or try again in some seconds."


class RequestFilter:
    """The WSGI application around upstream's.

    Args:
        app: Gets the accepted requests.
        sessions: Counts the sessions of Engine.IO.
        web: Names the trusted proxies.
        max_pixels: All sizes follow from it.
        rules: Which browsers are answered; None for all.
    """

    def __init__(
        self, app: Any, sessions: SessionLimit, web: WebSettings, max_pixels: int, rules: SameOrigin | None
    ) -> None:
        self._app = app
        self._max_form_bytes = max_form_bytes(max_pixels)
        self._bodies = FairShare(max(BODIES_BYTES, 2 * self._max_form_bytes))
        self._forwarded = ForwardedHeaders(web.trusted_proxies)
        self._rules = rules
        self._sessions = sessions

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Refuse one request, or pass it on."""
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
        client = client_of(environ)
        if path.startswith(SOCKETIO_PATH):
            query = parse_qs(environ.get("QUERY_STRING", ""))
            if "j" in query:  # an answer that is a script, which every site may embed and so read
                return respond_plain(400, "JSONP is not served.", environ, start_response)
            if "sid" in query:
                self._sessions.continue_open()
            elif not self._sessions.admit(client):
                return respond_plain(503, BUSY, environ, start_response)
        body = BoundedBody(environ["wsgi.input"], limit, self._bodies, client)
        environ["wsgi.input"] = body
        return _closing(self._app, environ, start_response, body)

    def _marked(self, environ: dict[str, Any], start_response: Any) -> Any:
        """``start_response`` with security headers added."""
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


def client_of(environ: dict[str, Any]) -> Client:
    """Whose share a request uses."""
    address = environ.get("REMOTE_ADDR")
    if not address:  # a Unix socket: a proxy of this host
        return Client("", is_proxy=True)
    return Client(client_key(address) or "", environ.get("lamagrid.proxy") == address)


def _closing(app: Any, environ: dict[str, Any], start_response: Any, body: BoundedBody) -> Iterable[bytes]:
    from werkzeug.wsgi import ClosingIterator

    try:
        return ClosingIterator(app(environ, start_response), body.close)
    except BaseException:
        body.close()
        raise
