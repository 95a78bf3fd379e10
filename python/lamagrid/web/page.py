"""The page ``/grid``: the tasks of the browser that looks at it, with a button to cancel them.

Does not: show or cancel another browser's tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamagrid.errors import LamaGridError
from lamagrid.web.browsers import Browsers, browser_of_request

if TYPE_CHECKING:
    from flask import Response

FILES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Content-Security-Policy: what stands in a task's texts stays text."""


def register(app: Any, browsers: Browsers) -> None:
    """Add the page's routes to upstream's."""
    texts = {kind: Path(__file__).with_name(f"page.{kind}").read_text("utf-8") for kind in FILES}

    def page(kind: str = "html") -> Response:
        from flask import Response, abort

        if kind not in texts:
            abort(404)
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
        return Response(texts[kind], mimetype=FILES[kind], headers=headers)

    def tasks() -> dict[str, Any]:
        mine = browsers.tasks(browser_of_request())
        for watched in mine:
            watched.ask()
        return {"tasks": [watched.told() for watched in mine]}

    def cancel(task_id: str) -> tuple[str, int]:
        watched = browsers.find(browser_of_request(), task_id)
        if watched is None:
            return "This browser sent no such task.", 404
        try:
            return watched.task.cancel(), 200
        except LamaGridError as error:
            return str(error), 503

    app.add_url_rule("/grid", "grid_page", page)
    app.add_url_rule("/grid/page.<kind>", "grid_page_file", page)
    app.add_url_rule("/grid/tasks", "grid_tasks", tasks)
    app.add_url_rule("/grid/tasks/<task_id>/cancel", "grid_cancel", cancel, methods=["POST"])
