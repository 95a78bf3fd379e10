"""Makes the answers to failed requests.

Upstream answers with HTML pages, or hides the error. Here each answer keeps upstream's status and type, and
tells the error, and the remedy where it is known, in one line.
"""

from __future__ import annotations

import enum
import logging
from typing import TYPE_CHECKING, Any

from lamagrid.errors import UNREADABLE_PICTURE_TEXT, OverloadedError
from lamagrid.web.pending_requests import StoppingError

MESSAGE_CHARS = 500

if TYPE_CHECKING:
    from flask import Flask

    from lamagrid.upstream.protocol import UpstreamServer


class AnswerStyle(enum.Enum):
    """How the web server answers errors."""

    READABLE = "one line that says what went wrong and what to do"
    UPSTREAM = "upstream's answers exactly: HTML pages, generic messages (--grid-strict)"


log = logging.getLogger("lamagrid.web")


def failed(server: UpstreamServer, error: RuntimeError) -> Any:
    """The answer to a request whose task failed; ``server`` is upstream's module."""
    if isinstance(error, StoppingError):
        return server.make_response(str(error), 503)
    if isinstance(error, OverloadedError):
        text, headers = str(error), {}
        if error.wait_s is not None:  # the wait for a paused queue is unknown
            wait_s = max(1, round(error.wait_s))
            headers["Retry-After"] = str(wait_s)
            if error.queue_len:
                text = f"{text.rstrip('.')}. {error.queue_len} before you, try again in {wait_s} s."
        response = server.make_response(text, 503)
        response.headers.update(headers)
        return response
    if "CUDA out of memory. " in str(error):
        return "CUDA out of memory", 500
    log.warning("no answer: %s", error)
    return str(error), 500


def register(app: Flask) -> None:
    """Answer a missing field, and an exception, with one line instead of Flask's page."""
    from werkzeug.exceptions import BadRequestKeyError, InternalServerError

    app.register_error_handler(BadRequestKeyError, _missing)
    app.register_error_handler(InternalServerError, _broken)


def _missing(error: Any) -> tuple[str, int]:
    return f"The request has no field {error.args[0]}: all fields of the form must be there.", 400


def _broken(error: Any) -> tuple[str, int]:
    cause = getattr(error, "original_exception", None)
    if cause is None:
        return str(error.description), 500
    if type(cause).__name__ == "UnidentifiedImageError":
        return UNREADABLE_PICTURE_TEXT, 500
    text = "; ".join(line.strip() for line in str(cause).splitlines() if line.strip())
    return f"{type(cause).__name__}: {text}"[:MESSAGE_CHARS], 500
