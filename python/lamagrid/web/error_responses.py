"""What the web process answers when something went wrong.

Upstream shows its page's visitors a page of HTML, or hides what happened. Here each answer keeps upstream's
status and type, and says in one line what is wrong and, where that is known, what to do.

Does not: answer what went well.
"""

from __future__ import annotations

import logging
from typing import Any

from lamagrid.errors import UNREADABLE_PICTURE_TEXT, OverloadedError
from lamagrid.web.pending_requests import StoppingError

MESSAGE_CHARS = 500

log = logging.getLogger("lamagrid.web")


def failed(server: Any, error: RuntimeError) -> Any:
    """The answer to a request whose task failed; ``server`` is upstream's module."""
    if isinstance(error, StoppingError):
        return server.make_response(str(error), 503)
    if isinstance(error, OverloadedError):
        text, headers = str(error), {}
        if error.wait_s is not None:  # of a paused queue nothing can be promised
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


def register(app: Any) -> None:
    """Let one line stand where Flask answers with a page: for a missing field, and for an exception."""
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
