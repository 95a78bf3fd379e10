"""The ``/save_image`` route: refuses file names that lead out of the output directory.

Does not: save; upstream's view does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any


class SaveImageRoute:
    """Upstream's ``save_image`` behind the check."""

    def __init__(self, upstream: Callable[[], Any]) -> None:
        self._upstream = upstream

    def __call__(self) -> Any:
        """Answer one request."""
        from flask import request

        name = request.form.get("filename")
        if name is not None and not is_plain(name):
            return f"The file name {name[:100]!r} must be a name alone, without a folder.", 400
        return self._upstream()


def is_plain(name: str) -> bool:
    """Whether a name stays in the folder that it is joined to, on the system of this host."""
    return name not in ("", ".", "..") and "\0" not in name and PurePath(name).name == name
