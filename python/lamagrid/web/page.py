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

PAGE = Path(__file__).with_name("page.html")


def register(app: Any, browsers: Browsers) -> None:
    """Add the page's routes to upstream's."""

    html = PAGE.read_text("utf-8")

    def page() -> Response:
        from flask import Response

        return Response(html, mimetype="text/html", headers={"Cache-Control": "no-cache"})

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
    app.add_url_rule("/grid/tasks", "grid_tasks", tasks)
    app.add_url_rule("/grid/tasks/<task_id>/cancel", "grid_cancel", cancel, methods=["POST"])
