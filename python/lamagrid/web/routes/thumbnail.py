"""The ``/media_thumbnail`` route: no thumbnail is larger than a screen.

Does not: make thumbnails; upstream's view does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LARGEST_SIDE = 4096


def register(app: Any) -> None:
    """Put the check in front of upstream's view."""
    upstream: Callable[..., Any] = app.view_functions["media_thumbnail_file"]

    def media_thumbnail_file(**names: str) -> Any:
        from flask import request

        for side in ("width", "height"):
            text = request.args.get(side)
            if text and not _fits(text):
                return f"The {side} of a thumbnail must be a number from 1 to {LARGEST_SIDE}.", 400
        return upstream(**names)

    app.view_functions["media_thumbnail_file"] = media_thumbnail_file


def _fits(text: str) -> bool:
    try:
        return 1 <= float(text) <= LARGEST_SIDE
    except ValueError:
        return False
