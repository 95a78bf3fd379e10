"""The page ``/grid``: the tasks of the browser that looks at it, with a button to cancel them.

Pictures that no request waits for, for example after a restart of the server, are shown here.

Does not: show or cancel another browser's tasks.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamagrid.errors import InvalidInputError, LamaGridError
from lamagrid.web.browser_tasks import RESULT_LIMIT_S, BrowserTasks, browser_of_request

if TYPE_CHECKING:
    from flask import Flask

    from lamagrid.client import Outcome

FILES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Content-Security-Policy: no text of a task can run as a script."""


UNKNOWN = "This browser sent no such task."
TYPES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"RIFF": "image/webp",
}


def register(app: Flask, browser_tasks: BrowserTasks) -> None:
    """Add the page's routes to upstream's."""
    texts = {kind: Path(__file__).with_name(f"tasks_page.{kind}").read_text("utf-8") for kind in FILES}

    from flask import Response, abort

    def page(kind: str = "html") -> Response:

        if kind not in texts:
            abort(404)
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
        return Response(texts[kind], mimetype=FILES[kind], headers=headers)

    def tasks() -> dict[str, Any]:
        mine = browser_tasks.refreshed(browser_of_request())
        return {"tasks": [watched.as_event() for watched in mine]}

    def result(task_id: str) -> Any:
        watched = browser_tasks.find(browser_of_request(), task_id)
        if watched is None:
            return UNKNOWN, 404
        try:
            if watched.task.status()["status"] != "completed":
                return "This task has no picture yet.", 404
            file = _file(watched.task.outcome(RESULT_LIMIT_S))
        except InvalidInputError as error:
            return str(error), 404
        except LamaGridError as error:
            return str(error), 503
        return Response(file, mimetype=_type(file), headers={"Cache-Control": "private, no-store"})

    def cancel(task_id: str) -> tuple[str, int]:
        watched = browser_tasks.find(browser_of_request(), task_id)
        if watched is None:
            return UNKNOWN, 404
        try:
            return watched.task.cancel(), 200
        except LamaGridError as error:
            return str(error), 503

    app.add_url_rule("/grid", "grid_page", page)
    app.add_url_rule("/grid/page.<kind>", "grid_page_file", page)
    app.add_url_rule("/grid/tasks", "grid_tasks", tasks)
    app.add_url_rule("/grid/tasks/<task_id>/result", "grid_result", result)
    app.add_url_rule("/grid/tasks/<task_id>/cancel", "grid_cancel", cancel, methods=["POST"])


def _file(outcome: Outcome) -> bytes:
    """The picture of a task: its file, or its pixels as a PNG file."""
    if outcome.dims is None:
        return outcome.encoded()
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(outcome.rgb()).save(file, "PNG")
    return file.getvalue()


def _type(file: bytes) -> str:
    known = (kind for start, kind in TYPES.items() if file.startswith(start))
    return next(known, "application/octet-stream")
