"""One-line answers to requests that are refused before anything is done for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

RETRY_AFTER_S = 5


def plain_error(status: int, text: str) -> Exception:
    """The exception that makes a view answer with one line, without the error handlers of the application."""
    from werkzeug.exceptions import HTTPException
    from werkzeug.wrappers import Response

    return HTTPException(response=Response(text, status, _headers(status), mimetype="text/plain"))


def respond_plain(status: int, text: str, environ: Mapping[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer with one line, without the application."""
    from werkzeug.wrappers import Response

    return Response(text, status, _headers(status), mimetype="text/plain")(dict(environ), start_response)


def _headers(status: int) -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
