"""Refuses pictures with too many pixels by their header, before upstream decodes them.

Does not: check files that Pillow cannot open; upstream answers those.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

from PIL import Image


class HasMaxPixels(Protocol):
    """Knows the configured limit."""

    @property
    def max_pixels(self) -> int:
        """Of one picture."""


def pillow_limit(_original: object, context: HasMaxPixels) -> int:
    """Pillow's limit: it warns above this many pixels and refuses twice as many, on every route."""
    return context.max_pixels


def over(width: int, height: int, max_pixels: int) -> str | None:
    """The reason to refuse a picture of that size, None if it is accepted."""
    if width * height <= max_pixels:
        return None
    return (
        f"it has {width} x {height} = {width * height} pixels, at most {max_pixels} are accepted "
        "(limits.max_pixels). Send a smaller one."
    )


def too_large(stream: Any, max_pixels: int) -> str | None:
    """The reason to refuse the picture in ``stream``, None if it is accepted. Rewinds the stream."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(stream) as picture:  # reads the header alone
                width, height = picture.size
    except Image.DecompressionBombError:
        return (
            f"it has far more than the {max_pixels} pixels that are accepted (limits.max_pixels). "
            "Send a smaller one."
        )
    except Exception:  # upstream finds the same error again, and answers it
        return None
    finally:
        stream.seek(0)
    return over(width, height, max_pixels)
