"""The ``/save_image`` route: no file name leads out of the output directory.

Does not: save; upstream's view does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any


def register(app: Any) -> None:
    """Put the check in front of upstream's view."""
    upstream: Callable[[], Any] = app.view_functions["save_image"]

    def save_image() -> Any:
        from flask import request

        name = request.form.get("filename")
        if name is not None and not is_plain(name):
            return f"The file name {name[:100]!r} must be a name alone, without a folder.", 400
        return upstream()

    app.view_functions["save_image"] = save_image


def is_plain(name: str) -> bool:
    """Whether a name stays in the folder that it is joined to, on the system of this host."""
    return name not in ("", ".", "..") and "\0" not in name and PurePath(name).name == name
