"""The ``/media_thumbnail`` route: refuses thumbnails larger than a screen.

Does not: make thumbnails; upstream's view does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LARGEST_SIDE = 4096


class ThumbnailRoute:
    """Upstream's ``media_thumbnail_file`` behind the check."""

    def __init__(self, upstream: Callable[..., Any]) -> None:
        self._upstream = upstream

    def __call__(self, **names: str) -> Any:
        """Answer one request."""
        from flask import request

        for side in ("width", "height"):
            text = request.args.get(side)
            if text and not _fits(text):
                return f"The {side} of a thumbnail must be a number from 1 to {LARGEST_SIDE}.", 400
        return self._upstream(**names)


def _fits(text: str) -> bool:
    try:
        return 1 <= float(text) <= LARGEST_SIDE
    except ValueError:
        return False
